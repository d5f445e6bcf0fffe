"""The page in a browser; run it with a Chromium after `pip install -e .[dev,browser]`."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pages import SCRIPT, runs_report, samples, table_report
from reports import html_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: install [browser]")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe: as above")

NAMES = ("chromium", "chromium-browser", "google-chrome")
DRAWN = "[...document.querySelectorAll('[data-chart]')].every(box => 'drawn' in box.dataset)"
SHOWN = "[...document.querySelectorAll('.sample')].filter(sample => !sample.hidden).length"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
MOST_BYTES = 6_000_000


@pytest.fixture(scope="module")
def chromium() -> Iterator["Browser"]:
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "runs.html"
    path.write_text(html_page(runs_report(), samples()), encoding="utf-8")
    assert path.stat().st_size < MOST_BYTES
    return path


class Opened:
    """A page, and every message of its console but warnings."""

    def __init__(
        self,
        browser: "Browser",
        path: Path,
        anchor: str = "",
        *,
        width: int = 1200,
        scheme: str = "light",
    ) -> None:
        self.messages: list[str] = []
        self.asked: list[str] = []
        self.page = browser.new_page(
            viewport={"width": width, "height": 800},
            color_scheme="dark" if scheme == "dark" else "light",
        )
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("dialog", lambda dialog: self.messages.append(f"dialog {dialog.message}"))
        self.page.goto(f"{path.as_uri()}{anchor}")
        _wait(self.page, DRAWN)

    def _hear(self, message: "ConsoleMessage") -> None:
        if message.type != "warning":
            self.messages.append(f"{message.type}: {message.text}")

    def close(self) -> None:
        self.page.close()
        assert self.messages == []
        assert {url.partition(":")[0] for url in self.asked} == {"file"}


def _wait(page: "Page", true: str) -> None:
    """Wait for an expression; Playwright's own way needs `eval`, which the page forbids."""
    for _ in range(100):
        if page.evaluate(true):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"never so: {true}")


@pytest.fixture
def opened(chromium: "Browser", written: Path) -> Iterator[Opened]:
    found = Opened(chromium, written)
    yield found
    found.close()


def test_charts_are_drawn_with_tooltips_and_an_arm_can_stand_out(opened: Opened) -> None:
    page = opened.page
    for box in page.query_selector_all("[data-chart]"):
        assert len(box.query_selector_all("path, text")) > 20
    page.hover("[data-chart=differences] .mark-symbol path")
    assert "difference" in page.inner_text(".tip")
    faint = "document.querySelectorAll('[data-chart=means] .mark-symbol [opacity=\"0.12\"]').length"
    assert page.evaluate(faint) == 0
    page.select_option("figure:has([data-chart=means]) .highlight select", "lora")
    _wait(page, f"{faint} === 6")
    page.select_option("figure:has([data-chart=means]) .highlight select", "")
    _wait(page, f"{faint} === 0")
    # a click in the legend does the same
    page.click("[data-chart=means] .role-legend-symbol path >> nth=0")
    _wait(page, f"{faint} === 6")


def test_an_arm_whose_name_cannot_be_drawn_stands_out_too(
    chromium: "Browser", tmp_path: Path
) -> None:
    report, name = table_report(), "a\x00b\u202e"
    report["arms"] = [{**at, "arm": at["arm"].replace("lora", name)} for at in report["arms"]]
    path = tmp_path / "odd.html"
    path.write_text(html_page({**report, "control": name}, []), encoding="utf-8")
    found = Opened(chromium, path)
    select = "figure:has([data-chart=means]) .highlight select"
    found.page.select_option(select, "a\ufffdb\ufffd")
    faint = "document.querySelectorAll('[data-chart=means] .mark-symbol [opacity=\"0.12\"]').length"
    _wait(found.page, f"{faint} === 6")
    found.close()


def test_samples_are_filtered_and_searched(opened: Opened) -> None:
    page = opened.page
    assert page.evaluate(SHOWN) == 24
    page.fill("[name=words]", "question 11:")
    _wait(page, f"{SHOWN} === 1")
    assert page.inner_text("[name=count]") == "1 of 24 samples"
    page.click("button[type=reset]")
    _wait(page, f"{SHOWN} === 24")
    page.select_option("[name=flip]", "gained")
    _wait(page, f"{SHOWN} === 7")
    page.select_option("[name=group]", "seen")
    _wait(page, f"{SHOWN} === 3")
    page.click("button[type=reset]")
    page.select_option("[name=flip]", label="no common seed")
    _wait(page, f"{SHOWN} === 3")
    page.click("button[type=reset]")
    page.select_option("[name=stop]", "length")
    page.select_option("[name=arm]", "0")
    _wait(page, f"{SHOWN} === 6")
    assert (
        page.evaluate("document.querySelectorAll('td[data-arm=\"1\"]:not([hidden])').length") == 0
    )


def test_a_link_opens_its_sample_on_load_and_on_the_way_back(
    chromium: "Browser", written: Path
) -> None:
    found = Opened(chromium, written, "#sample-a%2Fb%20c%3F%3C1%3E")
    page = found.page
    first = "details[id='sample-a%2Fb%20c%3F%3C1%3E']"
    assert page.get_attribute(first, "open") is not None
    page.fill("[name=words]", "question 11:")
    _wait(page, f"{SHOWN} === 1")
    page.goto(f"{written.as_uri()}#sample-test-3")
    page.wait_for_selector("#sample-test-3[open]")
    page.eval_on_selector(first, "sample => { sample.open = false }")
    page.go_back()
    page.wait_for_selector(f"{first}[open]")
    assert page.evaluate("document.activeElement.closest('.sample').id").startswith("sample-a%2Fb")
    found.close()


def test_a_script_in_a_text_stays_text(opened: Opened) -> None:
    page = opened.page
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true })")
    assert SCRIPT in (page.text_content("#samples") or "")
    assert page.evaluate("document.scripts.length") == 3
    assert page.query_selector("img") is None


def test_every_control_is_reached_by_keyboard(opened: Opened) -> None:
    page = opened.page
    reached = set()
    for _ in range(150):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "(e => e.name || e.className || e.type || e.tagName)(document.activeElement)"
            )
        )
    assert {"skip", "scroll", "words", "flip", "group", "arm", "stop", "reset"} <= reached
    assert {"SUMMARY", "A", "select-one"} <= reached
    page.focus("#sample-test-1 > summary")
    page.keyboard.press("Enter")
    assert page.get_attribute("#sample-test-1", "open") is not None


def test_the_focus_is_seen(opened: Opened) -> None:
    opened.page.keyboard.press("Tab")
    style = "getComputedStyle(document.activeElement).outlineStyle"
    assert opened.page.evaluate(style) == "solid"


@pytest.mark.parametrize("width", [320, 380])
def test_a_narrow_page_does_not_scroll_sideways(
    chromium: "Browser", written: Path, width: int
) -> None:
    found = Opened(chromium, written, width=width)
    assert found.page.evaluate(OVERFLOW) == 0
    found.page.evaluate(
        "document.querySelectorAll('details').forEach(part => { part.open = true })"
    )
    assert found.page.evaluate(OVERFLOW) == 0
    found.close()


def test_a_dark_page_is_dark_and_prints_light(chromium: "Browser", written: Path) -> None:
    found = Opened(chromium, written, scheme="dark")
    colour = "getComputedStyle(document.body).backgroundColor"
    ink = "getComputedStyle(document.querySelector('[data-chart] text')).fill"
    assert (found.page.evaluate(colour), found.page.evaluate(ink)) == (
        "rgb(13, 17, 23)", "rgb(230, 237, 243)",
    )  # fmt: skip
    found.page.emulate_media(media="print")
    assert found.page.evaluate(colour) == "rgb(255, 255, 255)"
    found.close()


def test_print_opens_the_tables_but_no_sample(opened: Opened) -> None:
    opened.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    closed = "document.querySelectorAll('details:not(.sample):not([open])').length"
    assert opened.page.evaluate(closed) == 0
    assert opened.page.evaluate("document.querySelectorAll('.sample[open]').length") == 0
    opened.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert opened.page.evaluate(closed) > 10


def test_without_scripts_everything_is_there_to_read(chromium: "Browser", written: Path) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(written.as_uri())
    assert len(page.query_selector_all("[data-chart] svg")) == 7
    assert page.is_visible("#sample-test-23 > summary")
    assert not page.is_visible("#filters")
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["runs", "table"])
def test_axe_finds_nothing_serious(
    chromium: "Browser", written: Path, tmp_path: Path, scheme: str, kind: str
) -> None:
    path = written
    if kind == "table":
        path = tmp_path / "table.html"
        path.write_text(html_page(table_report(), []), encoding="utf-8")
    found = Opened(chromium, path, scheme=scheme)
    found.page.evaluate(
        "document.querySelectorAll('details').forEach(part => { part.open = true })"
    )
    violations = axe.Axe().run(found.page).response["violations"]
    assert [(v["id"], v["impact"], v["nodes"][0]["html"][:200]) for v in violations] == []
    found.close()
