"""Chat templates judged: what the artifact's own engine renders against what Hugging Face renders.

The golden text of each conversation comes from Transformers on the checkpoint (`template_golden`), the other one from
the runtime's own engine (`template_llama`, `template_genai`). Nothing is rendered here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from edgekiln.validators.base import CheckResult, Finding, Severity

#: Much more than any sound template makes of the longest conversation here.
MAX_RENDERED: Final = 1 << 20
_CONVERSATIONS: Final = Path(__file__).with_name("data") / "conversations.jsonl"
_REACH: Final = re.compile(
    r"__(?:class|mro|bases?|subclasses|globals|builtins|init|import|dict|getattribute|code|self|reduce(?:_ex)?)__"
)
_TEMPLATE_FIX: Final = "put the checkpoint's chat template into the artifact, byte for byte"
_SHOWN: Final = 40


@dataclass(frozen=True)
class Conversation:
    """A conversation that every engine is given.

    Attributes:
        name: What findings call it.
        construct: What it asks of a template.
        plain: Whether each chat needs it, so that an engine which cannot render it is of no use.
        messages: As Transformers takes them; the arguments of tool calls are objects.
        tools: Tools that are offered.
        thinking: The template's `enable_thinking`; None tells it nothing.
        generation_prompt: Whether the assistant is to go on.
    """

    name: str
    construct: str
    messages: tuple[dict[str, Any], ...]
    plain: bool = False
    tools: tuple[dict[str, Any], ...] = ()
    thinking: bool | None = None
    generation_prompt: bool = True


@dataclass(frozen=True)
class Rendering:
    """What an engine made of one conversation: a text or, without one, what it said.

    Attributes:
        text: The prompt.
        error: Why there is none.
        hostile: Whether the engine had to be stopped: no end in sight, or far too long.
    """

    text: str | None
    error: str = ""
    hostile: bool = False


@dataclass(frozen=True)
class Golden:
    """What Hugging Face makes of all conversations, in their order.

    Attributes:
        template: The template's source; None where the checkpoint has none.
        renderings: The golden texts.
        thinking: The texts with `enable_thinking` true and false, where a conversation says nothing about it.
        prompted: Whether the template adds a generation prompt at all.
        unprompted: The texts without generation prompt.
        end_of_turn: Id and text of the token with which the template ends the assistant's turn.
    """

    template: str | None
    renderings: tuple[Rendering, ...]
    thinking: tuple[tuple[str, str] | None, ...]
    prompted: bool
    unprompted: tuple[str | None, ...]
    end_of_turn: tuple[int, str] | None

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Golden:
        """Return what `asdict` and JSON made a dictionary of."""
        end = value["end_of_turn"]
        return cls(
            template=value["template"],
            renderings=tuple(Rendering(**entry) for entry in value["renderings"]),
            thinking=tuple(None if pair is None else (pair[0], pair[1]) for pair in value["thinking"]),
            prompted=value["prompted"],
            unprompted=tuple(value["unprompted"]),
            end_of_turn=None if end is None else (end[0], end[1]),
        )


@dataclass(frozen=True)
class Rendered:
    """What the artifact's own engine makes of all conversations, in their order.

    Attributes:
        engine: Its name and version.
        template: The artifact's template; None where it has none.
        renderings: The texts; empty where the engine takes no part.
        lacking: Constructs of this template that the engine gets wrong, as far as it could be asked.
        thinks_by_itself: Whether the engine sets `enable_thinking` where nobody asked.
    """

    engine: str
    template: str | None
    renderings: tuple[Rendering, ...]
    lacking: tuple[str, ...] = ()
    thinks_by_itself: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Rendered:
        """Return what `to_json` and JSON made a dictionary of."""
        return cls(
            engine=value["engine"],
            template=value["template"],
            renderings=tuple(Rendering(**entry) for entry in value["renderings"]),
            lacking=tuple(value["lacking"]),
            thinks_by_itself=value["thinks_by_itself"],
        )


def read_conversations() -> tuple[Conversation, ...]:
    """Return the built-in conversations."""
    lines = _CONVERSATIONS.read_text(encoding="utf-8").splitlines()
    return tuple(_conversation(json.loads(line)) for line in lines if line)


def _conversation(entry: dict[str, Any]) -> Conversation:
    return Conversation(
        name=entry["name"],
        construct=entry["construct"],
        messages=tuple(entry["messages"]),
        plain=entry.get("plain", False),
        tools=tuple(entry.get("tools", ())),
        thinking=entry.get("thinking"),
        generation_prompt=entry.get("generation_prompt", True),
    )


def bounded(text: str) -> Rendering:
    """Return a text as a rendering, unless it is absurdly long."""
    if len(text) > MAX_RENDERED:
        return Rendering(None, f"it makes {len(text)} characters of a short conversation", hostile=True)
    return Rendering(text)


def _normal(template: str | None) -> str | None:
    """Return a template without what no engine sees: the kind of its line ends, and one at the end."""
    return None if template is None else template.replace("\r\n", "\n").removesuffix("\n")


def first_difference(expected: str, actual: str) -> str:
    """Return where two texts differ first, with a little of each from there on."""
    at = next(
        (i for i, (a, b) in enumerate(zip(expected, actual, strict=False)) if a != b), min(len(expected), len(actual))
    )
    here, there = actual[at : at + _SHOWN], expected[at : at + _SHOWN]
    return f"from character {at} {here!r} instead of {there!r}"


def _reach(template: str) -> list[Finding]:
    found = sorted(set(_REACH.findall(template)))
    if not found:
        return []
    detail = f"the chat template reaches for {', '.join(found)}, which a template needs only to leave its sandbox"
    fix = "do not load this artifact in a runtime without a sandbox; replace its chat template with the checkpoint's"
    return [Finding("template/hostile", "error", "chat template", detail, fix)]


def hostile(engine: str, what: str) -> Finding:
    """Return the finding for a template that its engine cannot be trusted with."""
    fix = "remove what runs without an end from the chat template, or put the checkpoint's into the artifact"
    return Finding("template/hostile", "error", "chat template", f"{engine}: {what}", fix)


def _missing(golden: Golden, rendered: Rendered) -> list[CheckResult] | None:
    if rendered.template is not None:
        return None
    if golden.template is None:
        return [CheckResult("template/render", "pass", "neither checkpoint nor artifact has a chat template")]
    detail = "the checkpoint has a chat template, but the artifact has none, so runtimes make one up"
    finding = Finding("template/missing", "error", "chat template", detail, _TEMPLATE_FIX)
    return [CheckResult("template/render", "fail", detail, (finding,))]


@dataclass
class _Verdict:
    """What was found so far.

    Attributes:
        same: Conversations with the same bytes, or refused by both.
        findings: All others.
        thinking: Names of those where the engine only set `enable_thinking` by itself.
        promptless: Names of those where the generation prompt alone is missing.
    """

    same: int
    findings: list[Finding]
    thinking: list[str]
    promptless: list[str]


def _unsupported(conversation: Conversation, rendered: Rendered, what: str) -> Finding:
    severity: Severity = "error" if conversation.plain else "warning"
    lacking = f"; of what this template uses, it lacks {', '.join(rendered.lacking)}" if rendered.lacking else ""
    detail = f"{rendered.engine} cannot do {conversation.construct} with this chat template: {what}{lacking}"
    fix = "keep this construct out of conversations in that runtime, or write the template without what it lacks"
    return Finding("template/unsupported", severity, conversation.name, detail, fix)


def _judge_one(conversation: Conversation, number: int, golden: Golden, rendered: Rendered, verdict: _Verdict) -> None:
    expected, actual = golden.renderings[number], rendered.renderings[number]
    if actual.hostile:
        verdict.findings.append(hostile(rendered.engine, f"with {conversation.construct}, {actual.error}"))
        return
    if actual.text == expected.text:  # refused by both, too
        verdict.same += 1
        return
    if actual.text is None:
        verdict.findings.append(_unsupported(conversation, rendered, actual.error))
        return
    if expected.text is None:
        detail = f"{rendered.engine} renders {conversation.construct}, which Hugging Face refuses: {expected.error}"
        fix = "none is needed, unless the template refuses it for a reason"
        verdict.findings.append(Finding("template/unsupported", "note", conversation.name, detail, fix))
        return
    thinking = golden.thinking[number]
    if rendered.thinks_by_itself and thinking is not None and actual.text in thinking:
        verdict.thinking.append(conversation.name)
    elif conversation.generation_prompt and golden.prompted and actual.text == golden.unprompted[number]:
        verdict.promptless.append(conversation.name)
    else:
        verdict.findings.append(_different(conversation, golden, rendered, expected.text, actual.text))


def _different(conversation: Conversation, golden: Golden, rendered: Rendered, expected: str, actual: str) -> Finding:
    shown = first_difference(expected, actual)
    if _normal(golden.template) == _normal(rendered.template):
        return _unsupported(conversation, rendered, f"the template is the checkpoint's own, but it renders {shown}")
    detail = f"{rendered.engine} renders {conversation.construct} otherwise than Hugging Face: {shown}"
    return Finding("template/render", "error", conversation.name, detail, _TEMPLATE_FIX)


def _promptless(names: Sequence[str]) -> list[Finding]:
    if not names:
        return []
    detail = (
        f"{len(names)} conversations end without the generation prompt, so that the model may go on as the user; "
        f"first {names[0]!r}"
    )
    fix = "restore `{% if add_generation_prompt %}` and what follows it in the artifact's chat template"
    return [Finding("template/generation_prompt", "error", "chat template", detail, fix)]


def judge_templates(conversations: Sequence[Conversation], golden: Golden, rendered: Rendered) -> list[CheckResult]:
    """Compare what the artifact's engine rendered with the golden texts.

    Args:
        conversations: What both were given.
        golden: Hugging Face's texts.
        rendered: The engine's.

    Returns:
        The check `template/render`, and `template/thinking` where the engine's own default of `enable_thinking` showed.
    """
    if (missing := _missing(golden, rendered)) is not None:
        return missing
    reach = _reach(rendered.template or "")
    if golden.template is None or all(entry.text is None for entry in golden.renderings):
        why = "has no chat template" if golden.template is None else f"cannot: {golden.renderings[0].error}"
        detail = f"there is nothing to compare with, since the checkpoint {why}"
        return [CheckResult("template/render", "fail" if reach else "not_measured", detail, tuple(reach))]
    verdict = _Verdict(0, reach, [], [])
    for number, conversation in enumerate(conversations):
        _judge_one(conversation, number, golden, rendered, verdict)
    verdict.findings += _promptless(verdict.promptless)
    return _results(len(conversations), golden, rendered, verdict)


def _results(total: int, golden: Golden, rendered: Rendered, verdict: _Verdict) -> list[CheckResult]:
    findings = tuple(verdict.findings)
    errors = [finding for finding in findings if finding.severity == "error"]
    warnings = [finding for finding in findings if finding.severity == "warning"]
    if errors:
        detail = f"{len(errors)} errors in {total} conversations; first, {errors[0].subject}: {errors[0].detail}"
        results = [CheckResult("template/render", "fail", detail, findings)]
    elif warnings:
        detail = f"{len(warnings)} of {total} conversations are beyond this engine; first: {warnings[0].detail}"
        results = [CheckResult("template/render", "known_divergence", detail, findings)]
    else:
        detail = (
            f"{verdict.same} of {total} conversations render to the same bytes in {rendered.engine} and in Hugging Face"
        )
        results = [CheckResult("template/render", "pass", detail, findings)]
    if verdict.thinking:
        detail = (
            f"{rendered.engine} sets enable_thinking by itself, so {len(verdict.thinking)} conversations that say "
            f"nothing about it differ, first {', '.join(verdict.thinking[:3])}"
        )
        results.append(CheckResult("template/thinking", "known_divergence", detail))
    if not golden.prompted:
        detail = "the checkpoint's own template adds no generation prompt"
        results.append(CheckResult("template/generation_prompt", "known_divergence", detail))
    return results
