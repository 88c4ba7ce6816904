"""Completion as a shell asks for it: the words so far in, the values out, and never an error."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from click.shell_completion import get_completion_class

from edgekiln.cli import cli
from edgekiln.completion import SHELLS, script
from edgekiln.exporters import EXPORTERS
from edgekiln.pipelines.schemas import FILE_MODELS

HEAVY = ("torch", "transformers", "onnxruntime", "mobius", "llama_cpp", "rich")


def complete(line, cwd, **environment):
    """Return what bash would be offered for `line`, whose last word is the one to complete."""
    return subprocess.run(
        [sys.executable, "-m", "edgekiln"],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "_EDGEKILN_COMPLETE": "bash_complete",
            "COMP_WORDS": f"edgekiln {line}",
            "COMP_CWORD": str(len(f"edgekiln {line}".split(" ")) - 1),
            **environment,
        },
    )


def values(line, cwd, **environment):
    shown = complete(line, cwd, **environment)
    assert shown.returncode == 0, shown.stderr
    assert not shown.stderr
    return [item.partition(",")[2] for item in shown.stdout.splitlines() if item.startswith("plain,")]


CASES = {
    "commands": ("do", {"doctor"}, {"build"}),
    "pipelines": ("build d", {"default"}, {"doctor"}),
    "targets": ("build --target g", {"gguf-cpu"}, {"onnx-cpu"}),
    "a target's name": ("targets foundry", {"foundry-local-cpu"}, {"gguf-cpu"}),
    "settings": ("plan --set thr", {"threads="}, {"window="}),
    "formats": ("export x --format ", {"onnx", "gguf", "foundry-local"}, {"…"}),
    "precisions of all formats": ("export x --precision ", {"int4", "nf4", "q4_k_m"}, set()),
    "precisions of one format": ("export x --format onnx --precision ", {"int4", "nf4"}, {"q4_k_m"}),
    "checkpoints": ("validate a --reference tiny", {"tiny-qwen3"}, set()),
    "schemas": ("schema ", {"pipeline", "targets", "report", "manifest"}, set()),
    "gates": ("validate a --gate mean", {"mean_kld"}, {"size_bytes"}),
    "shells": ("completion ", {"bash", "zsh", "fish"}, set()),
}


@pytest.mark.parametrize(("line", "offered", "not_offered"), CASES.values(), ids=CASES)
def test_arguments_complete(tmp_path, line, offered, not_offered):
    found = values(line, tmp_path)
    assert offered <= set(found)
    assert not not_offered & set(found)
    assert all(value.startswith(line.split(" ")[-1]) for value in found)


def test_paths_are_left_to_the_shell_and_come_before_values_which_bash_would_drop_otherwise(tmp_path):
    assert complete("build d", tmp_path).stdout.splitlines()[0] == "file,d"
    assert complete("plan --targets x", tmp_path).stdout.splitlines() == ["file,x"]


TARGETS = """# a comment
schema: edgekiln.targets/1
settings:
  repeats: 5
targets:
  kiosk:  # the lobby
    description: A kiosk
    format: gguf
    runtime:
      name: llama.cpp
  "pi-5": {format: gguf}
templates:
  not-a-target: {format: gguf}
"""


def test_target_names_come_from_the_file_that_the_command_would_read(tmp_path):
    (tmp_path / "targets.yaml").write_text(TARGETS)
    assert values("build --target ", tmp_path) == ["kiosk", "pi-5"]
    (tmp_path / "other.yaml").write_text("targets:\n    four:\n        x: 1\n")
    assert values("build --targets other.yaml --target ", tmp_path) == ["four"]
    assert values("build --target ", tmp_path, EDGEKILN_TARGETS="other.yaml") == ["four"]


@pytest.mark.parametrize("content", [b"targets: [unclosed", b"\xff\xfe\x00", b"", None])
def test_a_targets_file_that_is_wrong_offers_nothing_and_shows_no_error(tmp_path, content):
    path = tmp_path / "t.yaml"
    if content is not None:
        path.write_bytes(content)
    assert values(f"build --targets {path} --target ", tmp_path) == []


def test_the_names_offered_are_those_that_the_catalogue_has(tmp_path):
    from edgekiln.pipelines.shipped import CATALOGUE, shipped
    from edgekiln.pipelines.targets import load_targets

    assert values("targets ", tmp_path) == list(load_targets(shipped(CATALOGUE)).targets)


def test_what_the_help_names_as_choices_is_what_there_is():
    def metavar(command, parameter):
        found = next(p for p in cli.commands[command].params if p.name == parameter)
        return found.metavar.split("|")

    assert metavar("schema", "name") == list(FILE_MODELS)
    assert metavar("export", "format_name") == list(EXPORTERS)
    assert metavar("completion", "shell") == list(SHELLS)


@pytest.mark.parametrize("line", ["build --target g", "plan --set thr", "export x --precision ", "schema "])
def test_completing_imports_no_framework(tmp_path, line):
    program = (
        "import sys\nfrom edgekiln.__main__ import main\ntry: main([])\nexcept SystemExit: pass\n"
        f"print('heavy', sorted(set(sys.modules) & set({HEAVY!r})))"
    )
    words = f"edgekiln {line}"
    shown = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={
            **os.environ,
            "_EDGEKILN_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.endswith("heavy []\n")


@pytest.mark.skipif(os.name == "nt", reason="processor time of children")
def test_the_commonest_completions_take_little_processor_time(tmp_path):
    """Wall time would fail on a busy machine; what is wanted is below half a second on a quiet one."""
    import resource

    begin = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = ("bu", "build --target g", "build d", "schema r")
    for line in lines:
        values(line, tmp_path)
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = (end.ru_utime - begin.ru_utime) + (end.ru_stime - begin.ru_stime)
    assert spent / len(lines) < 0.3


@pytest.mark.parametrize("shell", [shell for shell in SHELLS if get_completion_class(shell)])
def test_each_shell_gets_a_script_and_the_line_for_its_start_up_file(shell):
    text = script(shell)
    assert text.startswith("# Put this line into ")
    assert f"edgekiln completion {shell}" in text.splitlines()[1]
    assert "_EDGEKILN_COMPLETE" in text
    assert "%(" not in text


def test_an_unknown_shell_is_a_usage_error(tmp_path):
    shown = subprocess.run(
        [sys.executable, "-m", "edgekiln", "completion", "bsh"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert shown.returncode == 2
    assert "did you mean 'bash'" in shown.stderr


def test_a_shell_that_this_click_does_not_know_is_a_usage_error(monkeypatch):
    from edgekiln import completion
    from edgekiln.errors import UsageError

    monkeypatch.setattr(completion, "get_completion_class", lambda _: None)
    with pytest.raises(UsageError, match=version("click")):
        script("powershell")


def _run_in(shell, program, cwd):
    folder = Path(sys.executable).parent
    return subprocess.run(
        [shell, *(["--norc"] if shell == "bash" else ["-f"] if shell == "zsh" else ["--no-config"]), "-c", program],
        cwd=cwd,
        env={**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_itself_completes(tmp_path):
    program = (
        'eval "$(edgekiln completion bash)"\nCOMP_WORDS=(edgekiln build --target gguf)\nCOMP_CWORD=3\n'
        '_edgekiln_completion edgekiln\necho "${COMPREPLY[@]}"\n'
        "COMP_WORDS=(edgekiln build def)\nCOMP_CWORD=2\n_edgekiln_completion edgekiln 2>/dev/null\n"
        'echo "${COMPREPLY[@]}"'
    )
    assert _run_in("bash", program, tmp_path).stdout.splitlines() == ["gguf-cpu", "default"]


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish")
def test_fish_itself_completes(tmp_path):
    program = "edgekiln completion fish | source\ncomplete -C 'edgekiln build --target gguf'"
    assert "gguf-cpu" in _run_in("fish", program, tmp_path).stdout


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh")
def test_zsh_takes_the_script(tmp_path):
    program = 'autoload -Uz compinit && compinit -D\neval "$(edgekiln completion zsh)"\necho $_comps[edgekiln]'
    assert _run_in("zsh", program, tmp_path).stdout.strip() == "_edgekiln_completion"
