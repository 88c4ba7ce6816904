"""Checking the tokenizer and the chat template of a checkpoint, here or beside what else an export begins with.

Hugging Face's library and the parser of JSON each hold the interpreter's lock for as long as they work, a quarter of
a second for Qwen's vocabulary, so that another thread of this process would get no turn meanwhile: beside other work
they run in a process of their own. Started as `python -m edgekiln.text_check` by `edgekiln.process.started`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from edgekiln.errors import CheckpointError, EdgekilnError
from edgekiln.process import Json, Limits, serve, showing_log, started
from edgekiln.template_check import find_template, template_fault
from edgekiln.tokenizer_file import check_tokenizer

#: Bytes of tokenizer.json from which on to check it takes longer than to start a process.
_APART_BYTES: Final = 4 << 20
#: Of that process: Qwen's needs a second and 0.2 GB.
_LIMITS: Final = Limits(seconds=300, memory_bytes=4 << 30)


def check_text(directory: Path, vocab_size: int) -> None:
    """Refuse a tokenizer or a chat template with which nothing could be measured.

    Args:
        directory: Of the checkpoint.
        vocab_size: Rows of its embedding.

    Raises:
        CheckpointError: Says what is wrong with which.
        MachineError: The system does not let us read them.
    """
    check_tokenizer(directory, vocab_size)
    if (found := find_template(directory)) is not None and (fault := template_fault(found[1])) is not None:
        raise CheckpointError(f"{found[0]}: the chat template cannot be used, {fault}; mend or remove it")


@contextmanager
def text_checked(directory: Path, vocab_size: int) -> Iterator[None]:
    """Do what `check_text` does while the block runs; what it finds is raised at the block's end, before all else.

    Args:
        directory: See `check_text`.
        vocab_size: See `check_text`.

    Raises:
        EdgekilnError: As `check_text`, or the process failed.
    """
    if not _takes_long(directory):
        check_text(directory, vocab_size)
        yield
        return
    with tempfile.TemporaryDirectory(prefix="edgekiln-text-") as scratch:
        log, request = Path(scratch) / "log", {"directory": str(directory), "vocab_size": vocab_size}
        with showing_log(log), started(__name__, "check", request, log=log) as child:
            try:
                yield
            except EdgekilnError:  # perhaps over what the check finds too, and says better
                child.finish(_LIMITS)
                raise
            child.finish(_LIMITS)


def _takes_long(directory: Path) -> bool:
    try:
        return (directory / "tokenizer.json").stat().st_size >= _APART_BYTES
    except OSError:  # which the check words
        return False


def _check(request: Json) -> Json:
    check_text(Path(request["directory"]), request["vocab_size"])
    return {}


if __name__ == "__main__":
    serve({"check": _check})
