"""YAML files that people edit: read within bounds, into plain data that remembers where everything stands.

The syntax is YAML 1.2, which `edgekiln.yamlevents` parses. Scalars follow the core schema of YAML 1.2 (10.3.2): `1e-4`
is a number, `off` is a text, and a number keeps its spelling, so that a text field can read `1.10` as it was written.
Duplicate keys, tags and recursive aliases are refused; size, depth and what aliases expand to are bounded.
"""

from __future__ import annotations

import hashlib
import re
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, NamedTuple, Self, TypeAlias, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from edgekiln.errors import UsageError, nearest
from edgekiln.yamlevents import Event, Undecided, fast_events, pure_events

#: A plan of ten thousand builds takes a third of it; parsing that much takes about a second.
MAX_BYTES: Final = 1 << 20
#: Keys, values and list items, those that aliases repeat counted each time.
MAX_NODES: Final = 250_000
MAX_DEPTH: Final = 32
#: Bases that an entry may have one above the other.
MAX_CHAIN: Final = 8
_MAX_ERRORS: Final = 20
_SHOWN: Final = 60

#: Where a value stands in the data: keys and list indices from the root.
Loc: TypeAlias = tuple[str | int, ...]


class YamlInt(int):
    """A whole number with its spelling."""

    text: str

    def __new__(cls, value: int, text: str) -> Self:
        """Return `value` with its spelling."""
        number = super().__new__(cls, value)
        number.text = text
        return number


class YamlFloat(float):
    """A number with its spelling."""

    text: str

    def __new__(cls, value: float, text: str) -> Self:
        """Return `value` with its spelling."""
        number = super().__new__(cls, value)
        number.text = text
        return number


_CONSTANTS: Final[Mapping[str, bool | None]] = types.MappingProxyType(
    dict.fromkeys(("", "~", "null", "Null", "NULL"))
    | dict.fromkeys(("true", "True", "TRUE"), True)
    | dict.fromkeys(("false", "False", "FALSE"), False)
)
# Lengths are bounded because converting a long run of digits takes quadratic time.
_DECIMAL: Final = re.compile(r"[-+]?[0-9]{1,40}", re.ASCII)
_OTHER_BASE: Final = re.compile(r"0o[0-7]{1,40}|0x[0-9a-fA-F]{1,40}", re.ASCII)
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]{1,40}|[0-9]{1,40}(\.[0-9]{0,40})?)([eE][-+]?[0-9]{1,5})?", re.ASCII)
_SPECIAL: Final = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", re.ASCII)


def plain_scalar(text: str) -> str | int | float | bool | None:
    """Return what a plain (unquoted) scalar means by the core schema of YAML 1.2."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _DECIMAL.fullmatch(text):
        return YamlInt(int(text), text)
    if _OTHER_BASE.fullmatch(text):
        return YamlInt(int(text, 0), text)
    if _FLOAT.fullmatch(text):
        return YamlFloat(float(text), text)
    if _SPECIAL.fullmatch(text):
        return YamlFloat(float(text.replace(".", "")), text)
    return text


def source_text(value: object) -> object:
    """Return the spelling of a number that was read from YAML; anything else is returned as it is."""
    return value.text if isinstance(value, YamlInt | YamlFloat) else value


#: A text field: `1.10` without quotes is the text "1.10".
Text: TypeAlias = Annotated[str, BeforeValidator(source_text)]


class Strict(BaseModel):
    """Base of what is read from files: frozen, no unknown keys, no conversion between types."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=False, validate_default=False
    )


class Position(NamedTuple):
    """A place in a file; line and column count from 1, columns in characters."""

    line: int
    column: int


class _Node(NamedTuple):
    """A value with its place; `children` maps keys or indices to the place of the key and the value's node."""

    value: object
    position: Position
    children: Mapping[str | int, tuple[Position, _Node]]
    size: int = 1
    height: int = 1


@dataclass(frozen=True)
class Document:
    """A file that was read.

    Attributes:
        name: The file as the user named it; every message begins with it.
        sha256: Of its bytes, in hex.
        value: Its content as dict, tuple, str, int, float, bool and None.
    """

    name: str
    sha256: str
    value: object
    _root: _Node

    def position(self, loc: Loc, *, key: bool = False) -> Position:
        """Return the place of the value at `loc`, or of the nearest value around it that exists.

        Args:
            loc: Keys and indices from the root.
            key: Return the place of the last key instead of its value's.
        """
        node, place = self._root, self._root.position
        for step in loc:
            if step not in node.children:
                return node.position
            place, node = node.children[step]
        return place if key else node.position

    def at(self, loc: Loc) -> object:
        """Return the value at `loc`, which exists."""
        node = self._root
        for step in loc:
            _, node = node.children[step]
        return node.value

    def where(self, loc: Loc, *, key: bool = False) -> str:
        """Return `file:line:column` of what stands at `loc`, to begin an error with."""
        position = self.position(loc, key=key)
        return f"{self.name}:{position.line}:{position.column}"


class _Composer:
    """Turns the parser's events into nodes, counting what they cost."""

    def __init__(self, name: str, events: Iterator[Event]) -> None:
        self._name, self._events = name, events
        self._anchors: dict[str, _Node] = {}
        self._spent = 0

    def document(self) -> _Node:
        """Return the root of the one document."""
        root: _Node | None = None
        for event in self._events:
            if event.kind == "document":
                if root is not None:
                    raise self._error(event, "a second document begins here; keep one per file")
                root = self._node(next(self._events), depth=1)
        return root or _Node(None, Position(1, 1), {})

    def _error(self, event: Event, problem: str) -> UsageError:
        return UsageError(f"{self._name}:{event.line}:{event.column}: {problem}")

    def _spend(self, event: Event, count: int) -> None:
        self._spent += count
        if self._spent > MAX_NODES:
            raise self._error(event, f"the file has more than {MAX_NODES} values, aliases expanded; split it")

    def _node(self, event: Event, depth: int) -> _Node:
        if event.kind == "alias":
            node = self._anchors.get(event.anchor or "")
            if node is None:
                raise self._error(event, f"the alias *{event.anchor} has no finished anchor &{event.anchor} above it")
            self._spend(event, node.size)
            return self._shallow(event, node, depth)
        self._spend(event, 1)
        if event.tag is not None:
            raise self._error(event, f"the tag {_shown(event.tag)} has no meaning here; remove it")
        position = Position(event.line, event.column)
        if event.kind == "scalar":
            node = _Node(plain_scalar(event.text) if event.plain else event.text, position, {})
        elif event.kind == "sequence":
            node = self._sequence(position, depth)
        else:
            node = self._mapping(position, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return self._shallow(event, node, depth)

    def _shallow(self, event: Event, node: _Node, depth: int) -> _Node:
        if depth + node.height - 1 > MAX_DEPTH:
            raise self._error(event, f"values are nested more than {MAX_DEPTH} deep")
        return node

    def _sequence(self, position: Position, depth: int) -> _Node:
        items: dict[str | int, tuple[Position, _Node]] = {}
        for event in self._events:
            if event.kind == "end":
                break
            self._check_depth(event, depth)
            node = self._node(event, depth + 1)
            items[len(items)] = (node.position, node)
        return _branch(tuple(node.value for _, node in items.values()), position, items)

    def _mapping(self, position: Position, depth: int) -> _Node:
        own: dict[str | int, tuple[Position, _Node]] = {}
        merged: dict[str | int, tuple[Position, _Node]] = {}
        merge_seen = False
        for event in self._events:
            if event.kind == "end":
                break
            self._check_depth(event, depth)
            key = self._key(event)
            if key in own or (merge_seen and _is_merge(event)):
                first = f", first given in line {own[key][0].line}" if key in own else ""
                raise self._error(event, f"duplicate key {_shown(key)}{first}; remove one")
            node = self._node(next(self._events), depth + 1)
            if _is_merge(event):
                merge_seen, merged = True, self._merged(event, node)
            else:
                own[key] = (Position(event.line, event.column), node)
        children = {**merged, **own}
        return _branch({key: node.value for key, (_, node) in children.items()}, position, children)

    def _check_depth(self, event: Event, depth: int) -> None:
        if depth >= MAX_DEPTH:
            raise self._error(event, f"values are nested more than {MAX_DEPTH} deep")

    def _key(self, event: Event) -> str:
        if event.kind != "scalar" or event.tag is not None:
            raise self._error(event, "a key must be a plain text")
        self._spend(event, 1)
        return event.text

    def _merged(self, event: Event, node: _Node) -> dict[str | int, tuple[Position, _Node]]:
        """Return what `<<:` brings in; of several mappings the earlier wins."""
        bases = [node] if isinstance(node.value, dict) else [child for _, child in node.children.values()]
        if not bases or not all(isinstance(base.value, dict) for base in bases):
            raise self._error(event, "'<<' takes a mapping or a list of mappings, like '<<: *base'")
        merged: dict[str | int, tuple[Position, _Node]] = {}
        for base in reversed(bases):
            merged |= base.children
        return merged


def _is_merge(event: Event) -> bool:
    return event.plain and event.text == "<<"


def _branch(value: object, position: Position, children: Mapping[str | int, tuple[Position, _Node]]) -> _Node:
    nodes = [node for _, node in children.values()]
    size = 1 + sum(node.size for node in nodes)
    return _Node(value, position, children, size, 1 + max((node.height for node in nodes), default=0))


_EXTENDS: Final = "extends"


class _Extender:
    """Puts each entry of some sections of a document over the entry that it extends."""

    def __init__(self, document: Document, sections: Mapping[str, _Node]) -> None:
        self._document = document
        self._entries: dict[str, tuple[Loc, _Node]] = {}
        self._done: dict[str, tuple[_Node, int]] = {}
        self._spent = 0
        for section, node in sections.items():
            for key, (_, entry) in node.children.items():
                name = str(key)
                if name in self._entries:
                    where = document.where((section, name), key=True)
                    other = self._entries[name][0][0]
                    raise UsageError(f"{where}: {name!r} is in {other!r} too, so 'extends' cannot tell them apart")
                self._entries[name] = (section, name), entry

    def entry(self, name: str) -> _Node:
        """Return the entry of a name over all that it extends."""
        return self._entry(name, ())[0]

    def _entry(self, name: str, above: tuple[str, ...]) -> tuple[_Node, int]:
        """Return an entry and how many are below it; `above` are those that extend it."""
        if name in self._done:
            return self._done[name]
        loc, own = self._entries[name]
        if _EXTENDS not in own.children:
            return own, 0
        base, below = self._entry(self._base(loc, own, (*above, name)), (*above, name))
        result = _over(base, own)
        self._spent += result.size
        where = self._document.where((*loc, _EXTENDS))
        if self._spent > MAX_NODES:
            raise UsageError(f"{where}: the file has more than {MAX_NODES} values, 'extends' expanded; split it")
        if below >= MAX_CHAIN:
            raise self._too_long(where)
        self._done[name] = result, below + 1
        return self._done[name]

    def _base(self, loc: Loc, own: _Node, chain: tuple[str, ...]) -> str:
        """Return the name that an entry extends, which is sound."""
        name, where = own.children[_EXTENDS][1].value, self._document.where((*loc, _EXTENDS))
        if not isinstance(name, str):
            raise UsageError(f"{where}: 'extends' takes the name of an entry, but is {_shown(name)}")
        if name not in self._entries:
            choices = nearest(name[:_SHOWN], set(self._entries) - {chain[-1]})
            raise UsageError(f"{where}: 'extends' names {_shown(name)}, which is not here; {choices}")
        if name in chain:
            circle = " → ".join((*chain[chain.index(name) :], name))
            raise UsageError(f"{where}: 'extends' goes round in a circle ({circle}); remove one of them")
        if len(chain) > MAX_CHAIN:
            raise self._too_long(where)
        return name

    def _too_long(self, where: str) -> UsageError:
        return UsageError(f"{where}: more than {MAX_CHAIN} entries extend one another; join some of them")


def _over(base: _Node, own: _Node) -> _Node:
    """Return `own` over `base`: mappings key by key, anything else as a whole; each value keeps its place."""
    if not isinstance(base.value, dict) or not isinstance(own.value, dict):
        return own
    children = dict(base.children)
    for key, (place, node) in own.children.items():
        children[key] = (place, _over(children[key][1], node) if key in children else node)
    return _branch({key: node.value for key, (_, node) in children.items()}, own.position, children)


def extended(document: Document, *sections: str) -> Document:
    """Return a document whose entries are merged with what they extend.

    An entry, a mapping below one of the top-level keys `sections`, may say `extends: NAME`, the name of another entry
    of any of them. It then has all that the other has; what it says itself holds, mappings key by key, lists and
    scalars as a whole. Every value keeps the place where it was written.

    Raises:
        UsageError: A name is unknown or stands in two sections, or a chain is a circle or too long.
    """
    root = document._root
    found = {key: root.children[key][1] for key in sections if key in root.children}
    found = {key: node for key, node in found.items() if isinstance(node.value, dict)}
    if not found:
        return document
    extender = _Extender(document, found)
    children = dict(root.children)
    for section, node in found.items():
        entries = {key: (place, extender.entry(str(key))) for key, (place, _) in node.children.items()}
        merged = _branch({key: child.value for key, (_, child) in entries.items()}, node.position, entries)
        children[section] = (root.children[section][0], merged)
    new = _branch({key: node.value for key, (_, node) in children.items()}, root.position, children)
    return Document(document.name, document.sha256, new.value, new)


def _read_bounded(path: Path) -> bytes:
    try:
        if not path.is_file():
            what = "is no regular file" if path.exists() else "does not exist"
            raise UsageError(f"{path} {what}; name a YAML file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise UsageError(f"{path} has more than {MAX_BYTES} bytes; split it into smaller files")
    return data


def read_yaml(path: Path) -> Document:
    """Read a YAML file.

    Raises:
        UsageError: It cannot be read, is too large, is not UTF-8 or not YAML, or repeats a key; the message
            names file, line and column.
    """
    return parse_yaml(_read_bounded(path), str(path))


def parse_yaml(data: bytes, name: str) -> Document:
    """Return the document in `data`, UTF-8 with or without a byte order mark. See `read_yaml`.

    Args:
        data: Content of a file.
        name: Its name for messages.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        raise UsageError(f"{name}:{line}: byte 0x{byte:02x} is not UTF-8; save the file as UTF-8") from None
    try:
        root = _Composer(name, fast_events(text)).document()
    except Undecided:
        root = _Composer(name, pure_events(text, name)).document()
    return Document(name, hashlib.sha256(data).hexdigest(), root.value, root)


def _shown(value: object) -> str:
    """Return a value as a message shows it, never longer than a line."""
    match value:
        case None:
            return "empty"
        case bool():
            return str(value).lower()
        case dict():
            return "a mapping"
        case tuple() | list():
            return "a list"
        case YamlInt() | YamlFloat():
            return value.text
        case _:
            text = repr(value)
            return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


_KINDS: Final[Mapping[str, str]] = types.MappingProxyType(
    {
        "bool_type": "true or false",
        "dict_type": "a mapping",
        "float_type": "a number",
        "finite_number": "a finite number",
        "int_type": "a whole number",
        "mapping_type": "a mapping",
        "model_type": "a mapping",
        "string_type": "a text; put it in quotes",
        "tuple_type": "a list",
    }
)
_BOUNDS: Final[Mapping[str, str]] = types.MappingProxyType(
    {
        "greater_than": "more than {gt}",
        "greater_than_equal": "at least {ge}",
        "less_than": "less than {lt}",
        "less_than_equal": "at most {le}",
        "string_pattern_mismatch": "a text that matches {pattern}",
        "string_too_short": "a text of at least {min_length} characters",
        "string_too_long": "a text of at most {max_length} characters",
        "too_short": "a list of at least {min_length} items",
        "too_long": "a list of at most {max_length} items",
    }
)


def _models(annotation: object) -> Iterator[object]:
    """Yield the members of a union, without their `Annotated` wrapping."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        yield from _models(typing.get_args(annotation)[0])
    elif origin in {typing.Union, types.UnionType}:
        for member in typing.get_args(annotation):
            yield from _models(member)
    else:
        yield annotation


def _keys_at(annotation: object, loc: Loc) -> list[str]:
    """Return the keys that a model accepts at `loc`."""
    for candidate in _models(annotation):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            fields = {field.alias or name: field.annotation for name, field in candidate.model_fields.items()}
            if not loc:
                return sorted(fields)
            if loc[0] in fields:
                return _keys_at(fields[str(loc[0])], loc[1:])
        elif loc and (arguments := typing.get_args(candidate)):
            inner = arguments[1] if isinstance(loc[0], str) else arguments[0]
            return _keys_at(inner, loc[1:])
    return []


def _sentence(details: ErrorDetails, model: type[BaseModel], loc: Loc, *, is_key: bool) -> str:
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    name = "key" if is_key else next((step for step in reversed(loc) if isinstance(step, str)), "the file")
    if kind == "extra_forbidden":
        key = str(loc[-1])[:_SHOWN]
        return f"unknown key {key!r}; {nearest(key, _keys_at(model, loc[:-1]))}"
    if kind == "missing":
        return f"the key {loc[-1]!r} is missing; add it"
    if kind in {"literal_error", "enum"}:
        choices = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        return f"unknown {name} {_shown(value)}; {nearest(str(value)[:_SHOWN], choices)}"
    if kind in {"value_error", "assertion_error"}:
        return str(context.get("error", details["msg"]))
    if not loc and value is None:
        return "the file is empty"
    wanted = _KINDS.get(kind) or (_BOUNDS[kind].format(**context) if kind in _BOUNDS else None)
    return f"{name} must be {wanted}, but is {_shown(value)}" if wanted else f"{name}: {details['msg']}"


def explain(
    error: ValidationError,
    model: type[BaseModel],
    where: Callable[[Loc, bool], str],
    *,
    without: Collection[str] = (),
) -> str:
    """Return one line per problem: its place, what is wrong, the choices and the fix.

    Args:
        error: What pydantic found.
        model: What was validated against; it knows the accepted keys.
        where: Names the place of a value, or of its key if the second argument is true.
        without: Kinds of problems, as pydantic names them, that are none.
    """
    lines = []
    for details in error.errors(include_url=False):
        if details["type"] in without:
            continue
        is_key = details["loc"][-1:] == ("[key]",)
        loc = details["loc"][:-1] if is_key else details["loc"]
        place = where(loc, is_key or details["type"] == "extra_forbidden")
        lines.append(f"{place}: {_sentence(details, model, loc, is_key=is_key)}")
    more = [f"… and {len(lines) - _MAX_ERRORS} more"] if len(lines) > _MAX_ERRORS else []
    return "\n".join(lines[:_MAX_ERRORS] + more)


_Model = TypeVar("_Model", bound=BaseModel)


def validate(document: Document, model: type[_Model]) -> _Model:
    """Return the content of a document as a value of `model`.

    Raises:
        UsageError: It does not fit; one line per problem, each beginning with file, line and column.
    """
    try:
        return model.model_validate(document.value)
    except ValidationError as error:
        message = explain(error, model, lambda loc, key: document.where(loc, key=key))
        raise UsageError(message) from None


def check_part(document: Document, loc: Loc, model: type[BaseModel]) -> None:
    """Refuse a mapping that could not be part of a value of `model`; required keys may be missing.

    Raises:
        UsageError: A key or value does not fit; one line per problem, each beginning with file, line and column.
    """
    try:
        model.model_validate(document.at(loc))
    except ValidationError as error:
        message = explain(error, model, lambda inner, key: document.where((*loc, *inner), key=key), without={"missing"})
        if message:
            raise UsageError(message) from None


_Value = TypeVar("_Value")


def parsed_by(parse: Callable[[str], _Value], what: str) -> Callable[[object], object]:
    """Return a pydantic validator that reads a text with `parse`, and turns its UsageError into a located one.

    Args:
        parse: Reads a text.
        what: What is expected, for the message about a value that is no text: `a size like '4 GiB'`.
    """

    def convert(value: object) -> object:
        text = source_text(value)
        if not isinstance(text, str):
            raise ValueError(f"expected {what}, but found {_shown(value)}")  # noqa: TRY004 - pydantic locates these
        try:
            return parse(text)
        except UsageError as error:
            raise ValueError(str(error)) from None

    return convert
