"""A chat in Foundry Local, by its own template engine and with the search settings of genai_config.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekiln.errors import ArtifactError
from edgekiln.validators.chat_base import (
    END_OF_TURN,
    INTERRUPTED,
    MAX_TOKENS,
    ChatOptions,
    Ending,
    Message,
    Reply,
)
from edgekiln.validators.runtime_foundry import FoundryRuntime


class FoundryChat:
    """Chats with a Foundry Local directory. Threads and context are those of its genai_config.json."""

    def __init__(self) -> None:
        self._runtime = FoundryRuntime()
        self._options = ChatOptions(1)

    def load(self, path: Path, threads: int, context_tokens: int) -> None:  # noqa: ARG002 - Foundry Local takes neither
        """See `ChatRuntime`."""
        self._runtime.load(path)

    def prepare(self, path: Path, options: ChatOptions) -> None:  # noqa: ARG002 - it reads the template itself
        """See `ChatRuntime`."""
        self._options = options

    def _request_options(self) -> Any:
        import foundry_local_sdk as sdk

        options = self._options
        if options.temperature > 0:
            search = sdk.SearchOptions(
                temperature=options.temperature,
                seed=options.seed,
                do_sample=True,
                max_output_tokens=options.max_tokens,
            )
        else:
            search = sdk.SearchOptions(temperature=0.0, top_k=1, do_sample=False, max_output_tokens=options.max_tokens)
        variables = {} if options.thinking is None else {"chat_template_kwargs": options.template_json()}
        return sdk.RequestOptions(search=search, additional_options=variables)

    def reply(self, messages: Sequence[Message], reply: Reply) -> Ending:
        """See `ChatRuntime`."""
        import foundry_local_sdk as sdk

        try:
            with sdk.ChatSession(self._runtime.model) as session, sdk.Request() as request:
                for message in messages:
                    request.add_item(sdk.MessageItem(sdk.MessageRole[message["role"].upper()], message["content"]))
                request.set_options(self._request_options())
                session.set_streaming(True)
                with session.process_streaming_request(request) as stream:
                    return _stream(stream, reply)
        except sdk.FoundryLocalException as error:
            raise ArtifactError(f"Foundry Local cannot chat: {error}") from None

    def end(self) -> None:
        """See `ChatRuntime`."""
        self._runtime.end()


def _stream(stream: Any, reply: Reply) -> Ending:
    """Hand on the pieces of a response; leaving the loop early cancels it."""
    import foundry_local_sdk as sdk

    for item in stream:
        reasoning = getattr(item, "type", None) == sdk.TextItemType.REASONING
        if not reply.token(getattr(item, "text", "") or "", reasoning=reasoning):
            return Ending(INTERRUPTED, None)
    response = stream.final_response
    usage = response.get_usage()
    reply.tokens = int(usage.completion_tokens)  # a piece may be of several tokens
    length = response.finish_reason == sdk.FinishReason.LENGTH
    return Ending(MAX_TOKENS if length else END_OF_TURN, int(usage.prompt_tokens))
