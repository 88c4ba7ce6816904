from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekiln.checkpoint import open_checkpoint
from edgekiln.device import Device
from edgekiln.errors import UsageError
from edgekiln.exporters import EXPORTERS
from edgekiln.host import physical_cores
from edgekiln.pipelines.plan import Plan, expand, make_plan
from edgekiln.pipelines.selection import only_builds
from edgekiln.pipelines.settings import resolve_settings
from edgekiln.pipelines.spec import parse_pipeline
from edgekiln.pipelines.targets import Format, load_targets, parse_targets
from edgekiln.scheme import Scheme
from edgekiln.yamlfile import parse_yaml

FORMATS = EXPORTERS
TARGETS = """\
schema: edgekiln.targets/1
settings: {repeats: 5}
targets:
  pc:
    description: A desktop
    format: onnx
    runtime: {name: onnxruntime-genai, version: ">=0.18"}
    precisions:
      int4: {group_size: 128, head_precision: int8, why: measured}
      nf4: {unsupported: this provider has no MatMulBnb4; use int4, why: vendor list}
    gates: [decode_tokens_per_second >= 0.9 * fp16_artifact]
  phone:
    description: A phone
    format: gguf
    runtime: {name: llama.cpp, version: ">=0.3"}
    threads: 4
    context_length: 2048
    precisions:
      int4: {container: q4_0, why: kernels repack it}
  npu:
    description: An NPU
    format: onnx
    runtime: {name: onnxruntime-genai, version: ">=0.18"}
    unsupported: the NPU needs the vendor's SDK; use the target pc
"""


def plan(builds: str, *, targets: str = TARGETS, only: tuple[str, ...] = (), **settings: object) -> Plan:
    text = f"schema: edgekiln.pipeline/1\nname: test\nbuilds:\n{builds}"
    pipeline = parse_pipeline(parse_yaml(text.encode(), "p.yaml"))
    file = parse_targets(parse_yaml(targets.encode(), "t.yaml"))
    layers = resolve_settings()
    values = layers.values.model_copy(update=settings)
    return expand(pipeline, file, type(layers)(values, layers.origins), formats=FORMATS, only=only)


def test_the_default_pipeline_builds_all_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = make_plan(formats=FORMATS)
    assert [build.id for build in made.builds] == [
        "onnx-cpu-int4",
        "onnx-cpu-int8",
        "onnx-cpu-nf4",
        "gguf-cpu-int4",
        "gguf-cpu-int8",
        "gguf-cpu-q4-k-m",
        "foundry-local-cpu-int4",
    ]
    assert all(build.unsupported is None for build in made.builds)
    assert made.settings.values.checkpoint == "tiny-qwen3"
    assert made.targets.is_shipped
    assert list(tmp_path.iterdir()) == []


def test_the_default_builds_can_be_planned_by_the_exporters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = open_checkpoint("tiny-qwen3")
    for build in make_plan(formats=FORMATS).builds:
        assert EXPORTERS[build.format].plan(checkpoint, build.scheme).weights_bytes > 0


def test_formats_of_targets_are_those_of_the_exporters() -> None:
    assert set(get_args(Format)) == set(EXPORTERS)


def test_a_build_has_the_options_of_the_pipeline_over_those_of_the_target() -> None:
    made = plan(
        "  - {target: pc, precision: int4}\n  - {target: pc, precision: int4, group_size: 32, symmetric: false}\n"
    )
    first, second = made.builds
    assert first.scheme == Scheme("int4", 128, True, None, "int8")
    assert second.scheme == Scheme("int4", 32, False, None, "int8")
    assert first.id == "pc-int4"
    assert re.fullmatch(r"pc-int4-[0-9a-f]{8}", second.id)
    assert first.origins["group_size"] == "target pc (t.yaml:9:14)"
    assert second.origins["group_size"] == "p.yaml:5:35"
    assert second.origins["embedding_precision"] == "default"


def test_a_target_says_what_a_precision_means_there() -> None:
    made = plan(
        "  - {target: phone, precisions: [int4, q4_k_m, Q4_0]}\n"
        "  - {target: phone, precision: int4, symmetric: false}\n"
    )
    assert [(build.requested, build.precision) for build in made.builds] == [
        ("int4", "q4_0"),
        ("q4_k_m", "q4_k_m"),
        ("q4_0", "q4_0"),
        ("int4", "q4_1"),
    ]
    assert made.builds[0].context_length == 2048


def test_options_that_change_nothing_are_the_plain_cell() -> None:
    assert plan("  - {target: pc, precision: int4, group_size: 128, symmetric: true}\n").builds[0].id == "pc-int4"


@given(
    st.permutations(
        ["{precision: int4}", "{precision: int8}", "{precision: int4, group_size: 32}", "{precision: fp16}"]
    )
)
def test_ids_do_not_depend_on_the_order(options: list[str]) -> None:
    made = plan("".join(f"  - {{target: pc, {option[1:]}\n" for option in options))
    expected = {
        "{precision: int4}": "pc-int4",
        "{precision: int8}": "pc-int8",
        "{precision: int4, group_size: 32}": "pc-int4-f9494feb",
        "{precision: fp16}": "pc-fp16",
    }
    assert [build.id for build in made.builds] == [expected[option] for option in options]


NAMES = st.from_regex(r"[a-z0-9]{1,12}([.-][a-z0-9]{1,12}){0,2}", fullmatch=True)
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")


@given(
    name=NAMES.filter(lambda name: not RESERVED.fullmatch(name)),
    precision=st.sampled_from(["int4", "q4_k_m", "iq4_nl", "fp16"]),
    group_size=st.none() | st.integers(1, 65536),
    symmetric=st.none() | st.booleans(),
    head=st.sampled_from([None, "int8", "q8_0"]),
)
def test_ids_are_safe_file_names_everywhere(
    name: str, precision: str, group_size: int | None, symmetric: bool | None, head: str | None
) -> None:
    target = {"description": "x", "format": "gguf", "runtime": {"name": "llama.cpp", "version": ">=0"}}
    targets = json.dumps({"schema": "edgekiln.targets/1", "targets": {name: target}})
    options = {"group_size": group_size, "symmetric": symmetric, "head_precision": head}
    build = {"target": name, "precision": precision} | {
        key: value for key, value in options.items() if value is not None
    }
    made = plan(f"  - {json.dumps(build)}\n", targets=targets).builds[0]
    assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*[a-z0-9]", made.id)
    assert len(made.id) <= 64
    assert not RESERVED.fullmatch(made.id)


@given(
    st.lists(
        st.tuples(st.sampled_from(["int4", "int8", "fp16"]), st.integers(1, 9)), unique=True, max_size=12, min_size=1
    )
)
def test_cells_that_differ_have_different_ids(cells: list[tuple[str, int]]) -> None:
    made = plan("".join(f"  - {{target: pc, precision: {p}, group_size: {g}}}\n" for p, g in cells))
    assert len({build.id for build in made.builds}) == len(cells)


@pytest.mark.parametrize(
    ("builds", "reasons"),
    [
        ("  - {target: phone, precision: nf4}\n", ["GGUF does not hold nf4; use iq4_nl"]),
        ("  - {target: pc, precision: q4_k_m}\n", ["ONNX does not hold q4_k_m; choose one of fp16, int4"]),
        ("  - {target: pc, precision: nf4}\n", ["this provider has no MatMulBnb4; use int4"]),
        ("  - {target: npu, precision: int4}\n", ["the NPU needs the vendor's SDK; use the target pc"]),
        ("  - {target: pc, precision: int8, head_precision: q8_0}\n", ["ONNX does not hold q8_0; choose"]),
        ("  - {target: pc, precisions: [int4, q4_0]}\n", [None, "ONNX does not hold q4_0"]),
    ],
)
def test_cells_that_cannot_be_built_say_why(builds: str, reasons: list[str | None]) -> None:
    for build, reason in zip(plan(builds).builds, reasons, strict=True):
        if reason is None:
            assert build.unsupported is None
        else:
            assert build.unsupported is not None
            assert reason in build.unsupported


@pytest.mark.parametrize(
    ("builds", "parts"),
    [
        (
            "  - {target: phon, precision: int4}\n",
            ["p.yaml:4:14: unknown target 'phon'; did you mean 'phone'?", "t.yaml"],
        ),
        (
            "  - {target: pc, precision: int5}\n",
            ["p.yaml:4:29: unknown precision 'int5'; did you mean 'int8'?", "q4_k_m"],
        ),
        (
            "  - {target: pc, precisions: [int4, nf44]}\n",
            ["p.yaml:4:37: unknown precision 'nf44'; did you mean 'nf4'?"],
        ),
        ("  - target: pc\n    precision: int4\n    head_precision: in8\n", ["p.yaml:6:21: unknown precision 'in8'"]),
        (
            "  - {target: pc, precision: int4}\n  - {target: pc, precisions: [int8, int4]}\n",
            ["p.yaml:5:37: the build pc-int4 is given twice, first in line 4; remove one"],
        ),
        (
            "  - {target: pc, precision: int4}\n  - {target: pc, precision: int4, gates: [mean_kld <= 1]}\n",
            ["p.yaml:5:29: the build pc-int4 is given twice"],
        ),
    ],
)
def test_each_misspelt_name_has_its_place_and_its_fix(builds: str, parts: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        plan(builds)
    for part in parts:
        assert part in str(caught.value)


def test_a_reason_says_what_the_target_makes_of_what_was_asked_for() -> None:
    targets = TARGETS.replace("int4: {container: q4_0", "int4: {container: nf4")
    (build,) = plan("  - {target: phone, precision: int4}\n", targets=targets).builds
    assert str(build.unsupported).endswith("(phone makes nf4 of int4)")


def test_an_exporter_knows_the_device_of_a_build() -> None:
    targets = TARGETS.replace("    threads: 4\n", "    execution_provider: dml\n")
    one, other = plan(
        "  - {target: phone, precision: int4}\n  - {target: pc, precision: int4}\n", targets=targets
    ).builds
    assert one.device == Device("dml", 2048)
    assert "dml" in str(one.unsupported)
    assert (other.device, other.unsupported) == (Device("cpu", None), None)


def test_gates_and_properties_know_where_they_come_from() -> None:
    (build,) = plan("  - {target: pc, precision: int4, gates: [mean_kld <= 0.05]}\n").builds
    origins = {str(gate): origin for gate, origin in zip(build.gates, build.gate_origins, strict=True)}
    assert origins["mean_kld <= 0.05"] == "p.yaml:4:43"
    assert origins["decode_tokens_per_second >= 0.9 * fp16_artifact"] == "target pc (t.yaml:11:13)"
    assert origins["top1_agreement >= 0.75"] == "default of int4"
    assert build.origins["requested"] == "p.yaml:4:29"
    assert build.origins["format"] == "target pc (t.yaml:6:5)"
    assert build.origins["execution_provider"] == "default"


def test_a_property_that_a_target_inherits_points_to_where_it_was_written() -> None:
    targets = TARGETS.replace("targets:\n", "templates:\n  small: {threads: 2, memory: 1 GiB}\ntargets:\n", 1)
    targets = targets.replace("    threads: 4\n", "    extends: small\n")
    (build,) = plan("  - {target: phone, precision: int4}\n", targets=targets).builds
    assert build.threads == 2
    assert build.origins["threads"] == "target phone (t.yaml:4:11)"


def test_the_devices_pipeline_covers_the_catalogue_and_every_device_gets_something_or_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = make_plan("devices", formats=FORMATS)
    assert [build.target.name for build in made.builds] == list(made.targets.targets)
    assert {build.requested for build in made.builds} == {"int4"}
    unsupported = {build.target.name for build in made.builds if build.unsupported}
    assert unsupported == {"copilot-pc-npu"}
    assert {build.target.name for build in made.builds if build.allow_unsupported} == unsupported
    assert made.builds[0].origins["target"] == "devices.yaml:9:14"


def test_every_precision_of_every_shipped_target_can_be_exported_or_says_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    targets = load_targets()
    checkpoint = open_checkpoint("tiny-qwen3")
    builds = "".join(f"  - {{target: {name}, precisions: [int8, int4, nf4]}}\n" for name in targets.targets)
    pipeline = parse_pipeline(
        parse_yaml(f"schema: edgekiln.pipeline/1\nname: all\nbuilds:\n{builds}".encode(), "p.yaml")
    )
    for build in expand(pipeline, targets, resolve_settings(), formats=FORMATS).builds:
        said = build.target.meaning(build.requested)
        assert said is not None, build.id
        # The catalogue says itself what a device lacks, so that `edgekiln targets` shows it.
        assert (build.unsupported is None) == (said.unsupported is None and build.target.unsupported is None), build.id
        if build.unsupported is None:
            assert EXPORTERS[build.format].plan(checkpoint, build.scheme, build.device).weights_bytes > 0


def test_a_misspelt_container_in_the_targets_file() -> None:
    with pytest.raises(UsageError, match=r"t\.yaml:19:25: unknown precision 'q4_00'; did you mean 'q4_0'\?"):
        plan("  - {target: pc, precision: int4}\n", targets=TARGETS.replace("container: q4_0", "container: q4_00"))


def test_only_some_targets() -> None:
    builds = "  - {target: pc, precision: int4}\n  - {target: phone, precision: int4}\n"
    assert [build.id for build in plan(builds, only=("phone",)).builds] == ["phone-int4"]
    with pytest.raises(UsageError, match=r"--target 'phome' is no target of t\.yaml; did you mean 'phone'\?"):
        plan(builds, only=("phome",))
    with pytest.raises(UsageError, match=r"p\.yaml has no build for it; choose one of pc, phone"):
        plan(builds, only=("npu",))


def test_a_gate_may_name_another_build_of_the_pipeline() -> None:
    rest = "  - {target: pc, precision: int8}\n"
    made = plan(f"  - {{target: pc, precision: int4, gates: [decode_tokens_per_second >= 1.0 * pc-int8]}}\n{rest}")
    assert "decode_tokens_per_second >= 1 * pc-int8" in map(str, made.builds[0].gates)


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        ("pc-int9", r"p.yaml.*: unknown baseline 'pc-int9' in the gate .*did you mean 'pc-int8'"),
        ("pc-int4", r"p.yaml.*compares pc-int4 with itself"),
        ("old", r"unknown baseline 'old'.*only `edgekiln compare`"),
    ],
)
def test_a_gate_that_names_no_other_build_of_the_pipeline_is_refused(baseline: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(
            f"  - {{target: pc, precision: int4, gates: [mean_kld <= 1.0 * {baseline}]}}\n"
            "  - {target: pc, precision: int8}\n"
        )


def test_a_selection_must_hold_what_its_gates_compare_with_unless_they_may_stay_unmeasured() -> None:
    text = (
        "  - {{target: pc, precision: int4, gates: [mean_kld <= 9 * pc-int8]{}}}\n  - {{target: pc, precision: int8}}\n"
    )
    made = plan(text.format(""))
    with pytest.raises(UsageError, match="compares with pc-int8, which is not selected; select pc-int8 as well"):
        only_builds(made, ["pc-int4"])
    assert len(only_builds(made, ["pc-int4", "pc-int8"]).builds) == 2
    assert len(only_builds(made, ["pc-int8"]).builds) == 1
    allowed = plan(text.format(", allow_not_measured: [mean_kld]"))
    assert len(only_builds(allowed, ["pc-int4"]).builds) == 1


def test_gates_of_the_build_hold_over_those_of_the_target_over_the_defaults() -> None:
    first, second = plan(
        "  - {target: pc, precision: int4, gates: [mean_kld <= 0.05]}\n  - {target: phone, precision: int4}\n"
    ).builds
    assert [(str(gate), gate.why) for gate in first.gates if gate.metric == "mean_kld"] == [
        ("mean_kld <= 0.05", "limit in p.yaml:4:43")
    ]
    assert [(str(gate), gate.why) for gate in first.gates if gate.metric == "decode_tokens_per_second"] == [
        ("decode_tokens_per_second >= 0.9 * fp16_artifact", "limit of target pc")
    ]
    assert "decode_tokens_per_second >= 0.5 * fp16_artifact" in map(str, second.gates)
    faster = plan("  - {target: pc, precision: int4, gates: [decode_tokens_per_second >= 20]}\n").builds[0]
    assert [str(gate) for gate in faster.gates if "decode" in gate.metric] == [
        "decode_tokens_per_second >= 0.9 * fp16_artifact",
        "decode_tokens_per_second >= 20",
    ]


def test_threads_are_the_settings_else_the_targets_else_the_machines() -> None:
    builds = "  - {target: pc, precision: int4}\n  - {target: phone, precision: int4}\n"
    pc, phone = plan(builds).builds
    assert (pc.threads, phone.threads) == (physical_cores(), 4)
    assert (pc.origins["threads"], phone.origins["threads"]) == (
        "physical cores of this machine",
        "target phone (t.yaml:16:5)",
    )
    assert {build.threads for build in plan(builds, threads=3).builds} == {3}


def test_all_layers_of_settings_meet_in_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "devices.yaml").write_text(TARGETS)
    (tmp_path / "p.yaml").write_text(
        "schema: edgekiln.pipeline/1\nname: p\nsettings: {targets: devices.yaml, windows: 2}\n"
        "builds: [{target: pc, precision: int4}]\n"
    )
    made = make_plan(
        "p.yaml",
        formats=FORMATS,
        environment={"EDGEKILN_WINDOW": "64"},
        assignments=["warmups=2"],
        flags={"offline": True, "out": None},
    )
    values, origins = made.settings.values, made.settings.origins
    assert (values.repeats, values.windows, values.window, values.warmups, values.offline) == (5, 2, 64, 2, True)
    assert [origins[key] for key in ("repeats", "windows", "window", "warmups", "offline", "out")] == [
        "devices.yaml:2:12",
        "p.yaml:3:35",
        "EDGEKILN_WINDOW",
        "--set",
        "--offline",
        "default",
    ]
    assert made.targets.name == "devices.yaml"
    with pytest.raises(UsageError, match=r"gone\.yaml does not exist"):
        make_plan("p.yaml", formats=FORMATS, flags={"targets": "gone.yaml"})


def test_planning_imports_no_framework() -> None:
    program = (
        "import sys; from edgekiln.exporters import EXPORTERS; from edgekiln.pipelines.plan import make_plan;"
        "make_plan('devices', formats=EXPORTERS);"
        "print(sorted({'torch', 'transformers', 'onnxruntime', 'onnx', 'onnx_ir', 'mobius', 'llama_cpp',"
        " 'foundry_local_sdk', 'tokenizers', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_thousands_of_builds_are_expanded_quickly() -> None:
    builds = "".join(f"  - {{target: pc, precision: int8, group_size: {size}}}\n" for size in range(1, 2001))
    text = f"schema: edgekiln.pipeline/1\nname: test\nbuilds:\n{builds}"
    pipeline = parse_pipeline(parse_yaml(text.encode(), "p.yaml"))
    file = parse_targets(parse_yaml(TARGETS.encode(), "t.yaml"))
    begin = time.process_time()
    made = expand(pipeline, file, resolve_settings(), formats=FORMATS)
    assert time.process_time() - begin < 1
    assert len(made.builds) == 2000


def test_the_default_expands_in_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = make_plan(formats=FORMATS)
    begin = time.process_time()
    expand(made.pipeline, load_targets(), made.settings, formats=FORMATS)
    assert time.process_time() - begin < 0.5  # how fast it really is, benchmarks/engine.py says
