"""The same inputs give the same bytes: on another day, in another folder, locale and time zone, with other threads."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from artifacts import gguf_file
from edgekiln.checkpoint import open_checkpoint
from edgekiln.device import Device
from edgekiln.exporters import EXPORTERS
from edgekiln.exporters.onnx_layout import place
from edgekiln.grids import BlockGrid
from edgekiln.pipelines.export import export
from edgekiln.quantizers.shared import SHARED_GRID
from edgekiln.scheme import Scheme
from edgekiln.validators.gguf_read import read_header

#: Exports as the command does, on a day of our choice.
PROGRAM = """
import sys, time
shift, *words = sys.argv[1:]
real = time.time
time.time = lambda: real() + float(shift)
sys.argv = ["edgekiln", "export", "tiny-qwen3", *words]
from edgekiln.__main__ import main
sys.exit(main())
"""


def exported(folder: Path, words: list[str], shift: float, **environment: str) -> dict[str, str]:
    """Return the digests of all files of an artifact made by another process."""
    folder.mkdir(parents=True)
    command = [sys.executable, "-c", PROGRAM, str(shift), *words, "--out", "out"]
    subprocess.run(command, check=True, cwd=folder, env={**os.environ, **environment}, capture_output=True)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((folder / "out").iterdir())}


@pytest.mark.parametrize(
    "words",
    [["--format", "gguf", "--precision", "q4_k_m"], ["--format", "onnx", "--precision", "int4", "--asymmetric"]],
    ids=["gguf", "onnx"],
)
def test_neither_day_nor_place_nor_language_nor_threads_change_a_byte(tmp_path: Path, words: list[str]) -> None:
    plain = exported(tmp_path / "a", [*words, "--threads", "1"], 0, LC_ALL="C", TZ="UTC", PYTHONHASHSEED="1")
    other = exported(
        tmp_path / "another folder" / "ä",
        [*words, "--threads", "3"],
        400 * 86400,
        LC_ALL="tr_TR.UTF-8",
        LANG="tr_TR.UTF-8",
        TZ="Pacific/Auckland",
        PYTHONHASHSEED="2",
    )
    assert other == plain
    assert len(plain) > 2


def test_a_whole_model_has_the_same_integers_in_onnx_and_in_gguf(tmp_path: Path) -> None:
    checkpoint = open_checkpoint("tiny-qwen3")
    export(checkpoint, "onnx", Scheme("int4"), tmp_path / "onnx", Device("webgpu"))
    export(checkpoint, "gguf", Scheme("q4_0"), tmp_path / "gguf")
    path = gguf_file(tmp_path / "gguf")
    blocks = {tensor.name: tensor for tensor in read_header(path).tensors}
    placed = place(EXPORTERS["onnx"].plan(checkpoint, Scheme("int4"), Device("webgpu")).tensors)
    compared = 0
    for tensor in EXPORTERS["gguf"].plan(checkpoint, Scheme("q4_0")).tensors:
        if tensor.storage != BlockGrid("Q4_0"):
            continue  # norms, and embeddings at Q6_K
        twin = placed[tensor.sources[0]]
        assert twin.plan.storage == SHARED_GRID
        codes, scales = twin.parts["codes"], twin.parts["scales"]
        data = tmp_path / "onnx" / codes.file
        packed = np.fromfile(data, np.uint8, codes.nbytes, offset=codes.offset).reshape(-1, 16)
        ours = np.stack((packed & 15, packed >> 4), -1).reshape(-1, 32)  # neighbours lie in one byte
        found = blocks[tensor.name]
        theirs = np.fromfile(path, np.uint8, found.nbytes, offset=found.offset).reshape(-1, 18)
        halves = np.concatenate((theirs[:, 2:] & 15, theirs[:, 2:] >> 4), -1)  # halves of a block lie in one byte
        np.testing.assert_array_equal(ours, halves, tensor.name)
        half_floats = np.fromfile(data, "<f2", scales.nbytes // 2, offset=scales.offset)
        np.testing.assert_array_equal(half_floats, theirs[:, :2].copy().view("<f2")[:, 0], tensor.name)
        compared += ours.size
    assert compared == sum(t.elements for n, t in checkpoint.tensors.items() if "_proj" in n and len(t.shape) == 2)
