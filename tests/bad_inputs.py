"""Every bad input, as one table: how to make it, the command that meets it, how that ends.

`tests/test_bad_input.py` runs each; `python tests/bad_inputs.py` writes docs/bad-input.md from the same cases.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from checkpoints import change_weights, make_checkpoint, write_safetensors
from least import ENVIRONMENT

#: Where a case's command writes.
OUT: Final = "out"
EXPORT: Final = ("export", "c", "--format", "gguf", "--precision", "int4", "--out", OUT)
_INDEX: Final = "model.safetensors.index.json"
DOCUMENT: Final = Path(__file__).parents[1] / "docs" / "bad-input.md"


@dataclass(frozen=True)
class Shown:
    """What a command did."""

    code: int
    output: str
    errors: str
    seconds: float


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        make: Changes a folder that holds the checkpoint `c`.
        code: The exit code.
        message: A pattern in the sentence after `edgekiln: `; empty for what simply works.
        command: Arguments of edgekiln.
        shards: Files that `c` consists of.
        environment: Variables for a process of its own.
        wrapper: Runs that process, `{}` standing for the command; None runs edgekiln in this process.
        leaves: Names that the command may leave in the folder.
        seconds: It must end within.
        needs: Says why it cannot be run here, or None.
    """

    make: Callable[[Path], object]
    code: int
    message: str
    command: tuple[str, ...] = EXPORT
    shards: int = 1
    environment: Mapping[str, str] | None = None
    wrapper: tuple[str, ...] | None = None
    leaves: frozenset[str] = frozenset()
    seconds: float = 60
    needs: Callable[[], str | None] = lambda: None

    @property
    def inside(self) -> bool:
        """It runs in this process."""
        return self.wrapper is None and self.environment is None


# --- running ------------------------------------------------------------------------------------------------------


@functools.cache
def _base(shards: int) -> Path:
    """Return a sound checkpoint that is copied for each case; it goes when the process ends."""
    import atexit

    scratch = Path(tempfile.mkdtemp(prefix="edgekiln-bad-input-"))
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    return make_checkpoint(
        scratch / "c", hidden_size=64, intermediate_size=64, num_layers=1, head_dim=16, shards=shards, dtype="F32"
    )


def run_inside(arguments: Sequence[str]) -> Shown:
    """Run edgekiln's entry point in this process and folder."""
    from edgekiln.__main__ import main

    output, errors, begin = io.StringIO(), io.StringIO(), time.monotonic()
    before = signal.getsignal(signal.SIGTERM)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            main(list(arguments))
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        signal.signal(signal.SIGTERM, before)
    return Shown(code, output.getvalue(), errors.getvalue(), time.monotonic() - begin)


def run_outside(case: Case, folder: Path) -> Shown:
    """Run a case in a process of its own."""
    command = [sys.executable, "-m", "edgekiln", *case.command]
    words: list[str] = []
    for word in case.wrapper or ("{}",):
        words += command if word == "{}" else [word]
    own_cache = {"EDGEKILN_CACHE": f"{folder}.cache"}  # what another case made would hide a fault
    environment = {**os.environ, **ENVIRONMENT, "HF_HUB_OFFLINE": "1", **own_cache, **(case.environment or {})}
    begin = time.monotonic()
    shown = subprocess.run(
        words,
        cwd=folder,
        capture_output=True,
        check=False,
        timeout=300,
        env={name: value.replace("{folder}", str(folder)) for name, value in environment.items() if value != "-"},
    )
    shutil.rmtree(own_cache["EDGEKILN_CACHE"], ignore_errors=True)
    text = [stream.decode("utf-8", "surrogateescape") for stream in (shown.stdout, shown.stderr)]
    return Shown(shown.returncode, *text, time.monotonic() - begin)


def run_case(case: Case, folder: Path) -> Shown:
    """Make the bad input of a case in an empty folder and run its command there."""
    shutil.copytree(_base(case.shards), folder / "c")
    with contextlib.chdir(folder):
        made = case.make(folder)
        try:
            return run_inside(case.command) if case.inside else run_outside(case, folder)
        finally:
            if hasattr(made, "release"):  # a lock
                made.release()


def sentence(shown: Shown, folder: Path) -> str:
    """Return the sentence that a command ends with, with paths relative to its folder."""
    lines = [line for line in shown.errors.splitlines() if line.startswith("edgekiln: ")]
    text = lines[0].removeprefix("edgekiln: ") if lines else ""
    if not text and (report := folder / OUT / "report.json").exists():  # each build says what stopped it
        text = next(
            (str(build["reason"]) for build in json.loads(report.read_bytes())["builds"] if build["reason"]), ""
        )
    return text.replace(f"{folder}/", "").replace(str(folder), ".")


def left_behind(folder: Path) -> list[str]:
    """Return what a command left half-written in a folder: partial files, scratch, artifacts without checksums."""
    found = [str(path) for path in folder.rglob("*.partial")] + [str(path) for path in folder.rglob(".edgekiln")]
    artifacts = {path.parent for pattern in ("*.gguf", "*.onnx") for path in folder.rglob(pattern)} - {folder}
    return found + [str(path) for path in artifacts if not (path / "SHA256SUMS").exists()]


# --- making -------------------------------------------------------------------------------------------------------

Make = Callable[[Path], object]


def nothing(_: Path) -> None:
    """Leave the checkpoint sound."""


def _edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def config(**changes: object) -> Make:
    return lambda folder: _edit_json(folder / "c/config.json", lambda values: {**values, **changes})


def content(name: str, data: bytes) -> Make:
    return lambda folder: (folder / "c" / name).write_bytes(data)


def removed(*names: str) -> Make:
    return lambda folder: [(folder / "c" / name).unlink() for name in names]


def index(change: Callable[[dict[str, str]], dict[str, str]]) -> Make:
    return lambda folder: _edit_json(folder / "c" / _INDEX, lambda old: {"weight_map": change(old["weight_map"])})


def first_shard(name: str) -> Make:
    """Let the index say that the first tensor is in `name`."""
    return index(lambda weight_map: weight_map | {min(weight_map): name})


def cut(name: str, size: int) -> Make:
    return lambda folder: os.truncate(
        folder / "c" / name, size if size > 0 else (folder / "c" / name).stat().st_size + size
    )


def header(change: Callable[[dict[str, Any]], object], more: int = 0) -> Make:
    """Change the header of model.safetensors, keeping the data, to which `more` zero bytes are added."""

    def make(folder: Path) -> None:
        path = folder / "c/model.safetensors"
        raw = path.read_bytes()
        size = int.from_bytes(raw[:8], "little")
        changed = change(json.loads(raw[8 : 8 + size]))
        text = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :] + bytes(more))

    return make


def entry(name: str, **changes: object) -> Make:
    return header(lambda old: {**old, name: {**old[name], **changes}})


def sparse(name: str, begin: bytes, size: int) -> Make:
    """Write a file of `size` bytes that takes no room on the disk."""

    def make(folder: Path) -> None:
        (folder / "c" / name).write_bytes(begin)
        os.truncate(folder / "c" / name, size)

    return make


def _shift(old: dict[str, Any], by: int) -> dict[str, Any]:
    """Move every tensor but the first by some bytes."""
    return {
        key: value
        if key == "__metadata__" or value["data_offsets"][0] == 0
        else {**value, "data_offsets": [at + by for at in value["data_offsets"]]}
        for key, value in old.items()
    }


def _twice(old: dict[str, Any]) -> bytes:
    text = json.dumps(old)
    return (text[:-1] + ', "model.norm.weight": ' + json.dumps(old["model.norm.weight"]) + "}").encode()


def fifo(name: str) -> Make:
    def make(folder: Path) -> None:
        (folder / "c" / name).unlink()
        os.mkfifo(folder / "c" / name)

    return make


def linked(name: str, target: str) -> Make:
    def make(folder: Path) -> None:
        (folder / "c" / name).unlink(missing_ok=True)
        (folder / "c" / name).symlink_to(target)

    return make


def as_directory(name: str) -> Make:
    def make(folder: Path) -> None:
        (folder / "c" / name).unlink()
        (folder / "c" / name).mkdir()

    return make


def extra_file(folder: Path) -> None:
    write_safetensors(folder / "c/adapter_model.safetensors", {"a": ("F32", (1,), bytes(4))})


def duplicate_shard(folder: Path) -> None:
    shutil.copy(folder / "c/model-00001-of-00003.safetensors", folder / "c/copy.safetensors")
    index(lambda old: old | {"x": "copy.safetensors"})(folder)


def pickled(folder: Path) -> None:
    (folder / "c/model.safetensors").rename(folder / "c/pytorch_model.bin")


def broken_weights(folder: Path) -> None:
    change_weights(folder / "c", "model.layers.0.mlp.up_proj.weight", {5: b"\0\0\xc0\x7f", 70: b"\0\0\x80\x7f"})


def tokenizer(change: Callable[[Any], Any]) -> Make:
    return lambda folder: _edit_json(folder / "c/tokenizer.json", change)


def tokenizer_config(**changes: object) -> Make:
    def make(folder: Path) -> None:
        (folder / "c/chat_template.jinja").unlink()
        _edit_json(folder / "c/tokenizer_config.json", lambda old: old | changes)

    return make


def _no_tokens(old: Any) -> Any:
    return old | {"added_tokens": [], "model": old["model"] | {"vocab": {}, "merges": []}}


def _added_token(number: int) -> Callable[[Any], Any]:
    def change(old: Any) -> Any:
        added = old["added_tokens"]
        return old | {"added_tokens": [*added, {**added[0], "id": number, "content": "<|new|>"}]}

    return change


def taken(folder: Path) -> None:
    (folder / OUT).mkdir()
    (folder / OUT / "mine").write_text("mine")


def loop(folder: Path) -> None:
    (folder / "loop").symlink_to("loop")


def out(where: str) -> tuple[str, ...]:
    return (*EXPORT[:-1], where)


# --- processes ----------------------------------------------------------------------------------------------------

#: Imported by every child's interpreter: does harm when a task imports a certain module.
_SITECUSTOMIZE: Final = """
import os, signal, sys, time
class Fault:
    def find_spec(self, name, path=None, target=None):
        wanted, _, harm = os.environ["PROBE_FAULT"].partition("=")
        if name == wanted:
            if harm == "missing":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            if harm == "hang":
                time.sleep(600)
            os.kill(os.getpid(), getattr(signal, harm))
if "edgekiln.validators.tasks" in sys.orig_argv and "PROBE_FAULT" in os.environ:
    sys.meta_path.insert(0, Fault())
"""
PIPELINE: Final = """schema: edgekiln.pipeline/1
name: p
targets: targets.yaml
checkpoint: c
settings: {out: out, windows: 1, window: 32, greedy_tokens: 2, repeats: 3}
builds:
  - {target: device, precision: int4}
"""
TARGETS: Final = """schema: edgekiln.targets/1
targets:
  device:
    description: A device
    format: FORMAT
    runtime: {name: RUNTIME, version: "VERSION"}
"""


def project(container: str = "gguf", runtime: str = "llama.cpp", version: str = ">=0.1") -> Make:
    """Write a pipeline, a targets file and the fault to inject."""

    def make(folder: Path) -> None:
        text = TARGETS.replace("FORMAT", container).replace("RUNTIME", runtime).replace("VERSION", version)
        (folder / "targets.yaml").write_text(text)
        (folder / "p.yaml").write_text(PIPELINE.replace("targets: targets.yaml\n", ""))
        (folder / "fault").mkdir()
        (folder / "fault/sitecustomize.py").write_text(_SITECUSTOMIZE)

    return make


def fault(module: str, harm: str) -> dict[str, str]:
    return {"PYTHONPATH": "{folder}/fault", "PROBE_FAULT": f"{module}={harm}"}


def held(folder: Path) -> object:
    """Let another run, which this process stands for, work in the output folder."""
    from filelock import FileLock

    project()(folder)
    (folder / OUT).mkdir()
    lock = FileLock(folder / OUT / ".edgekiln.lock")
    lock.acquire()
    return lock


def renamed(name: str) -> Make:
    return lambda folder: (folder / "c").rename(folder / name)


def export_of(checkpoint: str, where: str = OUT) -> tuple[str, ...]:
    return (EXPORT[0], checkpoint, *EXPORT[2:-1], where)


def shell(text: str) -> tuple[str, ...]:
    return ("sh", "-c", text, "sh", "{}")


def _no_bytes() -> str | None:
    return None if sys.platform == "linux" else "needs a file system that takes any bytes"


#: Bytes that are not UTF-8, as Python stands for them.
BYTES: Final = "\udcff"
#: What a hostile archive may call a folder.
ESCAPES: Final = "\x1b[2J\nedgekiln: all is well"
UNICODE: Final = "mein Modell ü 模型 😀"

BUILD: Final = ("build", "p.yaml", "--fail-fast", "--set", "step_timeout_seconds=300")
_RUN_FILES: Final = frozenset({"targets.yaml", "p.yaml", "fault", OUT})


def _no_posix() -> str | None:
    return None if os.name == "posix" else "needs POSIX"


def _no_full() -> str | None:
    return None if Path("/dev/full").exists() else "needs /dev/full"


@functools.cache
def _no_users() -> str | None:
    """Say why a command cannot run as a user without an entry, or None."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return "needs Linux and unshare"
    command = ["unshare", "--map-user=54321", "true"]
    return None if subprocess.run(command, capture_output=True, check=False).returncode == 0 else "not allowed here"


@functools.cache
def _no_namespaces() -> str | None:
    """Say why a file system cannot be mounted for a test, or None."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return "needs Linux and unshare"
    probe = "mount -t tmpfs tmpfs /mnt"
    allowed = subprocess.run(["unshare", "-rm", "sh", "-c", probe], capture_output=True, check=False).returncode == 0
    return None if allowed else "this system lets no user mount a file system"


def mounted(options: str) -> tuple[str, ...]:
    """Run a command with a file system of its own at `disk`."""
    return ("unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o {options} tmpfs disk && exec "$@"', "sh", "{}")


def make_disk(folder: Path) -> None:
    (folder / "disk").mkdir()


_DISK: Final[Mapping[str, Any]] = {"needs": _no_namespaces, "leaves": frozenset({"disk"})}


#: The table: heading, then name and case.
def many_builds(count: int, option: str = "allow_unsupported: false") -> Make:
    """Write a pipeline of so many builds, each with an option."""
    line = f"  - {{{{target: onnx-cpu, precision: int8, group_size: {{}}, {option}}}}}\n"
    builds = "".join(map(line.format, range(1, count + 1)))
    return lambda f: (f / "p.yaml").write_text(f"schema: edgekiln.pipeline/1\nname: p\nbuilds:\n{builds}")


CASES: Final[Mapping[str, Mapping[str, Case]]] = {
    "Shards and index": {
        "a shard that the index lists is missing": Case(
            removed("model-00002-of-00003.safetensors"), 2, "is missing, though .* lists it", shards=3),
        "a safetensors file that the index does not list": Case(
            extra_file, 2, "adapter_model.safetensors is no part", shards=3),
        "a safetensors file beside a checkpoint of one file": Case(
            extra_file, 2, "adapter_model.safetensors is no part"),
        "a tensor that the index has in another shard": Case(
            first_shard("model-00003-of-00003.safetensors"), 2, "but it is in model-00001-of-00003", shards=3),
        "a tensor that the index does not list": Case(
            index(lambda old: {key: old[key] for key in sorted(old)[1:]}), 2, "in no shard, but it is in", shards=3),
        "a tensor that the index lists and no shard has": Case(
            index(lambda old: old | {"x": old[min(old)]}), 2, "has x in .*, but it is in none", shards=3),
        "a tensor in two shards": Case(duplicate_shard, 2, "is in both", shards=3),
        "an index that points to the parent folder": Case(
            first_shard("../c/model-00001-of-00003.safetensors"), 2, "must be a .safetensors file beside it", shards=3),
        "an index that points to an absolute path": Case(
            first_shard("/etc/x.safetensors"), 2, "must be a .safetensors file beside it", shards=3),
        "an index that points to no safetensors file": Case(
            first_shard("weights.bin"), 2, "must be a .safetensors file beside it", shards=3),
        "an index without tensors": Case(index(lambda _: {}), 2, "no usable 'weight_map'", shards=3),
        "an index that is no JSON": Case(content(_INDEX, b"{"), 2, "is not valid JSON", shards=3),
        "an index of 100,000 shards": Case(
            index(lambda _: {f"{n}": f"{n}.safetensors" for n in range(100_000)}), 2, "lists 100000 shards", shards=3),
        "no weights at all": Case(removed("model.safetensors"), 2, "neither model.safetensors nor"),
        "pickled weights only": Case(pickled, 2, "pickled weights only"),
        "a shard that is a directory": Case(as_directory("model.safetensors"), 2, "it is a directory"),
        "a shard that is a named pipe": Case(fifo("model.safetensors"), 2, "it is no regular file", needs=_no_posix),
    },
    "Safetensors files": {
        "an empty file": Case(content("model.safetensors", b""), 2, "is truncated: its header"),
        "cut in the header": Case(cut("model.safetensors", 100), 2, "is truncated: its header"),
        "cut in the data": Case(cut("model.safetensors", -100), 2, "is truncated: .* ends at byte"),
        "tensors that overlap": Case(header(lambda old: _shift(old, -4)), 2, "tensors overlap or leave a gap"),
        "a gap between tensors": Case(header(lambda old: _shift(old, 4), 4), 2, "tensors overlap or leave a gap"),
        "bytes behind the last tensor": Case(header(lambda old: old, 12), 2, "12 bytes behind its last tensor"),
        "a header of 100 MB": Case(
            sparse("model.safetensors", (10**8).to_bytes(8, "little"), 10**8 + 8), 2, "a header of 100000000 bytes"),
        "a header of 33 MB of empty lists": Case(
            header(lambda _: b'{"__metadata__":[' + b"[]," * 11_000_000 + b"1]}"), 2, "more than 1600000 values"),
        "a header nested a million deep": Case(header(lambda _: b"[" * 1_000_000), 2, "nested too deeply"),
        "a header of 150,000 tensors": Case(
            header(lambda old: {f"w{n}": old["model.norm.weight"] for n in range(150_000)}), 2, "1"),
        "a header with a key twice": Case(header(_twice), 2, "a key occurs twice"),
        "a header that is no JSON": Case(header(lambda _: b"{nonsense"), 2, "unreadable safetensors header"),
        "a dtype that is no float": Case(entry("model.norm.weight", dtype="I32"), 2, "has dtype I32"),
        "a shape against the bytes": Case(entry("model.norm.weight", shape=[65]), 2, "but holds 256 bytes"),
        "a shape against the config": Case(config(intermediate_size=32), 2, "but config.json makes it"),
        "tensors of fewer layers than the config has": Case(config(num_hidden_layers=3), 2, "lacks 22 tensors"),
        "NaN and infinity in a tensor": Case(broken_weights, 4, "NaN|infinite"),
    },
    "config.json": {
        "missing": Case(removed("config.json"), 2, "config.json does not exist"),
        "empty": Case(content("config.json", b""), 2, "config.json is not valid JSON"),
        "no UTF-8": Case(content("config.json", b'{"a": "\xff"}'), 2, "config.json is not valid JSON"),
        "no object": Case(content("config.json", b"[1]"), 2, "must hold a JSON object"),
        "nested a million deep": Case(content("config.json", b"[" * 1_000_000), 2, "nested too deeply"),
        "a link to an endless device": Case(linked("config.json", "/dev/zero"), 2, "no regular file", needs=_no_posix),
        "zero layers": Case(config(num_hidden_layers=0), 2, "num_hidden_layers is 0"),
        "a billion layers": Case(config(num_hidden_layers=10**9), 2, "num_hidden_layers is 1000000000"),
        "heads that do not divide by key-value heads": Case(config(num_key_value_heads=3), 2, "do not divide by 3"),
        "hidden size that does not divide by heads": Case(
            config(model_type="qwen2", num_attention_heads=6, head_dim=None), 2, "does not divide by 6"),
        "an odd head size": Case(config(head_dim=15), 2, "need an even number"),
        "a text for a number": Case(config(hidden_size="64"), 2, "hidden_size is '64'"),
        "an end token beyond the vocabulary": Case(
            content("generation_config.json", b'{"eos_token_id": 5000}'), 2, "5000 that ends a reply lies beyond"),
        "another architecture": Case(config(model_type="llama"), 3, "describes a 'llama' model"),
        "a rope scaled in an unknown way": Case(
            config(rope_scaling={"type": "dynamic", "factor": 2}), 3, "scales its rope by 'dynamic'"),
        "YaRN without a factor": Case(config(rope_scaling={"type": "yarn"}), 2, "has no 'factor'"),
        "a window without a switch": Case(
            config(layer_types=["sliding_attention"]), 2, "use_sliding_window is not true"),
        "quantized already": Case(config(quantization_config={"quant_method": "gptq"}), 3, "is quantized already"),
    },
    "Tokenizer and chat template": {
        "no tokenizer.json": Case(removed("tokenizer.json"), 2, "has no tokenizer.json"),
        "an empty tokenizer.json": Case(content("tokenizer.json", b""), 2, "tokenizer.json is empty"),
        "a tokenizer.json that is no JSON": Case(
            content("tokenizer.json", b"version https://"), 2, "is not valid JSON"),
        "JSON that is no tokenizer": Case(content("tokenizer.json", b"{}"), 2, "no tokenizer that Hugging Face's"),
        "a tokenizer without tokens": Case(tokenizer(_no_tokens), 2, "has no tokens"),
        "a tokenizer.json of 100 MB": Case(sparse("tokenizer.json", b"{", 10**8), 2, "has 100000000 bytes, more than"),
        "a tokenizer larger than the vocabulary": Case(
            tokenizer(_added_token(4096)), 2, r"1 tokens beyond the vocabulary of 4096 .*'<\|new\|>' with id 4096"),
        "an added token whose id leaves a gap": Case(
            tokenizer(_added_token(4090)), 2, r"lists the token '<\|new\|>' with id 4090, but"),
        "an added token beyond the vocabulary": Case(
            tokenizer_config(added_tokens_decoder={"4100": {"content": "<|x|>"}}), 2,
            "tokenizer_config.json has 1 tokens"),
        "a tokenizer_config.json that is no JSON": Case(content("tokenizer_config.json", b"{"), 2, "is not valid JSON"),
        "a chat template with a syntax error": Case(
            content("chat_template.jinja", b"{% for m in messages %}\n{{ m.content }\n"), 2, "cannot be used, line 2"),
        "the same in tokenizer_config.json": Case(
            tokenizer_config(chat_template="{% if %}"), 2, "tokenizer_config.json: the chat template .*, line 1"),
        "a chat template with an unknown filter": Case(
            content("chat_template.jinja", b"{{ messages|shout }}"), 2, "no filter named 'shout'"),
        "a chat template that is no UTF-8": Case(content("chat_template.jinja", b"\xff"), 2, "is not UTF-8"),
        "a chat template that is a number": Case(tokenizer_config(chat_template=3), 2, "must be a text, not int"),
        "a chat template nested too deeply": Case(
            content("chat_template.jinja", b"{{" + b"(" * 100_000), 2, "nested too deeply"),
        "a chat template of 1 MB": Case(content("chat_template.jinja", b"x" * 10**6), 2, "has 1000000 bytes"),
    },
    "The place to write to": {
        "--out that exists": Case(taken, 2, "out exists already", leaves=frozenset({OUT})),
        "--out that is a file": Case(lambda f: (f / OUT).touch(), 2, "out exists already", leaves=frozenset({OUT})),
        "--out that is a dangling link": Case(
            lambda f: (f / OUT).symlink_to("nowhere"), 2, "out exists already", leaves=frozenset({OUT})),
        "--out inside the checkpoint": Case(nothing, 2, "lies inside the checkpoint", out("c/out")),
        "--out that is the checkpoint": Case(nothing, 2, "lies inside the checkpoint", out("c")),
        "--out below a file": Case(
            lambda f: (f / "f").touch(), 5, "cannot write f/out", out("f/out"), leaves=frozenset({"f"})),
        "--out with a name too long for the file system": Case(nothing, 5, "File name too long", out("x" * 300)),
        "--out through a link that leads to itself": Case(
            loop, 5, "cannot write loop/out", out("loop/out"), leaves=frozenset({"loop"})),
        "--out that is the root folder": Case(nothing, 2, "/ exists already", out("/")),
        "--out on a read-only disk": Case(
            make_disk, 5, "cannot write disk/out: Read-only file system", out("disk/out"),
            wrapper=mounted("ro"), **_DISK),
        "--out on a full disk": Case(
            make_disk, 5, "cannot write disk/out: the disk is full", out("disk/out"),
            wrapper=mounted("size=64k"), **_DISK),
        "--out that is a mount point": Case(
            make_disk, 5, "mount point", out("disk"), wrapper=mounted("size=9m"), **_DISK),
        "a file larger than the limit of the process": Case(
            nothing, 5, "allows no file of that size",
            wrapper=shell('ulimit -f 128; exec "$@"'), needs=_no_posix),
        "standard output on a full disk": Case(
            nothing, 5, "standard output cannot be written: No space left",
            wrapper=shell('exec "$@" >/dev/full'), leaves=frozenset({OUT}),
            needs=_no_full),
        "build: --out below a file": Case(
            lambda f: (project()(f), (f / "f").touch()), 5, "cannot write f/out", (*BUILD, "--out", "f/out"),
            leaves=_RUN_FILES | {"f"}),
        "build: --out on a read-only disk": Case(
            lambda f: (project()(f), make_disk(f)), 5, "cannot write disk/out: Read-only", (*BUILD, "--out",
            "disk/out"),
            wrapper=mounted("ro"), needs=_no_namespaces, leaves=_RUN_FILES | {"disk"}),
    },
    "Options of an export": {
        "an override without a precision": Case(nothing, 2, "must be PATTERN=PRECISION", (*EXPORT, "--override", "*")),
        "an override that matches nothing": Case(
            nothing, 2, r"matches none of the checkpoint's \d+ matrices", (*EXPORT, "--override", "x=q8_0")),
        "an override with a precision of another format": Case(
            nothing, 3, "GGUF has no NF4 type", (*EXPORT, "--override", "*=nf4")),
        "an override of ten thousand names": Case(
            nothing, 2, "stands for more than 1000 names", (*EXPORT, "--override", "{0..9}{0..9}{0..9}{0..9}=q8_0")),
        "files too small to be useful": Case(nothing, 2, "give 1 MB or more", (*EXPORT, "--split-max-size", "1 kB")),
        "a size of no unit that is known": Case(nothing, 2, "is no size", (*EXPORT, "--split-max-size", "2 pounds")),
        "a source that GGUF types cannot have": Case(
            nothing, 2, "--gguf-source 'f32' is unknown", (*EXPORT, "--gguf-source", "f32")),
    },
    "Plans": {
        "--format that there is not": Case(nothing, 2, "did you mean 'json'", ("plan", "--format", "jsn")),
        "--json and another --format": Case(
            nothing, 2, "contradict each other", ("plan", "--json", "--format", "table")),
        "--fit with a device that there is not": Case(
            nothing, 2, "did you mean 'gguf-cpu'", ("plan", "--fit", "gguf-cpuu", "--checkpoint", "c")),
        "--fit and a pipeline": Case(
            project(), 2, "leave out the pipeline", ("plan", "p.yaml", "--fit", "gguf-cpu"), leaves=_RUN_FILES),
        "--fit and a matrix": Case(
            nothing, 2, "--fit makes no jobs", ("plan", "--fit", "gguf-cpu", "--format", "github-matrix")),
        "--fit with a checkpoint that is not here": Case(
            nothing, 5, "not on this machine yet", ("plan", "--fit", "gguf-cpu", "--checkpoint", "nobody/has-this")),
        "a matrix of more jobs than GitHub takes": Case(
            many_builds(257), 2, "at most 256 jobs", ("plan", "p.yaml", "--format", "github-matrix"),
            leaves=frozenset({"p.yaml"})),
        "a matrix of more jobs than GitLab takes": Case(
            many_builds(201), 2, "at most 200 jobs", ("plan", "p.yaml", "--format", "gitlab-matrix"),
            leaves=frozenset({"p.yaml"})),
        "keep that is no switch": Case(
            many_builds(1, "keep: sometimes"), 2, "keep must be true or false, but is 'sometimes'", ("plan", "p.yaml"),
            leaves=frozenset({"p.yaml"})),
    },
    "Runtimes and processes": {
        "a child that is killed": Case(
            project(), 4, "was killed by SIGKILL without a result; its log is out/logs/", BUILD,
            environment=fault("transformers", "SIGKILL"), needs=_no_posix, leaves=_RUN_FILES),
        "a runtime that crashes with SIGSEGV": Case(
            project(), 4, "was killed by SIGSEGV without a result; its log is out/logs/", BUILD,
            environment=fault("llama_cpp", "SIGSEGV"), needs=_no_posix, leaves=_RUN_FILES, seconds=300),
        "a runtime that crashes with SIGILL": Case(
            project(), 4, "was killed by SIGILL without a result; its log is out/logs/", BUILD,
            environment=fault("transformers", "SIGILL"), needs=_no_posix, leaves=_RUN_FILES),
        "a runtime that hangs": Case(
            project(), 4, "was ended, since its step took longer than 2 s; its log is out/logs/",
            (*BUILD[:-1], "step_timeout_seconds=2"),
            environment=fault("transformers", "hang"), leaves=_RUN_FILES),
        "a runtime that is missing": Case(
            project("onnx", "onnxruntime-genai"), 5, "onnxruntime_genai cannot be imported", BUILD,
            environment=fault("onnxruntime_genai", "missing"), leaves=_RUN_FILES, seconds=300),
        "a runtime older than the target asks for": Case(
            project(version=">=9"), 5, "wants llama.cpp >=9, but this machine has llama-cpp-python", BUILD,
            environment={}, leaves=_RUN_FILES, seconds=300),
    },
    "Two runs": {
        "two builds into one folder": Case(held, 5, "another edgekiln runs in out", BUILD, leaves=_RUN_FILES),
    },
    "The cache": {
        "an address that needs a connection, offline": Case(
            project(), 5, "s3://bucket/x needs a connection, but this run is offline", (*BUILD, "--offline"),
            environment={"EDGEKILN_CACHE": "s3://bucket/x"}, leaves=_RUN_FILES),
        "an address of an unknown kind": Case(
            project(), 5, "nonsense://x cannot be used .Protocol not known: nonsense", BUILD,
            environment={"EDGEKILN_CACHE": "nonsense://x"}, leaves=_RUN_FILES),
        "cache gc: a size that is none": Case(nothing, 2, "'much' is no size", ("cache", "gc", "--max-size", "much")),
        "cache explain: a build that is none": Case(
            project(), 2, "'devise-int4' is no build of p.yaml; did you mean 'device-int4'",
            ("cache", "explain", "devise-int4", "p.yaml"), leaves=_RUN_FILES),
        "cache verify: no cache": Case(
            nothing, 0, "", ("cache", "verify"), environment={"EDGEKILN_CACHE": "{folder}/nowhere"}),
    },
    "Artifacts": {
        "no such file": Case(nothing, 4, "nowhere.gguf", ("validate", "nowhere.gguf", "--reference", "c")),
        "an empty GGUF file": Case(
            lambda f: (f / "a.gguf").touch(), 4, "a.gguf", ("validate", "a.gguf", "--reference", "c"),
            leaves=frozenset({"a.gguf"})),
        "an empty directory": Case(
            lambda f: (f / "a").mkdir(), 3, "a", ("validate", "a", "--reference", "c"), leaves=frozenset({"a"})),
    },
    "Names": {
        "blanks and Unicode in both paths": Case(
            renamed(UNICODE), 0, "", export_of(UNICODE, f"{UNICODE} out"), leaves=frozenset({UNICODE,
            f"{UNICODE} out"})),
        "a checkpoint whose name is not UTF-8": Case(
            renamed(BYTES), 0, "", export_of(BYTES), leaves=frozenset({BYTES, OUT}), needs=_no_bytes),
        "an artifact whose name is not UTF-8": Case(
            nothing, 0, "", out(BYTES), leaves=frozenset({BYTES}), needs=_no_bytes),
        "build: a checkpoint whose name is not UTF-8": Case(
            lambda f: (project()(f), renamed(BYTES)(f)), 2, "--checkpoint: .*unicode", (*BUILD, "--checkpoint", BYTES),
            leaves=_RUN_FILES | {BYTES}, needs=_no_bytes),
        "build: --out whose name is not UTF-8": Case(
            project(), 2, r"the path of \\xff is not UTF-8", (*BUILD, "--out", BYTES),
            leaves=_RUN_FILES, needs=_no_bytes),
        "a damaged checkpoint whose name is not UTF-8": Case(
            lambda f: (removed("config.json")(f), renamed(BYTES)(f)), 2, r"\\xff/config.json does not exist",
            export_of(BYTES), leaves=frozenset({BYTES}), needs=_no_bytes),
        "a damaged checkpoint with a line end and an escape sequence in its name": Case(
            lambda f: (removed("config.json")(f), renamed(ESCAPES)(f)), 2,
            r"\\x1b\[2J\\nedgekiln: all is well/config.json",
            export_of(ESCAPES), leaves=frozenset({ESCAPES}), needs=_no_posix),
    },
    "Homes": {
        "HOME is not set": Case(nothing, 0, "", environment={"HOME": "-"}, leaves=frozenset({OUT})),
        "HOME does not exist": Case(nothing, 0, "", environment={"HOME": "/nowhere"}, leaves=frozenset({OUT})),
        "HOME is not set and the user has no entry": Case(
            nothing, 0, "", wrapper=("unshare", "--map-user=54321", "{}"), environment={"HOME": "-"},
            leaves=frozenset({OUT}), needs=_no_users),
        "HOME on a read-only disk": Case(
            make_disk, 0, "", environment={"HOME": "{folder}/disk"}, wrapper=mounted("ro"),
            needs=_no_namespaces, leaves=frozenset({"disk", OUT})),
    },
    "Consoles": {
        "an ASCII console": Case(
            project(), 0, "", ("plan", "p.yaml"), environment={"PYTHONIOENCODING": "ascii"}, leaves=_RUN_FILES),
        "LC_ALL=C": Case(
            project(), 0, "", ("plan", "p.yaml"), leaves=_RUN_FILES,
            environment={"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}),
        "standard output is closed": Case(
            nothing, 0, "", wrapper=shell('exec "$@" >&-'), leaves=frozenset({OUT}), needs=_no_posix),
        "standard error is closed": Case(
            nothing, 0, "", wrapper=shell('exec "$@" 2>&-'), leaves=frozenset({OUT}), needs=_no_posix),
        "standard error on a full disk": Case(
            nothing, 0, "", wrapper=shell('exec "$@" 2>/dev/full'), leaves=frozenset({OUT}), needs=_no_full),
        "nobody reads standard output": Case(
            nothing, 0, "", wrapper=("bash", "-o", "pipefail", "-c", '"$@" | true', "sh", "{}"),
            leaves=frozenset({OUT}), needs=_no_posix),
        "nobody reads standard error": Case(
            nothing, 0, "", wrapper=("bash", "-o", "pipefail", "-c", '"$@" 2>&1 >/dev/null | true', "sh", "{}"),
            leaves=frozenset({OUT}), needs=_no_posix),
    },
}  # fmt: skip


# --- the document -------------------------------------------------------------------------------------------------

_HEAD: Final = """# Bad input

What Edgekiln does with input that is wrong and with machines that fail: one sentence, an exit code, and nothing
half-written. Written by `python tests/bad_inputs.py` from the cases that `tests/test_bad_input.py` runs; `c` is the
checkpoint and `out` the output folder. Damage of a checkpoint is wrong usage (2), since a user can mend it; something
sound that Edgekiln cannot do is unsupported (3); weights that cannot be exported, an artifact that cannot be read and a
runtime that crashes or hangs are failed steps (4); a full or read-only disk, a missing permission and a missing or old
runtime are the machine's (5).
"""


def row(name: str, code: int, message: str) -> str:
    """Return a row of the document."""
    text = message.replace("|", "\\|").replace("<", "&lt;").replace("x" * 300, "xxx…")
    return f"| {name} | {code} | {text or 'works'} |"


def document(rows: Mapping[str, Sequence[str]]) -> str:
    """Return the document from the rows of each heading."""
    parts = [_HEAD]
    for heading, lines in rows.items():
        parts.append(
            f"\n## {heading}\n\n| input | exit code | message |\n| --- | --- | --- |\n" + "\n".join(lines) + "\n"
        )
    return "".join(parts)


def _rows() -> dict[str, list[str]]:
    """Run every case; a row of one that cannot be run here is an error."""
    rows: dict[str, list[str]] = {}
    for heading, cases in CASES.items():
        for name, case in cases.items():
            if (reason := case.needs()) is not None:
                raise SystemExit(f"{name}: {reason}")
            with tempfile.TemporaryDirectory() as folder:
                shown = run_case(case, Path(folder))
                rows.setdefault(heading, []).append(row(name, shown.code, sentence(shown, Path(folder))))
    return rows


if __name__ == "__main__":
    DOCUMENT.write_text(document(_rows()), encoding="utf-8", newline="\n")
