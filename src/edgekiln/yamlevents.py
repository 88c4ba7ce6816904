"""What a YAML text consists of, event by event, with the place of each.

The syntax is YAML 1.2 as `ruamel.yaml` parses it. libyaml, by way of PyYAML, is some thirty times as fast and reads
nearly the same language; where the two differ, `ruamel.yaml` decides. So a text is read by libyaml unless it has
something that the two are known to read differently, and is read again by `ruamel.yaml` if libyaml meets an error or
something else out of the ordinary. No text is refused by libyaml, and all messages are about what `ruamel.yaml` found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from edgekiln.errors import UsageError

Kind: TypeAlias = Literal["document", "alias", "scalar", "sequence", "mapping", "end"]


class Event(NamedTuple):
    """One piece of a document.

    Attributes:
        kind: A document, sequence or mapping begins, an alias or a scalar stands here, or the innermost sequence or
            mapping ends.
        line: From 1; of an end, 0.
        column: From 1, in characters; of an end, 0.
        text: Of a scalar.
        plain: Whether a scalar stands without quotes and is no block.
        anchor: The name after `&`, or after `*` of an alias.
        tag: As it was written; None if there is none.
    """

    kind: Kind
    line: int = 0
    column: int = 0
    text: str = ""
    plain: bool = False
    anchor: str | None = None
    tag: str | None = None


class Undecided(Exception):  # noqa: N818 - nothing is wrong yet
    """libyaml may read this text differently; read it with `ruamel.yaml`."""


_END: Final = Event("end")
_KINDS: Final[dict[str, Kind]] = {
    "DocumentStartEvent": "document",
    "AliasEvent": "alias",
    "ScalarEvent": "scalar",
    "SequenceStartEvent": "sequence",
    "MappingStartEvent": "mapping",
    "SequenceEndEvent": "end",
    "MappingEndEvent": "end",
}
# What the two read differently: libyaml breaks lines at three characters more, takes tabs and byte order marks where
# YAML has none, ends names of anchors earlier, takes `|#` and blocks that begin with an empty line, and has its own
# ways with `?` in lists and with directives. No alternative looks at any part of a text twice.
_UNUSUAL: Final = re.compile(
    r"[\t\x85\u2028\u2029\ufeff]"
    r"|^%"
    r"|[&*][0-9A-Za-z_-]*[?:%@`]"
    r"|[|>][-+0-9]* *(?:#|(?>\r\n|\r|\n) *[\r\n])"
    r"|(?:^|[-\[{,:?]) *\?(?:\s|$)",
    re.MULTILINE,
)


def fast_events(text: str) -> Iterator[Event]:
    """Yield what libyaml finds.

    An empty value stands behind its key; `pure_events` has it anywhere before the next.

    Raises:
        Undecided: libyaml is not there, found an error, or may not find what `ruamel.yaml` finds.
    """
    import yaml

    if not yaml.__with_libyaml__ or _UNUSUAL.search(text):
        raise Undecided
    root = True
    try:
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            kind = _KINDS.get(type(event).__name__)
            if kind == "end":
                yield _END
            elif kind is not None:
                made = _event(kind, event, getattr(event, "tag", None))
                # Tags are refused, and so is a root that is no mapping; the other parser has the better marks for them.
                if made.tag is not None or (root and kind not in {"document", "mapping"}):
                    raise Undecided
                root = kind == "document"
                yield made
    except yaml.YAMLError:
        raise Undecided from None


def pure_events(text: str, name: str) -> Iterator[Event]:
    """Yield what `ruamel.yaml` finds.

    Args:
        text: A YAML text.
        name: Of its file, for messages.

    Raises:
        UsageError: It is not YAML; the message names file, line and column.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError
    from ruamel.yaml.reader import ReaderError

    try:
        for event in YAML(typ="safe", pure=True).parse(text):
            kind = _KINDS.get(type(event).__name__)
            if kind == "end":
                yield _END
            elif kind is not None:
                tag = str(getattr(event, "ctag", None) or "")
                yield _event(kind, event, None if tag in {"", "None"} else tag)
    except ReaderError as error:
        line, column = _line_and_column(text, error.position)
        raise UsageError(f"{name}:{line}:{column}: a control character is not allowed here; remove it") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise UsageError(f"{place}: not valid YAML: {_problem(error.problem or error.context or '')}") from None
    except YAMLError as error:
        raise UsageError(f"{name}: not valid YAML: {_problem(str(error))}") from None
    except (ValueError, OverflowError):  # the scanner turns the number of a \U escape into a character unchecked
        raise UsageError(f"{name}: not valid YAML: a \\U escape names no character; correct or remove it") from None


def _event(kind: Kind, event: Any, tag: str | None) -> Event:
    mark = event.start_mark
    line, column = mark.line + 1, mark.column + 1
    if kind == "document":
        return Event(kind, line, column)
    if kind == "scalar":
        return Event(kind, line, column, event.value, event.implicit[0], event.anchor, tag)
    return Event(kind, line, column, anchor=event.anchor, tag=tag)


def _line_and_column(text: str, offset: int) -> tuple[int, int]:
    before = text[:offset]
    return before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1


def _problem(problem: str) -> str:
    hint = "; indent with spaces, not tabs" if "'\\t'" in problem else ""
    return " ".join(problem.split()) + hint
