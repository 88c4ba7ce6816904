"""Chat templates in ORT GenAI's own engine, and whether its generator stops where a turn ends."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.errors import ArtifactError
from edgekiln.validators.chat_template import directory_template
from edgekiln.validators.runtime_genai import refusals
from edgekiln.validators.template_constructs import lacking
from edgekiln.validators.template_render import Conversation, Rendered, Rendering, bounded

#: More than any token would get otherwise.
_CERTAIN = np.float32(1e9)


def _message(error: RuntimeError) -> str:
    """Return what the engine said; after the first line it shows the template around each enclosing block."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def _render(tokenizer: Any, conversation: Conversation, template: str | None) -> Rendering:
    more: dict[str, object] = {} if template is None else {"template_str": template}
    if conversation.tools:
        more["tools"] = json.dumps(conversation.tools, ensure_ascii=False)
    thinking = {} if conversation.thinking is None else {"enable_thinking": conversation.thinking}
    messages = json.dumps(conversation.messages, ensure_ascii=False)
    try:
        tokenizer.update_options(chat_template_kwargs=json.dumps(thinking))
        prompt = conversation.generation_prompt
        return bounded(tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, **more))
    except RuntimeError as error:
        return Rendering(None, _message(error))


def _probe(tokenizer: Any, template: str) -> str | None:
    question = Conversation("", "", ({"role": "user", "content": "?"},))
    return _render(tokenizer, question, template).text


def render_genai(path: Path, conversations: Sequence[Conversation], *, template: str | None = None) -> Rendered:
    """Render all conversations by the template of an ORT GenAI directory. The graph is not loaded.

    Args:
        path: The directory.
        conversations: What to render.
        template: Another template in place of the directory's.

    Raises:
        ArtifactError: ORT GenAI cannot load the tokenizer, or the template cannot be read.
    """
    import onnxruntime_genai as og

    og.disable_telemetry_events()
    engine = f"ORT GenAI {og.__version__}"
    found = directory_template(path)
    if found is None and template is None:
        return Rendered(engine, None, ())
    with refusals(f"load the tokenizer of {path}"):
        tokenizer = og.Tokenizer(str(path))
    renderings = tuple(_render(tokenizer, entry, template) for entry in conversations)
    source = template if found is None or template is not None else found.text
    return Rendered(engine, source, renderings, lacking(source or "", lambda probe: _probe(tokenizer, probe)))


def stops_genai(model: Any, ids: Sequence[int], prompt: Sequence[int]) -> dict[int, bool]:
    """Force each of `ids` in ORT GenAI's generator and tell whether it stops there.

    Args:
        model: A loaded `onnxruntime_genai.Model`.
        ids: Tokens with which a turn ends.
        prompt: What comes before; must not end a turn.

    Raises:
        ArtifactError: ORT GenAI refuses.
    """
    import onnxruntime_genai as og

    stopped: dict[int, bool] = {}
    for token in ids:
        with refusals("generate"):
            parameters = og.GeneratorParams(model)
            parameters.set_search_options(max_length=len(prompt) + 8, min_length=0, do_sample=False)
            generator = og.Generator(model, parameters)
            generator.append_tokens(np.asarray(prompt, dtype=np.int32))
            logits = generator.get_logits()
            if token >= logits.shape[-1]:
                stopped[token] = False
                continue
            logits[...] = -_CERTAIN
            logits[..., token] = _CERTAIN
            generator.set_logits(logits)
            generator.generate_next_token()
            if int(generator.get_next_tokens()[0]) != token:
                raise ArtifactError(f"ORT GenAI did not take token {token}, whose logit is the largest by far")
            stopped[token] = bool(generator.is_done())
    return stopped


def load_and_stop(path: Path, ids: Sequence[int], prompt: Sequence[int]) -> dict[int, bool]:
    """Load a directory on the CPU and return `stops_genai` of it."""
    import onnxruntime_genai as og

    og.disable_telemetry_events()
    with refusals(f"load {path}"):
        config = og.Config(str(path))
        config.clear_providers()
        model = og.Model(config)
    return stops_genai(model, ids, prompt)
