"""Finding a chat template and checking it without running it.

A template is code of the checkpoint's. It is parsed here, in a sandboxed environment with the tags that Transformers
offers, but never compiled: jinja2 folds constants when it compiles, and `'a' * 10**10` would do its work.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgekiln.errors import CheckpointError
from edgekiln.files import read_text
from edgekiln.model_config import read_json

if TYPE_CHECKING:
    from jinja2 import Environment
    from jinja2.nodes import Template

#: The longest template of a published model has about 20 kB; jinja2 needs up to 7 s for a hostile megabyte.
MAX_TEMPLATE_BYTES: Final = 1 << 18


def find_template(directory: Path) -> tuple[Path, str] | None:
    """Return the file that holds the chat template and the template with its line ends as they are.

    That is chat_template.jinja, else the one in tokenizer_config.json; None if there is none.

    Raises:
        CheckpointError: It is no text, or its file is too large, no regular one, no UTF-8 or no JSON object.
        MachineError: The system does not let us read it.
    """
    path = directory / "chat_template.jinja"
    if path.exists():
        return path, read_text(path, MAX_TEMPLATE_BYTES)
    path = directory / "tokenizer_config.json"
    template = read_json(path).get("chat_template") if path.exists() else None
    if isinstance(template, list):  # several named templates, as transformers 4 stored them; of two the last counts
        named = [e.get("template") for e in template if isinstance(e, dict) and e.get("name") == "default"]
        template = named[-1] if named else None
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{path}: chat_template must be a text, not {type(template).__name__}")
    return None if template is None else (path, template)


@functools.cache
def _environment() -> Environment:
    """Return an environment that reads what Transformers reads."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` … `{% endgeneration %}`, which marks what the assistant said."""

        tags = {"generation"}  # noqa: RUF012 - as the base class declares it

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )


def template_fault(template: str) -> str | None:
    """Return what is wrong with a chat template, or None.

    Found: syntax errors with their line, filters and tests that do not exist, text that is no valid Unicode, more
    than `MAX_TEMPLATE_BYTES`. Not found: what only shows when it is rendered.
    """
    from jinja2 import TemplateSyntaxError

    if len(template) > MAX_TEMPLATE_BYTES:
        return f"it has more than {MAX_TEMPLATE_BYTES} characters"
    try:
        template.encode("utf-8")
    except UnicodeEncodeError:
        return "it holds a lone surrogate, which is no valid text"
    try:
        return _unknown_name(_environment().parse(template))
    except TemplateSyntaxError as error:
        return f"line {error.lineno}: {error.message}"
    except RecursionError:
        return "it is nested too deeply"
    except ValueError as error:  # an integer of thousands of digits
        return str(error)


def _unknown_name(tree: Template) -> str | None:
    from jinja2 import nodes

    environment = _environment()
    for kind, known in ((nodes.Filter, environment.filters), (nodes.Test, environment.tests)):
        for node in tree.find_all(kind):
            if node.name not in known:
                return f"line {node.lineno}: no {kind.__name__.lower()} named {node.name!r}"
    return None
