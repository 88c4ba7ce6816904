"""What becomes of a run in which one build, or the machine, fails; and of one for another device."""

from pathlib import Path

import pytest

from edgekiln.artifact import MANIFEST
from edgekiln.console import Console
from edgekiln.engine.step import Step
from edgekiln.errors import ExitCode, StepError
from edgekiln.exporters import EXPORTERS
from edgekiln.pipelines.engine_room import RunOptions
from edgekiln.pipelines.graph import Graph
from edgekiln.pipelines.measure import Rounds
from edgekiln.pipelines.plan import make_plan
from edgekiln.pipelines.run import run_plan
from least import ASSIGNMENTS

GATES = (
    "gates: [mean_kld <= 1, top1_agreement >= 0.1, perplexity_ratio <= 3, "
    "decode_tokens_per_second >= 0.001 * fp16_artifact]"
)


#: Reference and exports may come from another test; what is judged may not.
MEASURED_ANEW = RunOptions(from_kind="validate")


def left_out(_work):
    raise StepError("left out in this test")


@pytest.fixture(autouse=True)
def little_latency(monkeypatch):
    """Leave out what takes longest and decides nothing here: Transformers' own speed, and all rounds but one."""
    monkeypatch.setattr("edgekiln.pipelines.graph.Rounds", lambda *_: Rounds(1, 1, 0))
    step = Step("reference.latency", "latency", "not timed", run=left_out)
    monkeypatch.setattr(Graph, "_time_reference", lambda *_: step)


def plan(out, pipeline, assignments=()):
    return make_plan(pipeline, formats=EXPORTERS, flags={"out": str(out)}, assignments=[*ASSIGNMENTS, *assignments])


def test_a_gate_that_fails_ends_with_1_and_names_itself(tmp_path):
    pipeline = tmp_path / "p.yaml"
    pipeline.write_text(
        "schema: edgekiln.pipeline/1\nname: p\nbuilds:\n"
        "  - {target: gguf-cpu, precision: int4, gates: ['mean_kld <= 1e-6']}\n"
        "  - {target: gguf-cpu, precision: nf4, allow_unsupported: true}\n"
    )
    with Console() as console:
        outcome = run_plan(plan(tmp_path / "out", str(pipeline)), console, MEASURED_ANEW)
    failed, unsupported = outcome.report.builds
    assert outcome.exit_code is ExitCode.GATE_FAILED
    assert failed.status == "failed"
    assert failed.reason.startswith("mean_kld: ")
    assert (tmp_path / "out" / failed.artifact).is_dir()
    assert unsupported.status == "unsupported"


def test_a_runtime_that_dies_fails_its_build_and_the_others_go_on(tmp_path, monkeypatch):
    from edgekiln.pipelines import graph

    validate = graph.validate_artifact

    def dies(path: Path, *arguments, **options):
        if "gguf-cpu-int4" in str(path):
            raise StepError("parity (tasks) was killed by SIGSEGV without a result")
        return validate(path, *arguments, **options)

    monkeypatch.setattr(graph, "validate_artifact", dies)
    pipeline = tmp_path / "p.yaml"
    pipeline.write_text(
        "schema: edgekiln.pipeline/1\nname: p\nbuilds:\n  - {target: gguf-cpu, precisions: [int4, int8], "
        + GATES
        + "}\n"
    )
    with Console() as console:
        outcome = run_plan(plan(tmp_path / "out", str(pipeline)), console, MEASURED_ANEW)
    assert [build.status for build in outcome.report.builds] == ["error", "passed"]
    assert "SIGSEGV" in outcome.report.builds[0].reason
    assert outcome.exit_code is ExitCode.STEP_FAILED


def test_a_mistake_of_ours_costs_one_build_and_is_a_bug(tmp_path, monkeypatch):
    from edgekiln.pipelines import graph

    validate = graph.validate_artifact

    def forgets(path: Path, *arguments, **options):
        if "gguf-cpu-int4" in str(path):
            raise KeyError("forgotten")
        return validate(path, *arguments, **options)

    monkeypatch.setattr(graph, "validate_artifact", forgets)
    pipeline = tmp_path / "p.yaml"
    pipeline.write_text(
        "schema: edgekiln.pipeline/1\nname: p\nbuilds:\n  - {target: gguf-cpu, precisions: [int4, int8], "
        + GATES
        + "}\n"
    )
    with Console() as console:
        outcome = run_plan(plan(tmp_path / "out", str(pipeline)), console, MEASURED_ANEW)
    bug, passed = outcome.report.builds
    assert (bug.status, passed.status) == ("error", "passed")
    assert "a bug in Edgekiln: KeyError: 'forgotten'" in bug.reason
    assert "Traceback" in (tmp_path / "out" / bug.log).read_text()
    assert outcome.exit_code is ExitCode.BUG


def test_what_another_device_decides_is_not_judged_here(tmp_path):
    targets = tmp_path / "t.yaml"
    targets.write_text(
        "schema: edgekiln.targets/1\ntargets:\n  phone:\n    description: a phone\n    format: gguf\n"
        "    runtime: {name: llama.cpp, version: '>=0.3.36'}\n    hardware: {machine: aarch64, processor: [KA650]}\n"
        "    gates: ['decode_tokens_per_second >= 1e9', 'size_bytes <= 1 GB']\n"
        "  web:\n    description: a browser\n    format: onnx\n    execution_provider: webgpu\n"
        "    runtime: {name: onnxruntime-web, version: '>=1.24'}\n"
    )
    pipeline = tmp_path / "p.yaml"
    pipeline.write_text(
        "schema: edgekiln.pipeline/1\nname: p\nbuilds:\n"
        f"  - {{target: phone, precision: int8}}\n  - {{target: web, precision: int8, {GATES}}}\n"
    )
    with Console() as console:
        outcome = run_plan(plan(tmp_path / "out", str(pipeline), [f"targets={targets}"]), console, MEASURED_ANEW)
    phone, web = outcome.report.builds
    assert {build.id: build.reason for build in outcome.report.builds} == {phone.id: None, web.id: None}
    relative, speed = (gate for gate in phone.gates if gate.metric == "decode_tokens_per_second")
    assert (relative.outcome, relative.binding) == ("pass", True)
    assert (speed.outcome, speed.binding) == ("not_measured", False)
    assert "is not the target's: a phone" in speed.reason
    assert phone.stand_in is None
    assert "stands in for ONNX Runtime Web on webgpu" in web.stand_in.what
    assert web.health.status == "degraded"
    assert not any(gate.binding for gate in web.gates if gate.metric == "decode_tokens_per_second")
    assert web.parity.mean_kld < 0.25


def test_two_targets_with_one_scheme_have_an_artifact_each(tmp_path):
    targets = tmp_path / "t.yaml"
    profile = "    description: d\n    format: gguf\n    runtime: {name: llama.cpp, version: '>=0.3.36'}\n"
    targets.write_text(f"schema: edgekiln.targets/1\ntargets:\n  one:\n{profile}  two:\n{profile}")
    pipeline = tmp_path / "p.yaml"
    pipeline.write_text(
        "schema: edgekiln.pipeline/1\nname: p\nbuilds:\n"
        f"  - {{target: one, precision: int4, {GATES}}}\n  - {{target: two, precision: int4, {GATES}}}\n"
    )
    made = plan(tmp_path / "out", str(pipeline), [f"targets={targets}"])
    with Console() as console:
        outcome = run_plan(made, console, MEASURED_ANEW)
    assert [build.status for build in outcome.report.builds] == ["passed", "passed"]
    one, two = (tmp_path / "out" / build.artifact for build in outcome.report.builds)
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()} >= {MANIFEST}


def test_a_latency_that_cannot_be_measured_is_an_error_of_its_build(tmp_path, monkeypatch):
    from edgekiln.pipelines import measure

    def dies(runtime, *arguments, **options):
        raise StepError("latency (tasks) was killed by SIGILL without a result")

    monkeypatch.setattr(measure, "sample_latency", dies)
    pipeline = tmp_path / "p.yaml"
    pipeline.write_text("schema: edgekiln.pipeline/1\nname: p\nbuilds:\n  - {target: gguf-cpu, precision: fp16}\n")
    with Console() as console:
        outcome = run_plan(plan(tmp_path / "out", str(pipeline)), console, MEASURED_ANEW)
    (build,) = outcome.report.builds
    assert (build.status, build.latency) == ("error", None)
    assert set(build.not_measured) == {"latency", "latency.reference", "latency.fp16_artifact"}
    assert build.parity is not None
    assert outcome.exit_code is ExitCode.STEP_FAILED


def test_a_runtime_outside_the_targets_range_is_the_machines_fault(tmp_path):
    targets = tmp_path / "t.yaml"
    targets.write_text(
        "schema: edgekiln.targets/1\ntargets:\n  old:\n    description: d\n    format: gguf\n"
        "    runtime: {name: llama.cpp, version: '<0.3'}\n"
    )
    pipeline = tmp_path / "p.yaml"
    pipeline.write_text("schema: edgekiln.pipeline/1\nname: p\nbuilds:\n  - {target: old, precision: int4}\n")
    with Console() as console:
        outcome = run_plan(plan(tmp_path / "out", str(pipeline), [f"targets={targets}"]), console, MEASURED_ANEW)
    (build,) = outcome.report.builds
    assert build.status == "error"
    assert "wants llama.cpp <0.3" in build.reason
    assert outcome.exit_code is ExitCode.ENVIRONMENT
