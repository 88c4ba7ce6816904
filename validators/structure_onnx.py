"""Structural checks of an ORT GenAI or Foundry Local directory: files, graph, configuration, hyper-parameters."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from edgekiln.errors import ArtifactError, CheckpointError
from edgekiln.model_config import ModelConfig, read_json
from edgekiln.validators.base import CheckResult
from edgekiln.validators.faults import FaultError, failed, guarded, judged, shown
from edgekiln.validators.hyperparameters import Comparison, same
from edgekiln.validators.kinds import ArtifactKind
from edgekiln.validators.onnx_files import check_overlap, decoder_path, external_regions
from edgekiln.validators.onnx_hyperparameters import Attention, GraphParameters, read_parameters
from edgekiln.validators.onnx_read import MAX_GRAPH_BYTES
from edgekiln.validators.rotary import judge_table

#: Operators that only ONNX Runtime knows, though it registers them as ONNX's own.
_RUNTIME_OPERATORS: Final = frozenset({"SimplifiedLayerNormalization"})
#: Types that ORT GenAI runs with one and the same decoder; mobius calls every Qwen qwen2.
_ONE_DECODER: Final = frozenset({"qwen2", "qwen3"})
_SCALE_TOLERANCE: Final = 1e-3


def check_onnx(kind: ArtifactKind, config: ModelConfig, genai_type: str) -> tuple[tuple[CheckResult, ...], int | None]:
    """Return the checks of a directory, and the bytes of its tensors where they can be told.

    Args:
        kind: What `identify` said.
        config: The reference's.
        genai_type: `model.type` that ORT GenAI has for its family.
    """
    directory = kind.path
    try:
        genai, path, model = _load(directory)
        files, weights_bytes = _files(directory, path, model)
    except FaultError as fault:
        return (judged("files", [fault.finding], ""),), None
    except (ArtifactError, CheckpointError, OSError, ValueError) as error:  # as `guarded` has it
        return (failed("files", "files/unreadable", directory.name, str(error)),), None
    name = path.name

    def metadata() -> CheckResult:
        return _metadata(read_parameters(directory, path.parent, model), genai, config)

    checks = [
        files,
        guarded("onnx/checker", "onnx/checker", name, lambda: _checker(path, model)),
        guarded("onnx/metadata", "onnx/data", name, metadata),
        _genai_config(genai, config, genai_type),
    ]
    if kind.format == "foundry-local":
        action = lambda: _inference_model(directory)  # noqa: E731 - as above
        checks.append(guarded("foundry/inference_model", "foundry/name", "inference_model.json", action))
    return tuple(checks), weights_bytes


def _load(directory: Path) -> tuple[dict[str, Any], Path, Any]:
    """Return genai_config.json, the path of the decoder's graph, and the graph without its data.

    Raises:
        ArtifactError: They are not there, or cannot be read.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        genai = read_json(directory / "genai_config.json")
    except CheckpointError as error:
        raise FaultError("onnx/genai_config", "genai_config.json", str(error)) from None
    path = decoder_path(directory, genai)
    if (size := path.stat().st_size) > MAX_GRAPH_BYTES:
        detail = f"{path.name} has {size} bytes, where {MAX_GRAPH_BYTES} are allowed; its weights belong beside it"
        raise FaultError("onnx/model", path.name, detail)
    try:
        return genai, path, onnx.load(path, load_external_data=False)
    except DecodeError:
        raise FaultError("onnx/model", path.name, f"the decoder {path.name} is no ONNX model") from None


def _files(directory: Path, path: Path, model: Any) -> tuple[CheckResult, int | None]:
    regions, inline = external_regions(directory, path.parent, model)
    check_overlap(regions)
    if not (directory / "tokenizer.json").is_file():
        detail = "tokenizer.json is missing: ORT GenAI cannot read text without it"
        raise FaultError("files/missing", "tokenizer.json", detail)
    stored = inline + sum(length for _, _, length in regions)
    return CheckResult("files", "pass", f"{path.name} and {len(regions)} tensors in its data files"), stored or None


def _checker(path: Path, model: Any) -> CheckResult:
    """Run ONNX's checker on the graph; it looks for data files relative to the working directory.

    ONNX Runtime registers `_RUNTIME_OPERATORS` in ONNX's own domain, where the checker refuses them; in any other
    domain it leaves operators to the runtime.
    """
    import onnx

    judged_model = onnx.ModelProto()
    judged_model.CopyFrom(model)
    moved = [node for node in judged_model.graph.node if not node.domain and node.op_type in _RUNTIME_OPERATORS]
    for node in moved:
        node.domain = "com.microsoft"
    if moved and all(entry.domain != "com.microsoft" for entry in judged_model.opset_import):
        judged_model.opset_import.add(domain="com.microsoft", version=1)
    check = "onnx/checker"
    try:
        with contextlib.chdir(path.parent):
            onnx.checker.check_model(judged_model)
    except (onnx.checker.ValidationError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        return failed(check, check, path.name, f"the ONNX checker refuses the graph: {reason}")
    return CheckResult(check, "pass", f"the ONNX checker accepts the graph of {len(model.graph.node)} nodes")


def _metadata(found: GraphParameters, genai: Mapping[str, Any], config: ModelConfig) -> CheckResult:
    """Compare what the graph computes with the reference's configuration; what it does not say is not judged."""
    comparison = Comparison()
    vocabulary = found.vocabulary
    comparison.equal("metadata/vocabulary", "width of the logits", vocabulary, config.vocab_size, required=False)
    layers = len(found.attention) or None
    comparison.equal("metadata/layers", "number of attention nodes", layers, config.num_layers, required=False)
    caches = len(found.caches) or None
    number = 2 * config.num_layers
    comparison.equal("metadata/layers", "number of key and value caches", caches, number, required=False)
    _heads(comparison, found, config)
    _attention(comparison, found, config)
    _mixtures(comparison, found, config)
    for epsilon, nodes in found.epsilons.items():
        comparison.compared += len(nodes)
        if not same(epsilon, float(config.rms_norm_eps)):
            detail = f"epsilon is {epsilon:.4g}, but the reference has {config.rms_norm_eps:.4g}"
            comparison.problem("metadata/norm_epsilon", nodes[0], f"{_named(nodes)}: {detail}")
    _rope(comparison, found, genai, config)
    return comparison.result("onnx/metadata")


def _named(nodes: tuple[str, ...]) -> str:
    more = f" and {len(nodes) - 1} other nodes" if len(nodes) > 1 else ""
    return f"{shown(nodes[0])[1:-1]}{more}"


def _differing(comparison: Comparison, cause: str, what: str, found: Mapping[str, object], expected: object) -> None:
    """Note the nodes, or inputs, that have another value than `expected`; None is not judged."""
    wrong = {name: value for name, value in found.items() if value is not None and not same(value, expected)}
    comparison.compared += sum(value is not None for value in found.values())
    for value in sorted(set(wrong.values()), key=repr):
        nodes = tuple(name for name, other in wrong.items() if other == value)
        detail = f"{_named(nodes)}: {what} is {value!r}, but the reference has {expected!r}"
        comparison.problem(cause, nodes[0], detail)


def _heads(comparison: Comparison, found: GraphParameters, config: ModelConfig) -> None:
    nodes = {node.node: node for node in found.attention}
    heads = {name: node.heads for name, node in nodes.items()}
    _differing(comparison, "metadata/heads", "number of heads", heads, config.num_heads)
    # Where a graph repeats keys and values for every query head, the operator may count them so.
    grouped = {name: node.kv_heads for name, node in nodes.items() if node.kv_heads != config.num_heads}
    _differing(comparison, "metadata/heads", "number of key-value heads", grouped, config.num_kv_heads)
    kept = {name: heads for name, heads, _ in found.caches}
    _differing(comparison, "metadata/heads", "number of cached heads", kept, config.num_kv_heads)
    sizes = {name: size for name, _, size in found.caches}
    _differing(comparison, "metadata/head_dim", "size of a cached head", sizes, config.head_dim)


def _is_other_scale(node: Attention, config: ModelConfig) -> bool:
    """A scale of 1 is that of a graph that scales queries or keys itself."""
    expected = config.head_dim**-0.5
    return node.scale not in {None, 1.0} and not math.isclose(node.scale or 0.0, expected, rel_tol=_SCALE_TOLERANCE)


def _other_windows(nodes: Sequence[Attention], config: ModelConfig) -> list[Attention]:
    """Return the nodes that look back on more or fewer tokens than the layer does; a window of all tokens is none."""
    limit = config.max_position_embeddings
    layers = range(len(nodes)) if len(nodes) == config.num_layers else [-1] * len(nodes)
    return [
        node
        for layer, node in zip(layers, nodes, strict=True)
        if min(node.window or limit, limit) != min(config.window_of(layer) or limit, limit)
    ]


def _attention(comparison: Comparison, found: GraphParameters, config: ModelConfig) -> None:
    nodes = found.attention
    faults = (
        (
            "metadata/attention_scale",
            [n for n in nodes if _is_other_scale(n, config)],
            "another scale than the model's",
        ),
        ("metadata/attention_window", _other_windows(nodes, config), "another window than the model's"),
        ("metadata/softcap", [n for n in nodes if n.softcap is not None], "a cap on its scores"),
        ("metadata/causal", [n for n in nodes if not n.causal], "attention to what follows"),
    )
    comparison.compared += len(nodes)
    for cause, wrong, what in faults:
        if wrong:
            names = tuple(node.node for node in wrong)
            values = f"scale {wrong[0].scale}, window {wrong[0].window}, softcap {wrong[0].softcap}"
            comparison.problem(cause, names[0], f"{_named(names)}: has {what} ({values}), which the reference has not")


def _mixtures(comparison: Comparison, found: GraphParameters, config: ModelConfig) -> None:
    """Compare the mixtures of experts that are nodes; a graph may have them in many nodes, which are not judged."""
    cause, experts, nodes = "metadata/experts", config.experts, found.mixtures
    if not nodes:
        return
    comparison.equal(cause, "number of mixtures of experts", len(nodes), len(experts.layers) if experts else 0)
    if experts is None:
        return
    _differing(comparison, cause, "number of experts", {n.node: n.count for n in nodes}, experts.count)
    _differing(comparison, cause, "experts for each token", {n.node: n.per_token for n in nodes}, experts.per_token)
    normalized = {n.node: n.normalized for n in nodes}
    _differing(comparison, cause, "whether their weights add up to 1", normalized, experts.normalized)
    if other := tuple(node.node for node in nodes if not node.is_silu_gated):
        comparison.problem(cause, other[0], f"{_named(other)}: has another activation than the reference's gated SiLU")


def _rope(comparison: Comparison, found: GraphParameters, genai: Mapping[str, Any], config: ModelConfig) -> None:
    if found.interleaved:
        detail = f"{_named(found.interleaved)}: rotates interleaved pairs, where the reference rotates halves"
        comparison.problem("metadata/rope_layout", found.interleaved[0], detail)
    cause = "metadata/rope_dimension"
    _differing(comparison, cause, "numbers of a head that are rotated", found.rotary_dims, config.head_dim)
    for table in found.tables:
        comparison.compared += 1
        if table.rotary_dim != config.head_dim:
            detail = f"{table.name} rotates {table.rotary_dim} numbers of a head, but the reference {config.head_dim}"
            comparison.problem(cause, table.name, detail)
        elif (fault := judge_table(table, config.rope_theta, config.yarn)) is not None:
            comparison.problem(fault[0], table.name, fault[1])
        named = genai["model"].get("context_length") if isinstance(genai.get("model"), dict) else None
        if type(named) is int and table.positions < named <= config.max_position_embeddings:
            detail = f"{table.name} has {table.positions} positions, but model.context_length promises {named}"
            comparison.problem("metadata/context", table.name, detail)


def _genai_config(genai: Mapping[str, Any], config: ModelConfig, genai_type: str) -> CheckResult:
    check, comparison = "onnx/genai_config", Comparison()
    model = genai.get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(decoder, dict):
        return failed(check, check, "model.decoder", "genai_config.json has no 'model' with a 'decoder'")
    _genai_type(comparison, model.get("type"), genai_type)
    rows: tuple[tuple[str, str, object, object, bool], ...] = (
        ("vocabulary", "model.vocab_size", model.get("vocab_size"), config.vocab_size, True),
        ("layers", "decoder.num_hidden_layers", decoder.get("num_hidden_layers"), config.num_layers, True),
        ("heads", "decoder.num_key_value_heads", decoder.get("num_key_value_heads"), config.num_kv_heads, True),
        ("heads", "decoder.num_attention_heads", decoder.get("num_attention_heads"), config.num_heads, False),
        ("head_dim", "decoder.head_size", decoder.get("head_size"), config.head_dim, True),
        ("hidden_size", "decoder.hidden_size", decoder.get("hidden_size"), config.hidden_size, False),
    )
    for group, key, found, expected, required in rows:
        comparison.equal(f"metadata/{group}", key, found, expected, required=required)
    comparison.context("model.context_length", model.get("context_length"), config.max_position_embeddings)
    _genai_search(comparison, genai.get("search"), model.get("context_length"))
    eos = model.get("eos_token_id")
    comparison.eos("model.eos_token_id", eos if isinstance(eos, list) else [eos], config.eos_token_ids)
    return comparison.result(check)


def _genai_type(comparison: Comparison, found: object, expected: str) -> None:
    cause, key = "metadata/architecture", "model.type"
    if found != expected and found in _ONE_DECODER and expected in _ONE_DECODER:
        detail = f"{key} is {found!r} where {expected!r} is the family's; ORT GenAI runs both with one decoder"
        comparison.compared += 1
        comparison.problem(cause, key, detail, "note")
        return
    comparison.equal(cause, key, found, expected)


def _genai_search(comparison: Comparison, search: object, context: object) -> None:
    """ORT GenAI refuses to generate where `search.max_length` is beyond the context."""
    longest = search.get("max_length") if isinstance(search, dict) else None
    if type(longest) is int and type(context) is int and longest > context:
        detail = f"search.max_length is {longest}, but model.context_length is {context}"
        comparison.problem("metadata/search", "search.max_length", detail)


def _inference_model(directory: Path) -> CheckResult:
    """Foundry Local's cache contract: a string `Name`, and no download under way."""
    check = "foundry/inference_model"
    name = read_json(directory / "inference_model.json").get("Name")
    if not isinstance(name, str) or not name:
        detail = f"inference_model.json has the Name {shown(name)}; it must be a text"
        return failed(check, "foundry/name", "inference_model.json", detail)
    if (directory / "download.tmp").exists():
        detail = "download.tmp lies beside it: Foundry Local takes the model for unfinished"
        return failed(check, "foundry/download", "download.tmp", detail)
    return CheckResult(check, "pass", f"inference_model.json names {name!r}")
