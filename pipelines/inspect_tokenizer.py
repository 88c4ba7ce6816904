"""The tokenizer of a Hugging Face directory, as far as it can be told without loading it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgekiln.exporters.gguf_tokenizer import PRE_TOKENIZERS
from edgekiln.pipelines.inspect_files import bounded, integer, optional_json
from edgekiln.pipelines.inspection import TokenizerFacts
from edgekiln.tokenizer_file import MAX_TOKENIZER_BYTES


def ids(value: object) -> tuple[int, ...]:
    """Return token ids from a JSON value: one, a list, or none."""
    listed = value if isinstance(value, list) else [value]
    return tuple(number for entry in listed if (number := integer(entry)) is not None)


def _pre_tokenizer(value: object) -> str | None:
    """Return llama.cpp's name of the pre-tokenizer by the pattern that it splits text with."""
    if not isinstance(value, Mapping):
        return None
    steps = value.get("pretokenizers") if value.get("type") == "Sequence" else [value]
    for step in steps if isinstance(steps, list) else []:
        pattern = step.get("pattern") if isinstance(step, Mapping) else None
        expression = pattern.get("Regex") if isinstance(pattern, Mapping) else None
        if isinstance(expression, str) and expression in PRE_TOKENIZERS:
            return PRE_TOKENIZERS[expression]
    return None


def directory_tokenizer(directory: Path, special: Mapping[str, object], problems: list[str]) -> TokenizerFacts | None:
    """Return what tokenizer.json holds, or None where there is none.

    Args:
        directory: Of a checkpoint or an ORT GenAI model.
        special: Holds `bos_token_id`, `eos_token_id` and `pad_token_id`.
        problems: Gets what cannot be read.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        return None
    root = optional_json(path, problems, MAX_TOKENIZER_BYTES)
    model = root.get("model")
    model = model if isinstance(model, Mapping) else {}
    vocabulary, added, merges = model.get("vocab"), root.get("added_tokens"), model.get("merges")
    texts = set(vocabulary) if isinstance(vocabulary, Mapping) else set()
    for entry in added if isinstance(added, list) else []:
        if isinstance(entry, Mapping) and isinstance(entry.get("content"), str):
            texts.add(entry["content"])
    kind = model.get("type")
    return TokenizerFacts(
        model=bounded(kind) if isinstance(kind, str) else None,
        pre_tokenizer=_pre_tokenizer(root.get("pre_tokenizer")),
        tokens=len(texts) or None,
        merges=len(merges) if isinstance(merges, list) else None,
        bos_id=integer(special.get("bos_token_id")),
        eos_ids=ids(special.get("eos_token_id")),
        pad_id=integer(special.get("pad_token_id")),
    )
