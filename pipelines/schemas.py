"""JSON Schemas of the files that users edit: editors complete and explain with them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from pydantic import BaseModel

from edgekiln.errors import UsageError, nearest
from edgekiln.pipelines.spec import Pipeline
from edgekiln.pipelines.targets import TargetsSpec

FILE_MODELS: Final[Mapping[str, type[BaseModel]]] = MappingProxyType({"pipeline": Pipeline, "targets": TargetsSpec})


def file_schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of `pipeline` or `targets`, generated from what reads the file.

    Raises:
        UsageError: There is no such file kind.
    """
    if name not in FILE_MODELS:
        raise UsageError(f"unknown schema {name!r}; {nearest(name, FILE_MODELS)}")
    schema = FILE_MODELS[name].model_json_schema(by_alias=True)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:edgekiln:{name}:1",
        **schema,
    }
