"""The check of chat templates: each engine in a process of its own, since a template is a program of a stranger's.

A template that hangs, grows or crashes takes its process with it and nothing else. To be sure that it was the
template, the same engine is then given a harmless one: only if that works is the template to blame.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from edgekiln.errors import ArtifactError, ChildError
from edgekiln.families import READINGS
from edgekiln.model_config import parse_config
from edgekiln.process import Json, Limits, Task, run_task, serve
from edgekiln.validators.base import CheckResult, Finding, Outcome
from edgekiln.validators.hf_tokenizer import encode, load_tokenizer
from edgekiln.validators.template_golden import golden as render_golden
from edgekiln.validators.template_llama import available
from edgekiln.validators.template_render import Golden, Rendered, hostile, judge_templates, read_conversations

_MODULE: Final = "edgekiln.validators.template_tasks"
_HARMLESS: Final = "{{ messages[0].content }}"
#: Rendering takes milliseconds; the rest is for imports on a busy machine.
_SECONDS: Final = 60.0
_BYTES_PER_SECOND: Final = 50e6
_MEMORY: Final = 3 << 30
_EOS_FIX: Final = (
    "add the token to the artifact's ends of generation (tokenizer.ggml.eos_token_id, eos_token_id in "
    "genai_config.json)"
)


def golden(request: Json) -> Json:
    """Render all conversations with the checkpoint's template. Request: `checkpoint`.

    Result: `golden`; `ends`, the tokens with which the checkpoint ends a reply; `prompt`, some ids to generate after;
    `prompt_tokens`, how many each golden text has.
    """
    directory = Path(request["checkpoint"])
    rendered = render_golden(directory, read_conversations())
    tokenizer = load_tokenizer(directory)
    counts = [None if entry.text is None else len(encode(tokenizer, entry.text)) for entry in rendered.renderings]
    return {
        "golden": dataclasses.asdict(rendered),
        "ends": list(parse_config(directory, READINGS).eos_token_ids),
        "prompt": encode(tokenizer, "Ping"),
        "prompt_tokens": counts,
    }


def render_llama(request: Json) -> Json:
    """Render in the llama.cpp server. Request: `path`, `template` (or null), `stops`, `prompt`."""
    from edgekiln.validators import template_llama

    rendered, stopped = template_llama.render_llama(
        Path(request["path"]),
        read_conversations(),
        template=request["template"],
        stops=request["stops"],
        prompt=request["prompt"],
    )
    return {"rendered": rendered.to_json(), "stopped": list(stopped.items())}


def render_genai(request: Json) -> Json:
    """Render in ORT GenAI. Request: `path`, `template` (or null)."""
    from edgekiln.validators import template_genai

    rendered = template_genai.render_genai(Path(request["path"]), read_conversations(), template=request["template"])
    return {"rendered": rendered.to_json()}


def stop_genai(request: Json) -> Json:
    """Force the ends of a turn in ORT GenAI's generator. Request: `path`, `stops`, `prompt`."""
    from edgekiln.validators.template_genai import load_and_stop

    stopped = load_and_stop(Path(request["path"]), request["stops"], request["prompt"])
    return {"stopped": list(stopped.items())}


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [entry for entry in path.iterdir() if entry.is_file()]
    return sum(entry.stat().st_size for entry in files)


def _limits(given: Limits | None, *, loaded: int) -> Limits:
    """Return limits for a process that loads so many bytes of weights, and no wider ones than those given."""
    seconds, memory = _SECONDS + loaded / _BYTES_PER_SECOND, _MEMORY + 2 * loaded
    if given is None:
        return Limits(seconds=seconds, memory_bytes=memory)
    least = memory if given.memory_bytes is None else min(memory, given.memory_bytes)
    return Limits(seconds=min(seconds, given.seconds), memory_bytes=least, watch=given.watch)


def make_golden(checkpoint: Path, *, log: Path, limits: Limits | None = None) -> Json:
    """Return what the task `golden` says of a checkpoint, in a process of its own: good for all of its artifacts.

    Raises:
        ChildError: Its template hangs or grows without an end.
        CheckpointError: Its tokenizer or template cannot be read.
    """
    request = {"checkpoint": str(checkpoint.resolve())}
    return run_task(_MODULE, "golden", request, log=log, limits=_limits(limits, loaded=0))


def _check_ends(stopped: Mapping[int, bool], expected: Golden, ends: Sequence[int], engine: str) -> CheckResult:
    """Judge at which tokens a running generation stopped."""
    check, turn = "template/end_of_turn", expected.end_of_turn
    if not stopped:
        return CheckResult(check, "not_measured", "neither checkpoint nor chat template names a token that ends a turn")
    findings = []
    for token in (token for token, stops in stopped.items() if not stops):
        text = f"token {token} ({turn[1]!r})" if turn is not None and turn[0] == token else f"token {token}"
        detail = f"{engine} goes on after {text}, with which a turn ends"
        if token in ends:
            findings.append(Finding("tokenizer/eos", "error", f"token {token}", detail, _EOS_FIX))
        else:  # the checkpoint's own generation_config.json lacks it, too
            findings.append(Finding(check, "warning", f"token {token}", detail, _EOS_FIX))
    if not findings:
        listed = ", ".join(map(str, stopped))
        return CheckResult(check, "pass", f"a generation in {engine} stopped at each token that ends a turn: {listed}")
    failed = any(finding.severity == "error" for finding in findings)
    outcome: Outcome = "fail" if failed else "known_divergence"
    return CheckResult(check, outcome, findings[0].detail, tuple(findings))


def _to_blame(error: Exception, engine: str, again: Callable[[], Json]) -> list[CheckResult] | None:
    """Return the verdict on a template with which an engine failed; None if it fails with a harmless one, too."""
    try:
        again()
    except (ArtifactError, ChildError):
        return None
    if isinstance(error, ChildError):
        finding = hostile(engine, f"rendering a short conversation was stopped or crashed: {error}")
    else:
        fix = "put the checkpoint's chat template into the artifact, or one that this engine can read"
        detail = f"{engine} refuses the chat template: {error}"
        finding = Finding("template/unsupported", "error", "chat template", detail, fix)
    return [CheckResult("template/render", "fail", finding.detail, (finding,))]


@dataclasses.dataclass(frozen=True)
class _Asked:
    """An artifact, and where and how its engine runs."""

    path: Path
    log: Path
    limits: Limits | None

    def run(self, task: str, request: Json, *, loads: bool) -> Json:
        limits = _limits(self.limits, loaded=_size(self.path) if loads else 0)
        return run_task(_MODULE, task, {"path": str(self.path.resolve())} | request, log=self.log, limits=limits)


def _check_llama(asked: _Asked, expected: Golden, stops: Sequence[int], made: Json) -> list[CheckResult]:
    if not available():
        why = "the llama.cpp server (xllamacpp) is not installed; there is no build of it for this platform"
        return [CheckResult(check, "not_measured", why) for check in ("template/render", "template/end_of_turn")]
    request: dict[str, Any] = {"template": None, "stops": list(stops), "prompt": made["prompt"]}
    try:
        answer = asked.run("render_llama", request, loads=True)
    except (ArtifactError, ChildError) as error:
        blamed = _to_blame(
            error,
            "the llama.cpp server",
            lambda: asked.run("render_llama", request | {"template": _HARMLESS, "stops": []}, loads=True),
        )
        if blamed is None:
            raise
        return blamed
    rendered = Rendered.from_json(answer["rendered"])
    ended = _check_ends(dict(answer["stopped"]), expected, made["ends"], rendered.engine)
    return [*judge_templates(read_conversations(), expected, rendered), ended]


def _check_genai(asked: _Asked, expected: Golden, stops: Sequence[int], made: Json) -> list[CheckResult]:
    try:
        answer = asked.run("render_genai", {"template": None}, loads=False)
    except (ArtifactError, ChildError) as error:
        blamed = _to_blame(error, "ORT GenAI", lambda: asked.run("render_genai", {"template": _HARMLESS}, loads=False))
        if blamed is None:
            raise
        return blamed
    rendered = Rendered.from_json(answer["rendered"])
    results = judge_templates(read_conversations(), expected, rendered)
    stopped = asked.run("stop_genai", {"stops": list(stops), "prompt": made["prompt"]}, loads=True)["stopped"]
    return [*results, _check_ends(dict(stopped), expected, made["ends"], rendered.engine)]


def check_templates(
    container: str, path: Path, made: Json, *, log: Path, limits: Limits | None = None
) -> list[CheckResult]:
    """Render all conversations in the artifact's own engine, compare, and see where its generation stops.

    Args:
        container: `gguf`, `onnx` or `foundry-local`; the last two are rendered by ORT GenAI.
        path: The GGUF file or the ORT GenAI directory.
        made: Of `make_golden`.
        log: Gets the chatter of the engines.
        limits: Time and memory; this check takes tighter ones where it can.

    Returns:
        The checks `template/render` and `template/end_of_turn`, and `template/thinking` and
        `template/generation_prompt` where they have something to say.

    Raises:
        ArtifactError: The engine cannot load the artifact, whatever its template.
        ChildError: It crashes or hangs, whatever the template.
    """
    expected = Golden.from_json(made["golden"])
    turn = [] if expected.end_of_turn is None else [expected.end_of_turn[0]]
    stops = list(dict.fromkeys([*made["ends"], *turn]))
    asked = _Asked(path, log, limits)
    check = _check_llama if container == "gguf" else _check_genai
    return check(asked, expected, stops, made)


TASKS: Final[Mapping[str, Task]] = MappingProxyType(
    {
        "golden": golden,
        "render_llama": render_llama,
        "render_genai": render_genai,
        "stop_genai": stop_genai,
    }
)

if __name__ == "__main__":
    serve(TASKS)
