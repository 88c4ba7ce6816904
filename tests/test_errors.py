import pytest

from edgekiln.errors import SEVERITY, EdgekilnError, ExitCode, nearest, worst


def test_worst_of_several_follows_the_documented_order():
    order = [ExitCode.BUG, ExitCode.STEP_FAILED, ExitCode.ENVIRONMENT, ExitCode.UNSUPPORTED, ExitCode.GATE_FAILED]
    for index, code in enumerate(order):
        assert worst([*reversed(order[index:]), ExitCode.PASSED]) is code


def test_no_outcome_counts_as_passed():
    assert worst([]) is ExitCode.PASSED


def test_every_exit_code_has_a_place_in_the_order():
    assert set(SEVERITY) == set(ExitCode)


def test_every_error_class_has_a_documented_code():
    def leaves(kind):
        yield kind
        for child in kind.__subclasses__():
            yield from leaves(child)

    documented = {ExitCode.USAGE, ExitCode.UNSUPPORTED, ExitCode.STEP_FAILED, ExitCode.ENVIRONMENT, ExitCode.BUG}
    documented.add(ExitCode.INTERRUPTED)
    assert {kind.exit_code for kind in leaves(EdgekilnError)} <= documented


@pytest.mark.parametrize(
    ("value", "meant"), [("int5", "did you mean"), ("nf44", "did you mean 'nf4'"), ("zzz", "choose one of")]
)
def test_nearest_names_the_choices(value, meant):
    sentence = nearest(value, ["int4", "int8", "nf4"])
    assert sentence.startswith(meant)
    assert "choose one of int4, int8, nf4" in sentence
