from __future__ import annotations

from pathlib import Path

import pytest

from edgekiln.errors import UsageError
from edgekiln.pipelines.spec import PipelineFile, load_pipeline, parse_pipeline
from edgekiln.validators.gates import parse_gate
from edgekiln.yamlfile import parse_yaml

PIPELINE = """\
schema: edgekiln.pipeline/1
name: nightly
checkpoint: Qwen/Qwen3-0.6B
settings:
  windows: 4
builds:
  - target: onnx-cpu
    precisions: [int4, INT8]
    gates: [mean_kld <= 0.05]
  - target: gguf-cpu
    precision: Q4_K_M
    group_size: 32
    symmetric: false
    allow_unsupported: true
    allow_not_measured: [peak_rss_bytes]
"""


def parse(text: str) -> PipelineFile:
    return parse_pipeline(parse_yaml(text.encode(), "p.yaml"))


def test_a_pipeline_is_parsed_once_into_frozen_values() -> None:
    spec = parse(PIPELINE).spec
    first, second = spec.builds
    assert first.precisions == ("int4", "int8")
    assert first.gates == (parse_gate("mean_kld <= 0.05"),)
    assert (second.precision, second.group_size, second.symmetric) == ("q4_k_m", 32, False)
    assert second.allow_not_measured == ("peak_rss_bytes",)
    with pytest.raises(ValueError, match="frozen"):
        spec.name = "x"


def test_its_settings_know_where_they_stand() -> None:
    layer = parse(PIPELINE).settings
    assert layer.values == {"windows": 4, "checkpoint": "Qwen/Qwen3-0.6B"}
    assert layer.origins == {"windows": "p.yaml:5:3", "checkpoint": "p.yaml:3:1"}


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        (
            "edgekiln.pipeline/1",
            "edgekiln.pipelines/1",
            [":1:9:", "unknown schema", "did you mean 'edgekiln.pipeline/1'"],
        ),
        ("name: nightly\n", "", [":1:1: the key 'name' is missing"]),
        ("name: nightly", "nmae: nightly", [":2:1: unknown key 'nmae'; did you mean 'name'?"]),
        ("  windows: 4", "  window: 4", [":5:11: window must be at least 16, but is 4"]),
        ("  windows: 4", "  windws: 4", [":5:3: unknown key 'windws'; did you mean 'windows'?"]),
        ("  windows: 4", "  checkpoint: x", [":5:3: the checkpoint is given twice"]),
        ("    precision: Q4_K_M\n", "", [":10:5: a build needs either 'precision' or 'precisions'"]),
        ("precision: Q4_K_M", "precision: a\n    precisions: [b]", [":10:5:", "give one of them"]),
        ("    precision: Q4", "    precison: Q4", [":11:5: unknown key 'precison'; did you mean 'precision'?"]),
        ("[int4, INT8]", "int4", [":8:17: precisions must be a list, but is 'int4'"]),
        ("- target: gguf-cpu\n    prec", "- prec", [":10:5: the key 'target' is missing"]),
        ("group_size: 32", "group_size: 3.2e1", [":12:17: group_size must be a whole number, but is 3.2e1"]),
        ("group_size: 32", "group_size: -1", [":12:17: group_size must be at least 1, but is -1"]),
        ("symmetric: false", "symmetric: off", [":13:16: symmetric must be true or false, but is 'off'"]),
        ("allow_unsupported: true", 'allow_unsupported: "yes"', [":14:24:", "must be true or false, but is 'yes'"]),
        ("[peak_rss_bytes]", "[peak_rss]", [":15:26: unknown metric 'peak_rss'; did you mean 'peak_rss_bytes'?"]),
        ("mean_kld <= 0.05", "mean_kdl <= 0.05", [":9:13: unknown metric 'mean_kdl'", "did you mean 'mean_kld'?"]),
        ("mean_kld <= 0.05", "mean_kld <= 5 %", [":9:13:", "'5 %'", "is no number"]),
    ],
)
def test_each_fault_has_its_place_and_its_fix(old: str, new: str, parts: list[str]) -> None:
    assert old in PIPELINE
    with pytest.raises(UsageError) as caught:
        parse(PIPELINE.replace(old, new, 1))
    message = str(caught.value)
    assert all(line.startswith("p.yaml:") for line in message.splitlines())
    for part in parts:
        assert part in message


def test_builds_are_needed() -> None:
    with pytest.raises(UsageError, match=r"p\.yaml:3:9: builds must be a list of at least 1 items"):
        parse("schema: edgekiln.pipeline/1\nname: x\nbuilds: []\n")
    with pytest.raises(UsageError, match=r"p\.yaml:1:1: the file is empty"):
        parse("")


def test_a_pipeline_is_named_by_path_or_by_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_pipeline().spec.name == "default"
    (tmp_path / "mine.yaml").write_text(PIPELINE)
    assert load_pipeline("mine.yaml").spec.name == "nightly"
    assert load_pipeline(str(tmp_path / "mine.yaml")).spec.name == "nightly"
    (tmp_path / "default").write_text(PIPELINE)
    assert load_pipeline("default").spec.name == "nightly"


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("defualt", ["no pipeline file and no shipped pipeline is named 'defualt'", "did you mean 'default'?"]),
        ("gone.yaml", ["gone.yaml does not exist"]),
        ("no/such", ["does not exist"]),
        (".", ["is no regular file"]),
        ("", ["no shipped pipeline is named ''"]),
        ("x" * 5000, ["is no usable file name"]),
    ],
)
def test_a_pipeline_that_does_not_exist(
    argument: str, parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        load_pipeline(argument)
    for part in parts:
        assert part in str(caught.value)
