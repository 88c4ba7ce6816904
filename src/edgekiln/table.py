"""Tables for a terminal and for logs."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Final

#: Width of tables where there is no terminal: no figure is ever cut off in a log.
_LOG_WIDTH: Final = 160


def table_width() -> int:
    """Return the columns of the terminal, or of a log."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else _LOG_WIDTH


def table(columns: Sequence[tuple[str, bool]], rows: Iterable[Sequence[object]]) -> str:
    """Return a table.

    Args:
        columns: Of each, its heading and whether it holds numbers.
        rows: Texts, numbers or `rich.text.Text`.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    text = io.StringIO()
    console = Console(
        file=text, width=table_width(), force_terminal=terminal, no_color="NO_COLOR" in os.environ or not terminal
    )
    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading, numeric in columns:
        made.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    console.print(made)
    return "\n".join(line.rstrip() for line in text.getvalue().strip("\n").splitlines())
