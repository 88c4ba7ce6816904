"""Chat templates in the llama.cpp server's own engine, and whether its generation stops where a turn ends.

The server comes as the library `xllamacpp` and listens on the loopback interface.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from edgekiln.errors import ArtifactError, MachineError
from edgekiln.validators.chat_template import gguf_template
from edgekiln.validators.gguf_read import read_header
from edgekiln.validators.template_render import MAX_RENDERED, Conversation, Rendered, Rendering, bounded

#: A sound template takes milliseconds.
_SECONDS: Final = 10.0
_CONTEXT: Final = 256
_CERTAIN: Final = 1e6
#: SIOCGIFFLAGS, SIOCSIFFLAGS and IFF_UP; see netdevice(7).
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 1


def available() -> bool:
    """Whether the server is installed; there is no wheel of it for Windows on ARM."""
    return importlib.util.find_spec("xllamacpp") is not None


def _raise_loopback() -> None:
    """Switch the loopback interface on: a process without a network has one of its own, which is off."""
    if sys.platform == "linux":
        import fcntl

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            asked = struct.pack("16sh", b"lo", 0)
            (flags,) = struct.unpack_from("16xh", fcntl.ioctl(control, _GET_FLAGS, asked.ljust(40, b"\0")))
            if not flags & _UP:
                fcntl.ioctl(control, _SET_FLAGS, struct.pack("16sh", b"lo", flags | _UP).ljust(40, b"\0"))


@contextlib.contextmanager
def serving(path: Path, template: str | None = None) -> Iterator[str]:
    """Serve a GGUF file on the CPU and give the server's address.

    Args:
        path: The file.
        template: Another template in place of the file's.

    Raises:
        ArtifactError: The server does not start.
        MachineError: It is not installed.
    """
    # An abort would start a debugger to print its stack.
    os.environ["GGML_NO_BACKTRACE"] = "1"
    try:
        import xllamacpp
    except ImportError as error:
        raise MachineError(f"the llama.cpp server cannot be imported ({error}); install xllamacpp") from None
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_gpu_layers = 0
    parameters.warmup = parameters.fit_params = parameters.ui = parameters.prefill_assistant = False
    parameters.n_ctx, parameters.n_batch, parameters.n_ubatch, parameters.n_parallel = _CONTEXT, 32, 32, 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.cache_ram_mib = 0
    parameters.no_extra_bufts = True  # repacked weights would cost time and memory, and nothing is measured here
    parameters.use_jinja = True
    parameters.hostnames, parameters.port = ["127.0.0.1"], 0
    if template is not None:
        parameters.chat_template = template
    _raise_loopback()
    try:
        server = xllamacpp.Server(parameters)
    except RuntimeError as error:
        raise ArtifactError(f"the llama.cpp server does not start: {error}; the log has its reason") from None
    try:
        yield str(server.listening_address)
    finally:
        del server


def _post(address: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Return status and answer of a request."""
    place = urlsplit(address)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=_SECONDS)
    try:
        data = json.dumps(body).encode()
        connection.request("POST", path, data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        raw = response.read(8 * MAX_RENDERED)
        answer = json.loads(raw)
    except ValueError:  # cut off, so too long
        return 200, {"prompt": "x" * (MAX_RENDERED + 1)}
    finally:
        connection.close()
    return response.status, answer if isinstance(answer, dict) else {}


def _openai(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message as the server takes it: the arguments of a tool call are JSON in a string."""
    calls = [
        call
        | {"function": call["function"] | {"arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False)}}
        for call in message.get("tool_calls", ())
    ]
    return message | {"tool_calls": calls} if calls else message


def _render(address: str, conversation: Conversation) -> Rendering:
    body: dict[str, Any] = {
        "messages": [_openai(message) for message in conversation.messages],
        "add_generation_prompt": conversation.generation_prompt,
    }
    if conversation.tools:
        body["tools"] = list(conversation.tools)
    if conversation.thinking is not None:
        body["chat_template_kwargs"] = {"enable_thinking": conversation.thinking}
    try:
        status, answer = _post(address, "/apply-template", body)
    except TimeoutError:
        return Rendering(None, f"the chat template has not come to an end after {_SECONDS:g} s", hostile=True)
    if status != 200:
        error = answer.get("error")
        message = error.get("message") if isinstance(error, dict) else error
        return Rendering(None, " ".join(str(message).split()))
    return bounded(str(answer.get("prompt")))


def _renderings(address: str, conversations: Sequence[Conversation]) -> tuple[Rendering, ...]:
    """Render until the template hangs: the server's thread is then lost."""
    done: list[Rendering] = []
    for entry in conversations:
        hung = bool(done) and done[-1].hostile
        done.append(done[-1] if hung else _render(address, entry))
    return tuple(done)


def _stops(address: str, token: int, prompt: Sequence[int]) -> bool:
    body = {
        "prompt": list(prompt),
        "n_predict": 3,
        "logit_bias": [[token, _CERTAIN]],
        "temperature": 0.0,
        "cache_prompt": False,
        "samplers": [],
        "return_tokens": True,
    }
    status, answer = _post(address, "/completion", body)
    if status != 200:
        raise ArtifactError(f"the llama.cpp server cannot generate: {answer.get('error')}")
    return answer.get("stop_type") == "eos"


def render_llama(
    path: Path,
    conversations: Sequence[Conversation],
    *,
    template: str | None = None,
    stops: Sequence[int] = (),
    prompt: Sequence[int] = (),
) -> tuple[Rendered, dict[int, bool]]:
    """Render all conversations by the template of a GGUF file, and tell at which tokens its generation stops.

    Args:
        path: The file.
        conversations: What to render.
        template: Another template in place of the file's.
        stops: Tokens with which a turn ends: each is made certain, and generation must stop there.
        prompt: What comes before such a token.

    Raises:
        ArtifactError: The server does not start, or does not generate.
        MachineError: It is not installed.
    """
    found = gguf_template(read_header(path).metadata)
    source = template if found is None or template is not None else found.text
    with serving(path, template) as address:
        stopped = {token: _stops(address, token, prompt) for token in stops}
        renderings = () if source is None else _renderings(address, conversations)
    return Rendered(f"the llama.cpp server ({_version()})", source, renderings, thinks_by_itself=True), stopped


def _version() -> str:
    import xllamacpp

    return f"xllamacpp {xllamacpp.__version__}"
