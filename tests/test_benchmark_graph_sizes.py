"""The table of graph sizes is what its script fits to the graphs of the installed libraries."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from edgekiln.exporters.onnx_size import _GRAPHS

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "graph_sizes.py"


def test_the_table_has_the_rows_that_the_script_prints() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "qwen2"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = {key: row for key, row in _GRAPHS.items() if key[1] == "qwen2"}
    printed = ast.literal_eval(f"{{{done.stdout}}}")
    assert list(printed.items()) == list(expected.items())
