"""The report: one typed value, published as `edgekiln.report/1`; readers ignore keys that they do not know."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

REPORT_SCHEMA: Final = "edgekiln.report/1"


class _Value(BaseModel):
    """A frozen part of a report."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class CheckpointReport(_Value):
    """The checkpoint that everything was made from and compared with."""

    source: str = Field(description="What was asked for: a path, a Hub id, or the embedded checkpoint's name.")
    revision: str | None = Field(description="Resolved Hub commit; null for a local directory.")
    identity: str = Field(description="sha256 over the names and sha256 of the checkpoint's files.")
    model_type: str
    weights: int = Field(description="Number of stored weights; a tied head counts once.")
    fp16_overflows: int | None = Field(
        default=None, description="Weights that fp16 cannot hold, in the reference; null where it did not run."
    )
    fp16_underflows: int | None = Field(
        default=None, description="Weights other than zero that are zero in fp16, in the reference."
    )


class HostReport(_Value):
    """The machine that measured."""

    system: str
    machine: str
    processor: str
    logical_cores: int
    memory_bytes: int


class CorpusReport(_Value):
    """The text that was compared on."""

    name: str
    sha256: str
    tokens: int = Field(description="Tokens of the windows that were compared.")


class ProtocolReport(_Value):
    """How it was measured."""

    window: int = Field(description="Tokens per window.")
    scored_tokens: int = Field(description="Positions whose distributions were compared.")
    threads: int | None = Field(description="Threads of the runtimes; null where builds differ: see each build.")
    repeats: int = Field(description="Rounds of fresh processes behind each median, at least.")
    warmups: int
    prefill_tokens: int = Field(description="Prompt length of the headline prefill speed and of TTFT.")
    decode_tokens: int = Field(description="Generated tokens of the headline decode speed.")
    prefill_lengths: tuple[int, ...] = Field(default=(), description="All prompt lengths that were timed.")
    decode_lengths: tuple[int, ...] = Field(default=(), description="All numbers of generated tokens.")
    max_spread: float | None = Field(
        default=None, description="Scatter (interquartile range over median) beyond which a speed is too noisy."
    )
    greedy_tokens: int
    greedy_prompts: int
    reference: str = Field(description="What the reference is, in words.")


class TargetsReport(_Value):
    """The targets file used."""

    name: str
    sha256: str


class CheckReport(_Value):
    """One structural check."""

    check: str
    outcome: Literal["pass", "fail", "not_measured", "known_divergence"]
    detail: str


class ParityReport(_Value):
    """The artifact against the reference on the same token ids. KLD is in nats, reference ‖ artifact."""

    mean_kld: float
    median_kld: float
    p99_kld: float
    max_kld: float
    top1_agreement: float = Field(ge=0, le=1)
    perplexity: float
    reference_perplexity: float
    greedy_agreement_tokens: float | None = Field(
        description="Leading tokens of a greedy reply that equal the reference's, mean over the prompts."
    )
    runtime: str = Field(description="The runtime that computed the logits.")


class Speeds(_Value):
    """Medians of one model in one runtime; null where it could not be measured."""

    load_seconds: float | None = Field(default=None, description="With the files in the page cache.")
    cold_load_seconds: float | None = Field(default=None, description="With the files on the disk alone.")
    time_to_first_token_seconds: float | None = Field(
        default=None, description="From a prompt to its first token, by the runtime's own generate call."
    )
    prefill_tokens_per_second: float | None = None
    decode_tokens_per_second: float | None = None
    peak_rss_bytes: int | None = Field(default=None, description="Highest resident memory, mapped files included.")
    steady_rss_bytes: int | None = Field(default=None, description="Resident memory after generating.")
    by_length: dict[str, float] = Field(
        default={}, description="Tokens per second by length, as llama-bench names them: pp128, tg64."
    )
    spread: dict[str, float] = Field(default={}, description="Interquartile range over median of each figure.")
    samples: dict[str, tuple[float, ...]] = Field(default={}, description="One value per process, in order.")


class LatencyReport(Speeds):
    """Speeds of the artifact and, under the same keys, of what it is compared with."""

    runtime: str
    threads: int
    pinned_to: tuple[int, ...] | None = Field(
        default=None, description="Logical processors that the processes were bound to; null where that cannot be done."
    )
    contention: float | None = Field(
        default=None, description="Share of the processors' time that other processes used meanwhile."
    )
    reference: Speeds | None = Field(default=None, description="Transformers on the checkpoint, in float32.")
    fp16_artifact: Speeds | None = Field(
        default=None, description="The same checkpoint at fp16 in the same container and runtime."
    )


class GateReport(_Value):
    """One gate."""

    metric: str
    limit: str
    value: float | None
    outcome: Literal["pass", "fail", "not_measured"]
    reason: str
    binding: bool = Field(
        default=True, description="False where this machine cannot judge it by design; the build passes without it."
    )


class StandInReport(_Value):
    """What ran here in place of what will run on the device."""

    what: str = Field(description="What stood in for what.")
    not_measured: tuple[str, ...] = Field(description="What this says nothing about.")


class HealthReport(_Value):
    """One word on a build, and what to do about it."""

    status: Literal["healthy", "degraded", "unhealthy"]
    findings: tuple[str, ...] = Field(default=(), description="What is not as it should be, each with what to do.")


BuildStatus = Literal["passed", "failed", "error", "unsupported"]


class BuildReport(_Value):
    """One cell of the matrix."""

    id: str
    target: str | None
    format: str
    requested: str | None = Field(description="Precision as asked for.")
    precision: str | None = Field(description="Precision after the target's mapping.")
    container_type: str | None = Field(description="What the container holds.")
    status: BuildStatus
    reason: str | None = Field(description="Why it did not pass; null when it did.")
    artifact: str | None = Field(default=None, description="Path relative to the report.")
    size_bytes: int | None = Field(default=None, description="All files of the artifact.")
    weights_bytes: int | None = Field(default=None, description="All tensors of the artifact.")
    bits_per_weight: float | None = None
    export_seconds: float | None = None
    structure: tuple[CheckReport, ...] = ()
    parity: ParityReport | None = None
    latency: LatencyReport | None = None
    gates: tuple[GateReport, ...] = ()
    notes: tuple[str, ...] = Field(default=(), description="Tensors that lie in another type than was asked for.")
    not_measured: dict[str, str] = Field(default={}, description="What is missing here, and why.")
    stand_in: StandInReport | None = Field(
        default=None, description="Set where the target's own runtime or processor is not this machine's."
    )
    health: HealthReport | None = Field(default=None, description="Null where the build is unsupported.")
    log: str | None = Field(default=None, description="Log of the runtimes, relative to the report.")


class Report(_Value):
    """Everything that a build or a validation found."""

    schema_id: Literal["edgekiln.report/1"] = Field(default=REPORT_SCHEMA, alias="schema")
    checkpoint: CheckpointReport | None
    tools: dict[str, str]
    host: HostReport
    targets: TargetsReport | None = None
    pipeline: str | None = None
    corpus: CorpusReport | None
    protocol: ProtocolReport | None
    builds: tuple[BuildReport, ...]

    def to_json(self) -> str:
        """Return the report as published."""
        return self.model_dump_json(indent=2, by_alias=True) + "\n"
