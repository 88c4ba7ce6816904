"""How large model.onnx becomes: `python benchmarks/graph_sizes.py` prints the tables of `exporters/onnx_size.py` anew.

To be run when mobius-onnx, onnx-ir or what is made of their graphs changes. Graphs need no weights, so the checkpoints
are headers before holes. Takes a minute.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from synthetic import write_header

from edgekiln.checkpoint import Checkpoint, open_checkpoint
from edgekiln.device import Device
from edgekiln.exporters.onnx import Onnx
from edgekiln.exporters.onnx_layout import layout, place
from edgekiln.exporters.onnx_size import place_bytes
from edgekiln.exporters.onnx_task import MODEL_FILE, write_graph
from edgekiln.families import READINGS, expected_tensors
from edgekiln.model_config import parse_config
from edgekiln.scheme import Scheme

LAYERS: Final = (2, 8, 28, 64)
#: A provider of each style of graphs.
STYLES: Final = {"cpu": "cpu", "rotating": "cuda", "separate": "dml"}
KINDS: Final = {
    "float16": Scheme("fp16"),
    "symmetric": Scheme("int4"),
    "asymmetric": Scheme("int4", symmetric=False),
    "codebook": Scheme("nf4"),
}
_SHAPE: Final[Mapping[str, Any]] = {
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
    "eos_token_id": 151645,
}
_EXPERTS: Final = {"num_experts": 32, "num_experts_per_tok": 4, "moe_intermediate_size": 768, "norm_topk_prob": True}
#: What each family has beside that.
FAMILIES: Final[Mapping[str, Mapping[str, Any]]] = {
    "qwen2": {},
    "qwen3": {"head_dim": 128},
    "qwen2_moe": {"shared_expert_intermediate_size": 1408, **_EXPERTS},
    "qwen3_moe": {"head_dim": 128, **_EXPERTS},
}


def hollow_checkpoint(directory: Path, family: str, layers: int, more: Mapping[str, Any]) -> Checkpoint:
    """Make a checkpoint whose weights are a hole in its file, without a tokenizer."""
    directory.mkdir()
    config = {"model_type": family, **_SHAPE, **FAMILIES[family], "num_hidden_layers": layers, **more}
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with (directory / "model.safetensors").open("wb") as file:
        size = write_header(file, expected_tensors(parse_config(directory, READINGS)))
        file.truncate(file.tell() + size)
    return open_checkpoint(str(directory), with_text=False)


def graph_bytes(family: str, layers: int, scheme: Scheme, provider: str, more: Mapping[str, Any]) -> int:
    """Return the bytes of the model.onnx of such a model, but for those that say where its initializers lie."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = hollow_checkpoint(Path(folder) / "checkpoint", family, layers, more)
        plan = Onnx().plan(checkpoint, scheme, Device(provider))
        scratch = Path(folder) / "scratch"
        scratch.mkdir()
        placed = place(plan.tensors)
        write_graph(checkpoint, plan, placed, Path(folder), scratch)
        return (Path(folder) / MODEL_FILE).stat().st_size - place_bytes(layout(placed))


def fit(family: str, scheme: Scheme, provider: str, more: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return a constant, the bytes of a layer, those of each further digit of its number; least relative squares."""
    sizes = np.array([graph_bytes(family, layers, scheme, provider, more) for layers in LAYERS], np.float64)
    digits = [sum(len(str(layer)) - 1 for layer in range(layers)) for layers in LAYERS]
    terms = np.column_stack([np.ones(len(LAYERS)), LAYERS, digits]) / sizes[:, None]
    found = np.linalg.lstsq(terms, np.ones(len(LAYERS)), rcond=None)[0]
    worst = max(abs(terms @ found - 1))
    print(f"{family} {provider}: {100 * worst:.2f} % off at worst", file=sys.stderr, flush=True)
    constant, layer, digit = (round(float(value)) for value in found)
    return constant, layer, digit


def print_dense(families: Sequence[str]) -> None:
    """Print the rows of `_GRAPHS`."""
    for (style, provider), family, (kind, scheme) in itertools.product(STYLES.items(), families, KINDS.items()):
        if Onnx().unsupported(scheme, Device(provider)) is None:
            print(f'("{style}", "{family}", "{kind}"): {fit(family, scheme, provider, {})},', flush=True)


def print_sparse(families: Sequence[str]) -> None:
    """Print the rows of `_WITH_EXPERTS`, and what layers have more whose experts do not add up to 1."""
    rows = {}
    for family, kind in itertools.product(families, KINDS):
        rows[family, kind] = fit(family, KINDS[kind], "cpu", {})
        print(f'("{family}", "{kind}"): {rows[family, kind]},', flush=True)
    last = families[-1]  # the families are some bytes apart
    other = fit(last, KINDS["symmetric"], "cpu", {"norm_topk_prob": False})
    print("_UNNORMALIZED", other[1] - rows[last, "symmetric"][1])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=list(FAMILIES), help="rows of these alone")
    families = parser.parse_args().families
    print_dense([family for family in families if not family.endswith("_moe")])
    if sparse := [family for family in families if family.endswith("_moe")]:
        print_sparse(sparse)


if __name__ == "__main__":
    main()
