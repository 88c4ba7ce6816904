"""A plan as a matrix of CI jobs: one for each build.

A build that cannot be made is a job too, which ends with exit code 3 as `edgekiln build` would; where the pipeline
allows it (`allow_unsupported`) there would be nothing to do, and it is left out. Only the pipeline and the targets file
decide: what depends on a checkpoint's shapes, each job finds out itself.
"""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from edgekiln.errors import UnsupportedError, UsageError
from edgekiln.pipelines.plan import Build, Plan

#: The variable of a GitLab job that holds its build; not EDGEKILN_…, which are settings.
VARIABLE: Final = "BUILD_ID"
JOB: Final = "artifact"


@dataclass(frozen=True)
class Service:
    """A CI service.

    Attributes:
        title: Its name.
        most_jobs: That a matrix may have.
        source: Where that is said.
    """

    title: str
    most_jobs: int
    source: str


SERVICES: Final[Mapping[str, Service]] = MappingProxyType(
    {
        "github-matrix": Service(
            "GitHub Actions", 256, "https://docs.github.com/en/actions/reference/limits: jobs per matrix"
        ),
        "gitlab-matrix": Service(
            "GitLab CI", 200, "https://docs.gitlab.com/ci/yaml/#parallelmatrix: permutations of variables"
        ),
    }
)


def jobs(plan: Plan, reasons: Mapping[str, str], service: Service) -> list[Build]:
    """Return the builds that are jobs.

    Raises:
        UnsupportedError: There is none.
        UsageError: There are more than the service takes.
    """
    chosen = [build for build in plan.builds if build.id not in reasons or not build.allow_unsupported]
    name = plan.pipeline.document.name
    if not chosen:
        raise UnsupportedError(f"no build of {name} can be made, and {service.title} takes no empty matrix")
    if len(chosen) > service.most_jobs:
        raise UsageError(
            f"{name} has {len(chosen)} builds, but a matrix of {service.title} has at most {service.most_jobs} jobs; "
            "choose some of its targets with --target, one matrix each, or split the pipeline"
        )
    return chosen


def github_matrix(plan: Plan, reasons: Mapping[str, str]) -> str:
    """Return one line of JSON for `strategy.matrix: ${{ fromJSON(…) }}`."""
    entries = [
        {
            "id": build.id,
            "target": build.target.name,
            "format": build.format,
            "runtime": build.target.runtime.name,
            "precision": build.precision,
        }
        for build in jobs(plan, reasons, SERVICES["github-matrix"])
    ]
    return json.dumps({"include": entries}, separators=(",", ":"))


def gitlab_matrix(plan: Plan, reasons: Mapping[str, str], arguments: Sequence[str]) -> str:
    """Return the YAML of a child pipeline with one job for each build.

    Args:
        plan: The expanded pipeline.
        reasons: By build id, why it cannot be built.
        arguments: The pipeline and the options that select settings, as `edgekiln build` takes them.
    """
    from ruamel.yaml import YAML

    ids = [build.id for build in jobs(plan, reasons, SERVICES["gitlab-matrix"])]
    command = f'{shlex.join(["edgekiln", "build", *arguments])} --only "${VARIABLE}"'
    document = {JOB: {"parallel": {"matrix": [{VARIABLE: ids}]}, "script": [command]}}
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 1 << 16  # a command stays in one line
    yaml.indent(mapping=2, sequence=4, offset=2)
    text = io.StringIO()
    yaml.dump(document, text)
    return text.getvalue().rstrip("\n")
