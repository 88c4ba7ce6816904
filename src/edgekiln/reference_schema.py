"""A JSON Schema as a Markdown page: one section per kind of object, one row per key."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, TypeAlias

Schema: TypeAlias = Mapping[str, Any]

#: Kinds of objects that have a page of their own.
ELSEWHERE: Final = MappingProxyType({"Settings": "settings.md"})
_WORDS: Final = {"array": "list", "boolean": "true or false", "integer": "whole number", "object": "mapping"}
_BOUNDS: Final = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; what would end a cell or start HTML in it is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    parts = " ".join(text.split()).replace("|", "\\|").split("`")
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]  # the others are code, which shows it as it is
    return "`".join(parts)


def code(text: str) -> str:
    """Return a text as Markdown code, or a dash for an empty one."""
    return f"`{text}`" if text else "–"


def plain(value: object) -> str:
    """Return a value as one writes it in YAML on one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _references(schema: object) -> Iterator[str]:
    """Yield the names of the definitions that a schema refers to, in the order of its text."""
    if isinstance(schema, Mapping):
        if isinstance(target := schema.get("$ref"), str):
            yield target.rpartition("/")[2]
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            yield from _references(part)


def _ordered(schema: Schema) -> list[str]:
    """Return the definitions in the order in which a reader meets them, from the file's own keys down."""
    definitions = schema.get("$defs", {})
    waiting = list(_references(schema["properties"]))
    found: list[str] = []
    while waiting:
        name = waiting.pop(0)
        if name not in found:
            found.append(name)
            waiting += _references(definitions[name].get("properties", {}))
    return found


def type_text(schema: Schema) -> str:
    """Return in words what a value may be; a link where it has a section or a page of its own."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}]({ELSEWHERE.get(name, f'#{name.lower()}')})"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(type_text(part) for part in schema["anyOf"]))
    choices = schema.get("enum", [schema["const"]] if "const" in schema else [])
    if choices:
        return ", ".join(code(plain(choice)) for choice in choices)
    kind = schema.get("type", "anything")
    return " or ".join(_kind(schema, one) for one in kind) if isinstance(kind, list) else _kind(schema, kind)


def _kind(schema: Schema, kind: str) -> str:
    if kind == "array":
        return f"list of {_element(schema)}"
    if kind == "object":
        return _mapping(schema)
    bounds = ", ".join(f"{sign} {schema[key]:,}" for key, sign in _BOUNDS if key in schema)
    return f"{_WORDS.get(kind, kind)}{f' ({bounds})' if bounds else ''}"


def _element(schema: Schema) -> str:
    items = schema.get("items")
    return type_text(items) if isinstance(items, Mapping) else "anything"


def _mapping(schema: Schema) -> str:
    """Return what a mapping whose keys are names maps them to."""
    if "properties" in schema:
        return "mapping of " + ", ".join(map(code, schema["properties"]))
    patterns = list(schema.get("patternProperties", {}).values())
    values = patterns or [schema.get("additionalProperties")]
    if not isinstance(values[0], Mapping):
        return "mapping"
    value = {"$ref": next(_references(values[0]), "")} if "if" in values[0] else values[0]
    keys = schema.get("propertyNames", {}).get("enum")
    names = f"{', '.join(map(code, keys))}" if keys else "a name"
    return f"mapping from {names} to {type_text(value)}"


def default_text(key: str, schema: Schema, required: Iterable[str]) -> str:
    """Return what holds where a key is missing: a value, nothing, or that it must be there."""
    if key in required:
        return "required"
    default = schema.get("default")
    return code(plain(default)) if default not in (None, [], {}, "") else "–"


def _example(schema: Schema) -> str:
    return " · ".join(code(plain(example)) for example in schema.get("examples", ()))


def _meaning(schema: Schema, definitions: Schema) -> str:
    """Return the description of a key, else that of the kind of object that stands there."""
    if "description" in schema:
        return str(schema["description"])
    return next((definitions[name].get("description", "") for name in _references(schema)), "")


def _section(definition: Schema, columns: Sequence[str], definitions: Schema) -> str:
    """Return the description of one kind of object, and a table of its keys with some of the columns."""
    required = definition.get("required", ())
    rows = []
    for key, schema in definition["properties"].items():
        entry = {
            "key": code(key),
            "type": type_text(schema),
            "default": default_text(key, schema, required),
            "meaning": _meaning(schema, definitions),
            "example": _example(schema),
        }
        rows.append([entry[column] for column in columns])
    return f"{definition.get('description', '')}\n\n{table(columns, rows)}"


def sections(schema: Schema, columns: Sequence[str]) -> str:
    """Return a whole schema: the file's own keys, then each kind of object in them.

    Args:
        schema: A JSON Schema with definitions.
        columns: Some of key, type, default, meaning and example.
    """
    definitions = schema.get("$defs", {})
    named = {name: definitions[name] for name in _ordered(schema) if name not in ELSEWHERE}
    parts = [f"## {name}\n\n{_section(definition, columns, definitions)}" for name, definition in named.items()]
    return "\n\n".join([_section(schema, columns, definitions), *parts])
