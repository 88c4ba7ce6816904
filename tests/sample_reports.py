"""Full reports with invented but likely figures, for the tests of everything that shows or compares reports."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from edgekiln.validators.report import (
    BuildReport,
    CheckpointReport,
    CheckReport,
    ConservationReport,
    CorpusReport,
    FindingReport,
    GateReport,
    HealthReport,
    HostReport,
    LatencyReport,
    LayerReport,
    ParityReport,
    PathReport,
    PrecisionReport,
    ProtocolReport,
    ReplyReport,
    Report,
    RequirementReport,
    SectionReport,
    Speeds,
    StandInReport,
    TargetsReport,
    TensorReport,
    TokenReport,
)

LAYERS = 24
WEIGHTS = 494_032_768
_PARTS = {
    "self_attn.q_proj": 1.0,
    "self_attn.k_proj": 1.12,
    "self_attn.v_proj": 0.97,
    "self_attn.o_proj": 1.04,
    "mlp.gate_proj": 0.98,
    "mlp.up_proj": 0.99,
    "mlp.down_proj": 1.08,
}
_SECTIONS = (
    "english",
    "german",
    "spanish",
    "russian",
    "chinese",
    "japanese",
    "korean",
    "arabic",
    "hindi",
    "mathematics",
    "python",
    "c",
    "shell",
    "sql-json",
    "chat",
)
_NORMS = ("input_layernorm", "post_attention_layernorm")


def checkpoint() -> CheckpointReport:
    return CheckpointReport(
        source="Qwen/Qwen2.5-Coder-0.5B-Instruct",
        revision="ea3f2471cf1b1f0db85067f1ef93848e38e88c25",
        identity="5f3c9c31a7d2f0b0f1d5c1f0a9e2b7d84c6ab3a2a90d4fd1f27c3c4b0a6e9d11",
        model_type="qwen2",
        weights=WEIGHTS,
        fp16_overflows=0,
        fp16_underflows=12,
    )


def host() -> HostReport:
    return HostReport(
        system="Linux 6.8.0",
        machine="x86_64",
        processor="AMD EPYC 9R14",
        logical_cores=2,
        memory_bytes=8_589_934_592,
    )


def protocol() -> ProtocolReport:
    return ProtocolReport(
        window=256,
        scored_tokens=3825,
        threads=2,
        repeats=5,
        warmups=1,
        prefill_tokens=128,
        decode_tokens=64,
        prefill_lengths=(128, 32, 256),
        decode_lengths=(64, 16),
        max_spread=0.25,
        greedy_tokens=32,
        greedy_prompts=8,
        reference="Transformers on the fp16-rounded weights, computed in float32 on the CPU",
    )


def report(*builds: BuildReport, pipeline: str | None = None) -> Report:
    """Return a report on these builds, with everything that stands around them."""
    return Report(
        checkpoint=checkpoint(),
        tools={
            "python": "3.11.7",
            "edgekiln": "0.1.0",
            "gguf": "0.19.0",
            "llama-cpp-python": "0.3.36",
            "onnxruntime": "1.31.0",
            "onnxruntime-genai": "0.18.0",
            "torch": "2.13.0+cpu",
            "transformers": "5.23.0",
        },
        host=host(),
        targets=TargetsReport(name="targets.yaml (shipped)", sha256="3b" * 32) if pipeline else None,
        pipeline=pipeline,
        corpus=CorpusReport(name="built-in", sha256="9f" * 32, tokens=3840),
        protocol=protocol(),
        builds=builds,
    )


def tensor(name: str, source: str, error: float, *, kind: str = "q4_0", weights: int = 4_358_144) -> TensorReport:
    return TensorReport(
        name=name,
        sources=(source,),
        type=kind,
        weights=weights,
        bits_per_weight={"q4_0": 4.5, "q6_k": 6.5625, "q8_0": 8.5, "f32": 32.0, "int4": 5.0, "fp16": 16.0}[kind],
        relative_error=error,
        cosine=1 - error**2 / 2,
        snr_db=-20 * math.log10(error),
    )


def conservation(scale: float = 0.08, *, bad: dict[tuple[int, str], float] | None = None) -> ConservationReport:
    """Return an audit in which each part of each layer differs by about `scale`, and those of `bad` as given."""
    noise = np.random.default_rng(5)
    layers = [LayerReport(layer=None, relative_errors={"embed_tokens": scale / 4, "norm": 0.0, "lm_head": scale / 4})]
    cells: dict[tuple[int, str], float] = {}
    for layer in range(LAYERS):
        for part, factor in _PARTS.items():
            rising = 1 + 0.25 * math.cos(layer / 3.5)
            cells[layer, part] = round(scale * factor * rising * float(1 + 0.04 * noise.standard_normal()), 5)
        cells |= {(layer, part): 0.0 for part in _NORMS}
    cells |= bad or {}
    layers += [
        LayerReport(layer=layer, relative_errors={part: e for (at, part), e in cells.items() if at == layer})
        for layer in range(LAYERS)
    ]
    order = sorted(cells.items(), key=lambda cell: -cell[1])[:10]
    worst = tuple(
        tensor(f"blk.{layer}.{part}.weight", f"model.layers.{layer}.{part}.weight", error)
        for (layer, part), error in order
    )
    return ConservationReport(
        exported=218,
        tied=1,
        fused=72,
        dropped={"mtp.0.embed.weight": "multi-token prediction: no decoder uses it"},
        compared_weights=WEIGHTS,
        relative_error=scale * 0.98,
        snr_db=-20 * math.log10(scale * 0.98),
        worst=worst,
        layers=tuple(layers),
    )


def precision(kind: str = "q4_0", rest: str = "q6_k") -> PrecisionReport:
    return PrecisionReport(
        asked=kind,
        bits_per_weight=5.08,
        weights_by_type={kind: 357_826_560, rest: 136_134_656, "f32": 71_552},
        exceptions=(
            tensor("token_embd.weight", "model.embed_tokens.weight", 0.0181, kind=rest, weights=136_134_656),
            tensor("blk.3.ffn_down.weight", "model.layers.3.mlp.down_proj.weight", 0.0056, kind="q8_0"),
        ),
    )


def requirements() -> tuple[RequirementReport, ...]:
    return tuple(
        RequirementReport(what=what, runtime=runtime, since=since, not_in=not_in, source="the released package")
        for what, runtime, since, not_in in (
            ("the architecture qwen3", "llama.cpp", "b5092", "b4980"),
            ("tensors of type Q4_0", "llama.cpp", "b4980", None),
            ("the architecture qwen3", "Ollama", None, None),
        )
    )


def worst_tokens() -> tuple[TokenReport, ...]:
    rows = (
        (
            ("python", 118, 0.6213),
            "def moving_average(values, window):\n    total = 0.0\n    result = []\n    for i in range(",
            "len",
            (("len", 0.712), ("window", 0.121), ("0", 0.083), ("1", 0.021)),
            (("window", 0.384), ("len", 0.291), ("0", 0.146), ("1", 0.055)),
        ),
        (
            ("japanese", 77, 0.4107),
            "灯台守は三つの時計を持っていたが、どれも同じ時刻を",
            "示",
            (("示", 0.551), ("指", 0.302), ("告", 0.041)),
            (("指", 0.602), ("示", 0.193), ("刻", 0.088)),
        ),
        (
            ("shell", 203, 0.3555),
            '#!/bin/sh\nset -eu\nfor name in "$@"; do\n\tcase $name in\n',
            "\t\t",
            (("\t\t", 0.642), ("\t", 0.178), ("  ", 0.061)),
            (("\t", 0.431), ("\t\t", 0.311), ("\n", 0.095)),
        ),
        (
            ("arabic", 31, 0.2981),
            "كان لدى حارس المنارة ثلاث ساعات، ولم",
            " تتفق",
            ((" يكن", 0.401), (" تتفق", 0.222), (" تكن", 0.164)),
            ((" تكن", 0.347), (" يكن", 0.219), (" يتفق", 0.101)),
        ),
    )
    return tuple(
        TokenReport(
            section=section,
            position=position,
            kld=kld,
            before=before,
            token=following,
            reference=reference,
            artifact=artifact,
        )
        for (section, position, kld), before, following, reference, artifact in rows
    )


def replies() -> tuple[ReplyReport, ...]:
    return (
        ReplyReport(
            prompt="Explain in two sentences why the sky is blue.",
            reference="The sky appears blue because of a phenomenon called Rayleigh scattering. Shorter wavelengths of "
            "sunlight are scattered by the molecules of the air more than longer ones.",
            artifact="The sky appears blue because of a phenomenon called Rayleigh scattering. When sunlight enters "
            "the atmosphere, its blue part is scattered in all directions.",
            agreed_tokens=14,
        ),
        ReplyReport(
            prompt="Write a Python function that reverses a string.",
            reference="```python\ndef reverse_string(text):\n    return text[::-1]\n```",
            artifact="```python\ndef reverse_string(text):\n    return text[::-1]\n```",
            agreed_tokens=17,
        ),
        ReplyReport(prompt="Name three rivers in Europe.", reference="", artifact="1. Danube", agreed_tokens=0),
    )


def parity(mean: float = 0.0219, *, runtime: str = "llama.cpp") -> ParityReport:
    """Return figures that grow with the mean KLD, with every optional one."""
    noise = np.random.default_rng(7)
    curve = [mean * (0.9 + 2.4 * math.exp(-i / 9) + 0.12 * float(noise.standard_normal())) for i in range(255)]
    sections = tuple(
        SectionReport(
            section=name,
            scored_tokens=255,
            mean_kld=round(mean * (0.6 + 0.06 * i), 6),
            p99_kld=round(mean * (5 + 0.4 * i), 6),
            top1_agreement=0.95 - 0.006 * i,
            perplexity_ratio=1 + mean * (0.5 + 0.05 * i),
        )
        for i, name in enumerate(_SECTIONS)
    )
    return ParityReport(
        mean_kld=mean,
        median_kld=mean * 0.45,
        p95_kld=mean * 3.9,
        p99_kld=mean * 7.8,
        p999_kld=mean * 17,
        max_kld=mean * 28.4,
        mean_kld_interval=(mean * 0.95, mean * 1.06),
        top1_agreement=max(0.2, 0.932 - mean),
        top1_near_ties=0.0042,
        top1_agreement_clear=max(0.21, 0.936 - mean),
        perplexity=11.42 * (1 + mean),
        reference_perplexity=11.42,
        perplexity_ratio_interval=(1 + mean * 0.7, 1 + mean * 1.3),
        rms_delta_p=min(0.4, mean**0.5 / 7),
        tail_mass=0.0004,
        greedy_agreement_tokens=21.5,
        runtime=runtime,
        sections=sections,
        kld_by_position=tuple(round(max(0.0, value), 6) for value in curve),
        worst_tokens=worst_tokens(),
        replies=replies(),
        decode=PathReport(
            scored_tokens=512,
            context_tokens=192,
            mean_kld=mean * 1.01,
            max_kld=mean * 14,
            top1_agreement=0.913,
            prefill_mean_kld=mean,
        ),
        long_context=PathReport(
            scored_tokens=256,
            context_tokens=4096,
            mean_kld=mean * 1.3,
            max_kld=mean * 19,
            top1_agreement=0.902,
            prefill_mean_kld=None,
        ),
    )


def speeds(decode: float = 41.0, size: int = 360_000_000) -> Speeds:
    """Return the speeds of something that decodes this fast and is this large."""
    rounds = tuple(round(decode * factor, 3) for factor in (0.985, 1.0, 1.011, 0.994, 1.006))
    prefill = decode * 4.1
    return Speeds(
        load_seconds=size / 1.1e9,
        cold_load_seconds=size / 2.4e8,
        time_to_first_token_seconds=128 / prefill,
        prefill_tokens_per_second=prefill,
        decode_tokens_per_second=decode,
        peak_rss_bytes=size + 210_000_000,
        steady_rss_bytes=size + 120_000_000,
        by_length={"pp128": prefill, "pp32": prefill * 0.86, "pp256": prefill * 1.03, "tg64": decode, "tg16": decode},
        by_depth={"tg32 @ d0": decode, "tg32 @ d512": decode * 0.93, "tg32 @ d4096": decode * 0.61},
        by_batch={"tg32 × 1": decode, "tg32 × 2": decode * 1.7, "tg32 × 4": decode * 2.4},
        joules_per_token=52 / decode,
        spread={"decode_tokens_per_second": 0.012, "prefill_tokens_per_second": 0.031, "load_seconds": 0.38},
        samples={
            "decode_tokens_per_second": rounds,
            "prefill_tokens_per_second": tuple(round(4.1 * value, 3) for value in rounds),
        },
    )


def latency(decode: float = 41.0, size: int = 360_000_000, *, runtime: str = "llama.cpp") -> LatencyReport:
    return LatencyReport(
        **dict(speeds(decode, size)),
        runtime=runtime,
        threads=2,
        pinned_to=(0, 1),
        contention=0.02,
        reference=Speeds(
            load_seconds=2.9,
            time_to_first_token_seconds=2.1,
            prefill_tokens_per_second=61.0,
            decode_tokens_per_second=4.8,
            peak_rss_bytes=2_650_000_000,
            by_length={"pp128": 61.0, "tg64": 4.8},
            spread={"decode_tokens_per_second": 0.02},
            samples={"decode_tokens_per_second": (4.7, 4.8, 4.85)},
        ),
        fp16_artifact=speeds(19.6, 991_000_000),
    )


def passed_checks() -> tuple[CheckReport, ...]:
    return (
        CheckReport(check="files", outcome="pass", detail="1 file, 352,969,408 bytes"),
        CheckReport(check="gguf/bounds", outcome="pass", detail="290 tensors lie inside the file, none overlap"),
        CheckReport(check="gguf/metadata", outcome="pass", detail="27 keys agree with the checkpoint"),
        CheckReport(
            check="conservation",
            outcome="pass",
            detail="290 tensors hold what the checkpoint has",
            findings=(
                FindingReport(
                    id="conservation/dropped",
                    severity="note",
                    subject="mtp.0.embed.weight",
                    detail="is not exported: multi-token prediction: no decoder uses it",
                    fix="Nothing, unless the runtime is to use speculative decoding.",
                ),
            ),
        ),
        CheckReport(check="tokenizer/ids", outcome="pass", detail="412 texts in 27 scripts give the same ids"),
        CheckReport(
            check="tokenizer/nfc",
            outcome="known_divergence",
            detail="6 of 18 texts in NFD give other ids: llama.cpp does not normalise",
            findings=(
                FindingReport(
                    id="tokenizer/nfc",
                    severity="note",
                    subject="'Cafe\\u0301'",
                    detail="gives [34, 2577, 53839], but the reference gives [34, 2577, 963]",
                    fix="Normalise text to NFC before it is given to llama.cpp.",
                ),
            ),
        ),
        CheckReport(
            check="template/render",
            outcome="not_measured",
            detail="the chat template's engine of this runtime is not installed",
        ),
    )


def passed_gates(mean: float = 0.0219, decode: float = 41.0) -> tuple[GateReport, ...]:
    return (
        GateReport(
            metric="mean_kld",
            limit="<= 0.25",
            value=mean,
            outcome="pass",
            reason="4 bits: 0.02 to 0.08 measured; a margin of three",
        ),
        GateReport(
            metric="top1_agreement", limit=">= 0.75", value=0.91, outcome="pass", reason="4 bits: 0.86 measured"
        ),
        GateReport(
            metric="size_bytes", limit="<= 400 MB", value=352_969_408.0, outcome="pass", reason="target's limit"
        ),
        GateReport(
            metric="decode_tokens_per_second",
            limit=">= 1.0 * fp16_artifact",
            value=decode,
            outcome="pass",
            reason="fewer bytes per token should be faster",
        ),
        GateReport(
            metric="time_to_first_token_seconds",
            limit="<= 0.5",
            value=0.78,
            outcome="not_measured",
            reason="this machine (AMD EPYC 9R14) is not the target's: Raspberry Pi 5",
            binding=False,
        ),
    )


def healthy_build(name: str = "gguf-cpu-int4", mean: float = 0.0219, decode: float = 41.0) -> BuildReport:
    """Return a build that passed, with every optional field filled in."""
    return BuildReport(
        id=name,
        target="gguf-cpu",
        format="gguf",
        requested="int4",
        precision="q4_0",
        container_type="Q4_0",
        status="passed",
        reason=None,
        artifact=f"{name}/3f2a91c07b5e",
        size_bytes=352_969_408,
        weights_bytes=346_812_416,
        bits_per_weight=5.08,
        export_seconds=5.6,
        structure=passed_checks(),
        conservation=conservation(),
        precision_built=precision(),
        requirements=requirements(),
        parity=parity(mean),
        latency=latency(decode, 352_969_408),
        gates=passed_gates(mean, decode),
        notes=("token_embd.weight: llama.cpp's mix Q4_0 gives this tensor Q6_K",),
        not_measured={
            "latency.load_seconds": "too noisy: 5 rounds scatter by 38%, beyond 25%",
            "latency.reference.cold_load_seconds": "the page cache cannot be emptied here",
        },
        stand_in=StandInReport(
            what="llama.cpp on this machine's CPU stands in for llama.cpp on metal",
            not_measured=("speed and memory in llama.cpp on metal", "whether metal's kernels compute the same numbers"),
        ),
        health=HealthReport(status="healthy"),
        log=f"logs/{name}.latency.log",
        cached=("export",),
    )


def failed_build(name: str = "onnx-cpu-int4") -> BuildReport:
    """Return a build with two layers swapped, a stale head, an operator that the runtime lacks, and failed gates."""
    base = healthy_build(name)
    findings = (
        FindingReport(
            id="conservation/swapped",
            severity="error",
            subject="model.layers.4.mlp.up_proj.MatMul.weight_Q4",
            detail="holds what model.layers.5.mlp.up_proj.weight is in the checkpoint (cosine 0.9966), not "
            "model.layers.4.mlp.up_proj.weight (cosine 0.0021)",
            fix="Export the artifact again; where another tool made it, report the names of both tensors there.",
        ),
        FindingReport(
            id="conservation/swapped",
            severity="error",
            subject="model.layers.5.mlp.up_proj.MatMul.weight_Q4",
            detail="holds what model.layers.4.mlp.up_proj.weight is in the checkpoint (cosine 0.9966), not "
            "model.layers.5.mlp.up_proj.weight (cosine 0.0021)",
            fix="Export the artifact again; where another tool made it, report the names of both tensors there.",
        ),
        FindingReport(
            id="conservation/dropped",
            severity="warning",
            subject="model.layers.7.self_attn.q_proj.bias",
            detail="is all zeros in the checkpoint and not exported",
            fix="Nothing, if the runtime adds no bias there.",
        ),
    )
    checks = (
        *(check for check in base.structure if not check.check.startswith(("conservation", "gguf"))),
        CheckReport(
            check="conservation",
            outcome="fail",
            detail="2 of 290 tensors hold other weights than their names say",
            findings=findings,
        ),
        CheckReport(
            check="runtime/operators",
            outcome="fail",
            detail="1 operator is unknown to onnxruntime 1.20",
            findings=(
                FindingReport(
                    id="runtime/operator",
                    severity="error",
                    subject="model.onnx",
                    detail="com.microsoft.MatMulBnb4 (12 nodes) is missing in the target's onnxruntime 1.20",
                    fix="Update onnxruntime to 1.21, or export with a precision other than nf4.",
                ),
            ),
        ),
    )
    gates = (
        GateReport(
            metric="mean_kld", limit="<= 0.25", value=2.318, outcome="fail", reason="2.318 is above the limit of 0.25"
        ),
        GateReport(
            metric="perplexity_ratio",
            limit="<= 1.5",
            value=9.71,
            outcome="fail",
            reason="9.71 is above the limit of 1.5",
        ),
        GateReport(
            metric="decode_tokens_per_second",
            limit=">= 1.0 * fp16_artifact",
            value=None,
            outcome="not_measured",
            reason="too noisy: 5 rounds scatter by 41%, beyond 25%",
        ),
        GateReport(
            metric="size_bytes", limit="<= 400 MB", value=381_000_000.0, outcome="pass", reason="target's limit"
        ),
    )
    reason = (
        "conservation: 2 of 290 tensors hold other weights than their names say; runtime/operators: 1 operator is "
        "unknown to onnxruntime 1.20; mean_kld: 2.318 is above the limit of 0.25"
    )
    return base.model_copy(
        update={
            "target": "onnx-cpu",
            "format": "onnx",
            "precision": "int4",
            "container_type": "MatMulNBits 4 bit",
            "status": "failed",
            "reason": reason,
            "size_bytes": 381_000_000,
            "structure": checks,
            "conservation": conservation(bad={(4, "mlp.up_proj"): 1.41, (5, "mlp.up_proj"): 1.41}),
            "precision_built": precision("int4", "fp16"),
            "parity": parity(2.318, runtime="onnxruntime-genai"),
            "latency": latency(33.0, 381_000_000, runtime="onnxruntime-genai"),
            "gates": gates,
            "notes": (),
            "stand_in": None,
            "cached": (),
            "health": HealthReport(
                status="unhealthy",
                findings=(
                    "conservation failed: 2 of 290 tensors hold other weights than their names say; export it again",
                    "mean_kld 2.318 is above the limit of 0.25; use smaller groups or a precision with more bits",
                ),
            ),
        }
    )


def unsupported_build(name: str = "foundry-npu-nf4") -> BuildReport:
    return BuildReport(
        id=name,
        target="foundry-npu",
        format="foundry-local",
        requested="nf4",
        precision=None,
        container_type=None,
        status="unsupported",
        reason="Foundry Local's execution provider qnn has no kernel for nf4; choose int4 or int8",
    )


def error_build(name: str = "gguf-cpu-int8") -> BuildReport:
    reason = "llama.cpp ended with signal 11 while it loaded model-q8_0.gguf"
    return BuildReport(
        id=name,
        target="gguf-cpu",
        format="gguf",
        requested="int8",
        precision="q8_0",
        container_type="Q8_0",
        status="error",
        reason=reason,
        size_bytes=531_000_000,
        log=f"logs/{name}.validate.log",
        structure=passed_checks()[:3],
        health=HealthReport(status="unhealthy", findings=(f"{reason}; see logs/{name}.validate.log",)),
    )


def unmeasured_build(name: str = "onnx-cpu-fp16") -> BuildReport:
    """Return a build of which nothing could be run, so that its binding gates are open and it failed."""
    why = "onnxruntime-genai is not installed: pip install onnxruntime-genai"
    return BuildReport(
        id=name,
        target="onnx-cpu",
        format="onnx",
        requested="fp16",
        precision="fp16",
        container_type="float16",
        status="failed",
        reason=f"mean_kld was not measured: {why}",
        size_bytes=991_000_000,
        bits_per_weight=16.0,
        structure=(CheckReport(check="onnx/checker", outcome="not_measured", detail=why),),
        gates=(GateReport(metric="mean_kld", limit="<= 0.001", value=None, outcome="not_measured", reason=why),),
        not_measured={"parity": why, "latency": why, "conservation": "the external data file is missing"},
        health=HealthReport(
            status="unhealthy",
            findings=(f"mean_kld was not measured: {why}; measure again, or allow it with allow_not_measured",),
        ),
    )


def healthy() -> Report:
    """Return what `validate` says of one good artifact; every optional field of its build is filled in."""
    return report(healthy_build())


def failed() -> Report:
    """Return what `validate` says of one broken artifact, with findings of all severities."""
    return report(failed_build())


def unsupported() -> Report:
    """Return a report on one build that cannot be made; nothing was compared."""
    return report(unsupported_build()).model_copy(update={"corpus": None, "protocol": None})


def not_measured() -> Report:
    """Return a report on one build that could not be run."""
    return report(unmeasured_build())


def unreadable() -> Report:
    """Return a report whose checkpoint could not be read, so that there are no builds."""
    return report().model_copy(update={"checkpoint": None, "corpus": None, "protocol": None})


_GRID = (
    ("gguf-cpu-fp16", "gguf", "F16", 0.000012, 19.6, 994_000_000, 16.1),
    ("gguf-cpu-int8", "gguf", "Q8_0", 0.00061, 31.2, 531_000_000, 8.6),
    ("gguf-cpu-q6-k", "gguf", "Q6_K", 0.00172, 34.9, 506_000_000, 8.2),
    ("gguf-cpu-q5-k-m", "gguf", "Q5_K_M", 0.0068, 36.8, 420_000_000, 6.8),
    ("gguf-cpu-q4-k-m", "gguf", "Q4_K_M", 0.0164, 39.1, 398_000_000, 6.4),
    ("gguf-cpu-int4", "gguf", "Q4_0", 0.0219, 41.0, 353_000_000, 5.1),
    ("onnx-cpu-fp16", "onnx", "float16", 0.000031, 14.2, 991_000_000, 16.0),
    ("onnx-cpu-int8", "onnx", "MatMulNBits 8 bit", 0.00094, 25.4, 620_000_000, 10.0),
    ("onnx-cpu-int4-g32", "onnx", "MatMulNBits 4 bit", 0.0251, 33.7, 411_000_000, 6.6),
    ("onnx-cpu-int4-g128", "onnx", "MatMulNBits 4 bit", 0.0433, 35.9, 382_000_000, 6.2),
    ("onnx-cpu-nf4", "onnx", "MatMulBnb4", 0.0322, 6.9, 377_000_000, 6.1),
    ("foundry-local-cpu-int4", "foundry-local", "MatMulNBits 4 bit", 0.0251, 33.1, 422_000_000, 6.8),
)


def grid(count: int = len(_GRID)) -> Iterable[BuildReport]:
    """Yield `count` builds that passed, in three formats; each has figures of its own."""
    for i in range(count):
        name, format_, kind, mean, decode, size, bits = _GRID[i % len(_GRID)]
        again = i // len(_GRID)
        build = healthy_build(f"{name}-{again}" if again else name, mean * (1 + again / 9), decode * (1 - again / 90))
        runtime = "llama.cpp" if format_ == "gguf" else "onnxruntime-genai"
        yield build.model_copy(
            update={
                "target": name.rsplit("-int", 1)[0],
                "format": format_,
                "container_type": kind,
                "size_bytes": size,
                "bits_per_weight": bits,
                "parity": parity(mean * (1 + again / 9), runtime=runtime),
                "latency": latency(decode * (1 - again / 90), size, runtime=runtime),
                "conservation": conservation(max(0.0002, mean**0.5 / 2)),
                "stand_in": None,
            }
        )


def pipeline(count: int = len(_GRID)) -> Report:
    """Return what a pipeline of `count` good builds says, and of one each that failed in another way."""
    others = (
        failed_build("onnx-cpu-int4-swapped"),
        unmeasured_build("onnx-arm-fp16"),
        error_build("gguf-arm-int8"),
        unsupported_build(),
    )
    return report(*grid(count), *others, pipeline="all-devices")


#: What an artifact's author may put into names: markup, quotes, controls, a right-to-left override, a lone surrogate's
#: replacement, and no place to break a line.
HOSTILE = (
    "<script>alert(1)</script>\"'`&lt;|}}{{7*7}}{%raw%}\x00\x07\x1b[31m\u202etxt.exe\u2066\u200b\ufeff]]>-->"
    + "W" * 300
)


def hostile(text: str = HOSTILE) -> Report:
    """Return a report in which everything that an artifact, a checkpoint or a corpus names is `text`."""
    base = failed_build()
    assert base.conservation is not None
    assert base.parity is not None
    bad = tensor(text, text, 0.5)
    finding = FindingReport(id="conservation/swapped", severity="error", subject=text, detail=text, fix=text)
    parity_ = base.parity.model_copy(
        update={
            "worst_tokens": (
                TokenReport(
                    section=text,
                    position=3,
                    kld=9.0,
                    before=text,
                    token=text,
                    reference=((text, 0.5), ("\n", 0.1)),
                    artifact=((text, 0.4),),
                ),
            ),
            "replies": (ReplyReport(prompt=text, reference=text, artifact=text[::-1], agreed_tokens=0),),
            "sections": (base.parity.sections[0].model_copy(update={"section": text}),),
        }
    )
    build = base.model_copy(
        update={
            "id": text,
            "target": text,
            "container_type": text,
            "reason": text,
            "artifact": text,
            "log": text,
            "structure": (CheckReport(check="conservation", outcome="fail", detail=text, findings=(finding,)),),
            "conservation": base.conservation.model_copy(
                update={
                    "worst": (bad,),
                    "dropped": {text: text},
                    "layers": (LayerReport(layer=0, relative_errors={text: 0.5}),),
                }
            ),
            "precision_built": PrecisionReport(
                asked=text, bits_per_weight=4.5, weights_by_type={text: 5}, exceptions=(bad,)
            ),
            "parity": parity_,
            "gates": (GateReport(metric="mean_kld", limit="<= 1", value=2.0, outcome="fail", reason=text),),
            "notes": (text,),
            "not_measured": {text: text},
            "stand_in": StandInReport(what=text, not_measured=(text,)),
            "health": HealthReport(status="unhealthy", findings=(text,)),
        }
    )
    made = report(build, pipeline=text)
    return made.model_copy(
        update={"checkpoint": checkpoint().model_copy(update={"source": text}), "tools": {"python": text}}
    )
