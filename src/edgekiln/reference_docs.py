"""The pages of docs/reference, written from the code: `python -m edgekiln.reference_docs DIR`, or `make docs`.

Nothing of them is written by hand, so nothing of them can be out of date. Like the command line, on which it rests,
this module stands above all others; none imports it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import click

from edgekiln.artifact import write_atomically
from edgekiln.cli import cli
from edgekiln.errors import UsageError
from edgekiln.pipelines import settings as settings_module
from edgekiln.pipelines.schemas import json_schema
from edgekiln.pipelines.settings import ENVIRONMENT_PREFIX, OTHER_VARIABLES, Settings
from edgekiln.pipelines.shipped import CATALOGUE, shipped
from edgekiln.pipelines.targets import Meaning, Target, TargetsSpec, parse_targets
from edgekiln.reference_schema import code, default_text, plain, sections, table, type_text
from edgekiln.scheme import OPTIONS
from edgekiln.units import format_size
from edgekiln.validators import gates as gates_module
from edgekiln.validators.gates import DEFAULT_GATES, METRICS, OF_MACHINE
from edgekiln.yamlfile import read_yaml

_NOTE: Final = "<!-- Written by `make docs` from the code; do not edit. -->"
_DEFAULT: Final = re.compile(r"\s*\[default: (?P<value>.*)\]$")
_WIDTH: Final = 120
_ALL_COLUMNS: Final = ("key", "type", "default", "meaning", "example")


def _page(title: str, *parts: str) -> str:
    return "\n\n".join([f"# {title}", _NOTE, *filter(None, parts)]) + "\n"


def _summary(module_doc: str | None) -> str:
    """Return the first paragraph of a docstring on one line."""
    return " ".join((module_doc or "").split("\n\n")[0].split())


def _unwrapped(text: str) -> str:
    return " ".join(text.replace("\b", "").split())


# The command line


def _option_row(option: click.Option) -> list[str]:
    text = option.help or ""
    match = _DEFAULT.search(text)
    shown = match["value"] if match else ""
    if not shown and isinstance(option.default, int | float | str) and not isinstance(option.default, bool):
        shown = str(option.default)
    names = "/".join([*option.opts, *option.secondary_opts])
    value = "" if option.is_flag else f" {_value(option)}"
    default = "required" if option.required else shown or "–"
    return [code(f"{names}{value}"), default, _DEFAULT.sub("", text)]


def _value(option: click.Option) -> str:
    """Return what an option takes, as its help shows it; ranges as such."""
    if option.metavar:
        return option.metavar
    kind = option.type
    if isinstance(kind, click.IntRange | click.FloatRange):
        bounds = [f"≥ {kind.min}" if kind.min is not None else "", f"≤ {kind.max}" if kind.max is not None else ""]
        return f"N ({', '.join(filter(None, bounds))})"
    return kind.name.upper()


def _commands(group: click.Group, above: str = "") -> Iterator[tuple[str, click.Command]]:
    """Yield every command that does something, with its name, those of groups too."""
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from _commands(command, f"{above}{name} ")
        else:
            yield f"{above}{name}", command


def _command(name: str, command: click.Command) -> str:
    arguments = [param for param in command.params if isinstance(param, click.Argument)]
    options = [param for param in command.params if isinstance(param, click.Option)]
    parent = click.Context(cli, info_name="edgekiln")
    context = click.Context(command, info_name=name, parent=parent, terminal_width=_WIDTH, max_content_width=_WIDTH)
    usage = f"```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```"
    parts = [f"## edgekiln {name}", usage, _unwrapped(command.help or "")]
    parts += [
        f"Without {argument.human_readable_name} it takes {code(argument.default)}."
        for argument in arguments
        if isinstance(argument.default, str)
    ]
    if options:
        parts.append(table(("option", "default", "meaning"), map(_option_row, options)))
    return "\n\n".join(parts)


def _exit_codes() -> str:
    """Return the table of exit codes, from the text that `edgekiln --help` ends with."""
    listed = _unwrapped(cli.epilog or "").removeprefix("Exit codes: ").rstrip(".")
    rows = [entry.strip().partition(" ")[::2] for entry in listed.split(";")]
    return table(("code", "meaning"), [(code(number), meaning) for number, meaning in rows])


def cli_page() -> str:
    """Return the page of every command, argument, option and exit code."""
    own = [param for param in cli.params if isinstance(param, click.Option)]
    return _page(
        "The command line",
        _unwrapped(cli.help or ""),
        "Every command has `--help`.",
        table(("option", "default", "meaning"), map(_option_row, own)),
        *(_command(name, command) for name, command in _commands(cli)),
        "## Exit codes",
        _exit_codes(),
    )


# Settings and files


def settings_page() -> str:
    """Return the page of settings: key, type, default, environment variable, meaning, example."""
    schema = Settings.model_json_schema()
    rows = [
        [
            code(key),
            type_text(entry),
            default_text(key, entry, ()),
            code(ENVIRONMENT_PREFIX + key.upper()),
            entry["description"],
            " · ".join(code(plain(example)) for example in entry["examples"]),
        ]
        for key, entry in schema["properties"].items()
    ]
    others = ", ".join(map(code, OTHER_VARIABLES))
    return _page(
        "Settings",
        _summary(settings_module.__doc__),
        _summary(Settings.__doc__),
        "A setting is a key under `settings:` in a pipeline or targets file, an environment variable, or "
        "`--set KEY=VALUE`. `edgekiln plan --explain BUILD` shows what holds for a build and where it came from.",
        table(("key", "type", "default", "environment", "meaning", "example"), rows),
        f"Other variables that Edgekiln reads: {others}.",
    )


def pipeline_page() -> str:
    """Return the page of the pipeline file."""
    return _page("The pipeline file", sections(json_schema("pipeline"), _ALL_COLUMNS))


def targets_page() -> str:
    """Return the page of the targets file."""
    schema = TargetsSpec.model_json_schema(by_alias=True)  # the published one lets a target lack what it extends
    note = "What is required may come from the target or template that a target extends."
    return _page("The targets file", note, sections(schema, _ALL_COLUMNS))


def report_page() -> str:
    """Return the page of the report."""
    return _page("The report", sections(json_schema("report"), ("key", "type", "meaning")))


# Metrics and gates


def _alike() -> dict[tuple[tuple[str, str], ...], list[str]]:
    """Return the precisions by the default gates that they share."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for precision, limits in DEFAULT_GATES.items():
        groups.setdefault(limits, []).append(precision)
    return groups


def metrics_page() -> str:
    """Return the page of metrics and default gates."""
    metrics = [
        [code(metric.name), metric.unit, metric.better, metric.definition, "yes" if metric.name in OF_MACHINE else "no"]
        for metric in METRICS.values()
    ]
    gates = [
        f"### {', '.join(precisions)}\n\n"
        + table(("gate", "reason"), [(code(gate), reason) for gate, reason in limits])
        for limits, precisions in _alike().items()
    ]
    return _page(
        "Metrics and gates",
        table(("metric", "unit", "better", "definition", "depends on the machine"), metrics),
        "## Gates",
        " ".join((gates_module.__doc__ or "").partition("\n\n")[2].split()),
        "## Default gates",
        "A gate of a target, and over it one of a build, replaces the default on the same side of the same metric, "
        "absolute or relative as it is itself.",
        *gates,
    )


# The device catalogue


def _means(meaning: Meaning, name: str) -> str:
    if meaning.unsupported is not None:
        return f"unsupported: {meaning.unsupported}"
    options = {key: getattr(meaning, key) for key in OPTIONS}
    given = [f"{key} {plain(value)}" for key, value in options.items() if value is not None]
    return ", ".join([meaning.container or name, *given])


def _source(target: Target, figure: str) -> str:
    source = next((source for key, source in target.sources.items() if key == figure), None)
    if source is None:
        return "–"
    title = f"[{source.title}]({source.url})" if source.url else source.title
    return f"{title}: {source.why}" if source.why else title


def _figures(target: Target) -> Iterator[tuple[str, str]]:
    hardware = target.hardware
    yield "format", target.format
    yield "runtime", f"{target.runtime.name} {target.runtime.version}"
    yield "execution_provider", target.execution_provider
    yield "hardware", f"{hardware.machine}: {' or '.join(hardware.processor)}" if hardware else "any machine"
    yield "memory", "not given" if target.memory is None else format_size(target.memory)
    yield "threads", str(target.threads or "all physical cores")
    yield "context_length", f"{target.context_length:,}" if target.context_length else "the model's own"
    if target.gates:
        yield "gates", ", ".join(code(str(gate)) for gate in target.gates)


def _device(target: Target) -> str:
    verified = f"{target.verified.date}: {target.verified.report}" if target.verified else "never on the device itself"
    parts = [f"## {target.name}", f"{target.description}. Verified: {verified}."]
    if target.unsupported is not None:
        parts.append(f"**Nothing can be exported for it:** {target.unsupported}.")
    elif target.stand_in is not None:
        parts.append(f"Validation: {target.stand_in}.")
    figures = [(name, value, _source(target, name)) for name, value in _figures(target)]
    parts.append(table(("figure", "value", "source"), figures))
    meanings = [
        (name, _means(meaning, name), meaning.why, _source(target, name)) for name, meaning in target.precisions.items()
    ]
    if meanings:
        parts.append(table(("precision", "means", "why", "source"), meanings))
    return "\n\n".join(parts)


def devices_page() -> str:
    """Return the page of the shipped device catalogue."""
    catalogue = parse_targets(read_yaml(shipped(CATALOGUE)), is_shipped=True)
    targets = catalogue.targets.values()
    rows = [(f"[{target.name}](#{target.name})", target.description, target.runtime.name) for target in targets]
    return _page(
        "The device catalogue",
        f"The targets of `{CATALOGUE}`. `edgekiln targets NAME` shows one in the terminal.",
        table(("target", "device", "runtime"), rows),
        *map(_device, targets),
    )


PAGES: Final[Mapping[str, Callable[[], str]]] = MappingProxyType(
    {
        "cli.md": cli_page,
        "settings.md": settings_page,
        "pipeline.md": pipeline_page,
        "targets.md": targets_page,
        "metrics.md": metrics_page,
        "devices.md": devices_page,
        "report.md": report_page,
    }
)


def write_pages(directory: Path) -> tuple[Path, ...]:
    """Write every page into a directory, which is made if need be, and return the files.

    Raises:
        MachineError: The directory cannot be written.
    """
    paths = tuple(directory / name for name in PAGES)
    for path, page in zip(paths, PAGES.values(), strict=True):
        write_atomically(path, page())
    return paths


def main(arguments: list[str]) -> None:
    """Write the pages into the folder that the one argument names.

    Raises:
        UsageError: There is not exactly one argument.
    """
    if len(arguments) != 1:
        raise UsageError("name one folder: python -m edgekiln.reference_docs docs/reference")
    write_pages(Path(arguments[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
