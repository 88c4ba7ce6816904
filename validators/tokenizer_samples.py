"""Texts that tokenizers are known to disagree on, in named groups. Written for this project."""

from __future__ import annotations

import random
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

_SEED: Final = 20_261_122
_LAST_CODE_POINT: Final = 0x10FFFF
_SURROGATES: Final = range(0xD800, 0xE000)

#: One sentence or more in each script, by its name in Unicode.
_SCRIPTS: Final = MappingProxyType(
    {
        "latin": (
            "The quick brown fox doesn't jump; it's we'll, I'D, YOU'RE, they've.",
            "Falsches Üben von Xylophonmusik quält jeden größeren Zwerg. Straße, Maß, ÄÖÜ.",
            "Dès Noël, où un zéphyr haï me vêt de glaçons würmiens, l'œuvre naît çà et là.",
            "Tiếng Việt có nhiều dấu: ặ ẵ ổ ữ ợ. İstanbul'da ığdır, ŞĞ. Łódź, þjóð, ŋ.",
        ),
        "greek": ("Ξεσκεπάζω τὴν ψυχοφθόρα βδελυγμία. ὕβρις, Ἀθῆναι.",),
        "cyrillic": ("Съешь же ещё этих мягких французских булок, да выпей чаю. Їжак, ґанок, ўсё.",),
        "cjk": ("敏捷的棕色狐狸跳过了懒狗。繁體中文也要測試，包括標點「」、《》。𠮷野家", "日本国憲法前文、東京都。"),
        "hiragana": ("いろはにほへと ちりぬるを。きゃ、っつ、ゞ",),
        "katakana": ("カタカナ、パーティー、ｶﾀｶﾅ、ﾊﾟ。ヴ",),
        "hangul": ("키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다. ㅋㅋ",),
        "arabic": ("نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر. ١٢٣٤٥ ۱۲۳ می‌خواهم",),
        "hebrew": ("דג סקרן שט בים מאוכזב ולפתע מצא חברה. צה״ל",),
        "devanagari": ("ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश। १२३",),
        "bengali": ("বাংলা লিপি সুন্দর; নদী আর মেঘ। ১২৩",),
        "gurmukhi": ("ਪੰਜਾਬੀ ਗੁਰਮੁਖੀ ਵਿੱਚ ਲਿਖੀ ਜਾਂਦੀ ਹੈ।",),
        "gujarati": ("ગુજરાતી લિપિમાં શિરોરેખા નથી.",),
        "oriya": ("ଓଡ଼ିଆ ଅକ୍ଷର ଗୋଲ ଅଟେ।",),
        "tamil": ("தமிழ் எழுத்துக்கள் அழகானவை.",),
        "telugu": ("తెలుగు లిపి గుండ్రంగా ఉంటుంది.",),
        "kannada": ("ಕನ್ನಡ ಅಕ್ಷರಗಳು ಸುಂದರ.",),
        "malayalam": ("മലയാളം ലിപി വളഞ്ഞതാണ്.",),
        "sinhala": ("සිංහල අකුරු වටකුරුය.",),
        "thai": ("เป็นมนุษย์สุดประเสริฐเลิศคุณค่า กว่าบรรดาฝูงสัตว์เดรัจฉาน ๑๒๓",),
        "lao": ("ພາສາລາວບໍ່ມີຍະຫວ່າງ",),
        "tibetan": ("བོད་ཡིག་ནི་མཛེས་པོ་ཡིན།",),
        "myanmar": ("မြန်မာအက္ခရာ ဝိုင်းသည်။",),
        "khmer": ("អក្សរខ្មែរមានជើង។",),
        "georgian": ("ქართული დამწერლობა, ႠႡႢ.",),
        "armenian": ("Հայերեն այբուբեն, և։",),
        "ethiopic": ("አማርኛ በግዕዝ ፊደል ይጻፋል።",),
        "cherokee": ("ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ",),
        "mongolian": ("ᠮᠣᠩᠭᠣᠯ ᠪᠢᠴᠢᠭ",),
        "syriac": ("ܠܫܢܐ ܣܘܪܝܝܐ",),
        "thaana": ("ދިވެހި ބަސް",),
        "nko": ("ߒߞߏ ߛߓߍ",),
        "tifinagh": ("ⵜⵉⴼⵉⵏⴰⵖ",),
        "canadian": ("ᐃᓄᒃᑎᑐᑦ ᓄᓇᕗᑦ",),
        "gothic": ("𐌲𐌿𐍄𐌹𐍃𐌺",),
    }
)

_OTHERS: Final = MappingProxyType(
    {
        "emoji": (
            "👩‍👩‍👧‍👦 👨🏽‍💻 🏳️‍🌈 🇺🇳 ❤️ ☺ 🤦🏿‍♀️ 1️⃣ ©️ 🫠",
            "a👍b 👍🏻👍🏼👍🏽👍🏾👍🏿 🏴󠁧󠁢󠁳󠁣󠁴󠁿 ☺︎☺️ 🧑‍🚀! 🐈‍⬛🐻‍❄️",
        ),
        "marks, composed": (
            "café Ångström ñ über ệ ǟ",
            "한글 각",
            "Ω Å ẛ̣ שלום",
        ),
        "marks, decomposed": (
            "cafe\u0301 A\u030angstro\u0308m n\u0303 u\u0308ber e\u0323\u0302 a\u0308\u0304",
            "\u1112\u1161\u11ab\u1100\u1173\u11af \u1100\u1161\u11a8",
            "\u212b \u2126 \u1e9b\u0323 \u0958 \u0374 \u1f71 \u2000 \uf900 \ufb2a",
            "z\u0335\u0321\u031b\u0358a\u0337\u0322l\u0336\u0327g\u0334\u0328o\u0338\u0329",
            "q\u0323\u0307 q\u0307\u0323",
            "שָׁלוֹם \u05e9\u05c1\u05b8",
        ),
        "numbers": (
            "0 1 12 123 1234 12345 1,234,567.89 -1e-4 0x1F 3.14159 ½ ² ⅷ ①",
            "x1y2z3 007 1_000_000 99.9% 1st 2ⁿᵈ ٣٫١٤ ৪২ 〇一二 𝟘𝟙𝟚 ↉ ৴ 1/3 12:34:56 2026-11-22T08:00Z",
        ),
        "white space": (
            "   leading, trailing   \t\ttabs\n\n\n three newlines \r\n CRLF \r CR \u00a0nbsp\u3000wide\u200bzero",
            " \n \n  \n   x\n    y\n\t z \n\n",
            "\n",
            " ",
            "\t",
            "\r\n\r\n",
            "        ",
            "a  b   c    d     e",
            "a\u2003b\u2009c\u202fd\u205fe\u1680f\u2028g\u2029h\u0085i\u000bj\u000ck",
            "end \n",
            " \u00a0 \u3000 \u2007 word",
        ),
        "code": (
            "def f(x: int = 0) -> list[str]:\n    return [f'{i:>{x}}' for i in range(10)]  # note\n",
            "int main(void) { for (size_t i = 0; i < n; ++i) { a[i] ^= b[i] << 3; } return 0; }",
            '{"key": [1, 2.5e-3, null, true], "nested": {"ü": "\\u00fc"}}',
            "SELECT a.id, COUNT(*) FROM t AS a WHERE a.x <> 'y''z' GROUP BY 1 -- done;",
            "for f in *.txt; do sed -E 's/(foo|bar)+/\\1/g' \"$f\" >> out 2>&1; done",
            "∀ε>0 ∃δ>0: |x−a|<δ ⇒ |f(x)−f(a)|<ε; ∑ₙ 1/n² = π²/6, ∇×B = μ₀J",
            "https://example.org/path?q=a%20b&x=[1]#frag user@example.org C:\\dir\\file.txt",
            "camelCaseWord SCREAMING_SNAKE kebab-case HTTPServer2Go x1y2z3 __init__ ...!!!???",
            '<div class="a">\n\t<p>x &lt; y</p>\n</div>\n\n\n<!-- end -->',
        ),
        "special tokens": (
            "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
            "text<|endoftext|>more<|im_end|><|im_end|> <|im_start|> <|not_special|> <|im_start",
            '<tool_call>\n{"name": "f"}\n</tool_call><think>\n\n</think>\n\n<tool_response>é</tool_response>',
            " <|im_end|> \n<|im_end|>\n\n<|IM_END|> <| im_end |> <|im_end|>é",
        ),
        "control characters": (
            "a\x00b \x01\x7f \ufeff \ufffd \u2028 \u2029 \u0085",
            "\ufeffbyte order mark, \u200e\u200f\u202a\u202c\u2066\u2069 direction, \u00adsoft\u2060join",
            "\ufffe\uffff\U0001fffe\U0010ffff \ue000\uf8ff \U000f0000 \u0378 \U0003fffd",
            "\x1b[31mred\x1b[0m \x08 \x07",
        ),
        "empty": ("",),
    }
)


def _random_bytes() -> tuple[str, ...]:
    """Return random bytes as UTF-8, what is invalid replaced."""
    source = random.Random(_SEED)  # noqa: S311 - the same texts everywhere and always
    return tuple(source.randbytes(length).decode("utf-8", errors="replace") for length in (8, 32, 64, 128, 256))


def _random_code_points() -> tuple[str, ...]:
    """Return random code points, unassigned ones and private use included, without surrogates."""
    source = random.Random(_SEED + 1)  # noqa: S311 - the same texts everywhere and always
    texts = []
    for count, last in ((32, 0x7FF), (32, 0xFFFF), (32, 0xFFFF), (24, _LAST_CODE_POINT), (24, _LAST_CODE_POINT)):
        points = (source.randint(1, last) for _ in range(count))
        texts.append("".join(chr(point) for point in points if point not in _SURROGATES))
    return tuple(texts)


def _groups() -> Mapping[str, tuple[str, ...]]:
    groups = {f"script: {name}": texts for name, texts in _SCRIPTS.items()}
    return MappingProxyType(
        groups | dict(_OTHERS) | {"random bytes": _random_bytes(), "random code points": _random_code_points()}
    )


#: Name of the group to its texts.
GROUPS: Final = _groups()
SAMPLES: Final = tuple(text for texts in GROUPS.values() for text in texts)
