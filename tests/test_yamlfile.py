from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from edgekiln.errors import UsageError
from edgekiln.yamlfile import (
    MAX_BYTES,
    MAX_CHAIN,
    MAX_DEPTH,
    Document,
    Position,
    Strict,
    Text,
    check_part,
    extended,
    parse_yaml,
    read_yaml,
    validate,
)


def parse(text: str) -> Document:
    return parse_yaml(text.encode(), "f.yaml")


def problem(text: str | bytes) -> str:
    with pytest.raises(UsageError) as caught:
        parse_yaml(text.encode() if isinstance(text, str) else text, "f.yaml")
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-3", -3),
        ("012", 12),
        ("013", 13),
        ("-1e-4", -1e-4),
        ("1.e3", 1000.0),
        ("on", "on"),
        ("Yes", "Yes"),
        ("n", "n"),
        ("0b11", "0b11"),
        ("190:20:30", "190:20:30"),
        ("+1", 1),
        ("0o17", 15),
        ("0x1F", 31),
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2026-11-22", "2026-11-22"),
        ("'1'", "1"),
        ('"null"', "null"),
        ("4 GiB", "4 GiB"),
    ],
)
def test_scalars_follow_the_core_schema_of_yaml_1_2(scalar: str, value: object) -> None:
    read = parse(f"key: {scalar}\n").value
    assert read == {"key": value}
    assert isinstance(read, dict)
    assert isinstance(read["key"], type(value))


def test_long_runs_of_digits_cost_nothing() -> None:
    assert parse(f"a: {'9' * 100_000}\n").value == {"a": "9" * 100_000}


def test_every_key_and_value_knows_its_place() -> None:
    document = parse("# a comment\na:\n  - b: 1\n    c: [x, {d: é, e: 2}]\n")
    assert document.position(("a",), key=True) == Position(2, 1)
    assert document.position(("a", 0, "c"), key=True) == Position(4, 5)
    assert document.position(("a", 0, "c")) == Position(4, 8)
    assert document.position(("a", 0, "c", 1, "e")) == Position(4, 22)
    assert document.where(("a", 0, "b")) == "f.yaml:3:8"
    assert document.position(("a", 0, "missing")) == document.position(("a", 0))


def test_anchors_and_merge_keys() -> None:
    document = parse(
        "base: &base {a: 1, b: 2}\nother: &other {b: 3, c: 4}\nx:\n  <<: [*base, *other]\n  a: 9\ny: *base\n"
    )
    value = document.value
    assert isinstance(value, dict)
    assert value["x"] == {"a": 9, "b": 2, "c": 4}
    assert value["y"] == {"a": 1, "b": 2}
    assert document.where(("x", "c")) == "f.yaml:2:25"
    assert document.where(("x", "a")) == "f.yaml:5:6"


EXTENDING = """\
bases:
  a: &a {x: 1, deep: {one: 1, two: [1, 2]}}
  b: {extends: a, deep: {two: [3]}}
things:
  c:
    extends: b
    deep: {three: 3}
  d: {<<: *a, x: 9}
  e: 4
"""


def test_entries_have_what_they_extend_and_every_value_keeps_its_place() -> None:
    document = extended(parse(EXTENDING), "bases", "things")
    assert document.at(("things",)) == {
        "c": {"x": 1, "deep": {"one": 1, "two": (3,), "three": 3}, "extends": "b"},
        "d": {"x": 9, "deep": {"one": 1, "two": (1, 2)}},
        "e": 4,
    }
    assert document.at(("bases", "b")) == {"x": 1, "deep": {"one": 1, "two": (3,)}, "extends": "a"}
    assert document.where(("things", "c", "x"), key=True) == "f.yaml:2:10"
    assert document.where(("things", "c", "deep", "two", 0)) == "f.yaml:3:32"
    assert document.where(("things", "c", "deep", "three")) == "f.yaml:7:19"
    assert document.where(("things", "c", "extends")) == "f.yaml:6:14"
    assert document.sha256 == parse(EXTENDING).sha256


def test_nothing_that_extends_nothing_is_changed() -> None:
    for text in ("bases: {a: {x: 1}}\nother: [1]\n", "bases: 3\n", "[1, 2]\n", "", "bases: [a, b]\n"):
        assert extended(parse(text), "bases", "things").value == parse(text).value


CHAIN = "".join(f"  a{i}: {{extends: a{i - 1}}}\n" for i in range(1, MAX_CHAIN + 2))
BACKWARDS = "".join(f"  a{i}: {{extends: a{i - 1}}}\n" for i in range(5000, 0, -1))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("s:\n  a: {extends: a}\n", ["f.yaml:2:16:", "goes round in a circle (a → a)"]),
        ("s:\n  a: {extends: b}\n  b: {extends: a}\n", ["f.yaml:3:16:", "(a → b → a)"]),
        (
            "s:\n  abc: {x: 1}\n  b: {extends: acb}\n",
            ["f.yaml:3:16:", "names 'acb', which is not here; did you mean 'abc'?"],
        ),
        ("s:\n  a: {extends: 3}\n", ["f.yaml:2:16:", "takes the name of an entry, but is 3"]),
        ("s:\n  a: {extends: [b]}\n", ["f.yaml:2:16:", "is a list"]),
        ("s: {a: {}}\nt:\n  a: {}\n", ["f.yaml:3:3:", "'a' is in 's' too"]),
        (f"s:\n  a0: {{}}\n{CHAIN}", [f"more than {MAX_CHAIN} entries extend one another"]),
        (f"s:\n{BACKWARDS}  a0: {{}}\n", [f"more than {MAX_CHAIN} entries extend one another"]),
        (
            "s:\n  a: {"
            + ", ".join(f"k{i}: 1" for i in range(2000))
            + "}\n"
            + "".join(f"  b{i}: {{extends: a}}\n" for i in range(200)),
            ["more than 250000 values, 'extends' expanded"],
        ),
    ],
)
def test_what_cannot_be_extended_is_one_sentence_with_its_place(text: str, parts: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        extended(parse(text), "s", "t")
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_the_longest_chain_allowed_is_read() -> None:
    lines = CHAIN.splitlines()[:MAX_CHAIN]
    document = extended(parse("s:\n  a0: {x: 1}\n" + "\n".join(lines)), "s")
    assert document.at(("s", f"a{MAX_CHAIN}", "x")) == 1


def test_a_part_of_a_model_may_lack_keys_but_not_have_wrong_ones() -> None:
    document = parse("a: {threads: 3}\nb: {thread: 3}\nc: {threads: x}\n")
    check_part(document, ("a",), Inner)
    for key, message in (("b", "f.yaml:2:5: unknown key 'thread'"), ("c", "f.yaml:3:14: threads must be")):
        with pytest.raises(UsageError) as caught:
            check_part(document, (key,), Inner)
        assert str(caught.value).startswith(message)


def test_a_byte_order_mark_and_windows_line_ends_are_fine() -> None:
    assert parse_yaml(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n", "f.yaml").value == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a: 1\nb: 2\na: 3\n", ["f.yaml:3:1:", "duplicate key 'a'", "line 1"]),
        ("x: {a: 1, a: 2}\n", ["f.yaml:1:11:", "duplicate key 'a'"]),
        ("a: &a {}\nb:\n  <<: *a\n  <<: *a\n", ["f.yaml:4:3:", "duplicate key '<<'"]),
        ("a: [1, 2\n", ["f.yaml:2:1:", "not valid YAML", "expected ',' or ']'"]),
        ("a:\n\tb: 1\n", ["f.yaml:2:1:", "not valid YAML", "indent with spaces"]),
        ("a: b: c\n", ["f.yaml:1:5:", "not valid YAML"]),
        ("a: !!python/object/apply:os.system [x]\n", ["f.yaml:1:4:", "tag", "remove it"]),
        ("a: !include x\n", ["f.yaml:1:4:", "tag '!include'"]),
        ("a: *nowhere\n", ["f.yaml:1:4:", "alias *nowhere"]),
        ("a: &a [*a]\n", ["f.yaml:1:8:", "alias *a has no finished anchor"]),
        ("a: 1\n---\nb: 2\n", ["f.yaml:2:1:", "second document"]),
        ("? [a, b]\n: 1\n", ["f.yaml:1:3:", "a key must be a plain text"]),
        ("a:\n  <<: 3\n", ["f.yaml:2:3:", "'<<' takes a mapping"]),
        ("a: \x07\n", ["f.yaml:1:4:", "control character"]),
        ("a: 1\nb: \x00", ["f.yaml:2:4:", "control character"]),
        ('a: "\\UFFFFFFFF"\n', ["f.yaml:", "escape names no character"]),
        (b"a: 1\nb: \xff\n", ["f.yaml:2:", "byte 0xff is not UTF-8"]),
        ("a: 1".encode("utf-16"), ["f.yaml:1:", "not UTF-8"]),
        ("%YAML 3.0\n---\na: 1\n", ["f.yaml:1:1:", "not valid YAML"]),
    ],
)
def test_each_fault_is_one_sentence_with_its_place(text: str | bytes, parts: list[str]) -> None:
    message = problem(text)
    for part in parts:
        assert part in message


def bomb(width: int, levels: int) -> str:
    lines = ["a0: &a0 [x]"]
    lines += [f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * width)}]" for i in range(levels)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (bomb(10, 20), "more than 250000 values"),
        (
            "m: &m\n" + "".join(f"  k{i}: 1\n" for i in range(2000)) + "a:\n" + "  - {<<: *m}\n" * 2000,
            "more than 250000",
        ),
        ("a: " + "[" * 100_000, f"nested more than {MAX_DEPTH} deep"),
        ("a: " + "{a: " * 10_000, f"nested more than {MAX_DEPTH} deep"),
        (bomb(1, 200), f"nested more than {MAX_DEPTH} deep"),
    ],
)
def test_bombs_are_refused_at_once(text: str, part: str) -> None:
    begin = time.monotonic()
    assert part in problem(text)
    assert time.monotonic() - begin < 10


def test_as_deep_as_allowed_is_read() -> None:
    depth = MAX_DEPTH - 1
    assert parse("[" * depth + "1" + "]" * depth)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(UsageError, match="more than 1048576 bytes"):
        read_yaml(large)
    with pytest.raises(UsageError, match=r"gone\.yaml does not exist"):
        read_yaml(tmp_path / "gone.yaml")
    with pytest.raises(UsageError, match="is no regular file"):
        read_yaml(tmp_path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_yaml(tmp_path / ("x" * 5000))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_that_nobody_writes_to_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="is no regular file"):
        read_yaml(tmp_path / "pipe")


class Inner(Strict):
    runtime: Text
    threads: int | None = Field(default=None, ge=1, le=8)
    ratio: float = 1.0


class Outer(Strict):
    schema_id: str = Field(alias="schema", default="")
    version: Text = ""
    fast: bool = False
    items: tuple[Inner, ...] = ()
    named: dict[str, Inner] = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (
            "items:\n  - runtime: x\n    runtme: y\n",
            ["f.yaml:3:5: unknown key 'runtme'; did you mean 'runtime'? choose one of ratio, runtime, threads"],
        ),
        (
            "named:\n  a: {runtim: x}\n",
            ["f.yaml:2:6: the key 'runtime' is missing", "f.yaml:2:7: unknown key 'runtim'; did"],
        ),
        ("shema: x\n", ["f.yaml:1:1: unknown key 'shema'; did you mean 'schema'? choose one of fast,"]),
        ("fast: yes\n", ["f.yaml:1:7: fast must be true or false, but is 'yes'"]),
        ("fast: 1\n", ["f.yaml:1:7: fast must be true or false, but is 1"]),
        ("items: 3\n", ["f.yaml:1:8: items must be a list, but is 3"]),
        ("items: [{runtime: x, threads: 2.5}]\n", ["threads must be a whole number, but is 2.5"]),
        ("items: [{runtime: x, threads: true}]\n", ["threads must be a whole number, but is true"]),
        ("items: [{runtime: x, threads: 9}]\n", ["f.yaml:1:31: threads must be at most 8, but is 9"]),
        ("items: [{runtime: x, ratio: .nan}]\n", ["ratio must be a finite number, but is .nan"]),
        ("items: [{runtime: true}]\n", ["runtime must be a text; put it in quotes, but is true"]),
        ("items: [{runtime: [x]}]\n", ["runtime must be a text; put it in quotes, but is a list"]),
        ("items: [x]\n", ["f.yaml:1:9: items must be a mapping, but is 'x'"]),
        ("", ["f.yaml:1:1: the file is empty"]),
        ("# nothing\n", ["f.yaml:1:1: the file is empty"]),
        ("[1]\n", ["f.yaml:1:1: the file must be a mapping, but is a list"]),
    ],
)
def test_validation_errors_name_place_value_and_choices(text: str, lines: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        validate(parse(text), Outer)
    found = str(caught.value).splitlines()
    assert len(found) == len(lines)
    for line, part in zip(found, lines, strict=True):
        assert line.startswith("f.yaml:")
        assert part in line


def test_a_text_keeps_the_spelling_of_a_number() -> None:
    assert validate(parse("version: 1.10\n"), Outer).version == "1.10"
    assert validate(parse("version: 0x10\n"), Outer).version == "0x10"


def test_a_whole_number_is_a_number() -> None:
    inner = validate(parse("items: [{runtime: x, ratio: 2}]\n"), Outer).items[0]
    assert inner.ratio == 2.0
    assert type(inner.ratio) is float


def test_thousands_of_errors_are_cut_short() -> None:
    with pytest.raises(UsageError) as caught:
        validate(parse("items:\n" + "  - {}\n" * 5000), Outer)
    lines = str(caught.value).splitlines()
    assert len(lines) == 21
    assert "4980 more" in lines[-1]


def complaint(data: bytes) -> str:
    """Return the message about a file, or a well-formed one where there is none."""
    try:
        parse_yaml(data, "f.yaml")
    except UsageError as error:
        return str(error)
    return "f.yaml: fine"


@given(st.binary(max_size=200))
def test_any_bytes_give_a_document_or_a_usage_error(data: bytes) -> None:
    assert complaint(data).startswith("f.yaml:")


@given(st.text(alphabet="ab:-&*<[]{}!?|>'\"\\ \n\t#,%@1.~", max_size=80))
def test_any_text_gives_a_document_or_one_sentence(text: str) -> None:
    assert "\n" not in complaint(text.encode())
