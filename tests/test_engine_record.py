import json

import pytest
from pydantic import ValidationError

from edgekiln.engine.entry import Entry, parse_entry
from edgekiln.engine.record import Record, content_digest, differences
from stores import fill, ingredients, record_of


def test_the_key_covers_each_ingredient():
    base = ingredients()
    others = [
        ingredients(kind="validate"),
        ingredients(code="e" * 64),
        ingredients(tools={**base.tools, "gguf": "0.20"}),
        ingredients(tools={"python": "3.11.7"}),
        ingredients(inputs={"checkpoint": "e" * 64}),
        ingredients(inputs={**base.inputs, "corpus": "e" * 64}),
        ingredients(parameters={**base.parameters, "group_size": 64}),
        ingredients(parameters={**base.parameters, "group_size": "32"}),
        ingredients(parameters={**base.parameters, "group_size": 32.5}),
        ingredients(parameters={**base.parameters, "group_size": None}),
        ingredients(parameters={"a": 1}),
        ingredients(parameters={"a": True}),
    ]
    assert len({base.key, *(other.key for other in others)}) == len(others) + 1


def test_the_key_covers_no_order():
    base = ingredients(parameters={"x": {"a": 1, "b": 2}, "y": 2})
    turned = ingredients(parameters={"y": 2, "x": {"b": 2, "a": 1}}, tools=dict(reversed(list(base.tools.items()))))
    assert turned.key == base.key


def test_a_key_of_one_kind_is_no_key_of_another():
    assert ingredients(tools={"x": "1"}, inputs={}).key != ingredients(tools={}, inputs={"x": "1"}).key


def test_a_record_and_its_key_survive_a_file(tmp_path):
    fill(tmp_path)
    record = record_of(tmp_path)
    read = Record.model_validate_json(record.model_dump_json())
    assert read == record
    assert read.ingredients.key == record.key
    assert read.digest == record.digest
    entry = Entry(record=record, stamps={}, kept=True)
    assert parse_entry(entry.to_bytes(), record.key) == entry


def test_the_content_of_a_result_is_its_names_and_bytes_and_nothing_else(tmp_path):
    fill(tmp_path)
    one = record_of(tmp_path)
    assert record_of(tmp_path, "b", seconds=9.0).digest == one.digest
    for change in ({"model.bin": b"x"}, {"more": b""}):
        fill(tmp_path / "other")
        fill(tmp_path / "other", change)
        assert record_of(tmp_path / "other").digest != one.digest
    assert content_digest({"a": "1", "b": "2"}) == content_digest({"b": "2", "a": "1"})
    assert content_digest({"a": "1", "b": "2"}) != content_digest({"a": "2", "b": "1"})


@pytest.mark.parametrize(
    "path", ["", "/a", "../a", "a/../b", "a/..", "./a", "a//b", "a/", "a\\b", "c:a", "a\0b", "..", "."]
)
def test_no_path_of_a_record_leads_out_of_its_directory(tmp_path, path):
    fill(tmp_path)
    value = json.loads(record_of(tmp_path).model_dump_json())
    value["files"][0]["path"] = path
    with pytest.raises(ValidationError):
        Record.model_validate(value)


@pytest.mark.parametrize("path", ["a", "a/b", ".a", "..a", "a..", "ä 模/…", "a b", "x.y.z"])
def test_ordinary_paths_are_fine(tmp_path, path):
    fill(tmp_path)
    value = json.loads(record_of(tmp_path).model_dump_json())
    value["files"][0]["path"] = path
    assert Record.model_validate(value).files[0].path == path


def test_each_difference_is_named_with_then_and_now():
    then = ingredients(parameters={"scheme": {"precision": "q4_0", "symmetric": True}, "gone": 1})
    now = ingredients(
        code="e" * 64,
        tools={"python": "3.11.7", "gguf": "0.20"},
        inputs={"checkpoint": "f" * 64},
        parameters={"scheme": {"precision": "q8_0", "symmetric": True}, "new": "x"},
    )
    assert differences(then, now) == [
        "code of the step: cccccccccccc then, eeeeeeeeeeee now (another version of Edgekiln)",
        "tool gguf: 0.19 then, 0.20 now",
        "input checkpoint: dddddddddddd… then, ffffffffffff… now",
        "parameter gone: 1 then, none now",
        "parameter new: none then, x now",
        "parameter scheme.precision: q4_0 then, q8_0 now",
    ]


def test_what_came_back_from_a_file_differs_in_nothing():
    live = ingredients(parameters={"sizes": (1, 2), "scheme": {"shape": (3,)}})
    read = type(live).model_validate_json(live.model_dump_json())
    assert read.key == live.key
    assert not differences(read, live)
