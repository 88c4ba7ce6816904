"""JSON Schemas of the files that Edgekiln reads and writes: editors complete and explain with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from pydantic import BaseModel

from edgekiln.artifact import Manifest, write_atomically
from edgekiln.errors import UsageError, nearest
from edgekiln.pipelines.findings import DoctorReport
from edgekiln.pipelines.fit_document import FitDocument
from edgekiln.pipelines.inspection import Inspection
from edgekiln.pipelines.plan_document import PlanDocument
from edgekiln.pipelines.spec import Pipeline
from edgekiln.pipelines.targets import TargetsSpec
from edgekiln.validators.compare_reports import Comparison
from edgekiln.validators.report import Report

#: Files that users write, then files that Edgekiln writes.
FILE_MODELS: Final[Mapping[str, type[BaseModel]]] = MappingProxyType(
    {
        "pipeline": Pipeline,
        "targets": TargetsSpec,
        "report": Report,
        "comparison": Comparison,
        "manifest": Manifest,
        "plan": PlanDocument,
        "fit": FitDocument,
        "inspect": Inspection,
        "doctor": DoctorReport,
    }
)


def json_schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a kind of file, generated from the model that reads or writes it.

    Args:
        name: `pipeline`, `targets`, `report`, `comparison`, `manifest`, `plan`, `fit`, `inspect` or `doctor`.

    Raises:
        UsageError: There is no such kind.
    """
    if name not in FILE_MODELS:
        raise UsageError(f"unknown schema {name!r}; {nearest(name, FILE_MODELS)}")
    schema = FILE_MODELS[name].model_json_schema(by_alias=True)
    if name == "targets":
        _let_targets_extend(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"urn:edgekiln:{name}:1", **schema}


def schema_text(name: str) -> str:
    """Return the JSON Schema of a kind of file as a text that ends with a line end. See `json_schema`."""
    return json.dumps(json_schema(name), indent=2, ensure_ascii=False) + "\n"


def schema_file(name: str) -> str:
    """Return the file name of the JSON Schema of a kind of file."""
    return f"{name}.schema.json"


def write_schemas(directory: Path) -> tuple[Path, ...]:
    """Write every JSON Schema into a directory, which is made if need be, and return the files.

    Raises:
        MachineError: The directory cannot be written.
    """
    files = tuple(directory / schema_file(name) for name in FILE_MODELS)
    for name, path in zip(FILE_MODELS, files, strict=True):
        write_atomically(path, schema_text(name))
    return files


def _let_targets_extend(schema: dict[str, Any]) -> None:
    """Ask for the required keys only where a target extends nothing that may have them."""
    definitions, properties = schema["$defs"], schema["properties"]
    required = {
        "required": definitions["TargetSpec"].pop("required"),
        "properties": {
            "runtime": {"required": definitions["RuntimeSpec"].pop("required")},
            "precisions": {"additionalProperties": {"required": definitions["Meaning"].pop("required")}},
        },
    }
    target = {"$ref": "#/$defs/TargetSpec"}
    conditional = {**target, "if": {"not": {"required": ["extends"]}}, "then": required}
    for key, entry in (("templates", target), ("targets", conditional)):
        patterns = properties[key]["patternProperties"]
        properties[key] |= {"patternProperties": dict.fromkeys(patterns, entry), "additionalProperties": False}
