import pytest

from edgekiln.steps import LocalStore, Step


def step(count, parameters=None, inputs=("a",), kind="export"):
    def run(directory):
        count.append(1)
        (directory / "result").write_text(str(len(count)))

    return Step(kind, inputs, parameters or {"x": 1}, run)


def test_an_equal_step_runs_once(tmp_path):
    count = []
    store = LocalStore(tmp_path)
    first, second = store.get(step(count)), store.get(step(count))
    assert first == second
    assert count == [1]


def test_the_key_covers_kind_inputs_and_parameters_but_not_their_order():
    base = step([], {"x": 1, "y": 2}).key
    assert step([], {"y": 2, "x": 1}).key == base
    others = [step([], {"x": 1}), step([], {"x": 1, "y": 2}, ("b",)), step([], {"x": 1, "y": 2}, kind="validate")]
    assert len({base, *(other.key for other in others)}) == 4


def test_a_failed_step_leaves_nothing_and_may_run_again(tmp_path):
    def fail(directory):
        (directory / "half").write_text("x")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        LocalStore(tmp_path).get(Step("export", (), {}, fail))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert (LocalStore(tmp_path).get(step([])) / "result").exists()
