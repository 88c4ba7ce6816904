"""JSON Schemas: generated, complete, kept in the repository, and in agreement with the readers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from edgekiln.errors import UsageError
from edgekiln.pipelines.schemas import FILE_MODELS, json_schema, schema_file, schema_text, write_schemas
from edgekiln.pipelines.shipped import shipped_pipelines
from edgekiln.pipelines.targets import parse_targets
from edgekiln.yamlfile import parse_yaml, read_yaml

ROOT = Path(__file__).parent.parent


def nodes(schema: object) -> list[dict[str, object]]:
    """Return every property of every object in a JSON Schema."""
    found: list[dict[str, object]] = []
    if isinstance(schema, dict):
        properties = schema.get("properties")
        if isinstance(properties, dict):
            found += list(properties.values())
        for key, value in schema.items():
            found += nodes(value) if key not in {"then", "examples"} else []
    elif isinstance(schema, list):
        for value in schema:
            found += nodes(value)
    return found


@pytest.mark.parametrize("name", FILE_MODELS)
def test_the_json_schemas_describe_and_exemplify_every_key(name: str) -> None:
    schema = json_schema(name)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    if name in {"pipeline", "targets"}:
        assert schema["additionalProperties"] is False
    properties = nodes(schema)
    assert len(properties) > 10
    for node in properties:
        assert node.get("description"), node
        assert node.get("examples"), node


def test_there_is_no_other_json_schema() -> None:
    with pytest.raises(UsageError, match="did you mean 'targets'"):
        json_schema("target")


#: Documents of one part of Edgekiln for another; their readers are in the same version.
OWN = {"task", "journal", "reference", "step", "runtime-support"}
#: What commands print as JSON without a model.
PRINTED = {"dry-run", "explain", "cache", "chat"}


def test_every_kind_of_document_is_published_or_known_not_to_be() -> None:
    folders = (
        ROOT / "src" / "edgekiln",
        *(ROOT / room for room in ("quantizers", "exporters", "validators", "pipelines")),
    )
    text = "".join(path.read_text(encoding="utf-8") for folder in folders for path in sorted(folder.rglob("*.py")))
    assert set(re.findall(r'"edgekiln\.([a-z-]+)/\d+"', text)) == {*FILE_MODELS, *OWN, *PRINTED}
    for name, model in FILE_MODELS.items():
        assert model.model_fields["schema_id"].annotation is not None
        (published,) = get_args(model.model_fields["schema_id"].annotation)
        assert published == f"edgekiln.{name}/1"


@pytest.mark.parametrize("name", FILE_MODELS)
def test_the_schemas_in_the_repository_are_what_is_generated(name: str) -> None:
    path = ROOT / "docs" / "schema" / schema_file(name)
    assert path.read_text(encoding="utf-8") == schema_text(name), "run edgekiln schema --all docs/schema"
    assert sorted(file.name for file in path.parent.iterdir()) == sorted(map(schema_file, FILE_MODELS))


def test_all_schemas_are_written_into_a_directory(tmp_path: Path) -> None:
    files = write_schemas(tmp_path / "new")
    assert sorted((tmp_path / "new").iterdir()) == sorted(files)
    assert [json.loads(path.read_text(encoding="utf-8")) for path in files] == [
        json_schema(name) for name in FILE_MODELS
    ]


SHIPPED = ["targets.yaml", *(f"pipelines/{name}.yaml" for name in shipped_pipelines())]


@pytest.mark.parametrize("name", SHIPPED)
def test_editors_find_the_schema_of_a_shipped_file_which_fits_it(name: str) -> None:
    import jsonschema

    first = (ROOT / name).read_text(encoding="utf-8").splitlines()[0]
    prefix = "# yaml-language-server: $schema="
    assert first.startswith(prefix)
    path = (ROOT / name).parent / first.removeprefix(prefix)
    schema = json.loads(path.resolve(strict=True).read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    value = plain(read_yaml(ROOT / name).value)
    jsonschema.Draft202012Validator(schema).validate(value)
    value["unknown"] = 1
    with pytest.raises(jsonschema.ValidationError, match="unknown"):
        jsonschema.Draft202012Validator(schema).validate(value)


def plain(value: object) -> Any:
    """Return YAML data with lists where tuples are: JSON Schema knows no tuples."""
    return json.loads(json.dumps(value))


@pytest.mark.parametrize(
    ("target", "fits"),
    [
        ("{description: x, format: gguf, runtime: {name: llama.cpp, version: '>=0'}}", True),
        ("{extends: base}", True),
        ("{extends: base, runtime: {version: '>=1'}, precisions: {int4: {group_size: 64}}}", True),
        ("{description: x, format: gguf}", False),
        ("{description: x, format: gguf, runtime: {name: llama.cpp}}", False),
        ("{extends: base, runtime: {versio: '>=1'}}", False),
        ("{extends: base, verified: never}", True),
        ("{extends: base, verified: always}", False),
        ("{extends: base, verified: {date: 2026-11-22, report: x}}", True),
        ("{extends: base, sources: {memory: {title: x}}}", True),
        ("{extends: base, sources: {memori: {title: x}}}", False),
    ],
)
def test_the_schema_of_targets_and_the_reader_agree(target: str, fits: bool) -> None:
    import jsonschema

    base = (
        "{description: b, format: onnx, runtime: {name: onnxruntime-genai, version: '>=0'}, "
        "precisions: {int4: {why: w}}}"
    )
    text = f"schema: edgekiln.targets/1\ntemplates:\n  base: {base}\ntargets:\n  it: {target}\n"
    document = parse_yaml(text.encode(), "t.yaml")
    assert jsonschema.Draft202012Validator(json_schema("targets")).is_valid(plain(document.value)) is fits
    if fits:
        assert parse_targets(document).get("it")
    else:
        with pytest.raises(UsageError, match=r"t\.yaml:5:"):
            parse_targets(document)


@pytest.mark.parametrize("name", ["report", "manifest", "plan"])
def test_the_files_that_edgekiln_writes_have_schemas_too(name: str) -> None:
    schema = json_schema(name)
    assert schema["properties"]["schema"]["const"] == f"edgekiln.{name}/1"
