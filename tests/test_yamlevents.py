from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekiln import yamlfile
from edgekiln.errors import UsageError
from edgekiln.yamlevents import _UNUSUAL, Event, Undecided, fast_events, pure_events
from edgekiln.yamlfile import MAX_BYTES, parse_yaml

ROOT = Path(__file__).parent.parent
FILES = sorted(
    path for folder in (".", "pipelines", "examples", "examples/ci") for path in (ROOT / folder).glob("*.y*ml")
)
RICH = """\
# Sizes
base: &base-1 {a: 1, "b": 'it''s', c: [x, "é 😀 \\u00e9\\/", http://x/y?z:1, -1.10, ]}
long: >-
  folded
  text

    deeper
lines: |+
  one

other: {<<: *base-1, a: ~}
list:
- first
-   - nested: [{}, []]
      empty:
  # a comment
- 'two
  lines'
- plain that
  goes on
"""


def comparable(events: Iterator[Event]) -> list[Event]:
    """Return events without the places of empty values, of which each parser has its own idea."""
    return [
        event._replace(line=0, column=0) if event.plain and not event.text and not event.anchor else event
        for event in events
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_files_of_this_project_are_read_by_libyaml_as_by_the_other(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert comparable(fast_events(text)) == comparable(pure_events(text, "f.yaml"))


def test_all_styles_are_read_by_libyaml_as_by_the_other() -> None:
    for text in (RICH, RICH.replace("\n", "\r\n"), f"---\n{RICH}", ""):
        assert comparable(fast_events(text)) == comparable(pure_events(text, "f.yaml"))


def test_an_event_says_all_of_its_piece() -> None:
    text = "a: &n [x, 'é', *n]\n"
    assert list(fast_events(text)) == [
        Event("document", 1, 1),
        Event("mapping", 1, 1),
        Event("scalar", 1, 1, "a", plain=True),
        Event("sequence", 1, 4, anchor="n"),
        Event("scalar", 1, 8, "x", plain=True),
        Event("scalar", 1, 11, "é"),
        Event("alias", 1, 16, anchor="n"),
        Event("end"),
        Event("end"),
    ]
    assert list(pure_events(text, "f.yaml")) == list(fast_events(text))


def test_an_empty_value_stands_behind_its_key() -> None:
    assert parse_yaml(b"a:\nb: 1\n", "f.yaml").where(("a",)) == "f.yaml:1:3"


@pytest.mark.parametrize(
    "text",
    [
        "a: x\x85b: y\n",
        "a: 'x\u2028  y'\n",
        "a:\n  - x\u2029  - y\n",
        "a: [x,\n\ty]\n",
        "a: x\t# y\n",
        "a: x\ufeff\n",
        "%YAML 1.1\n---\na: x\n",
        "%TAG !e! x\n---\na: x\n",
        "a: &b:c 1\n",
        "a: [&b? 1, *b?]\n",
        "a: &b.c 1\nd: *b.c\n",
        "a: |#\n  x\n",
        "a: >-\n\n  x\n",
        "a: | # y\n  x\n",
        "a: |\r\n \r\n  x\r\n",
        "a: [? : x\n    , y]\n",
        "? a\n: b\n",
        "a: !!str x\n",
        "a: ! x\n",
        "!x a: b\n",
        "x\n",
        "[x]\n",
        "|\na: b\n",
        "a: [x\n",
        "a: b: c\n",
        "a: \x07\n",
        'a: "\\UFFFFFFFF"\n',
        "a: \x00",
    ],
)
def test_what_libyaml_may_read_differently_is_left_to_the_other(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Undecided):
        list(fast_events(text))
    both = outcome(text)
    monkeypatch.setattr(yaml, "__with_libyaml__", False)
    assert outcome(text) == both


def test_without_libyaml_the_other_reads_all(monkeypatch: pytest.MonkeyPatch) -> None:
    with_it = outcome(RICH)
    monkeypatch.setattr(yaml, "__with_libyaml__", False)
    with pytest.raises(Undecided):
        list(fast_events(RICH))
    assert outcome(RICH) == with_it
    assert with_it[0] is not None


def test_what_people_write_is_never_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(text: str, name: str) -> Iterator[Event]:
        raise AssertionError(name)

    monkeypatch.setattr(yamlfile, "pure_events", never)
    for path in FILES:
        assert parse_yaml(path.read_bytes(), path.name).value


def outcome(text: str) -> tuple[object, str | None]:
    """Return the value of a text, with the spelling of numbers, or else the message."""
    try:
        return repr(parse_yaml(text.encode(), "f.yaml").value), None
    except UsageError as error:
        return None, str(error)


PIECES = (
    *("a", "b", "1", "é", "😀", "\u00a0", "key", '"q"', "'s'", "a:b", "http://x", "-1", "=", "~", "@", "`", "."),
    *(":", ": ", "-", "- ", "? ", "&a ", "&b ", "*a", "<<: ", "[", "]", "{", "}", ",", ", ", "!", "!t ", "#", " # c"),
    *("|", ">", "|2", ">-", "|+", "'", '"', "\\", "\\n", "\\x41", "\\/", "\\u00e9", " ", "  ", "\t", "%"),
    *("\n", "\n\n", "\n  ", "\n    ", "\n- ", "\na: ", "\nb: ", "\n  c: ", "\r", "\r\n", "---\n", "\n---", "...\n"),
    *("\x85", "\u2028", "\u2029", "\ufeff", "\x07", "|#", "> # c\n \n", "%YAML 1.2\n"),
)
BEGINNINGS = ("x: ", "x:\n  ", "x: [", "x: {", 'x: "', "x: '", "x: |\n ", "a:\n- ", "")
TEXTS = st.tuples(
    st.sampled_from(BEGINNINGS),
    st.lists(st.sampled_from(PIECES), max_size=9).map("".join),
    st.sampled_from(("", "\n", "]", "}", '"', "'")),
).map("".join)


@settings(max_examples=600)
@given(TEXTS)
def test_libyaml_lets_nothing_through_and_changes_nothing(text: str) -> None:
    try:
        fast = comparable(fast_events(text))
    except Undecided:
        return
    assert fast == comparable(pure_events(text, "f.yaml"))


WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
SCALARS = st.one_of(WORDS, st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False))
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4), max_leaves=12
)


@settings(max_examples=80)
@given(st.dictionaries(WORDS, TREES, min_size=1, max_size=4), st.sampled_from([True, False, None]))
def test_whatever_is_written_as_yaml_is_read_alike(value: dict[str, object], flow: bool | None) -> None:
    text = yaml.safe_dump(value, default_flow_style=flow, allow_unicode=True, width=30)
    try:
        fast = comparable(fast_events(text))
    except Undecided:
        fast = comparable(pure_events(text, "f.yaml"))
    assert fast == comparable(pure_events(text, "f.yaml"))


@pytest.mark.parametrize(
    "piece", ["> #", ">-1", "| ", "&a", "*", "- ", "-? x", " ", "\n", "\r\n", "? x", "{ ", "a: b\n", "&a-", ">\n x\n"]
)
def test_whether_libyaml_may_read_a_text_is_decided_at_once(piece: str) -> None:
    begin = time.process_time()
    _UNUSUAL.search(piece * (MAX_BYTES // len(piece)))
    assert time.process_time() - begin < 2


def test_a_reader_that_stops_early_gets_no_more_than_it_asked_for() -> None:
    events = fast_events("a: " + "[" * 1_000_000)
    assert [event.kind for event in itertools.islice(events, 5)] == [
        "document",
        "mapping",
        "scalar",
        "sequence",
        "sequence",
    ]
