"""Answer the prompts of prompts.txt greedily in each runtime and write the replies as Markdown.

    python examples/transcripts.py CHECKPOINT OUT.md ARTIFACT...

Each artifact (a GGUF file, an ORT GenAI or a Foundry Local directory) runs in its own runtime, in a process of its
own. Greedy replies are deterministic on one machine, so the file can be compared from release to release.
"""

import argparse
import multiprocessing
from pathlib import Path

from edgekiln.validators.hf_tokenizer import load_tokenizer, render_chat
from edgekiln.validators.kinds import ArtifactKind, identify
from edgekiln.validators.runtime_foundry import FoundryRuntime
from edgekiln.validators.runtime_genai import GenaiRuntime
from edgekiln.validators.runtime_llama import LlamaRuntime

PROMPTS = Path(__file__).with_name("prompts.txt")
TOKENS = 160
CONTEXT = 1024
THREADS = 2


def reply_with_llama(kind: ArtifactKind, checkpoint: Path, prompts: list[str]) -> list[str]:
    runtime = LlamaRuntime()
    runtime.load(kind.path, THREADS, CONTEXT)
    tokenizer = load_tokenizer(checkpoint)
    stop = {tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")}
    replies = []
    for prompt in prompts:
        text = render_chat(checkpoint, [{"role": "user", "content": prompt}])
        ids = runtime.greedy(runtime.tokenize(text), TOKENS, stop)
        replies.append(tokenizer.decode([token for token in ids if token not in stop]))
    return replies


def reply_with_genai(kind: ArtifactKind, prompts: list[str]) -> list[str]:
    runtime = GenaiRuntime()
    runtime.load(kind.path, THREADS, CONTEXT)
    return [runtime.chat([{"role": "user", "content": prompt}], TOKENS)[0] for prompt in prompts]


def reply_with_foundry(kind: ArtifactKind, prompts: list[str]) -> list[str]:
    runtime = FoundryRuntime()
    runtime.load(kind.path)
    replies = [runtime.chat([{"role": "user", "content": prompt}], TOKENS).text for prompt in prompts]
    runtime.end()
    return replies


def replies(artifact: Path, checkpoint: Path, prompts: list[str]) -> tuple[str, list[str]]:
    kind = identify(artifact)
    if kind.format == "gguf":
        return "llama.cpp", reply_with_llama(kind, checkpoint, prompts)
    if kind.format == "foundry-local":
        return "Foundry Local", reply_with_foundry(kind, prompts)
    return "ONNX Runtime GenAI", reply_with_genai(kind, prompts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("artifacts", type=Path, nargs="+")
    args = parser.parse_args()
    prompts = PROMPTS.read_text(encoding="utf-8").splitlines()
    answers = []
    for artifact in args.artifacts:
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # a process for each native runtime
            answers.append((artifact, *pool.apply(replies, (artifact, args.checkpoint, prompts))))
    lines = ["# Greedy replies", "", f"At most {TOKENS} tokens each.", ""]
    for number, prompt in enumerate(prompts):
        lines += [f"## {prompt}", ""]
        for artifact, runtime, texts in answers:
            name = artifact.parent.name if artifact.is_dir() or artifact.suffix == ".gguf" else artifact.name
            lines += [f"**{runtime}**, {name}:", "", "````", texts[number].strip(), "````", ""]
    args.out.write_text("\n".join(lines), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
