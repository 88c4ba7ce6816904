import re

import pytest
from markupsafe import Markup

from edgekiln.validators.html_text import cut, name, parted, plain, shared_start, shown, token


def text_of(markup) -> str:
    return re.sub("<[^>]*>", "", markup)


@pytest.mark.parametrize("write", [shown, token, name])
@pytest.mark.parametrize("hostile", ["<b>x</b>", '" onclick="x', "'", "&lt;", "</style>", "é<i>\u202e</i>"])
def test_markup_of_others_is_text(write, hostile):
    bare = re.sub(r"</?span[^<>]*>|<wbr>", "", write(hostile))
    assert not set("<>\"'") & set(bare)
    assert isinstance(write(hostile), Markup)


@pytest.mark.parametrize(
    "character", ["\x00", "\x1b", "\x7f", "\u202e", "\u2066", "\u200b", "\ufeff", "\u2028", "\udc80"]
)
def test_what_hides_or_turns_text_around_is_shown_as_its_escape(character):
    for write in (shown, token, name, plain):
        assert character not in write(f"a{character}b")
    assert "\\" in shown(character)
    assert 'class="ctl"' in shown(f"é{character}")


def test_scripts_that_run_from_right_to_left_and_joined_emoji_stay():
    for text in ("كان لدى حارس", "👩‍👩‍👧", "灯台守", "नमस्ते", "é"):
        assert shown(text) == text


def test_marks_cannot_be_stacked_over_other_lines():
    assert shown("e" + "\u0301" * 3) == "e" + "\u0301" * 3
    many = shown("e" + "\u0301" * 50)
    assert many.count("\u0301") == 6
    assert many.count("\\u0301") == 44


def test_white_space_of_a_token_is_drawn():
    assert text_of(token(" a\t\n\r")) == "␣a⇥↵␍"
    assert text_of(token("")) == "empty"


def test_lines_are_kept_and_marked_only_where_asked_for():
    assert re.sub("<[^>]*>", "", shown("a\n\tb", lines=True)) == "a↵\n⇥\tb"
    assert text_of(shown("a\nb")) == "a\\nb"


@pytest.mark.parametrize("most", [1, 5, 40, 400])
def test_long_text_loses_its_middle_before_anything_else_is_done_with_it(most):
    text = cut("a" + "x" * 1_000_000 + "z", most)
    assert len(text) < most + 60
    assert text.startswith("a")
    assert f"{1_000_002 - most:,} characters left out" in text
    assert cut("x" * most, most) == "x" * most


def test_names_break_after_their_separators_and_read_as_they_are():
    assert name("model.layers.0.self_attn/q-x") == "model.<wbr>layers.0.<wbr>self_<wbr>attn/<wbr>q-<wbr>x"
    assert name("a&b.c") == "a&amp;b.<wbr>c"


@pytest.mark.parametrize(
    ("one", "other", "start"),
    [
        ("the sky is blue", "the sky is black", 11),
        ("same", "same", 4),
        ("", "x", 0),
        ("Paris.", "Paris, France", 5),
        ("same words", "same words and more", 10),
        ("a word", "a words", 2),
    ],
)
def test_replies_part_at_the_beginning_of_a_word(one, other, start):
    assert shared_start(one, other) == shared_start(other, one) == start


def test_a_parted_reply_marks_one_word_and_loses_nothing():
    parts = parted("the sky is blue today", 11)
    assert parts == ("the sky is ", "blue", " today")
    assert parted("the", 3) == ("the", "", "")
    assert parted("a <b>", 2)[1] == "&lt;b&gt;"
