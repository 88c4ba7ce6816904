"""A chat template is found where the runtimes look, and never rendered to be described."""

import json

import pytest

from edgekiln.errors import ArtifactError
from edgekiln.template_check import MAX_TEMPLATE_BYTES, find_template
from edgekiln.validators.chat_template import ChatTemplate, directory_template, gguf_template

KNOWS = {
    "{% if tools %}x{% endif %}": (True, "none"),
    "{% if enable_thinking is false %}<think></think>{% endif %}": (False, "switch"),
    "{{ content.split('</think>')[-1] }}<think>": (False, "tags"),
    "{{ mytools }}{{ not_enable_thinkings }}": (False, "none"),
}


@pytest.mark.parametrize(("text", "knows"), KNOWS.items())
def test_what_a_template_knows(text, knows):
    template = ChatTemplate(text, "x")
    assert (template.tools, template.thinking) == knows


def test_the_file_comes_before_the_configuration(tmp_path):
    assert directory_template(tmp_path) is None
    named = [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert directory_template(tmp_path) == ChatTemplate("b", "tokenizer_config.json")
    (tmp_path / "chat_template.jinja").write_bytes(b"c\r\n")
    assert directory_template(tmp_path) == ChatTemplate("c\r\n", "chat_template.jinja")


def test_a_template_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "chat_template.jinja"
    path.write_bytes(b"\xff")
    with pytest.raises(ArtifactError, match="not UTF-8"):
        directory_template(tmp_path)
    with path.open("wb") as file:
        file.truncate(5 << 20)
    with pytest.raises(ArtifactError, match="more than"):
        directory_template(tmp_path)


def test_checkpoints_and_artifacts_find_the_same_and_have_one_bound(tmp_path):
    path = tmp_path / "chat_template.jinja"
    for size in (MAX_TEMPLATE_BYTES, MAX_TEMPLATE_BYTES + 1):
        path.write_bytes(b"x" * size)
        if size > MAX_TEMPLATE_BYTES:
            with pytest.raises(ArtifactError, match="more than"):
                directory_template(tmp_path)
        else:
            assert find_template(tmp_path) == (path, "x" * size)
            assert directory_template(tmp_path) == ChatTemplate("x" * size, path.name)


def test_named_templates_made_by_an_enemy(tmp_path):
    named = [{"name": [], "template": "a"}, 7, {"name": "default", "template": "b"}, {"name": "default"}]
    config = tmp_path / "tokenizer_config.json"
    for count, found in ((2, None), (3, ChatTemplate("b", config.name)), (4, None)):
        config.write_text(json.dumps({"chat_template": named[:count]}))
        assert directory_template(tmp_path) == found
    config.write_text(json.dumps({"chat_template": 3}))
    with pytest.raises(ArtifactError, match="must be a text, not int"):
        directory_template(tmp_path)


def test_a_gguf_files_template():
    assert gguf_template({}) is None
    assert gguf_template({"tokenizer.chat_template": 7}) is None
    assert gguf_template({"tokenizer.chat_template": "t"}) == ChatTemplate("t", "tokenizer.chat_template")
