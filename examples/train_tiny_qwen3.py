"""Train the tiny Qwen3 checkpoint that stands in for a real one in examples and tests.

It learns Python from the standard library of the interpreter that runs it (PSF licence), on the CPU,
in the time given, so its perplexity and its answers to quantization are those of a trained model,
not of random weights. Every width is a multiple of 256, so each llama.cpp block type fits.

    python examples/train_tiny_qwen3.py OUT_DIR --minutes 60

Needs torch, transformers>=5 and tokenizers.
"""

import argparse
import json
import sysconfig
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AddedToken, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

VOCAB_SIZE = 4096
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
]
# Qwen2's pre-tokenizer pattern, so that llama.cpp's "qwen2" pre-tokenizer splits text alike.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = r"""
{%- set system = messages[0].content if messages[0].role == 'system' else '' %}
{%- if tools %}
    {{- '<|im_start|>system\n' + (system + '\n\n' if system else '') + '# Tools' }}
    {%- for tool in tools %}{{- '\n' + (tool | tojson) }}{%- endfor %}
    {{- '<|im_end|>\n' }}
{%- elif system %}
    {{- '<|im_start|>system\n' + system + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- set content = message.content if message.content else '' %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' + content }}
        {%- for call in message.tool_calls or [] %}
            {%- set function = call.function if call.function is defined else call %}
            {{- '\n<tool_call>\n{"name": ' + (function.name | tojson) + ', "arguments": ' }}
            {{- function.arguments if function.arguments is string else (function.arguments | tojson) }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\n<tool_response>\n' + content + '\n</tool_response><|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}
""".strip("\n")


def corpus() -> tuple[list[str], list[str]]:
    """Return the training and the held-out texts: every 20th file is held out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skip = {"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo"}
    files = sorted(p for p in root.rglob("*.py") if not skip & set(p.relative_to(root).parts))
    texts = [p.read_text(encoding="utf-8", errors="ignore") for p in files]
    return [t for i, t in enumerate(texts) if i % 20], texts[::20]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE laid out as Qwen's: ordinary tokens first, special tokens behind them."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE - 24, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    fast.add_tokens(
        [
            AddedToken(s, special=s.startswith("<|"), normalized=False)
            for s in SPECIAL
            if s not in ("<|im_end|>", "<|endoftext|>")
        ]
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    args = parser.parse_args()
    torch.manual_seed(0)
    rng = np.random.default_rng(0)

    train_texts, held_out = corpus()
    tokenizer = train_tokenizer(train_texts)
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")

    def encode(texts: list[str]) -> np.ndarray:
        return np.concatenate([np.array([*ids, end], dtype=np.int64) for ids in tokenizer(texts)["input_ids"]])

    train, valid = encode(train_texts), encode(held_out)
    print(f"{len(train) / 1e6:.2f} M training tokens, {len(valid) / 1e6:.2f} M held out", flush=True)

    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=end,
    )
    model = Qwen3ForCausalLM(config)
    decay = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    peak = 3e-3
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=peak, betas=(0.9, 0.95)
    )

    def batch(data: np.ndarray, size: int, length: int) -> torch.Tensor:
        starts = rng.integers(0, len(data) - length, size)
        return torch.tensor(np.stack([data[s : s + length] for s in starts]))

    def loss_on(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=x).logits
        return torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), x[:, 1:].flatten())

    start, step = time.monotonic(), 0
    while (done := (time.monotonic() - start) / (args.minutes * 60)) < 1:
        rate = peak * min(1, (step + 1) / 100) * (0.02 + 0.98 * min(1.0, (1 - done) / 0.6))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_on(batch(train, 16, 256))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 100 == 0:
            with torch.no_grad():
                held = sum(loss_on(batch(valid, 16, 256)).item() for _ in range(4)) / 4
            print(f"step {step}  train {loss.item():.3f}  held out {held:.3f}  {done:.0%}", flush=True)

    model.to(torch.bfloat16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    tokenizer_config = args.out / "tokenizer_config.json"
    fields = json.loads(tokenizer_config.read_text()) | {"tokenizer_class": "Qwen2Tokenizer"}
    fields.pop("backend", None)  # transformers 5's own name for a tokenizer it does not know
    tokenizer_config.write_text(json.dumps(fields, indent=2) + "\n")
    (args.out / "generation_config.json").write_text(
        json.dumps(
            {
                "bos_token_id": end,
                "eos_token_id": [tokenizer.eos_token_id, end],
                "pad_token_id": end,
                "do_sample": True,
                "temperature": 0.7,
                "top_p": 0.8,
                "top_k": 20,
            },
            indent=2,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
