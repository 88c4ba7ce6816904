"""Tables for a terminal and for logs."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from itertools import zip_longest
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


def plain_table(columns: Sequence[tuple[str, bool]], rows: Iterable[Sequence[str]]) -> str:
    """Return a table without rich, which takes a millisecond for each row: for tables of thousands of rows.

    Args:
        columns: Of each, its heading and whether it holds numbers.
        rows: Texts; a line end begins another line in the same row.
    """
    cells = [[text.split("\n") for text in row] for row in rows]
    widths = [
        max(len(heading), *(len(line) for row in cells for line in row[index])) if cells else len(heading)
        for index, (heading, _) in enumerate(columns)
    ]
    lines = [_line([heading for heading, _ in columns], widths, columns), "─" * (sum(widths) + 2 * len(widths) - 2)]
    for row in cells:
        lines += (_line(texts, widths, columns) for texts in zip_longest(*row, fillvalue=""))
    return "\n".join(lines)


def _line(texts: Sequence[str], widths: Sequence[int], columns: Sequence[tuple[str, bool]]) -> str:
    parts = (
        text.rjust(width) if numeric else text.ljust(width)
        for text, width, (_, numeric) in zip(texts, widths, columns, strict=True)
    )
    return "  ".join(parts).rstrip()
