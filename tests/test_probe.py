import os
import sys

import pytest

from edgekiln import probe as subject
from edgekiln.probe import probe


def package(folder, name, body):
    (folder / f"{name}.py").write_text(body)


def test_what_works_tells_what_it_is(tmp_path):
    found = probe(["onnxruntime"], tmp_path)["onnxruntime"]
    assert "CPUExecutionProvider" in found["facts"]["providers"]
    assert found["seconds"] > 0


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_one_that_crashes_is_named_and_the_others_of_its_process_are_not_blamed(tmp_path, monkeypatch):
    package(tmp_path, "ek_good", "")
    package(tmp_path, "ek_bad", "raise RuntimeError('no good\\nsecond line')")
    package(
        tmp_path,
        "ek_illegal",
        "import os, signal, sys\nprint('built for AVX512', file=sys.stderr, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGILL)\n",
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = probe(["ek_good", "ek_illegal", "ek_bad", "ek_missing"], tmp_path / "logs")
    assert "error" not in found["ek_good"]
    assert found["ek_illegal"]["error"] == "importing it was killed by SIGILL without a result: built for AVX512"
    assert found["ek_bad"]["error"] == "RuntimeError: no good"
    assert found["ek_missing"]["error"] == "ModuleNotFoundError: No module named 'ek_missing'"


def test_one_that_hangs_is_ended(tmp_path, monkeypatch):
    package(tmp_path, "ek_hangs", "import time\ntime.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(subject, "SECONDS", 1.0)
    assert "did not finish within 1 s" in probe(["ek_hangs"], tmp_path / "logs")["ek_hangs"]["error"]


def test_nothing_of_the_probed_is_imported_here(tmp_path):
    probe(["ruamel.yaml", "xml.dom.pulldom"], tmp_path)
    assert "xml.dom.pulldom" not in sys.modules
