"""Good artifacts that others' tools made: onnxruntime-genai's builder, mobius, llama.cpp's converter and quantizer.

llama.cpp's converter is in no package; it lies in the source distribution of llama-cpp-python, which `make test`
fetches once into the virtual environment (`python tests/foreign.py <directory>`). It knows pre-tokenizers by a hash of
what they make of a text and refuses the embedded checkpoint's, whose merges are its own; the driver here therefore says
what that lookup gives for Qwen's.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Final

_PACKAGE: Final = "llama-cpp-python"
#: What of llama.cpp's sources the converter needs.
_PARTS: Final = ("convert_hf_to_gguf.py", "conversion", "gguf-py")
_CONVERTER: Final = Path(sys.prefix) / "llama.cpp"
#: The builder's command line, once for each `precision:provider:directory`; importing its libraries takes longest.
_BUILDER: Final = """
import runpy, sys
checkpoint, cache, *jobs = sys.argv[1:]
for job in jobs:
    precision, provider, out = job.split(":", 2)
    sys.argv = ["builder", "-i", checkpoint, "-o", out, "-p", precision, "-e", provider, "-c", cache]
    runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")
"""
#: Runs llama.cpp's converter: its sources, a checkpoint, the file to write.
CONVERT: Final = """
import runpy, sys
sources, checkpoint, out = sys.argv[1:]
sys.path[:0] = [sources, sources + "/gguf-py"]
from conversion.base import TextModel

def no_sentencepiece(self):
    raise FileNotFoundError("the checkpoint has no tokenizer of this kind, and the package for it is not installed")

TextModel._set_vocab_sentencepiece = no_sentencepiece
TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"
sys.argv = ["convert_hf_to_gguf.py", checkpoint, "--outtype", "f16", "--outfile", out]
runpy.run_path(sources + "/convert_hf_to_gguf.py", run_name="__main__")
"""


def fetch(into: Path) -> None:
    """Put llama.cpp's converter, of the version that is installed, into a directory of that name."""
    version = importlib.metadata.version(_PACKAGE)
    with tempfile.TemporaryDirectory() as scratch:
        asked = ["download", "--quiet", "--no-deps", "--no-binary", _PACKAGE, "--dest", scratch]
        subprocess.run([sys.executable, "-m", "pip", *asked, f"{_PACKAGE}=={version}"], check=True)
        (archive,) = Path(scratch).glob("*.tar.gz")
        new = into.with_name(f".{into.name}.partial")
        shutil.rmtree(new, ignore_errors=True)
        with tarfile.open(archive) as sources:
            for member in sources:
                parts = PurePosixPath(member.name).parts  # llama_cpp_python-0.3.36/vendor/llama.cpp/…
                if parts[1:3] == ("vendor", "llama.cpp") and len(parts) > 3 and parts[3] in _PARTS:
                    member.name = "/".join(parts[3:])
                    sources.extract(member, new, filter="data")
        shutil.rmtree(into, ignore_errors=True)
        new.replace(into)


def why_no_converter() -> str | None:
    """Return why llama.cpp's converter cannot be run, or None."""
    if all((_CONVERTER / part).exists() for part in _PARTS):
        return None
    return f"llama.cpp's converter is not in {_CONVERTER}; `make test` fetches it where there is a network"


@functools.cache
def _scratch() -> Path:
    path = Path(tempfile.mkdtemp(prefix="edgekiln-test-foreign-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def _run(*arguments: str) -> None:
    """Run Python without a network's libraries reaching for one; what it prints is shown if it fails."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


@functools.cache
def _built(checkpoint: Path, *jobs: str) -> Path:
    """Run the builder on a checkpoint, for jobs of the form `precision:provider`."""
    root = Path(tempfile.mkdtemp(dir=_scratch()))
    named = [f"{job}:{root / job.replace(':', '-')}" for job in jobs]
    _run("-c", _BUILDER, str(checkpoint), str(root / "cache"), *named)
    return root


def _builder(job: str, *together: str) -> Callable[[Path], Path]:
    """Return a maker of what the builder gives for one of several jobs, which one process does."""
    return lambda checkpoint: _built(checkpoint, *together) / job.replace(":", "-")


@functools.cache
def _mobius(checkpoint: Path) -> Path:
    out = Path(tempfile.mkdtemp(dir=_scratch())) / "mobius"
    _run("-m", "mobius", "build", "--config", str(checkpoint), "--dtype", "f32", "--runtime", "ort-genai", str(out))
    return out


@functools.cache
def converted(checkpoint: Path) -> Path:
    """Return the F16 file that llama.cpp's converter makes of a checkpoint."""
    out = Path(tempfile.mkdtemp(dir=_scratch())) / "model-f16.gguf"
    _run("-c", CONVERT, str(_CONVERTER), str(checkpoint), str(out))
    return out


@functools.cache
def quantized(source: Path, name: str) -> Path:
    """Return what llama.cpp's quantizer makes of a converter's file, by the name of a mix."""
    import llama_cpp

    out = source.with_name(f"model-{name}.gguf")
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype = 2, getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    assert llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(params)) == 0
    return out


def _quantizer(name: str) -> Callable[[Path], Path]:
    return lambda checkpoint: quantized(converted(checkpoint), name)


@dataclass(frozen=True)
class Foreign:
    """An artifact of another tool's.

    Attributes:
        make: Makes it from a checkpoint's directory; once per test run.
        checkpoint: Key of `CHECKPOINTS` in tests/test_foreign.py.
        converter: Whether it needs llama.cpp's converter.
    """

    make: Callable[[Path], Path]
    checkpoint: str = "qwen3"
    converter: bool = False


_QWEN3_JOBS: Final = ("int4:cpu", "int8:cpu", "fp16:dml")
#: Float16 for the CPU is no combination that the builder calls valid; its graphs for others run there as well.
FOREIGN: Final = MappingProxyType(
    {
        "builder int4": Foreign(_builder("int4:cpu", *_QWEN3_JOBS)),
        "builder int8": Foreign(_builder("int8:cpu", *_QWEN3_JOBS)),
        "builder fp16": Foreign(_builder("fp16:dml", *_QWEN3_JOBS)),
        "builder fp16 with biases": Foreign(_builder("fp16:cuda", "fp16:cuda"), "qwen2"),
        "mobius": Foreign(_mobius, "qwen3 for mobius"),
        "llama.cpp F16": Foreign(converted, converter=True),
        "llama.cpp Q8_0": Foreign(_quantizer("Q8_0"), converter=True),
        "llama.cpp Q4_0": Foreign(_quantizer("Q4_0"), converter=True),
        "llama.cpp Q4_K_M": Foreign(_quantizer("Q4_K_M"), converter=True),
    }
)

if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
