"""Overrides by pattern: which matrices they mean, what wins, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import pytest

from edgekiln.checkpoint import open_checkpoint
from edgekiln.errors import UsageError
from edgekiln.families import EMBEDDING, HEAD
from edgekiln.scheme import OPTIONS, Scheme, overridden

MATRICES = open_checkpoint("tiny-qwen3", with_text=False).matrices
DOWN = "model.layers.{}.mlp.down_proj.weight"


def found(*overrides: tuple[str, str], matrices: Sequence[str] = MATRICES) -> dict[str, str]:
    return overridden(Scheme("int4", overrides=overrides), matrices)[1]


@pytest.mark.parametrize(
    "pattern", ["model.layers.{0,1}.mlp.down_proj", "*.[01].mlp.down_proj", "*.{0..1}.mlp.down_proj.weight"]
)
def test_a_pattern_means_the_matrices_that_it_matches(pattern: str) -> None:
    assert found((pattern, "int8")) == {DOWN.format(0): "int8", DOWN.format(1): "int8"}


def test_the_last_pattern_that_matches_decides() -> None:
    chosen = found(("*.mlp.down_proj", "int8"), ("model.layers.1.*", "fp16"))
    assert (chosen[DOWN.format(0)], chosen[DOWN.format(1)]) == ("int8", "fp16")
    assert len([name for name in chosen if ".layers.1." in name]) == 7


@pytest.mark.parametrize("asked", [None, "int4"])
def test_embeddings_and_head_have_their_precisions_by_pattern_too(asked: str | None) -> None:
    scheme = Scheme("int4", embedding_precision=asked, overrides=(("*.embed_tokens", "int8"), ("lm_head", "fp16")))
    ends, others = overridden(scheme, MATRICES)  # the checkpoint ties its head, so that it is no tensor of its own
    assert (ends.embedding_precision, ends.head_precision, others) == ("int8", "fp16", {})
    assert {EMBEDDING, HEAD} & set(found(("*", "int8"))) == set()


@pytest.mark.parametrize("pattern", ["model.layers.7.mlp.down_proj", "*.bias", "model.norm", "MODEL.*", "{0..3}"])
def test_a_pattern_that_matches_no_matrix_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match=r"matches none of the checkpoint's \d+ matrices; use a name like 'model"):
        found((pattern, "int8"))


def test_a_pattern_that_stands_for_too_many_names_is_refused() -> None:
    with pytest.raises(UsageError, match="stands for more than 1000 names"):
        found(("{0..9}{0..9}{0..9}{0..9}", "int8"))


def test_a_scheme_comes_back_from_json() -> None:
    scheme = Scheme("int4", overrides=(("lm_head", "int8"), ("*", "fp16")), split_max_size=5_000_000, gguf_source="f16")
    found = Scheme.parse(json.loads(json.dumps(dataclasses.asdict(scheme))))
    assert (found, hash(found)) == (scheme, hash(scheme))


def test_the_options_are_all_but_the_precision() -> None:
    scheme = Scheme("int4", overrides=(("lm_head", "int8"),), embedding_precision="fp16")
    assert set(scheme.options) == set(OPTIONS)
    assert scheme.options["overrides"] == {"lm_head": "int8"}
    assert scheme.precisions == ("int4", "fp16", "int8")
