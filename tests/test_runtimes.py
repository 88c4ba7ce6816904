"""Every runtime on the embedded checkpoint, end to end, in processes of their own."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest

from artifacts import artifact, gguf_file, swap_bytes
from checkpoints import make_checkpoint
from edgekiln.checkpoint import embedded_directory, open_checkpoint
from edgekiln.errors import ArtifactError, StepError
from edgekiln.process import run_task
from edgekiln.validators import RUNTIME_NAMES, RUNTIMES
from edgekiln.validators.base import LOGIT_CHUNK, MeasurementProtocol
from edgekiln.validators.gguf_header import read_header
from edgekiln.validators.latency import aggregate
from edgekiln.validators.tasks import TASKS, read_reference
from edgekiln.validators.validate import (
    ArtifactMetrics,
    Reference,
    make_reference,
    open_reference,
    sample_latency,
    validate_artifact,
)

PROTOCOL = MeasurementProtocol(
    window=100,
    windows=3,
    greedy_tokens=6,
    prefill_tokens=20,
    decode_tokens=5,
    processes=1,
    repeats=3,
    context=300,
    threads=1,
)
CHECKPOINT = open_checkpoint("tiny-qwen3")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    directory = tmp_path_factory.mktemp("reference")
    return make_reference(CHECKPOINT, PROTOCOL, directory, log=directory / "log")


def validate(path: Path, reference: Reference, tmp_path: Path) -> ArtifactMetrics:
    return validate_artifact(path, reference, PROTOCOL, log=tmp_path / "log")


def contents(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.rglob("*")}


def test_tables_agree() -> None:
    assert set(RUNTIMES) == set(RUNTIME_NAMES)
    assert {"reference", "parity", "latency", "structure", "tokenizer"} <= set(TASKS)


def test_reference_is_kept_whole(reference: Reference) -> None:
    assert reference.scored_tokens == 3 * 99
    assert reference.corpus["tokens"] == 300
    assert (reference.directory / "logits.f32").stat().st_size == 3 * 99 * 4096 * 4
    assert len(reference.latency_prompt) == PROTOCOL.prefill_tokens
    assert open_reference(reference.directory, CHECKPOINT) == reference


def test_a_reference_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "reference.json").write_text('{"schema": "edgekiln.reference/999"}')
    with pytest.raises(ArtifactError, match="another version"):
        read_reference(tmp_path)


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
    model = onnx.load(directory / "model.onnx", load_external_data=False)
    regions = {}
    for tensor in model.graph.initializer:
        fields = {entry.key: entry.value for entry in tensor.external_data}
        if "up_proj" in tensor.name:
            regions[tensor.name] = (int(fields["offset"]), int(fields["length"]))
    (first, length), (second, _) = (regions[name] for name in sorted(regions) if ".1." in name or ".4." in name)
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


@pytest.mark.parametrize("kind", ["gguf", "onnx", "reference"])
def test_latency_has_every_figure(kind: str, reference: Reference, tmp_path: Path) -> None:
    path = embedded_directory() if kind == "reference" else artifact(kind, "fp16", tmp_path)
    path = gguf_file(path) if kind == "gguf" else path
    sample = sample_latency(kind, path, reference, PROTOCOL, log=tmp_path / "log")
    found = aggregate([sample], RUNTIME_NAMES[kind])
    assert 0 < found.load_seconds < 60
    assert 0 < found.time_to_first_token_seconds < 60
    assert found.prefill_tokens_per_second > 1
    assert found.decode_tokens_per_second > 1
    assert len(found.samples["decode_tokens_per_second"]) == 3
    assert 10 << 20 < found.peak_rss_bytes < 4 << 30


@pytest.mark.parametrize("kind", ["gguf", "onnx", "reference"])
def test_logits_come_in_bounded_chunks_and_lead_to_the_greedy_reply(kind: str, tmp_path: Path) -> None:
    path = embedded_directory() if kind == "reference" else artifact(kind, "fp16", tmp_path)
    path = gguf_file(path) if kind == "gguf" else path
    ids = [(7 * i) % 4000 for i in range(2 * LOGIT_CHUNK + 22)]
    answer = run_task(__name__, "probe", {"kind": kind, "path": str(path), "ids": ids}, log=tmp_path / "log",
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


def test_weights_beyond_fp16_are_counted_in_the_reference(tmp_path: Path) -> None:
    from checkpoints import change_weights

    directory = make_checkpoint(tmp_path / "extreme", dtype="F32")
    extremes = {0: np.float32(1e-9).tobytes(), 1: np.float32(-1e-10).tobytes(), 2: np.float32(65519).tobytes()}
    change_weights(directory, "model.embed_tokens.weight", extremes)
    made = make_reference(open_checkpoint(str(directory)), PROTOCOL, tmp_path / "out", log=tmp_path / "log")
    natural = read_reference(tmp_path / "out")["rounding"]
    assert made.overflowed == natural["overflowed"] == 0
    assert made.underflowed >= 2


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
