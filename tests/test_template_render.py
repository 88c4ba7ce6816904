"""Chat templates are rendered by each runtime's own engine, and judged against Transformers."""

from __future__ import annotations

import dataclasses
import json
import struct
import time
from pathlib import Path

import pytest

from artifacts import artifact, gguf_file, patch_gguf
from checkpoints import make_checkpoint
from edgekiln.checkpoint import embedded_directory
from edgekiln.errors import ArtifactError, ChildError
from edgekiln.process import Json, Limits
from edgekiln.validators.base import CheckResult
from edgekiln.validators.template_constructs import CONSTRUCTS
from edgekiln.validators.template_golden import golden
from edgekiln.validators.template_render import (
    MAX_RENDERED,
    Golden,
    Rendered,
    Rendering,
    bounded,
    judge_templates,
    read_conversations,
)
from edgekiln.validators.template_tasks import check_templates, make_golden

DIRECTORY = embedded_directory()
TEMPLATE = (DIRECTORY / "chat_template.jinja").read_text(encoding="utf-8")
CONVERSATIONS = read_conversations()
CONTAINERS = ("gguf", "onnx")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Json:
    return make_golden(DIRECTORY, log=tmp_path_factory.mktemp("golden") / "log")


def with_template(directory: Path, container: str, template: str) -> Path:
    """Put a template that is no longer than the embedded one into an artifact; a comment fills the rest."""
    if container == "onnx":
        (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
        return directory
    path, old = gguf_file(directory), TEMPLATE.encode()
    data, new = path.read_bytes(), template.encode()
    at = data.index(struct.pack("<Q", len(old)) + old) + 8
    filled = new + b"{#" + b"." * (len(old) - len(new) - 4) + b"#}"
    assert len(filled) == len(old)
    path.write_bytes(data[:at] + filled + data[at + len(old) :])
    return path


def loadable(directory: Path, container: str) -> Path:
    return gguf_file(directory) if container == "gguf" else directory


def judged(container: str, path: Path, made: Json, tmp_path: Path, **limits: float) -> dict[str, CheckResult]:
    bounds = Limits(**limits) if limits else None  # type: ignore[arg-type]  # seconds alone
    results = check_templates(container, path, made, log=tmp_path / "log", limits=bounds)
    return {result.check: result for result in results}


def finding_ids(results: dict[str, CheckResult]) -> set[str]:
    return {finding.id for result in results.values() for finding in result.findings}


def test_the_conversations_hold_what_is_promised() -> None:
    roles = [tuple(message["role"] for message in entry.messages) for entry in CONVERSATIONS]
    assert len({entry.name for entry in CONVERSATIONS}) == len(CONVERSATIONS)
    assert any("tool" in entry for entry in roles)
    assert any(entry[0] == "assistant" for entry in roles)
    assert ("user", "user") in roles
    assert {True, False, None} == {entry.thinking for entry in CONVERSATIONS}
    assert {True, False} == {entry.generation_prompt for entry in CONVERSATIONS}
    assert any(entry.tools for entry in CONVERSATIONS)
    assert any(
        message["content"] == "" for entry in CONVERSATIONS for message in entry.messages if "tool_calls" not in message
    )


def test_golden_texts_are_those_of_transformers_and_survive_json(made: Json) -> None:
    found = golden(DIRECTORY, CONVERSATIONS)
    assert (
        found == Golden.from_json(json.loads(json.dumps(dataclasses.asdict(found)))) == Golden.from_json(made["golden"])
    )
    by_name = dict(zip((entry.name for entry in CONVERSATIONS), found.renderings, strict=True))
    assert by_name["thinking off"].text == (
        "<|im_start|>user\nIs 223 prime?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert found.end_of_turn == (4072, "<|im_end|>")
    assert found.prompted
    assert made["ends"] == [4072, 4073]


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_good_artifact_renders_the_same_bytes_and_stops_where_a_turn_ends(
    container: str, made: Json, tmp_path: Path
) -> None:
    path = loadable(artifact(container, "int8", tmp_path), container)
    results = judged(container, path, made, tmp_path)
    assert results["template/render"].outcome == "pass"
    assert results["template/end_of_turn"].outcome == "pass"
    assert "4072" in results["template/end_of_turn"].detail
    assert finding_ids(results) == set()


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_template_without_the_generation_prompt_is_named(container: str, made: Json, tmp_path: Path) -> None:
    changed = TEMPLATE[: TEMPLATE.index("{%- if add_generation_prompt %}")]
    path = with_template(artifact(container, "int8", tmp_path), container, changed)
    results = judged(container, path, made, tmp_path)
    assert results["template/render"].outcome == "fail"
    assert finding_ids(results) >= {"template/generation_prompt"}


@pytest.mark.parametrize("container", CONTAINERS)
def test_another_text_is_shown_where_it_differs_first(container: str, made: Json, tmp_path: Path) -> None:
    changed = TEMPLATE.replace("\\n# Tools", "\\n# Tool").replace("'# Tools'", "'# Tool'")
    assert changed != TEMPLATE
    changed = changed.replace(
        "{{- '<|im_start|>' + message.role + '\\n' + content", "{{- '<|im_start|>' + message.role + ' ' + content"
    )
    path = artifact(container, "int8", tmp_path)
    if container == "gguf":
        at = len(changed.encode())
        assert at < len(TEMPLATE.encode())
        file, old = gguf_file(path), TEMPLATE.encode()
        file.write_bytes(file.read_bytes().replace(old, changed.encode().ljust(len(old), b"\n")))
        path = file
    else:
        (path / "chat_template.jinja").write_text(changed, encoding="utf-8")
    result = judged(container, path, made, tmp_path)["template/render"]
    assert result.outcome == "fail"
    assert any(finding.id == "template/render" and "instead of" in finding.detail for finding in result.findings)


HOSTILE = {
    "loops": "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}x",
    "recurses": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "reaches": "{{ ''.__class__.__mro__ }}",
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_template_is_stopped_and_named(container: str, template: str, made: Json, tmp_path: Path) -> None:
    path = with_template(artifact(container, "int8", tmp_path), container, template)
    begin = time.monotonic()
    results = judged(container, path, made, tmp_path, seconds=5)
    assert time.monotonic() - begin < 30
    assert results["template/render"].outcome == "fail"
    assert "template/hostile" in finding_ids(results)


def test_a_looping_template_of_the_checkpoint_is_stopped(tmp_path: Path) -> None:

    directory = make_checkpoint(tmp_path / "c")
    (directory / "chat_template.jinja").write_text(HOSTILE["loops"], encoding="utf-8")
    with pytest.raises(ChildError, match="did not finish within 4 s"):
        make_golden(directory, log=tmp_path / "log", limits=Limits(seconds=4))
    (directory / "chat_template.jinja").write_text(HOSTILE["reaches"], encoding="utf-8")
    found = Golden.from_json(make_golden(directory, log=tmp_path / "log")["golden"])
    assert all(entry.text is None and "unsafe" in entry.error for entry in found.renderings)


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_template_that_an_engine_cannot_read_is_an_error_with_its_reason(
    container: str, made: Json, tmp_path: Path
) -> None:
    path = with_template(artifact(container, "int8", tmp_path), container, "{% if x %}")
    results = judged(container, path, made, tmp_path)
    assert results["template/render"].outcome == "fail"
    assert finding_ids(results) == {"template/unsupported"}


def test_a_file_that_no_template_helps_to_load_is_not_blamed_on_its_template(made: Json, tmp_path: Path) -> None:
    path = gguf_file(artifact("gguf", "int8", tmp_path))
    patch_gguf(path, "qwen3.embedding_length", "<I", 128)
    with pytest.raises(ArtifactError, match="server does not start"):
        judged("gguf", path, made, tmp_path)


def test_a_directory_without_its_template_is_named(made: Json, tmp_path: Path) -> None:
    directory = artifact("onnx", "int8", tmp_path)
    (directory / "chat_template.jinja").unlink()
    results = judged("onnx", directory, made, tmp_path)
    assert finding_ids(results) == {"template/missing"}


def test_generation_that_goes_on_after_the_end_of_a_turn_names_the_token(made: Json, tmp_path: Path) -> None:
    directory = artifact("onnx", "int8", tmp_path)
    path = directory / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["eos_token_id"] = 4073
    path.write_text(json.dumps(config))
    (finding,) = judged("onnx", directory, made, tmp_path)["template/end_of_turn"].findings
    assert (finding.id, finding.severity, finding.subject) == ("tokenizer/eos", "error", "token 4072")
    assert "<|im_end|>" in finding.detail


def test_the_probes_of_constructs_agree_with_transformers() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    for entry in CONSTRUCTS:
        (text,), _ = render_jinja_template(
            conversations=[[{"role": "user", "content": "?"}]], chat_template=entry.probe
        )
        assert text == entry.expected, entry.name


def test_what_an_engine_lacks_in_the_checkpoints_own_template_is_named_and_no_failure(tmp_path: Path) -> None:
    """ORT GenAI's `in` does not find a part of a text."""
    from edgekiln.validators.template_genai import render_genai

    directory = artifact("onnx", "int8", tmp_path)
    split = "{%- if '</think>' in content %}{%- set content = content.split('</think>')[-1] %}{%- endif %}"
    template = TEMPLATE.replace("{%- if message.role == 'user'", split + "\n    {%- if message.role == 'user'")
    assert template != TEMPLATE
    for target in (directory, tmp_path / "checkpoint"):
        target.mkdir(exist_ok=True)
        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"):
            if target != directory:
                (target / name).write_bytes((DIRECTORY / name).read_bytes())
        (target / "chat_template.jinja").write_text(template, encoding="utf-8")
    rendered = render_genai(directory, CONVERSATIONS)
    assert rendered.lacking == ("`'…' in text`",)
    (result,) = judge_templates(CONVERSATIONS, golden(tmp_path / "checkpoint", CONVERSATIONS), rendered)
    assert result.outcome == "known_divergence"
    assert {(f.id, f.severity) for f in result.findings} == {("template/unsupported", "warning")}
    assert all("'…' in text" in finding.detail for finding in result.findings)


def scripted(**changed: Rendering) -> list[CheckResult]:
    """Judge an engine that renders the golden texts but for the conversations named."""
    expected = golden(DIRECTORY, CONVERSATIONS)
    texts = tuple(
        changed.get(entry.name.replace(" ", "_"), text)
        for entry, text in zip(CONVERSATIONS, expected.renderings, strict=True)
    )
    return judge_templates(CONVERSATIONS, expected, Rendered("an engine", TEMPLATE, texts))


def test_a_plain_conversation_that_an_engine_refuses_is_an_error_and_another_one_a_warning() -> None:
    (plain,) = scripted(system_prompt=Rendering(None, "no filter trim"))
    (odd,) = scripted(assistant_first=Rendering(None, "roles must alternate"))
    assert (plain.outcome, odd.outcome) == ("fail", "known_divergence")
    assert "no filter trim" in plain.findings[0].detail
    assert "an assistant turn before any user turn" in odd.findings[0].detail


def test_a_rendering_without_an_end_is_hostile() -> None:
    assert bounded("x" * MAX_RENDERED).text is not None
    (result,) = scripted(one_question=bounded("x" * (MAX_RENDERED + 1)))
    assert [finding.id for finding in result.findings] == ["template/hostile"]


def test_nothing_is_compared_where_the_checkpoint_has_no_template() -> None:
    expected = golden(DIRECTORY, CONVERSATIONS)
    bare = dataclasses.replace(expected, template=None)
    (result,) = judge_templates(CONVERSATIONS, bare, Rendered("an engine", TEMPLATE, expected.renderings))
    assert result.outcome == "not_measured"
    (result,) = judge_templates(CONVERSATIONS, bare, Rendered("an engine", None, ()))
    assert result.outcome == "pass"
