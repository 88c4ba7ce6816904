"""CI matrices: what the services accept, and that each job is a build."""

from __future__ import annotations

import json
import re

import pytest
from ruamel.yaml import YAML

from edgekiln.errors import UnsupportedError, UsageError
from edgekiln.pipelines.matrix import SERVICES, VARIABLE, github_matrix, gitlab_matrix
from edgekiln.pipelines.plan import Plan
from edgekiln.pipelines.settings import OTHER_VARIABLES, environment_layer
from test_plan import plan

BUILDS = (
    "  - {target: pc, precisions: [int4, int8]}\n"
    "  - {target: phone, precision: nf4}\n"
    "  - {target: npu, precision: int4, allow_unsupported: true}\n"
)


def reasons(made: Plan) -> dict[str, str]:
    return {build.id: build.unsupported for build in made.builds if build.unsupported}


def many(count: int) -> Plan:
    return plan("".join(f"  - {{target: pc, precision: int8, group_size: {size}}}\n" for size in range(1, count + 1)))


def test_github_gets_one_line_of_json_with_a_job_for_each_build_that_does_something() -> None:
    made = plan(BUILDS)
    text = github_matrix(made, reasons(made))
    assert "\n" not in text
    entries = json.loads(text)["include"]
    # An unsupported build is a job that ends with 3, as the whole would, unless that is allowed.
    assert [entry["id"] for entry in entries] == ["pc-int4", "pc-int8", "phone-nf4"]
    assert entries[0] == {
        "id": "pc-int4",
        "target": "pc",
        "format": "onnx",
        "runtime": "onnxruntime-genai",
        "precision": "int4",
    }
    assert all(re.fullmatch(r"[a-z0-9._-]+", value) for entry in entries for value in entry.values())


def test_gitlab_gets_a_child_pipeline() -> None:
    made = plan(BUILDS)
    document = YAML(typ="safe").load(gitlab_matrix(made, reasons(made), ["my file.yaml", "--set", "corpus=$HOME/a b"]))
    (job,) = document.values()
    assert job["parallel"] == {"matrix": [{VARIABLE: ["pc-int4", "pc-int8", "phone-nf4"]}]}
    assert job["script"] == [
        f"edgekiln build 'my file.yaml' --set 'corpus=$HOME/a b' --only \"${VARIABLE}\"",
    ]


def test_the_variable_of_a_job_is_no_setting() -> None:
    assert environment_layer({VARIABLE: "pc-int4", **dict.fromkeys(OTHER_VARIABLES, "x")}).values == {}


@pytest.mark.parametrize("service", SERVICES)
def test_the_limit_of_a_service_is_kept(service: str) -> None:
    def write(made: Plan) -> str:
        return github_matrix(made, {}) if service == "github-matrix" else gitlab_matrix(made, {}, ["p.yaml"])

    limit = {"github-matrix": 256, "gitlab-matrix": 200}[service]
    assert write(many(limit)).count("pc-int8") == limit
    with pytest.raises(UsageError, match=rf"p\.yaml has {limit + 1} builds, .* at most {limit} jobs; .* --target"):
        write(many(limit + 1))


def test_a_matrix_without_jobs_is_an_error() -> None:
    made = plan("  - {target: npu, precision: int4, allow_unsupported: true}\n")
    with pytest.raises(UnsupportedError, match=r"no build of p\.yaml can be made"):
        github_matrix(made, reasons(made))
