"""The views of a report: one typed value, shown to programs, people and CI services."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from edgekiln.validators.junit import render_junit
from edgekiln.validators.markdown import render_markdown
from edgekiln.validators.report import Report
from edgekiln.validators.sarif import render_sarif


def _html(report: Report) -> str:
    from edgekiln.validators.html import render_html  # its style and pictures are read for this one view

    return render_html(report)


#: By file name, what renders it; all end with a line end and are the same for the same report.
VIEWS: Final[Mapping[str, Callable[[Report], str]]] = MappingProxyType(
    {
        "report.json": Report.to_json,
        "report.md": render_markdown,
        "report.html": _html,
        "report.junit.xml": render_junit,
        "report.sarif": render_sarif,
    }
)
