"""Decoding through the cache and long contexts: faults that prefill of short windows does not show."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgekiln.errors import ArtifactError
from edgekiln.validators.base import LOGIT_CHUNK
from edgekiln.validators.parity import PathParity
from edgekiln.validators.parity_paths import (
    DECODE,
    LONG_CONTEXT,
    choose_spans,
    divergence,
    explain_short,
    judge_decode,
    judge_long,
    refuse_long,
)


def test_spans_lie_in_one_chunk_of_the_longest_windows() -> None:
    spans = choose_spans([50, 256, 90, 256], 48)
    assert [(span.window, span.prefix, span.count) for span in spans] == [(1, 64, 24), (3, 64, 24)]
    for length in range(2, 300):
        for span in choose_spans([length], 500):
            assert span.prefix >= 1
            assert span.prefix + span.count <= min(LOGIT_CHUNK, length - 1)  # the last token is predicted
    assert choose_spans([2, 2], 48) == []
    assert choose_spans([256], 0) == []


def test_divergence_is_that_of_the_definition() -> None:
    random = np.random.default_rng(0)
    first, second = (random.normal(0, 3, (5, 40)).astype(np.float32) for _ in range(2))
    p, q = (
        np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum(axis=1, keepdims=True) for x in (first, second)
    )
    np.testing.assert_allclose(divergence(first, second), (p * np.log(p / q)).sum(axis=1), rtol=1e-6)
    assert not divergence(first, first + np.float32(0)).any()


def path(kld: float, prefill: float | None = None, apart: float | None = None) -> PathParity:
    return PathParity(48, 88, kld, 2 * kld, 0.9, prefill, apart)


@pytest.mark.parametrize(
    ("prefill", "apart"),
    [
        *((4e-7, 6e-7), (0.0005, 0.0003), (0.0226, 0.0005), (0.0117, 0.00096), (0.041, 1e-5), (3e-9, 1e-12)),
        *((2.8e-6, 2.5e-6), (0.0012, 0.0012), (0.165, 0.0014), (0.0077, 0.0027), (0.181, 0.0015)),
    ],
)
def test_rounding_passes(prefill: float, apart: float) -> None:
    """Measured with llama.cpp's F16, Q8_0, Q4_0, Q4_K_M and ORT GenAI's int4, int8, fp16 on two models."""
    assert judge_decode(path(prefill, prefill, apart)).outcome == "pass"


@pytest.mark.parametrize(("prefill", "apart"), [(3e-9, 0.0136), (0.0408, 0.0130), (0.153, 0.0148), (0.3, 0.45)])
def test_a_wrong_position_in_the_cache_fails(prefill: float, apart: float) -> None:
    """Measured with the lengths of the cache off by one, at fp16 and int4, of both sizes."""
    result = judge_decode(path(0.05, prefill, apart))
    assert (result.outcome, result.findings[0].id, result.findings[0].severity) == ("fail", DECODE, "error")


def test_nothing_decoded_is_not_measured() -> None:
    assert judge_decode(None).outcome == "not_measured"


def test_long_contexts() -> None:
    assert judge_long(path(0.05), 0.04).outcome == "pass"
    result = judge_long(path(0.5), 0.04)
    assert (result.outcome, result.findings[0].id) == ("fail", LONG_CONTEXT)
    assert explain_short(4096, 4096) is None
    short = explain_short(2048, 4096)
    assert short is not None
    assert (short.outcome, "2048" in short.detail, "4096" in short.detail) == ("not_measured", True, True)
    assert refuse_long(ArtifactError("no room")).findings[0].detail == "no room"
    assert math.isfinite(path(0.5).max_kld)
