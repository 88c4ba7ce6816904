from __future__ import annotations

import hashlib
import re
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import pytest

from edgekiln.errors import UsageError
from edgekiln.pipelines.shipped import shipped
from edgekiln.pipelines.targets import RUNTIMES, Runtime, TargetsFile, load_targets, parse_targets
from edgekiln.validators.gates import parse_gate
from edgekiln.yamlfile import parse_yaml

ROOT = Path(__file__).parent.parent
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


EXTENDING = """\
schema: edgekiln.targets/1
templates:
  arm:
    format: gguf
    runtime: {name: llama.cpp, version: ">=0.3.36"}
    precisions:
      int4: {container: q4_0, why: Arm kernels repack it}
      int8: {container: q8_0, why: the only one}
    gates: [size_bytes <= 1 GB]
targets:
  small:
    extends: arm
    description: Small
    threads: 2
  large:
    extends: small
    description: Large
    runtime: {version: ">=0.4"}
    precisions:
      int4: {container: q4_k_m, why: enough memory}
    gates: [size_bytes <= 2 GB]
"""


def test_a_target_has_what_it_extends_and_its_own_over_it() -> None:
    file = parse(EXTENDING)
    small, large = file.get("small"), file.get("large")
    assert list(file.targets) == ["small", "large"]
    assert (small.format, small.threads, str(small.gates[0])) == ("gguf", 2, "size_bytes <= 1 GB")
    assert (large.threads, large.description, large.runtime.name, large.runtime.version) == (
        2,
        "Large",
        "llama.cpp",
        ">=0.4",
    )
    assert [str(gate) for gate in large.gates] == ["size_bytes <= 2 GB"]
    assert {name: meaning.container for name, meaning in large.precisions.items()} == {"int4": "q4_k_m", "int8": "q8_0"}
    assert file.where(("targets", "large", "threads"), key=True) == "targets.yaml:14:5"
    assert file.where(("targets", "large", "precisions", "int8", "why")) == "targets.yaml:8:36"


def test_what_is_wrong_in_a_template_is_found_where_it_is_written() -> None:
    with pytest.raises(UsageError) as caught:
        parse(EXTENDING.replace("container: q8_0", "contaner: q8_0"))
    assert all(line.startswith("targets.yaml:8:14: unknown key 'contaner'") for line in str(caught.value).splitlines())
    unused = EXTENDING.replace("templates:\n", "templates:\n  unused: {thread: 3}\n")
    with pytest.raises(UsageError, match=r"^targets\.yaml:3:12: unknown key 'thread'; did you mean 'threads'\?"):
        parse(unused)
    with pytest.raises(UsageError, match=r"^targets\.yaml:11:5: the key 'format' is missing"):
        parse(EXTENDING.replace("    format: gguf\n", ""))


def test_a_target_is_this_machine_only_if_the_hardware_is_the_targets() -> None:
    target = parse(TARGET.replace("threads: 4", "hardware: {machine: aarch64, processor: [Raspberry Pi 5]}")).get(
        "pi-5"
    )
    assert target.is_this_machine("aarch64", "Raspberry Pi 5 Model B Rev 1.0 (Cortex-A76)")
    assert target.is_this_machine("ARM64", "raspberry pi 5")
    assert not target.is_this_machine("x86_64", "Raspberry Pi 5")
    assert not target.is_this_machine("aarch64", "Raspberry Pi 4 Model B")
    assert parse(TARGET).get("pi-5").is_this_machine("x86_64", "anything")
    windows = parse(TARGET.replace("threads: 4", "hardware: {machine: x86_64, processor: [EPYC]}")).get("pi-5")
    assert windows.is_this_machine("AMD64", "AMD EPYC 9V74")
    elsewhere = parse(TARGET.replace("threads: 4", "execution_provider: metal")).get("pi-5")
    assert not elsewhere.is_this_machine("arm64", "Apple M4")


def test_what_stands_in_for_a_runtime_that_is_not_here_is_said() -> None:
    targets = load_targets(shipped("targets.yaml")).targets
    said = {name: target.stand_in for name, target in targets.items()}
    assert said["raspberry-pi-5"] is None
    assert said["copilot-pc-cpu"] is None
    assert said["macbook-air-m4"] == "llama.cpp on this machine's CPU stands in for llama.cpp on metal"
    assert said["browser-webgpu"] == (
        "ONNX Runtime GenAI on this machine's CPU stands in for ONNX Runtime Web on webgpu"
    )
    assert said["openvino-workstation"] == ("llama.cpp on this machine's CPU stands in for OpenVINO GenAI on openvino")
    for target in targets.values():
        assert (target.stand_in is None) == (
            target.runtime.facts.stand_in is None and target.execution_provider == "cpu"
        )


def test_each_runtime_is_itself_or_has_a_stand_in_that_loads_the_same() -> None:
    assert set(RUNTIMES) == set(get_args(Runtime))
    for facts in RUNTIMES.values():
        if facts.stand_in is not None:
            other = RUNTIMES[facts.stand_in]
            assert other.stand_in is None
            assert (other.package, other.formats) == (facts.package, facts.formats)
        assert version(facts.package)


def test_every_figure_of_every_shipped_device_has_a_source() -> None:
    file = load_targets(shipped("targets.yaml"))
    devices = {name: target for name, target in file.targets.items() if target.hardware or target.memory}
    assert set(file.targets) - set(devices) == {"onnx-cpu", "gguf-cpu", "foundry-local-cpu"}
    assert len(devices) >= 16
    for name, target in file.targets.items():
        figures = {"runtime", *target.precisions}
        given = ("hardware", "memory", "threads", "context_length", "unsupported", "gates")
        figures |= {key for key in given if getattr(target, key)}
        figures |= {"execution_provider"} if target.execution_provider != "cpu" else set()
        assert set(target.sources) == figures, name
        assert set(target.precisions) == {"int8", "int4", "nf4"}, name
        assert "verified" in target.model_fields_set, name
        if target.verified is not None:
            assert (ROOT / target.verified.report).is_file(), name
            assert target.is_this_machine("any", "any"), name  # no device was at hand: it takes one to verify it


def test_the_shipped_devices_are_of_every_kind() -> None:
    targets = load_targets(shipped("targets.yaml")).targets
    providers = {(target.runtime.name, target.execution_provider) for target in targets.values()}
    assert providers >= {
        ("llama.cpp", "cpu"),
        ("llama.cpp", "metal"),
        ("llama.cpp", "cuda"),
        ("onnxruntime-genai", "cpu"),
        ("onnxruntime-genai", "cuda"),
        ("onnxruntime-genai", "qnn"),
        ("onnxruntime-web", "webgpu"),
        ("openvino-genai", "openvino"),
        ("foundry-local", "cpu"),
    }
    for target in targets.values():
        for gate in target.gates:
            assert target.hardware is not None or gate.relative_to is not None, target.name


#: Share of a device that a process gets, by the kind of device that the description begins with, or by the name.
SHARES = {
    **dict.fromkeys(("galaxy-", "iphone-", "ipad-", "snapdragon-", "core-ultra-", "copilot-", "macbook-"), 1 / 2),
    **dict.fromkeys(("raspberry-", "jetson-"), 3 / 4),
    "server-arm-large": 7 / 16,  # one of two sockets
    **dict.fromkeys(("server-", "windows-directml", "openvino-", "cuda-"), 7 / 8),
}


def test_the_memory_of_every_shipped_device_follows_one_rule() -> None:
    targets = load_targets(shipped("targets.yaml")).targets
    limits = [target.memory for target in targets.values() if target.memory]
    assert len(limits) >= 16
    for name, target in targets.items():
        share = next((share for start, share in SHARES.items() if name.startswith(start)), None)
        if share is None:
            assert target.memory == (4 * 2**30 if name == "browser-webgpu" else None), name  # 32 bits of address
        else:
            number, unit = re.findall(r"(\d+) ([GT])i?B", target.description)[-1]
            assert target.memory == share * int(number) * 2 ** (30 if unit == "G" else 40), name


def test_memory_is_all_that_a_process_may_take_so_gates_on_it_and_contexts_agree() -> None:
    token = 2 * 36 * 8 * 128 * 2  # keys and values of Qwen3-4B in fp16
    gates = 0
    for target in load_targets(shipped("targets.yaml")).targets.values():
        for gate in target.gates:
            if gate.metric == "peak_rss_bytes":
                assert (gate.op, gate.limit) == ("<=", target.memory), target.name
                gates += 1
        if target.memory is not None:
            assert token * (target.context_length or 0) <= target.memory / 6, target.name
    assert gates >= 10


def test_every_catalogue_line_names_the_nearest_of_what_the_runtime_loads() -> None:
    with pytest.raises(UsageError, match="onnxruntime-web does not load gguf; choose one of llama.cpp, openvino-genai"):
        parse(TARGET.replace("name: llama.cpp", "name: onnxruntime-web"))


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
        ("threads: 4", "verified: often", [":8:15:", "verified is either never or has a date"]),
        ("threads: 4", "verified: {date: 2026-13-01, report: x}", [":8:22:", "'2026-13-01' is no date"]),
        ("threads: 4", "verified: {date: 2026-11-22}", [":8:15:", "the key 'report' is missing"]),
        ("threads: 4", "hardware: {machine: arm, processor: [x]}", [":8:25:", "did you mean 'arm64'?"]),
        ("threads: 4", "hardware: {machine: arm64, processor: []}", [":8:43:", "at least 1 items"]),
        ("threads: 4", "sources: {memori: {title: x}}", [":8:15:", "unknown key 'memori'; did you mean 'memory'?"]),
        ("threads: 4", "sources: {memory: {title: x, url: ftp://x}}", [":8:39:", "url must be"]),
        ("threads: 4", "extends: pi-5", [":8:14:", "goes round in a circle (pi-5 → pi-5)"]),
        ("threads: 4", "extends: pi-4", [":8:14:", "'extends' names 'pi-4', which is not here"]),
        ("threads: 4", "execution_provider: GPU", [":8:25:", "execution_provider must be a text that matches"]),
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
