"""No test reads or writes the user's own cache, or waits for another's measurement; all can be interrupted.

Property tests try the same examples in every run, so that one which fails is one that was changed for the worse;
`make test-slow` lets them look for others.
"""

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


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Let all tests of a process share a cache, which goes with them, as does what killed processes leave."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # else each of thousands of processes compiles us anew
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("scratch")))
        patch.setattr(tempfile, "tempdir", None)
        patch.setenv("EDGEKILN_CACHE", str(tmp_path_factory.mktemp("edgekiln-cache")))
        patch.setenv("EDGEKILN_STATE", str(tmp_path_factory.mktemp("edgekiln-state")))
        yield
