"""The reference that runs layer by layer, against Transformers' own full model."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from checkpoints import VOCAB_SIZE, change_weights, make_checkpoint
from edgekiln.checkpoint import Checkpoint, open_checkpoint
from edgekiln.errors import CheckpointError, MachineError, StepError, UnsupportedError, UsageError
from edgekiln.families import EMBEDDING, HEAD
from edgekiln.validators import layer_weights, layered
from edgekiln.validators.layer_weights import RoundedWeights, Rounding
from edgekiln.validators.layered import LayeredModel
from reference_model import round_parameters, round_to_fp16

PLENTY = 1 << 30
#: Positions that the head is applied to at once, with `_small_steps`.
CHUNK = 32
#: Lengths around the chunk of the head, and one that takes several blocks of `_BLOCK` positions.
LENGTHS = (1, 2, 77, CHUNK, CHUNK + 1, 128, 300)


#: The head has four slices, with `_small_steps`.
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
}


def opened(directory: Path, model_type: str = "qwen3", **values: Any) -> Checkpoint:
    return open_checkpoint(str(make_checkpoint(directory, model_type, **(SHAPE | values))), with_text=False)


def random_ids(*lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, VOCAB_SIZE, length).tolist() for length in lengths]


def full_model(checkpoint: Checkpoint) -> Any:
    """Transformers' model with rounded weights, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        checkpoint.directory, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
    ).eval()
    round_parameters(model)
    return model


def full_logits(model: Any, ids: list[int]) -> NDArray[np.float32]:
    import torch

    with torch.inference_mode():
        logits: NDArray[np.float32] = model(torch.tensor([ids])).logits[0].numpy()
    return logits


def generated(model: Any, ids: list[int], count: int, stop: list[int]) -> list[int]:
    import torch
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=count, eos_token_id=stop or None, pad_token_id=0
    )
    with torch.inference_mode():
        prompt = torch.tensor([ids])
        output = model.generate(prompt, attention_mask=torch.ones_like(prompt))
    return [int(token) for token in output[0, len(ids) :]]


def full_rounding(checkpoint: Checkpoint) -> tuple[int, int]:
    """What rounding loses by `round_to_fp16`, tensor by tensor."""
    import torch

    with checkpoint.reader() as reader:
        lost = [
            round_to_fp16(torch.from_numpy(reader.rows(tensor, 0, tensor.rows)))
            for tensor in checkpoint.tensors.values()
        ]
    return sum(r.overflowed for r in lost), sum(r.underflowed for r in lost)


class Listener:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.rows: dict[str, list[NDArray[np.float32]]] = {}

    def __call__(self, name: str, inputs: NDArray[np.float32]) -> None:
        self.rows.setdefault(name, []).append(inputs.copy())


def gather(model: LayeredModel, sequences: list[list[int]]) -> list[NDArray[np.float32]]:
    """The logits of every sequence; all positions come once, in order, in chunks."""
    rows: list[list[NDArray[np.float32]]] = [[] for _ in sequences]
    last = 0
    for number, first, chunk in model.logits(sequences):
        assert first == sum(map(len, rows[number]))
        assert len(chunk) <= CHUNK
        assert chunk.dtype == np.float32
        assert number >= last
        last = number
        rows[number].append(chunk.copy())
    return [np.concatenate(chunks) if chunks else np.empty((0, VOCAB_SIZE), np.float32) for chunks in rows]


EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2 tied": ("qwen2", {"tied": True}),
    "qwen2 untied, sharded": ("qwen2", {"tied": False, "shards": 3}),
    "qwen3 tied, float16": ("qwen3", {"tied": True, "dtype": "F16"}),
    "qwen3 untied, sharded, float32": ("qwen3", {"tied": False, "shards": 2, "dtype": "F32"}),
    "qwen2_moe, tied": ("qwen2_moe", {"tied": True, "config": EXPERTS | {"shared_expert_intermediate_size": 80}}),
    "qwen2_moe, a dense layer": ("qwen2_moe", {"tied": False, "config": EXPERTS | {"mlp_only_layers": [1]}}),
    "qwen3_moe, sharded": ("qwen3_moe", {"tied": False, "shards": 3, "config": EXPERTS}),
    "qwen3_moe, not normalized": ("qwen3_moe", {"config": EXPERTS | {"norm_topk_prob": False}}),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """PyTorch's threads belong to the process; leave them as they were."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models in several blocks, slices and pieces, too."""
    monkeypatch.setattr(layer_weights, "PIECE_WEIGHTS", 1 << 16)
    monkeypatch.setattr(layered, "_BLOCK", 128)
    monkeypatch.setattr(layered, "LOGIT_CHUNK", CHUNK)
    monkeypatch.setattr(layered, "_SLICE_PIECES", 1)
    monkeypatch.setattr(layered, "_READING_BYTES", 0)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return opened(tmp_path_factory.mktemp("small") / "model", tied=False)


def least(checkpoint: Checkpoint) -> int:
    """A budget that keeps no layer, and reads the head slice by slice."""
    return layered.least_memory_bytes(checkpoint)


def all_plans(checkpoint: Checkpoint) -> dict[int, layered._Plan]:
    """Plan by budget, from the least to more than enough."""
    start = least(checkpoint)
    return {memory: layered._plan(checkpoint, memory) for memory in range(start, 4 * start, 20_000)}


def run(checkpoint: Checkpoint, memory_bytes: int, sequences: list[list[int]]) -> list[NDArray[np.float32]]:
    with LayeredModel(checkpoint, threads=1, memory_bytes=memory_bytes) as model:
        return gather(model, sequences)


@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_full_model(name: str, tmp_path: Path) -> None:
    model_type, values = MODELS[name]
    checkpoint = opened(tmp_path / "model", model_type, **values)
    full, sequences, prompts = full_model(checkpoint), random_ids(*LENGTHS), random_ids(9, 1, 140)
    with LayeredModel(checkpoint, threads=1, memory_bytes=least(checkpoint)) as model:
        for got, ids in zip(gather(model, sequences), sequences, strict=True):
            expected = full_logits(full, ids)
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)
            assert (got.argmax(axis=1) == expected.argmax(axis=1)).all()
        replies = model.greedy(prompts, 8, ())
        assert replies == [generated(full, ids, 8, []) for ids in prompts]
        # A reply that ends does not change the others, and its last token is the one that ended it.
        stop = [replies[0][3], replies[2][6]]
        assert model.greedy(prompts, 8, stop) == [generated(full, ids, 8, stop) for ids in prompts]
        assert max(map(len, model.greedy(prompts[:1], 8, stop))) <= 4


def test_each_reply_ends_at_its_own_stop(small: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = iter([[1, 2, 3], [4, 9, 5], [6, 7, 8], [9, 7, 9]])
    with LayeredModel(small, threads=1, memory_bytes=PLENTY) as model:
        monkeypatch.setattr(model, "_best", lambda _: next(steps))
        assert model.greedy(random_ids(3, 4, 5), 20, {8, 9}) == [[1, 4, 6, 9], [2, 9], [3, 5, 8]]


def test_budget_and_company_change_no_bit(small: Checkpoint) -> None:
    sequences = random_ids(*LENGTHS, 0)
    alone = [run(small, PLENTY, [ids])[0] for ids in sequences]
    plans = {(p.layers, p.head, p.chunks): memory for memory, p in all_plans(small).items()}
    assert len(plans) >= 4
    for memory_bytes in plans.values():
        together = run(small, memory_bytes, sequences)
        for one, among_others in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one, among_others)


def test_budgets_differ_in_what_stays(small: Checkpoint) -> None:
    plans = list(all_plans(small).values())
    assert (plans[0].layers, plans[0].head) == (0, False)
    assert (plans[-1].layers, plans[-1].head) == (3, True)
    assert {plan.head for plan in plans if plan.layers in {1, 2}} >= {True}
    assert any(plan.chunks > 1 for plan in plans)


def test_too_little_memory_is_said(small: Checkpoint) -> None:
    with pytest.raises(MachineError, match=r"needs \d+ MB for one layer at a time, but may take \d+ MB"):
        LayeredModel(small, threads=1, memory_bytes=least(small) - 1)


def test_weights_are_read_again_only_where_they_do_not_stay(small: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = RoundedWeights.read
    monkeypatch.setattr(
        RoundedWeights, "read", lambda self, parts: (read.extend(p.tensor.name for p in parts), original(self, parts))
    )
    for memory_bytes, times in ((PLENTY, 1), (least(small), 2)):
        read.clear()
        with LayeredModel(small, threads=1, memory_bytes=memory_bytes) as model:
            for _ in range(2):
                gather(model, random_ids(5))
            counts = {name: read.count(name) for name in small.tensors}
        assert counts.pop(EMBEDDING) == 0
        assert counts.pop("model.norm.weight") == 1
        assert counts.pop(HEAD) == (1 if times == 1 else 2 * 4)  # four slices
        assert set(counts.values()) == {times}


def test_states_of_many_sequences_are_divided(small: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    together = run(small, PLENTY, random_ids(50, 60, 70))
    with LayeredModel(small, threads=1, memory_bytes=PLENTY) as model:
        replies = model.greedy(random_ids(5, 6, 7), 4, ())
        monkeypatch.setattr(model, "_plan", dataclasses.replace(model._plan, state_bytes=4 * 64 * 120))
        for one, other in zip(together, gather(model, random_ids(50, 60, 70)), strict=True):
            np.testing.assert_array_equal(one, other)
        assert model.greedy(random_ids(5, 6, 7), 4, ()) == replies


@pytest.mark.parametrize(
    ("sizes", "limit", "groups"),
    [([], 3, []), ([1, 1, 1, 1], 2, [2, 2]), ([5, 1, 1], 2, [1, 2]), ([1, 5, 1], 2, [1, 1, 1]), ([2, 2], 9, [2])],
)
def test_groups_are_consecutive_and_bounded(sizes: list[int], limit: int, groups: list[int]) -> None:
    ranges = list(layered._groups(sizes, limit))
    assert [len(group) for group in ranges] == groups
    assert [number for group in ranges for number in group] == list(range(len(sizes)))


@pytest.mark.parametrize("asked_first", [True, False])
@pytest.mark.parametrize("memory_bytes", [PLENTY, None])
def test_every_weight_is_counted_once(asked_first: bool, memory_bytes: int | None, tmp_path: Path) -> None:
    checkpoint = opened(tmp_path / "model", tied=False, dtype="F32")
    for name, values in {
        EMBEDDING: {0: 1e-9, 9: -1e-9, VOCAB_SIZE * 64 - 1: 65519.0},
        HEAD: {5: 70000.0, VOCAB_SIZE * 64 - 1: 1e-9},
        "model.norm.weight": {3: 2.0**-26},
        "model.layers.1.mlp.down_proj.weight": {77: -65520.0},
    }.items():
        change_weights(
            checkpoint.directory, name, {where: np.float32(value).tobytes() for where, value in values.items()}
        )
    with LayeredModel(checkpoint, threads=2, memory_bytes=memory_bytes or least(checkpoint)) as model:
        if not asked_first:
            gather(model, random_ids(3, 4))
        assert (model.rounding.overflowed, model.rounding.underflowed) == full_rounding(checkpoint)
        gather(model, random_ids(3, 4))
        model.greedy(random_ids(3, 4), 2, ())
        assert model.rounding == Rounding(2, 4)


@pytest.mark.parametrize("name", [EMBEDDING, HEAD, "model.norm.weight", "model.layers.2.self_attn.k_proj.weight"])
def test_nan_weights_are_refused_by_name(name: str, tmp_path: Path) -> None:
    checkpoint = opened(tmp_path / "model", tied=False)
    change_weights(checkpoint.directory, name, {3 * 8: b"\xc0\x7f"})
    with (
        LayeredModel(checkpoint, threads=1, memory_bytes=PLENTY) as model,
        pytest.raises(StepError, match=f"^{re.escape(name)} holds 1 NaN and 0 infinite weights; "),
    ):
        gather(model, [[0, 1]])


def test_activations_are_what_matrices_are_multiplied_with(small: Checkpoint) -> None:
    import torch

    sequences, seen, full = random_ids(5, 200), Listener(), full_model(small)
    expected: dict[str, list[NDArray[np.float32]]] = {}
    for name, module in full.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(
                lambda _, inputs, name=f"{name}.weight": expected.setdefault(name, []).append(inputs[0][0].numpy())
            )
    with torch.inference_mode():
        for ids in sequences:
            full(torch.tensor([ids]))
    with LayeredModel(small, threads=1, memory_bytes=least(small)) as model:
        model.activations(sequences, seen)
        before = {name: len(rows) for name, rows in seen.rows.items()}
        gather(model, [[1]])  # nobody listens any more
    assert set(seen.rows) == set(expected) == {n for n, t in small.tensors.items() if len(t.shape) == 2} - {EMBEDDING}
    for name, rows in expected.items():
        np.testing.assert_allclose(np.concatenate(seen.rows[name]), np.concatenate(rows), rtol=0, atol=1e-4)
        assert max(map(len, seen.rows[name])) <= 128
        assert len(seen.rows[name]) == before[name]


def test_experts_are_told_of_the_positions_that_go_to_them(tmp_path: Path) -> None:
    import torch

    checkpoint = opened(tmp_path / "model", "qwen3_moe", config=EXPERTS)
    full, ids, seen = full_model(checkpoint), random_ids(100)[0], Listener()
    sent: dict[int, tuple[Any, Any]] = {}
    for layer, module in enumerate(full.model.layers):
        module.mlp.experts.register_forward_pre_hook(
            lambda _, inputs, layer=layer: sent.update({layer: inputs[:2]})  # returns None: nothing is changed
        )
    with torch.inference_mode():
        full(torch.tensor([ids]))
    with LayeredModel(checkpoint, threads=1, memory_bytes=least(checkpoint)) as model:
        model.activations([ids], seen)
    for layer, (states, chosen) in sent.items():
        for expert in range(5):
            rows = states[(chosen == expert).any(-1)].numpy()
            prefix = f"model.layers.{layer}.mlp.experts.{expert}."
            for part in ("gate_proj", "up_proj"):
                np.testing.assert_allclose(np.concatenate(seen.rows[f"{prefix}{part}.weight"]), rows, atol=1e-4)
            assert np.concatenate(seen.rows[f"{prefix}down_proj.weight"]).shape == (len(rows), 48)
    assert set(seen.rows) == {n for n, t in checkpoint.tensors.items() if len(t.shape) == 2 and "mlp.gate." not in n}


@pytest.mark.parametrize(
    ("ids", "match"),
    [([0, VOCAB_SIZE], f"token {VOCAB_SIZE} lies beyond"), ([-1], "token -1 lies"), ([0] * 513, "context of 512")],
)
def test_what_a_model_cannot_take_is_refused(ids: list[int], match: str, small: Checkpoint) -> None:
    with LayeredModel(small, threads=1, memory_bytes=PLENTY) as model:
        with pytest.raises(UsageError, match=match):
            gather(model, [[0], ids])
        with pytest.raises(UsageError, match=match):
            model.activations([ids], lambda *_: None)
        with pytest.raises(UsageError, match=match):
            model.greedy([ids], 1, ())
        with pytest.raises(UsageError, match="context of 512"):
            model.greedy([[0] * 500], 13, ())
        with pytest.raises(UsageError, match="without tokens"):
            model.greedy([[1], []], 1, ())


def test_nothing_is_nothing(small: Checkpoint) -> None:
    with LayeredModel(small, threads=1, memory_bytes=PLENTY) as model:
        assert list(model.logits([])) == list(model.logits([[]])) == model.greedy([], 3, ()) == []
        assert model.greedy([[1], [2]], 0, ()) == [[], []]


@pytest.mark.parametrize(
    "config",
    [
        {"attention_dropout": "high"},
        {"layer_types": ["full_attention"]},
        {"attention_bias": "yes"},
    ],
)
def test_a_config_that_transformers_refuses(config: dict[str, Any], tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path / "model")
    values = json.loads((directory / "config.json").read_text()) | config
    (directory / "config.json").write_text(json.dumps(values))
    with pytest.raises((CheckpointError, UnsupportedError)):
        LayeredModel(open_checkpoint(str(directory), with_text=False), threads=1, memory_bytes=PLENTY)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
def test_a_config_cannot_choose_a_kernel_of_a_hub(key: str, tmp_path: Path) -> None:
    checkpoint = opened(tmp_path / "model", config={key: "nobody/kernel"})
    assert run(checkpoint, PLENTY, [[1, 2]])[0].shape == (2, VOCAB_SIZE)


def test_other_tensors_than_the_checked_ones_are_refused(small: Checkpoint) -> None:
    tensors = dict(small.tensors)
    tensors["model.layers.0.mlp.up_proj.bias"] = tensors["model.norm.weight"]
    with pytest.raises(CheckpointError, match="other tensors than the checkpoint has"):
        LayeredModel(dataclasses.replace(small, tensors=tensors), threads=1, memory_bytes=PLENTY)
