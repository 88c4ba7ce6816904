import json

import pytest

from edgekiln.errors import CheckpointError, UnsupportedError
from edgekiln.families import READINGS
from edgekiln.model_config import parse_config

BASE = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 512,
    "rope_theta": 1000000.0,
    "eos_token_id": 7,
}


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}


def parse(tmp_path, generation=None, **changes):
    config = {key: value for key, value in {**BASE, **changes}.items() if value is not ...}
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    return parse_config(tmp_path, READINGS)


def test_layouts_of_transformers_4_and_5_mean_the_same(tmp_path):
    old = parse(tmp_path)
    new = parse(tmp_path, rope_theta=..., rope_parameters={"rope_type": "default", "rope_theta": 1000000.0})
    assert old.rope_theta == new.rope_theta == 1000000.0


def test_head_dim_defaults_to_the_share_of_a_head(tmp_path):
    assert parse(tmp_path).head_dim == 16
    assert parse(tmp_path, head_dim=32).head_dim == 32


def test_head_dim_of_qwen3_is_transformers_own_where_it_is_not_said(tmp_path):
    assert parse(tmp_path, model_type="qwen3").head_dim == 128


def test_yarn_reaches_as_far_as_its_factor_says(tmp_path):
    assert parse(tmp_path).yarn is None
    config = parse(tmp_path, rope_scaling=YARN)
    assert (config.yarn.factor, config.yarn.original_context, config.max_position_embeddings) == (4.0, 256, 1024)
    new = parse(tmp_path, rope_theta=..., rope_parameters={**YARN, "rope_theta": 1000000.0, "rope_type": "yarn"})
    assert (new.yarn, new.rope_theta) == (config.yarn, config.rope_theta)
    assert parse(tmp_path, rope_scaling=YARN, max_position_embeddings=4096).max_position_embeddings == 4096
    assert parse(tmp_path, rope_scaling={"type": "yarn", "factor": 2}).yarn.original_context == 512


def test_windows_are_those_of_the_layers_that_transformers_gives_one(tmp_path):
    assert parse(tmp_path, sliding_window=64, max_window_layers=0).sliding_layers == ()
    windowed = {"use_sliding_window": True, "sliding_window": 64}
    late = parse(tmp_path, **windowed, max_window_layers=1)
    assert (late.sliding_window, late.sliding_layers) == (64, (1,))
    assert [late.window_of(layer) for layer in range(2)] == [None, 64]
    assert parse(tmp_path, **windowed).sliding_layers == ()  # from layer 28 on
    typed = parse(tmp_path, **windowed, layer_types=["sliding_attention", "full_attention"])
    assert typed.sliding_layers == (0,)


def test_generation_config_decides_what_ends_a_turn(tmp_path):
    config = parse(tmp_path, generation={"eos_token_id": [9, 7, 9], "temperature": 0.7, "top_k": 20, "do_sample": True})
    assert config.eos_token_ids == (9, 7)
    assert (config.sampling.temperature, config.sampling.top_k, config.sampling.do_sample) == (0.7, 20, True)
    assert config.sampling.top_p is None


def test_a_pad_token_of_zero_is_kept(tmp_path):
    assert parse(tmp_path, generation={"pad_token_id": 0}, pad_token_id=5).pad_token_id == 0


BAD = {
    "key missing": ({"hidden_size": ...}, "no 'hidden_size'"),
    "zero layers": ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    "text for a number": ({"vocab_size": "many"}, "vocab_size is 'many'"),
    "a truth for a number": ({"hidden_size": True}, "hidden_size is True"),
    "heads do not divide": ({"num_key_value_heads": 3}, "do not divide by 3"),
    "hidden does not divide": ({"num_attention_heads": 6, "num_key_value_heads": 3}, "does not divide by 6"),
    "odd head": ({"head_dim": 5}, "even number"),
    "number beyond floats": ({"rms_norm_eps": 10**400}, "rms_norm_eps is 1000"),
    "a billion layers": ({"num_hidden_layers": 10**9}, "up to 1024"),
    "a context beyond memory": ({"max_position_embeddings": 10**10}, "up to 2097152"),
    "negative eos": ({"eos_token_id": -1}, "token id"),
    "infinite rope base": ({"rope_theta": float("inf")}, "finite"),
    "a rope base of one": ({"rope_theta": 1.0}, "rope_theta is 1, but must be greater than 1"),
    "a scaling that is a text": ({"rope_scaling": "yarn"}, "rope_scaling is yarn, but must be an object"),
    "yarn without a factor": ({"rope_scaling": {"type": "yarn"}}, "no 'factor'"),
    "yarn that shrinks": ({"rope_scaling": {**YARN, "factor": 0.5}}, "factor is 0.5, but must lie in 1…64"),
    "yarn beyond memory": (
        {"max_position_embeddings": 1 << 20, "rope_scaling": {"type": "yarn", "factor": 8}},
        "max_position_embeddings is 8388608",
    ),
    "yarn with betas of one size": ({"rope_scaling": {**YARN, "beta_slow": 32}}, "the first one greater"),
    "layer types of other layers": ({"layer_types": ["full_attention"]}, "for each of 2 layers"),
    "layer types without a switch": (
        {"layer_types": ["full_attention", "sliding_attention"]},
        "use_sliding_window is not true",
    ),
    "a window of nothing": (
        {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 0},
        "sliding_window is 0",
    ),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_a_contradiction_is_one_sentence_with_the_file(tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        parse(tmp_path, **changes)
    assert "config.json" in str(caught.value)


UNSUPPORTED = {
    "other architecture": (
        {"model_type": "llama"},
        "'llama' model; Edgekiln supports qwen2, qwen2_moe, qwen3, qwen3_moe",
    ),
    "another scaling": ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "'dynamic'.*it knows 'yarn'"),
    "another scaling, transformers 5": ({"rope_parameters": {"rope_type": "llama3"}}, "'llama3'"),
    "yarn with a factor of its own": ({"rope_scaling": {**YARN, "attention_factor": 2.0}}, "attention_factor"),
    "yarn with mscale": ({"rope_scaling": {**YARN, "mscale": 0.7}}, "mscale"),
    "yarn without whole numbers": ({"rope_scaling": {**YARN, "truncate": False}}, "truncate"),
    "activation": ({"hidden_act": "gelu"}, "'gelu'"),
    "quantized": ({"quantization_config": {"quant_method": "gptq"}}, "quantized already"),
}


@pytest.mark.parametrize(("changes", "message"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_what_is_not_exported_is_unsupported(tmp_path, changes, message):
    with pytest.raises(UnsupportedError, match=message):
        parse(tmp_path, **changes)


@pytest.mark.parametrize(
    "content",
    [b"{", b"\xff\xfe", b"[1]", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"],
    ids=["cut", "no UTF-8", "list", "deep", "endless number"],
)
def test_unreadable_json_is_one_sentence(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        parse_config(tmp_path, READINGS)


def test_a_config_that_is_a_directory_is_one_sentence(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        parse_config(tmp_path, READINGS)
