"""What structural checks find, by cause: stable ids, and what to do about each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from edgekiln.errors import ArtifactError, CheckpointError
from edgekiln.validators.base import CheckResult, Finding, Severity

_EXPORT: Final = "export the artifact again from the checkpoint that it is judged against"
#: Every id that a structural check gives, with its fix.
FIXES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "files/missing": "put the file back, or fetch or export the artifact again",
        "files/outside": "store the data inside the artifact's directory and name it relative to the graph",
        "files/truncated": "fetch or copy the file again, and compare its size and sha256 with the source's",
        "files/unreadable": "fetch or export the file again",
        "files/split": "write split.count as the number of files, as llama-gguf-split does",
        "gguf/header": "fetch or export the file again; its header is damaged or made to mislead",
        "gguf/offsets": "write each tensor where the one before it ends, rounded up to general.alignment",
        "gguf/duplicate": "write each tensor once",
        "gguf/reader": "write the file with a current gguf package",
        "onnx/model": "fetch or export the graph again, with its weights in a data file beside it",
        "onnx/data": "save the graph and its data file again, with offset and length of each tensor as its shape needs",
        "onnx/overlap": "save the graph and its data file again; let tensors share all of their bytes or none",
        "onnx/checker": "correct the graph so that onnx.checker.check_model accepts it, or export it again",
        "onnx/genai_config": "write genai_config.json as ORT GenAI's documentation describes it",
        "foundry/name": "write the model's name as a text under Name in inference_model.json",
        "foundry/download": "let the download end, or remove download.tmp once all files are there",
        "metadata/architecture": "name the architecture of the reference's family, or give the right --reference",
        "metadata/layers": "name as many layers as the checkpoint has, or give the right --reference",
        "metadata/hidden_size": "write the checkpoint's hidden_size",
        "metadata/intermediate_size": "write the checkpoint's intermediate_size",
        "metadata/heads": "write the checkpoint's num_attention_heads and num_key_value_heads",
        "metadata/experts": "export from this checkpoint, with its num_experts, num_experts_per_tok and norm_topk_prob",
        "metadata/head_dim": "write the checkpoint's head_dim, which may differ from hidden_size / num_attention_heads",
        "metadata/norm_epsilon": "write the checkpoint's rms_norm_eps into every normalization",
        "metadata/rope_base": "write the checkpoint's rope_theta, or compute the rotary tables from it",
        "metadata/rope_scaling": "scale the rope as the checkpoint's config.json does, or leave it unscaled like that",
        "metadata/rope_dimension": "rotate all of head_dim, as the checkpoint does",
        "metadata/rope_layout": "rotate halves and not interleaved pairs, as the checkpoint does",
        "metadata/rope_position": "let the rotary tables begin at position 0",
        "metadata/rope_table": "compute the tables again: cosines and sines of position · rope_theta^(-2i / head_dim)",
        "metadata/attention_scale": "scale attention by 1 / sqrt(head_dim)",
        "metadata/attention_window": "let attention see the whole context, as the checkpoint does",
        "metadata/softcap": "leave attention scores uncapped, as the checkpoint does",
        "metadata/causal": "make attention causal",
        "metadata/vocabulary": "write as many rows and tokens as the checkpoint's vocab_size",
        "metadata/context": "name a context that the rotary tables hold, of max_position_embeddings or less",
        "metadata/eos": "name the tokens that end a turn, as the checkpoint's generation_config.json does",
        "metadata/search": "set search.max_length to the context length or below",
    }
)
#: A hostile file has room for any number of faults; a report does not.
_MOST_FINDINGS: Final = 50
_MOST_SHOWN: Final = 200


class FaultError(ArtifactError):
    """An artifact cannot be read further; the finding says why.

    Attributes:
        finding: Its cause.
    """

    def __init__(self, cause: str, subject: str, detail: str) -> None:
        super().__init__(detail)
        self.finding = finding(cause, subject, detail)


def finding(cause: str, subject: str, detail: str, severity: Severity = "error") -> Finding:
    """Return a finding with the fix of its id."""
    return Finding(cause, severity, subject[:_MOST_SHOWN], detail, FIXES[cause])


def shown(value: object) -> str:
    """Return a value of the artifact as Python writes it, cut to a length that fits a sentence."""
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


def judged(check: str, findings: list[Finding], passed: str) -> CheckResult:
    """Return the result of a check: failed where a finding is an error.

    Args:
        check: Its id.
        findings: What it found, errors or not.
        passed: The detail where nothing is wrong.
    """
    errors = [entry for entry in findings if entry.severity == "error"]
    kept = tuple((errors + [entry for entry in findings if entry.severity != "error"])[:_MOST_FINDINGS])
    if not errors:
        return CheckResult(check, "pass", passed, kept)
    more = f"; and {len(errors) - _MOST_FINDINGS} more" if len(errors) > _MOST_FINDINGS else ""
    return CheckResult(check, "fail", "; ".join(entry.detail for entry in errors[:_MOST_FINDINGS]) + more, kept)


def failed(check: str, cause: str, subject: str, detail: str) -> CheckResult:
    """Return a failed check of one finding."""
    return judged(check, [finding(cause, subject, detail)], "")


def guarded(check: str, cause: str, subject: str, action: Callable[[], CheckResult]) -> CheckResult:
    """Run one check; a file that cannot be read is a failure of that check, not of the validation.

    ValueError is what a text of a protobuf raises that is not UTF-8, and JSON with an endless number.

    Args:
        check: Its id.
        cause: Id of the finding where the fault itself names none.
        subject: The file.
        action: What checks.
    """
    try:
        return action()
    except FaultError as fault:
        return judged(check, [fault.finding], "")
    except (ArtifactError, CheckpointError, OSError, ValueError) as error:
        return failed(check, cause, subject, str(error))
