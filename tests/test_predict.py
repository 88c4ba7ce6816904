"""Predictions of memory, disk and steps: laws of the formulas, and agreement with what was measured."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from artifacts import artifact, gguf_file
from checkpoints import make_checkpoint
from edgekiln.checkpoint import open_checkpoint
from edgekiln.device import Device
from edgekiln.exporters import EXPORTERS
from edgekiln.exporters.base import ExportPlan
from edgekiln.pipelines.cells import look_ahead
from edgekiln.pipelines.forecast import Forecast, forecast
from edgekiln.pipelines.plan import Plan
from edgekiln.pipelines.plan_table import memory_text, plan_text, size_text
from edgekiln.pipelines.predict import (
    TIGHT,
    cache_bytes,
    device_memory,
    export_memory,
    held_weights,
    judge_fit,
    latency_memory,
    reference_bytes,
    reference_memory,
    transformers_memory,
    validate_memory,
)
from edgekiln.pipelines.settings import Settings
from edgekiln.scheme import Scheme
from edgekiln.validators.parity_paths import LONG_POSITIONS
from edgekiln.validators.reference_rows import MAX_ROW_BYTES
from test_plan import TARGETS
from test_plan import plan as make

TINY = open_checkpoint("tiny-qwen3", with_text=False)


def planned(format_name: str, precision: str) -> ExportPlan:
    return EXPORTERS[format_name].plan(TINY, Scheme(precision))


def foreseen(builds: str, **options: object) -> tuple[Plan, Forecast]:
    made = make(builds, **options)  # type: ignore[arg-type]  # settings of any kind
    return made, forecast(made, look_ahead(made))


@pytest.mark.parametrize(
    ("needed", "memory", "fit"),
    [
        (1, None, "unknown"),
        (85, 100, "fits"),
        (86, 100, "tight"),
        (100, 100, "tight"),
        (101, 100, "does not fit"),
    ],
)
def test_from_85_percent_on_it_is_tight(needed: int, memory: int | None, fit: str) -> None:
    assert TIGHT == 0.85
    assert judge_fit(needed, memory) == fit


def test_the_cache_has_a_key_and_a_value_for_each_head_layer_and_token() -> None:
    config = replace(TINY.config, num_layers=24, num_kv_heads=2, head_dim=64)
    # As llama.cpp says itself for Qwen2.5 0.5B: 192 MiB at 16,384 tokens in F16.
    assert cache_bytes(config, 16_384, 2) == 192 * 2**20


@pytest.mark.parametrize(
    ("format_name", "provider", "element"), [("gguf", "cpu", 2), ("onnx", "cpu", 4), ("onnx", "cuda", 2)]
)
def test_the_cache_grows_with_the_context_up_to_the_models(format_name: str, provider: str, element: int) -> None:
    def cache(context: int | None) -> int:
        return device_memory(TINY.config, format_name, Device(provider, context), 0, 256).cache

    assert cache(512) == cache_bytes(TINY.config, 512, element) == 2 * cache(256)
    assert cache(None) == cache(10**6) == cache_bytes(TINY.config, TINY.config.max_position_embeddings, element)


def test_llama_cpp_repacks_q4_0_on_the_cpu_alone_and_onnx_runtime_widens_float16() -> None:
    for name, factor in (("q4_0", 1.5), ("q8_0", 1)):
        plan = planned("gguf", name)
        assert held_weights(plan, "cpu") >= factor * plan.weights_bytes
        assert held_weights(plan, "metal") == plan.weights_bytes
    assert held_weights(planned("gguf", "q8_0")) == planned("gguf", "q8_0").weights_bytes
    onnx = planned("onnx", "fp16")
    assert held_weights(onnx, "cpu") > 4 * onnx.weights_bytes
    assert held_weights(onnx, "cuda") == onnx.weights_bytes


CHILD = """
import sys
from pathlib import Path
from edgekiln.memory import peak_rss_bytes
from edgekiln.validators import RUNTIMES
runtime = RUNTIMES[sys.argv[1]]()
runtime.load(Path(sys.argv[2]), 2, 512)
runtime.prefill(list(range(5, 261)))
runtime.decode(4)
print("peak", peak_rss_bytes())
"""


@pytest.mark.parametrize(("format_name", "precision"), [("gguf", "q4_0"), ("onnx", "int8")])
def test_a_runtime_takes_what_is_predicted(tmp_path: Path, format_name: str, precision: str) -> None:
    made = artifact(format_name, precision, tmp_path)
    path = gguf_file(made) if format_name == "gguf" else made
    done = subprocess.run(
        [sys.executable, "-c", CHILD, format_name, str(path)], capture_output=True, text=True, check=True
    )
    actual = int(done.stdout.rpartition("peak")[2])
    plan = planned(format_name, precision)
    found = device_memory(TINY.config, format_name, Device("cpu", 512), held_weights(plan), 256).total
    assert 0.8 * actual < found < 1.35 * actual


def test_what_was_measured_on_larger_models_is_predicted(tmp_path: Path) -> None:
    """Peaks in MiB of a model of 1,024 hidden and 4,096 inner rows at 4,096 tokens and a prompt of 200."""
    shape = {"hidden_size": 1024, "intermediate_size": 4096, "num_layers": 1, "num_heads": 16, "num_kv_heads": 8}
    folder = make_checkpoint(tmp_path / "c", tied=False, config={"max_position_embeddings": 32768}, **shape)
    one = open_checkpoint(str(folder))
    config = replace(one.config, num_layers=10)
    for format_name, precision, measured in (("gguf", "q4_0", 317), ("gguf", "q8_0", 311), ("onnx", "int8", 462)):
        plan = EXPORTERS[format_name].plan(one, Scheme(precision))
        layers = sum(tensor.nbytes for tensor in plan.tensors if ".0." in tensor.name)
        repacked = 2 if precision == "q4_0" else 1
        weights = held_weights(plan) + 9 * layers * repacked
        found = device_memory(config, format_name, Device("cpu", 4096), weights, 200).total / 2**20
        assert 0.9 * measured < found < 1.15 * measured, (format_name, precision, found)


def test_memory_of_steps_grows_with_what_they_hold(tmp_path: Path) -> None:
    small = open_checkpoint(str(make_checkpoint(tmp_path / "s", hidden_size=128)))
    large = open_checkpoint(str(make_checkpoint(tmp_path / "l", hidden_size=512)))
    settings = Settings()
    assert transformers_memory(large, settings) - transformers_memory(small, settings) == 6 * (
        large.weight_count - small.weight_count
    )  # float32 beside the mapped bfloat16
    assert reference_memory(large) - reference_memory(small) > 4 * (large.weight_count - small.weight_count)
    for format_name in ("gguf", "onnx"):
        assert validate_memory(large, format_name) > validate_memory(small, format_name)
        plan = EXPORTERS[format_name].plan(large, Scheme("int4"))
        assert validate_memory(large, format_name, plan) < validate_memory(large, format_name)
        assert latency_memory(large, format_name, plan) < latency_memory(large, None)
        # Exports stream: their memory does not grow with the model.
        others = EXPORTERS[format_name].plan(small, Scheme("int4"))
        assert export_memory(plan, large, 2) == export_memory(others, small, 2)
    assert reference_bytes(settings) == (8 * 255 + LONG_POSITIONS) * MAX_ROW_BYTES
    assert export_memory(planned("gguf", "int4"), TINY, 8) > export_memory(planned("gguf", "int4"), TINY, 1)


BUILDS = (
    "  - {target: pc, precisions: [int4, int8]}\n"
    "  - {target: phone, precisions: [int4, nf4]}\n"
    "  - {target: phone, precision: q8_0, keep: false}\n"
)


def test_steps_come_after_what_they_need_and_equal_artifacts_are_made_once() -> None:
    made, found = foreseen(BUILDS + "  - {target: pc, precision: fp16}\n")
    assert set(found.builds) == {"pc-int4", "pc-int8", "phone-int4", "phone-q8-0", "pc-fp16"}
    seen: set[str] = set()
    for step in found.steps:
        assert step.id not in seen
        assert set(step.needs) <= seen, step.id
        assert (step.memory_bytes or 0) > 0
        seen.add(step.id)
    exports = {step.id for step in found.steps if step.kind == "export"}
    # The fp16 build of pc is the baseline of the others for it.
    assert exports == {
        "pc-int4.export",
        "pc-int4.baseline.export",
        "pc-int8.export",
        "phone-int4.export",
        "phone-int4.baseline.export",
        "phone-q8-0.export",
    }
    assert {step.id for step in found.steps if step.kind == "latency"} >= {
        f"{build.id}.latency" for build in made.builds if build.id in found.builds
    }


def test_disk_counts_reference_baselines_artifacts_and_published_copies() -> None:
    _, found = foreseen(BUILDS)
    assert found.totals is not None
    by_kind = {
        kind: sum(s.disk_bytes or 0 for s in found.steps if s.kind == kind)
        for kind in ("reference", "export", "publish")
    }
    assert found.totals.peak_disk_bytes == pytest.approx(sum(by_kind.values()), rel=0.01)
    sizes = {name: each.artifact_bytes for name, each in found.builds.items()}
    assert by_kind["publish"] == sum(sizes.values())
    assert found.totals.artifact_bytes == sum(sizes.values())
    assert found.totals.peak_disk_bytes - found.totals.kept_disk_bytes == 2 * sizes["phone-q8-0"]
    assert found.totals.peak_memory_bytes == max(step.memory_bytes or 0 for step in found.steps)


def test_the_caller_says_what_the_cache_has() -> None:
    made = make(BUILDS)
    found = forecast(made, look_ahead(made), {"reference": "hit", "pc-int4.export": "miss"})
    cached = {step.id: step.cached for step in found.steps}
    assert (cached["reference"], cached["pc-int4.export"], cached["pc-int8.export"]) == ("hit", "miss", "unknown")


def test_without_a_checkpoint_the_steps_are_known_and_nothing_of_them() -> None:
    made, found = foreseen("  - {target: pc, precisions: [int4, nf4]}\n", checkpoint="nobody/has-this", offline=True)
    assert (found.builds, found.totals) == ({}, None)
    assert {step.id for step in found.steps} >= {"reference", "pc-int4.export", "pc-int4.validate"}
    assert {(step.memory_bytes, step.disk_bytes) for step in found.steps if step.kind == "export"} == {(None, None)}
    assert "unknown" in plan_text(made, found, {}, "a note")


def test_the_fit_is_that_of_the_target() -> None:
    _, found = foreseen("  - {target: phone, precision: int4}\n")
    needed = found.builds["phone-int4"].memory.total
    for memory, fit in ((2 * needed, "fits"), (needed + 1, "tight"), (needed - 1, "does not fit")):
        targets = TARGETS.replace("    threads: 4\n", f"    memory: {memory} B\n")
        made, found = foreseen("  - {target: phone, precision: int4}\n", targets=targets)
        assert found.builds["phone-int4"].fit == fit
        assert fit in plan_text(made, found, {}, None)


def test_sizes_have_three_figures() -> None:
    assert [size_text(size) for size in (None, 7, 3_679_942, 35_200_000, 352_225_121, 30_276_893_728)] == [
        "–",
        "7 B",
        "3.68 MB",
        "35.2 MB",
        "352 MB",
        "30.3 GB",
    ]
    assert memory_text(5 * 2**30) == "5.00 GiB"


def test_ten_thousand_builds_are_predicted_in_seconds(tmp_path: Path) -> None:
    from edgekiln.exporters.gguf_mix import MIXES

    targets = (
        "schema: edgekiln.targets/1\ntemplates:\n  base:\n    format: gguf\n"
        '    runtime: {name: llama.cpp, version: ">=0.3"}\n    memory: 1 GiB\ntargets:\n'
    ) + "".join(f"  d{i}: {{extends: base, description: Device, context_length: {512 + i}}}\n" for i in range(100))
    names = ", ".join(MIXES)
    builds = "".join(
        f"  - {{target: d{i}, precisions: [{names}], embedding_precision: {e}}}\n"
        for i in range(100)
        for e in ("q8_0", "q6_k", "q4_0", "q5_0", "fp16")
    )
    begin = time.process_time()
    made, found = foreseen(builds, targets=targets)
    assert "does not fit" not in plan_text(made, found, {}, None)
    assert time.process_time() - begin < 5
    assert len(found.builds) == len(made.builds) == 10_000
    assert len({id(build.scheme) for build in made.builds}) == 100  # equal values are one
