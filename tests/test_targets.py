from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from edgekiln.errors import UsageError
from edgekiln.pipelines.shipped import shipped
from edgekiln.pipelines.targets import TargetsFile, load_targets, parse_targets
from edgekiln.validators.gates import parse_gate
from edgekiln.yamlfile import parse_yaml

TARGET = """\
schema: edgekiln.targets/1
targets:
  pi-5:
    description: Raspberry Pi 5
    format: gguf
    runtime: {name: llama.cpp, version: ">=0.3.36,<1"}
    memory: 4 GiB
    threads: 4
    context_length: 4096
    precisions:
      int4: {container: Q4_0, why: Arm kernels repack it}
    gates:
      - decode_tokens_per_second >= 0.9 * fp16_artifact
      - size_bytes <= 350 MB
"""


def parse(text: str) -> TargetsFile:
    return parse_targets(parse_yaml(text.encode(), "targets.yaml"))


def test_a_target_is_parsed_once_into_frozen_values() -> None:
    target = parse(TARGET).get("pi-5")
    assert target.name == "pi-5"
    assert target.memory == 4 * 2**30
    assert target.execution_provider == "cpu"
    assert target.gates == (
        parse_gate("decode_tokens_per_second >= 0.9 * fp16_artifact"),
        parse_gate("size_bytes <= 350 MB"),
    )
    meaning = target.meaning("int4")
    assert meaning is not None
    assert meaning.container == "q4_0"
    assert target.meaning("int8") is None
    assert target.runtime.accepts("0.3.40")
    assert not target.runtime.accepts("0.3.35")
    assert not target.runtime.accepts("b4000-custom")
    with pytest.raises(ValueError, match="frozen"):
        target.threads = 8


def test_anchors_share_parts_of_targets() -> None:
    text = """\
schema: edgekiln.targets/1
shared:
  cpu: &cpu
    format: onnx
    runtime: {name: onnxruntime-genai, version: ">=0.18"}
    threads: 2
targets:
  small: {<<: *cpu, description: Small}
  large: {<<: *cpu, description: Large, threads: 16}
"""
    file = parse(text)
    assert (file.get("small").threads, file.get("large").threads) == (2, 16)
    assert list(file.targets) == ["small", "large"]


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("edgekiln.targets/1", "edgekiln.targets/2", [":1:9:", "unknown schema", "choose one of edgekiln.targets/1"]),
        ("schema: edgekiln.targets/1\n", "", ["the key 'schema' is missing"]),
        (
            "    runtime:",
            "    runtme:",
            [":6:5: unknown key 'runtme'; did you mean 'runtime'?", "'runtime' is missing"],
        ),
        ("format: gguf", "format: guff", [":5:13: unknown format 'guff'; did you mean 'gguf'?", "foundry-local"]),
        ("name: llama.cpp", "name: lama.cpp", [":6:21: unknown name 'lama.cpp'; did you mean 'llama.cpp'?"]),
        ("name: llama.cpp", "name: foundry-local", [":6:21:", "foundry-local does not load gguf", "llama.cpp"]),
        ('">=0.3.36,<1"', '"~~1"', [":6:41:", "'~~1' is no version range", "PEP 440"]),
        ("4 GiB", "4 GIGS", [":7:13:", "'4 GIGS' is no size", "GiB"]),
        ("4 GiB", "[4]", [":7:13:", "a size like '4 GiB'", "a list"]),
        ("threads: 4", "threads: four", [":8:14: threads must be a whole number, but is 'four'"]),
        ("threads: 4", "threads: 0", [":8:14: threads must be at least 1, but is 0"]),
        ("threads: 4", "threads: 4\n    threads: 5", [":9:5: duplicate key 'threads', first given in line 8"]),
        ("int4: {", "int5: {", [":11:7: unknown key 'int5'; did you mean 'int8'?", "nf4"]),
        (", why: Arm kernels repack it", "", [":11:13: the key 'why' is missing"]),
        ("size_bytes <=", "size_byte <=", [":14:9:", "unknown metric 'size_byte'", "did you mean 'size_bytes'?"]),
        ("size_bytes <= 350 MB", "{}", [":14:9:", "a gate like", "a mapping"]),
        ("  pi-5:", "  Pi 5:", [":3:3:", "'Pi 5' cannot name a target", "lower-case"]),
        ("  pi-5:", "  con:", [":3:3:", "'con' cannot name a target", "Windows"]),
        ("  pi-5:", "  nul.x:", [":3:3:", "'nul.x' cannot name a target"]),
        ("  pi-5:", f"  {'a' * 41}:", [":3:3:", "at most 40 characters"]),
        ("targets:\n", "settings: {targets: x.yaml}\ntargets:\n", [":2:12:", "cannot name another"]),
        ("targets:\n", "settings: {thread: 3}\ntargets:\n", [":2:12: unknown key 'thread'; did you mean 'threads'?"]),
        ("targets:\n", "target:\n", [":2:1: unknown key 'target'; did you mean 'targets'?"]),
    ],
)
def test_each_fault_has_its_place_and_its_fix(old: str, new: str, parts: list[str]) -> None:
    assert old in TARGET
    with pytest.raises(UsageError) as caught:
        parse(TARGET.replace(old, new, 1))
    message = str(caught.value)
    assert all(line.startswith("targets.yaml:") for line in message.splitlines())
    for part in parts:
        assert part in message


def test_a_targets_file_needs_a_target() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        parse("schema: edgekiln.targets/1\ntargets: {}\n")


def test_a_misspelt_target_gets_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"unknown target 'pi5' in targets\.yaml; did you mean 'pi-5'\?"):
        parse(TARGET).get("pi5")


def test_the_file_named_holds_over_the_one_in_the_folder_over_the_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = load_targets()
    assert file.is_shipped
    assert file.name == "targets.yaml (shipped)"
    assert file.document.sha256 == hashlib.sha256(shipped("targets.yaml").read_bytes()).hexdigest()
    (tmp_path / "targets.yaml").write_text(TARGET)
    assert list(load_targets().targets) == ["pi-5"]
    assert load_targets().name == "targets.yaml"
    (tmp_path / "other.yaml").write_text(TARGET.replace("pi-5", "pi-4"))
    assert list(load_targets(Path("other.yaml")).targets) == ["pi-4"]
    with pytest.raises(UsageError, match=r"gone\.yaml does not exist"):
        load_targets(Path("gone.yaml"))


def test_the_shipped_catalogue_has_a_target_for_each_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    targets = load_targets().targets
    formats = {name: target.format for name, target in targets.items()}
    assert formats["onnx-cpu"] == "onnx"
    assert formats["gguf-cpu"] == "gguf"
    assert formats["foundry-local-cpu"] == "foundry-local"
