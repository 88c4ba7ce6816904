"""What a terminal shows of plans and targets, in any width, with the origin of everything."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgekiln import table
from edgekiln.errors import UsageError
from edgekiln.exporters import EXPORTERS
from edgekiln.pipelines import tables
from edgekiln.pipelines.cells import look_ahead
from edgekiln.pipelines.forecast import forecast
from edgekiln.pipelines.plan import Plan, make_plan
from edgekiln.pipelines.shipped import shipped
from edgekiln.pipelines.targets import TargetsFile, load_targets, parse_targets
from edgekiln.yamlfile import parse_yaml

PIPELINE = """\
schema: edgekiln.pipeline/1
name: mine
settings: {windows: 2}
builds:
  - target: raspberry-pi-5
    precisions: [int4, nf4]
    allow_not_measured: [peak_rss_bytes]
    gates: [mean_kld <= 0.05]
  - target: macbook-air-m4
    precision: int8
"""


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text(PIPELINE)
    environment = {"EDGEKILN_WINDOW": "64"}
    return make_plan(
        "p.yaml",
        formats=EXPORTERS,
        environment=environment,
        assignments=["threads=3"],
        flags={"checkpoint": "tiny-qwen3"},
    )


@pytest.fixture
def catalogue() -> TargetsFile:
    return load_targets(shipped("targets.yaml"))


def set_width(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Pretend that the terminal has so many columns."""
    for module in (table, tables):
        monkeypatch.setattr(module, "table_width", lambda: width)


def row(text: str, name: str) -> list[str]:
    """Return the cells of the row of a table that begins with a name."""
    (line,) = [line for line in text.splitlines() if re.match(rf" ?{re.escape(name)}  ", line)]
    return re.split(r"\s{2,}", line.strip())


def test_the_explanation_of_a_build_has_value_and_origin_of_everything(plan: Plan) -> None:
    text = tables.build_text(plan, "raspberry-pi-5-int4", {})
    lines = Path(shipped("targets.yaml")).read_text(encoding="utf-8").splitlines()
    for key, value, written in (
        ("precision", "q4_0", "container: q4_0"),
        ("memory", "6 GiB", "memory: 6 GiB"),
        ("context_length", "4096", "context_length: 4096"),
        ("gate peak_rss_bytes", "<= 6 GiB", "peak_rss_bytes <= 6 GiB"),
    ):
        _, shown, origin = row(text, key)
        assert shown == value
        place = re.fullmatch(r"target raspberry-pi-5 \(targets\.yaml:(\d+):(\d+)\)", origin)
        assert place
        assert lines[int(place[1]) - 1][int(place[2]) - 1 :].startswith(written)
    assert row(text, "target") == ["target", "raspberry-pi-5", "p.yaml:5:13"]
    assert row(text, "requested") == ["requested", "int4", "p.yaml:6:18"]
    assert row(text, "threads") == ["threads", "3", "--set"]
    assert row(text, "gate mean_kld") == ["gate mean_kld", "<= 0.05", "p.yaml:8:13"]
    assert row(text, "gate bits_per_weight") == ["gate bits_per_weight", "<= 8", "default of q4_0"]
    assert row(text, "allow_not_measured") == ["allow_not_measured", "peak_rss_bytes", "p.yaml:7:5"]
    assert row(text, "setting windows") == ["setting windows", "2", "p.yaml:3:12"]
    assert row(text, "setting window") == ["setting window", "64", "EDGEKILN_WINDOW"]
    assert row(text, "setting checkpoint") == ["setting checkpoint", "tiny-qwen3", "--checkpoint"]
    assert row(text, "setting warmups") == ["setting warmups", "1", "default"]
    assert "mean_kld <= 0.05: limit in p.yaml:8:13" in text
    assert "Can be built." in text


def test_the_explanation_says_what_stands_in_and_what_cannot_be_built(plan: Plan) -> None:
    text = tables.build_text(plan, "macbook-air-m4-int8", {})
    assert "Validation: llama.cpp on this machine's CPU stands in for llama.cpp on metal." in text
    reasons = {build.id: build.unsupported for build in plan.builds if build.unsupported}
    text = tables.build_text(plan, "raspberry-pi-5-nf4", reasons)
    assert "Cannot be built: GGUF has no NF4 type; use iq4_nl" in text
    with pytest.raises(
        UsageError, match=r"'raspberry-pi-5-int' is no build of p\.yaml; did you mean 'raspberry-pi-5-int"
    ):
        tables.build_text(plan, "raspberry-pi-5-int", {})


def test_the_plan_in_json_has_the_same(plan: Plan) -> None:
    reasons = {build.id: build.unsupported for build in plan.builds if build.unsupported}
    document = json.loads(tables.plan_json(plan, forecast(plan, look_ahead(plan)), reasons))
    pi, unsupported, mac = document["builds"]
    assert document["schema"] == "edgekiln.plan/1"
    assert (document["pipeline"], document["settings"]["windows"]) == ("mine", {"value": 2, "origin": "p.yaml:3:12"})
    assert pi["runtime"] == {"name": "llama.cpp", "version": ">=0.3.36"}
    assert pi["device"] == {
        "description": "Raspberry Pi 5, 8 GB, 64-bit Raspberry Pi OS",
        "execution_provider": "cpu",
        "context_length": 4096,
        "memory": 6 * 2**30,
    }
    assert pi["gates"][-1] == {"gate": "mean_kld <= 0.05", "why": "limit in p.yaml:8:13", "origin": "p.yaml:8:13"}
    assert pi["origins"]["threads"] == "--set"
    assert (pi["stand_in"], pi["unsupported"], pi["allow_not_measured"]) == (None, None, ["peak_rss_bytes"])
    assert "iq4_nl" in unsupported["unsupported"]
    assert mac["stand_in"] == "llama.cpp on this machine's CPU stands in for llama.cpp on metal"


@pytest.mark.parametrize(("width", "lines"), [(80, 2), (120, 1)])
def test_the_table_of_targets_reads_well(
    width: int, lines: int, catalogue: TargetsFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_width(monkeypatch, width)
    shown = [line for line in tables.targets_text(catalogue).splitlines() if line.strip()]
    assert max(map(len, shown)) <= width
    body = shown[2:-1]
    assert len(body) <= lines * len(catalogue.targets)
    words = set(" ".join(body).split())
    for target in catalogue.targets.values():
        assert {target.name, target.runtime.name} <= {word.rstrip(",") for word in words}
        assert set(target.description.split()) <= words, "a word was broken"
    assert ("memory" in shown[0]) == (width == 120)


@pytest.mark.parametrize("width", [80, 120])
def test_a_target_shows_every_figure_with_its_source(
    width: int, catalogue: TargetsFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_width(monkeypatch, width)
    for target in catalogue.targets.values():
        text = tables.target_text(target)
        for line in text.splitlines():
            assert len(line) <= width or "://" in line, line
        joined = " ".join(text.split())
        for source in target.sources.values():
            assert f"Source: {' '.join(source.title.split())}" in joined
            assert source.url is None or source.url in text
        for meaning in target.precisions.values():
            assert " ".join(meaning.why.split()) in joined
        verified = target.verified.date if target.verified else "never on the device itself"
        assert verified in joined
        assert (target.stand_in or "the runtime itself") in joined


def test_a_verified_target_says_when_and_where() -> None:
    text = (
        "schema: edgekiln.targets/1\ntargets:\n  pc:\n    description: A desktop\n    format: onnx\n"
        "    runtime: {name: onnxruntime-genai, version: '>=0.18'}\n"
        "    verified: {date: 2026-11-22, report: docs/reports/pc.json}\n"
    )
    target = parse_targets(parse_yaml(text.encode(), "t.yaml")).get("pc")
    assert "verified    2026-11-22, docs/reports/pc.json" in tables.target_text(target)
    (entry,) = json.loads(tables.targets_json([target]))
    assert entry["verified"] == {"date": "2026-11-22", "report": "docs/reports/pc.json"}
    assert entry["stand_in"] is None


def test_targets_in_json_have_sources_and_what_stands_in(catalogue: TargetsFile) -> None:
    entries = {entry["name"]: entry for entry in json.loads(tables.targets_json(list(catalogue.targets.values())))}
    mac = entries["macbook-air-m4"]
    assert mac["verified"] == "never"
    assert mac["sources"]["threads"]["why"].startswith("four performance cores")
    assert mac["stand_in"] == "llama.cpp on this machine's CPU stands in for llama.cpp on metal"
    assert mac["precisions"]["int4"]["container"] == "q4_k_m"
    assert "extends" not in mac


FRAMEWORKS = {
    *("torch", "transformers", "tokenizers", "huggingface_hub", "jinja2", "onnx", "onnx_ir", "onnxruntime"),
    *("onnxruntime_genai", "llama_cpp", "gguf", "mobius", "foundry_local_sdk", "rich"),
}


#: CPU seconds; 0.7 on a quiet machine, and neighbours on the same cores add to it.
LONGEST_PLAN = 1.5


def test_the_matrix_of_all_devices_is_planned_in_a_second_without_a_framework(tmp_path: Path) -> None:
    program = (
        "import json, sys, time\nfrom edgekiln.__main__ import main\ntry: main(['plan', 'devices'])\n"
        "except SystemExit: pass\n"
        "print(json.dumps([time.process_time(), sorted(sys.modules)]))"
    )
    seconds = []
    for _ in range(3):
        shown = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
        ).stdout
        used, modules = json.loads(shown.splitlines()[-1])
        assert not FRAMEWORKS & set(modules)
        assert "cuda-workstation-int4" in shown
        seconds.append(used)
        if used < 1:
            break
    assert min(seconds) < LONGEST_PLAN
    assert not list(tmp_path.iterdir())


def edgekiln(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgekiln", *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_the_command_explains_a_build(tmp_path: Path) -> None:
    shown = edgekiln("plan", "--explain", "gguf-cpu-int4", "--set", "windows=3", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert row(shown.stdout, "setting windows") == ["setting windows", "3", "--set"]
    shown = edgekiln("plan", "--explain", "gguf-cpu-int", cwd=tmp_path)
    assert (shown.returncode, shown.stdout) == (2, "")
    assert "did you mean 'gguf-cpu-int" in shown.stderr


def test_schemas_are_printed_and_written(tmp_path: Path) -> None:
    printed = edgekiln("schema", "targets", cwd=tmp_path).stdout
    assert edgekiln("schema", "targets", "--out", "new/t.json", cwd=tmp_path).returncode == 0
    assert (tmp_path / "new" / "t.json").read_text(encoding="utf-8") == printed
    shown = edgekiln("schema", "--all", "all", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert (tmp_path / "all" / "targets.schema.json").read_text(encoding="utf-8") == printed
    for arguments in ((), ("--out", "x"), ("targets", "--all", "y")):
        shown = edgekiln("schema", *arguments, cwd=tmp_path)
        assert (shown.returncode, shown.stdout) == (2, ""), arguments
        assert "pipeline, targets, report" in shown.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all", "new"]
