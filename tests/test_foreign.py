"""Good artifacts that others' tools made pass every check: no false alarms."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from artifacts import scratch
from checkpoints import make_checkpoint
from checks import CHECKS, errors, structure, tokenizer
from edgekiln.checkpoint import Checkpoint, open_checkpoint
from foreign import FOREIGN, why_no_converter

#: Family and keys of config.json by name. mobius promises at least 4096 tokens whatever the checkpoint says, and takes
#: the ends of a reply from config.json, which for the published models lacks what generation_config.json adds.
CHECKPOINTS = {
    "qwen3": None,
    "qwen3 for mobius": ("qwen3", {"max_position_embeddings": 4096, "eos_token_id": [4072, 4073]}),
    "qwen2": ("qwen2", {}),
}
CASES = [
    pytest.param(
        name,
        id=name.replace(" ", "_"),
        marks=pytest.mark.skipif(foreign.converter and why_no_converter() is not None, reason=str(why_no_converter())),
    )
    for name, foreign in FOREIGN.items()
]


@functools.cache
def checkpoint(name: str) -> Checkpoint:
    if CHECKPOINTS[name] is None:
        return open_checkpoint("tiny-qwen3")
    family, config = CHECKPOINTS[name]
    return open_checkpoint(str(make_checkpoint(scratch() / f"foreign-{name}", family, config=config)))


def made(name: str) -> tuple[Path, Checkpoint]:
    reference = checkpoint(FOREIGN[name].checkpoint)
    return FOREIGN[name].make(reference.directory), reference


@pytest.mark.parametrize("name", CASES)
def test_a_good_artifact_of_another_tool_passes_every_check(name):
    path, reference = made(name)
    found = {check.__name__: errors(path, reference, check) for check in dict.fromkeys(CHECKS.values())}
    assert found == {name: set() for name in found}


def test_what_mobius_leaves_out_is_no_false_alarm():
    """Made of the embedded checkpoint, it promises twice the positions, and goes on after <|endoftext|>."""
    reference = checkpoint("qwen3")
    path = FOREIGN["mobius"].make(reference.directory)
    assert errors(path, reference, structure) == {"metadata/context"}
    assert errors(path, reference, tokenizer) == {"tokenizer/eos"}


#: Gates that a good artifact deserves to fail: the embeddings, a sixth of the weights, are left float32.
DESERVED = {"builder int8": {"bits_per_weight"}}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_whole_validation_passes_but_for_deserved_gates_on_size(tmp_path, name):
    """Every check, parity and latency, as a user runs them."""
    path, reference = made(name)
    asked = ["validate", str(path), "--reference", str(reference.directory), "--profile", "quick", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "edgekiln", *asked], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    (build,) = json.loads(done.stdout)["builds"]
    assert [entry for entry in build["structure"] if entry["outcome"] == "fail"] == []
    gates = {gate["metric"] for gate in build["gates"] if gate["outcome"] == "fail"}
    assert gates == DESERVED.get(name, set())
    assert done.returncode == (1 if gates else 0), done.stderr
    assert build["parity"]["mean_kld"] is not None
