"""Parity: the formulas against a direct float64 computation, and laws they must keep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekiln.errors import ArtifactError, StepError
from edgekiln.validators.parity import (
    LogitRows,
    RowComparison,
    agreement,
    common_vocabulary,
    compare_rows,
    compare_window,
    summarize,
)

VOCABULARY = 500


def logits(rows: int, seed: int, noise: float = 0.0) -> NDArray[np.float32]:
    base = np.random.default_rng(0).normal(0, 4, (rows, VOCABULARY))
    return (base + noise * np.random.default_rng(seed).normal(size=base.shape)).astype(np.float32)


def log_softmax(values: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = values.astype(np.float64)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("noise", [1e-3, 0.1, 3.0])
def test_agrees_with_a_direct_computation_in_float64(noise: float) -> None:
    reference, artifact = logits(40, 0), logits(40, 1, noise)
    following = np.random.default_rng(2).integers(0, VOCABULARY, 40)
    found = compare_rows(reference, artifact, following)
    log_p, log_q = log_softmax(reference), log_softmax(artifact)
    np.testing.assert_allclose(found.kld, (np.exp(log_p) * (log_p - log_q)).sum(axis=1), rtol=1e-4, atol=2e-7)
    np.testing.assert_array_equal(found.same_top, log_p.argmax(axis=1) == log_q.argmax(axis=1))
    np.testing.assert_allclose(found.reference_nll, -log_p[np.arange(40), following], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.nll, -log_q[np.arange(40), following], rtol=1e-6, atol=1e-6)


def test_equal_logits_have_no_divergence_at_all() -> None:
    rows = logits(16, 0)
    found = compare_rows(rows, rows.copy(), np.zeros(16, dtype=np.int64))
    assert not found.kld.any()
    assert found.same_top.all()


def test_a_constant_added_to_all_logits_changes_nothing_and_large_logits_do_not_overflow() -> None:
    rows = np.round(logits(16, 0) * 64) / np.float32(64)  # exact under the shift
    found = compare_rows(rows, rows + np.float32(1024), np.zeros(16, dtype=np.int64))
    assert not found.kld.any()


def test_divergence_is_from_the_reference_to_the_artifact() -> None:
    certain = np.array([[20.0, 0.0]], dtype=np.float32)
    unsure = np.array([[0.0, 0.0]], dtype=np.float32)
    following = np.zeros(1, dtype=np.int64)
    assert compare_rows(certain, unsure, following).kld[0] == pytest.approx(np.log(2), rel=1e-5)
    assert compare_rows(unsure, certain, following).kld[0] == pytest.approx(10 - np.log(2), rel=1e-5)


def test_inputs_are_not_changed() -> None:
    reference, artifact = logits(4, 0), logits(4, 1, 0.5)
    before = reference.copy(), artifact.copy()
    compare_rows(reference, artifact, np.zeros(4, dtype=np.int64))
    np.testing.assert_array_equal(reference, before[0])
    np.testing.assert_array_equal(artifact, before[1])


@pytest.mark.parametrize("chunk", [1, 7, 64, 150])
def test_chunking_changes_nothing(tmp_path: Path, chunk: int) -> None:
    reference, artifact = logits(150, 0), logits(150, 1, 0.5)
    (tmp_path / "rows").write_bytes(np.concatenate([reference[:20], reference]).astype("<f4").tobytes())
    ids = np.random.default_rng(3).integers(0, VOCABULARY, 151).tolist()
    chunks = (artifact[start : start + chunk] for start in range(0, 150, chunk))
    found = compare_window(LogitRows(tmp_path / "rows", VOCABULARY), 20, chunks, ids, VOCABULARY)
    whole = compare_rows(reference, artifact, np.asarray(ids[1:]))
    for name in ("kld", "same_top", "reference_nll", "nll"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))


def test_a_window_with_missing_or_extra_positions_is_an_error(tmp_path: Path) -> None:
    rows = logits(10, 0)
    (tmp_path / "rows").write_bytes(rows.tobytes())
    stored = LogitRows(tmp_path / "rows", VOCABULARY)
    with pytest.raises(ArtifactError, match="9 of 10 positions"):
        compare_window(stored, 0, iter([rows[:9]]), list(range(11)), VOCABULARY)
    with pytest.raises(ArtifactError, match="more logits"):
        compare_window(stored, 0, iter([rows]), list(range(10)), VOCABULARY)
    with pytest.raises(StepError, match="ends before row") as caught:
        compare_window(stored, 5, iter([rows]), list(range(11)), VOCABULARY)
    assert not isinstance(caught.value, ArtifactError)  # the artifact is not to blame


def test_padded_vocabularies_are_compared_over_the_common_part() -> None:
    assert common_vocabulary(4096, 4096, 4000) == (4096, None)
    common, note = common_vocabulary(4096, 4000, 3999)
    assert common == 4000
    assert note is not None
    assert "the artifact 4000" in note
    with pytest.raises(ArtifactError, match="not of the same model"):
        common_vocabulary(4096, 4000, 4000)
    with pytest.raises(ArtifactError, match="not of the same model"):
        common_vocabulary(151936, 32000, 100)


def test_agreement_counts_leading_tokens() -> None:
    assert agreement([1, 2, 3, 4], [1, 2, 9, 4], 4, ()) == 2
    assert agreement([1, 2, 3, 4], [1, 2, 3, 4], 4, ()) == 4
    assert agreement([], [], 4, ()) == 0


def test_replies_that_end_alike_agree_in_full() -> None:
    assert agreement([1, 2, 7], [1, 2, 7], 32, {7}) == 32
    assert agreement([1, 2, 7], [1, 2], 32, {7}) == 2
    assert agreement([1, 2, 3], [1, 2, 3], 3, {7}) == 3


def test_summary() -> None:
    rows = RowComparison(
        kld=np.array([0.0, 0.1, 0.2, 0.7]),
        same_top=np.array([True, True, False, True]),
        reference_nll=np.log(np.array([2.0, 2.0, 2.0, 2.0])),
        nll=np.log(np.array([4.0, 1.0, 4.0, 1.0])),
    )
    found = summarize(rows, [2, 4], 4)
    assert found.mean_kld == pytest.approx(0.25)
    assert found.median_kld == pytest.approx(0.15)
    assert found.max_kld == 0.7
    assert 0.2 < found.p99_kld < 0.7
    assert found.top1_agreement == 0.75
    assert found.perplexity == pytest.approx(2.0)
    assert found.reference_perplexity == pytest.approx(2.0)
    assert (found.greedy_agreement_tokens, found.scored_tokens) == (3.0, 4)


def test_nan_is_an_error_not_a_number() -> None:
    broken = logits(3, 0)
    broken[1, 7] = np.nan
    rows = compare_rows(logits(3, 0), broken, np.zeros(3, dtype=np.int64))
    with pytest.raises(ArtifactError, match="NaN or infinite at 1 of 3 positions"):
        summarize(rows, [], 4)
