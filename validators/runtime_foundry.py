"""Foundry Local, in process: it loads, chats and says how long that takes; it gives no logits."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekiln.errors import ArtifactError

_MODEL_ID = "edgekiln-check:1"


@dataclass(frozen=True)
class FoundryReply:
    """One greedy reply.

    Attributes:
        text: The reply.
        prompt_tokens: Tokens of the templated prompt, as Foundry Local counts them.
        first_token_seconds: From the request to the first piece of the streamed reply.
    """

    text: str
    prompt_tokens: int
    first_token_seconds: float


def _quietly(action: Callable[[], object]) -> None:
    """Foundry Local refuses to unload what it did not load; at the end, that is no news."""
    import foundry_local_sdk as sdk

    with contextlib.suppress(sdk.FoundryLocalException):
        action()


class FoundryRuntime:
    """Registers and runs a Foundry Local directory. All that it writes goes to a temporary directory.

    Threads are those of the directory's genai_config.json: Foundry Local takes no others.
    """

    def __init__(self) -> None:
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._manager: Any = None
        self._model: Any = None

    def load(self, path: Path) -> None:
        """Register `path` in the local catalog and load it.

        Raises:
            ArtifactError: Foundry Local refuses it.
        """
        import foundry_local_sdk as sdk

        self._scratch = tempfile.TemporaryDirectory(prefix="edgekiln-foundry-", ignore_cleanup_errors=True)
        home = Path(self._scratch.name)
        configuration = sdk.Configuration(
            "edgekiln",
            app_data_dir=str(home / "app"),
            model_cache_dir=str(home / "cache"),
            logs_dir=str(home / "logs"),
            disable_nonessential_telemetry=True,
        )
        try:
            self._manager = sdk.FoundryLocalManager(configuration)
            catalog = self._manager.get_catalog(sdk.CatalogType.LOCAL)
            metadata = sdk.ModelInfoBuilder().set_string_property("task", "chat-completion")
            self._model = catalog.register_model(str(path.resolve()), _MODEL_ID, metadata)
            self._model.load()
        except sdk.FoundryLocalException as error:
            raise ArtifactError(f"Foundry Local cannot load {path}: {error}") from None

    @property
    def model(self) -> Any:
        """The loaded model, for sessions."""
        return self._model

    def chat(self, messages: Sequence[dict[str, str]], count: int) -> FoundryReply:
        """Return the greedy reply of at most `count` tokens to a conversation of `role` and `content`."""
        import foundry_local_sdk as sdk

        options = sdk.RequestOptions(
            search=sdk.SearchOptions(temperature=0.0, top_k=1, do_sample=False, max_output_tokens=count)
        )
        try:
            with sdk.ChatSession(self._model) as session, sdk.Request() as request:
                for message in messages:
                    request.add_item(sdk.MessageItem(sdk.MessageRole[message["role"].upper()], message["content"]))
                request.set_options(options)
                session.set_streaming(True)
                begin = time.perf_counter()
                first, pieces = 0.0, []
                with session.process_streaming_request(request) as stream:
                    for item in stream:
                        first = first or time.perf_counter() - begin
                        pieces.append(getattr(item, "text", ""))
                    prompt_tokens = stream.final_response.get_usage().prompt_tokens
        except sdk.FoundryLocalException as error:
            raise ArtifactError(f"Foundry Local cannot chat: {error}") from None
        return FoundryReply("".join(pieces), int(prompt_tokens), first)

    def end(self) -> None:
        """Unload the model and remove what Foundry Local wrote, whatever state `load` or `chat` left behind."""
        with contextlib.ExitStack() as stack:  # the last one runs first, and all of them run
            if self._scratch is not None:
                stack.callback(self._scratch.cleanup)
            if self._manager is not None:
                stack.callback(_quietly, self._manager.close)
            if self._model is not None:
                stack.callback(_quietly, self._model.unload)
            self._model = self._manager = self._scratch = None
