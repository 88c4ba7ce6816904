"""Parity: the formulas against a direct float64 computation, and laws they must keep."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import BaseModel, TypeAdapter

from edgekiln.errors import ArtifactError, StepError
from edgekiln.validators.parity import (
    CANDIDATES,
    NEAR_TIE_LIMIT,
    WORST,
    Parity,
    PathParity,
    PositionScores,
    ReplyParity,
    RowScorer,
    SectionParity,
    TokenParity,
    agreement,
    common_vocabulary,
    concatenate,
    mean_by_position,
    measure_parity,
    score_window,
)
from edgekiln.validators.reference_rows import ReferenceRows, RowReader, RowWriter
from edgekiln.validators.report import ParityReport, PathReport, ReplyReport, SectionReport, TokenReport

VOCABULARY = 500  # kept whole, so that nothing but rounding differs from the full divergence
Floats = NDArray[np.float32]
NAMES = tuple(field.name for field in dataclasses.fields(PositionScores))


def logits(rows: int, seed: int, noise: float = 0.0) -> Floats:
    base = np.random.default_rng(0).normal(0, 4, (rows, VOCABULARY))
    return np.asarray(base + noise * np.random.default_rng(seed).normal(size=base.shape), dtype=np.float32)


def log_softmax(values: Floats) -> NDArray[np.float64]:
    wide = values.astype(np.float64)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


def store(directory: Path, reference: Floats, following: NDArray[np.int64] | list[int]) -> RowReader:
    with RowWriter(directory, "r") as writer:
        writer.add(reference, list(map(int, following)))
    return RowReader(directory, "r", reference.shape[1])


def rows_of(directory: Path, reference: Floats, following: NDArray[np.int64] | None = None) -> ReferenceRows:
    chosen = np.zeros(len(reference), np.int64) if following is None else following
    return store(directory, reference, chosen).read(0, len(reference))


def scores_of(**values: list[float]) -> PositionScores:
    (size,) = {len(value) for value in values.values()}
    every = {name: np.asarray(values.get(name, [0.0] * size), dtype=np.float64) for name in NAMES}
    return PositionScores(**every | {"same_top": np.asarray(values.get("same_top", [True] * size), dtype=np.bool_)})


@pytest.mark.parametrize("noise", [1e-3, 0.1, 3.0])
def test_agrees_with_a_direct_computation_in_float64(tmp_path: Path, noise: float) -> None:
    reference, artifact = logits(40, 0), logits(40, 1, noise)
    following = np.random.default_rng(2).integers(0, VOCABULARY, 40)
    found = RowScorer(VOCABULARY).score(rows_of(tmp_path, reference, following), artifact)
    log_p, log_q, every = log_softmax(reference), log_softmax(artifact), np.arange(40)
    np.testing.assert_allclose(found.kld, (np.exp(log_p) * (log_p - log_q)).sum(axis=1), rtol=1e-4, atol=2e-7)
    np.testing.assert_array_equal(found.same_top, log_p.argmax(axis=1) == log_q.argmax(axis=1))
    np.testing.assert_allclose(found.reference_nll, -log_p[every, following], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.nll, -log_q[every, following], rtol=1e-6, atol=1e-6)
    first, second = np.argsort(-log_p, axis=1)[:, :2].T
    gap, moved = log_p[every, first] - log_p[every, second], log_q[every, first] - log_q[every, second]
    np.testing.assert_allclose(found.gap, gap, atol=1e-5)
    np.testing.assert_allclose(found.shift, np.abs(moved - gap), atol=1e-5)
    assert found.tail.max() < 1e-12


def test_equal_logits_have_no_divergence_at_all(tmp_path: Path) -> None:
    wide = np.random.default_rng(0).normal(0, 2, (6, 20_000)).astype(np.float32)  # truncated
    rows = rows_of(tmp_path, wide)
    found = RowScorer(20_000).score(rows, wide.copy())
    assert found.tail.min() > 1e-4
    assert not found.kld.any()
    assert not found.shift.any()
    assert found.same_top.all()
    np.testing.assert_array_equal(found.nll, found.reference_nll)


def test_a_constant_added_to_all_logits_changes_nothing_and_large_logits_do_not_overflow(tmp_path: Path) -> None:
    rows = np.round(logits(16, 0) * 64) / np.float32(64)  # exact under the shift
    found = RowScorer(VOCABULARY).score(rows_of(tmp_path, rows), rows + np.float32(1024))
    assert not found.kld.any()


def test_divergence_is_from_the_reference_to_the_artifact(tmp_path: Path) -> None:
    certain = np.array([[20.0, 0.0]], dtype=np.float32)
    unsure = np.array([[0.0, 0.0]], dtype=np.float32)
    scorer = RowScorer(2)
    assert scorer.score(rows_of(tmp_path, certain), unsure).kld[0] == pytest.approx(np.log(2), rel=1e-5)
    assert scorer.score(rows_of(tmp_path, unsure), certain).kld[0] == pytest.approx(10 - np.log(2), rel=1e-5)


def test_a_tail_that_the_artifact_rules_out_is_a_large_but_finite_divergence(tmp_path: Path) -> None:
    flat = np.zeros((1, 20_000), np.float32)
    rows = rows_of(tmp_path, flat)
    ids, _ = rows.kept(0)
    only = np.full_like(flat, -500)
    only[0, ids] = 0
    found = RowScorer(20_000).score(rows, only)
    assert 10 < found.kld[0] < 30
    assert found.tail[0] == pytest.approx(1 - 8192 / 20_000)


def test_inputs_are_not_changed(tmp_path: Path) -> None:
    artifact = logits(4, 1, 0.5)
    before = artifact.copy()
    artifact.flags.writeable = False
    RowScorer(VOCABULARY).score(rows_of(tmp_path, logits(4, 0)), artifact)
    np.testing.assert_array_equal(artifact, before)


@pytest.mark.parametrize("chunk", [1, 7, 64, 150])
def test_chunking_changes_nothing(tmp_path: Path, chunk: int) -> None:
    reference, artifact = logits(150, 0), logits(150, 1, 0.5)
    ids = np.random.default_rng(3).integers(0, VOCABULARY, 151).tolist()
    reader = store(tmp_path, np.concatenate([reference[:20], reference]), [0] * 20 + ids[1:])
    chunks = (artifact[start : start + chunk] for start in range(0, 150, chunk))
    found = score_window(RowScorer(VOCABULARY), reader, 20, chunks, ids[1:])
    whole = RowScorer(VOCABULARY).score(reader.read(20, 150), artifact)
    for name in NAMES:
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))


@pytest.mark.parametrize("chunk", [1, 4, 10])
def test_leading_positions_can_be_left_out(tmp_path: Path, chunk: int) -> None:
    reference, artifact = logits(10, 0), logits(10, 1, 0.5)
    following = list(range(10))
    reader = store(tmp_path, reference[6:], following[6:])
    chunks = (artifact[start : start + chunk] for start in range(0, 10, chunk))
    found = score_window(RowScorer(VOCABULARY), reader, 0, chunks, following, skip=6)
    np.testing.assert_array_equal(found.kld, RowScorer(VOCABULARY).score(reader.read(0, 4), artifact[6:]).kld)


def test_a_window_with_missing_or_extra_positions_or_of_other_text_is_an_error(tmp_path: Path) -> None:
    rows = logits(10, 0)
    reader = store(tmp_path, rows, list(range(10)))
    scorer = RowScorer(VOCABULARY)
    with pytest.raises(ArtifactError, match="9 of 10 positions"):
        score_window(scorer, reader, 0, iter([rows[:9]]), list(range(10)))
    with pytest.raises(ArtifactError, match="more logits"):
        score_window(scorer, reader, 0, iter([rows]), list(range(9)))
    for first, match in ((5, "ends before"), (0, "another text")):
        with pytest.raises(StepError, match=match) as caught:
            score_window(scorer, reader, first, iter([rows]), list(range(5, 15)))
        assert not isinstance(caught.value, ArtifactError)  # the artifact is not to blame


def test_padded_vocabularies_are_compared_over_the_common_part(tmp_path: Path) -> None:
    assert common_vocabulary(4096, 4096, 4000) == (4096, None)
    common, note = common_vocabulary(4096, 4000, 3999)
    assert common == 4000
    assert note is not None
    assert "the artifact 4000" in note
    with pytest.raises(ArtifactError, match="not of the same model"):
        common_vocabulary(4096, 4000, 4000)
    with pytest.raises(ArtifactError, match="not of the same model"):
        common_vocabulary(151936, 32000, 100)
    reference, artifact = logits(20, 0), logits(20, 1, 0.3)
    rows = rows_of(tmp_path, reference)
    for ours, theirs in ((reference[:, :470], artifact[:, :470]), (reference[:, :470], artifact)):
        found = RowScorer(470).score(rows, theirs).kld
        log_p, log_q = log_softmax(ours), log_softmax(artifact[:, :470])
        np.testing.assert_allclose(found, (np.exp(log_p) * (log_p - log_q)).sum(axis=1), rtol=1e-4, atol=2e-7)


def test_worst_tokens_are_those_with_the_largest_divergence(tmp_path: Path) -> None:
    reference, artifact = logits(60, 0), logits(60, 1, 0.5)
    scorer = RowScorer(VOCABULARY)
    kld = scorer.score(rows_of(tmp_path, reference), artifact, window=3, position=100).kld
    worst = scorer.worst.all()
    assert [token.position - 100 for token in worst] == np.argsort(-kld)[:WORST].tolist()
    assert [token.kld for token in worst] == sorted(kld, reverse=True)[:WORST]
    assert {token.window for token in worst} == {3}
    index = worst[0].position - 100
    for side, values in ((worst[0].reference, reference), (worst[0].artifact, artifact)):
        p = np.exp(log_softmax(values)[index])
        assert [token for token, _ in side] == np.argsort(-p)[:CANDIDATES].tolist()
        np.testing.assert_allclose([probability for _, probability in side], np.sort(p)[::-1][:CANDIDATES], rtol=1e-5)


def test_agreement_counts_leading_tokens() -> None:
    assert agreement([1, 2, 3, 4], [1, 2, 9, 4], 4, ()) == 2
    assert agreement([1, 2, 3, 4], [1, 2, 3, 4], 4, ()) == 4
    assert agreement([], [], 4, ()) == 0


def test_replies_that_end_alike_agree_in_full() -> None:
    assert agreement([1, 2, 7], [1, 2, 7], 32, {7}) == 32
    assert agreement([1, 2, 7], [1, 2], 32, {7}) == 2
    assert agreement([1, 2, 3], [1, 2, 3], 3, {7}) == 3


def test_summary() -> None:
    scores = scores_of(
        kld=[0.0, 0.1, 0.2, 0.7],
        same_top=[True, True, False, True],
        reference_nll=[math.log(2)] * 4,
        nll=[math.log(4), 0.0, math.log(4), 0.0],
        gap=[1.0, 1.0, 0.01, 0.03],
        shift=[0.02, 0.02, 0.02, 0.02],
        tail=[0.0, 0.0, 0.001, 0.003],
    )
    found = measure_parity(scores, [2, 2], ["a", "b"], [2, 4], 4, note="n")
    assert found.mean_kld == pytest.approx(0.25)
    assert found.median_kld == pytest.approx(0.15)
    assert found.p95_kld is not None
    assert found.p999_kld is not None
    assert 0.2 < found.p95_kld < found.p99_kld < found.p999_kld < found.max_kld == 0.7
    assert found.top1_agreement == 0.75
    assert (found.near_tie_nats, found.top1_near_ties, found.top1_agreement_clear) == (0.02, 0.25, 1.0)
    assert found.perplexity == pytest.approx(2.0)
    assert found.reference_perplexity == pytest.approx(2.0)
    assert found.rms_delta_p == pytest.approx(math.sqrt((2 * 0.25**2 + 2 * 0.5**2) / 4))
    assert found.tail_mass == pytest.approx(0.001)
    assert (found.greedy_agreement_tokens, found.scored_tokens, found.note) == (3.0, 4, "n")
    assert found.mean_kld_interval is None  # four positions are too few
    first, second = found.sections
    assert (first.section, first.scored_tokens, first.mean_kld) == ("a", 2, pytest.approx(0.05))
    assert (second.top1_agreement, second.perplexity_ratio) == (0.5, pytest.approx(1.0))
    assert found.kld_by_position == pytest.approx((0.1, 0.4))


def test_sections_are_joined_wherever_their_windows_stand() -> None:
    scores = scores_of(kld=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    found = measure_parity(scores, [2, 1, 3], ["a", "b", "a"], [], 4).sections
    assert [(s.section, s.scored_tokens, s.mean_kld) for s in found] == [("a", 5, 3.6), ("b", 1, 3.0)]


def test_positions_are_averaged_over_the_windows_that_reach_them() -> None:
    kld = np.array([1.0, 2.0, 3.0, 5.0, 9.0, 10.0])
    assert mean_by_position(kld, [3, 1, 2]) == (5.0, 6.0, 3.0)


def test_noise_never_excuses_clear_errors() -> None:
    """An artifact that moves everything by nats still has clear positions, and is wrong there."""
    scores = scores_of(kld=[1.0] * 4, same_top=[False] * 4, gap=[2.0, 3.0, 0.05, 4.0], shift=[5.0] * 4)
    found = measure_parity(scores, [4], ["a"], [], 4)
    assert (found.near_tie_nats, found.top1_near_ties, found.top1_agreement_clear) == (NEAR_TIE_LIMIT, 0.25, 0.0)
    tied = measure_parity(scores_of(kld=[0.0], gap=[0.0], shift=[0.01]), [1], ["a"], [], 4)
    assert (tied.top1_near_ties, tied.top1_agreement_clear) == (1.0, None)


def test_intervals_hold_the_mean_and_the_ratio() -> None:
    random = np.random.default_rng(0)
    scores = scores_of(
        kld=random.exponential(0.1, 400).tolist(),
        reference_nll=[2.0] * 400,
        nll=(2 + random.normal(0.05, 0.3, 400)).tolist(),
    )
    found = measure_parity(scores, [200, 200], ["a", "b"], [], 4)
    assert found.mean_kld_interval is not None
    assert found.perplexity_ratio_interval is not None
    assert found.mean_kld_interval[0] < found.mean_kld < found.mean_kld_interval[1]
    ratio = found.perplexity / found.reference_perplexity
    assert found.perplexity_ratio_interval[0] < ratio < found.perplexity_ratio_interval[1]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_an_error_not_a_number(tmp_path: Path, bad: float) -> None:
    broken = logits(3, 0)
    broken[1, 7] = bad
    scores = RowScorer(VOCABULARY).score(rows_of(tmp_path, logits(3, 0)), broken)
    with pytest.raises(ArtifactError, match="NaN or infinite at 1 of 3 positions"):
        measure_parity(scores, [3], ["a"], [], 4)


def test_parts_come_together_in_order() -> None:
    one, two = scores_of(kld=[1.0, 2.0]), scores_of(kld=[3.0])
    assert concatenate([one, two]).kld.tolist() == [1.0, 2.0, 3.0]


def test_json_and_back() -> None:
    path = PathParity(2, 3, 0.1, 0.2, 0.5, 0.1, 0.01)
    token = TokenParity("a", 3, 0.5, "x", "y", (("y", 0.5), ("z", 0.25)), (("z", 0.75),))
    scores = scores_of(kld=[0.5] * 200, gap=[1.0] * 200)
    whole = measure_parity(
        scores, [200], ["a"], [1], 4, decode=path, worst_tokens=(token,), replies=(ReplyParity("p", "q", "r", 1),)
    )
    least = Parity(0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 4, 1)
    for value in (whole, least):
        again = TypeAdapter(Parity).validate_python(json.loads(json.dumps(dataclasses.asdict(value))))
        assert again == value
        hash(again)  # all tuples are tuples again


@pytest.mark.parametrize(
    ("value", "report"),
    [(SectionParity, SectionReport), (PathParity, PathReport), (TokenParity, TokenReport), (ReplyParity, ReplyReport)],
)
def test_parts_have_the_names_of_the_report(value: type[Any], report: type[BaseModel]) -> None:
    names = {field.name for field in dataclasses.fields(value)}
    assert set(report.model_fields) <= names
    assert set(ParityReport.model_fields) - {"runtime"} <= {field.name for field in dataclasses.fields(Parity)}
