"""What each kind of finding means, for readers that know rules: SARIF, and the help of code scanning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True)
class Rule:
    """One kind of finding.

    Attributes:
        summary: What is wrong, in a few words.
        meaning: Why it matters, in a sentence.
        help: What to do about it in general; a finding has its own fix.
    """

    summary: str
    meaning: str
    help: str


_AGAIN: Final = "Export the artifact again from the checkpoint that it is judged against, and do not ship this one."
_RUNTIME: Final = "Update the runtime to a version that knows it, or export for the version that the device has."
#: By the first part of an id: what all of its kind mean, for ids that `RULES` lacks.
GROUPS: Final[Mapping[str, Rule]] = MappingProxyType(
    {
        "conservation": Rule(
            "Weights are not the checkpoint's",
            "A tensor of the artifact does not hold what the checkpoint has in its place.",
            _AGAIN,
        ),
        "precision": Rule(
            "Weights lie in another type than was asked for",
            "The artifact is larger, slower or less exact than its name says.",
            "Choose a precision and group size that divide the rows of every matrix, or accept the exceptions.",
        ),
        "runtime": Rule(
            "The runtime does not take it",
            "The version of the runtime on the device rejects the artifact, or runs it otherwise.",
            _RUNTIME,
        ),
        "tokenizer": Rule(
            "Text becomes other tokens",
            "The artifact's tokenizer disagrees with the checkpoint's, so the model reads or writes something else.",
            "Export the tokenizer again from the checkpoint's tokenizer.json.",
        ),
        "template": Rule(
            "Conversations are rendered otherwise",
            "The chat template of the artifact gives other text than the checkpoint's, so the model is asked "
            "something that it was not trained on.",
            "Store the checkpoint's chat template in the artifact unchanged.",
        ),
        "metadata": Rule(
            "The configuration contradicts the checkpoint",
            "A hyper-parameter of the artifact is not the checkpoint's; the weights are computed with in another way.",
            _AGAIN,
        ),
        "files": Rule(
            "Files are missing, damaged or out of place",
            "The artifact cannot be read as a whole, or reaches outside of itself.",
            "Fetch or export the artifact again, and compare its checksums with the source's.",
        ),
        "gguf": Rule("The GGUF file is malformed", "Readers of GGUF reject the file, or read it otherwise.", _AGAIN),
        "onnx": Rule("The ONNX model is malformed", "ONNX Runtime rejects the model, or runs it otherwise.", _AGAIN),
        "parity": Rule(
            "The model answers otherwise",
            "In its runtime the artifact's predictions are not those of the checkpoint.",
            "Look at the other findings first: they name the cause; else use a precision with more bits.",
        ),
        "foundry": Rule(
            "Foundry Local does not take it", "Foundry Local does not load the directory or chats otherwise.", _AGAIN
        ),
    }
)
_OTHER: Final = Rule("A check found something", "The artifact is not as it should be.", _AGAIN)

#: By id: what is wrong, and why it matters. What to do in general is said by the group.
_KNOWN: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "conservation/altered": (
            "A tensor differs from the checkpoint's for no known cause",
            "It is further from its source than its type explains: of another training step, or edited.",
        ),
        "conservation/missing": (
            "A tensor of the checkpoint is not in the artifact",
            "A model without it is another model.",
        ),
        "conservation/nibble_order": (
            "The codes of a tensor lie in another order",
            "Each byte is read with its two halves exchanged, so that weights change places.",
        ),
        "conservation/offset": (
            "Zero points or minima are not those of the codes",
            "All weights of a group are shifted.",
        ),
        "conservation/overflow": (
            "A tensor has values that its type cannot hold",
            "Infinite and cut-off weights spoil everything that is computed with them.",
        ),
        "conservation/row_order": (
            "The rows of a tensor lie in another order",
            "Rotary pairs are taken apart, so that positions are lost.",
        ),
        "conservation/scale": (
            "Scales are not those of the codes",
            "All weights of a group are too large or too small.",
        ),
        "conservation/shape": (
            "A tensor has another shape than in the checkpoint",
            "Rows or columns were cut off or added.",
        ),
        "conservation/swapped": (
            "A tensor holds the weights of another one",
            "Each part works on its own, and the model as a whole does not.",
        ),
        "conservation/tensors": (
            "Tensors are missing, unknown or of another shape",
            "The artifact does not hold the tensors of the checkpoint.",
        ),
        "conservation/tied": (
            "The output head is not what the checkpoint ties it to",
            "Embedding and head were trained as one; a stale copy predicts otherwise.",
        ),
        "conservation/transposed": ("A tensor is stored transposed", "Rows are read as columns."),
        "conservation/unknown": (
            "A tensor of the artifact comes from nowhere in the checkpoint",
            "Nobody knows what it was trained on.",
        ),
        "conservation/unread": (
            "A tensor lies in a type that cannot be read here",
            "Whether it is the checkpoint's was not found out.",
        ),
        "conservation/unreadable": (
            "The weights of the artifact cannot be read",
            "Whether they are the checkpoint's was not found out.",
        ),
        "conservation/values": (
            "Tensors do not hold the checkpoint's values",
            "The artifact is not a rounding of the checkpoint.",
        ),
        "conservation/zeroed": ("A tensor is zero", "It was never written, or lost in copying."),
        "files/missing": ("A file of the artifact is missing", "What names it cannot be loaded."),
        "files/outside": (
            "A file lies outside of the artifact",
            "Moved to a device, the artifact lacks it; and nobody should read other people's files for it.",
        ),
        "files/split": ("Parts of a split file do not belong together", "The runtime loads all parts or none."),
        "files/truncated": (
            "A file ends before its content does",
            "The download or copy was cut off; the runtime fails or reads what lies behind the end.",
        ),
        "files/unreadable": (
            "A file cannot be read",
            "Whatever it holds cannot be judged, and a runtime will not load it.",
        ),
        "foundry/chat": (
            "Foundry Local chats otherwise than ORT GenAI",
            "On the same directory both must reply alike, since they share the engine.",
        ),
        "foundry/download": (
            "The directory is marked as an unfinished download",
            "Foundry Local passes it over until the mark is gone.",
        ),
        "foundry/inference_model": (
            "inference_model.json is not what Foundry Local reads",
            "The model is not listed, or its prompts are built otherwise.",
        ),
        "foundry/name": ("The model has no name that Foundry Local can list", "It cannot be loaded by name."),
        "gguf/bounds": ("Tensors reach beyond the GGUF file", "Readers map what is not there."),
        "gguf/duplicate": ("A name occurs twice in the GGUF file", "Readers keep either of the two."),
        "gguf/header": (
            "The header of the GGUF file contradicts itself",
            "Readers reject it, or read keys and tensors where there are none.",
        ),
        "gguf/metadata": (
            "Keys of the GGUF file contradict the checkpoint",
            "llama.cpp computes with them, not with the checkpoint's configuration.",
        ),
        "gguf/offsets": (
            "Tensors of the GGUF file overlap or are not aligned",
            "The bytes of one tensor are read as those of another.",
        ),
        "gguf/reader": ("The reference reader rejects the GGUF file", "So will most tools."),
        "metadata/architecture": (
            "The architecture is another one",
            "The runtime builds another network around the weights.",
        ),
        "metadata/attention_scale": (
            "Attention scores are scaled otherwise",
            "Every layer attends with another sharpness.",
        ),
        "metadata/attention_window": (
            "Attention reaches a different number of tokens back",
            "Long texts are understood otherwise; short ones hide it.",
        ),
        "metadata/causal": (
            "Attention is not causal",
            "A token sees those that come after it, so that nothing generated makes sense.",
        ),
        "metadata/context": (
            "The context length is another one",
            "The runtime cuts texts off too early, or runs beyond what the model was trained for.",
        ),
        "metadata/eos": ("An end-of-turn token does not stop generation", "Replies run on into invented turns."),
        "metadata/experts": (
            "The experts are others, or count otherwise",
            "Tokens go to other experts than the model was trained with, or these count too much or too little.",
        ),
        "metadata/head_dim": (
            "The heads of attention have another width",
            "Queries and keys are split in the wrong places.",
        ),
        "metadata/heads": (
            "The number of attention heads is another one",
            "Queries and keys are split in the wrong places.",
        ),
        "metadata/hidden_size": ("The width of the model is another one", "The weights do not fit it."),
        "metadata/intermediate_size": (
            "The width of the feed-forward part is another one",
            "The weights do not fit it.",
        ),
        "metadata/layers": ("The number of layers is another one", "Layers are left out, or looked for in vain."),
        "metadata/norm_epsilon": (
            "The epsilon of the norms is another one",
            "Every norm divides by another number; small activations suffer most.",
        ),
        "metadata/rope_base": (
            "The base of the rotary embedding is another one",
            "Positions are told apart otherwise, the worse the longer the text.",
        ),
        "metadata/rope_dimension": (
            "Another part of each head is rotated",
            "Positions reach other numbers than the model was trained with.",
        ),
        "metadata/rope_layout": (
            "Rotated pairs are laid out otherwise",
            "Halves are rotated where neighbours should be, or the other way round.",
        ),
        "metadata/rope_position": (
            "Positions are counted otherwise",
            "Each token stands where another one should, which shows with a cache.",
        ),
        "metadata/rope_scaling": (
            "The scaling of the rotary embedding is another one",
            "Long contexts are read otherwise.",
        ),
        "metadata/rope_table": (
            "The table of the rotary embedding has other values",
            "Positions are told apart otherwise.",
        ),
        "metadata/search": (
            "The defaults of sampling are not the checkpoint's",
            "Users get other replies than its authors recommend.",
        ),
        "metadata/softcap": ("Scores or logits are capped otherwise", "Probabilities come out flatter or sharper."),
        "metadata/vocabulary": ("The size of the vocabulary is another one", "Tokens have no row, or rows no token."),
        "onnx/checker": ("The ONNX checker rejects the model", "ONNX Runtime will, too."),
        "onnx/data": (
            "External data of the ONNX model is out of bounds",
            "Weights are read from where others lie, or from nowhere.",
        ),
        "onnx/genai_config": (
            "genai_config.json contradicts the checkpoint or the graph",
            "ORT GenAI generates by it.",
        ),
        "onnx/metadata": (
            "The graph computes otherwise than the checkpoint says",
            "Attributes of its operators decide, whatever the configuration files say.",
        ),
        "onnx/model": ("The ONNX model cannot be parsed", "No runtime can, either."),
        "onnx/overlap": ("Tensors share bytes of the external data", "One of them holds what belongs to another."),
        "parity/decode": (
            "The decode path differs from the prefill path",
            "What is generated token by token through the cache is not what the model computes on the whole text.",
        ),
        "parity/long_context": (
            "A long context is read otherwise",
            "Positions, cache or attention window go wrong where tests with short texts do not look.",
        ),
        "parity/run": (
            "The runtime refuses to run the artifact",
            "It loads and computes on the device no better than here.",
        ),
        "precision/fallback": (
            "A matrix lies in another type than was asked for",
            "It takes more room or is less exact than the artifact's name says.",
        ),
        "precision/float": (
            "A matrix was left in floating point",
            "It takes several times the room of a quantized one.",
        ),
        "precision/types": (
            "Too many weights lie in other types than were asked for",
            "The artifact is of another precision by name only.",
        ),
        "runtime/architecture": (
            "The runtime does not know the architecture",
            "It ends with an error when it loads the artifact.",
        ),
        "runtime/config_key": (
            "The runtime does not know a key of the configuration",
            "It rejects the file, or goes without what the key says.",
        ),
        "runtime/fit": (
            "The runtime rejects the artifact",
            "Of the versions that the target names, at least one does not load it.",
        ),
        "runtime/gguf_version": (
            "The runtime does not read this version of GGUF",
            "It ends with an error when it opens the file.",
        ),
        "runtime/ir_version": (
            "The runtime does not read this version of ONNX",
            "It ends with an error when it opens the model.",
        ),
        "runtime/model_type": (
            "The runtime does not know the model type",
            "It ends with an error when it loads the artifact.",
        ),
        "runtime/operator": (
            "The runtime lacks an operator, or a form of it",
            "It ends with an error when it loads the graph.",
        ),
        "runtime/opset": (
            "The runtime does not know the operator set",
            "It ends with an error when it loads the graph.",
        ),
        "runtime/pinned_pair": (
            "The libraries are not the pair that was pinned together",
            "Neither side has tested the combination.",
        ),
        "runtime/tensor_type": (
            "The runtime does not know a type of tensors",
            "It ends with an error when it loads the artifact.",
        ),
        "runtime/tokenizer": (
            "The runtime does not know the tokenizer",
            "It ends with an error, or splits text by another rule.",
        ),
        "template/end_of_turn": ("The end of a turn does not stop generation", "Replies run on into invented turns."),
        "template/generation_prompt": (
            "The template does not open the assistant's turn",
            "The model goes on with the user's words instead of answering.",
        ),
        "template/hostile": (
            "The template does what no template needs",
            "It loops, reaches for attributes of Python or fails; rendering it is a risk.",
        ),
        "template/missing": ("There is no chat template", "Each client invents one."),
        "template/render": (
            "A conversation is rendered to other text",
            "The model is asked something that it was not trained on.",
        ),
        "template/thinking": (
            "Thinking is switched otherwise",
            "The model thinks where it should not, or the other way round.",
        ),
        "template/unsupported": (
            "The engine of the runtime lacks a construct of the template",
            "Conversations that need it fail on the device.",
        ),
        "tokenizer/decode": ("Tokens become other text", "What the user reads is not what the model wrote."),
        "tokenizer/dropped": ("Text vanishes in the tokenizer", "The model never sees it."),
        "tokenizer/eos": ("The end-of-text token is another one", "Generation stops too early or never."),
        "tokenizer/ids": ("Text becomes other tokens", "The model reads something else than was written."),
        "tokenizer/nfc": (
            "Text is not normalised before it is tokenised",
            "Decomposed accents become other tokens, a known divergence of the runtime.",
        ),
        "tokenizer/nul": (
            "Text ends at a NUL character",
            "What stands behind it is not read, a known divergence of the runtime.",
        ),
        "tokenizer/vocabulary": (
            "The vocabulary of the tokenizer does not match the model's",
            "Tokens have no row, or rows no token.",
        ),
    }
)
#: By id.
RULES: Final[Mapping[str, Rule]] = MappingProxyType(
    {name: Rule(summary, meaning, GROUPS[name.partition("/")[0]].help) for name, (summary, meaning) in _KNOWN.items()}
)


def rule(name: str) -> Rule:
    """Return what a kind of finding means; one that nobody has described means what its group does."""
    return RULES.get(name) or GROUPS.get(name.partition("/")[0], _OTHER)
