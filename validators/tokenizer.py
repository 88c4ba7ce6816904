"""Does the artifact's own tokenizer read text as the checkpoint's does?

llama.cpp and ORT GenAI skip the NFC normalization of Qwen's tokenizer. A text that is not in NFC is therefore
known to differ there; it is listed as such, but only if the ids are exactly those of the un-normalized text.
ORT GenAI takes a text as a C string, which ends at a NUL character; that is told apart in the same way.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from edgekiln.validators.base import CheckResult
from edgekiln.validators.hf_tokenizer import encode, load_tokenizer

#: Texts that tokenizers are known to disagree on, beside those of the corpus.
SAMPLES: Final = (
    "The quick brown fox doesn't jump; it's we'll, I'D, YOU'RE, they've.",
    "Falsches Üben von Xylophonmusik quält jeden größeren Zwerg. Straße, Maß, ÄÖÜ.",
    "El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia; ¿añoraba? ¡Sí!",
    "Dès Noël, où un zéphyr haï me vêt de glaçons würmiens, l'œuvre naît çà et là.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. Їжак, ґанок, ўсё.",
    "Ξεσκεπάζω τὴν ψυχοφθόρα βδελυγμία. ὕβρις, Ἀθῆναι.",
    "敏捷的棕色狐狸跳过了懒狗。繁體中文也要測試，包括標點「」、《》。",
    "いろはにほへと ちりぬるを。カタカナ、ひらがな、漢字、ｶﾀｶﾅ、ﾊﾟ。",
    "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다.",
    "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر. ١٢٣٤٥ ۱۲۳",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה. שָׁלוֹם",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश। १२३",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า กว่าบรรดาฝูงสัตว์เดรัจฉาน ๑๒๓",
    "தமிழ் எழுத்துக்கள், తెలుగు లిపి, ಕನ್ನಡ, മലയാളം, বাংলা লিপি, ગુજરાતી",
    "ქართული დამწერლობა, Հայերեն, አማርኛ, ខ្មែរ, မြန်မာ, ລາວ, བོད་ཡིག",
    "Tiếng Việt có nhiều dấu: ặ ẵ ổ ữ ợ. İstanbul'da ığdır, ŞĞ.",
    "👩‍👩‍👧‍👦 👨🏽‍💻 🏳️‍🌈 🇺🇳 ❤️ ☺ 🤦🏿‍♀️ 1️⃣ ©️ 🫠",
    "0 1 12 123 1234 12345 1,234,567.89 -1e-4 0x1F 3.14159 ½ ² ⅷ ①",
    "   leading, trailing   \t\ttabs\n\n\n three newlines \r\n CRLF \r CR \u00a0nbsp\u3000wide\u200bzero",
    " \n \n  \n   x\n    y\n\t z \n\n",
    "\n",
    " ",
    "        ",
    "a  b   c    d     e",
    "def f(x: int = 0) -> list[str]:\n    return [f'{i:>{x}}' for i in range(10)]  # note\n",
    "int main(void) { for (size_t i = 0; i < n; ++i) { a[i] ^= b[i] << 3; } return 0; }",
    '{"key": [1, 2.5e-3, null, true], "nested": {"ü": "\\u00fc"}}',
    "SELECT a.id, COUNT(*) FROM t AS a WHERE a.x <> 'y''z' GROUP BY 1 -- done;",
    "for f in *.txt; do sed -E 's/(foo|bar)+/\\1/g' \"$f\" >> out 2>&1; done",
    "∀ε>0 ∃δ>0: |x−a|<δ ⇒ |f(x)−f(a)|<ε; ∑ₙ 1/n² = π²/6, ∇×B = μ₀J",
    "https://example.org/path?q=a%20b&x=[1]#frag user@example.org C:\\dir\\file.txt",
    "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "text<|endoftext|>more<|im_end|><|im_end|> <|im_start|> <|not_special|> <|im_start",
    "a\x00b \x01\x7f \ufeff \ufffd \u2028 \u2029 \u0085",
    "camelCaseWord SCREAMING_SNAKE kebab-case HTTPServer2Go x1y2z3 __init__ ...!!!???",
    "cafe\u0301 A\u030angstro\u0308m n\u0303 u\u0308ber",
    "\u1112\u1161\u11ab\u1100\u1173\u11af",
    "\u212b \u2126 \u1e9b\u0323 \u0958",
)
_SHOWN: Final = 3


def _difference(expected: Sequence[int], actual: Sequence[int], text: str) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(expected, actual, strict=False)) if a != b), min(len(expected), len(actual))
    )
    return f"{text[:40]!r}: at token {at} {list(actual[at : at + 3])} instead of {list(expected[at : at + 3])}"


def compare_tokenizer(directory: Path, tokenize: Callable[[str], list[int]], texts: Sequence[str]) -> list[CheckResult]:
    """Compare an artifact's tokenizer with the checkpoint's on `texts` and the built-in samples.

    Args:
        directory: The checkpoint, with tokenizer.json.
        tokenize: The artifact's own tokenizer, special tokens recognised.
        texts: Further texts, e.g. those of the corpus.

    Returns:
        The check `tokenizer/ids`, and `tokenizer/nfc` and `tokenizer/nul` where these known divergences showed.
    """
    reference, unnormalized = load_tokenizer(directory), load_tokenizer(directory, normalize=False)
    wrong: list[str] = []
    divergent: list[str] = []
    cut: list[str] = []
    everything = (*SAMPLES, *texts)
    for text in everything:
        actual, expected = tokenize(text), encode(reference, text)
        if actual == expected:
            continue
        if not unicodedata.is_normalized("NFC", text) and actual == encode(unnormalized, text):
            divergent.append(text)
        elif "\0" in text and actual == encode(reference, text.partition("\0")[0]):
            cut.append(text)
        else:
            wrong.append(_difference(expected, actual, text))
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        detail = f"{len(wrong)} of {len(everything)} texts differ: {'; '.join(wrong[:_SHOWN])}{more}"
        results = [CheckResult("tokenizer/ids", "fail", detail)]
    else:
        detail = f"{len(everything) - len(divergent) - len(cut)} texts have the same ids as in Hugging Face's tokenizer"
        results = [CheckResult("tokenizer/ids", "pass", detail)]
    if divergent:
        listed = ", ".join(ascii(text[:40]) for text in divergent)
        detail = f"the runtime skips NFC normalization, so {len(divergent)} texts that are not NFC differ: {listed}"
        results.append(CheckResult("tokenizer/nfc", "known_divergence", detail))
    if cut:
        detail = f"texts are C strings to the runtime: {len(cut)} of {len(everything)} end at their first NUL"
        results.append(CheckResult("tokenizer/nul", "known_divergence", detail))
    return results
