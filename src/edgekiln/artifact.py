"""Artifact directories: immutable, complete when visible, with a manifest and checksums of every file."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgekiln.errors import MachineError, StepError, UsageError

MANIFEST: Final = "manifest.json"
CHECKSUMS: Final = "SHA256SUMS"
MANIFEST_SCHEMA: Final = "edgekiln.manifest/1"


class _Value(BaseModel):
    """A frozen part of a manifest; readers ignore keys they do not know."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class FileEntry(_Value):
    """One file of an artifact."""

    path: str = Field(
        description="Path relative to the artifact directory, with forward slashes.", examples=["model-Q4_0.gguf"]
    )
    size: int = Field(ge=0, description="Bytes.", examples=[3700000])
    sha256: str = Field(
        pattern=r"^[0-9a-f]{64}$",
        description="Of its bytes, in hex.",
        examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
    )


class CheckpointEntry(_Value):
    """The checkpoint that the artifact was made from."""

    name: str | None = Field(
        description="Hub id or name of the embedded checkpoint; null for a local directory.",
        examples=["Qwen/Qwen3-0.6B"],
    )
    revision: str | None = Field(
        description="Resolved Hub commit; null for a local directory.",
        examples=["c1899de289a04d12100db370d81485cdf75e47ca"],
    )
    identity: str = Field(
        description="sha256 over the names and sha256 of the checkpoint's files.",
        examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
    )
    model_type: str = Field(description="Family, as config.json names it.", examples=["qwen3"])
    weights: int = Field(description="Number of stored weights; a tied head counts once.", examples=[494032768])


class SchemeEntry(_Value):
    """What was asked for, and the settings it resolved to."""

    requested: str = Field(description="Precision as asked for, e.g. int4.", examples=["int4"])
    precision: str = Field(description="Precision after the target's mapping, e.g. q4_k_m.", examples=["q4_0"])
    group_size: int | None = Field(
        default=None, description="Weights that share a scale; null for the container's own.", examples=[32]
    )
    symmetric: bool | None = Field(default=None, description="No zero points.", examples=[True])
    embedding_precision: str | None = Field(
        default=None, description="Precision of the embeddings; null for the container's own.", examples=["int8"]
    )
    head_precision: str | None = Field(
        default=None, description="Precision of the output head; null for the container's own.", examples=["int8"]
    )
    embedding_group_size: int | None = Field(
        default=None, description="Group size of embeddings and head; null for the container's own.", examples=[64]
    )
    overrides: dict[str, str] = Field(
        default_factory=dict,
        description="Precisions of single matrices by pattern.",
        examples=[{"model.layers.0.mlp.down_proj": "int8"}],
    )
    accuracy_level: int | None = Field(
        default=None, description="What MatMulNBits computes in; null for the execution provider's own.", examples=[4]
    )
    gguf_source: str = Field(
        default="source", description="What GGUF types were quantized from.", examples=["source", "f16"]
    )
    split_max_size: int | None = Field(
        default=None,
        description="Bytes of tensor data that one file may have; null for no limit.",
        examples=[2 * 10**9],
    )


class DeviceEntry(_Value):
    """Where the artifact is to run, as far as that decided what is in it."""

    execution_provider: str = Field(
        default="cpu", description="Where the runtime computes, e.g. cpu or webgpu.", examples=["cpu"]
    )
    context_length: int | None = Field(
        default=None, description="Tokens planned for; null for the model's own.", examples=[4096]
    )


class TensorEntry(_Value):
    """One tensor of the artifact."""

    name: str = Field(description="Name in the artifact.", examples=["token_embd.weight"])
    sources: tuple[str, ...] = Field(
        description="Checkpoint tensors it was made from; empty for a computed one.",
        examples=[["model.embed_tokens.weight"]],
    )
    shape: tuple[int, ...] = Field(description="Logical shape, row-major.", examples=[[151936, 896]])
    type: str = Field(description="Grid or float type that it lies in.", examples=["Q4_0"])
    nbytes: int = Field(
        ge=0, description="Bytes in the artifact; 0 when it shares another tensor's bytes.", examples=[76595200]
    )
    note: str | None = Field(
        default=None,
        description="Why it differs from what the scheme asked for.",
        examples=["rows of 896 do not divide by 256: Q5_0 instead of Q4_K"],
    )


class Manifest(_Value):
    """manifest.json of an artifact: no time, no path, nothing that differs between two equal builds."""

    schema_id: Literal["edgekiln.manifest/1"] = Field(
        default=MANIFEST_SCHEMA,
        alias="schema",
        description="Kind and version of this document.",
        examples=["edgekiln.manifest/1"],
    )
    format: str = Field(description="Container.", examples=["gguf"])
    container_type: str = Field(
        description="What the container holds, e.g. 'MatMulNBits int4 g32 sym' or 'Q4_0'.", examples=["Q4_0"]
    )
    checkpoint: CheckpointEntry = Field(
        description="What it was made from.", examples=[{"name": "tiny-qwen3", "model_type": "qwen3"}]
    )
    scheme: SchemeEntry = Field(
        description="What was asked for and what it resolved to.", examples=[{"requested": "int4", "precision": "q4_0"}]
    )
    device: DeviceEntry = Field(
        default=DeviceEntry(), description="The device that it was made for.", examples=[{"execution_provider": "cpu"}]
    )
    tools: dict[str, str] = Field(
        description="Versions of the tools and native libraries that touched the bytes.",
        examples=[{"edgekiln": "0.1.0", "onnxruntime": "1.31.0"}],
    )
    files: tuple[FileEntry, ...] = Field(
        description="Every file but this one and the checksums, sorted by path.",
        examples=[[{"path": "model-Q4_0.gguf", "size": 3700000}]],
    )
    tensors: tuple[TensorEntry, ...] = Field(
        description="Every tensor, in the order of the file.",
        examples=[[{"name": "token_embd.weight", "type": "Q8_0"}]],
    )

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    @property
    def weights_bytes(self) -> int:
        """Bytes of all tensors, shared ones once."""
        return sum(tensor.nbytes for tensor in self.tensors)


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_files(directory: Path) -> tuple[FileEntry, ...]:
    """Return every file below `directory`, sorted by path."""
    paths = sorted(p for p in directory.rglob("*") if p.is_file())
    return tuple(
        FileEntry(path=p.relative_to(directory).as_posix(), size=p.stat().st_size, sha256=sha256_file(p)) for p in paths
    )


def seal(directory: Path, manifest: Manifest) -> None:
    """Write manifest.json and SHA256SUMS into a finished but not yet visible artifact directory."""
    text = manifest.model_dump_json(indent=2, by_alias=True) + "\n"
    (directory / MANIFEST).write_text(text, encoding="utf-8", newline="\n")
    lines = [f"{entry.sha256}  {entry.path}\n" for entry in manifest.files]
    lines.append(f"{sha256_file(directory / MANIFEST)}  {MANIFEST}\n")
    (directory / CHECKSUMS).write_text("".join(lines), encoding="utf-8", newline="\n")


def sync(path: Path) -> None:
    """Flush a file or directory to the disk where the system can."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot flush directories
            raise
    finally:
        os.close(descriptor)


def check_destination(out: Path) -> None:
    """Refuse a destination that exists and is not an empty directory.

    Raises:
        UsageError: Something is there, or it is the working directory, or no path at all.
        MachineError: The system does not let us look.
    """
    try:
        if out.is_dir() and not out.is_symlink() and not any(out.iterdir()):
            if out.samefile(Path.cwd()):
                raise UsageError(f"{out} is the working directory, which cannot be replaced; name a new directory")
            return
        taken = out.exists() or out.is_symlink()
    except ValueError as error:  # a NUL in it
        raise UsageError(f"{str(out)!r} is no path: {error}; choose another --out") from None
    except OSError as error:
        raise write_fault(out, error) from None
    if taken:
        raise UsageError(f"{out} exists already; artifacts are never overwritten: choose another --out or remove it")


def write_fault(path: Path, error: OSError, fix: str = "choose another --out") -> MachineError:
    """Return what to raise where `path` cannot be made or written.

    Args:
        path: What was to be written.
        error: What the system said.
        fix: The end of the sentence: what to do beside freeing space.
    """
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return MachineError(f"cannot write {path}: the disk is full; free space or {fix}")
        case errno.EFBIG:
            return MachineError(
                f"cannot write {path}: the file system or a limit of this process allows no file of that size; {fix}"
            )
        case errno.EEXIST | errno.ENOTDIR:
            return MachineError(f"cannot write {path}: a part of it exists and is no directory; {fix}")
        case errno.EBUSY:
            return MachineError(f"cannot replace {path}, which is a mount point; choose a new directory inside it")
    return MachineError(f"cannot write {path}: {error.strerror or error}; {fix}")


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Yield an empty directory that becomes `out` by one rename when the block succeeds, and vanishes otherwise.

    Raises:
        UsageError: `out` exists and is not an empty directory.
        StepError: Another process made it meanwhile.
        MachineError: It cannot be written, or an OSError came out of the block.
    """
    check_destination(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name[:40]}.", suffix=".partial", dir=out.parent))
    except OSError as error:
        raise write_fault(out, error) from None
    try:
        yield staging
        for path in sorted(staging.rglob("*")):
            sync(path)
        staging.chmod(0o755)
        if out.is_dir():
            out.rmdir()
        staging.rename(out)
        sync(out.parent)
    except OSError as error:
        if error.errno in {errno.EEXIST, errno.ENOTEMPTY}:
            raise StepError(f"{out} was made by another process meanwhile; nothing was overwritten") from error
        raise write_fault(out, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old or the new content, never a part.

    Raises:
        MachineError: It cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise write_fault(path, error) from None
    finally:
        if temporary.exists():
            temporary.unlink()
