"""The reference of parity, layer by layer: Transformers' own modules with weights that come and go.

The modules are built on PyTorch's meta device, so that they hold no weights. Layers that fit the budget get theirs
once and keep them; all others share one set of buffers, which is filled from the checkpoint when their turn comes, and
one pass over the layers takes all sequences along. What is computed for a sequence does not depend on the budget or on
the sequences beside it: every sequence goes through a layer alone, in blocks of the same length, and the head is always
applied to the same number of positions and the same slice of the vocabulary at once. Its logits are the same bits.
Greedy replies advance together instead, one row of a matrix each, since a product of few rows costs as much as one of a
single row; there the number of prompts changes the last bits.

A checkpoint is hostile input: no remote code, no pickle, no network, and a configuration under which Transformers would
build other tensors than the checked ones is refused.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgekiln.checkpoint import Checkpoint
from edgekiln.errors import CheckpointError, MachineError, UsageError
from edgekiln.families import EMBEDDING, FINAL_NORM, HEAD
from edgekiln.memory import uncollected
from edgekiln.model_config import ModelConfig
from edgekiln.safetensors import TensorInfo
from edgekiln.validators.base import LOGIT_CHUNK
from edgekiln.validators.layer_weights import PIECE_WEIGHTS, Part, RoundedWeights, Rounding, piece_rows
from edgekiln.validators.layered_experts import compute, expert_modules, parameter_shapes, slots

#: Told the name of a matrix, as in the checkpoint, and what it is multiplied with: float32 [positions, columns].
Observer: TypeAlias = Callable[[str, NDArray[np.float32]], None]

_T = TypeVar("_T")

#: PyTorch's own.
_ATTENTION: Final = "sdpa"
#: Positions of a sequence that go through a layer at once; it bounds what the layer keeps meanwhile.
_BLOCK: Final = 512
#: Pieces of the head that are applied at once: 16 million weights, 64 MB.
_SLICE_PIECES: Final = 64
#: Rows up to which PyTorch's product of a few rows reads the weights three times slower than the transposed product
#: does (6 against 19 GB/s for four rows on two cores, 5 against 10 for sixteen); one row has a kernel of its own.
_FEW_ROWS: Final = 16
#: Chunks of logits held at once while the head is read again for each such number, at most.
_MOST_CHUNKS: Final = 8
#: A few threads, each with pieces of weights as stored and what is made of them.
_READING_BYTES: Final = 16 * PIECE_WEIGHTS
#: Share of the budget for what is kept of the sequences between layers.
_STATE_SHARE: Final = 8


@dataclass(frozen=True)
class _Plan:
    """What the budget is spent on.

    Attributes:
        layers: Number of layers, from the first on, that keep their weights.
        head: The head does.
        chunks: Chunks of logits held at once.
        state_bytes: For hidden states, or for keys and values, of all sequences of a pass.
    """

    layers: int
    head: bool
    chunks: int
    state_bytes: int


def _slice_rows(head: TensorInfo) -> int:
    return min(head.rows, _SLICE_PIECES * piece_rows(head))


def _working_bytes(config: ModelConfig) -> int:
    """Return what a block of positions takes inside a layer, at most."""
    attention = config.num_heads * config.head_dim
    return 4 * _BLOCK * (3 * config.widest_network + 4 * config.hidden_size + 4 * attention)


def _layer_bytes(checkpoint: Checkpoint) -> int:
    """Return what the weights of a layer take; of a model with two kinds of layers, one of each."""
    config = checkpoint.config
    kinds = {config.experts_of(layer) is None: layer for layer in range(config.num_layers)}
    names = (name for layer in kinds.values() for name in checkpoint.family.layer_tensors(config, layer))
    return 4 * sum(checkpoint.tensors[name].elements for name in names)


def _fixed_bytes(checkpoint: Checkpoint) -> int:
    """Return what computing takes besides weights and states: pieces that are read, and a block or a chunk."""
    head = checkpoint.tensors[_head_name(checkpoint)]
    return _READING_BYTES + max(_working_bytes(checkpoint.config), 4 * LOGIT_CHUNK * head.rows)


def least_memory_bytes(checkpoint: Checkpoint) -> int:
    """Return the smallest budget of `LayeredModel`: one layer and one slice of the head at a time."""
    head = checkpoint.tensors[_head_name(checkpoint)]
    least = _fixed_bytes(checkpoint) + _layer_bytes(checkpoint) + 4 * head.columns * _slice_rows(head)
    return -(-least * _STATE_SHARE // (_STATE_SHARE - 1))


def resident_memory_bytes(checkpoint: Checkpoint) -> int:
    """Return the budget with which `LayeredModel` keeps all weights: nothing is read twice."""
    whole = 4 * checkpoint.tensors[_head_name(checkpoint)].elements
    whole += checkpoint.config.num_layers * _layer_bytes(checkpoint)
    return -(-(whole + _fixed_bytes(checkpoint)) * _STATE_SHARE // (_STATE_SHARE - 1))


def _plan(checkpoint: Checkpoint, memory_bytes: int) -> _Plan:
    """Divide the budget: what every pass needs first, then the head, which is read most often, then layers.

    Raises:
        MachineError: It does not suffice for one layer.
    """
    if memory_bytes < (least := least_memory_bytes(checkpoint)):
        raise MachineError(
            f"the reference of {checkpoint.source} needs {-(-least // 10**6)} MB for one layer at a time, but may take "
            f"{memory_bytes // 10**6} MB; allow more memory or take a smaller checkpoint"
        )
    count, head = checkpoint.config.num_layers, checkpoint.tensors[_head_name(checkpoint)]
    layer, chunk, state = _layer_bytes(checkpoint), 4 * LOGIT_CHUNK * head.rows, memory_bytes // _STATE_SHARE
    rest = memory_bytes - state - _fixed_bytes(checkpoint)
    whole_head, head_slice = 4 * head.elements, 4 * head.columns * _slice_rows(head)
    if whole_head + layer * count <= rest:
        return _Plan(count, True, 1, state)
    rest -= layer  # the buffers of those that do not stay
    if whole_head <= rest:
        return _Plan((rest - whole_head) // layer, True, 1, state)
    rest -= head_slice
    chunks = min(_MOST_CHUNKS, 1 + rest // chunk)
    return _Plan((rest - (chunks - 1) * chunk) // layer, False, chunks, state)


def _head_name(checkpoint: Checkpoint) -> str:
    return EMBEDDING if checkpoint.config.tie_word_embeddings else HEAD


def _skeleton(checkpoint: Checkpoint) -> Any:
    """Return Transformers' model of a checkpoint, without weights.

    Raises:
        CheckpointError: Transformers reads config.json in another way than we do.
    """
    with uncollected():  # of thousands of modules, of which nothing goes away
        import torch
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(checkpoint.directory, local_files_only=True, trust_remote_code=False)
        # The argument beats what config.json names as its `attn_implementation`, which may be a kernel on a hub.
        with uncollected(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation=_ATTENTION, trust_remote_code=False
            )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, StrictDataclassError) as error:
        raise CheckpointError(f"Transformers cannot build the model of {checkpoint.directory}: {error}") from None
    built = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if checkpoint.config.tie_word_embeddings:
        built.pop(HEAD, None)
    if built != parameter_shapes({name: tensor.shape for name, tensor in checkpoint.tensors.items()}):
        raise CheckpointError(
            f"{checkpoint.directory / 'config.json'} makes Transformers build other tensors than the checkpoint has; "
            "fetch it again"
        )
    return model.eval().requires_grad_(requires_grad=False)


class _Cache:
    """Keys and values of one layer for some sequences: what a decoder layer calls its `past_key_values`.

    A position of the buffer is a position of the sequence; what lies behind the end of a sequence is masked.
    """

    def __init__(self, sequences: int, capacity: int) -> None:
        self._shape = (sequences, capacity)
        self._buffers: tuple[Any, Any] | None = None
        self._rows: Any = None
        self._positions: Any = None
        self._stop = 0

    def seek(self, rows: Any, positions: Any) -> None:
        """Say where the next update goes.

        Args:
            rows: int64 [n]: the sequences.
            positions: int64 [n, tokens].
        """
        self._rows, self._positions, self._stop = rows, positions, int(positions.max()) + 1

    def update(self, keys: Any, values: Any, *_: object, **__: object) -> tuple[Any, Any]:
        """Add keys and values [n, heads, tokens, head_dim], and return those of the sequences so far."""
        if self._buffers is None:
            count, capacity = self._shape
            shape = (count, keys.shape[1], capacity, keys.shape[3])
            self._buffers = keys.new_zeros(shape), values.new_zeros(shape)
        where = (self._rows[:, None], slice(None), self._positions)
        for buffer, new in zip(self._buffers, (keys, values), strict=True):
            buffer[where] = new.transpose(1, 2)
        whole = len(self._rows) == self._shape[0]
        cached = (b if whole else b[self._rows] for b in self._buffers)
        past_keys, past_values = (b[:, :, : self._stop] for b in cached)
        return past_keys, past_values


class _Layer:
    """A module, and where the weights of its parameters go."""

    def __init__(
        self, module: Any, tensors: dict[str, TensorInfo], buffers: dict[str, Any], window: int | None = None
    ) -> None:
        import torch

        self.module, self.loaded, self.window, self._tensors = module, False, window, tensors
        self._observe: Observer | None = None
        module.load_state_dict(buffers, assign=True)
        for part in module.modules():
            if isinstance(part, torch.nn.Linear):
                part.forward = functools.partial(_linear, part)
        for part in expert_modules(module):
            part.forward = functools.partial(compute, part, _product, self._tell_expert)
        placed = slots({name: tensor.shape for name, tensor in tensors.items()})
        self.parts = [
            Part(tensor, 0, buffers[placed[name].parameter].numpy()[placed[name].index].reshape(-1, tensor.columns))
            for name, tensor in tensors.items()
        ]

    @contextlib.contextmanager
    def watched(self, observe: Observer | None) -> Iterator[None]:
        """Tell `observe` what each matrix is multiplied with, until the block is left."""
        import torch

        with contextlib.ExitStack() as stack:
            for name, part in self.module.named_modules():
                if observe is not None and isinstance(part, torch.nn.Linear):
                    tell = functools.partial(_tell, observe, self._tensors[f"{name}.weight"].name)
                    stack.callback(part.register_forward_pre_hook(tell).remove)
            self._observe = observe
            try:
                yield
            finally:
                self._observe = None

    def _tell_expert(self, expert: int, part: str, states: Any) -> None:
        if self._observe is not None:
            self._observe(self._tensors[f"mlp.experts.{expert}.{part}.weight"].name, states.numpy())


def _product(states: Any, weights: Any) -> Any:
    """Return the product of states [rows, columns] and the transpose of weights, float32 and contiguous."""
    if 1 < len(states) <= _FEW_ROWS:
        return (weights @ states.T).T.contiguous()
    return states @ weights.T


def _linear(module: Any, inputs: Any) -> Any:
    """Do what `torch.nn.Linear` does, for few rows in the faster way."""
    import torch

    if not 1 < inputs.shape[:-1].numel() <= _FEW_ROWS:
        return torch.nn.functional.linear(inputs, module.weight, module.bias)
    outputs = _product(inputs.flatten(0, -2), module.weight)
    if module.bias is not None:
        outputs += module.bias
    return outputs.unflatten(0, inputs.shape[:-1])


def _tell(observe: Observer, name: str, _module: object, inputs: tuple[Any, ...]) -> None:
    observe(name, inputs[0].flatten(0, -2).numpy())


def _buffers(tensors: dict[str, TensorInfo]) -> dict[str, Any]:
    import torch

    shapes = parameter_shapes({name: tensor.shape for name, tensor in tensors.items()})
    return {name: torch.empty(shape, dtype=torch.float32) for name, shape in shapes.items()}


class LayeredModel:
    """Runs a checkpoint's weights, rounded to fp16, in float32 within a memory budget. A context manager.

    Args:
        checkpoint: The checkpoint.
        threads: Threads to compute and to convert with; PyTorch takes them for the whole process.
        memory_bytes: Weights, buffers and states stay within it, beyond what the frameworks themselves take. A single
            sequence always runs: what is kept of one may exceed an eighth of the budget.

    Raises:
        MachineError: The budget does not suffice for one layer at a time.
        CheckpointError: Transformers cannot build the model.
    """

    def __init__(self, checkpoint: Checkpoint, *, threads: int, memory_bytes: int) -> None:
        import torch

        self._checkpoint, self._plan = checkpoint, _plan(checkpoint, memory_bytes)
        torch.set_num_threads(threads)
        model = _skeleton(checkpoint)
        decoder = model.get_decoder()
        self._weights = RoundedWeights(checkpoint.tensors, threads=threads)
        # Its tables are computed, not stored, and the copy in the skeleton may lie on the meta device.
        self._rotary = type(decoder.rotary_emb)(config=model.config)
        self._layers = self._make_layers(decoder)
        norm = checkpoint.tensors[FINAL_NORM]
        self._norm = _Layer(decoder.norm, {"weight": norm}, _buffers({"weight": norm}))
        self._head = checkpoint.tensors[_head_name(checkpoint)]
        rows = self._head.rows if self._plan.head else _slice_rows(self._head)
        self._head_buffer = torch.empty(rows, self._head.columns, dtype=torch.float32)
        self._head_loaded = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Close the files and end the threads."""
        self._weights.close()

    @property
    def rounding(self) -> Rounding:
        """What rounding to fp16 lost over all weights, each counted once; what was not read yet is read for it.

        Raises:
            StepError: A weight is NaN or infinite.
        """
        return self._weights.rounding()

    def logits(self, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
        """Yield (sequence, first position, logits float32 [positions, vocabulary]), in order.

        A chunk is valid until the next one is asked for. Weights beyond fp16 make logits NaN: see `rounding`.

        Args:
            sequences: Token ids.

        Raises:
            UsageError: A token lies beyond the vocabulary, or a sequence is too long.
            StepError: A weight is NaN or infinite.
        """
        self._check(sequences, 0)
        size = 4 * self._head.columns
        for group in _groups([size * len(ids) for ids in sequences], self._plan.state_bytes):
            states = self._through_layers([sequences[number] for number in group])
            chunks = [
                (number, first, state[first : first + LOGIT_CHUNK])
                for number, state in zip(group, states, strict=True)
                for first in range(0, len(state), LOGIT_CHUNK)
            ]
            buffers: list[Any] = []
            for several in _batched(chunks, self._plan.chunks):
                applied = self._apply_head([state for _, _, state in several], buffers)
                for (number, first, _), rows in zip(several, applied, strict=True):
                    yield number, first, rows.numpy()

    def activations(self, sequences: Sequence[Sequence[int]], observe: Observer) -> None:
        """Call `observe` with what every matrix is multiplied with, layer by layer, in blocks of positions.

        Matrices with the same input are told of each; an expert is told of the positions that go to it, and routers are
        left out. A tied head goes by the name of the embeddings. The array is valid until `observe` returns.

        Args:
            sequences: Token ids.
            observe: Is given the name of the matrix in the checkpoint, and float32 [positions, columns].

        Raises:
            UsageError: A token lies beyond the vocabulary, or a sequence is too long.
            StepError: A weight is NaN or infinite.
        """
        self._check(sequences, 0)
        size = 4 * self._head.columns
        for group in _groups([size * len(ids) for ids in sequences], self._plan.state_bytes):
            for state in self._through_layers([sequences[number] for number in group], observe):
                for first in range(0, len(state), _BLOCK):
                    observe(self._head.name, self._normed(state[first : first + _BLOCK]).numpy())

    def greedy(self, prompts: Sequence[Sequence[int]], count: int, stop: Collection[int]) -> list[list[int]]:
        """Return up to `count` greedily decoded tokens for each prompt; the first of `stop` ends one and is included.

        Args:
            prompts: Token ids, at least one each.
            count: Tokens of a reply, at most.
            stop: Token ids.

        Raises:
            UsageError: A prompt is empty, or too long with its reply, or a token lies beyond the vocabulary.
            StepError: A weight is NaN or infinite.
        """
        self._check(prompts, count)
        if not all(prompts):
            raise UsageError("a prompt without tokens has no reply; give at least one token")
        config, longest = self._checkpoint.config, max(map(len, prompts), default=0) + count
        size = 8 * longest * config.num_layers * config.num_kv_heads * config.head_dim
        replies: list[list[int]] = []
        for group in _groups([size] * len(prompts), self._plan.state_bytes):
            replies += self._reply([prompts[number] for number in group], count, stop)
        return replies

    # --- building -------------------------------------------------------------------------------------------------

    def _make_layers(self, decoder: Any) -> list[_Layer]:
        """Give every layer its buffers: own ones, or those that all layers share whose weights do not stay."""
        checkpoint, config = self._checkpoint, self._checkpoint.config
        layers: list[_Layer] = []
        shared: dict[bool, dict[str, Any]] = {}
        for number, module in enumerate(decoder.layers):
            names = checkpoint.family.layer_tensors(config, number)
            tensors = {name.removeprefix(f"model.layers.{number}."): checkpoint.tensors[name] for name in names}
            is_dense = config.experts_of(number) is None
            buffers = shared.get(is_dense) or _buffers(tensors)
            if number >= self._plan.layers:
                shared[is_dense] = buffers
            layers.append(_Layer(module, tensors, buffers, config.window_of(number)))
        return layers

    def _check(self, sequences: Sequence[Sequence[int]], more: int) -> None:
        """Refuse what the model cannot take; a row behind the embeddings would be read from another tensor."""
        vocabulary, limit = self._head.rows, self._checkpoint.config.max_position_embeddings
        for ids in sequences:
            if len(ids) + more > limit:
                raise UsageError(
                    f"{self._checkpoint.source} has a context of {limit} tokens, but {len(ids) + more} are asked for"
                )
            if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
                wrong = next(token for token in ids if not 0 <= token < vocabulary)
                raise UsageError(f"token {wrong} lies beyond the vocabulary of {vocabulary}; tokenize the text anew")

    # --- computing ------------------------------------------------------------------------------------------------

    def _embed(self, sequences: Sequence[Sequence[int]]) -> list[Any]:
        """Return float32 [tokens, hidden] for every sequence; only the rows in use are read."""
        import torch

        rows = self._weights.rows(self._checkpoint.tensors[EMBEDDING], itertools.chain.from_iterable(sequences))
        states = [np.empty((len(ids), self._head.columns), np.float32) for ids in sequences]
        for state, ids in zip(states, sequences, strict=True):
            for position, token in enumerate(ids):
                state[position] = rows[token]
        return [torch.from_numpy(state) for state in states]

    def _each_layer(self) -> Iterator[_Layer]:
        """Yield the layers in order, each with its weights in place until the next one is asked for."""
        for number, layer in enumerate(self._layers):
            if not layer.loaded:
                self._weights.read(layer.parts)
                layer.loaded = number < self._plan.layers
            yield layer

    def _rope(self, positions: Any) -> tuple[Any, Any]:
        """Return cosines and sines of positions, int64 [n, tokens], for the rotary embedding."""
        import torch

        cosines, sines = self._rotary(torch.empty(0), positions)
        return cosines, sines

    def _through_layers(self, sequences: Sequence[Sequence[int]], observe: Observer | None = None) -> list[Any]:
        """Return the state of every sequence behind the last layer, float32 [tokens, hidden]."""
        import torch

        states = self._embed(sequences)
        rope = self._rope(torch.arange(max(map(len, sequences), default=0))[None])
        for layer in self._each_layer():
            with layer.watched(observe):
                for state in states:
                    _advance(layer, state, rope, _Cache(1, len(state)) if len(state) > _BLOCK else None, 0)
        return states

    def _head_slices(self) -> Iterator[tuple[int, Any]]:
        """Yield (first row, float32 [rows, hidden]) of the head; always the same slices, read or kept."""
        size = _slice_rows(self._head)
        if self._plan.head and not self._head_loaded:
            self._weights.read([Part(self._head, 0, self._head_buffer.numpy())])
            self._head_loaded = True
        for first in range(0, self._head.rows, size):
            rows = min(size, self._head.rows - first)
            if self._plan.head:
                yield first, self._head_buffer[first : first + rows]
            else:
                self._weights.read([Part(self._head, first, self._head_buffer[:rows].numpy())])
                yield first, self._head_buffer[:rows]

    def _normed(self, states: Any) -> Any:
        if not self._norm.loaded:
            self._weights.read(self._norm.parts)
            self._norm.loaded = True
        return self._norm.module(states)

    def _apply_head(self, chunks: Sequence[Any], buffers: list[Any]) -> list[Any]:
        """Return the logits of chunks of states, in `buffers`, which grow as needed."""
        import torch

        buffers += [torch.empty(LOGIT_CHUNK, self._head.rows) for _ in range(len(chunks) - len(buffers))]
        normed = [self._normed(chunk) for chunk in chunks]
        outputs = [buffer[: len(chunk)] for buffer, chunk in zip(buffers, chunks, strict=False)]
        for first, weights in self._head_slices():
            for states, output in zip(normed, outputs, strict=True):
                output[:, first : first + len(weights)] = _product(states, weights)
        return outputs

    def _best(self, states: Any) -> list[int]:
        """Return the most probable token for every row of states."""
        buffers: list[Any] = []
        chunks = states.split(LOGIT_CHUNK)
        return [int(token) for chunk in chunks for token in self._apply_head([chunk], buffers)[0].argmax(-1)]

    def _reply(self, prompts: Sequence[Sequence[int]], count: int, stop: Collection[int]) -> list[list[int]]:
        """Decode replies side by side; one that has ended goes on unheard, so that the products keep their shape."""
        import torch

        replies: list[list[int]] = [[] for _ in prompts]
        if not prompts or count < 1:
            return replies
        lengths = torch.tensor([len(ids) for ids in prompts])
        caches = [_Cache(len(prompts), int(lengths.max()) + count) for _ in self._layers]
        states, rope = self._embed(prompts), self._rope(torch.arange(int(lengths.max()))[None])
        for layer, cache in zip(self._each_layer(), caches, strict=True):
            for row, state in enumerate(states):
                _advance(layer, state, rope, cache, row)
        last = torch.stack([state[-1] for state in states])
        for step in range(count):
            tokens = self._best(last)
            for reply, token in zip(replies, tokens, strict=True):
                if not reply or reply[-1] not in stop:
                    reply.append(token)
            if step == count - 1 or all(reply[-1] in stop for reply in replies):
                break
            last = self._step(tokens, (lengths + step)[:, None], caches)
        return replies

    def _step(self, tokens: Sequence[int], positions: Any, caches: Sequence[_Cache]) -> Any:
        """Take one token of every sequence through the layers; return the states, float32 [sequences, hidden]."""
        import torch

        state = torch.stack(self._embed([[token] for token in tokens]))
        rope, rows = self._rope(positions), torch.arange(len(tokens))
        keys = torch.arange(int(positions.max()) + 1)
        for layer, cache in zip(self._each_layer(), caches, strict=True):
            cache.seek(rows, positions)
            seen = keys <= positions
            if layer.window is not None:
                seen &= keys > positions - layer.window
            mask = seen[:, None, None]
            state = layer.module(state, attention_mask=mask, position_embeddings=rope, past_key_values=cache)
        return state[:, 0]


def _advance(layer: _Layer, state: Any, rope: tuple[Any, Any], cache: _Cache | None, row: int) -> None:
    """Take one sequence through one layer in place, in blocks.

    Args:
        layer: The decoder layer.
        state: float32 [tokens, hidden].
        rope: Cosines and sines of all positions.
        cache: Keeps keys and values; may be None for a single block.
        row: Of the sequence in the cache.
    """
    import torch

    for start in range(0, len(state), _BLOCK):
        stop = min(start + _BLOCK, len(state))
        if cache is not None:
            cache.seek(torch.tensor([row]), torch.arange(start, stop)[None])
        mask = None  # without one the attention is causal from the first position on
        if start or (layer.window is not None and stop > layer.window):
            seen = torch.ones(stop - start, stop, dtype=torch.bool).tril(start)
            mask = (seen if layer.window is None else seen.triu(start - layer.window + 1))[None, None]
        tables = rope[0][:, start:stop], rope[1][:, start:stop]
        block = state[None, start:stop]
        state[start:stop] = layer.module(block, attention_mask=mask, position_embeddings=tables, past_key_values=cache)[
            0
        ]


def _groups(sizes: Sequence[int], limit: int) -> Iterator[range]:
    """Divide consecutive things into ranges of at most `limit` together, or of one thing."""
    start = total = 0
    for number, size in enumerate(sizes):
        if number > start and total + size > limit:
            yield range(start, number)
            start, total = number, 0
        total += size
    if start < len(sizes):
        yield range(start, len(sizes))


def _batched(chunks: Sequence[_T], count: int) -> Iterator[Sequence[_T]]:
    for first in range(0, len(chunks), count):
        yield chunks[first : first + count]
