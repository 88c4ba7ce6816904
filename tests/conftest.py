"""No test reads or writes the user's own cache, or waits for another's measurement; all can be interrupted.

Property tests try the same examples in every run, so that one which fails is one that was changed for the worse;
`make test-slow` has them look for others.
"""

import os
import signal
import tempfile

import pytest
from hypothesis import settings

# A shell starts what runs in the background deaf to Ctrl-C, and the processes that tests interrupt would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes is the machine's affair.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None)
settings.load_profile("same")


def pytest_configure():
    """Give each of the processes that share the tests a processor of its own.

    Runtimes wait for their threads by spinning. Two of them with as many threads as there are processors take many
    times as long as with one thread each, which is what they start where they see one processor.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and hasattr(os, "sched_setaffinity"):
        processors = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {processors[int(worker.removeprefix("gw")) % len(processors)]})


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Let all tests of a process share a cache, which goes with them, as does what killed processes leave."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("scratch")))
        patch.setattr(tempfile, "tempdir", None)
        patch.setenv("EDGEKILN_CACHE", str(tmp_path_factory.mktemp("edgekiln-cache")))
        patch.setenv("EDGEKILN_STATE", str(tmp_path_factory.mktemp("edgekiln-state")))
        yield
