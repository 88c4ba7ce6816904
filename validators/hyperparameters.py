"""Collects what differs between an artifact's hyper-parameters and the reference's."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Final

from edgekiln.validators.base import CheckResult, Finding, Severity
from edgekiln.validators.faults import finding, judged, shown

#: Float32 metadata cannot hold 1e-06 exactly.
_FLOAT_TOLERANCE: Final = 1e-5


class Comparison:
    """Compares values one by one; the first argument of each method is the id of the finding."""

    def __init__(self) -> None:
        self.compared = 0
        self.findings: list[Finding] = []

    def problem(self, cause: str, subject: str, detail: str, severity: Severity = "error") -> None:
        """Note that something is wrong."""
        self.findings.append(finding(cause, subject, detail, severity))

    def equal(self, cause: str, key: str, found: object, expected: object, *, required: bool = True) -> None:
        """Compare one value; a missing one (None) is a problem only if it is `required`."""
        if found is None:
            if required:
                self.problem(cause, key, f"{key} is missing, but must be {expected!r}")
            return
        self.compared += 1
        if not same(found, expected):
            self.problem(cause, key, f"{key} is {shown(found)}, but the reference has {expected!r}")

    def context(self, key: str, found: object, limit: int) -> None:
        """A shorter context is a target's choice; a longer one is not the model's."""
        self.compared += 1
        if type(found) is not int or not 0 < found <= limit:
            detail = f"{key} is {shown(found)}, but must be between 1 and the reference's {limit}"
            self.problem("metadata/context", key, detail)

    def eos(self, key: str, found: Collection[object], expected: tuple[int, ...]) -> None:
        """Of the tokens that end a generation the first ends a turn of a chat; the others end other texts."""
        if not expected:
            return
        self.compared += 1
        missing = [token for token in expected if not any(type(e) is int and e == token for e in found)]
        if not missing:
            return
        detail = f"{key} is {shown(list(found))}, but lacks {missing}, which end a text in the reference"
        self.problem("metadata/eos", key, detail, "error" if expected[0] in missing else "warning")

    def result(self, check: str) -> CheckResult:
        """Return the check's result."""
        return judged(check, self.findings, f"{self.compared} values agree with config.json")


def same(found: object, expected: object) -> bool:
    """Tell whether two values are equal; floats as nearly as float32 holds them, integers by type too."""
    if isinstance(expected, float) and isinstance(found, int | float) and not isinstance(found, bool):
        return math.isclose(found, expected, rel_tol=_FLOAT_TOLERANCE)
    return type(found) is type(expected) and found == expected
