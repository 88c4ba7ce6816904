"""Checkpoints that say what a test wants: each token is followed by the one that a script names."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from checkpoints import VOCAB_SIZE, encode, make_checkpoint, write_safetensors
from edgekiln.families import EMBEDDING, HEAD, READINGS, expected_tensors
from edgekiln.model_config import parse_config

END = 4072  # <|im_end|>


def scripted_checkpoint(directory: Path, *replies: tuple[str, str]) -> Path:
    """Write a checkpoint that answers (what the prompt ends with, reply) and then ends its turn.

    Attention and MLP give nothing, so the hidden state is the embedding of the last token, and the head's row of the
    next token is that embedding. Within all replies a token may occur only once.
    """
    make_checkpoint(directory, num_layers=1, tied=False)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    rng = np.random.default_rng(7)
    embedding = rng.standard_normal((VOCAB_SIZE, 256), dtype=np.float32)
    head = np.zeros((VOCAB_SIZE, 256), dtype=np.float32)
    for start, text in replies:
        script = [tokenizer.encode(start).ids[-1], *tokenizer.encode(text, add_special_tokens=False).ids, END]
        for token, following in pairwise(script):
            assert following == END or not head[following].any(), "a token occurs twice"
            head[following] += embedding[token]
    tensors = {}
    for name, shape in expected_tensors(parse_config(directory, READINGS)).items():
        values = np.ones(shape, dtype=np.float32) if "norm" in name else np.zeros(shape, dtype=np.float32)
        values = {EMBEDDING: embedding, HEAD: head}.get(name, values)
        tensors[name] = ("BF16", shape, encode(values, "BF16"))
    write_safetensors(directory / "model.safetensors", tensors)
    return directory
