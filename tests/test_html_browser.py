"""The HTML report in a real browser: light, dark, printed and on a phone, with no request to anywhere."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from edgekiln.validators.html import render_html
from edgekiln.validators.report import Report
from sample_reports import failed, healthy, hostile, not_measured, pipeline, unreadable, unsupported

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: install it, or run `make test` as root")

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
REPORTS: dict[str, Callable[[], Report]] = {
    "healthy": healthy,
    "failed": failed,
    "unsupported": unsupported,
    "not_measured": not_measured,
    "unreadable": unreadable,
    "pipeline": lambda: pipeline(3),
    "hostile": hostile,
}
#: The printable width of A4 with the style sheet's margins, in CSS pixels.
PAPER = round((210 - 24) / 25.4 * 96)

#: Every text with the colours that it really has; what is closed is opened before.
CONTRASTS = """() => {
  const colour = text => { const n = text.match(/[\\d.]+/g).map(Number); return [n[0], n[1], n[2], n[3] ?? 1] };
  const channel = v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4 };
  const light = c => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
  const ground = e => {
    for (; e; e = e.parentElement) { const c = colour(getComputedStyle(e).backgroundColor); if (c[3] > 0) return c }
    return [255, 255, 255, 1] };
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05) };
  const found = {};
  const note = (element, ink, least) => {
    const r = ratio(colour(ink), ground(element));
    const key = element.tagName + '.' + (element.getAttribute('class') ?? '');
    if (!(key in found) || found[key][0] - found[key][1] > r - least)
      found[key] = [Math.round(100 * r) / 100, least, element.textContent.trim().slice(0, 40)] };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest('title, .hidden')) continue;
    const style = getComputedStyle(element), size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    note(element, element.closest('svg') ? style.fill : style.color, large ? 3 : 4.5) }
  for (const shape of document.querySelectorAll('.mark path, .curve, .ring, .median, .bar .part'))
    note(shape, getComputedStyle(shape)[shape.matches('.part') ? 'fill' : 'stroke'], 3);
  return found }"""

#: Elements that stick out of the page to the right, but for those in a box that scrolls on its own.
TOO_WIDE = """() => [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll > *, svg, .hidden')
  && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .map(e => e.tagName + '.' + e.className).slice(0, 5)"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Start the system's Chromium with a home and a profile of its own."""
    home = tmp_path_factory.mktemp("home")
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(
            executable_path=CHROMIUM, args=FLAGS, env={"HOME": str(home), "TMPDIR": str(home), "LANG": "C.UTF-8"}
        )
        yield made
        made.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write every sample as a file, as a person opens it."""
    folder = tmp_path_factory.mktemp("reports")
    paths = {name: folder / f"{name}.html" for name in REPORTS}
    for name, path in paths.items():
        path.write_text(render_html(REPORTS[name]()), encoding="utf-8")
    return paths


class Seen:
    """A page, and everything that it asked for, said and did."""

    def __init__(self, browser: Browser, path: Path) -> None:
        context = browser.new_context(viewport={"width": 1200, "height": 800}, color_scheme="light")
        self.page: Page = context.new_page()
        self.requests: list[str] = []
        self.failures: dict[str, str | None] = {}
        self.trouble: list[str] = []
        context.on("request", lambda request: self.requests.append(request.url))
        context.on("requestfailed", lambda request: self.failures.update({request.url: request.failure}))
        context.on("console", lambda message: self.trouble.append(message.text))
        context.on("page", lambda _: self.trouble.append("another page"))
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("dialog", lambda dialog: self.trouble.append(dialog.message))
        self.page.goto(path.as_uri())

    def show(self, *, width: int = 1200, scheme: Any = "light", media: Any = "screen", opened: bool = True) -> Page:
        """Show the page anew, with all that folds open or closed."""
        self.page.set_viewport_size({"width": width, "height": 800})
        self.page.emulate_media(color_scheme=scheme, media=media)
        self.page.evaluate("open => document.querySelectorAll('details').forEach(e => { e.open = open })", opened)
        return self.page


@pytest.fixture(scope="module", params=REPORTS)
def seen(request: pytest.FixtureRequest, browser: Browser, files: dict[str, Path]) -> Iterator[Seen]:
    """Open each sample once."""
    made = Seen(browser, files[request.param])
    yield made
    made.page.context.close()


@pytest.fixture
def look(browser: Browser, files: dict[str, Path]) -> Iterator[Callable[[str], Seen]]:
    """Open one sample for a test that changes it."""
    made: list[Seen] = []

    def opened(name: str) -> Seen:
        made.append(Seen(browser, files[name]))
        return made[-1]

    yield opened
    for page in made:
        page.page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_and_every_mark_stands_out_from_its_ground(seen, scheme):
    page = seen.show(scheme=scheme)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    levels = [int(level) for level in re.findall(r"\d+", ground)]
    assert max(levels) < 60 if scheme == "dark" else min(levels) > 230
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 10
    assert {key: found for key, found in contrasts.items() if found[0] < found[1]} == {}


@pytest.mark.parametrize("width", [360, 320])
def test_on_a_phone_only_tables_scroll_sideways(seen, width):
    page = seen.show(width=width)
    assert page.evaluate(TOO_WIDE) == []
    whole, view = page.evaluate("(e => [e.scrollWidth, e.clientWidth])(document.scrollingElement)")
    assert whole <= view == width


def test_on_paper_everything_is_open_and_nothing_is_cut(seen):
    page = seen.show(width=PAPER, media="print", opened=False)
    hidden = """[...document.querySelectorAll('details > :not(summary)')]
        .filter(e => !e.checkVisibility({contentVisibilityAuto: true}) || e.getBoundingClientRect().height === 0)
        .map(e => e.tagName + e.textContent.slice(0, 40))"""
    assert page.evaluate(hidden) == []
    assert page.evaluate(TOO_WIDE.replace(".scroll > *, ", "")) == []


def test_the_page_asks_for_nothing_and_says_nothing(seen):
    seen.show().wait_for_load_state("networkidle")
    assert seen.requests == [seen.page.url]
    assert seen.trouble == []
    assert seen.page.evaluate("document.scripts.length + document.querySelectorAll('link, iframe, img').length") == 0


def test_headings_come_in_order_and_pictures_have_words(seen):
    page = seen.show()
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4,h5,h6')].map(e => Number(e.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    bare = "e => e.ariaHidden !== 'true' && !(e.role === 'img' && e.ariaLabel)"
    assert page.evaluate(f"[...document.querySelectorAll('svg')].filter({bare}).length") == 0
    assert page.evaluate("['header', 'main', 'nav', 'footer'].map(n => document.querySelectorAll(n).length)") == [1] * 4
    assert page.evaluate("[...document.querySelectorAll('th')].filter(e => !e.scope).length") == 0
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    targets = page.evaluate("[...document.querySelectorAll('a')].map(e => e.getAttribute('href'))")
    assert targets
    assert {target[1:] for target in targets} <= set(ids)


def test_a_wide_table_scrolls_in_its_own_box_which_the_keyboard_reaches(look):
    page = look("healthy").show(width=360)
    boxes = page.evaluate(
        "[...document.querySelectorAll('.scroll')].map(e => [e.scrollWidth > e.clientWidth, e.tabIndex, e.ariaLabel])"
    )
    assert any(wider for wider, _, _ in boxes)
    assert all(index == 0 and label for _, index, label in boxes)


def test_a_print_of_what_is_closed_is_as_long_as_one_of_what_is_open(look):
    def pages(*, opened: bool) -> int:
        return len(re.findall(rb"/Type\s*/Page\b", seen.show(media="print", opened=opened).pdf(format="A4")))

    seen = look("pipeline")
    assert seen.page.evaluate("document.querySelectorAll('details.build').length") > 5
    assert pages(opened=False) == pages(opened=True) > 10


def test_what_would_ask_or_run_is_stopped_by_the_pages_own_policy(look):
    seen = look("healthy")
    seen.page.evaluate(
        """() => {
        const image = new Image(); image.src = 'http://127.0.0.1:9/image.png'; document.body.append(image);
        const style = document.createElement('style'); style.textContent = 'body { background: red }';
        document.head.append(style);
        document.body.insertAdjacentHTML('beforeend', '<p id=p style="color: red" onclick="console.log(1)">x</p>') }"""
    )
    seen.page.click("#p")
    assert seen.failures == {"http://127.0.0.1:9/image.png": "csp"}
    assert len(seen.trouble) == len([text for text in seen.trouble if "Content Security Policy" in text]) == 4
    assert seen.page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 0, 0)"


def test_a_link_to_a_build_opens_it(look):
    page = look("pipeline").page
    assert not page.evaluate("document.querySelector('#b2').open")
    page.click("a[href='#b2-in']")
    page.wait_for_function("document.querySelector('#b2').open")


def test_a_hostile_name_is_read_as_it_is_and_turns_nothing_around(look):
    text = look("hostile").show().inner_text("body")
    assert "<script>alert(1)</script>" in text
    assert not set("\u202e\u2066\u200b\ufeff\x07\x1b") & set(text)
    assert "\\u202e" in text
