"""A checkpoint: a Hugging Face model directory, opened without reading its weights."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Final

from edgekiln.artifact import sha256_file
from edgekiln.errors import CheckpointError, EdgekilnError, UsageError, nearest
from edgekiln.families import FAMILIES, HEAD, READINGS, Family, expected_tensors
from edgekiln.hub import fetch_snapshot, parse_hub_id
from edgekiln.hub_files import Listener
from edgekiln.model_config import ModelConfig, parse_config, read_json
from edgekiln.safetensors import MAX_TENSORS, TensorInfo, TensorReader, read_index
from edgekiln.template_check import find_template
from edgekiln.text_check import check_text

#: The name under which the embedded checkpoint is asked for.
EMBEDDED: Final = "tiny-qwen3"
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
#: No path, no drive, no stream of NTFS, nothing that a file system folds into another name.
_SHARD_NAME: Final = re.compile(r"[\w.+=@ -]{1,200}\.safetensors")
_MAX_SHARDS: Final = 1000
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
        known_identity: Its identity, where someone has taken it before; None to take it when it is asked for.
    """

    source: str
    directory: Path
    revision: str | None
    config: ModelConfig
    family: Family
    tensors: Mapping[str, TensorInfo]
    known_identity: str | None = field(default=None, compare=False)
    _hashing: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def reader(self) -> TensorReader:
        """Return a reader of the weights; use it as a context manager."""
        return TensorReader()

    @property
    def weight_count(self) -> int:
        """Number of stored weights; a tied head counts once."""
        return sum(tensor.elements for tensor in self.tensors.values())

    @property
    def matrices(self) -> tuple[str, ...]:
        """Names of all tensors but norms and biases."""
        return tuple(name for name, tensor in self.tensors.items() if len(tensor.shape) > 1)

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The files that decide what is exported, sorted by name."""
        shards = {tensor.path for tensor in self.tensors.values()}
        names = ("config.json", "generation_config.json", *TOKENIZER_FILES)
        return tuple(sorted(shards | {p for n in names if (p := self.directory / n).exists()}))

    @property
    def identity(self) -> str:
        """The identity of its files; see `identity_of`."""
        if self.known_identity is not None:
            return self.known_identity
        with self._hashing:
            return self._identity

    @cached_property
    def _identity(self) -> str:
        return identity_of({path.name: sha256_file(path) for path in self.files})

    def begin_identity(self) -> None:
        """Begin to hash the files beside what else is done; `identity` waits for it, and tells what goes wrong."""

        def hash_files() -> None:
            with contextlib.suppress(EdgekilnError, OSError):
                _ = self.identity

        threading.Thread(target=hash_files, name="identity", daemon=True).start()

    @cached_property
    def chat_template(self) -> str | None:
        """The chat template: chat_template.jinja, or the one in tokenizer_config.json; None if there is none."""
        found = find_template(self.directory)
        return None if found is None else found[1]


def identity_of(files: Mapping[str, str]) -> str:
    """Return one sha256 over names and sha256 of a checkpoint's files: equal ones are equal wherever they lie."""
    listing = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(files.items()))
    return hashlib.sha256(listing.encode()).hexdigest()


def embedded_directory() -> Path:
    """Return the directory of the embedded checkpoint, which is package data."""
    return Path(__file__).parent / "data" / EMBEDDED


def _weight_map(directory: Path) -> dict[str, str] | None:
    """Return the shard of each tensor as the index lists it, None for a checkpoint in one file."""
    index_path = directory / _INDEX
    if not index_path.exists():
        if (directory / _SINGLE).exists():
            return None
        if any(directory.glob("*.bin")) or any(directory.glob("*.pt")):
            raise CheckpointError(
                f"{directory} has pickled weights only (.bin), which can run code when opened; convert them to "
                "safetensors with model.save_pretrained(..., safe_serialization=True)"
            )
        raise CheckpointError(f"{directory} has neither {_SINGLE} nor {_INDEX}")
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(n, str) for n in weight_map.values()):
        raise CheckpointError(f"{index_path} has no usable 'weight_map'")
    return weight_map


def _shard_paths(directory: Path, weight_map: dict[str, str] | None) -> list[Path]:
    """Return the shards of a checkpoint, all of them files in its directory and all such files there.

    A shard may be a symbolic link that leaves the directory: the Hub's cache consists of such links.
    """
    names = [_SINGLE] if weight_map is None else sorted(set(weight_map.values()))
    listed_by = "there is no index that lists it" if weight_map is None else f"{_INDEX} does not list it"
    if len(names) > _MAX_SHARDS:
        raise CheckpointError(f"{directory / _INDEX} lists {len(names)} shards, more than the {_MAX_SHARDS} allowed")
    for name in names:
        if not _SHARD_NAME.fullmatch(name):
            raise CheckpointError(
                f"{directory / _INDEX} points to {name!r}; a shard must be a .safetensors file beside it"
            )
        if not (directory / name).exists():
            raise CheckpointError(f"{directory / name} is missing, though {_INDEX} lists it; fetch it again")
    if extra := sorted({path.name for path in directory.glob("*.safetensors")} - set(names)):
        raise CheckpointError(
            f"{directory / extra[0]} is no part of the checkpoint: {listed_by}; merge it into the weights or remove it"
        )
    return [directory / name for name in names]


def _merge_shards(directory: Path, paths: list[Path], weight_map: dict[str, str] | None) -> dict[str, TensorInfo]:
    """Return the tensors of all shards; each must be where the index says."""
    tensors: dict[str, TensorInfo] = {}
    for path in paths:
        for name, info in read_index(path).items():
            if name in tensors:
                raise CheckpointError(f"{name} is in both {tensors[name].path.name} and {path.name}; remove one")
            tensors[name] = info
        if len(tensors) > MAX_TENSORS:
            raise CheckpointError(f"{directory} has more than the {MAX_TENSORS} tensors that Edgekiln reads")
    for name in () if weight_map is None else sorted(weight_map.keys() | tensors.keys()):
        listed, found = (weight_map or {}).get(name), tensors[name].path.name if name in tensors else None
        if listed != found:
            raise CheckpointError(
                f"{directory / _INDEX} has {name} in {listed or 'no shard'}, but it is in {found or 'none'}; "
                "fetch index and shards again, from one revision"
            )
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


def resolve(source: str, *, offline: bool = False, listener: Listener | None = None) -> tuple[Path, str | None]:
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
    return fetch_snapshot(source, offline=offline, listener=listener)


def open_checkpoint(
    source: str, *, offline: bool = False, with_text: bool = True, listener: Listener | None = None
) -> Checkpoint:
    """Open a checkpoint, checking all that can be checked without reading weights.

    Args:
        source: A local directory, `tiny-qwen3` (the embedded checkpoint), or a Hub id
            `[hf://]org/name[@revision]`.
        offline: Take Hub ids from the local cache only.
        with_text: Load the tokenizer and parse the chat template too, which takes half a second for a vocabulary
            of 150,000; False where another process has done so.
        listener: Is told how a fetch goes on.

    Raises:
        UsageError: There is no such checkpoint.
        CheckpointError: It is damaged or contradicts itself.
        UnsupportedError: Its family, or something it uses, is not supported.
        MachineError: It has to be fetched and cannot be.
    """
    directory, revision = resolve(source, offline=offline, listener=listener)
    return open_resolved(source, directory, revision, with_text=with_text)


def open_resolved(
    source: str, directory: Path, revision: str | None, *, with_text: bool = True, identity: str | None = None
) -> Checkpoint:
    """Open what `resolve` returned for `source`; see `open_checkpoint`. A known identity is not taken again."""
    config = parse_config(directory, READINGS)
    weight_map = _weight_map(directory)
    stored = _merge_shards(directory, _shard_paths(directory, weight_map), weight_map)
    tensors = _check_tensors(directory, config, stored)
    if with_text:
        check_text(directory, config.vocab_size)
    family = FAMILIES[config.model_type]
    return Checkpoint(source, directory, revision, config, family, MappingProxyType(tensors), identity)
