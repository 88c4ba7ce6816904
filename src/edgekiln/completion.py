"""Shell completion: the script for each shell, and what arguments can become.

click speaks the protocol; what stands here are the values. Each function imports little, since a shell waits for it,
and returns nothing where the files that it would ask are wrong: a shell shows no errors.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from types import MappingProxyType
from typing import Final

import click
from click.shell_completion import CompletionItem, get_completion_class

from edgekiln.errors import EdgekilnError, UsageError, nearest

_VARIABLE: Final = "_EDGEKILN_COMPLETE"
#: The line for each shell's start-up file, and that file.
_LINES: Final = MappingProxyType(
    {
        "bash": ('eval "$(edgekiln completion bash)"', "~/.bashrc"),
        "zsh": ('eval "$(edgekiln completion zsh)"', "~/.zshrc, after compinit"),
        "fish": ("edgekiln completion fish | source", "~/.config/fish/config.fish"),
        "powershell": ("edgekiln completion powershell | Out-String | Invoke-Expression", "$PROFILE"),
    }
)
SHELLS: Final = tuple(_LINES)
_MAX_BYTES: Final = 1 << 20
#: A profile's name: a key one level below `targets:`, as everybody writes it.
_PROFILE: Final = re.compile(r"""(?P<indent>[ ]{1,8})["']?(?P<name>[a-z0-9][a-z0-9.-]*)["']?:(?:\s|$)""")


def script(shell: str) -> str:
    """Return what the shell is to evaluate, with the line for its start-up file as a comment.

    Raises:
        UsageError: There is no completion for this shell, or the installed click has none.
    """
    if shell not in _LINES:
        raise UsageError(f"no completion for the shell {shell!r}; {nearest(shell, SHELLS)}")
    found = get_completion_class(shell)
    if found is None:
        from importlib.metadata import version

        raise UsageError(f"the installed click {version('click')} has no completion for {shell}; update it")
    line, file = _LINES[shell]
    maker = found(click.Command("edgekiln"), {}, "edgekiln", _VARIABLE)
    # Not `source()`: click's for bash runs bash to learn its version.
    body = maker.source_template % maker.source_vars()
    return f"# Put this line into {file}:\n#   {line}\n{body}"


def _matching(values: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(value) for value in values if value.startswith(incomplete)]


def _files(incomplete: str) -> list[CompletionItem]:
    """Leave it to the shell to complete a path."""
    return [CompletionItem(incomplete, type="file")]


def _names(text: str) -> list[str]:
    """Return the profiles' names in a targets file, read by its indentation: parsing it would take too long."""
    inside, indent, names = False, None, []
    for line in text.splitlines():
        if line[:1] not in {"", " ", "#"}:
            inside = line.startswith("targets:")
        elif inside and (match := _PROFILE.match(line)) and match["indent"] == (indent or match["indent"]):
            indent = match["indent"]
            names.append(match["name"])
    return names


def target_names(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a target, from the targets file that the command would read."""
    from edgekiln.pipelines.shipped import CATALOGUE, shipped

    given = context.params.get("targets") or context.params.get("path") or os.environ.get("EDGEKILN_TARGETS")
    try:
        path = Path(given).expanduser() if given else Path(CATALOGUE)
        if not given and not path.is_file():
            path = shipped(CATALOGUE)
        with path.open(encoding="utf-8", errors="replace") as file:
            return _matching(_names(file.read(_MAX_BYTES)), incomplete)
    except (EdgekilnError, OSError, RuntimeError):
        return []


def pipelines(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a shipped pipeline or a file."""
    from edgekiln.pipelines.shipped import shipped_pipelines

    # Files first: click's script for bash drops what stands before them.
    return [*_files(incomplete), *_matching(shipped_pipelines(), incomplete)]


def checkpoints(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the embedded checkpoint or a directory."""
    return [CompletionItem(incomplete, type="dir"), *_matching(["tiny-qwen3"], incomplete)]


def paths(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a path."""
    return _files(incomplete)


def choices(_: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete what the help names as the choices: `one|other`."""
    return _matching((parameter.metavar or "").split("|"), incomplete)


def precisions(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a precision, of the format that was chosen or of all."""
    from edgekiln.exporters import EXPORTERS

    chosen = EXPORTERS.get(context.params.get("format_name") or "")
    held = [chosen] if chosen else list(EXPORTERS.values())
    return _matching(sorted(set().union(*(exporter.precisions for exporter in held))), incomplete.lower())


def settings(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the key of `--set KEY=VALUE`."""
    from edgekiln.pipelines.settings import KEYS, Settings

    fields = Settings.model_fields
    return [CompletionItem(f"{key}=", help=fields[key].description) for key in KEYS if key.startswith(incomplete)]


def gates(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the metric of a gate."""
    from edgekiln.validators.gates import METRICS

    return _matching(METRICS, incomplete)
