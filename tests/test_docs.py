"""Every command of README.md, docs/ and examples/ci is run, in order, as a reader would; the reference is current.

In a fence marked `console` a line that begins with `$ ` is a command (a backslash at its end continues it),
`# exits with N` after it says that it does not end with 0, and the rest is output, which is shown and not compared.
A comment `<!-- file: NAME -->` before a fence makes it a file that the reader writes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from edgekiln.checkpoint import embedded_directory
from edgekiln.reference_docs import PAGES, write_pages
from least import ENVIRONMENT

ROOT = Path(__file__).parent.parent
PAGES_READ = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md"))]
#: Complete ones; what GitLab's matrix adds to each job of its child pipeline is a part of another.
WORKFLOWS = sorted(path for path in (ROOT / "examples" / "ci").glob("*.yml") if not path.stem.endswith("-job"))
CHILD_JOB = ROOT / "examples" / "ci" / "gitlab-matrix-job.yml"
#: The job of a matrix that is tried.
BUILD_ID = "galaxy-a55-int4"

#: Commands that are not run, by the reason. Each begins with one of these words.
NOT_RUN = {
    "git clone": "needs the network",
    "git submodule": "needs the network",
    "cd edgekiln": "after git clone",
    ". .venv/bin/activate": "the interpreter that runs the tests comes first on PATH",
    "python -m pip wheel": "needs the network, and compiles for ten minutes",
    "python -m pip install": "changes the environment that the tests run in",
    "hf download": "needs the network",
    "make build": "makes the environment that the tests run in",
    "make test": "is what runs this test",
}
#: Builds that the quick run only plans; `make test-slow` makes them. The tutorial's build is made in both.
SLOW = {
    "edgekiln build --checkpoint ./my-fine-tune": "two minutes for what `make build` does",
    "edgekiln build --checkpoint Qwen/Qwen3-0.6B": "the same from the Hub's cache",
    "edgekiln build --checkpoint ./my-fine-tune --target gguf-cpu --out dist": "the same for one target",
    "edgekiln build nightly.yaml": "half a minute for more builds of the kinds that the tutorial makes",
    "edgekiln build kiosk.yaml": "half a minute for a build that differs from the tutorial's in its target alone",
    "edgekiln build strict.yaml": "half a minute for a gate that fails, as one does at the end of the tutorial",
}
#: A checkpoint on the reader's disk, and one in the reader's Hub cache; both are the embedded one.
CHECKPOINT = "my-fine-tune"
HUB_ID = "Qwen/Qwen3-0.6B"
COMMIT = "c0ffee00" * 5

_FENCE = re.compile(r"(?P<marks>`{3,})(?P<language>[\w-]*)\s*")
_FILE = re.compile(r"<!-- file: (?P<name>\S+) -->")
_EXIT = re.compile(r"# exits with (?P<code>\d+)")
_COMMAND = re.compile(rf"^\$ (?P<text>.*)(?:\n{_EXIT.pattern}$)?", re.MULTILINE)
_REMARK = re.compile(r"\s#\s.*")
_LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")


@dataclass(frozen=True)
class File:
    name: str
    text: str


@dataclass(frozen=True)
class Command:
    text: str
    exit_code: int = 0


def commands(block: list[str]) -> Iterator[Command]:
    """Yield the commands of a console fence, each with the exit code that the page states."""
    lines = "\n".join(block).replace("\\\n", " ")
    for match in _COMMAND.finditer(lines):
        text = _REMARK.sub("", match["text"])
        yield Command(" ".join(text.split()), int(match["code"] or 0))


def steps(page: str) -> Iterator[File | Command]:
    """Yield what a reader of a page writes and runs, in order.

    Raises:
        ValueError: A fence is not closed, or `# exits with` belongs to no command.
    """
    lines = iter(page.splitlines())
    name = None
    for line in lines:
        if opened := _FENCE.fullmatch(line.strip()):
            block = []
            for inner in lines:
                if inner.strip() == opened["marks"]:
                    break
                block.append(inner.removeprefix(line[: line.index("`")]))
            else:
                raise ValueError(f"the fence {line!r} is not closed")
            if name is not None:
                yield File(name, "\n".join(block) + "\n")
            elif opened["language"] == "console":
                found = list(commands(block))
                if sum(bool(_EXIT.fullmatch(inner.strip())) for inner in block) != sum(c.exit_code > 0 for c in found):
                    raise ValueError(f"an exit code stands apart from its command in {block}")
                yield from found
            name = None
        elif stated := _FILE.fullmatch(line.strip()):
            name = stated["name"]
        elif line.strip():
            name = None


def reason_not_to_run(text: str) -> str | None:
    return next((reason for start, reason in NOT_RUN.items() if f"{text} ".startswith(f"{start} ")), None)


class Reader:
    """Somebody with the page in one hand: a home, a project folder with a checkpoint, a Hub cache, no network.

    Results are cached as on the machine of somebody who has read other pages before.
    """

    def __init__(
        self, folder: Path, cache: Path, done: dict[tuple[str, str], tuple[int, str, Path]], *, slow: bool = False
    ) -> None:
        self.project, self.home, self.bin = folder / "project", folder / "home", folder / "bin"
        self.summary = folder / "summary.md"
        self.cache, self.done, self.slow = cache, done, slow
        for made in (self.project, self.home, self.bin):
            made.mkdir(parents=True)
        for name, rest in (("python", ""), ("edgekiln", " -m edgekiln")):
            script = self.bin / name
            script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)}{rest} "$@"\n', encoding="utf-8")
            script.chmod(0o755)
        shutil.copytree(embedded_directory(), self.project / CHECKPOINT)
        cached = self.home / ".cache" / "huggingface" / "hub" / f"models--{HUB_ID.replace('/', '--')}"
        shutil.copytree(embedded_directory(), cached / "snapshots" / COMMIT)
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text(COMMIT, encoding="utf-8")

    @property
    def environment(self) -> dict[str, str]:
        private = ("EDGEKILN_", "HF_", "HUGGING_FACE_", "XDG_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(private)}
        path = f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        own = {"PATH": path, "HOME": str(self.home), "HF_HUB_OFFLINE": "1", "GITHUB_STEP_SUMMARY": str(self.summary)}
        job = {"GITHUB_OUTPUT": str(self.summary.with_name("output")), "BUILD_ID": BUILD_ID}
        return {**kept, **own, **job, **ENVIRONMENT, "EDGEKILN_CACHE": str(self.cache)}

    def write(self, file: File) -> None:
        path = self.project / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.text, encoding="utf-8")

    def _state(self) -> str:
        digest = hashlib.sha256()
        for path in sorted(self.project.rglob("*")):
            if path.is_file():
                digest.update(f"{path.relative_to(self.project)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
        return digest.hexdigest()

    def run(self, text: str) -> tuple[int, str]:
        """Run a command; a build of the same files was made once before and is copied."""
        if text in SLOW and not self.slow:
            text = text.replace("edgekiln build", "edgekiln plan", 1)
        key = (text, self._state())
        if key in self.done:
            code, said, made = self.done[key]
            shutil.copytree(made, self.project, symlinks=True, dirs_exist_ok=True)
            return code, said
        ended = subprocess.run(
            ["sh", "-c", text],
            cwd=self.project,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            check=False,
        )
        if text.startswith("edgekiln build"):
            made = self.project.parent / f"made-{len(self.done)}"
            shutil.copytree(self.project, made, symlinks=True)
            self.done[key] = (ended.returncode, ended.stdout, made)
        return ended.returncode, ended.stdout

    def follow(self, page: str) -> None:
        """Do what a page says, and stop at the first command that ends otherwise than stated."""
        for step in steps(page):
            if isinstance(step, File):
                self.write(step)
            elif reason_not_to_run(step.text) is None:
                code, said = self.run(step.text)
                wanted = 0 if step.text in SLOW and not self.slow else step.exit_code
                assert code == wanted, f"$ {step.text}\n{said}\nended with {code}, not {wanted}"


@pytest.fixture(scope="module")
def done() -> dict[tuple[str, str], tuple[int, str, Path]]:
    """Remember finished builds: by command and files, the exit code, what was said and a copy of the folder."""
    return {}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """Return a cache that no other test uses."""
    return tmp_path_factory.mktemp("cache")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


needs_shell = pytest.mark.skipif(os.name == "nt", reason="the pages show the commands of a POSIX shell")


@needs_shell
@pytest.mark.alone
@pytest.mark.parametrize("page", PAGES_READ, ids=named)
def test_what_a_page_says_works(page, tmp_path, cache, done):
    Reader(tmp_path, cache, done).follow(page.read_text(encoding="utf-8"))


@needs_shell
@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES_READ if any(getattr(step, "text", "") in SLOW for step in steps(page.read_text("utf-8")))],
    ids=named,
)
def test_the_long_builds_work_too(page, tmp_path):
    Reader(tmp_path, tmp_path / "cache", {}, slow=True).follow(page.read_text(encoding="utf-8"))


def lines_of(workflow: Path) -> list[str]:
    """Return the commands of a GitHub or GitLab workflow, in order."""
    document = YAML(typ="safe").load(workflow.read_text(encoding="utf-8"))
    keys = {"script", "before_script"}
    jobs = document["jobs"].values() if "jobs" in document else [job for job in document.values() if keys & {*job}]
    scripts = []
    for job in jobs:
        scripts += [step["run"] for step in job.get("steps", ()) if "run" in step]
        scripts += [*job.get("before_script", ()), *job.get("script", ()), *job.get("after_script", ())]
    return [line for script in scripts for line in script.splitlines()]


@needs_shell
@pytest.mark.alone
@pytest.mark.parametrize("workflow", WORKFLOWS, ids=named)
def test_the_workflows_do_what_they_say(workflow, tmp_path, cache, done):
    reader = Reader(tmp_path, cache, done)
    tutorial = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    reader.write(next(step for step in steps(tutorial) if isinstance(step, File) and step.name == "ship.yaml"))
    ran = []
    waiting = lines_of(workflow)
    while waiting:
        line = waiting.pop(0)
        if reason_not_to_run(line) is None:
            code, said = reader.run(line)
            assert code == 0, f"{line}\n{said}"
            ran.append(line.split()[:2])
        if line.endswith("> builds.yml"):
            waiting = [*waiting, *lines_of(CHILD_JOB), *lines_of(reader.project / "builds.yml")]
    assert ["edgekiln", "build"] in ran
    assert (reader.project / "artifacts" / "report.json").is_file()
    if workflow.name == "github.yml":
        assert reader.summary.read_text(encoding="utf-8").startswith("# Edgekiln report")
    if workflow.name == "github-matrix.yml":
        name, _, matrix = (tmp_path / "output").read_text(encoding="utf-8").partition("=")
        assert name == "matrix"
        assert BUILD_ID in {entry["id"] for entry in json.loads(matrix)["include"]}


def test_all_workflows_are_tried():
    names = ["github-matrix.yml", "github.yml", "gitlab-matrix.yml", "gitlab.yml"]
    assert [path.name for path in WORKFLOWS] == names


def test_no_exception_outlives_its_command():
    texts = [step.text for page in PAGES_READ for step in steps(page.read_text("utf-8")) if isinstance(step, Command)]
    texts += [line for workflow in WORKFLOWS for line in lines_of(workflow)]
    assert not {start for start in NOT_RUN if not any(f"{text} ".startswith(f"{start} ") for text in texts)}
    assert not set(SLOW) - set(texts)


@pytest.mark.parametrize("page", PAGES_READ, ids=named)
def test_links_lead_somewhere(page):
    for target in _LINK.findall(page.read_text(encoding="utf-8")):
        file, _, fragment = target.partition("#")
        if "://" in target:
            continue
        linked = (page.parent / file).resolve() if file else page
        assert linked.exists(), f"{target} in {named(page)}"
        if fragment:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert fragment in anchors, f"{target} in {named(page)}"


@pytest.mark.parametrize("name", PAGES)
def test_the_reference_is_current(name):
    committed = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
    assert committed == PAGES[name](), "run make docs"


def test_the_reference_has_nothing_else(tmp_path):
    written = {path.name for path in write_pages(tmp_path)}
    assert written == {path.name for path in (ROOT / "docs" / "reference").iterdir()} == set(PAGES)


# The harness itself


def test_a_page_is_read_as_a_reader_does():
    page = (
        "<!-- file: a.yaml -->\n\n```yaml\nkey: 1\n```\n"
        "```console\n$ first --option\noutput $ no command\n$ second \\\n    continued\n# exits with 3\nmore\n```\n"
        "```yaml\nno: file\n```\n- item\n\n  ```console\n  $ third\n  ```\n````text\n```console\n$ no\n```\n````\n"
    )
    found = [File("a.yaml", "key: 1\n"), Command("first --option"), Command("second continued", 3), Command("third")]
    assert list(steps(page)) == found


def test_an_exit_code_apart_from_its_command_is_an_error():
    with pytest.raises(ValueError, match="apart"):
        list(steps("```console\n$ first\noutput\n# exits with 3\n```\n"))


@needs_shell
def test_a_command_that_ends_otherwise_is_found(tmp_path, done):
    with pytest.raises(AssertionError, match="ended with 2, not 0"):
        Reader(tmp_path, tmp_path / "cache", done).follow("```console\n$ edgekiln targets no-such-device\n```\n")
