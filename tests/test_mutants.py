"""Every mutant is caught by the check that names its cause, and what was not broken passes all of them."""

from __future__ import annotations

import pytest

from checks import CHECKS, errors, templates, tokenizer
from edgekiln.artifact import CHECKSUMS, sha256_file
from mutant_bases import BASES, base, checkpoint, copy_of
from mutants import MUTANTS, reseal

CASES = [
    pytest.param(mutant, container, id=f"{name}-{container}".replace(" ", "_"))
    for name, mutant in MUTANTS.items()
    for container in mutant.containers
]


@pytest.mark.parametrize(("mutant", "container"), CASES)
def test_a_mutant_is_caught_by_the_check_that_names_its_cause(tmp_path, mutant, container):
    directory = copy_of(mutant.base, container, tmp_path)
    mutant.breaks(directory, base(mutant.base, container, step=1))
    reseal(directory)
    reference = checkpoint(BASES[mutant.base][0])
    assert mutant.finding in errors(directory, reference, CHECKS[mutant.finding.partition("/")[0]])


@pytest.mark.parametrize("container", ["gguf", "onnx"])
@pytest.mark.parametrize("name", BASES)
def test_what_was_not_broken_passes_every_check(name, container):
    for check in dict.fromkeys(CHECKS.values()):
        if name == "int4" or check not in {templates, tokenizer}:  # which do not look at weights
            assert errors(base(name, container), checkpoint(BASES[name][0]), check) == set()


def test_manifest_and_checksums_vouch_for_a_mutant(tmp_path):
    directory = copy_of("int4", "onnx", tmp_path)
    MUTANTS["scale off by 2 %"].breaks(directory, directory)
    before = (directory / CHECKSUMS).read_text()
    reseal(directory)
    lines = dict(reversed(line.split("  ")) for line in (directory / CHECKSUMS).read_text().splitlines())
    assert lines != before
    assert all(sha256_file(directory / name) == digest for name, digest in lines.items())
    assert set(lines) == {path.name for path in directory.iterdir()} - {CHECKSUMS}
