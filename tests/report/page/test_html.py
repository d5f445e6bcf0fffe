import base64
import hashlib
import json
import re
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pages import ARMS, NASTY, SCRIPT, runs_report, samples, samples_of, table_report
from reports import browser, figures, html_page
from schemabank.report.page.browser import LONGEST_TEXT, MOST_BYTES, MOST_GOLDS, cut
from schemabank.report.page.markup import (
    clipped,
    html,
    isolated,
    json_script,
    listing,
    table,
    visible,
)

VOID = {"meta", "link", "img", "br", "hr", "input"}
SHORT = table_report()
ONE_SAMPLE = {**SHORT, "samples_of": samples_of(1)}


class Page(HTMLParser):
    """A page's elements, with the text that stands in each of some kinds."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.drawn: set[str] = set()  # attributes in drawings
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.append((tag, ""))
        if "svg" in self.open:
            self.drawn |= {name for name, _ in attrs}

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.texts.append(("", ""))  # what follows stands outside

    def handle_data(self, data: str) -> None:
        if self.texts:
            tag, before = self.texts[-1]
            self.texts[-1] = (tag, before + data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data[:60]!r}")

    def of(self, tag: str) -> list[str]:
        """The text at the start of every element of a kind."""
        return [text for name, text in self.texts if name == tag]

    def tags_alone(self) -> list[str]:
        return [tag for tag, _ in self.tags]

    def ids(self) -> list[str]:
        return [found["id"] or "" for _, found in self.tags if "id" in found]


@pytest.fixture(scope="module")
def whole() -> str:
    return html_page(runs_report(), samples())


def test_the_page_has_every_part_in_order(whole: str) -> None:
    keys = re.findall(r'<section id="(\w+)"', whole)
    assert keys == [
        "verdict", "scores", "differences", "curves", "warnings", "claims", "completions",
        "routing", "cost", "provenance",
    ]  # fmt: skip
    found = Page(whole)
    assert "Better: +6.27 points (95 % interval 2.83 to 9.71), p = 0.0102, 4 seeds, paired." in (
        found.of("bdi")
    )
    assert len([c for tag, c in found.tags if tag == "figure"]) == len(figures(runs_report()))
    titles = {f"{kind} runs: 1" for kind in ("Failed", "Failed tuning", "Excluded", "Unfinished")}
    assert titles <= set(found.of("summary"))


def test_the_headline_is_the_verdict_and_what_seeds_alone_say_stands_below() -> None:
    found = runs_report()
    found["primary"]["verdict"] = {**found["primary"]["verdict"], "outcome": "worse"}
    found["pooled"] = {
        **found["pooled"],
        "verdict": found["primary"]["verdict"],
        "test": "crossed",
        "crossed": {"difference": found["items"]["crossed"], "p_holm": None},
    }
    (headline,) = _headlines(found)
    assert headline == (
        "Worse: +6.27 points (95 % interval 2.83 to 9.71), p = 0.0102, 4 seeds and 500 items, "
        "paired."
    )
    words = "Not the same as the verdict. Other seeds on these very items: Better."
    assert words in Page(html_page(found, [])).of("bdi")


def _headlines(report: dict[str, Any]) -> list[str]:
    return re.findall(r'<p class="headline"><bdi>(.*?)</bdi>', html_page(report, []))


def test_a_table_of_scores_has_no_parts_of_runs() -> None:
    keys = re.findall(r'<section id="(\w+)"', html_page(table_report(), []))
    assert keys == ["verdict", "scores", "differences", "warnings", "claims", "provenance"]


def test_the_same_report_gives_the_same_bytes(whole: str) -> None:
    assert html_page(runs_report(), samples()) == whole


def test_nothing_is_fetched_and_no_code_runs_but_the_pages_own(whole: str) -> None:
    found = Page(whole)
    policy = next(a["content"] for t, a in found.tags if t == "meta" and "http-equiv" in a) or ""
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    kinds = [a.get("type") for tag, a in found.tags if tag == "script"]
    texts = zip(kinds, found.of("script"), strict=True)
    scripts = [text for kind, text in texts if kind != "application/json"]
    for code in (*scripts, *found.of("style")):
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert len(scripts) == 2
    for tag, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        assert not {"src", "srcset", "action", "data", "xlink:href"} & set(attributes), tag
        assert (attributes.get("href") or "#").startswith("#"), tag


def test_texts_stand_where_they_belong(whole: str) -> None:
    found = Page(whole)
    shown = found.of("pre")
    for index, sample in enumerate(samples()):
        prompt = clipped(sample["prompt"], LONGEST_TEXT)
        assert _after_line_feed(shown[index * 7]) == visible(prompt)
        completions = [clipped(a["completion"], LONGEST_TEXT) for a in sample["answers"]]
        assert list(map(_after_line_feed, shown[index * 7 + 1 : index * 7 + 7])) == [
            visible(completion) for completion in completions
        ]
    assert SCRIPT not in whole
    assert whole.encode()


def _after_line_feed(text: str) -> str:
    assert text[0] == "\n"
    return text[1:]


def test_anchors_are_stable_and_single(whole: str) -> None:
    ids = Page(whole).ids()
    assert len(ids) == len(set(ids))
    assert {"sample-a%2Fb%20c%3F%3C1%3E", "sample-test-1"} <= set(ids)
    twice = [*samples(2), *samples(2)]
    ids = Page(html_page({**table_report(), "samples_of": samples_of(4)}, twice)).ids()
    assert len(ids) == len(set(ids))
    assert "sample-test-1!2" in ids
    ids_alike = ("a", "a", "a~2", "a!2")
    named = [{**own, "id": name} for own, name in zip(twice, ids_alike, strict=True)]
    ids = Page(html_page({**table_report(), "samples_of": samples_of(4)}, named)).ids()
    assert len(ids) == len(set(ids)), "whatever an id looks like"


def test_headings_go_down_one_by_one(whole: str) -> None:
    levels = [int(tag[1]) for tag, _ in Page(whole).tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_every_chart_is_a_drawing_with_words_and_a_table(whole: str) -> None:
    found = Page(whole)
    drawings = [a for _, a in found.tags if "data-chart" in a]
    assert all(a["role"] == "img" and len(a["aria-label"] or "") > 30 for a in drawings)
    assert len([tag for tag, _ in found.tags if tag == "svg"]) == len(drawings) > 5
    assert found.of("summary").count("The same data as a table") == len(drawings)
    data = next(text for text in found.of("script") if text.startswith("{"))
    assert set(json.loads(data)) == {a["data-chart"] for a in drawings}
    assert not {"id", "style", "href", "clip-path"} & found.drawn


def test_many_samples_are_cut_evenly() -> None:
    many = [{**sample, "id": str(at)} for at, sample in enumerate(samples(2400))]
    written = browser(many, {**SHORT, "samples_of": samples_of(2400, without=3)})
    places = [int(at) for at in re.findall(r'id="sample-(\d+)"', written)]
    gaps = {after - before for before, after in pairwise(places)}
    assert len(gaps) <= 2
    assert max(gaps) - min(gaps) <= 1
    assert 0.9 * MOST_BYTES < len(written.encode()) < MOST_BYTES + 20_000
    assert (
        f"2,400 of 7,200 items, seeds 42, 43 at epochs 2; {len(places)} of 2,400 samples are on "
        "this page, an even selection; the others are in samples.jsonl; 3 runs keep no predictions."
    ) in written


def test_few_samples_are_all_shown() -> None:
    assert cut([30_000] * 60) == list(range(60))
    assert len(cut([30_000] * 120)) == MOST_BYTES // 30_000
    written = browser(samples(30), {**SHORT, "samples_of": samples_of(30)})
    assert written.count('<details class="sample"') == 30
    assert "30 of 90 items, seeds 42, 43 at epochs 2.</bdi> Each opens" in written


@pytest.mark.parametrize("key", ["golds", "extracted", "id", "group"])
def test_long_texts_of_every_kind_count_towards_the_pages_size(key: str) -> None:
    many = [{**sample, "answers": [{**a} for a in sample["answers"]]} for sample in samples(300)]
    for at, sample in enumerate(many):
        sample["prompt"] = ""
        long = f"{at}" + "<" * 1000
        sample |= {} if key == "extracted" else {key: [long] * 400 if key == "golds" else long * 4}
        for answer in sample["answers"]:
            answer |= {"completion": "", "extracted": long if key == "extracted" else None}
    written = browser(many, {**SHORT, "samples_of": samples_of(300)})
    assert MOST_BYTES / 2 < len(written.encode()) < 2 * MOST_BYTES


def test_of_many_right_answers_some_are_shown() -> None:
    sample = {**samples(1)[0], "golds": [f"gold {at}" for at in range(MOST_GOLDS + 2)]}
    written = browser([sample], {**SHORT, "samples_of": samples_of(1)})
    assert "<bdi>gold 9</bdi></b> and 2 more. <a" in written
    assert "gold 10" not in written


def test_filters_say_what_the_scores_say() -> None:
    def words(*, binary: bool) -> list[str]:
        of = {**SHORT, "samples_of": samples_of(6, binary=binary)}
        written = browser(samples(6), of)
        assert ("✓ right" in written) is ("✗ wrong" in written) is binary
        assert ("score 1.000" in written) is not binary
        return Page(written).of("option")[1:7]

    always = ["mixed: over seeds or settings", "no common seed"]
    assert words(binary=False) == [
        "treatment higher", "control higher", "equal", "both 0", *always
    ]  # fmt: skip
    assert words(binary=True)[0] == "gained: treatment right, control wrong"
    assert words(binary=True)[2:] == ["both right", "neither right", *always]


def test_runs_without_predictions_are_counted_where_there_is_no_sample() -> None:
    of = {**samples_of(0), "without_predictions": 12}
    assert "<p>No samples: 12 runs keep no predictions.</p>" in html_page(
        {**runs_report(), "samples_of": of}, []
    )
    assert browser([], {**SHORT, "samples_of": None}) == ""


def test_a_report_of_ten_thousand_runs_stays_small() -> None:
    found = runs_report()
    seeds = {str(seed): 0.1 + seed % 7 / 100 for seed in range(5000)}
    for contrast in (*found["contrasts"], found["pooled"]):
        contrast["differences"] = seeds
    found["peaks"]["seeds"] *= 1250
    run = found["provenance"]["runs"][0]
    found["provenance"]["runs"] = [{**run, "run_id": f"r{at}"} for at in range(10_000)]
    found["provenance"]["failed"] *= 2000
    written = html_page(found, samples())
    assert len(written.encode()) < 2_500_000
    assert "400 of 30,000 seeds are drawn" in written
    assert "200 of 10,000 rows; the others are in report.json." in written


def test_the_largest_page_is_below_six_megabytes() -> None:
    found = runs_report()
    places = [(f"arm {arm}", str(at)) for arm in range(30) for at in range(30)]
    found["treatment"], found["control"] = "arm 0", "arm 1"
    for key in ("arms", "curves", "behaviour", "cost"):
        found[key] = [{**found[key][0], "arm": arm, "epochs": at} for arm, at in places]
    found["rates"] = [
        {**row, "arm": arm, "epochs": at} for arm, at in places for row in found["rates"][:5]
    ]
    found["others"] *= 30
    found["routing"] *= 50
    found["warnings"] = [{"id": "much", "numbers": {}, "sentence": "y" * 5000}] * 1000
    found["items"]["mcnemar"] *= 1000
    assert len(html_page(found, samples(2000)).encode()) < 6_000_000


TEXT = st.text(max_size=60) | st.sampled_from(NASTY).map(lambda text: text[:200])


@given(text=TEXT)
def test_any_text_stays_in_an_element_or_an_attribute(text: str) -> None:
    found = Page(f'<p title="{html(text)}">{html(text)}</p>')
    assert found.tags == [("p", {"title": visible(text)})]
    assert found.of("p") == [visible(text)]


@given(text=TEXT)
def test_any_text_comes_back_from_the_data_of_a_script(text: str) -> None:
    written = json_script("data", {"text": text})
    found = Page(written)
    assert found.tags_alone() == ["script"]
    assert json.loads(found.of("script")[0]) == {"text": text}
    assert written.encode()
    assert not re.search("[<>&\u2028\u2029\u202e\u200b]", written[len('<script type="') : -9][30:])


@given(lines=st.lists(TEXT, max_size=4), cells=st.lists(TEXT, min_size=2, max_size=2))
def test_any_text_stays_in_lists_and_tables(lines: list[str], cells: list[str]) -> None:
    found = Page(listing(lines))
    assert len([tag for tag, _ in found.tags if tag == "li"]) == len(lines)
    assert all(tag in {"ul", "li", "bdi", "b", "p"} for tag, _ in found.tags)
    found = Page(table(("title", ["a", "b"], [cells])))
    shown = [text for text in (*found.of("bdi"), *found.of("td")) if text]
    assert sorted(shown) == sorted(visible(cell) for cell in cells if cell)


@cache
def tags_of_one_sample() -> set[str]:
    return set(Page(browser(samples(1), ONE_SAMPLE)).tags_alone())


@given(data=st.data())
def test_any_sample_stays_in_its_place(data: st.DataObject) -> None:
    sample = samples(1)[0]
    sample |= {key: data.draw(TEXT) for key in ("id", "group", "prompt", "flip")}
    for answer in sample["answers"]:
        answer |= {key: data.draw(TEXT) for key in ("arm", "completion", "stop_reason", "epochs")}
    found = Page(browser([sample], ONE_SAMPLE))
    assert set(found.tags_alone()) <= tags_of_one_sample()
    places = {(a["epochs"], a["seed"], a["arm"]): a["completion"] for a in sample["answers"]}
    expected = sorted(visible(text) for text in (sample["prompt"], *places.values()))
    assert sorted(_after_line_feed(text) for text in found.of("pre")) == expected


def test_names_of_arms_are_text_in_the_drawings_too() -> None:
    found = runs_report()
    for name in (f"a{SCRIPT}", "\u202eb\x00\x07", "lone \ud800"):
        for at in found["arms"]:
            at["arm"] = name if at["arm"] == "lora" else at["arm"]
        found["control"] = name
        for curve in found["curves"]:
            curve["arm"] = name
        written = html_page(found, samples())
        assert SCRIPT not in written
        assert Page(written).tags_alone().count("script") == 3
        assert isolated(name) in written
    assert ARMS[1] not in {at["arm"] for at in found["arms"]}
