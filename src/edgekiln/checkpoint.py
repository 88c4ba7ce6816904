"""A checkpoint: a Hugging Face model directory, opened without reading its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Final

from edgekiln.errors import CheckpointError, UsageError, nearest
from edgekiln.families import FAMILIES, HEAD, Family, expected_tensors
from edgekiln.hub import fetch_snapshot, parse_hub_id
from edgekiln.model_config import ModelConfig, parse_config, read_json
from edgekiln.safetensors import TensorInfo, TensorReader, read_index

#: The name under which the embedded checkpoint is asked for.
EMBEDDED: Final = "tiny-qwen3"
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
#: Files that make up the tokenizer; exporters copy those that exist, byte for byte.
TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; its values never change and its weights are read lazily.

    Attributes:
        source: What the user asked for: a path, a Hub id, or `tiny-qwen3`.
        directory: Where its files are.
        revision: The Hub commit, or None for a local directory.
        config: Its hyper-parameters.
        family: What sets its family apart.
        tensors: Every tensor by name; names and shapes are those of the family.
    """

    source: str
    directory: Path
    revision: str | None
    config: ModelConfig
    family: Family
    tensors: Mapping[str, TensorInfo]

    def reader(self) -> TensorReader:
        """Return a reader of the weights; use it as a context manager."""
        return TensorReader()

    @property
    def weight_count(self) -> int:
        """Number of stored weights; a tied head counts once."""
        return sum(tensor.elements for tensor in self.tensors.values())

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The files that decide what is exported, sorted by name."""
        shards = {tensor.path for tensor in self.tensors.values()}
        names = ("config.json", "generation_config.json", *TOKENIZER_FILES)
        return tuple(sorted(shards | {p for n in names if (p := self.directory / n).exists()}))

    @cached_property
    def identity(self) -> str:
        """sha256 over the names and sha256 of `files`: equal checkpoints are equal wherever they lie."""
        digest = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                digest.update(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n".encode())
        return digest.hexdigest()

    @cached_property
    def chat_template(self) -> str | None:
        """The chat template: chat_template.jinja, or the one in tokenizer_config.json; None if there is none."""
        path = self.directory / "chat_template.jinja"
        if path.exists():
            try:
                return path.read_bytes().decode("utf-8")  # read_text would change its line ends
            except UnicodeDecodeError as error:
                raise CheckpointError(f"{path} is not UTF-8: {error}") from None
        config_path = self.directory / "tokenizer_config.json"
        template = read_json(config_path).get("chat_template") if config_path.exists() else None
        if isinstance(template, list):  # several named templates, as transformers 4 stored them
            named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
            template = named.get("default")
        return template if isinstance(template, str) else None


def embedded_directory() -> Path:
    """Return the directory of the embedded checkpoint, which is package data."""
    return Path(__file__).parent / "data" / EMBEDDED


def _shard_paths(directory: Path) -> list[Path]:
    """Return the shards of a checkpoint, all of them inside its directory."""
    index_path = directory / _INDEX
    if (directory / _SINGLE).exists() and not index_path.exists():
        return [directory / _SINGLE]
    if not index_path.exists():
        if any(directory.glob("*.bin")) or any(directory.glob("*.pt")):
            raise CheckpointError(
                f"{directory} has pickled weights only (.bin), which can run code when opened; convert them to "
                "safetensors with model.save_pretrained(..., safe_serialization=True)"
            )
        raise CheckpointError(f"{directory} has neither {_SINGLE} nor {_INDEX}")
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index_path} has no usable 'weight_map'")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index_path} points to {name!r}; a shard must be a .safetensors file beside it")
        if not (directory / name).exists():
            raise CheckpointError(f"{directory / name} is missing, though {_INDEX} lists it; fetch it again")
    return [directory / name for name in names]


def _merge_shards(paths: list[Path]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for path in paths:
        for name, info in read_index(path).items():
            if name in tensors:
                raise CheckpointError(f"{name} is in both {tensors[name].path.name} and {path.name}; remove one")
            tensors[name] = info
    return tensors


def _check_tensors(directory: Path, config: ModelConfig, tensors: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Return the tensors of the family, in its order; whatever is missing, extra or misshapen is an error."""
    expected = expected_tensors(config)
    if config.tie_word_embeddings:
        tensors = {name: info for name, info in tensors.items() if name != HEAD}  # some savers store the tied head too
    if missing := [name for name in expected if name not in tensors]:
        raise CheckpointError(f"{directory} lacks {len(missing)} tensors of a {config.model_type}, first {missing[0]}")
    if extra := sorted(set(tensors) - set(expected)):
        raise CheckpointError(
            f"{directory} has {len(extra)} tensors that a {config.model_type} has not, first {extra[0]}; "
            "merge adapters into the weights before exporting"
        )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise CheckpointError(
                f"{tensors[name].path}: {name} has shape {list(tensors[name].shape)}, "
                f"but config.json makes it {list(shape)}"
            )
    return {name: tensors[name] for name in expected}


def resolve(source: str, *, offline: bool = False) -> tuple[Path, str | None]:
    """Return (directory, commit) of a checkpoint: the embedded one, a local directory, else a Hub id.

    Raises:
        UsageError: `source` is neither.
        MachineError: It has to be fetched and cannot be.
    """
    path = Path(source)
    if not source.startswith("hf://"):
        if path.is_dir():
            return path, None
        if source == EMBEDDED:
            return embedded_directory(), None
    if parse_hub_id(source) is None or source.startswith((".", "/", "~")):
        hint = f"; {nearest(source, [EMBEDDED])}" if path.name == source else ""
        raise UsageError(f"{source!r} is no checkpoint: no such directory and no Hub id like org/name{hint}")
    return fetch_snapshot(source, offline=offline)


def open_checkpoint(source: str, *, offline: bool = False) -> Checkpoint:
    """Open a checkpoint, checking all that can be checked without reading weights.

    Args:
        source: A local directory, `tiny-qwen3` (the embedded checkpoint), or a Hub id
            `[hf://]org/name[@revision]`.
        offline: Take Hub ids from the local cache only.

    Raises:
        UsageError: There is no such checkpoint.
        CheckpointError: It is damaged or contradicts itself.
        UnsupportedError: Its family, or something it uses, is not supported.
        MachineError: It has to be fetched and cannot be.
    """
    directory, revision = resolve(source, offline=offline)
    config = parse_config(directory, FAMILIES)
    tensors = _check_tensors(directory, config, _merge_shards(_shard_paths(directory)))
    if not (directory / "tokenizer.json").exists():
        raise CheckpointError(f"{directory} has no tokenizer.json; save the fast tokenizer beside the weights")
    return Checkpoint(source, directory, revision, config, FAMILIES[config.model_type], MappingProxyType(tensors))
