"""What a store writes down about a result: one small JSON document, written last, so that the result is there if it is.

It lies where others may write to, so reading it is bounded and believes nothing.
"""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from edgekiln.engine.kept_files import Stamp
from edgekiln.engine.record import RECORD_SCHEMA, Record
from edgekiln.files import parse_json

#: A result of 20,000 files needs 5 MB and 300,000 values.
MAX_ENTRY_BYTES: Final = 16 << 20
_MAX_VALUES: Final = 1_000_000


class Entry(BaseModel):
    """What is written down about a result.

    Attributes:
        record: What it is and what it was made from.
        stamps: How its files looked when their content was last known, by path; empty where that tells nothing.
        kept: Its files were put beside it; otherwise only the record was.
    """

    record: Record
    stamps: dict[str, Stamp]
    kept: bool

    model_config = ConfigDict(frozen=True, strict=True)

    def to_bytes(self) -> bytes:
        """Return the document; `parse_entry` reads it back."""
        return self.model_dump_json().encode() + b"\n"


def parse_entry(raw: bytes, key: str) -> Entry | None:
    """Return what an entry says; None for one of another version of Edgekiln, which can still read it.

    Args:
        raw: The document.
        key: Under which it was found.

    Raises:
        ValueError: It is damaged, or another's.
    """
    if sum(raw.count(mark) for mark in (b",", b":", b"[", b"{")) > _MAX_VALUES:
        raise ValueError("it has too many values")
    try:
        entry = Entry.model_validate_json(raw)
    except ValidationError:
        if _is_of_another_version(raw):
            return None
        raise
    if entry.record.key != key or entry.record.ingredients.key != key:
        raise ValueError("its key is another's")
    return entry


def _is_of_another_version(raw: bytes) -> bool:
    match parse_json(raw, _MAX_VALUES):
        case {"record": {"schema_id": str(schema)}}:
            return schema != RECORD_SCHEMA and schema.startswith(RECORD_SCHEMA.partition("/")[0] + "/")
    return False
