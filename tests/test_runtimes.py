"""Every runtime on the embedded checkpoint, end to end, in processes of their own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from artifacts import artifact, gguf_file, swap_bytes
from checkpoints import change_weights, make_checkpoint
from edgekiln.checkpoint import Checkpoint, embedded_directory, open_checkpoint
from edgekiln.errors import ArtifactError, EdgekilnError, ExitCode, MachineError, StepError, UsageError
from edgekiln.process import run_task
from edgekiln.validators import RUNTIME_NAMES, RUNTIMES
from edgekiln.validators.base import LOGIT_CHUNK, MeasurementProtocol
from edgekiln.validators.compare import read_reference
from edgekiln.validators.corpus import read_prompts
from edgekiln.validators.gates import TIMED
from edgekiln.validators.gguf_read import read_header
from edgekiln.validators.hf_tokenizer import encode, load_tokenizer
from edgekiln.validators.latency import aggregate
from edgekiln.validators.reference_rows import MAX_ROW_BYTES
from edgekiln.validators.tasks import TASKS
from edgekiln.validators.validate import (
    ArtifactMetrics,
    Expected,
    Reference,
    make_reference,
    open_reference,
    sample_latency,
    sample_load,
    validate_artifact,
)

PROTOCOL = MeasurementProtocol(
    window=100,
    windows=3,
    greedy_tokens=6,
    prefill_tokens=(20, 7),
    decode_tokens=(5, 2),
    processes=1,
    repeats=3,
    context=300,
    threads=1,
)
CHECKPOINT = open_checkpoint("tiny-qwen3")
MEMORY = 1 << 30


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    directory = tmp_path_factory.mktemp("reference")
    return make_reference(CHECKPOINT, PROTOCOL, directory, log=directory / "log", memory_bytes=MEMORY)


def validate(path: Path, reference: Reference, tmp_path: Path) -> ArtifactMetrics:
    return validate_artifact(path, reference, PROTOCOL, Expected(), log=tmp_path / "log")


def _offsets(directory: Path, part: str) -> tuple[int, int]:
    """Return offset and length of the one external tensor of a graph whose name has `part`."""
    model = onnx.load(directory / "model.onnx", load_external_data=False)
    (tensor,) = (t for t in model.graph.initializer if part in t.name and t.external_data)
    fields = {entry.key: entry.value for entry in tensor.external_data}
    return int(fields["offset"]), int(fields["length"])


def contents(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.rglob("*")}


def test_tables_agree() -> None:
    assert set(RUNTIMES) == set(RUNTIME_NAMES)
    assert {"reference", "parity", "latency", "structure", "tokenizer"} <= set(TASKS)


def test_reference_is_kept_whole(reference: Reference) -> None:
    assert reference.scored_tokens == 3 * 99
    assert reference.corpus["tokens"] == 300
    kept = sum(path.stat().st_size for path in reference.directory.glob("windows*"))
    assert 3 * 99 * 4096 * 4 < kept <= 3 * 99 * MAX_ROW_BYTES  # so small a vocabulary is kept whole
    assert len(reference.latency_prompt) == max(PROTOCOL.prefill_tokens)
    assert open_reference(reference.directory, CHECKPOINT) == reference


def test_a_reference_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "reference.json").write_text('{"schema": "edgekiln.reference/999"}')
    with pytest.raises(StepError, match="another version") as caught:
        read_reference(tmp_path)
    assert not isinstance(caught.value, ArtifactError)  # no artifact is to blame


def test_the_context_must_hold_windows_prompts_and_replies() -> None:
    least = MeasurementProtocol(window=2, prefill_tokens=(1,), decode_tokens=(1,), greedy_tokens=6, context=70)
    for change in ({"context": 69}, {"greedy_tokens": 7}, {"window": 71}, {"prefill_tokens": (1, 70)}):
        with pytest.raises(UsageError, match="context of the measurement"):
            dataclasses.replace(least, **change)


def test_prompts_that_do_not_fit_are_left_out_whole(reference: Reference, tmp_path: Path) -> None:
    every = [prompt.ids for prompt in read_reference(reference.directory).text.prompts]
    lengths = sorted(map(len, every))
    assert lengths[0] < lengths[-1]
    short = make_checkpoint(tmp_path / "short", num_layers=1)
    template = short / "chat_template.jinja"
    padding = "a b c d e f g h " * 20
    template.write_text("{{ messages[0]['content'] }}{% if 'x' in messages[0]['content'] %}" + padding + "{% endif %}")
    protocol = dataclasses.replace(PROTOCOL, windows=1, context=106)
    made = make_reference(
        open_checkpoint(str(short)), protocol, tmp_path / "out", log=tmp_path / "log", memory_bytes=MEMORY
    )
    kept = [list(prompt.ids) for prompt in read_reference(tmp_path / "out").text.prompts]
    tokenizer = load_tokenizer(short)
    assert kept == [encode(tokenizer, text) for text in read_prompts() if "x" not in text]
    assert 0 < made.greedy_prompts == len(kept) < len(read_prompts())
    template.write_text("{{ messages[0]['content'] }}" + padding)
    with pytest.raises(UsageError, match="no prompt fits a context of 106 tokens"):
        make_reference(
            open_checkpoint(str(short)), protocol, tmp_path / "none", log=tmp_path / "log", memory_bytes=MEMORY
        )


@pytest.mark.parametrize(("container", "limit"), [("gguf", 1e-5), ("onnx", 1e-6)])
def test_fp16_artifacts_equal_the_reference_and_are_not_touched(
    container: str, limit: float, reference: Reference, tmp_path: Path
) -> None:
    directory = artifact(container, "fp16", tmp_path)
    before = contents(directory)
    found = validate(directory, reference, tmp_path)
    assert {check.outcome for check in found.structure} == {"pass", "known_divergence"}
    assert found.parity is not None
    assert found.parity.mean_kld < limit
    assert found.parity.top1_agreement > 0.99
    assert found.parity.perplexity == pytest.approx(found.parity.reference_perplexity, rel=1e-3)
    assert found.parity.greedy_agreement_tokens == PROTOCOL.greedy_tokens
    assert found.bits_per_weight == pytest.approx(16, rel=0.1)
    assert contents(directory) == before


def test_foundry_local_replies_as_ort_genai_does(reference: Reference, tmp_path: Path) -> None:
    directory = artifact("foundry-local", "int4", tmp_path)
    before = contents(directory)
    found = validate(directory, reference, tmp_path)
    chat = {check.check: check for check in found.structure}["foundry/chat"]
    assert chat.outcome == "pass", chat.detail
    assert found.parity is not None
    assert 1e-4 < found.parity.mean_kld < 0.25
    assert contents(directory) == before


def test_swapped_layers_show_in_gguf(reference: Reference, tmp_path: Path) -> None:
    path = gguf_file(artifact("gguf", "int8", tmp_path))
    tensors = {tensor.name: tensor for tensor in read_header(path).tensors}
    first, second = tensors["blk.1.ffn_up.weight"], tensors["blk.4.ffn_up.weight"]
    swap_bytes(path, first.offset, second.offset, first.nbytes)
    found = validate(path, reference, tmp_path)
    assert found.parity is not None
    assert found.parity.mean_kld > 0.05


def test_swapped_layers_show_in_onnx(reference: Reference, tmp_path: Path) -> None:
    directory = artifact("onnx", "fp16", tmp_path)
    first, length = _offsets(directory, "layers.1.mlp.up_proj")
    second, _ = _offsets(directory, "layers.4.mlp.up_proj")
    swap_bytes(directory / "model.onnx.data", first, second, length)
    found = validate(directory, reference, tmp_path)
    assert found.parity is not None
    assert found.parity.mean_kld > 0.05


def test_an_unsound_artifact_is_not_run(reference: Reference, tmp_path: Path) -> None:
    path = gguf_file(artifact("gguf", "int8", tmp_path))
    path.write_bytes(path.read_bytes()[:-1000])
    found = validate(path, reference, tmp_path)
    assert found.parity is None
    assert "gguf/bounds" in found.not_measured["parity"]


def refused(found: ArtifactMetrics, detail: str) -> bool:
    """Tell whether the artifact's structure was reported, and its parity was a failed check."""
    (failed,) = (check for check in found.structure if check.outcome == "fail" and check.check.startswith("parity/"))
    return (
        found.parity is None
        and failed.check == "parity/run"
        and detail in failed.detail == found.not_measured["parity"] == found.not_measured["latency"]
        and len(found.structure) > 4
        and found.weights_bytes is not None
        and bool(found.weights_by_type)
    )


def test_what_only_the_full_runtime_refuses_is_a_failed_check(reference: Reference, tmp_path: Path) -> None:
    path = gguf_file(artifact("gguf", "int8", tmp_path))
    path.write_bytes(path.read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_uq.weight"))
    assert refused(validate(path, reference, tmp_path), "llama.cpp cannot load")


@pytest.mark.parametrize("container", ["gguf", "onnx"])
def test_nan_logits_are_a_failed_check(container: str, reference: Reference, tmp_path: Path) -> None:
    directory = artifact(container, "fp16", tmp_path)
    if container == "gguf":
        path = gguf_file(directory)
        place = {tensor.name: tensor for tensor in read_header(path).tensors}["blk.1.ffn_down.weight"].offset
    else:
        path = directory / "model.onnx.data"
        place = _offsets(directory, "layers.1.mlp.down_proj")[0]
    data = bytearray(path.read_bytes())
    data[place : place + 128] = np.full(64, np.nan, dtype="<f2").tobytes()
    path.write_bytes(data)
    assert refused(validate(directory, reference, tmp_path), "NaN or infinite")


def test_a_graph_that_fails_when_it_runs_is_a_failed_check(reference: Reference, tmp_path: Path) -> None:
    directory = artifact("onnx", "fp16", tmp_path)
    model = onnx.load(directory / "model.onnx", load_external_data=False)
    target = next(node for node in model.graph.node if "MatMul" in node.op_type and "up_proj" in node.name)
    shape = onnx.helper.make_tensor("impossible", onnx.TensorProto.INT64, [1], [7])
    model.graph.initializer.append(shape)
    at = list(model.graph.node).index(target)
    reshape = onnx.helper.make_node("Reshape", [target.input[0], "impossible"], ["reshaped"])
    target.input[0] = "reshaped"
    model.graph.node.insert(at, reshape)
    (directory / "model.onnx").write_bytes(model.SerializeToString())
    found = validate(directory, reference, tmp_path)
    assert {check.check for check in found.structure if check.outcome == "fail"} & {"parity/run", "tokenizer/ids"}
    assert found.parity is None


@pytest.mark.parametrize("task", ["tokenizer", "foundry_chat", "genai_chat", "parity"])
@pytest.mark.parametrize("error", [StepError("killed by SIGSEGV"), MachineError("no runtime")])
def test_crashes_and_missing_runtimes_are_not_the_artifacts_fault(
    task: str, error: EdgekilnError, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = {"check": "files", "outcome": "pass", "detail": ""}
    weights = {"weights_bytes": 1, "weights_by_type": {}, "conservation": None, "precision": None}
    sound = {"checks": [check], "sound": True, "requirements": [], **weights}
    reply = {"text": "", "prompt_tokens": 1, "first_token_seconds": 0.0}
    chat = {"replies": [reply], "load_seconds": 0.0}

    def run(module: str, name: str, *_: object, **__: object) -> dict[str, object]:
        if name == task:
            raise error
        return sound if name == "structure" else {"checks": []} if name == "tokenizer" else chat

    directory = artifact("foundry-local", "int4", tmp_path)
    monkeypatch.setattr("edgekiln.validators.validate.run_task", run)
    monkeypatch.setattr("edgekiln.validators.validate.check_templates", lambda *_, **__: [])
    with pytest.raises(type(error), match=str(error)):
        validate(directory, reference, tmp_path)


@pytest.mark.parametrize("broken", ["load", "chat"])
def test_foundry_local_leaves_nothing_behind_when_it_fails(broken: str, tmp_path: Path) -> None:
    directory = artifact("foundry-local", "int4", tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    if broken == "load":
        (directory / "genai_config.json").write_text("{}")
    else:
        path = directory / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": "{{ raise_exception('no') }}"}))
        (directory / "chat_template.jinja").unlink(missing_ok=True)
    request = {"path": str(directory), "protocol": dataclasses.asdict(PROTOCOL)}
    with pytest.raises(ArtifactError, match=f"Foundry Local cannot {broken}"):
        run_task("edgekiln.validators.tasks", "foundry_chat", request, log=tmp_path / "log",
                 environment={"TMPDIR": str(scratch)})  # fmt: skip
    assert list(scratch.glob("edgekiln-foundry-*")) == []


@pytest.mark.parametrize("kind", ["gguf", "onnx", "reference"])
def test_latency_has_every_figure(kind: str, reference: Reference, tmp_path: Path) -> None:
    path = embedded_directory() if kind == "reference" else artifact(kind, "fp16", tmp_path)
    path = gguf_file(path) if kind == "gguf" else path
    sample = sample_latency(kind, path, reference, PROTOCOL, log=tmp_path / "log")
    found = aggregate([sample], RUNTIME_NAMES[kind]).values
    assert set(found) == {*TIMED, "pp20", "pp7", "tg5", "tg2"} - {"cold_load_seconds"}
    assert 0 < found["load_seconds"] < 60
    assert 0 < found["time_to_first_token_seconds"] < 60
    assert all(value > 1 for name, value in found.items() if name.startswith(("pp", "tg")))
    assert 10 << 20 < found["steady_rss_bytes"] <= found["peak_rss_bytes"] < 4 << 30
    assert sample.cpus is None or len(sample.cpus) == PROTOCOL.threads


@pytest.mark.parametrize("kind", ["gguf", "onnx"])
def test_latency_knows_depths_and_batches(kind: str, reference: Reference, tmp_path: Path) -> None:
    path = artifact(kind, "int8" if kind == "onnx" else "q8_0", tmp_path)
    path = gguf_file(path) if kind == "gguf" else path
    protocol = dataclasses.replace(PROTOCOL, depths=(4, 250), batches=(1, 8))
    found = sample_latency(kind, path, reference, protocol, log=tmp_path / "log").values
    names = {"tg2 @ d4", "tg2 @ d250", "tg2 × 1", "tg2 × 8"}
    assert names <= set(found)
    assert all(found[name] > 1 for name in names)


@pytest.mark.parametrize("kind", ["gguf", "onnx"])
def test_a_load_is_timed_alone(kind: str, tmp_path: Path) -> None:
    path = artifact(kind, "fp16", tmp_path)
    path = gguf_file(path) if kind == "gguf" else path
    assert 0 < sample_load(kind, path, PROTOCOL, log=tmp_path / "log") < 60


@pytest.mark.parametrize("kind", ["gguf", "onnx", "reference"])
def test_logits_come_in_bounded_chunks_and_lead_to_the_greedy_reply(kind: str, tmp_path: Path) -> None:
    path = embedded_directory() if kind == "reference" else artifact(kind, "fp16", tmp_path)
    path = gguf_file(path) if kind == "gguf" else path
    ids = [(7 * i) % 4000 for i in range(2 * LOGIT_CHUNK + 22)]
    answer = run_task(Path(__file__).stem, "probe", {"kind": kind, "path": str(path), "ids": ids}, log=tmp_path / "log",
                      environment={"PYTHONPATH": str(Path(__file__).parent)})  # fmt: skip
    assert answer["rows"] == [LOGIT_CHUNK, LOGIT_CHUNK, 22]
    assert answer["dtype"] == "float32"
    assert answer["again"] == answer["first"]
    assert answer["greedy"][0] == answer["first_token"] == answer["best"]
    assert answer["stopped"] == answer["greedy"][:1]


@pytest.mark.parametrize("kind", ["gguf", "onnx", "foundry-local", "reference"])
def test_what_no_runtime_can_load_is_an_artifact_error(kind: str, reference: Reference, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "genai_config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="cannot load"):
        sample_latency(kind, tmp_path / "x", reference, PROTOCOL, log=tmp_path / "log")
    if kind == "foundry-local":
        request = {"path": str(tmp_path / "x"), "protocol": dataclasses.asdict(PROTOCOL)}
        with pytest.raises(ArtifactError, match="Foundry Local cannot load"):
            run_task("edgekiln.validators.tasks", "foundry_chat", request, log=tmp_path / "log")


def test_a_context_that_the_model_has_not_is_an_error(reference: Reference, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "short", config={"max_position_embeddings": 64})
    with pytest.raises(ArtifactError, match="context of 64 tokens"):
        sample_latency("reference", checkpoint, reference, PROTOCOL, log=tmp_path / "log")


def extreme_checkpoint(directory: Path, *values: float) -> Checkpoint:
    made = make_checkpoint(directory, dtype="F32")
    changes = {at: np.float32(value).tobytes() for at, value in enumerate(values)}
    change_weights(made, "model.embed_tokens.weight", changes)
    return open_checkpoint(str(made))


def test_weights_that_fp16_rounds_to_zero_are_counted(tmp_path: Path) -> None:
    """65519 is the largest integer that still rounds to 65504."""
    checkpoint = extreme_checkpoint(tmp_path / "small", 1e-9, -1e-10, 65519)
    made = make_reference(checkpoint, PROTOCOL, tmp_path / "out", log=tmp_path / "log", memory_bytes=MEMORY)
    assert made.overflowed == 0
    assert made.underflowed >= 2


def test_weights_beyond_fp16_make_no_reference(tmp_path: Path) -> None:
    checkpoint = extreme_checkpoint(tmp_path / "large", 70000, -70000, 65520)
    with pytest.raises(StepError, match="^3 weights .* does not fit fp16") as caught:
        make_reference(checkpoint, PROTOCOL, tmp_path / "out", log=tmp_path / "log", memory_bytes=MEMORY)
    assert caught.value.exit_code == ExitCode.STEP_FAILED
    assert not isinstance(caught.value, ArtifactError)


def test_a_reference_that_is_nan_itself_blames_no_artifact(tmp_path: Path) -> None:
    checkpoint = extreme_checkpoint(tmp_path / "nan", float("nan"))
    with pytest.raises(StepError, match="holds 1 NaN"):
        make_reference(checkpoint, PROTOCOL, tmp_path / "out", log=tmp_path / "log", memory_bytes=MEMORY)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
def test_a_config_cannot_choose_a_kernel_of_a_hub(key: str, tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path / "kernel", config={key: "nobody/kernel"})
    made = make_reference(
        open_checkpoint(str(directory)), PROTOCOL, tmp_path / "out", log=tmp_path / "log", memory_bytes=MEMORY
    )
    assert made.scored_tokens == 3 * 99


def test_a_crashing_runtime_is_an_error_of_the_step(reference: Reference, tmp_path: Path) -> None:
    broken = artifact("gguf", "int8", tmp_path)
    gguf_file(broken).write_bytes(b"GGUF" + b"\xff" * 64)
    with pytest.raises(StepError):
        sample_latency("gguf", gguf_file(broken), reference, PROTOCOL, log=tmp_path / "log")


def _probe(request: dict[str, object]) -> dict[str, object]:
    """Runs in the child: what a runtime says about `ids`, twice."""
    runtime, ids = RUNTIMES[str(request["kind"])](), list(request["ids"])  # type: ignore[call-overload]
    runtime.load(Path(str(request["path"])), 1, 512)
    rows = [chunk.copy() for chunk in runtime.logits(ids)]
    again = [chunk.copy() for chunk in runtime.logits(ids)]
    greedy = runtime.greedy(ids, 5, ())
    answer = {
        "rows": [len(chunk) for chunk in rows],
        "dtype": str(rows[0].dtype),
        "first": float(rows[0].sum(dtype=np.float64)),
        "again": float(again[0].sum(dtype=np.float64)),
        "best": int(rows[-1][-1].argmax()),
        "greedy": greedy,
        "first_token": runtime.first_token(ids),
        "stopped": runtime.greedy(ids, 5, {greedy[0]}),
    }
    runtime.end()
    return answer


if __name__ == "__main__":
    from edgekiln.process import serve

    serve({"probe": _probe})
