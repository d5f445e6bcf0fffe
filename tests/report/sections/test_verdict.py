"""All places of a report that say how a comparison came out."""

from pathlib import Path

from reports import html_page, page, text
from synthetic import GENERATOR, ITEMS, SEEDS, Json, examined, in_parts

CALLED = ("better", "worse", "no difference detected")


def outcomes(report: Json) -> list[str]:
    """Every outcome that a report's contents hold."""
    places = [report["primary"]["verdict"], report["primary"]["over_seeds"]]
    places += [report["pooled"]["verdict"], *(c["verdict"] for c in report["contrasts"])]
    return [place["outcome"] for place in [*places, *report["groups"], *report["others"]]]


def test_two_seeds_give_no_verdict_anywhere(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    GENERATOR.write_runs(folder, num_seeds=2, num_items=48, full_seeds=2)
    in_parts(folder, "seen", "held out")
    found, drawn = examined(folder)
    assert set(outcomes(found)) == {"no verdict"}
    assert found["items"]["crossed"]["interval"] is not None
    needed = "2 seeds are too few, a verdict takes 4."
    headline = "Fewer than 4 seeds give no verdict."
    assert needed in text(found)
    for shown in (page(found), html_page(found, drawn)):
        assert needed in shown
        assert headline in shown
        assert not any(f">{word}<" in shown or f"| {word} |" in shown for word in CALLED)


def test_all_places_with_a_verdict_agree(runs: Path) -> None:
    """Each says what the rule makes of its own figures, and texts say what the JSON says."""
    in_parts(runs, "seen", "held out")
    found, drawn = examined(runs)
    own = [found["pooled"], *found["contrasts"]]
    for contrast in own:
        shown = contrast["crossed"]
        p = shown["difference"]["p"] if contrast["epochs"] is None else shown["p_holm"]
        assert contrast["test"] == "crossed"
        assert contrast["verdict"]["p"] == p
        assert contrast["verdict"]["interval"] == shown["difference"]["interval"]
    assert found["primary"]["verdict"] == found["pooled"]["verdict"]
    places = [c["verdict"] | {"p_holm": c["verdict"]["p"]} for c in own]
    for place in [*places, *found["groups"], *found["others"]]:
        low, high = place["interval"]
        detected = place["p_holm"] <= 0.05 and not low <= 0 <= high
        expected = ("better" if low > 0 else "worse") if detected else "no difference detected"
        assert place["outcome"] == expected
        assert f"{100 * low:+.2f} to {100 * high:+.2f}" in place.get("sentence", "")
    verdict = found["primary"]["verdict"]
    for shown in (page(found), html_page(found, drawn), text(found)):
        assert verdict["sentence"] in shown.replace("&#x27;", "'")
    first = page(found).split("**")[1]
    assert first.lower().startswith(verdict["outcome"])
    assert first.endswith(f"{SEEDS} seeds and {ITEMS // 2} items, paired.")
