from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import TypeAdapter

from edgekiln.errors import UsageError
from edgekiln.pipelines.settings import (
    KEYS,
    QUICK,
    Settings,
    assignments_layer,
    environment_layer,
    file_layer,
    flags_layer,
    resolve_settings,
)
from edgekiln.yamlfile import Strict, parse_yaml, validate


class File(Strict):
    settings: Settings


def test_defaults_hold_where_nothing_is_said() -> None:
    effective = resolve_settings()
    assert effective.values == Settings()
    assert set(effective.origins) == set(KEYS)
    assert set(effective.origins.values()) == {"default"}
    assert effective.values.out == Path("artifacts")


def test_later_layers_hold_over_earlier_ones_and_each_value_knows_its_origin() -> None:
    document = parse_yaml(b"settings:\n  repeats: 5\n  windows: 2\n  window: 64\n  warmups: 0\n", "t.yaml")
    effective = resolve_settings(
        file_layer(document, validate(document, File).settings),
        environment_layer({"EDGEKILN_WINDOWS": "3", "EDGEKILN_WINDOW": "128", "EDGEKILN_THREADS": "2", "HOME": "/"}),
        assignments_layer(["window=256", "threads=3"]),
        flags_layer({"threads": 4, "offline": None, "step_timeout_seconds": 1.5}),
    )
    values, origins = effective.values, effective.origins
    assert (values.repeats, origins["repeats"]) == (5, "t.yaml:2:3")
    assert (values.warmups, origins["warmups"]) == (0, "t.yaml:5:3")
    assert (values.windows, origins["windows"]) == (3, "EDGEKILN_WINDOWS")
    assert (values.window, origins["window"]) == (256, "--set")
    assert (values.threads, origins["threads"]) == (4, "--threads")
    assert (values.step_timeout_seconds, origins["step_timeout_seconds"]) == (1.5, "--step-timeout-seconds")
    assert (values.offline, origins["offline"]) == (False, "default")


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("threads=4", "threads", 4),
        ("threads=null", "threads", None),
        ("offline=true", "offline", True),
        ("offline=1", "offline", True),
        ("offline=0", "offline", False),
        ("step_timeout_seconds=6e2", "step_timeout_seconds", 600.0),
        ("step_timeout_seconds=600", "step_timeout_seconds", 600.0),
        ("out=123", "out", Path("123")),
        ("out=a=b", "out", Path("a=b")),
        ("checkpoint=1.10", "checkpoint", "1.10"),
        ("corpus=my corpus.txt", "corpus", Path("my corpus.txt")),
    ],
)
def test_values_are_read_by_the_type_of_the_setting(text: str, key: str, value: object) -> None:
    read = assignments_layer([text]).values[key]
    assert read == value
    assert type(read) is type(value)


def test_the_last_of_several_assignments_holds() -> None:
    assert assignments_layer(["threads=2", "threads=3"]).values == {"threads": 3}


@pytest.mark.parametrize(
    ("assignment", "parts"),
    [
        ("thread=4", ["unknown setting 'thread'", "did you mean 'threads'?", "checkpoint"]),
        ("threads", ["has no '='", "--set KEY=VALUE"]),
        ("threads=0", ["--set: threads must be at least 1, but is 0"]),
        ("threads=four", ["threads must be a whole number, but is 'four'"]),
        ("threads=1.5", ["threads must be a whole number, but is 1.5"]),
        ("offline=yes", ["offline must be true or false, but is 'yes'"]),
        ("offline=2", ["offline must be true or false, but is 2"]),
        ("window=", ["window must be a whole number, but is empty"]),
        ("step_timeout_seconds=.inf", ["step_timeout_seconds must be a finite number"]),
        ("step_timeout_seconds=1e9", ["step_timeout_seconds must be at most 604800"]),
        ("out=a\0b", ["is no path"]),
        ("checkpoint=" + "x" * 5000, ["checkpoint must be a text of at most 4096 characters"]),
    ],
)
def test_a_wrong_assignment_is_one_sentence(assignment: str, parts: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        assignments_layer([assignment])
    for part in ["--set", *parts]:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_wrong_variables_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"EDGEKILN_THREAD is no setting; did you mean 'EDGEKILN_THREADS'\?"):
        environment_layer({"EDGEKILN_THREAD": "4"})
    with pytest.raises(UsageError, match="EDGEKILN_THREADS: threads must be a whole number, but is 'many'"):
        environment_layer({"EDGEKILN_THREADS": "many"})


def test_other_variables_are_left_alone() -> None:
    environment = {"EDGEKILN_CACHE": "/x", "EDGEKILN_DEBUG": "1", "EDGEKILN_THREADS": "", "THREADS": "3"}
    assert environment_layer(environment).values == {}


def test_a_wrong_flag_names_the_flag() -> None:
    with pytest.raises(UsageError, match="--prefill-tokens: prefill_tokens must be at least 1"):
        flags_layer({"prefill_tokens": 0})


def test_a_home_directory_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert assignments_layer(["out=~/artifacts"]).values["out"] == tmp_path / "artifacts"
    with pytest.raises(UsageError, match="home directory"):
        assignments_layer(["out=~nobody-of-this-name/x"])


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        resolve_settings().values.threads = 3  # type: ignore[misc]


def test_every_setting_has_a_description_and_examples_that_fit() -> None:
    for key, field in Settings.model_fields.items():
        assert field.description, key
        assert field.examples or key == "windows", key
        for example in field.examples or []:
            TypeAdapter(Settings).validate_python({key: example})


@pytest.mark.parametrize(("text", "lengths"), [("128", (128,)), ("128, 32,256", (128, 32, 256))])
def test_lengths_may_be_one_or_several(text: str, lengths: tuple[int, ...]) -> None:
    layer = assignments_layer([f"prefill_tokens={text}"])
    assert resolve_settings(layer).values.prefill_tokens == lengths


@pytest.mark.parametrize("text", ["", "0", "a", "128,", "1.5", "[128, 256]"])
def test_lengths_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--set"):
        assignments_layer([f"decode_tokens={text}"])


def test_a_profile_takes_the_place_of_defaults_and_of_nothing_else() -> None:
    quick = resolve_settings(assignments_layer(["windows=3"]), flags_layer({"profile": "quick"}))
    for key, value in QUICK.items():
        if key != "windows":
            assert (getattr(quick.values, key), quick.origins[key]) == (value, "profile quick")
    assert (quick.values.windows, quick.origins["windows"]) == (3, "--set")
    assert set(QUICK) <= set(KEYS)
    assert Settings(**QUICK).window == QUICK["window"]
    with pytest.raises(UsageError, match="quick"):
        assignments_layer(["profile=slow"])


@pytest.mark.parametrize(("text", "depths"), [("", ()), ("512", (512,)), ("128,4096", (128, 4096))])
def test_there_may_be_no_depths(text: str, depths: tuple[int, ...]) -> None:
    assert resolve_settings(assignments_layer([f"depths={text}"])).values.depths == depths
