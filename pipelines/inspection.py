"""What `edgekiln inspect` says about a checkpoint or an artifact, as JSON."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

INSPECT_SCHEMA: Final = "edgekiln.inspect/1"


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelFacts(_Value):
    """Hyper-parameters and size; null where the files do not say."""

    family: str | None = Field(default=None, description="model_type, general.architecture or model.type.")
    name: str | None = Field(default=None, description="What the files call the model.")
    parameters: int | None = Field(default=None, description="Stored weights; shared ones once.")
    embedding_parameters: int | None = Field(
        default=None, description="Weights of the embeddings, and of a head that does not share theirs."
    )
    context_length: int | None = Field(default=None, description="Tokens.")
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    vocab_size: int | None = None
    tied: bool | None = Field(default=None, description="Embeddings and head are the same weights.")
    rope_theta: float | None = None

    @property
    def other_parameters(self) -> int | None:
        """Weights beside embeddings and head."""
        if self.parameters is None or self.embedding_parameters is None:
            return None
        return self.parameters - self.embedding_parameters


class TokenizerFacts(_Value):
    """The tokenizer."""

    model: str | None = Field(default=None, description="Kind of tokenizer, as the file calls it.")
    pre_tokenizer: str | None = Field(default=None, description="llama.cpp's name of how text is split; null: none.")
    tokens: int | None = Field(default=None, description="Tokens with a text, added ones included.")
    merges: int | None = None
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = Field(default=(), description="Tokens that end a reply.")
    pad_id: int | None = None


class TemplateFacts(_Value):
    """The chat template."""

    where: str = Field(description="File or metadata key.")
    characters: int
    tools: bool = Field(description="It looks at the variable `tools`.")
    thinking: Literal["switch", "tags", "none"] = Field(
        description="switch: it looks at `enable_thinking`; tags: it knows <think> but cannot be told."
    )
    fault: str | None = Field(default=None, description="What is wrong with it, as far as reading it shows.")


class FileFacts(_Value):
    """One file."""

    path: str = Field(description="Relative, with forward slashes.")
    size: int = Field(description="Bytes.")
    sha256: str | None = Field(default=None, description="With --hash.")
    checksum: Literal["ok", "differs", "not listed"] | None = Field(
        default=None, description="Against SHA256SUMS, with --hash."
    )


class TypeFacts(_Value):
    """All tensors of one type."""

    type: str
    tensors: int
    weights: int
    bytes: int
    share: float = Field(description="Of the bytes of all tensors, 0 to 1.")
    bits_per_weight: float | None


class TensorFacts(_Value):
    """One tensor."""

    name: str
    shape: tuple[int, ...]
    type: str
    bytes: int = Field(description="0 where the bytes are those of another tensor.")
    file: str | None = None


class OnnxFacts(_Value):
    """The decoder's graph."""

    file: str
    ir_version: int
    opsets: dict[str, int]
    producer: str
    operators: dict[str, int]


class LoaderFacts(_Value):
    """A runtime that this is made for, and what it has to know."""

    runtime: str
    installed: str | None = Field(description="Version on this machine; null: not installed.")
    needs: str


class ManifestFacts(_Value):
    """What the maker says; nothing here was decided by it."""

    edgekiln: str | None = Field(description="Version that made it.")
    container_type: str
    precision: str
    checkpoint: str | None
    checkpoint_identity: str


class MakeFacts(_Value):
    """What Edgekiln can make of a checkpoint."""

    format: str
    precision: str
    container_type: str | None = Field(default=None, description="Null: cannot be made.")
    bytes: int | None = Field(default=None, description="Of all tensors.")
    reason: str | None = Field(default=None, description="Why it cannot be made.")


class Inspection(_Value):
    """One checkpoint or artifact."""

    schema_id: Literal["edgekiln.inspect/1"] = Field(default=INSPECT_SCHEMA, alias="schema")
    source: str = Field(description="As given.")
    kind: Literal["checkpoint", "gguf", "onnx", "foundry-local"]
    path: str = Field(description="Where its files are.")
    revision: str | None = Field(default=None, description="The Hub commit.")
    model: ModelFacts
    tokenizer: TokenizerFacts | None = None
    template: TemplateFacts | None = None
    size_bytes: int = Field(description="Of all files.")
    files: tuple[FileFacts, ...]
    types: tuple[TypeFacts, ...] = ()
    tensors: tuple[TensorFacts, ...] | None = Field(default=None, description="With --tensors.")
    metadata: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="GGUF keys, or genai_config.json flattened; long values are cut."
    )
    onnx: OnnxFacts | None = None
    loaders: tuple[LoaderFacts, ...] = ()
    makes: tuple[MakeFacts, ...] = ()
    manifest: ManifestFacts | None = None
    identity: str | None = Field(default=None, description="Of a checkpoint, with --hash.")
    problems: tuple[str, ...] = Field(default=(), description="What is wrong, or could not be read.")

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    def to_json(self) -> str:
        """Return it as JSON."""
        return self.model_dump_json(indent=2, by_alias=True)
