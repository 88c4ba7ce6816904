"""The default pipeline from end to end, in the real runtimes; and that its gates tell a broken artifact.

Four of its builds, of every container; `make build` makes all of them, at its full settings.
"""

import json
import shutil

import pytest

from edgekiln.artifact import CHECKSUMS, MANIFEST, Manifest, sha256_file
from edgekiln.checkpoint import EMBEDDED, open_checkpoint
from edgekiln.console import Console
from edgekiln.engine.local_store import LocalStore
from edgekiln.errors import ExitCode
from edgekiln.exporters import EXPORTERS
from edgekiln.pipelines.export import export
from edgekiln.pipelines.plan import make_plan
from edgekiln.pipelines.protocol import check_context, make_protocol
from edgekiln.pipelines.run import REPORT, REPORT_MARKDOWN, run_plan
from edgekiln.pipelines.selection import only_builds
from edgekiln.pipelines.validate import Question, run_validation
from edgekiln.pipelines.verdict import UNTIMED, Findings, judged
from edgekiln.validators.report import Report
from edgekiln.validators.validate import Expected, open_reference, validate_artifact
from mutants import swap_layers

pytestmark = pytest.mark.alone
SETTINGS = ["greedy_tokens=8", "prefill_tokens=32, 8", "decode_tokens=16, 4", "max_repeats=3", "max_spread=10"]
BUILDS = ("onnx-cpu-int4", "gguf-cpu-int8", "gguf-cpu-q4-k-m", "foundry-local-cpu-int4")


def plan(out):
    return only_builds(make_plan(formats=EXPORTERS, flags={"out": str(out)}, assignments=SETTINGS), BUILDS)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of its own, so that everything here is made once and nothing by another test."""
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("cache")
        patch.setenv("EDGEKILN_CACHE", str(place))
        yield LocalStore(place)


@pytest.fixture(scope="module")
def built(tmp_path_factory, cache):
    out = tmp_path_factory.mktemp("run") / "artifacts"
    made = plan(out)
    with Console() as console:
        return out, made, run_plan(made, console)


@pytest.fixture(scope="module")
def reference(built, cache):
    """The reference that the run left in the cache."""
    (record,) = (found for found in cache.records() if found.ingredients.kind == "reference")
    return open_reference(cache.open(record), open_checkpoint(EMBEDDED))


def test_every_build_passes(built):
    _, _, outcome = built
    assert {build.id: build.reason for build in outcome.report.builds} == dict.fromkeys(BUILDS)
    assert {build.status for build in outcome.report.builds} == {"passed"}
    assert outcome.exit_code is ExitCode.PASSED


def test_the_report_on_disk_is_the_report(built):
    out, _, outcome = built
    assert Report.model_validate_json((out / REPORT).read_bytes()) == outcome.report
    assert json.loads((out / REPORT).read_text())["schema"] == "edgekiln.report/1"
    markdown = (out / REPORT_MARKDOWN).read_text()
    assert f"**{len(BUILDS)} passed**" in markdown
    assert all(f"## {name}:" in markdown for name in BUILDS)


def test_every_figure_that_the_report_promises_is_there(built):
    for build in built[2].report.builds:
        figures = build.model_dump()
        assert figures["parity"]["runtime"]
        assert all(value is not None for value in figures["parity"].values()), build.id
        latency = figures["latency"]
        of_machine = {"cold_load_seconds", "joules_per_token", "pinned_to"}  # not every machine tells
        for part in (latency, latency["fp16_artifact"], latency["reference"]):
            assert all(value is not None for name, value in part.items() if name not in of_machine)
            assert set(part["by_length"]) == {"pp32", "pp8", "tg16", "tg4"}
            assert all(len(samples) >= 3 for samples in part["samples"].values())
        for part, name in ((latency, "latency"), (latency["fp16_artifact"], "latency.fp16_artifact")):
            missing = f"{name}.cold_load_seconds" in build.not_measured
            assert (part["cold_load_seconds"] is None) == missing, (build.id, name)
        assert build.health.status in {"healthy", "degraded"}
        assert figures["gates"]
        assert figures["bits_per_weight"] < 10


def test_artifacts_are_complete_and_lead_somewhere(built):
    out, _, outcome = built
    for build in outcome.report.builds:
        directory = out / build.artifact
        assert (out / build.id / "latest").resolve() == directory.resolve()
        for line in (directory / CHECKSUMS).read_text().splitlines():
            digest, name = line.split("  ")
            assert sha256_file(directory / name) == digest
        manifest = Manifest.model_validate_json((directory / MANIFEST).read_bytes())
        assert (manifest.scheme.requested, manifest.container_type) == (build.requested, build.container_type)
        assert str(out) not in (directory / MANIFEST).read_text()


def test_nothing_else_is_left(built):
    out, _, _ = built
    assert {path.name for path in out.iterdir()} - {".edgekiln.lock"} == {*BUILDS, REPORT, REPORT_MARKDOWN, "logs"}


def test_building_again_gives_the_same_bytes(built, tmp_path):
    out, made, outcome = built
    only = [build for build in made.builds if build.id in {"onnx-cpu-int4", "gguf-cpu-q4-k-m"}]
    for build in only:
        export(open_checkpoint(EMBEDDED), build.format, build.scheme, tmp_path / build.id)
        first = next(entry for entry in outcome.report.builds if entry.id == build.id)
        for path in (tmp_path / build.id).iterdir():
            if path.name in {MANIFEST, CHECKSUMS}:  # these name what was asked for before the target's mapping
                continue
            assert path.read_bytes() == (out / first.artifact / path.name).read_bytes(), path.name


@pytest.mark.parametrize("build_id", BUILDS)
def test_two_swapped_layers_fail_the_default_gates_whatever_the_manifest_says(built, reference, build_id, tmp_path):
    out, made, outcome = built
    build = next(entry for entry in made.builds if entry.id == build_id)
    report = next(entry for entry in outcome.report.builds if entry.id == build_id)
    mutant = tmp_path / "mutant"
    shutil.copytree(out / report.artifact, mutant)
    swap_layers(mutant)
    protocol = make_protocol(made.settings.values, build.threads)
    metrics = validate_artifact(mutant, reference, protocol, Expected(), log=tmp_path / "log")
    gates = tuple(gate for gate in build.gates if gate.relative_to is None)
    found = judged(report, Findings(metrics, UNTIMED, gates, build.threads, 0.1))
    assert found.status == "failed"
    assert "conservation/values" in found.reason
    assert "mean_kld" in found.reason
    assert any("more bits" in line for line in found.health.findings)


def test_validate_judges_a_file_without_our_manifest_or_name(built, tmp_path):
    out, made, outcome = built
    report = next(entry for entry in outcome.report.builds if entry.id == "gguf-cpu-int8")
    (source,) = (out / report.artifact).glob("*.gguf")
    path = tmp_path / "somebody's file.bin"
    shutil.copyfile(source, path)
    with Console() as console:
        found = run_validation(Question(path), made.settings.values, console)
    (build,) = found.report.builds
    assert (found.exit_code, build.status, build.precision) == (ExitCode.PASSED, "passed", "q8_0")
    assert build.parity.mean_kld == pytest.approx(report.parity.mean_kld, rel=1e-3)
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name]


def test_a_second_run_makes_nothing_and_says_the_same(built):
    out, made, outcome = built
    before = {path: path.stat().st_mtime_ns for path in out.rglob("model*")}
    with Console() as console:
        again = run_plan(made, console)
    assert {build.id: build.cached for build in again.report.builds} == dict.fromkeys(
        BUILDS, ("export", "validate", "latency")
    )
    left_out = {"cached": True, "latency": {"reference"}}  # `validate` above timed the reference anew
    said = [[build.model_dump_json(exclude=left_out) for build in run.report.builds] for run in (outcome, again)]
    assert said[0] == said[1]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("model*")} == before


def test_a_measurement_longer_than_the_context_is_refused(built):
    from dataclasses import replace

    from edgekiln.errors import UsageError

    settings, checkpoint = built[1].settings.values, open_checkpoint(EMBEDDED)
    settings = settings.model_copy(update={"greedy_tokens": 2000})
    with pytest.raises(UsageError, match="needs a context of 2480 tokens, but tiny-qwen3 has 2048"):
        check_context(make_protocol(settings, 1), checkpoint)
    check_context(replace(make_protocol(settings, 1), context=2048, greedy_tokens=32), checkpoint)
