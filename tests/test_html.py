from __future__ import annotations

import base64
import hashlib
import math
import re
import time
from html.parser import HTMLParser

import pytest

from edgekiln.validators import html
from edgekiln.validators.report import ConservationReport, FindingReport, HealthReport, LayerReport
from sample_reports import (
    HOSTILE,
    conservation,
    error_build,
    failed,
    failed_build,
    grid,
    healthy,
    healthy_build,
    hostile,
    not_measured,
    parity,
    pipeline,
    report,
    unmeasured_build,
    unreadable,
    unsupported,
    unsupported_build,
)

ALL = (healthy, failed, unsupported, not_measured, unreadable, pipeline, hostile)
_VOID = {"meta", "wbr"}


class Strict(HTMLParser):
    """Collects text and tags, and fails where tags do not pair up."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len(attrs) == len(dict(attrs)), (tag, attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.texts))


@pytest.mark.parametrize("sample", ALL)
def test_the_same_report_gives_the_same_page_whose_tags_pair_up(sample):
    page = html.render_html(sample())
    assert page == html.render_html(sample())
    assert page.startswith("<!DOCTYPE html>")
    Strict(page)


@pytest.mark.parametrize("sample", ALL)
def test_nothing_can_be_loaded_or_run(sample):
    page = html.render_html(sample())
    parsed = Strict(page)
    tags = {tag for tag, _ in parsed.tags}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "form", "base", "video", "audio", "image"}
    named = {name for _, attributes in parsed.tags for name in attributes}
    assert not [name for name in named if name.startswith("on") or name in {"style", "src", "srcset", "xlink:href"}]
    assert all(a["href"].startswith("#") for _, a in parsed.tags if "href" in a)
    assert "url(" not in page
    assert "@import" not in page
    policy = next(a["content"] for _, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy")
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() in policy


def test_text_of_others_stays_text_wherever_it_stands():
    page = html.render_html(hostile())
    parsed = Strict(page)
    assert not [tag for tag, _ in parsed.tags if tag in {"script", "exe"}]
    assert "<script>alert(1)</script>" in parsed.text
    assert "{{7*7}}" in parsed.text
    raw = {"\u202e", "\u2066", "\u200b", "\ufeff", "\x00", "\x07", "\x1b"}
    assert not raw & set(page)
    assert "\\u202e" in parsed.text


def test_the_verdict_comes_first_and_says_why_and_what_to_do():
    text = Strict(html.render_html(failed())).text
    verdict, _, _ = text.partition("Gates Checks")
    assert verdict.index("Failed") < verdict.index("onnx-cpu-int4")
    assert "2 of 290 tensors hold other weights" in verdict
    assert "Update onnxruntime to 1.21" in verdict


@pytest.mark.parametrize(
    ("build", "verdict"),
    [
        (healthy_build(), "passed"),
        (failed_build(), "failed"),
        (error_build(), "error"),
        (unmeasured_build(), "not_measured"),
        (unsupported_build(), "unsupported"),
    ],
)
def test_a_verdict_tells_apart_what_failed_and_what_was_not_measured(build, verdict):
    assert html.verdict_of(build) == verdict
    assert html.headline(report(build))[2] == verdict


def test_many_builds_are_counted_and_the_worst_gives_the_tone():
    title, sentence, worst = html.headline(pipeline(12))
    assert title == "12 of 16 builds passed"
    assert sentence.startswith("1 failed, 1 ended in an error, 1 could not be measured, 1 unsupported. ")
    assert worst == "failed"
    assert html.headline(report(*grid(3)))[:2] == ("All 3 builds passed", "21 checks and 15 gates were judged.")
    assert html.headline(report(healthy_build(), unsupported_build()))[2] == "unsupported"


def test_builds_that_passed_with_a_warning_are_named_behind_those_that_failed():
    warned = healthy_build("warned").model_copy(
        update={"health": HealthReport(status="degraded", findings=("mean_kld is close to its limit",))}
    )
    text = Strict(html.render_html(report(warned, failed_build()))).text
    assert 0 < text.index("hold other weights") < text.index("1 passed with something to look at")
    assert "mean_kld is close to its limit" in Strict(html.render_html(report(warned))).text


def test_a_page_has_all_its_parts():
    text = Strict(html.render_html(healthy())).text
    for part in (
        "Size and mean KLD.",
        "Size and decode speed.",
        "Gates",
        "Checks and findings",
        "Fix: Normalise text to NFC",
        "Relative error by layer, in percent.",
        "The tensors with the largest relative error.",
        "multi-token prediction: no decoder uses it",
        "Precision as built",
        "q4_0 72.4 %",
        "KLD by position in the window.",
        "95 %: 0.0208 to 0.0232",
        "p99.9",
        "Decode, token by token",
        "Long context",
        "By section of the corpus.",
        "Worst tokens in context",
        "python, position 118: KLD 0.621",
        "⇥⇥",
        "Replies side by side",
        "Artifact, the same for 14 tokens",
        "Both, the same in all 17 tokens",
        "nothing",
        "Decode, every process.",
        "By context depth",
        "tg32 @ d4096",
        "By batch size",
        "tg32 × 4",
        "Energy per token",
        "2.09 ×",
        "too noisy: 5 rounds scatter by 38%",
        "Q4_0 gives this tensor Q6_K",
        "A stand-in ran.",
        "Transformers on the fp16-rounded weights",
        "AMD EPYC 9R14",
        "llama-cpp-python 0.3.36",
        "What the figures mean",
    ):
        assert part in text.replace("\xa0", " "), part


def test_each_build_of_a_pipeline_has_a_row_and_a_section():
    page = html.render_html(pipeline(12))
    parsed = Strict(page)
    ids = {a["id"] for _, a in parsed.tags if "id" in a}
    for number, build in enumerate(pipeline(12).builds, start=1):
        assert f"b{number}-in" in ids
        assert f'<a href="#b{number}-in">' in page
        assert parsed.text.replace("\u200b", "").count(build.id) >= 2
    assert sum(tag == "details" and a.get("class") == "build" for tag, a in parsed.tags) == 16


@pytest.mark.parametrize("count", [200, 1000])
def test_many_builds_make_a_page_of_bounded_size(count):
    few = list(grid())
    many = (few[i % len(few)].model_copy(update={"id": f"build-{i}"}) for i in range(count))
    made = report(*many, failed_build("broken"), pipeline="large")
    begin = time.process_time()
    page = html.render_html(made)
    assert time.process_time() - begin < 20
    assert len(page) < 6e6
    text = Strict(page).text
    left = count + 1 - html.MOST_DETAILED
    assert f"and {left} more builds that passed or found no room here" in text
    assert page.count('<details class="build"') == html.MOST_DETAILED
    assert page.count('<th scope="row"><svg class="swatch') == min(count + 1, html.MOST_BUILDS)
    if count < html.MOST_BUILDS:
        assert f'id="b{count + 1}-in"' in page  # the one that failed has its section, although it comes last


def test_a_megabyte_of_hostile_text_is_cut_wherever_it_stands():
    begin = time.process_time()
    page = html.render_html(hostile(HOSTILE * (1_000_000 // len(HOSTILE))))
    assert time.process_time() - begin < 10
    assert len(page) < 400_000
    assert "characters left out" in page


def test_lists_without_end_are_cut_and_counted():
    finding = FindingReport(id="files/x", severity="error", subject="s", detail="d", fix="f")
    build = failed_build()
    checks = (build.structure[-1].model_copy(update={"findings": (finding,) * 5000}),) * 400
    layers = tuple(LayerReport(layer=i, relative_errors={f"p{j}": 0.1 for j in range(60)}) for i in range(400))
    audit = conservation().model_copy(update={"layers": layers, "worst": build.conservation.worst * 1000})
    long = parity().model_copy(
        update={
            "sections": parity().sections * 500,
            "worst_tokens": parity().worst_tokens * 500,
            "replies": parity().replies * 500,
            "kld_by_position": (0.1,) * 100_000,
        }
    )
    notes = {f"n{i}": "x" for i in range(10_000)}
    build = build.model_copy(
        update={
            "structure": checks,
            "conservation": audit,
            "parity": long,
            "not_measured": notes,
            "notes": tuple(notes),
            "gates": build.gates * 5000,
        }
    )
    page = html.render_html(report(build))
    assert len(page) < 3_000_000
    assert "and 4,960 more findings" in page
    assert "and 300 more checks" in page
    assert "and 9,940 more notes" in page


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, 1e-300, 1e300])
def test_a_figure_that_is_no_number_breaks_neither_page_nor_picture(value):
    build = healthy_build()
    speeds = build.latency.model_copy(
        update={
            "decode_tokens_per_second": value,
            "samples": {"decode_tokens_per_second": (value, 1.0)},
            "by_length": {"pp128": value},
        }
    )
    numbers = parity().model_copy(
        update={
            "mean_kld": value,
            "perplexity": value,
            "reference_perplexity": value,
            "kld_by_position": (value, 1.0, 2.0),
            "mean_kld_interval": (value, value),
            "sections": (parity().sections[0].model_copy(update={"mean_kld": value}),),
        }
    )
    layers = (LayerReport(layer=0, relative_errors={"a": value, "b": 0.1}),)
    audit = conservation().model_copy(update={"layers": layers, "relative_error": value})
    build = build.model_copy(update={"latency": speeds, "parity": numbers, "conservation": audit})
    page = html.render_html(report(build, healthy_build("other")))
    Strict(page)
    assert not re.search(r'(?:\bd|points|x|y|cx|width)="[^"]*(?:nan|inf)', page)


def test_a_swapped_layer_stands_out_from_the_heat_map_and_an_exact_one_has_the_lowest_colour():
    audit = conservation(bad={(4, "mlp.up_proj"): 1.41, (5, "mlp.up_proj"): 0.4})
    found = html.heat(audit)
    rows = dict(found.rows)
    assert [rows["mlp.up_proj"][i] for i in (4, 5)] == [("141", "out"), ("40", "out")]
    assert found.standing_out == 2
    assert set(rows["input_layernorm"]) == {("0", "h0")}
    assert found.high < 0.15
    assert max(kind for cells in rows.values() for _, kind in cells if kind != "out") == "h8"
    assert [part for part, _, _ in found.outside] == ["embed_tokens", "norm", "lm_head"]


def test_a_model_of_few_layers_has_its_broken_tensor_stand_out_too():
    layers = (LayerReport(layer=0, relative_errors={"a": 0.08}), LayerReport(layer=1, relative_errors={"a": 1.4}))
    audit = ConservationReport(
        exported=2, tied=0, fused=0, compared_weights=2, relative_error=1.0, snr_db=0.0, worst=(), layers=layers
    )
    assert dict(html.heat(audit).rows)["a"] == (("8.0", "h8"), ("140", "out"))
    assert html.heat(audit.model_copy(update={"layers": ()})) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (0.0219, "0.0219"),
        (0.000012, "1.2 × 10⁻⁵"),
        (1234.5, "1,234"),
        (41.0, "41.0"),
        (-2.98, "−2.98"),
        (math.inf, "∞"),
        (math.nan, "not a number"),
        (999.9999, "1,000"),
    ],
)
def test_a_figure_has_three_digits(value, text):
    assert html.significant(value) == text


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("size_bytes", 352_969_408, "353 MB"),
        ("size_bytes", 1_200_000_000, "1.20 GB"),
        ("top1_agreement", 0.913, "91.3 %"),
        ("load_seconds", 0.041, "41.0 ms"),
        ("load_seconds", 2.5, "2.50 s"),
        ("decode_tokens_per_second", 41.0, "41.0 tok/s"),
        ("mean_kld", 0.0219, "0.0219"),
        ("unheard_of", 0.5, "0.500"),
        ("size_bytes", None, "–"),
    ],
)
def test_a_figure_has_the_unit_of_its_metric(metric, value, text):
    assert html.figure(value, metric).replace("\xa0", " ") == text


def test_a_share_that_is_not_quite_nothing_is_not_zero():
    assert html.percent(0.00001).replace("\xa0", " ") == "< 0.1 %"
    assert html.percent(0.0).replace("\xa0", " ") == "0.0 %"


def test_limits_are_drawn_where_all_builds_have_the_same():
    lines = html.size_and_quality(report(healthy_build("a"), healthy_build("b"))).lines
    assert sorted((line.upright, line.label) for line in lines) == [(False, "limit"), (True, "limit")]
    other = healthy_build("c")
    gates = (other.gates[0].model_copy(update={"limit": "<= 0.3"}), *other.gates[1:])
    lines = html.size_and_quality(report(healthy_build("a"), other.model_copy(update={"gates": gates}))).lines
    assert [line.upright for line in lines] == [True]


def test_one_build_is_drawn_beside_what_it_is_compared_with():
    assert [line.label for line in html.size_and_speed(healthy()).lines] == ["fp16 artifact", "reference"]
    assert html.size_and_speed(unsupported()) is None
