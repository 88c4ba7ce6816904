"""Chatting with artifacts in their own runtimes: what is said, how it streams, and every way it ends."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import gguf
import pytest

from artifacts import artifact, gguf_file
from edgekiln.checkpoint import open_checkpoint
from edgekiln.errors import ArtifactError, UnsupportedError, UsageError
from edgekiln.pipelines.chat import Finished, Piece, find_artifact, open_conversation
from edgekiln.pipelines.chat_console import read_prompts, sampling, statistics
from edgekiln.pipelines.export import export
from edgekiln.scheme import Scheme
from edgekiln.validators.chat_base import ChatOptions
from edgekiln.validators.kinds import identify
from scripted import scripted_checkpoint

#: After the generation prompt, and after the empty block of thoughts that `enable_thinking: false` adds to it.
THINKING, NOT_THINKING = ("assistant\n", "né 😀 ok"), ("</think>\n\n", "川")
FORMATS = ("gguf", "onnx", "foundry-local")


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return an artifact of each format that says the same."""
    folder = tmp_path_factory.mktemp("scripted")
    checkpoint = open_checkpoint(str(scripted_checkpoint(folder / "checkpoint", THINKING, NOT_THINKING)))
    for name in FORMATS:
        export(checkpoint, name, Scheme("fp16"), folder / name)
    return {name: folder / name for name in FORMATS}


def converse(path: Path, prompts: list[str], log: Path, *, system: str | None = None, **options: object):
    chosen = ChatOptions(**{"max_tokens": 20, **options})  # type: ignore[arg-type]
    with open_conversation(identify(path), chosen, system=system, threads=1, context=400, log=log) as talk:
        return talk.loaded, [list(talk.ask(prompt)) for prompt in prompts]


def said(events: list[object]) -> str:
    return "".join(event.text for event in events if isinstance(event, Piece))


@pytest.mark.parametrize("name", FORMATS)
def test_every_runtime_streams_whole_characters_and_ends_its_turn(scripted, name, tmp_path):
    loaded, (first, second) = converse(scripted[name], ["Hello", "Again"], tmp_path / "log", system="Be brief.")
    assert said(first) == said(second) == THINKING[1]
    pieces = [event.text for event in first if isinstance(event, Piece)]
    assert len(pieces) > 3
    assert not any("\ufffd" in piece for piece in pieces)
    assert isinstance(first[-1], Finished)
    assert first[-1].stop == "end of turn"
    assert second[-1].prompt_tokens > first[-1].prompt_tokens + 10  # the history is there
    assert (loaded.thinking, loaded.context) == ("switch", 400)


@pytest.mark.parametrize("name", FORMATS)
def test_every_runtimes_own_template_engine_takes_the_switch(scripted, name, tmp_path):
    for thinking, reply in ((True, THINKING[1]), (False, NOT_THINKING[1])):
        _, (events,) = converse(scripted[name], ["Hello"], tmp_path / "log", thinking=thinking)
        assert said(events) == reply


@pytest.mark.parametrize("name", FORMATS)
def test_a_reply_is_no_longer_than_asked_for(scripted, name, tmp_path):
    _, (events,) = converse(scripted[name], ["Hello"], tmp_path / "log", max_tokens=2)
    assert (events[-1].tokens, events[-1].stop) == (2, "max tokens")
    assert THINKING[1].startswith(said(events))


@pytest.mark.parametrize("name", ["gguf", "onnx"])
def test_a_full_context_ends_the_reply(scripted, name, tmp_path):
    chosen = ChatOptions(max_tokens=50)
    for context, tokens in ((14, 0), (18, None)):
        with open_conversation(
            identify(scripted[name]), chosen, system=None, threads=1, context=context, log=tmp_path / "log"
        ) as talk:
            *_, end = talk.ask("one two three")
        assert end.stop == "context full"
        assert tokens is None or end.tokens == tokens


@pytest.mark.parametrize("name", FORMATS)
def test_sampling_depends_on_the_seed_alone(tiny, name, tmp_path):
    def sample(seed: int) -> str:
        _, (events,) = converse(tiny[name], ["Hello"], tmp_path / "log", temperature=1.5, seed=seed, max_tokens=12)
        return said(events)

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the embedded checkpoint in each format."""
    folder = tmp_path_factory.mktemp("tiny")
    return {name: artifact(name, "int4", folder) for name in FORMATS}


@pytest.mark.parametrize("name", FORMATS)
def test_an_interrupt_ends_the_reply_and_the_conversation_goes_on(tiny, name, tmp_path):
    chosen = ChatOptions(max_tokens=1500)
    kind = identify(tiny[name])
    with open_conversation(kind, chosen, system=None, threads=1, context=2048, log=tmp_path / "log") as talk:
        events = talk.ask("Write")
        next(events)
        talk.interrupt()
        *_, end = events
        assert (end.stop, end.tokens < 1500) == ("interrupted", True)
        later = talk.ask("More")
        assert all(isinstance(next(later), Piece) for _ in range(8))


def rewritten(source: Path, target: Path, template: str | None) -> Path:
    """Copy a GGUF file with another chat template, or without one."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in {"general.architecture", "tokenizer.chat_template"}:
            continue
        kind = field.types[0]
        element = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), kind, sub_type=element)
    if template is not None:
        writer.add_chat_template(template)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_without_a_template_the_model_goes_on_with_the_text(scripted, tmp_path):
    bare = rewritten(gguf_file(scripted["gguf"]), tmp_path / "bare.gguf", None)
    loaded, (events,) = converse(bare, ["a\n"], tmp_path / "log")
    assert (loaded.template, said(events)) == (None, THINKING[1])


HOSTILE = {
    "syntax": ("{% for", "the chat template of .* is broken"),
    "refuses": ("{{ raise_exception('no') }}", "cannot be rendered: no"),
    "reaches out": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "cannot be rendered"),
    "nothing": ("", None),
    "renders to nothing": ("{% if messages %}{% endif %}", "renders to nothing"),
}


@pytest.mark.parametrize(("template", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_template_that_is_broken_or_hostile_is_one_sentence(scripted, tmp_path, template, message):
    path = rewritten(gguf_file(scripted["gguf"]), tmp_path / "hostile.gguf", template)
    if message is None:
        assert converse(path, ["a"], tmp_path / "log")[0].template is None
        return
    with pytest.raises(ArtifactError, match=message):
        converse(path, ["a"], tmp_path / "log")


def test_a_template_that_loops_is_ended(scripted, tmp_path, monkeypatch):
    monkeypatch.setattr("edgekiln.pipelines.chat._TOKEN_SECONDS", 2)
    loop = "{% set r = range(99999) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}"
    path = rewritten(gguf_file(scripted["gguf"]), tmp_path / "loop.gguf", loop)
    with pytest.raises(Exception, match="said nothing for 2 s"):
        converse(path, ["a"], tmp_path / "log")


def test_a_checkpoint_is_no_artifact_and_the_way_to_one_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = scripted_checkpoint(tmp_path / "my model", THINKING)
    for name, quoted in (("tiny-qwen3", "tiny-qwen3"), ("org/name", "org/name"), (str(checkpoint), f"'{checkpoint}'")):
        with pytest.raises(UnsupportedError, match="is a checkpoint") as caught:
            find_artifact(Path(name))
        assert f"edgekiln export {quoted} --format gguf" in str(caught.value)
    for nowhere in ("nowhere.gguf", "my model/nowhere", f"{tmp_path.name}/x.gguf"):
        with pytest.raises(ArtifactError, match="does not exist"):
            find_artifact(Path(nowhere))


def test_a_hub_id_with_a_dot_and_a_path_with_a_slash_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsupportedError, match="is a checkpoint"):
        find_artifact(Path("Qwen/Qwen2.5-0.5B"))
    (tmp_path / "artifacts").mkdir()
    with pytest.raises(ArtifactError, match=r"^artifacts/desktp does not exist"):
        find_artifact(Path("artifacts/desktp"))


def test_the_folder_of_a_build_leads_to_its_newest_artifact(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build = Path("artifacts/desktop")
    (build / "0123456789ab").mkdir(parents=True)
    with pytest.raises(UnsupportedError, match="no artifact"):
        find_artifact(build)
    for content, wanted in (("0123456789ab\n", "0123456789ab$"), ("../desktop\n", "no artifact")):
        (build / "latest.txt").write_text(content)
        with pytest.raises(UnsupportedError, match=wanted):
            find_artifact(build)
    (build / "latest").mkdir()  # a link, where there are links
    with pytest.raises(UnsupportedError, match=r"chat with its newest, artifacts.desktop.latest$"):
        find_artifact(build)


def test_prompts_and_sampling_are_checked():
    for prompts, message in ((["a", " "], "empty"), (["a\0b"], "NUL")):
        with pytest.raises(UsageError, match=message):
            read_prompts(prompts, as_json=False)
    with pytest.raises(UsageError, match="--seed 3"):
        sampling(5, 0.0, 3, None)
    assert sampling(5, 0.5, 3, None).seed == 3
    assert sampling(5, 0.5, None, None).seed != sampling(5, 0.5, None, None).seed


def test_the_line_below_a_reply():
    assert statistics(Finished("end of turn", 9, 42, 0.214, 31.36)) == (
        "42 tokens, 31.4 tokens/s, first token after 0.21 s (prompt of 9 tokens), ended its turn"
    )
    assert statistics(Finished("interrupted", None, 0, None, None)) == "0 tokens, stopped by Ctrl-C"


def edgekiln(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgekiln", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, **{"stdin": subprocess.DEVNULL, **options}
    )  # type: ignore[call-overload,no-any-return]


def test_the_command_prints_replies_and_nothing_else(scripted):
    shown = edgekiln("chat", scripted["gguf"], "--prompt", "a", "--prompt", "b")
    assert (shown.returncode, shown.stdout) == (0, f"{THINKING[1]}\n{THINKING[1]}\n")
    assert shown.stderr.count("tokens/s") == 2
    shown = edgekiln("chat", scripted["gguf"], stdin=None, input="from a pipe")
    assert (shown.returncode, shown.stdout) == (0, f"{THINKING[1]}\n")


def test_json_has_every_turn(scripted):
    shown = edgekiln("chat", scripted["gguf"], "--prompt", "a", "--no-thinking", "--json")
    document = json.loads(shown.stdout)
    assert document["schema"] == "edgekiln.chat/1"
    assert [(turn["prompt"], turn["reply"], turn["stop"]) for turn in document["turns"]] == [("a", "川", "end of turn")]


def test_an_artifact_that_says_nothing_fails(tmp_path):
    checkpoint = open_checkpoint(str(scripted_checkpoint(tmp_path / "mute", ("assistant\n", ""))))
    export(checkpoint, "gguf", Scheme("fp16"), tmp_path / "out")
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # the log stays after a failure
    shown = edgekiln("chat", tmp_path / "out", "--prompt", "Hello", env=environment)
    assert (shown.returncode, shown.stdout) == (4, "")
    assert "the artifact loads, but says nothing" in shown.stderr


def test_a_failure_shows_what_the_runtime_said(scripted, tmp_path):
    data = gguf_file(scripted["gguf"]).read_bytes()
    (tmp_path / "short.gguf").write_bytes(data[: len(data) // 2])
    shown = edgekiln("chat", tmp_path / "short.gguf", "--prompt", "a", env={**os.environ, "TMPDIR": str(tmp_path)})
    assert shown.returncode == 4
    assert "not within the file bounds" in shown.stderr
    (log,) = tmp_path.glob("edgekiln-chat-*.log")
    assert str(log) in shown.stderr


def test_a_reader_that_goes_away_is_no_error(scripted, tmp_path):
    command = f"'{sys.executable}' -m edgekiln chat '{scripted['gguf']}' --prompt a --prompt b | head -c 3"
    shown = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, check=False)
    assert shown.stdout == "né".encode()
    assert shown.returncode == 0, shown.stderr


@pytest.mark.skipif(os.name == "nt", reason="a pipe without a reader, /dev/full")
def test_json_that_nobody_reads_is_no_error_and_a_full_disk_is_one(scripted):
    command = [sys.executable, "-m", "edgekiln", "chat", scripted["gguf"], "--prompt", "a", "--json"]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as output:
        shown = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, check=False)
    assert (shown.returncode, shown.stderr.count("\n")) == (0, 1), shown.stderr  # the line with the speed
    if Path("/dev/full").exists():
        with Path("/dev/full").open("wb") as output:
            shown = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, check=False)
        assert shown.returncode == 5
        assert "standard output cannot be written" in shown.stderr


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_an_interrupt_of_the_command_ends_with_130(tiny, tmp_path):
    command = [sys.executable, "-m", "edgekiln", "chat", tiny["gguf"], "--prompt", "a", "--max-tokens", "100000"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as running:
        assert running.stdout is not None
        running.stdout.read(1)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=120)
    assert (running.returncode, errors.decode().splitlines()[-1]) == (130, "edgekiln: interrupted")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals")
def test_a_conversation_at_a_terminal(tiny):
    import pty

    outer, inner = pty.openpty()
    running = subprocess.Popen(
        [sys.executable, "-m", "edgekiln", "chat", str(tiny["gguf"]), "--max-tokens", "1500"],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        start_new_session=True,
    )
    os.close(inner)
    unread = b""

    def until(text: bytes) -> None:
        """Read up to and with `text`."""
        nonlocal unread
        deadline = time.monotonic() + 60
        while text not in unread and select.select([outer], [], [], deadline - time.monotonic())[0]:
            unread += os.read(outer, 4096)
        assert text in unread
        unread = unread.partition(text)[2]

    until(b"> ")
    os.write(outer, b"/help\n")
    until(b"/exit")
    until(b"> ")
    os.write(outer, b"Write\n")
    until(b"Write\r\n")
    until(b" ")  # of the reply
    running.send_signal(signal.SIGINT)
    until(b"stopped by Ctrl-C")
    until(b"> ")
    os.write(outer, b"/new\n")
    until(b"a new conversation")
    until(b"> ")
    os.write(outer, b"/exit\n")
    assert running.wait(30) == 0
    os.close(outer)
