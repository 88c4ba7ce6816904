"""What `edgekiln inspect` says about a checkpoint or an artifact, as JSON."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

INSPECT_SCHEMA: Final = "edgekiln.inspect/1"


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelFacts(_Value):
    """Hyper-parameters and size; null where the files do not say."""

    family: str | None = Field(
        default=None, description="model_type, general.architecture or model.type.", examples=["qwen3"]
    )
    name: str | None = Field(default=None, description="What the files call the model.", examples=["Qwen3 0.6B"])
    parameters: int | None = Field(default=None, description="Stored weights; shared ones once.", examples=[596049920])
    embedding_parameters: int | None = Field(
        default=None,
        description="Weights of the embeddings, and of a head that does not share theirs.",
        examples=[155582464],
    )
    context_length: int | None = Field(default=None, description="Tokens.", examples=[4096])
    layers: int | None = Field(default=None, description="Decoder layers.", examples=[28])
    heads: int | None = Field(default=None, description="Attention heads.", examples=[16])
    kv_heads: int | None = Field(default=None, description="Key-value heads.", examples=[8])
    head_dim: int | None = Field(default=None, description="Width of a head.", examples=[128])
    hidden_size: int | None = Field(default=None, description="Width of the residual stream.", examples=[1024])
    intermediate_size: int | None = Field(
        default=None, description="Width inside the feed-forward layers.", examples=[3072]
    )
    experts: int | None = Field(default=None, description="Experts of a layer that has some.", examples=[128])
    experts_per_token: int | None = Field(default=None, description="How many of them compute.", examples=[8])
    vocab_size: int | None = Field(default=None, description="Rows of the embeddings.", examples=[151936])
    tied: bool | None = Field(default=None, description="Embeddings and head are the same weights.", examples=[True])
    rope_theta: float | None = Field(default=None, description="Base of the rotary embedding.", examples=[1000000.0])

    @property
    def other_parameters(self) -> int | None:
        """Weights beside embeddings and head."""
        if self.parameters is None or self.embedding_parameters is None:
            return None
        return self.parameters - self.embedding_parameters


class TokenizerFacts(_Value):
    """The tokenizer."""

    model: str | None = Field(default=None, description="Kind of tokenizer, as the file calls it.", examples=["BPE"])
    pre_tokenizer: str | None = Field(
        default=None, description="llama.cpp's name of how text is split; null: none.", examples=["qwen2"]
    )
    tokens: int | None = Field(default=None, description="Tokens with a text, added ones included.", examples=[151669])
    merges: int | None = Field(default=None, description="Merges of its byte-pair encoding.", examples=[151387])
    bos_id: int | None = Field(default=None, description="Id of the token that begins a text.", examples=[151643])
    eos_ids: tuple[int, ...] = Field(default=(), description="Tokens that end a reply.", examples=[[151645, 151643]])
    pad_id: int | None = Field(default=None, description="Id of the token that pads.", examples=[151643])


class TemplateFacts(_Value):
    """The chat template."""

    where: str = Field(description="File or metadata key.", examples=["chat_template.jinja"])
    characters: int = Field(description="Its length.", examples=[4116])
    tools: bool = Field(description="It looks at the variable `tools`.", examples=[True])
    thinking: Literal["switch", "tags", "none"] = Field(
        description="switch: it looks at `enable_thinking`; tags: it knows <think> but cannot be told.",
        examples=["switchable"],
    )
    fault: str | None = Field(
        default=None,
        description="What is wrong with it, as far as reading it shows.",
        examples=["line 3: unexpected end of template"],
    )


class FileFacts(_Value):
    """One file."""

    path: str = Field(description="Relative, with forward slashes.", examples=["model.safetensors"])
    size: int = Field(description="Bytes.", examples=[3700000])
    sha256: str | None = Field(
        default=None,
        description="With --hash.",
        examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
    )
    checksum: Literal["ok", "differs", "not listed"] | None = Field(
        default=None, description="Against SHA256SUMS, with --hash.", examples=["ok"]
    )


class TypeFacts(_Value):
    """All tensors of one type."""

    type: str = Field(description="What they are stored as.", examples=["Q4_0"])
    tensors: int = Field(description="Number of tensors.", examples=[168])
    weights: int = Field(description="Number of weights.", examples=[357898240])
    bytes: int = Field(description="Bytes.", examples=[201318400])
    share: float = Field(description="Of the bytes of all tensors, 0 to 1.", examples=[0.72])
    bits_per_weight: float | None = Field(description="Bits per weight.", examples=[4.5])


class TensorFacts(_Value):
    """One tensor."""

    name: str = Field(description="Name in the file.", examples=["model.norm.weight"])
    shape: tuple[int, ...] = Field(description="Logical shape, row-major.", examples=[[151936, 896]])
    type: str = Field(description="What it is stored as.", examples=["BF16"])
    bytes: int = Field(description="0 where the bytes are those of another tensor.", examples=[2048])
    file: str | None = Field(default=None, description="The file that holds it.", examples=["model.safetensors"])


class OnnxFacts(_Value):
    """The decoder's graph."""

    file: str = Field(description="The graph's file.", examples=["model.onnx"])
    ir_version: int = Field(description="Version of ONNX's file format.", examples=[10])
    opsets: dict[str, int] = Field(
        description="Version of each operator set.", examples=[{"ai.onnx": 21, "com.microsoft": 1}]
    )
    producer: str = Field(description="The program that wrote it.", examples=["edgekiln"])
    operators: dict[str, int] = Field(description="How often each operator occurs.", examples=[{"MatMulNBits": 169}])


class LoaderFacts(_Value):
    """A runtime that this is made for, and what it has to know."""

    runtime: str = Field(description="The runtime.", examples=["llama.cpp"])
    installed: str | None = Field(description="Version on this machine; null: not installed.", examples=["0.3.36"])
    needs: str = Field(description="What it takes to load it there.", examples=["llama-cpp-python"])


class ManifestFacts(_Value):
    """What the maker says; nothing here was decided by it."""

    edgekiln: str | None = Field(description="Version that made it.", examples=["0.1.0"])
    container_type: str = Field(description="What the container holds.", examples=["Q4_0"])
    precision: str = Field(description="Precision that the container holds.", examples=["q4_0"])
    checkpoint: str | None = Field(
        description="Name of the checkpoint that it was made from; null for a local directory.",
        examples=["Qwen/Qwen3-0.6B"],
    )
    checkpoint_identity: str = Field(
        description="sha256 over the names and sha256 of that checkpoint's files.",
        examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
    )


class MakeFacts(_Value):
    """What Edgekiln can make of a checkpoint."""

    format: str = Field(description="Container.", examples=["gguf"])
    precision: str = Field(description="Precision that the container holds.", examples=["q4_0"])
    container_type: str | None = Field(default=None, description="Null: cannot be made.", examples=["Q4_0"])
    bytes: int | None = Field(default=None, description="Of all tensors.", examples=[346206720])
    reason: str | None = Field(
        default=None,
        description="Why it cannot be made.",
        examples=["GGUF does not hold nf4; use iq4_nl, the nearest it has"],
    )


class Inspection(_Value):
    """One checkpoint or artifact."""

    schema_id: Literal["edgekiln.inspect/1"] = Field(
        default=INSPECT_SCHEMA,
        alias="schema",
        description="Kind and version of this document.",
        examples=["edgekiln.inspect/1"],
    )
    source: str = Field(description="As given.", examples=["./my-fine-tune"])
    kind: Literal["checkpoint", "gguf", "onnx", "foundry-local"] = Field(
        description="What it is.", examples=["checkpoint", "gguf"]
    )
    path: str = Field(description="Where its files are.", examples=["/home/me/my-fine-tune"])
    revision: str | None = Field(
        default=None, description="The Hub commit.", examples=["c1899de289a04d12100db370d81485cdf75e47ca"]
    )
    model: ModelFacts = Field(description="The model in it.", examples=[{"family": "qwen3", "layers": 28}])
    tokenizer: TokenizerFacts | None = Field(
        default=None,
        description="Its tokenizer; null where there is none.",
        examples=[{"model": "BPE", "tokens": 151669}],
    )
    template: TemplateFacts | None = Field(
        default=None,
        description="Its chat template; null where there is none.",
        examples=[{"where": "tokenizer_config.json", "tools": True}],
    )
    size_bytes: int = Field(description="Of all files.", examples=[3700000])
    files: tuple[FileFacts, ...] = Field(
        description="Its files.", examples=[[{"path": "model.safetensors", "size": 988097824}]]
    )
    types: tuple[TypeFacts, ...] = Field(
        default=(),
        description="What the weights are stored as, the largest share first.",
        examples=[[{"type": "BF16", "tensors": 290}]],
    )
    tensors: tuple[TensorFacts, ...] | None = Field(
        default=None, description="With --tensors.", examples=[[{"name": "model.embed_tokens.weight", "type": "BF16"}]]
    )
    metadata: dict[str, str | int | float | bool] = Field(
        default_factory=dict,
        description="GGUF keys, or genai_config.json flattened; long values are cut.",
        examples=[{"general.architecture": "qwen2"}],
    )
    onnx: OnnxFacts | None = Field(
        default=None, description="The ONNX graph; null where there is none.", examples=[{"ir_version": 10}]
    )
    loaders: tuple[LoaderFacts, ...] = Field(
        default=(),
        description="Which runtimes would load it.",
        examples=[[{"runtime": "llama.cpp", "installed": "0.3.36"}]],
    )
    makes: tuple[MakeFacts, ...] = Field(
        default=(), description="What could be exported from it.", examples=[[{"format": "gguf", "precision": "int4"}]]
    )
    manifest: ManifestFacts | None = Field(
        default=None,
        description="What Edgekiln's manifest says; null where there is none.",
        examples=[{"precision": "q4_0"}],
    )
    identity: str | None = Field(
        default=None,
        description="Of a checkpoint, with --hash.",
        examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
    )
    problems: tuple[str, ...] = Field(
        default=(),
        description="What is wrong, or could not be read.",
        examples=[["the tokenizer has more tokens than the embeddings have rows"]],
    )

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    def to_json(self) -> str:
        """Return it as JSON."""
        return self.model_dump_json(indent=2, by_alias=True)
