"""The command line: it parses, calls and prints.

Nothing heavy is imported before a command needs it, so that `edgekiln --help` answers at once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekiln import __version__, completion

if TYPE_CHECKING:
    from edgekiln.pipelines.plan import Plan

_EXIT_CODES = """
\b
Exit codes: 0 every build passed; 1 a gate failed or was not measured; 2 wrong usage or
configuration; 3 unsupported; 4 a step failed; 5 something is missing on this machine;
70 a bug in Edgekiln; 130 interrupted.
"""


@click.group(
    epilog=_EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(__version__, prog_name="edgekiln")
def cli(debug: bool) -> None:
    """Quantize a Qwen checkpoint, export it for devices, and prove each artifact in its real runtime."""


def _show(text: str) -> None:
    from edgekiln.standard_streams import show

    show(text)


def _selection(command: Any) -> Any:
    """Add the options that select builds; build and plan share them."""
    options = [
        click.argument("pipeline", default="default", shell_complete=completion.pipelines),
        click.option(
            "--checkpoint",
            metavar="PATH|ID[@REV]",
            help="Model directory, Hub id, or tiny-qwen3.",
            shell_complete=completion.checkpoints,
        ),
        click.option(
            "--target",
            "only",
            multiple=True,
            metavar="NAME",
            help="Build for this target only; repeatable.",
            shell_complete=completion.target_names,
        ),
        click.option("--out", metavar="DIR", help="Folder for artifacts and reports.  [default: ./artifacts]"),
        click.option(
            "--targets",
            metavar="FILE",
            help="Targets file.  [default: ./targets.yaml, else the shipped one]",
            shell_complete=completion.paths,
        ),
        click.option(
            "--set",
            "assignments",
            multiple=True,
            metavar="KEY=VALUE",
            help="Override a setting; repeatable.",
            shell_complete=completion.settings,
        ),
        click.option("--offline", is_flag=True, default=None, help="Take Hub checkpoints from the local cache only."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output and nothing else."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _report_option(command: Any) -> Any:
    """Add the option that writes all views of the report; build and validate share it."""
    option = click.option(
        "--report",
        "directory",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="Write the report there: JSON, Markdown, HTML, JUnit XML and SARIF.",
    )
    return option(command)


def _make_plan(
    pipeline: str,
    checkpoint: str | None,
    only: tuple[str, ...],
    out: str | None,
    targets: str | None,
    assignments: tuple[str, ...],
    offline: bool | None,
) -> Plan:
    from edgekiln.exporters import EXPORTERS
    from edgekiln.pipelines.plan import make_plan

    return make_plan(
        pipeline,
        formats=EXPORTERS,
        flags={"checkpoint": checkpoint, "out": out, "targets": targets, "offline": offline},
        assignments=assignments,
        environment=os.environ,
        only=only,
    )


@cli.command()
@_selection
@click.option("--only", "ids", multiple=True, metavar="ID", help="Make this build only; repeatable.")
@click.option(
    "--jobs",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Steps side by side at most.  [default: half the processors, at least 2]",
)
@click.option("--memory", metavar="SIZE", help="Memory for all steps together.  [default: 80 % of the machine's]")
@click.option(
    "--from",
    "from_kind",
    metavar="reference|export|publish|validate|latency",
    help="Make this kind of step and all later ones anew, whatever the cache has.",
    shell_complete=completion.choices,
)
@click.option("--fail-fast", is_flag=True, help="End the run at the first step that fails.")
@click.option("--dry-run", is_flag=True, help="Show which steps the cache has and which would be made; make none.")
@click.option("--no-cache", is_flag=True, help="Neither read nor write the cache.")
@_report_option
def build(
    as_json: bool,
    ids: tuple[str, ...],
    jobs: int | None,
    memory: str | None,
    from_kind: str | None,
    fail_fast: bool,
    dry_run: bool,
    no_cache: bool,
    directory: Path | None,
    **selection: Any,
) -> int:
    """Make, run and judge every artifact of PIPELINE (a file, or the name of a shipped one)."""
    from edgekiln.console import Console
    from edgekiln.pipelines.dry_run import dry_run_text
    from edgekiln.pipelines.engine_room import RunOptions
    from edgekiln.pipelines.run import REPORT, run_plan
    from edgekiln.pipelines.selection import only_builds
    from edgekiln.pipelines.tables import report_text
    from edgekiln.pipelines.write_views import require_writable, write_views
    from edgekiln.units import parse_size

    options = RunOptions(
        jobs=jobs,
        memory_bytes=None if memory is None else parse_size(memory),
        from_kind=from_kind,
        fail_fast=fail_fast,
        use_cache=not no_cache,
    )
    plan = only_builds(_make_plan(**selection), ids)
    if directory is not None and not dry_run:
        require_writable(directory)
    with Console() as console:
        if dry_run:
            text = dry_run_text(plan, console, options, as_json=as_json)
        else:
            outcome = run_plan(plan, console, options)
    if dry_run:
        _show(text)
        return 0
    if directory is not None:
        write_views(outcome.report, directory)
    where = f"Report: {plan.settings.values.out / REPORT}"
    _show(outcome.report.to_json() if as_json else f"{report_text(outcome.report)}\n{where}")
    return int(outcome.exit_code)


@cli.command()
@_selection
@click.option(
    "--format",
    "form",
    metavar="table|json|github-matrix|gitlab-matrix",
    help="What to print; a matrix has one CI job for each build.  [default: table]",
    shell_complete=completion.choices,
)
@click.option("--explain", metavar="BUILD", help="Show every effective setting of one build and where it came from.")
@click.option(
    "--fit",
    metavar="DEVICE",
    help="Without a pipeline: which precisions of the checkpoint fit that target.",
    shell_complete=completion.target_names,
)
@click.pass_context
def plan(
    context: click.Context, /, as_json: bool, form: str | None, explain: str | None, fit: str | None, **selection: Any
) -> None:
    """Show the matrix of PIPELINE, what each build will need, and why a cell cannot be built; write nothing."""
    from edgekiln.pipelines.show_plan import PlanRequest, plan_output

    given = context.get_parameter_source("pipeline") == click.core.ParameterSource.COMMANDLINE
    _show(plan_output(PlanRequest(form, as_json, explain, fit, given, selection), os.environ))


@cli.command()
@click.argument("checkpoint", shell_complete=completion.checkpoints)
@click.option(
    "--format",
    "format_name",
    required=True,
    metavar="onnx|gguf|foundry-local",
    help="Container.",
    shell_complete=completion.choices,
)
@click.option(
    "--precision",
    required=True,
    metavar="fp16|int8|int4|nf4|q4_k_m|…",
    help="What the weights become.",
    shell_complete=completion.precisions,
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="The new artifact directory."
)
@click.option("--group-size", type=click.IntRange(min=1), metavar="N", help="Weights that share a scale.")
@click.option("--asymmetric", is_flag=True, help="Store zero points (in GGUF: minima) too.")
@click.option(
    "--embedding-precision", metavar="P", help="Precision of the embeddings.", shell_complete=completion.precisions
)
@click.option(
    "--head-precision", metavar="P", help="Precision of the output head.", shell_complete=completion.precisions
)
@click.option(
    "--override",
    "overrides",
    multiple=True,
    metavar="'PATTERN=P'",
    help="Precision of the matrices with such names, like 'model.layers.{0,23}.*=int8'; repeatable.",
)
@click.option("--split-max-size", metavar="SIZE", help="Most tensor data in one file, like '2 GB'.")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Workers.  [default: all processors]")
@click.option(
    "--gguf-source",
    metavar="source|f16",
    help="What GGUF types are quantized from.  [default: source]",
    shell_complete=completion.choices,
)
@click.option("--offline", is_flag=True, help="Take a Hub checkpoint from the local cache only.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest on standard output and nothing else.")
def export(
    checkpoint: str, format_name: str, out: Path, threads: int | None, offline: bool, as_json: bool, **asked: Any
) -> None:
    """Export CHECKPOINT to one artifact, without validating it."""
    from edgekiln.checkpoint import open_checkpoint
    from edgekiln.console import Console
    from edgekiln.errors import UsageError, nearest
    from edgekiln.exporters import EXPORTERS
    from edgekiln.pipelines.export import export as run_export
    from edgekiln.pipelines.export_options import parse_scheme

    if format_name not in EXPORTERS:
        raise UsageError(f"unknown format {format_name!r}; {nearest(format_name, EXPORTERS)}")
    scheme = parse_scheme(**asked)
    with Console(1) as console:
        opened = open_checkpoint(checkpoint, offline=offline, with_text=False, listener=console)
        with console.step(str(out), f"exporting {format_name} {scheme.precision}"):
            manifest = run_export(opened, format_name, scheme, out, threads=threads, with_text=True)
    size = sum(entry.size for entry in manifest.files)
    line = f"{out}: {manifest.container_type}, {size:,} bytes in {len(manifest.files)} files"
    _show(manifest.model_dump_json(indent=2, by_alias=True) if as_json else line)


@cli.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--reference",
    required=True,
    metavar="PATH|ID[@REV]",
    help="The checkpoint it should equal.",
    shell_complete=completion.checkpoints,
)
@click.option(
    "--target",
    metavar="NAME",
    help="Judge it for this device.  [default: this machine]",
    shell_complete=completion.target_names,
)
@click.option(
    "--targets",
    metavar="FILE",
    help="Targets file.  [default: ./targets.yaml, else the shipped one]",
    shell_complete=completion.paths,
)
@click.option(
    "--profile",
    metavar="quick|full",
    help="How much is looked at.  [default: full]",
    shell_complete=completion.choices,
)
@click.option(
    "--corpus",
    metavar="FILE",
    help="Text or JSONL to compare on.  [default: built-in]",
    shell_complete=completion.paths,
)
@click.option(
    "--gate",
    "gates",
    multiple=True,
    metavar="'METRIC<=LIMIT'",
    help="A limit; repeatable.",
    shell_complete=completion.gates,
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a setting; repeatable.",
    shell_complete=completion.settings,
)
@click.option("--offline", is_flag=True, default=None, help="Take a Hub checkpoint from the local cache only.")
@_report_option
@click.option("--json", "as_json", is_flag=True, help="Print the report on standard output and nothing else.")
def validate(
    artifact: Path,
    target: str | None,
    gates: tuple[str, ...],
    assignments: tuple[str, ...],
    directory: Path | None,
    as_json: bool,
    **flags: Any,
) -> int:
    """Judge ARTIFACT (a GGUF file, or an ORT GenAI or Foundry Local directory), whoever made it."""
    from edgekiln.console import Console
    from edgekiln.pipelines.tables import report_text
    from edgekiln.pipelines.validate import ask, run_validation
    from edgekiln.pipelines.write_views import require_writable, write_views

    flags["checkpoint"] = flags.pop("reference")
    question, settings = ask(artifact, target, gates, assignments, flags, os.environ)
    if directory is not None:
        require_writable(directory)
    with Console() as console:
        outcome = run_validation(question, settings, console)
    if directory is not None:
        write_views(outcome.report, directory)
    _show(outcome.report.to_json() if as_json else report_text(outcome.report))
    return int(outcome.exit_code)


@cli.command()
@click.argument("old", type=click.Path(path_type=Path), shell_complete=completion.paths)
@click.argument("new", type=click.Path(path_type=Path), shell_complete=completion.paths)
@click.option(
    "--gate",
    "gates",
    multiple=True,
    metavar="'METRIC<=LIMIT'",
    help="A limit on every build of NEW, like 'mean_kld <= 1.1 * old'; repeatable.",
    shell_complete=completion.gates,
)
@click.option("--json", "as_json", is_flag=True, help="Print the comparison on standard output and nothing else.")
def compare(old: Path, new: Path, gates: tuple[str, ...], as_json: bool) -> int:
    """Show what changed from the report OLD to NEW, both report.json; 1 when a gate fails or was not measured."""
    from edgekiln.pipelines.compare import comparison_text, exit_code, run_comparison

    comparison = run_comparison(old, new, gates)
    _show(comparison.to_json() if as_json else comparison_text(comparison))
    return int(exit_code(comparison))


@cli.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="Say this and exit; repeatable, in turns.")
@click.option("--system", metavar="TEXT", help="The system prompt.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=512, show_default=True, help="Longest reply.")
@click.option(
    "--thinking/--no-thinking", default=None, help="Let a model think first, or not.  [default: its template's]"
)
@click.option("--temperature", type=click.FloatRange(0, 10), default=0.0, help="Sample; 0 is greedy.  [default: 0]")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Of the sampling.  [default: a new one]")
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Threads of the runtime.  [default: all physical cores]",
)
@click.option("--context", type=click.IntRange(16, 1 << 21), default=4096, show_default=True, help="Tokens in all.")
@click.option("--verbose", is_flag=True, help="Say what renders the template and how tokens are chosen.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output and nothing else.")
@click.pass_context
def chat(
    context_: click.Context,
    artifact: Path,
    prompts: tuple[str, ...],
    system: str | None,
    max_tokens: int,
    thinking: bool | None,
    temperature: float,
    seed: int | None,
    threads: int | None,
    context: int,
    verbose: bool,
    as_json: bool,
) -> None:
    """Chat with ARTIFACT in its own runtime: at the terminal, or with --prompt or a prompt on standard input."""
    from edgekiln.pipelines.chat import find_artifact
    from edgekiln.pipelines.chat_console import ChatRun, read_prompts, run_chat, sampling

    kind = find_artifact(artifact)
    run_chat(
        ChatRun(
            kind=kind,
            prompts=read_prompts(prompts, as_json=as_json),
            system=system,
            options=sampling(max_tokens, temperature, seed, thinking),
            threads=threads,
            context=context,
            verbose=verbose,
            debug=context_.find_root().params["debug"],
            as_json=as_json,
        )
    )


@cli.command()
@click.argument("source", metavar="PATH|ID")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@click.option("--hash", "hashed", is_flag=True, help="Hash every file; verify SHA256SUMS where there are some.")
@click.option("--offline", is_flag=True, help="Take a Hub checkpoint from the local cache only.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output and nothing else.")
def inspect(source: str, tensors: bool, hashed: bool, offline: bool, as_json: bool) -> None:
    """Describe a checkpoint, or an artifact of any origin, from its own files."""
    from edgekiln.console import Console
    from edgekiln.pipelines.inspect import inspect as run_inspect
    from edgekiln.pipelines.inspect_text import inspection_text

    with Console() as console:
        found = run_inspect(source, tensors=tensors, hashed=hashed, offline=offline, listener=console)
    _show(found.inspection.to_json() if as_json else inspection_text(found.inspection))
    if found.error is not None:
        raise found.error


@cli.command()
@click.argument("name", required=False, shell_complete=completion.target_names)
@click.option(
    "--targets",
    "path",
    metavar="FILE",
    help="Targets file.  [default: ./targets.yaml, else the shipped one]",
    shell_complete=completion.paths,
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def targets(name: str | None, path: str | None, as_json: bool) -> None:
    """List the device profiles, or show the one called NAME."""
    from edgekiln.pipelines.settings import environment_layer, flags_layer, resolve_settings
    from edgekiln.pipelines.tables import target_text, targets_json, targets_text
    from edgekiln.pipelines.targets import load_targets

    settings = resolve_settings(environment_layer(os.environ), flags_layer({"targets": path})).values
    catalogue = load_targets(settings.targets)
    chosen = [catalogue.get(name)] if name else list(catalogue.targets.values())
    text = target_text(chosen[0]) if name else targets_text(catalogue)
    _show(targets_json(chosen) if as_json else text)


@cli.command()
@click.argument(
    "name",
    required=False,
    metavar="pipeline|targets|report|comparison|manifest|plan|fit|inspect|doctor",
    shell_complete=completion.choices,
)
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write it there instead.")
@click.option("--all", "directory", type=click.Path(path_type=Path), metavar="DIR", help="Write all of them into DIR.")
def schema(name: str | None, out: Path | None, directory: Path | None) -> None:
    """Print the JSON Schema of a file that Edgekiln reads or writes."""
    from edgekiln.artifact import write_atomically
    from edgekiln.errors import UsageError
    from edgekiln.pipelines.schemas import FILE_MODELS, schema_text, write_schemas

    if (name is None) == (directory is None) or (out is not None and name is None):
        raise UsageError(f"name one of {', '.join(FILE_MODELS)}, or give --all DIR for all of them")
    if directory is not None:
        _show("\n".join(map(str, write_schemas(directory))))
    elif name is not None and out is not None:
        write_atomically(out, schema_text(name))
    elif name is not None:
        _show(schema_text(name))


@cli.command()
@click.option(
    "--targets",
    "path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Targets file.  [default: ./targets.yaml, else the shipped one]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output and nothing else.")
def doctor(path: Path | None, as_json: bool) -> int:
    """Say what works on this machine and how to mend the rest; no connection is made."""
    from edgekiln.pipelines.doctor import examine, exit_code, report_text

    report = examine(path)
    _show(report.to_json() if as_json else report_text(report))
    return int(exit_code(report))


@cli.group()
def cache() -> None:
    """Look after the results of earlier runs: in EDGEKILN_CACHE, or where this system keeps caches."""


@cache.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output and nothing else.")
def cache_ls(as_json: bool) -> None:
    """List every result with its size and when it was last used."""
    from edgekiln.pipelines.cache import list_cache

    _show(list_cache(os.environ, as_json=as_json).text)


@cache.command("verify")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output and nothing else.")
def cache_verify(as_json: bool) -> int:
    """Hash every file; report and remove what is not what was put there."""
    from edgekiln.pipelines.cache import verify_cache

    shown = verify_cache(os.environ, as_json=as_json)
    _show(shown.text)
    return int(shown.exit_code)


@cache.command("gc")
@click.option("--max-size", required=True, metavar="SIZE", help="What may remain, like '20 GB'.")
@click.option("--dry-run", is_flag=True, help="Show what would be removed; remove nothing.")
def cache_gc(max_size: str, dry_run: bool) -> None:
    """Remove what killed runs left, then what was not used for longest, until at most SIZE is left."""
    from edgekiln.pipelines.cache import collect_garbage
    from edgekiln.units import parse_size

    _show(collect_garbage(os.environ, parse_size(max_size), dry_run=dry_run).text)


@cache.command("explain")
@click.argument("build_id", metavar="BUILD")
@_selection
def cache_explain(build_id: str, as_json: bool, **selection: Any) -> None:
    """Say of each step of BUILD, a build of PIPELINE, whether it was made before, and if not, why."""
    from edgekiln.console import Console
    from edgekiln.pipelines.explain import explain

    with Console() as console:
        text = explain(_make_plan(**selection), build_id, console, as_json=as_json)
    _show(text)


@cli.command("completion")
@click.argument("shell", metavar="|".join(completion.SHELLS), shell_complete=completion.choices)
def completion_command(shell: str) -> None:
    """Print the script that makes SHELL complete commands, options and their values."""
    _show(completion.script(shell))
