"""Constructs of chat templates, each with a probe that tells whether an engine gets it right.

The expected texts are what Transformers' jinja2 environment renders; a test holds the table to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Construct:
    """One construct.

    Attributes:
        name: What findings call it.
        pattern: Finds it in a template.
        probe: A template that renders to `expected`, and to something else in an engine that lacks the construct.
        expected: What it renders to.
    """

    name: str
    pattern: str
    probe: str
    expected: str


CONSTRUCTS: Final = (
    Construct("`'…' in text`", r"""['"]\s+(?:not\s+)?in\s+\w""", "{{ 'b' in 'abc' }}", "True"),
    Construct("`.split()`", r"\.split\(", "{{ 'a-b-c'.split('-')[-1] }}", "c"),
    Construct("`.strip()`", r"\.strip\(", "{{ '\n a\n'.strip('\n') }}", " a"),
    Construct("`.lstrip()`", r"\.lstrip\(", "{{ '\n a\n'.lstrip('\n') }}.", " a\n."),
    Construct("`.rstrip()`", r"\.rstrip\(", "{{ '\na \n'.rstrip('\n') }}.", "\na ."),
    Construct("`.startswith()`", r"\.startswith\(", "{{ 'abc'.startswith('ab') }}", "True"),
    Construct("`.endswith()`", r"\.endswith\(", "{{ 'abc'.endswith('bc') }}", "True"),
    Construct("`.replace()`", r"\.replace\(", "{{ 'abc'.replace('b', 'd') }}", "adc"),
    Construct("`.upper()`", r"\.upper\(", "{{ 'abc'.upper() }}", "ABC"),
    Construct("`.items()`", r"\.items\(", "{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}", "a1"),
    Construct("`.get()`", r"\.get\(", "{{ {'a': 1}.get('b', 2) }}", "2"),
    Construct("the filter `trim`", r"\|\s*trim\b", "{{ ' a ' | trim }}", "a"),
    Construct("the filter `tojson`", r"\|\s*tojson\b", "{{ {'a': [1, true, 'ü']} | tojson }}", '{"a": [1, true, "ü"]}'),
    Construct("the filter `replace`", r"\|\s*replace\b", "{{ 'abc' | replace('b', 'd') }}", "adc"),
    Construct("the filter `upper`", r"\|\s*upper\b", "{{ 'abc' | upper }}", "ABC"),
    Construct(
        "the filter `items`", r"\|\s*items\b", "{% for k, v in {'a': 1} | items %}{{ k }}{{ v }}{% endfor %}", "a1"
    ),
    Construct(
        "the filter `map`", r"\|\s*map\b", "{{ [{'a': 'x'}, {'a': 'y'}] | map(attribute='a') | join('-') }}", "x-y"
    ),
    Construct(
        "the filter `selectattr`",
        r"\|\s*selectattr\b",
        "{{ [{'a': 1}, {'a': 2}] | selectattr('a', 'equalto', 2) | list | length }}",
        "1",
    ),
    Construct("the filter `string`", r"\|\s*string\b", "{{ 7 | string + 'x' }}", "7x"),
    Construct("the filter `default`", r"\|\s*default\b", "{{ nothing | default('d') }}", "d"),
    Construct("reversed lists", r"\[::-1\]", "{% for x in [1, 2, 3][::-1] %}{{ x }}{% endfor %}", "321"),
    Construct("slices", r"\[\d+:\]", "{% for x in [1, 2, 3][1:] %}{{ x }}{% endfor %}", "23"),
    Construct(
        "namespaces",
        r"\bnamespace\(",
        "{% set n = namespace(a=1) %}{% for i in [1] %}{% set n.a = 2 %}{% endfor %}{{ n.a }}",
        "2",
    ),
    Construct("macros", r"\bmacro\b", "{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(1) }}", "<1>"),
    Construct("`break` in loops", r"\bbreak\b", "{% for i in [1, 2] %}{{ i }}{% break %}{% endfor %}", "1"),
    Construct("`continue` in loops", r"\bcontinue\b", "{% for i in [1, 2] %}{% continue %}{{ i }}{% endfor %}.", "."),
    Construct("`generation` blocks", r"\bgeneration\s*-?%\}", "{% generation %}a{% endgeneration %}", "a"),
    Construct(
        "the test `string`",
        r"\bis\s+string\b",
        "{{ 'a' is string }}{{ 1 is string }}{{ u is string }}",
        "TrueFalseFalse",
    ),
    Construct("the test `mapping`", r"\bis\s+mapping\b", "{{ {} is mapping }}{{ 'a' is mapping }}", "TrueFalse"),
    Construct(
        "the test `defined`", r"\bis\s+(?:not\s+)?defined\b", "{{ u is defined }}{{ 1 is defined }}", "FalseTrue"
    ),
    Construct("the test `none`", r"\bis\s+(?:not\s+)?none\b", "{{ none is none }}{{ 1 is not none }}", "TrueTrue"),
    Construct("the test `false`", r"\bis\s+false\b", "{{ false is false }}{{ none is false }}", "TrueFalse"),
    Construct("`~`", r"~\s*\w|\w\s*~", "{{ 'a' ~ 1 }}", "a1"),
    Construct("`loop.previtem`", r"\bprevitem\b", "{% for i in [1, 2] %}{{ loop.previtem }}{% endfor %}", "1"),
    Construct("`loop.nextitem`", r"\bnextitem\b", "{% for i in [1, 2] %}{{ loop.nextitem }}{% endfor %}", "2"),
)


def lacking(template: str, render: Callable[[str], str | None]) -> tuple[str, ...]:
    """Return the names of the constructs in a template that an engine gets wrong.

    Args:
        template: The template.
        render: Renders a probe in the engine; None where it refuses.
    """
    used = [entry for entry in CONSTRUCTS if re.search(entry.pattern, template)]
    return tuple(entry.name for entry in used if render(entry.probe) != entry.expected)
