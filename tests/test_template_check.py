"""A template that Transformers can read has no fault, and one that it cannot has, without being run."""

import time

import pytest

from edgekiln.checkpoint import embedded_directory
from edgekiln.template_check import template_fault

SOUND = {
    "the embedded one": (embedded_directory() / "chat_template.jinja").read_text(encoding="utf-8"),
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "loop controls": "{% for m in messages %}{% if m %}{% break %}{% else %}{% continue %}{% endif %}{% endfor %}",
    "functions of Transformers": "{{ raise_exception('no') }}{{ strftime_now('%Y') }}{{ messages|tojson(indent=2) }}",
    "tests and filters": "{% if tools is defined and tools is not none %}{{ tools|length }}{% endif %}",
    "a call that would take for ever": "{{ 'a' * 10**10 }}{{ 10**10**10 }}{{ 'a'|center(10**12) }}",
    "empty": "",
}
FAULTY = {
    "open block": ("{% if x %}", "line 1: Unexpected end of template"),
    "second line": ("a\n{{ b", "line 2"),
    "unknown tag": ("{% generate %}", "unknown tag 'generate'"),
    "generation without its end": ("{% generation %}", "line 1"),
    "unknown filter": ("{{ a|shout }}", "line 1: no filter named 'shout'"),
    "unknown test": ("{{ a is loud }}", "line 1: no test named 'loud'"),
    "lone surrogate": ("\ud800", "lone surrogate"),
    "deep": ("{{" + "(" * 100_000, "nested too deeply"),
    "deep in a chain": ("{{ a" + "|e" * 50_000 + " }}", "nested too deeply"),
    "endless number": ("{{ " + "1" * 10_000 + " }}", "4300 digits"),
    "endless": ("x" * 300_000, "more than 262144"),
}


@pytest.mark.parametrize("template", SOUND.values(), ids=SOUND)
def test_a_sound_template_has_no_fault_and_is_not_run(template):
    begin = time.monotonic()
    assert template_fault(template) is None
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(("template", "fault"), FAULTY.values(), ids=FAULTY)
def test_a_faulty_template_has_a_fault_with_its_line(template, fault):
    found = template_fault(template)
    assert found is not None
    assert fault in found
