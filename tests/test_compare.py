"""A reference written once and artifacts compared with it, in this process."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from artifacts import artifact, gguf_file
from edgekiln.checkpoint import open_checkpoint
from edgekiln.errors import ArtifactError, StepError, UsageError
from edgekiln.validators import RUNTIMES
from edgekiln.validators.base import MeasurementProtocol
from edgekiln.validators.compare import (
    Comparison,
    Prompt,
    ReferenceText,
    choose_text,
    compare_artifact,
    describe_token,
    fitting,
    read_reference,
    repeat_to,
    write_reference,
)
from edgekiln.validators.corpus import Window, read_corpus, read_prompts
from edgekiln.validators.hf_tokenizer import decode, encode, load_tokenizer
from edgekiln.validators.parity_paths import LONG_POSITIONS
from edgekiln.validators.runtime_genai import GenaiRuntime
from reference_model import WholeModel

PROTOCOL = MeasurementProtocol(window=100, windows=4, greedy_tokens=6, decode_positions=16, threads=1, long_context=600)
CHECKPOINT = open_checkpoint("tiny-qwen3")
VOCABULARY = 50
ROUNDING = {"overflowed": 0, "underflowed": 3}
Chunk = tuple[int, int, NDArray[np.float32]]


def row(token: int, position: int) -> NDArray[np.float32]:
    """What the scripted model predicts."""
    return np.random.default_rng(1000 * token + position).normal(0, 3, VOCABULARY).astype(np.float32)


class ScriptedModel:
    """Predicts from the last token and its position; also a runtime, whose cache can be `late` by some positions."""

    libraries = ()

    def __init__(self, late: int = 0, context: int = 10_000) -> None:
        self.late, self.context = late, context
        self.loads: list[int] = []

    def rows(self, ids: Sequence[int]) -> NDArray[np.float32]:
        return np.stack([row(token, position) for position, token in enumerate(ids)])

    def greedy_reply(self, ids: Sequence[int], count: int) -> list[int]:
        return [(sum(ids) + n) % VOCABULARY for n in range(count)]


class ScriptedReference(ScriptedModel):
    def logits(self, sequences: Sequence[Sequence[int]]) -> Iterator[Chunk]:
        for number, ids in enumerate(sequences):
            rows = self.rows(ids)
            for first in range(0, len(ids), 7):
                yield number, first, rows[first : first + 7]

    def greedy(self, prompts: Sequence[Sequence[int]], count: int, stop: Collection[int]) -> list[list[int]]:
        assert stop == (49,)
        return [self.greedy_reply(prompt, count) for prompt in prompts]


class ScriptedRuntime(ScriptedModel):
    def load(self, path: Path, threads: int, context_tokens: int, sequences: int = 1) -> None:
        assert (path.name, threads, sequences) == ("any", 1, 1)
        self.loads.append(context_tokens)

    def logits(self, ids: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        yield self.rows(ids)

    def step_logits(self, prefix: Sequence[int], ids: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        for position, token in enumerate(ids, start=len(prefix)):
            yield row(token, position - self.late)[None]

    def greedy(self, ids: Sequence[int], count: int, stop: Collection[int]) -> list[int]:
        assert stop == (49,)
        return self.greedy_reply(ids, count)

    def declared_context(self) -> int:
        return self.context

    def end(self) -> None:
        self.loads.append(0)


def scripted_text(long: int = 0) -> ReferenceText:
    random = np.random.default_rng(0)
    windows = tuple(Window(name, tuple(random.integers(0, VOCABULARY, 40).tolist())) for name in ("a", "b", "a"))
    prompts = (Prompt("Hi", (1, 2)), Prompt("Ho", (3,)))
    long_ids = repeat_to([window.ids for window in windows], long) if long else ()
    corpus = {"name": "built-in", "sha256": "0" * 64, "tokens": 120}
    return ReferenceText(corpus, windows, long_ids, prompts, (49,), (1, 2, 3))


def words(ids: Sequence[int]) -> str:
    return " ".join(f"t{token}" for token in ids)


def scripted(directory: Path, runtime: ScriptedRuntime, long: int = 0) -> Comparison:
    protocol = MeasurementProtocol(window=40, greedy_tokens=4, threads=1, context=200)
    write_reference(ScriptedReference(), scripted_text(long), directory, protocol, ROUNDING)
    return compare_artifact(runtime, Path("any"), directory, protocol, words)  # type: ignore[arg-type] # a part of it


def test_the_reference_itself_is_at_no_distance(tmp_path: Path) -> None:
    runtime = ScriptedRuntime()
    found = scripted(tmp_path, runtime, long=300)
    parity = found.parity
    assert (parity.mean_kld, parity.max_kld, parity.top1_agreement, parity.rms_delta_p) == (0, 0, 1, 0)
    assert (parity.mean_kld_interval, parity.perplexity_ratio_interval) == ((0, 0), (1, 1))
    assert parity.perplexity == parity.reference_perplexity
    assert parity.worst_tokens == ()
    assert [(s.section, s.scored_tokens) for s in parity.sections] == [("a", 78), ("b", 39)]
    assert len(parity.kld_by_position) == 39
    assert [(r.prompt, r.reference, r.artifact, r.agreed_tokens) for r in parity.replies] == [
        ("Hi", "t3 t4 t5 t6", "t3 t4 t5 t6", 4),
        ("Ho", "t3 t4 t5 t6", "t3 t4 t5 t6", 4),
    ]
    assert parity.decode is not None
    assert (parity.decode.mean_kld, parity.decode.kld_from_prefill, parity.decode.scored_tokens) == (0, 0, 40)
    assert parity.long_context is not None
    assert (parity.long_context.scored_tokens, parity.long_context.context_tokens) == (LONG_POSITIONS, 299)
    assert parity.long_context.mean_kld == 0
    assert [(check.check, check.outcome) for check in found.checks] == [
        ("parity/decode", "pass"),
        ("parity/long_context", "pass"),
    ]
    assert runtime.loads == [200, 0, 300]


def test_a_cache_that_is_late_shows_in_decoding_alone(tmp_path: Path) -> None:
    found = scripted(tmp_path, ScriptedRuntime(late=1))
    assert found.parity.mean_kld == 0
    (check,) = found.checks
    assert (check.outcome, check.findings[0].id) == ("fail", "parity/decode")


def test_an_artifact_with_a_short_context_is_not_measured_there(tmp_path: Path) -> None:
    runtime = ScriptedRuntime(context=299)
    found = scripted(tmp_path, runtime, long=300)
    assert found.parity.long_context is None
    assert (found.checks[1].outcome, "299" in found.checks[1].detail) == ("not_measured", True)
    assert runtime.loads == [200]


class Swapped(ScriptedReference):
    def logits(self, sequences: Sequence[Sequence[int]]) -> Iterator[Chunk]:
        first, second, *others = super().logits(sequences)
        yield from (second, first, *others)


class Short(ScriptedReference):
    def logits(self, sequences: Sequence[Sequence[int]]) -> Iterator[Chunk]:
        yield from list(super().logits(sequences))[:-1]


@pytest.mark.parametrize(("model", "match"), [(Swapped, "out of order"), (Short, "left out")])
def test_a_reference_that_skips_positions_is_a_fault(
    tmp_path: Path, model: type[ScriptedReference], match: str
) -> None:
    with pytest.raises(StepError, match=match):
        write_reference(model(), scripted_text(), tmp_path, MeasurementProtocol(), ROUNDING)
    assert not (tmp_path / "reference.json").exists()


def test_the_index_comes_back(tmp_path: Path) -> None:
    scripted(tmp_path, ScriptedRuntime(), long=300)
    index = read_reference(tmp_path)
    expected = scripted_text(300)
    assert (index.vocabulary, index.rounding) == (VOCABULARY, ROUNDING)
    assert (index.text.windows, index.text.long, index.text.stop) == (expected.windows, expected.long, (49,))
    assert [prompt.reply for prompt in index.text.prompts] == [(3, 4, 5, 6)] * 2
    assert index.text.corpus == expected.corpus


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "edgekiln.reference/1"},
        {"vocabulary": 2},
        {"vocabulary": 1 << 40},
        {"rounding": {}},
        {"text": {}},
        {"text": []},
    ],
)
def test_a_damaged_index_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    scripted(tmp_path, ScriptedRuntime())
    path = tmp_path / "reference.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(StepError, match="another version" if "schema" in change else "no usable reference") as caught:
        read_reference(tmp_path)
    assert not isinstance(caught.value, ArtifactError)
    for text in ("[1]", "{", "[" * 100_000, '{"schema": "edgekiln.reference/2"}'):
        path.write_text(text)
        with pytest.raises(StepError, match="no usable reference"):
            read_reference(tmp_path)
    path.unlink()
    with pytest.raises(StepError, match="no usable reference"):
        read_reference(tmp_path)


def test_texts() -> None:
    assert repeat_to([[1, 2], [3]], 7) == (1, 2, 3, 1, 2, 3, 1)
    prompts = [Prompt("a", tuple(range(20))), Prompt("b", tuple(range(480)))]
    assert fitting(prompts, MeasurementProtocol(greedy_tokens=32)) == tuple(prompts)
    assert fitting(prompts, MeasurementProtocol(greedy_tokens=33)) == (prompts[0],)
    with pytest.raises(UsageError, match="no prompt fits a context of 512"):
        fitting(prompts[1:], MeasurementProtocol(greedy_tokens=33))
    assert describe_token(7, words) == "t7"
    assert describe_token(7, lambda _: "\ufffd") == "<7>"
    assert describe_token(7, lambda _: "") == "<7>"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("reference")
    tokenizer = load_tokenizer(CHECKPOINT.directory)
    text = choose_text(
        read_corpus(),
        read_prompts()[:2],
        PROTOCOL,
        encode=lambda part: encode(tokenizer, part),
        render=lambda part: part,
        stop=CHECKPOINT.config.eos_token_ids,
        longest=CHECKPOINT.config.max_position_embeddings,
    )
    assert len(text.long) == 600
    write_reference(WholeModel(CHECKPOINT, 600), text, directory, PROTOCOL, ROUNDING)
    return directory


def compare(container: str, path: Path, reference: Path) -> Comparison:
    tokenizer = load_tokenizer(CHECKPOINT.directory)
    runtime = RUNTIMES[container]()
    try:
        return compare_artifact(runtime, path, reference, PROTOCOL, lambda ids: decode(tokenizer, ids))
    finally:
        runtime.end()


@pytest.mark.parametrize(
    ("container", "precision", "least", "most"),
    [("gguf", "fp16", 0, 1e-5), ("gguf", "int4", 0.005, 0.1), ("onnx", "fp16", 0, 1e-6), ("onnx", "int4", 0.005, 0.1)],
)
def test_sound_artifacts_pass_on_every_path(
    container: str, precision: str, least: float, most: float, reference: Path, tmp_path: Path
) -> None:
    directory = artifact(container, precision, tmp_path)
    found = compare(container, gguf_file(directory) if container == "gguf" else directory, reference)
    assert [check.outcome for check in found.checks] == ["pass", "pass"], found.checks
    parity = found.parity
    assert parity.decode is not None
    assert parity.long_context is not None
    for kld in (parity.mean_kld, parity.decode.mean_kld, parity.long_context.mean_kld):
        assert least <= kld < most
    assert parity.scored_tokens == 4 * 99
    assert (parity.decode.scored_tokens, parity.long_context.context_tokens) == (16, 599)
    assert parity.mean_kld_interval is not None
    assert parity.mean_kld_interval[0] < parity.mean_kld < parity.mean_kld_interval[1]
    assert len(parity.worst_tokens) == 10
    assert parity.worst_tokens[0].kld == parity.max_kld
    assert all(reply.reference and reply.artifact for reply in parity.replies)


@pytest.mark.parametrize("precision", ["fp16", "int4"])
@pytest.mark.parametrize("subtracted", [0, 2])
def test_cache_lengths_off_by_one_fail_in_decoding(
    precision: str, subtracted: int, reference: Path, tmp_path: Path
) -> None:
    """The graph counts the tokens of the mask and subtracts one, for the attention operator."""
    directory = artifact("onnx", precision, tmp_path)
    model = onnx.load(directory / "model.onnx", load_external_data=False)
    by_output = {output: node for node in model.graph.node for output in node.output}
    (difference,) = (node for node in model.graph.node if node.op_type == "Sub")
    constant = by_output[difference.input[1]].attribute[0]
    old = onnx.numpy_helper.to_array(constant.t) if constant.HasField("t") else np.int64(constant.i)
    assert old == 1
    constant.CopyFrom(onnx.helper.make_attribute(constant.name, subtracted) if not constant.HasField("t") else constant)
    if constant.HasField("t"):
        constant.t.CopyFrom(onnx.numpy_helper.from_array(np.full_like(old, subtracted)))
    onnx.save(model, directory / "model.onnx")
    check = compare("onnx", directory, reference).checks[0]
    assert (check.check, check.outcome) == ("parity/decode", "fail"), check.detail


def test_genai_declares_the_context_of_its_configuration(tmp_path: Path) -> None:
    directory = artifact("onnx", "int4", tmp_path)
    runtime = GenaiRuntime()
    try:
        runtime.load(directory, 1, 512)
        assert runtime.declared_context() == CHECKPOINT.config.max_position_embeddings
        path = directory / "genai_config.json"
        config = json.loads(path.read_text())
        config["model"]["context_length"] = "many"
        path.write_text(json.dumps(config))
        with pytest.raises(ArtifactError, match="context_length of 'many'"):
            runtime.declared_context()
    finally:
        runtime.end()
