"""The samples hold what the check of tokenizers promises."""

import unicodedata

from edgekiln.validators.tokenizer_samples import _SCRIPTS, GROUPS, SAMPLES


def test_each_script_is_written_in_its_own_letters():
    for script, texts in _SCRIPTS.items():
        names = [unicodedata.name(c, "") for text in texts for c in text]
        assert sum(name.startswith(script.upper()) for name in names) >= 4, script
    assert len(_SCRIPTS) >= 20


def test_composed_and_decomposed_marks_differ_in_nfc():
    assert all(unicodedata.is_normalized("NFC", text) for text in GROUPS["marks, composed"][:2])
    assert all(not unicodedata.is_normalized("NFC", text) for text in GROUPS["marks, decomposed"][:3])


def test_white_space_and_joiners_are_of_all_kinds():
    spaces = {c for c in "".join(GROUPS["white space"]) if c.isspace()}
    assert {
        " ",
        "\t",
        "\n",
        "\r",
        "\u000b",
        "\u000c",
        "\u0085",
        "\u00a0",
        "\u1680",
        "\u2003",
        "\u2028",
        "\u3000",
    } <= spaces
    assert "\u200d" in "".join(GROUPS["emoji"])


def test_random_texts_are_valid_unassigned_points_included_and_the_same_each_time():
    assert all(text.encode("utf-8").decode("utf-8") == text for text in SAMPLES)
    categories = {unicodedata.category(c) for text in GROUPS["random code points"] for c in text}
    assert {"Cn", "Co"} & categories
    assert "Cs" not in categories
