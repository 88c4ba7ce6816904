"""The report: one typed value, published as `edgekiln.report/1`; readers ignore keys that they do not know."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

REPORT_SCHEMA: Final = "edgekiln.report/1"


class _Value(BaseModel):
    """A frozen part of a report."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, defer_build=True)


class CheckpointReport(_Value):
    """The checkpoint that everything was made from and compared with."""

    source: str = Field(
        description="What was asked for: a path, a Hub id, or the embedded checkpoint's name.",
        examples=["./my-fine-tune"],
    )
    revision: str | None = Field(
        description="Resolved Hub commit; null for a local directory.",
        examples=["c1899de289a04d12100db370d81485cdf75e47ca"],
    )
    identity: str = Field(
        description="sha256 over the names and sha256 of the checkpoint's files.",
        examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
    )
    model_type: str = Field(description="Family, as config.json names it.", examples=["qwen3"])
    weights: int = Field(description="Number of stored weights; a tied head counts once.", examples=[494032768])
    fp16_overflows: int | None = Field(
        default=None,
        description="Weights that fp16 cannot hold, in the reference; null where it did not run.",
        examples=[0],
    )
    fp16_underflows: int | None = Field(
        default=None, description="Weights other than zero that are zero in fp16, in the reference.", examples=[12]
    )


class HostReport(_Value):
    """The machine that measured."""

    system: str = Field(description="Operating system and release.", examples=["Linux 6.8.0"])
    machine: str = Field(description="Instruction set.", examples=["x86_64"])
    processor: str = Field(description="Name of the processor or board.", examples=["AMD EPYC"])
    logical_cores: int = Field(description="Logical cores that the process may use.", examples=[2])
    memory_bytes: int = Field(
        description="Memory of the machine, or its control group's limit.",
        examples=[8589934592],
    )


class CorpusReport(_Value):
    """The text that was compared on."""

    name: str = Field(description="The file, or built-in.", examples=["built-in"])
    sha256: str = Field(
        description="Of its bytes, in hex.",
        examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
    )
    tokens: int = Field(description="Tokens of the windows that were compared.", examples=[2048])


class ProtocolReport(_Value):
    """How it was measured."""

    window: int = Field(description="Tokens per window.", examples=[256])
    scored_tokens: int = Field(description="Positions whose distributions were compared.", examples=[2040])
    threads: int | None = Field(
        description="Threads of the runtimes; null where builds differ: see each build.", examples=[2]
    )
    repeats: int = Field(description="Rounds of fresh processes behind each median, at least.", examples=[3])
    warmups: int = Field(description="Runs before measuring began.", examples=[1])
    prefill_tokens: int = Field(description="Prompt length of the headline prefill speed and of TTFT.", examples=[128])
    decode_tokens: int = Field(description="Generated tokens of the headline decode speed.", examples=[64])
    prefill_lengths: tuple[int, ...] = Field(
        default=(), description="All prompt lengths that were timed.", examples=[[128, 32, 256]]
    )
    decode_lengths: tuple[int, ...] = Field(
        default=(), description="All numbers of generated tokens.", examples=[[64, 16]]
    )
    max_spread: float | None = Field(
        default=None,
        description="Scatter (interquartile range over median) beyond which a speed is too noisy.",
        examples=[0.15],
    )
    greedy_tokens: int = Field(description="Tokens decoded greedily per prompt.", examples=[32])
    greedy_prompts: int = Field(description="Prompts decoded greedily.", examples=[4])
    reference: str = Field(
        description="What the reference is, in words.",
        examples=["Transformers in float32 on the weights rounded to fp16"],
    )


class TargetsReport(_Value):
    """The targets file used."""

    name: str = Field(description="The file as the user named it.", examples=["targets.yaml (shipped)"])
    sha256: str = Field(
        description="Of its bytes, in hex.",
        examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
    )


class FindingReport(_Value):
    """One thing that a check found."""

    id: str = Field(description="Stable id of what was found.", examples=["conservation/swapped"])
    severity: Literal["error", "warning", "note"] = Field(
        description="An error fails its check; the others fail nothing.", examples=["error"]
    )
    subject: str = Field(
        description="The tensor, file, key or input that it is about.", examples=["blk.1.ffn_up.weight"]
    )
    detail: str = Field(
        description="What was found, and what was expected.",
        examples=["holds what model.layers.4.mlp.up_proj.weight is in the checkpoint"],
    )
    fix: str = Field(description="What to do about it.", examples=["Export the artifact again."])


class CheckReport(_Value):
    """One structural check."""

    check: str = Field(description="Stable id of the check.", examples=["gguf/metadata"])
    outcome: Literal["pass", "fail", "not_measured", "known_divergence"] = Field(
        description="What became of it.", examples=["pass"]
    )
    detail: str = Field(
        description="What was compared, or the first things found wrong.",
        examples=["27 keys agree with the checkpoint"],
    )
    findings: tuple[FindingReport, ...] = Field(
        default=(),
        description="Everything found, each with its fix.",
        examples=[[{"id": "conservation/swapped", "severity": "error", "subject": "blk.1.ffn_up.weight"}]],
    )


class TensorReport(_Value):
    """One tensor of the artifact, compared with what it was made of."""

    name: str = Field(description="Name in the artifact.", examples=["blk.0.ffn_down.weight"])
    sources: tuple[str, ...] = Field(
        description="Tensors of the checkpoint that it is made of; several where they were fused.",
        examples=[["model.layers.0.mlp.down_proj.weight"]],
    )
    type: str = Field(description="What its weights lie in.", examples=["q4_0"])
    weights: int = Field(description="Number of weights.", examples=[4358144])
    bits_per_weight: float = Field(description="With scales and offsets.", examples=[4.5])
    relative_error: float = Field(description="Norm of the difference over the norm of the source.", examples=[0.083])
    cosine: float = Field(description="Cosine of artifact and source.", examples=[0.9966])
    snr_db: float | None = Field(
        description="Signal-to-noise ratio in dB; null where nothing differs.", examples=[21.6]
    )


class LayerReport(_Value):
    """Errors of one layer, for the heat map."""

    layer: int | None = Field(description="Number of the layer; null for what lies outside.", examples=[0])
    relative_errors: dict[str, float] = Field(
        description="Relative error by the part of the layer.", examples=[{"mlp.down_proj": 0.083}]
    )


class ConservationReport(_Value):
    """Whether the artifact holds the checkpoint's weights: all of them, each in its place, nothing else."""

    exported: int = Field(description="Tensors of the checkpoint that are a tensor of the artifact.", examples=[290])
    tied: int = Field(description="Tensors of the artifact that are another one's twin.", examples=[1])
    fused: int = Field(description="Tensors of the checkpoint that are a part of a tensor.", examples=[72])
    dropped: dict[str, str] = Field(
        default={},
        description="Tensors left out by design, and why.",
        examples=[{"mtp.0.weight": "no decoder uses it"}],
    )
    compared_weights: int = Field(description="Weights that were compared by value.", examples=[494032768])
    relative_error: float = Field(description="Over the weights of all matrices.", examples=[0.081])
    snr_db: float | None = Field(description="The same in dB; null where nothing differs.", examples=[21.8])
    worst: tuple[TensorReport, ...] = Field(
        description="The ten tensors with the largest relative error.", examples=[[{"name": "blk.0.ffn_down.weight"}]]
    )
    layers: tuple[LayerReport, ...] = Field(description="Errors of each part of each layer.", examples=[[{"layer": 0}]])


class PrecisionReport(_Value):
    """What the weights lie in, against what was asked for."""

    asked: str | None = Field(
        description="Type that was asked for, or that most weights have where nobody asked.", examples=["int4"]
    )
    bits_per_weight: float = Field(description="Of all tensors, per stored weight of the checkpoint.", examples=[4.9])
    weights_by_type: dict[str, int] = Field(
        description="Weights of matrices by type.", examples=[{"int4": 357826560, "int8": 136134656}]
    )
    exceptions: tuple[TensorReport, ...] = Field(
        default=(),
        description="Matrices of another type than was asked for, the largest first, at most fifty.",
        examples=[[{"name": "lm_head.weight"}]],
    )


class RequirementReport(_Value):
    """What one thing in an artifact asks of one runtime."""

    what: str = Field(description="The thing.", examples=["the architecture qwen3"])
    runtime: str = Field(description="Name of the runtime.", examples=["llama.cpp"])
    since: str | None = Field(
        description="First release that was seen to load it; null where none was.", examples=["b5092"]
    )
    not_in: str | None = Field(
        description="Last release before it that was seen to refuse it; null where older ones may load it as well.",
        examples=["b4980"],
    )
    source: str = Field(description="Where this is from.", examples=["the released package itself"])


class SectionReport(_Value):
    """Parity on one part of the corpus."""

    section: str = Field(description="Name of the part.", examples=["code"])
    scored_tokens: int = Field(description="Positions compared.", examples=[255])
    mean_kld: float = Field(description="Mean over them, in nats.", examples=[0.0219])
    p99_kld: float = Field(description="99th percentile, in nats.", examples=[0.17])
    top1_agreement: float = Field(description="Share with the same most likely token.", examples=[0.867])
    perplexity_ratio: float = Field(description="Artifact's perplexity over the reference's.", examples=[1.02])


class PathReport(_Value):
    """Parity on another path through the runtime than the prefill of the corpus."""

    scored_tokens: int = Field(description="Positions compared.", examples=[64])
    context_tokens: int = Field(description="Longest context before a scored position.", examples=[192])
    mean_kld: float = Field(description="Mean over them, in nats.", examples=[0.0221])
    max_kld: float = Field(description="Worst position, in nats.", examples=[0.3])
    top1_agreement: float = Field(description="Share with the same most likely token.", examples=[0.867])
    prefill_mean_kld: float | None = Field(
        default=None,
        description="Mean of the same positions on the prefill path; null where they were not run.",
        examples=[0.0219],
    )

    kld_from_prefill: float | None = Field(
        default=None,
        description="Mean KLD of this path from the artifact's own prefill; null where that was not run.",
        examples=[0.0012],
    )


class TokenReport(_Value):
    """One token that the artifact predicts badly, in its context."""

    section: str = Field(description="Part of the corpus.", examples=["code"])
    position: int = Field(description="Position in its window, from 0.", examples=[118])
    kld: float = Field(description="In nats.", examples=[0.62])
    before: str = Field(description="Text before it.", examples=["for i in range("])
    token: str = Field(description="The token that follows in the corpus.", examples=["len"])
    reference: tuple[tuple[str, float], ...] = Field(
        description="Most likely tokens of the reference, with their probabilities.", examples=[[["len", 0.71]]]
    )
    artifact: tuple[tuple[str, float], ...] = Field(
        description="Most likely tokens of the artifact, with their probabilities.", examples=[[["10", 0.38]]]
    )


class ReplyReport(_Value):
    """A greedy reply of the reference and one of the artifact to the same prompt."""

    prompt: str = Field(description="What the user says.", examples=["What is the capital of France?"])
    reference: str = Field(description="The reference's reply, at most `greedy_tokens` long.", examples=["Paris."])
    artifact: str = Field(description="The artifact's.", examples=["Paris."])
    agreed_tokens: int = Field(description="Leading tokens that are equal.", examples=[2])


class ParityReport(_Value):
    """The artifact against the reference on the same token ids. KLD is in nats, reference ‖ artifact."""

    mean_kld: float = Field(description="Mean over scored tokens.", examples=[0.0219])
    median_kld: float = Field(description="Median over scored tokens.", examples=[0.011])
    p99_kld: float = Field(description="99th percentile over scored tokens.", examples=[0.17])
    max_kld: float = Field(description="Worst scored token.", examples=[0.62])
    top1_agreement: float = Field(
        ge=0, le=1, description="Share of tokens whose most likely successor is the same.", examples=[0.867]
    )
    perplexity: float = Field(
        description="Exponential of the artifact's mean negative log-likelihood.", examples=[832.9]
    )
    reference_perplexity: float = Field(description="The same of the reference.", examples=[871.2])
    greedy_agreement_tokens: float | None = Field(
        description="Leading tokens of a greedy reply that equal the reference's, mean over the prompts.",
        examples=[21.5],
    )
    runtime: str = Field(description="The runtime that computed the logits.", examples=["llama.cpp"])
    p95_kld: float | None = Field(default=None, description="95th percentile.", examples=[0.09])
    p999_kld: float | None = Field(default=None, description="99.9th percentile.", examples=[0.41])
    mean_kld_interval: tuple[float, float] | None = Field(
        default=None, description="95 % confidence interval of the mean, by bootstrap.", examples=[[0.0207, 0.0231]]
    )
    perplexity_ratio_interval: tuple[float, float] | None = Field(
        default=None, description="95 % confidence interval of the ratio, by bootstrap.", examples=[[0.98, 1.04]]
    )
    top1_near_ties: float | None = Field(
        default=None,
        description="Share of tokens where the reference's two most likely successors are nearer to each other than "
        "the runtime's own noise.",
        examples=[0.004],
    )
    near_tie_nats: float | None = Field(
        default=None,
        description="The runtime's own noise: how far, in the median, it moves the difference in log-probability "
        "of the reference's two most likely successors.",
        examples=[0.03],
    )
    top1_agreement_clear: float | None = Field(
        default=None, description="Agreement over all other tokens.", examples=[0.869]
    )
    rms_delta_p: float | None = Field(
        default=None,
        description="Root mean square difference of the probabilities that the following token has.",
        examples=[0.021],
    )
    tail_mass: float | None = Field(
        default=None,
        description="Mean probability of what the kept reference lumps together; KLDs are low by three to five times "
        "this share, as measured.",
        examples=[0.0004],
    )
    sections: tuple[SectionReport, ...] = Field(
        default=(), description="The same by part of the corpus.", examples=[[{"section": "code"}]]
    )
    kld_by_position: tuple[float, ...] = Field(
        default=(), description="Mean KLD at each position of a window.", examples=[[0.4, 0.1, 0.05]]
    )
    worst_tokens: tuple[TokenReport, ...] = Field(
        default=(), description="The worst tokens, in context.", examples=[[{"section": "code", "kld": 0.62}]]
    )
    replies: tuple[ReplyReport, ...] = Field(
        default=(), description="Greedy replies side by side.", examples=[[{"prompt": "Hi", "agreed_tokens": 9}]]
    )
    decode: PathReport | None = Field(
        default=None, description="Token by token, through the cache.", examples=[{"mean_kld": 0.0221}]
    )
    long_context: PathReport | None = Field(
        default=None, description="At the end of a long context.", examples=[{"context_tokens": 4096}]
    )


class Speeds(_Value):
    """Medians of one model in one runtime; null where it could not be measured."""

    load_seconds: float | None = Field(default=None, description="With the files in the page cache.", examples=[0.41])
    cold_load_seconds: float | None = Field(
        default=None, description="With the files on the disk alone.", examples=[1.9]
    )
    time_to_first_token_seconds: float | None = Field(
        default=None,
        description="From a prompt to its first token, by the runtime's own generate call; llama.cpp has none: by its "
        "decode and its sampler.",
        examples=[0.8],
    )
    prefill_tokens_per_second: float | None = Field(
        default=None, description="Prompt tokens processed per second.", examples=[160.0]
    )
    decode_tokens_per_second: float | None = Field(
        default=None, description="Tokens generated per second.", examples=[41.0]
    )
    peak_rss_bytes: int | None = Field(
        default=None, description="Highest resident memory, mapped files included.", examples=[734003200]
    )
    steady_rss_bytes: int | None = Field(
        default=None, description="Resident memory after generating.", examples=[612368384]
    )
    by_length: dict[str, float] = Field(
        default={},
        description="Tokens per second by length, as llama-bench names them: pp128, tg64.",
        examples=[{"pp128": 160.0, "tg64": 41.0}],
    )
    by_depth: dict[str, float] = Field(
        default={},
        description="Tokens generated per second with a filled cache, as llama-bench names them: tg32 @ d512.",
        examples=[{"tg32 @ d512": 39.0}],
    )
    by_batch: dict[str, float] = Field(
        default={},
        description="Tokens generated per second by several sequences together: tg32 × 4.",
        examples=[{"tg32 × 4": 90.0}],
    )
    joules_per_token: float | None = Field(
        default=None, description="Energy of the processor packages per generated token.", examples=[1.3]
    )
    spread: dict[str, float] = Field(
        default={},
        description="Interquartile range over median of each figure.",
        examples=[{"decode_tokens_per_second": 0.03}],
    )
    samples: dict[str, tuple[float, ...]] = Field(
        default={},
        description="One value per process, in order.",
        examples=[{"decode_tokens_per_second": [40.8, 41.0, 41.3]}],
    )


class LatencyReport(Speeds):
    """Speeds of the artifact and, under the same keys, of what it is compared with."""

    runtime: str = Field(description="The runtime that was timed.", examples=["llama.cpp"])
    threads: int = Field(description="Threads of the runtime.", examples=[2])
    pinned_to: tuple[int, ...] | None = Field(
        default=None,
        description="Logical processors that the processes were bound to; null where that cannot be done.",
        examples=[[0, 1]],
    )
    contention: float | None = Field(
        default=None, description="Share of the processors' time that other processes used meanwhile.", examples=[0.02]
    )
    reference: Speeds | None = Field(
        default=None,
        description="Transformers on the checkpoint, in float32.",
        examples=[{"decode_tokens_per_second": 9.0}],
    )
    fp16_artifact: Speeds | None = Field(
        default=None,
        description="The same checkpoint at fp16 in the same container and runtime.",
        examples=[{"decode_tokens_per_second": 19.6}],
    )


class GateReport(_Value):
    """One gate."""

    metric: str = Field(description="What it limits.", examples=["mean_kld"])
    limit: str = Field(description="Operator and limit.", examples=["<= 0.05"])
    value: float | None = Field(description="The measured value; null when it was not measured.", examples=[0.0219])
    outcome: Literal["pass", "fail", "not_measured"] = Field(description="What became of it.", examples=["pass"])
    reason: str = Field(
        description="Why it failed or was not measured; for a pass, why the limit is what it is.",
        examples=["limit of target gguf-cpu"],
    )
    binding: bool = Field(
        default=True,
        description="False where this machine cannot judge it by design; the build passes without it.",
        examples=[True],
    )


class StandInReport(_Value):
    """What ran here in place of what will run on the device."""

    what: str = Field(
        description="What stood in for what.",
        examples=["llama.cpp on this machine's CPU stands in for llama.cpp on metal"],
    )
    not_measured: tuple[str, ...] = Field(
        description="What this says nothing about.", examples=[["decode_tokens_per_second"]]
    )


class HealthReport(_Value):
    """One word on a build, and what to do about it."""

    status: Literal["healthy", "degraded", "unhealthy"] = Field(
        description="healthy, degraded or unhealthy.", examples=["healthy"]
    )
    findings: tuple[str, ...] = Field(
        default=(),
        description="What is not as it should be, each with what to do.",
        examples=[["decoding scatters by 22 %: measure on a quiet machine"]],
    )


BuildStatus = Literal["passed", "failed", "error", "unsupported"]


class BuildReport(_Value):
    """One cell of the matrix."""

    id: str = Field(description="Unique in the report, and the name of the build's folder.", examples=["gguf-cpu-int4"])
    target: str | None = Field(description="Name of the target; null for a validation.", examples=["gguf-cpu"])
    format: str = Field(description="Container.", examples=["gguf"])
    requested: str | None = Field(description="Precision as asked for.", examples=["int4"])
    precision: str | None = Field(description="Precision after the target's mapping.", examples=["q4_0"])
    container_type: str | None = Field(description="What the container holds.", examples=["Q4_0"])
    status: BuildStatus = Field(description="How it ended.", examples=["passed", "failed"])
    reason: str | None = Field(
        description="Why it did not pass; null when it did.", examples=["mean_kld 0.31 is above 0.25"]
    )
    artifact: str | None = Field(
        default=None, description="Path relative to the report.", examples=["gguf-cpu-int4/3f2a91c07b5e"]
    )
    size_bytes: int | None = Field(default=None, description="All files of the artifact.", examples=[3700000])
    weights_bytes: int | None = Field(default=None, description="All tensors of the artifact.", examples=[3600000])
    bits_per_weight: float | None = Field(
        default=None, description="Bits of all tensors per stored weight of the checkpoint.", examples=[4.85]
    )
    export_seconds: float | None = Field(default=None, description="Time that the export took.", examples=[5.6])
    structure: tuple[CheckReport, ...] = Field(
        default=(),
        description="What was checked without running the model.",
        examples=[[{"check": "gguf/metadata", "outcome": "pass"}]],
    )
    conservation: ConservationReport | None = Field(
        default=None,
        description="Whether it holds the checkpoint's weights; null where they could not be compared.",
        examples=[{"exported": 290, "relative_error": 0.081}],
    )
    precision_built: PrecisionReport | None = Field(
        default=None,
        description="What its weights lie in; null where it cannot be read.",
        examples=[{"asked": "int4", "bits_per_weight": 4.9}],
    )
    requirements: tuple[RequirementReport, ...] = Field(
        default=(),
        description="What it asks of each runtime that reads its kind.",
        examples=[[{"what": "the architecture qwen3", "runtime": "llama.cpp", "since": "b5092"}]],
    )
    parity: ParityReport | None = Field(
        default=None,
        description="How near its predictions are; null where it did not run.",
        examples=[{"mean_kld": 0.0219}],
    )
    latency: LatencyReport | None = Field(
        default=None,
        description="How fast it is; null where it was not timed.",
        examples=[{"decode_tokens_per_second": 41.0}],
    )
    gates: tuple[GateReport, ...] = Field(
        default=(),
        description="Limits and what became of them.",
        examples=[[{"metric": "mean_kld", "outcome": "pass"}]],
    )
    notes: tuple[str, ...] = Field(
        default=(),
        description="What was done otherwise than asked for: tensors in another type, fewer threads.",
        examples=[["24 tensors, first blk.0.ffn_down.weight: rows of 896 do not divide by 256"]],
    )
    not_measured: dict[str, str] = Field(
        default={},
        description="What is missing here, and why.",
        examples=[{"cold_load_seconds": "the page cache cannot be emptied here"}],
    )
    stand_in: StandInReport | None = Field(
        default=None,
        description="Set where the target's own runtime or processor is not this machine's.",
        examples=[{"what": "llama.cpp on this machine's CPU stands in for llama.cpp on metal"}],
    )
    health: HealthReport | None = Field(
        default=None,
        description="Null where the build is unsupported.",
        examples=[{"status": "healthy", "findings": []}],
    )
    log: str | None = Field(
        default=None,
        description="Log of the last step that wrote one, relative to the report.",
        examples=["logs/gguf-cpu-int4.latency.log"],
    )
    cached: tuple[str, ...] = Field(
        default=(),
        description="Steps whose results an earlier run had made from the same inputs; they were not repeated.",
        examples=[["export", "validate"]],
    )


class Report(_Value):
    """Everything that a build or a validation found."""

    schema_id: Literal["edgekiln.report/1"] = Field(
        default=REPORT_SCHEMA,
        alias="schema",
        description="Kind and version of this document.",
        examples=["edgekiln.report/1"],
    )
    checkpoint: CheckpointReport | None = Field(
        description="The checkpoint that everything was made from; null when it could not be read.",
        examples=[{"source": "tiny-qwen3"}],
    )
    tools: dict[str, str] = Field(
        description="Versions of Python and of every package that matters.",
        examples=[{"python": "3.11.7", "onnxruntime": "1.31.0"}],
    )
    host: HostReport = Field(
        description="Where it was measured.", examples=[{"system": "Linux 6.8.0", "machine": "x86_64"}]
    )
    targets: TargetsReport | None = Field(
        default=None,
        description="The targets file; null for a validation.",
        examples=[{"name": "targets.yaml (shipped)"}],
    )
    pipeline: str | None = Field(
        default=None, description="Name of the pipeline; null for a validation.", examples=["default"]
    )
    corpus: CorpusReport | None = Field(
        description="The text; null where nothing was compared.", examples=[{"name": "built-in", "tokens": 2040}]
    )
    protocol: ProtocolReport | None = Field(
        description="The measurement's settings; null where nothing was measured.",
        examples=[{"window": 256, "repeats": 3}],
    )
    builds: tuple[BuildReport, ...] = Field(
        description="In the order of the pipeline.", examples=[[{"id": "gguf-cpu-int4", "status": "passed"}]]
    )

    def to_json(self) -> str:
        """Return the report as published."""
        return self.model_dump_json(indent=2, by_alias=True) + "\n"
