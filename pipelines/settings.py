"""Settings in layers: defaults, targets file, pipeline file, environment, `--set`, flags; later over earlier.

Every effective value remembers where it came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import BeforeValidator, Field, ValidationError, WithJsonSchema

from edgekiln.checkpoint import EMBEDDED
from edgekiln.errors import UsageError, nearest
from edgekiln.yamlfile import Document, Loc, Strict, Text, explain, parsed_by, plain_scalar

ENVIRONMENT_PREFIX: Final = "EDGEKILN_"
#: Variables with the prefix that are read elsewhere.
OTHER_VARIABLES: Final = ("EDGEKILN_CACHE", "EDGEKILN_DEBUG", "EDGEKILN_STATE")
DEFAULT: Final = "default"


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise UsageError(f"{text!r} is no path; name a file or folder")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UsageError(f"{text!r} needs a home directory, and there is none; write the path in full") from None


def _path_or_value(value: object) -> object:
    return value if isinstance(value, Path) else parsed_by(_path, "a path")(value)


def _lengths(value: object) -> object:
    """Return one length, several or none: 128, [128, 256], or the text `128, 256` of --set."""
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        return tuple(plain_scalar(part.strip()) for part in value.split(","))
    return tuple(value) if isinstance(value, list | tuple) else (value,)


_Length: TypeAlias = Annotated[int, Field(ge=1, le=131_072)]
Lengths: TypeAlias = Annotated[
    tuple[_Length, ...],
    BeforeValidator(_lengths),
    Field(min_length=1, max_length=16),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": 131_072},
                {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 131_072}, "minItems": 1},
            ]
        }
    ),
]
#: As `Lengths`, but there may be none.
Counts: TypeAlias = Annotated[
    tuple[_Length, ...],
    BeforeValidator(_lengths),
    Field(max_length=16),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": 131_072},
                {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 131_072}},
            ]
        }
    ),
]
Profile: TypeAlias = Literal["quick", "full"]
PathSetting: TypeAlias = Annotated[Path, BeforeValidator(_path_or_value), WithJsonSchema({"type": "string"})]


class Settings(Strict):
    """How builds are made and measured. Paths are relative to the folder that edgekiln runs in."""

    checkpoint: Text = Field(
        default=EMBEDDED,
        min_length=1,
        max_length=4096,
        description="A model directory, a Hub id like org/name@revision, or tiny-qwen3, the embedded checkpoint.",
        examples=["tiny-qwen3", "./my-fine-tune", "Qwen/Qwen3-0.6B"],
    )
    out: PathSetting = Field(
        default=Path("artifacts"), description="Folder for artifacts and reports.", examples=["./artifacts"]
    )
    targets: PathSetting | None = Field(
        default=None,
        description="Targets file; without it ./targets.yaml if there is one, else the shipped catalogue.",
        examples=["devices.yaml"],
    )
    offline: bool = Field(default=False, description="Take Hub checkpoints from the local cache only.", examples=[True])
    threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Threads of the runtimes; without it what the target says, else the machine's physical cores.",
        examples=[4],
    )
    profile: Profile = Field(
        default="full",
        description="quick: less text, every check on a sample, speed without a baseline, under a minute for a model "
        "of 0.5 B; full: everything. Settings of your own go over those of a profile.",
        examples=["quick"],
    )
    window: int = Field(
        default=256, ge=16, le=131_072, description="Tokens per window of the parity corpus.", examples=[512]
    )
    windows: int = Field(default=8, ge=1, le=100_000, description="Windows scored at most.", examples=[8])
    repeats: int = Field(
        default=3,
        ge=3,
        le=1000,
        description="Rounds of latency measurements, each in fresh processes; the median counts.",
        examples=[5],
    )
    max_repeats: int = Field(
        default=5,
        ge=3,
        le=1000,
        description="Rounds at most: there are more than 'repeats' while speeds scatter by more than 'max_spread'.",
        examples=[9],
    )
    max_spread: float = Field(
        default=0.25,
        gt=0,
        le=10,
        description="Scatter of a speed (interquartile range over median) beyond which it counts as too noisy.",
        examples=[0.1],
    )
    warmups: int = Field(default=1, ge=0, le=100, description="Runs before measuring begins.", examples=[1])
    prefill_tokens: Lengths = Field(
        default=(128, 32, 256),
        description="Prompt lengths of the prefill measurement (pp); gates and time to first token use the first.",
        examples=[512, [128, 512]],
    )
    decode_tokens: Lengths = Field(
        default=(64, 16),
        description="Numbers of generated tokens of the decode measurement (tg); gates use the first.",
        examples=[128, [64, 256]],
    )
    greedy_tokens: int = Field(
        default=32, ge=1, le=131_072, description="Tokens decoded greedily and compared.", examples=[64]
    )
    depths: Counts = Field(
        default=(128, 384),
        description="Tokens in the cache at which decode speed is measured as well; '' for none.",
        examples=[[512, 4096], []],
    )
    long_context: int = Field(
        default=1024,
        ge=0,
        le=1_048_576,
        description="Tokens of one long window whose last positions are compared; 0 for none. What is longer than the "
        "artifact's own context is not measured.",
        examples=[4096],
    )
    decode_positions: int = Field(
        default=96,
        ge=0,
        le=131_072,
        description="Positions that are compared token by token as well, through the cache; 0 for none.",
        examples=[128],
    )
    step_timeout_seconds: float = Field(
        default=3600, gt=0, le=604_800, description="Time limit of one step; it is ended beyond it.", examples=[600]
    )
    corpus: PathSetting | None = Field(
        default=None,
        description="Text file to measure parity on; without it the built-in corpus.",
        examples=["corpus.txt"],
    )


KEYS: Final = tuple(Settings.model_fields)
#: What `profile: quick` puts in place of the defaults.
QUICK: Final[Mapping[str, object]] = MappingProxyType(
    {
        "window": 96,
        "windows": 4,
        "greedy_tokens": 8,
        "max_repeats": 3,
        "prefill_tokens": (32,),
        "decode_tokens": (16,),
        "depths": (),
        "long_context": 0,
        "decode_positions": 24,
    }
)


@dataclass(frozen=True)
class Layer:
    """Settings from one place.

    Attributes:
        values: Validated values by key.
        origins: Where each came from, as a user would look for it.
    """

    values: Mapping[str, object]
    origins: Mapping[str, str]


@dataclass(frozen=True)
class EffectiveSettings:
    """The settings that hold, and where each came from.

    Attributes:
        values: Every setting.
        origins: By key: `default`, `profile quick`, `file:line:column`, `EDGEKILN_…`, `--set` or the flag.
    """

    values: Settings
    origins: Mapping[str, str]


def _validated(raw: Mapping[str, object], origins: Mapping[str, str]) -> Layer:
    """Return a layer whose values fit the schema.

    Raises:
        UsageError: One does not; the message begins with its origin.
    """

    def where(loc: Loc, _key: bool) -> str:
        return origins[str(loc[0])]

    try:
        settings = Settings.model_validate(dict(raw))
    except ValidationError as error:
        raise UsageError(explain(error, Settings, where)) from None
    return Layer({key: getattr(settings, key) for key in settings.model_fields_set}, dict(origins))


def _read_text(key: str, text: str) -> object:
    """Return what a text from the environment or `--set` means for a setting; switches may be 1 or 0."""
    if Settings.model_fields[key].annotation is bool and text in {"0", "1"}:
        return text == "1"
    return plain_scalar(text)


def file_layer(document: Document, settings: Settings, loc: Loc = ("settings",)) -> Layer:
    """Return the settings that a file gives in the mapping at `loc`."""
    given = {key: getattr(settings, key) for key in KEYS if key in settings.model_fields_set}
    return Layer(given, {key: document.where((*loc, key), key=True) for key in given})


def environment_layer(environment: Mapping[str, str]) -> Layer:
    """Return the settings of `EDGEKILN_*` variables; an empty variable counts as unset.

    Raises:
        UsageError: A variable with the prefix is no setting, or its value does not fit.
    """
    known = {ENVIRONMENT_PREFIX + key.upper(): key for key in KEYS}
    raw: dict[str, object] = {}
    for variable in sorted(environment):
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in OTHER_VARIABLES or not environment[variable]:
            continue
        if variable not in known:
            choices = nearest(variable, (*known, *OTHER_VARIABLES))
            raise UsageError(f"the environment variable {variable} is no setting; {choices}")
        raw[known[variable]] = _read_text(known[variable], environment[variable])
    return _validated(raw, {key: ENVIRONMENT_PREFIX + key.upper() for key in raw})


def assignments_layer(assignments: Iterable[str]) -> Layer:
    """Return the settings of `--set KEY=VALUE` options; of several for one key the last holds.

    Raises:
        UsageError: One is no assignment, names no setting, or its value does not fit.
    """
    raw: dict[str, object] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals:
            raise UsageError(f"--set {assignment!r} has no '='; write --set KEY=VALUE, like --set threads=4")
        if key not in KEYS:
            raise UsageError(f"--set {assignment!r}: unknown setting {key!r}; {nearest(key, KEYS)}")
        raw[key] = _read_text(key, text.strip())
    return _validated(raw, dict.fromkeys(raw, "--set"))


def flags_layer(flags: Mapping[str, object]) -> Layer:
    """Return the settings of command-line flags.

    Args:
        flags: Values by setting; None for a flag that was not given.

    Raises:
        UsageError: A value does not fit.
    """
    raw = {key: value for key, value in flags.items() if value is not None}
    return _validated(raw, {key: "--" + key.replace("_", "-") for key in raw})


def resolve_settings(*layers: Layer) -> EffectiveSettings:
    """Return the effective settings: the defaults, and over them `layers`, later over earlier."""
    values: dict[str, object] = {key: getattr(_DEFAULTS, key) for key in KEYS}
    origins = dict.fromkeys(KEYS, DEFAULT)
    for layer in layers:
        values |= layer.values
        origins |= layer.origins
    if values["profile"] == "quick":
        unset = [key for key in QUICK if origins[key] == DEFAULT]
        values |= {key: QUICK[key] for key in unset}
        origins |= dict.fromkeys(unset, "profile quick")
    return EffectiveSettings(Settings.model_construct(None, **values), MappingProxyType(origins))


_DEFAULTS: Final = Settings()
