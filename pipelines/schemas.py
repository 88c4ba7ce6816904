"""JSON Schemas of the files that Edgekiln reads and writes: editors complete and explain with them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from pydantic import BaseModel

from edgekiln.artifact import Manifest
from edgekiln.errors import UsageError, nearest
from edgekiln.pipelines.spec import Pipeline
from edgekiln.pipelines.targets import TargetsSpec
from edgekiln.validators.report import Report

#: Files that users write, then files that Edgekiln writes.
FILE_MODELS: Final[Mapping[str, type[BaseModel]]] = MappingProxyType(
    {"pipeline": Pipeline, "targets": TargetsSpec, "report": Report, "manifest": Manifest}
)


def json_schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a kind of file, generated from the model that reads or writes it.

    Args:
        name: `pipeline`, `targets`, `report` or `manifest`.

    Raises:
        UsageError: There is no such kind.
    """
    if name not in FILE_MODELS:
        raise UsageError(f"unknown schema {name!r}; {nearest(name, FILE_MODELS)}")
    schema = FILE_MODELS[name].model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"urn:edgekiln:{name}:1", **schema}
