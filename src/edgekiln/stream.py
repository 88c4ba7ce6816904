"""A task in a process of its own that talks while it runs.

`edgekiln.process` gives a task a request and takes one result; here the two also exchange JSON messages, one a line,
through the child's standard input and output. Before the task can load anything, the child moves its end of the pipes
aside and points standard output at the log, so that nothing a runtime prints can be taken for a message. No file
descriptor is inherited but the standard ones, so that it works the same on Windows.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from edgekiln.errors import StepError
from edgekiln.process import Child, Json, Limits, started, tree_rss

#: A message is a few tokens of text; what is longer is no message of ours.
_MAX_LINE: Final = 1 << 20
#: Messages that wait to be read, before the child has to.
_BACKLOG: Final = 256
#: How often a child's memory is looked at while it is listened to, and a stop is sent on, in seconds.
_POLL_SECONDS: Final = 0.2
_STOP: Final = "stop"


def _encode(message: Mapping[str, object]) -> bytes:
    return json.dumps(dict(message)).encode("ascii") + b"\n"


# --- our side -----------------------------------------------------------------------------------------------------


class Stream:
    """Our end of a task that talks.

    Args:
        child: The running task.
        limits: `seconds` is the longest silence while an answer is waited for, `memory_bytes` as ever.
    """

    def __init__(self, child: Child, limits: Limits) -> None:
        self._child, self._limits = child, limits
        self._incoming: queue.Queue[bytes | None] = queue.Queue(_BACKLOG)
        self._stop = threading.Event()
        self._next_look = 0.0
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        pipe = self._child.process.stdout
        with contextlib.suppress(ValueError):  # the block was left, which closes the pipe
            while pipe is not None and (line := pipe.readline(_MAX_LINE)):
                self._incoming.put(line)
        self._incoming.put(None)

    def send(self, message: Mapping[str, object]) -> None:
        """Send a message; what a child does not get that has ended is told by the next `receive`."""
        pipe = self._child.process.stdin
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.write(_encode(message))
                pipe.flush()

    def interrupt(self) -> None:
        """Ask the task to stop what it is doing; its `Channel.interrupted` becomes true until its next message.

        A signal handler may call this at any time, so it is `receive` that sends it.
        """
        self._stop.set()

    def receive(self, seconds: float | None = None) -> Json | None:
        """Return the next message, or None when the task has ended well.

        Args:
            seconds: The longest silence, in place of that of the limits.

        Raises:
            EdgekilnError: What the task raised, or a StepError if it crashed, kept silent or grew beyond its limits.
        """
        line = self._next_line(self._limits.seconds if seconds is None else seconds)
        if line is None:
            self._child.process.wait()
            self._child.result()
            return None
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise StepError(f"{self._child.name} wrote something else than messages; its log is {self._child.log}")
        return message

    def _next_line(self, seconds: float) -> bytes | None:
        deadline = time.monotonic() + seconds
        while True:
            self._check_memory()
            if self._stop.is_set():
                self._stop.clear()
                self.send({_STOP: True})
            try:
                return self._incoming.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                pass
            if time.monotonic() > deadline:
                raise StepError(
                    f"{self._child.name} said nothing for {seconds:g} s and was ended; its log is {self._child.log}"
                )

    def _check_memory(self) -> None:
        """Look at the child's memory if it is time to, however much the child says."""
        most, now = self._limits.memory_bytes, time.monotonic()
        if most is None or now < self._next_look:
            return
        used = tree_rss(self._child.process.pid)
        self._next_look = time.monotonic() + _POLL_SECONDS
        if used > most:
            raise StepError(
                f"{self._child.name} used more than {most / 2**20:.0f} MiB and was ended; its log is {self._child.log}"
            )


@contextmanager
def open_stream(
    module: str, task: str, request: Mapping[str, object], *, log: Path, limits: Limits | None = None
) -> Iterator[Stream]:
    """Start a task that calls `open_channel`, give its stream, and end it when the block is left.

    Args:
        module: A module whose main block calls `edgekiln.process.serve`.
        task: Key of its task table.
        request: JSON-serializable arguments.
        log: File that gets all that the child prints; it is appended to.
        limits: See `Stream`.
    """
    with started(module, task, request, log=log, piped=True) as child:
        yield Stream(child, limits or Limits())


# --- the task's side ----------------------------------------------------------------------------------------------


class Channel:
    """The task's end. One thread of the task sends and receives; a stop is noted while it works."""

    def __init__(self, source: BinaryIO, sink: BinaryIO) -> None:
        self._source, self._sink = source, sink
        self._incoming: queue.Queue[Json | None] = queue.Queue()
        self._stopped = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._source:
            message = json.loads(line)
            if message.get(_STOP) is True:
                self._stopped.set()
            else:
                self._incoming.put(message)
        self._stopped.set()  # the other side is gone
        self._incoming.put(None)

    def send(self, message: Mapping[str, object]) -> None:
        """Send a message."""
        self._sink.write(_encode(message))
        self._sink.flush()

    def receive(self) -> Json | None:
        """Wait for the next message; None when the other side has nothing more to say."""
        message = self._incoming.get()
        self._stopped.clear()
        return message

    def interrupted(self) -> bool:
        """Tell whether the other side asked for a stop since the last message."""
        return self._stopped.is_set()


def open_channel() -> Channel:
    """Take over standard input and output; from here on, what anything prints goes to the log.

    A task calls it before it imports a runtime.
    """
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return Channel(source, sink)
