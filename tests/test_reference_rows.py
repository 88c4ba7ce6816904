"""The truncated reference: its error is bounded, and its files are not trusted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from artifacts import artifact, gguf_file
from edgekiln.checkpoint import open_checkpoint
from edgekiln.errors import ArtifactError, StepError
from edgekiln.validators import RUNTIMES
from edgekiln.validators.corpus import read_corpus
from edgekiln.validators.hf_tokenizer import encode, load_tokenizer
from edgekiln.validators.parity import RowScorer
from edgekiln.validators.reference_rows import (
    MAX_ROW_BYTES,
    TRUNCATION,
    RowReader,
    RowWriter,
    Truncation,
    truncate,
)
from reference_model import WholeModel

VOCABULARY = 3000
TIGHT = Truncation(2.0**-10, 16, 700)
Floats = NDArray[np.float32]


def log_softmax(values: Floats) -> NDArray[np.float64]:
    wide = values.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


def exact(reference: Floats, artifact: Floats) -> NDArray[np.float64]:
    log_p, log_q = log_softmax(reference), log_softmax(artifact)
    return np.asarray((np.exp(log_p) * (log_p - log_q)).sum(axis=1))


def store(directory: Path, logits: Floats, limits: Truncation = TIGHT, chunk: int = 100) -> RowReader:
    following = np.arange(len(logits)) % logits.shape[1]
    with RowWriter(directory, "r", limits) as writer:
        for start in range(0, len(logits), chunk):
            writer.add(logits[start : start + chunk], following[start : start + chunk].tolist())
    assert (writer.vocabulary, writer.positions) == (logits.shape[1], len(logits))
    return RowReader(directory, "r", logits.shape[1])


def kept(row: Floats, limits: Truncation) -> NDArray[np.int64]:
    shifted = row - row.max()
    weights = np.exp(shifted)
    return truncate(shifted, weights, float(weights.sum(dtype=np.float64)), limits)


def check_bounds(reference: Floats, found: Floats, directory: Path, limits: Truncation) -> tuple[float, float]:
    """Check truncated <= exact <= truncated + P · R²/8 at each position, and return both means.

    R is the range of log p/q within the tail: KL(p ‖ q) <= R²/8 by Hoeffding's lemma, as q/p has the mean 1 under p.
    """
    rows = store(directory, reference, limits).read(0, len(reference))
    scores = RowScorer(reference.shape[1]).score(rows, found)
    true = exact(reference, found)
    ratio = log_softmax(reference) - log_softmax(found)
    for index in range(len(reference)):
        tail = np.ones(reference.shape[1], bool)
        tail[rows.kept(index)[0]] = False
        spread = np.ptp(ratio[index][tail]) if tail.any() else 0.0
        bound = scores.tail[index] * spread**2 / 8
        noise = 1e-6 * true[index] + 1e-7  # float32 exponentials
        assert scores.kld[index] <= true[index] + noise
        assert true[index] <= scores.kld[index] + bound + noise
    return float(scores.kld.mean()), float(true.mean())


@pytest.mark.parametrize("seed", range(8))
def test_error_is_bounded_for_any_distributions(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    width, noise = random.choice([0.5, 2.0, 6.0]), random.choice([1e-3, 0.3, 3.0])
    reference = random.normal(0, width, (60, VOCABULARY)).astype(np.float32)
    found = (reference + random.normal(0, noise, reference.shape)).astype(np.float32)
    limits = Truncation(2.0**-10, 16, int(random.choice([16, 100, 2999])))
    truncated, true = check_bounds(reference, found, tmp_path, limits)
    assert truncated <= true * (1 + 1e-6) + 1e-7


@pytest.fixture(scope="module")
def tiny() -> tuple[list[int], Floats]:
    checkpoint = open_checkpoint("tiny-qwen3")
    tokenizer = load_tokenizer(checkpoint.directory)
    ids = [token for document in read_corpus().documents[:6] for token in encode(tokenizer, document.text)[:20]]
    return ids, np.concatenate([rows.copy() for _, _, rows in WholeModel(checkpoint).logits([ids])])


@pytest.mark.parametrize(("container", "precision"), [("gguf", "int4"), ("onnx", "int4"), ("onnx", "nf4")])
def test_error_of_the_mean_is_below_four_percent_for_real_artifacts(
    tmp_path: Path, tiny: tuple[list[int], Floats], container: str, precision: str
) -> None:
    ids, reference = tiny
    directory = artifact(container, precision, tmp_path)
    runtime = RUNTIMES[container]()
    try:
        runtime.load(gguf_file(directory) if container == "gguf" else directory, 1, 512)
        found = np.concatenate([chunk.copy() for chunk in runtime.logits(ids)])
    finally:
        runtime.end()
    # The embedded vocabulary of 4,096 would be kept whole: the limits are those of 151,936 tokens, scaled.
    truncated, true = check_bounds(reference, found, tmp_path, Truncation(TRUNCATION.tail_mass, 16, 1024))
    assert 0.96 * true < truncated < true  # 1.1 % at the real limits, on a real vocabulary
    scores = RowScorer(reference.shape[1]).score(store(tmp_path, reference, TRUNCATION).read(0, len(ids)), found)
    whole = float(scores.kld.mean())
    assert whole == pytest.approx(true, rel=1e-5)


def test_as_few_tokens_are_kept_as_the_mass_allows() -> None:
    row = np.random.default_rng(0).normal(0, 6, VOCABULARY).astype(np.float32)
    ids = kept(row, TIGHT)
    p = np.exp(log_softmax(row[None])[0])
    assert p[ids].sum() >= 1 - 2.0**-10 > p[ids[:-1]].sum()
    assert 16 < len(ids) < 700
    np.testing.assert_array_equal(ids, np.argsort(-row, kind="stable")[: len(ids)])


def test_least_most_and_small_vocabularies() -> None:
    certain, flat = np.zeros(VOCABULARY, np.float32), np.zeros(VOCABULARY, np.float32)
    certain[7] = 50
    assert len(kept(certain, TIGHT)) == 16
    assert kept(certain, TIGHT)[0] == 7
    assert len(kept(flat, TIGHT)) == 700
    assert kept(flat, Truncation(0.5, 1, VOCABULARY)).tolist() == list(range(VOCABULARY))  # equal ones by their ids
    assert len(kept(certain[:100], TIGHT)) == 100


def test_rows_come_back_whole_whatever_the_chunks_were(tmp_path: Path) -> None:
    logits = np.random.default_rng(1).normal(0, 3, (50, VOCABULARY)).astype(np.float32)
    files = []
    for chunk in (1, 7, 50):
        directory = tmp_path / str(chunk)
        directory.mkdir()
        store(directory, logits, chunk=chunk)
        files.append({path.name: path.read_bytes() for path in directory.iterdir()})
    assert files[0] == files[1] == files[2]
    assert sum(map(len, files[0].values())) <= 50 * MAX_ROW_BYTES
    reader = RowReader(tmp_path / "1", "r", VOCABULARY)
    log_p = log_softmax(logits)
    rows = reader.read(20, 10)
    assert len(rows) == 10
    assert rows.next_ids.tolist() == list(range(20, 30))
    np.testing.assert_allclose(
        rows.next_logits - np.log(rows.totals), log_p[np.arange(20, 30), np.arange(20, 30)], 1e-5
    )
    for index in range(10):
        ids, relative = rows.kept(index)
        np.testing.assert_allclose(relative - np.log(rows.totals[index]), log_p[20 + index][ids], atol=1e-5)


def test_a_reference_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    for bad in (np.nan, np.inf, -np.inf):
        logits = np.zeros((2, 40), np.float32)
        logits[1, 3] = bad
        with pytest.raises(StepError, match="NaN or infinite") as caught:
            store(tmp_path, logits)
        assert not isinstance(caught.value, ArtifactError)
    with RowWriter(tmp_path, "r") as writer, pytest.raises(StepError, match="shape"):
        writer.add(np.zeros((2, 40), np.float32), [1])


def overwrite(name: str, at: int, value: bytes) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        path = directory / name
        data = bytearray(path.read_bytes())
        data[at : at + len(value)] = value
        path.write_bytes(data)

    return damage


def cut(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).write_bytes((directory / name).read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda directory: (directory / "r.ids").unlink(), "cannot be read"),
        (cut("r.rows"), "ends before"),
        (cut("r.ids"), "ends before"),
        (cut("r.logits"), "ends before"),
        (overwrite("r.rows", 8, b"\xff" * 4), "keeps no token, or more"),
        (overwrite("r.rows", 8, b"\0" * 4), "keeps no token"),
        (overwrite("r.rows", 0, b"\xff" * 8), "do not follow"),
        (overwrite("r.rows", 0, b"\xff" * 7 + b"\x00"), "do not follow"),
        (overwrite("r.rows", 32, b"\x01"), "do not follow"),
        (overwrite("r.rows", 12, b"\xff" * 4), "beyond its vocabulary"),
        (overwrite("r.rows", 16, np.float64(np.nan).tobytes()), "probabilities"),
        (overwrite("r.rows", 16, np.float64(0.5).tobytes()), "probabilities"),
        (overwrite("r.rows", 24, np.float64(1).tobytes()), "probabilities"),
        (overwrite("r.ids", 4, b"\xff" * 4), "beyond its vocabulary"),
        (lambda d: overwrite("r.ids", 4, (d / "r.ids").read_bytes()[:4])(d), "twice"),
        (overwrite("r.logits", 0, np.float32(1).tobytes()), "sorted"),
        (overwrite("r.logits", 8, np.float32(-1e9).tobytes()), "sorted"),
        (overwrite("r.logits", 4, np.float32(np.nan).tobytes()), "sorted"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    logits = np.random.default_rng(1).normal(0, 3, (5, VOCABULARY)).astype(np.float32)
    reader = store(tmp_path, logits)
    reader.read(0, 5)
    damage(tmp_path)
    with pytest.raises(StepError, match=message) as caught:
        reader.read(0, 5)
    assert not isinstance(caught.value, ArtifactError)


def test_reading_beyond_the_end_is_refused(tmp_path: Path) -> None:
    reader = store(tmp_path, np.zeros((5, 40), np.float32))
    with pytest.raises(StepError, match="ends before entry 6"):
        reader.read(3, 3)
