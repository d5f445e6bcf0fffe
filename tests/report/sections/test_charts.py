import html
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from pages import ARMS, NASTY, runs_report, table_report
from reports import charts, figures, page
from schemabank.report.contents import Topics
from schemabank.report.figures import Cell, drawable, heat_map, svg, write_figure
from schemabank.report.sections.chart import Chart
from schemabank.report.sections.curves import MOST_POINTS
from schemabank.report.sections.differences import MOST_DOTS
from schemabank.report.sections.look import DASHES, PALETTE, SHAPES
from schemabank.report.sections.routing import MOST_CELLS

LIGHT, DARK = "#ffffff", "#0d1117"


def test_charts_of_runs_and_of_a_table() -> None:
    assert list(figures(runs_report())) == [
        "rates", "means", "differences", "others", "groups", "curves", "routing-1",
    ]  # fmt: skip
    assert list(figures(table_report())) == ["means", "differences"]


def test_nothing_to_draw_gives_no_chart() -> None:
    found = table_report()
    for contrast in (found["pooled"], *found["contrasts"]):
        contrast["verdict"]["difference"] = None
    assert figures({**found, "arms": [], "rates": [], "curves": [], "routing": []}) == {}
    assert "![" not in page({**found, "arms": []})


def test_specifications_are_the_same_each_time() -> None:
    assert json.dumps(figures(runs_report())) == json.dumps(figures(runs_report()))


def test_differences_are_those_of_the_report() -> None:
    found = table_report()
    rows = _values(figures(found)["differences"])
    means = {row["label"]: row["mean"] for row in rows if "mean" in row}
    assert list(means) == ["2", "4", "6", "8", "10", "mean over all"]
    assert means["mean over all"] == pytest.approx(6.27)
    dots = [row for row in rows if "seed" in row]
    assert len(dots) == 24
    assert "not adjusted for several settings" in _caption(found, "differences")
    for label, mean in means.items():
        own = [dot["difference"] for dot in dots if dot["label"] == label]
        assert sum(own) / len(own) == pytest.approx(mean)


def test_rings_are_the_contrasts_pairs_and_not_the_arms_means() -> None:
    found = table_report()
    for at in found["arms"]:
        at["scores"] = {seed: score / 2 for seed, score in at["scores"].items()}
    found["contrasts"] = found["contrasts"][:1]
    found["contrasts"][0]["differences"] = {"42": 0.25, "123": -0.5}
    dots = [row for row in _values(figures(found)["differences"]) if "seed" in row]
    assert [(dot["seed"], dot["difference"]) for dot in dots] == [("42", 25), ("123", -50)]
    assert "several" not in _caption(found, "differences")


def _caption(report: dict[str, Any], name: str) -> str:
    return next(chart.caption for chart in charts(report) if chart.name == name)


def test_references_are_named_apart() -> None:
    found = table_report()
    found["references"] = [{**found["references"][0], "arm": name} for name in "abc"]
    places = sorted(row["at"] for row in _values(figures(found)["means"]) if "at" in row)
    assert len(places) == 3
    assert places[0] == pytest.approx(3.6)
    assert min(places[1] - places[0], places[2] - places[1]) > 0.5


@pytest.mark.parametrize(("setting", "title"), [("", None), ("4", "epochs 4")])
def test_arms_stand_on_the_axis_at_a_single_setting(setting: str, title: str | None) -> None:
    found = table_report()
    found["arms"] = [{**at, "epochs": setting} for at in found["arms"] if at["epochs"] == "4"]
    found["setting"] = "epochs" if setting else ""
    spec = figures(found)["means"]
    (x,) = {json.dumps(layer["encoding"]["x"]) for layer in spec["layer"] if _has_arms(layer)}
    assert (json.loads(x)["field"], json.loads(x).get("title")) == ("arm", title)
    assert all(f">{arm}<" in svg(spec).partition("role-legend")[0] for arm in ARMS[:2])
    several = figures(table_report())["means"]
    assert {layer["encoding"]["x"]["field"] for layer in several["layer"] if _has_arms(layer)} == {
        "setting"
    }


def _has_arms(layer: dict[str, Any]) -> bool:
    return "color" in layer["encoding"] and "field" in layer["encoding"]["color"]


def test_chosen_rates_and_edges_are_marked() -> None:
    rows = _values(figures(runs_report())["rates"])
    chosen = {(row["arm"], row["rate"], row["edge"]) for row in rows if row["chosen"]}
    assert chosen == {("schemabank", 2e-4, ""), ("lora", 8e-4, "high"), (ARMS[2], 1e-4, "")}
    places = {row["place"] for row in rows if row["rate"] == 2e-4}
    assert len(places) == 3
    assert all(abs(place / 2e-4 - 1) < 0.05 for place in places)


def test_an_edge_is_one_of_the_arms_own_rates() -> None:
    found = runs_report()
    for row in found["rates"]:
        row["at_edge"] = row["chosen"] = row["learning_rate"] == 5e-5
        row["learning_rate"] *= 100 if row["arm"] == "lora" else 1
    edges = [row["edge"] for row in _values(figures(found)["rates"]) if row["chosen"]]
    assert edges == ["low", "low", "low"]


def test_arms_differ_by_more_than_colour_and_look_the_same_everywhere() -> None:
    spec = figures(runs_report())["rates"]
    scales = _scales(spec)
    assert scales["color"]["domain"] == list(ARMS)
    for channel, values in (("color", PALETTE), ("shape", SHAPES), ("strokeDash", DASHES)):
        assert [*map(str, scales[channel]["range"])] != []
        drawn = [tuple(v) if isinstance(v, list) else v for v in scales[channel]["range"]]
        assert drawn == list(values[: len(ARMS)])
    assert _scales(figures(table_report())["means"])["color"]["domain"] == list(ARMS[:2])


@pytest.mark.parametrize("colour", PALETTE)
@pytest.mark.parametrize("page_colour", [LIGHT, DARK])
def test_colours_stand_out_from_light_and_dark(colour: str, page_colour: str) -> None:
    lighter, darker = sorted((_luminance(colour), _luminance(page_colour)), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= 3


def _luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2.2 defines it."""
    shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return sum(w * part for w, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_several_settings_are_panels() -> None:
    found = runs_report()
    one = found["curves"]
    found["curves"] = [{**curve, "epochs": str(at)} for curve in one for at in range(3)]
    spec = figures(found)["curves"]
    assert "facet" in spec
    assert svg(spec).count(">stage<") == 0
    assert all(f">{at}<" in svg(spec) for at in range(3))


def test_very_much_data_is_thinned_and_that_is_said() -> None:
    found = runs_report()
    seeds = {str(seed): seed / 1000 for seed in range(1000)}
    for contrast in (*found["contrasts"], found["pooled"]):
        contrast["differences"] = seeds
    point = found["curves"][0]["points"][0]
    for curve in found["curves"]:
        curve["points"] = [{**point, "step": step} for step in range(50_000)]
    found["routing"] *= 100
    by_name = {chart.name: chart for chart in charts(found)}
    dots = [row for row in _values(by_name["differences"].spec) if "seed" in row]
    assert len(dots) == MOST_DOTS
    assert "400 of 6,000 seeds are drawn" in by_name["differences"].caption
    points = [row for row in _values(by_name["curves"].spec) if row["kind"] == "point"]
    assert len(points) <= MOST_POINTS
    assert {point["step"] for point in points} >= {0, 49_999}
    maps = [chart for name, chart in by_name.items() if name.startswith("routing")]
    assert sum(len(_values(chart.spec)) for chart in maps) <= MOST_CELLS
    assert len(maps) == MOST_CELLS // len(found["routing"][0]["cells"])


@pytest.mark.parametrize("text", [text[:300] for text in NASTY])
def test_any_name_is_drawn_as_text(text: str, tmp_path: Path) -> None:
    found = table_report()
    for at in found["arms"]:
        at["arm"] = text if at["arm"] == "lora" else at["arm"]
    found["control"] = found["references"][0]["arm"] = text
    write_figure(tmp_path / "means", figures(found)["means"])
    written = (tmp_path / "means.svg").read_text(encoding="utf-8")
    assert "<script" not in written
    assert "<img" not in written
    assert (tmp_path / "means.png").read_bytes()[:4] == b"\x89PNG"


def test_what_cannot_be_drawn_is_marked() -> None:
    drawn = drawable({"a": ["x\x00\x07\ud800\ufffe\u202ey", 1], "b": {"c": "ok\n"}})
    assert drawn == {"a": ["x" + "\ufffd" * 5 + "y", 1], "b": {"c": "ok\n"}}


def test_the_page_in_markdown_names_the_figures_and_has_the_new_tables() -> None:
    shown = page(runs_report())
    for name in figures(runs_report()):
        assert f"]({name}.svg)" in shown
    titles = [line for line in shown.splitlines() if line.startswith("## ")]
    assert titles == [
        "## Verdict", "## Scores", "## Differences", "## Learning curves", "## Warnings",
        "## 30 of 129 claims do not follow", "## Completions", "## Routing", "## Cost",
        "## Provenance",
    ]  # fmt: skip
    assert "| lora, equal \\<updates\\> | mean over all | 0.0001 | validation | 2 | 0 |" in shown
    assert "| lora | mean over all | 5e-05 | validation | 2 | 1 |" in shown
    assert "Without 1 run that failed." in shown
    assert "\n\nOther seeds on these very items: Better.\n" in shown
    assert "200 of 600 rows; the others are in report.json." in shown
    assert "<script>" not in shown
    assert shown.encode()


def _values(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """All data of a specification."""
    return [row for rows in spec["datasets"].values() for row in rows]


def _scales(spec: dict[str, Any]) -> dict[str, Any]:
    return {
        channel: encoding["scale"]
        for layer in spec["layer"]
        for channel, encoding in layer["encoding"].items()
        if channel in {"color", "shape", "strokeDash"} and "scale" in encoding
    }


Stages = list[tuple[str, int]]


def staged(stages: dict[str, Stages], panels: int = 1) -> Chart:
    """The learning curves of arms with these stages, at each of some settings."""
    found: dict[str, Any] = {**runs_report(), "contrasts": [], "arms": []}
    for field in fields(Topics):
        if isinstance(found.get(field.name), list):
            found[field.name] = []
    found["pooled"]["verdict"]["difference"] = None
    found["curves"] = [
        {
            **curve,
            "epochs": str(panel) if panels > 1 else None,
            "stages": [{"name": n, "first_step": s} for n, s in stages.get(curve["arm"], [])],
        }
        for curve in runs_report()["curves"]
        for panel in range(panels)
    ]
    (chart,) = charts(found)
    return chart


def names_of_stages(chart: Chart) -> list[tuple[str, float, float, float]]:
    """The names as they are drawn: text, left and right end, and height."""
    place = r'text-anchor="(start|end)" transform="translate\(([-\d.]+),([-\d.]+)\)"'
    pattern = rf"<text[^>]*{place}[^>]*>([^<]*)"
    wanted = {row["label"] for row in _values(chart.spec) if "label" in row}
    found = []
    for anchor, x, y, text in re.findall(pattern, svg(chart.spec)):
        name = html.unescape(text)
        if name in wanted or name.endswith("…"):
            ends = [float(x), float(x) + 6 * len(name) * (1 if anchor == "start" else -1)]
            found.append((name, *sorted(ends), float(y)))
    return list(dict.fromkeys(found))


THREE: Stages = [("router", 1), ("schemas", 181), ("joint", 361)]


@pytest.mark.parametrize(
    ("stages", "panels"),
    [
        ({"schemabank": THREE, ARMS[2]: [("rest", 1), ("first", 181), ("second", 361)]}, 1),
        ({"schemabank": THREE, ARMS[2]: [("rest", 1), ("first", 181), ("second", 361)]}, 2),
        ({"schemabank": [("router with a long name", 1), ("schemas", 30), ("joint", 590)]}, 1),
        (dict.fromkeys(ARMS, THREE), 2),
    ],
)
def test_no_name_of_a_stage_lies_upon_another(stages: dict[str, Stages], panels: int) -> None:
    names = names_of_stages(staged(stages, panels))
    assert names
    for at, (text, left, right, y) in enumerate(names):
        for other, start, end, height in names[at + 1 :]:
            apart = abs(y - height) >= 12 or right <= start or end <= left
            assert apart or text == other, (text, other)


def test_names_of_stages_name_their_arm_where_arms_differ() -> None:
    texts = {name for name, *_ in names_of_stages(staged(dict.fromkeys(ARMS, THREE)))}
    assert texts == {"router", "schemas", "joint"}
    apart = staged({"schemabank": THREE, "lora": [("rest", 1), ("all", 181)]})
    texts = {name for name, *_ in names_of_stages(apart)}
    assert texts >= {"router (schemabank)", "rest (lora)", "all (lora)"}
    assert "names of stages" not in apart.caption


def test_curves_begin_below_the_names_and_what_has_no_room_is_said() -> None:
    chart = staged({"schemabank": [(f"a very long stage {n}", 1 + n) for n in range(12)]})
    names = names_of_stages(chart)
    assert 0 < len(names) < 12
    assert f"{len(names)} of 12 names of stages are drawn." in chart.caption
    scales = [layer["encoding"].get("y", {}).get("scale", {}) for layer in chart.spec["layer"]]
    top = min(scale["range"][1] for scale in scales if "range" in scale)
    assert max(y for *_, y in names) < top


@pytest.mark.parametrize("name", ['a "b"', "a\\", '\\" + x + "', "a\nb", "'", "${x}"])
def test_a_field_of_any_name_is_drawn_and_its_title_ends_no_expression(name: str) -> None:
    cells = [Cell("0", "one", 0.5, "layer 1"), Cell("1", "one", 0.5, "layer 1")]
    spec = heat_map(cells, x_title="schema", y_title=name, value_title="share", title=name)
    assert svg(spec).startswith("<svg")
    titles = [part["title"] for part in drawable(spec)["spec"]["layer"][0]["encoding"]["tooltip"]]
    assert not set('\\"\n') & set("".join(titles))
