from pathlib import Path
from typing import Any

from pages import ARMS, runs_report, table_report
from reports import html_page, page, report, tables, text
from schemabank.report.command import Question

STEERING = "\x1b[2J\x1b]0;title\x07 \x9b1A \x00 \x7f \r\n \u202e \u2066 \ud800"
KEPT = "[2J", "]0;title"


def test_what_seeds_alone_say_stands_below_the_verdict() -> None:
    found = runs_report()
    words = "Other seeds on these very items: Better."
    assert text(found).splitlines()[1:3] == [words, ""]
    assert f"\n\n{words}\n" in page(found)
    found["primary"]["over_seeds"]["outcome"] = "no difference detected"
    other = f"Not the same as the verdict. {words}"
    assert text(found).splitlines()[1] == other
    assert f"\n\n{other}\n" in page(found)
    assert "very items" not in text(table_report())


def test_the_compared_part_is_named_where_the_adjusted_verdict_is_another() -> None:
    found = runs_report()
    found["group"] = found["groups"][1]["group"]
    words = (
        "Not the same as the verdict. As one of 2 parts of the split, adjusted by Holm: No "
        "difference detected."
    )
    assert words in text(found)
    assert words in page(found)
    found["group"] = found["groups"][0]["group"]
    assert "As one of" not in text(found)


def test_holms_family_is_named_where_there_is_one() -> None:
    found = table_report()
    words = "Holm's adjustment covers the paired p-values of the 5 settings"
    assert words in page(found)
    found["primary"]["holm_family"] = [""]
    assert "Holm's adjustment covers" not in page(found)


def test_no_text_steers_the_terminal() -> None:
    found = runs_report()
    found["treatment"] = f"new {STEERING}"
    found["primary"]["verdict"]["sentence"] += STEERING
    found["primary"]["over_seeds"]["sentence"] += STEERING
    found["references"][0]["arm"] = f"reference {STEERING}"
    for row in (*found["arms"], *found["others"], *found["rates"], *found["warnings"]):
        row |= {key: row[key] + STEERING for key in ("arm", "sentence") if key in row}
    found["groups"][0]["group"] = STEERING
    claims = [{**claim, "where": STEERING} for claim in found["claims"]]
    shown = text({**found, "claims": claims})
    cells = [cell for _, _, rows in tables(found) for row in rows for cell in row]
    for written in (shown.replace("\n", ""), *cells):
        assert not {char for char in written if char < " " or "\x7f" <= char < "\xa0"}
        assert not {"\u202e", "\u2066", "\ud800"} & set(written)
    assert all(words in shown and any(words in cell for cell in cells) for words in KEPT)
    assert shown.encode()


def test_long_names_are_clipped_in_tables_alone(tmp_path: Path) -> None:
    names = [f"{'x' * 100} rank {rank}" for rank in (8, 16)]
    path = tmp_path / "t.csv"
    rows = [f"{name},,{seed},0.{seed}" for name in (*names, "lora") for seed in (1, 2)]
    path.write_text("\n".join(["arm,epochs,seed,score", *rows, ""]))
    found = report(path, Question(treatment=names[0], control="lora"))
    assert _arms(found) == [*(f"{'x' * 39}…{name[-20:]}" for name in names), "lora"]
    assert found["treatment"] == names[0]
    assert names[0] in text(found)


def test_names_that_fit_are_whole() -> None:
    found = runs_report()
    assert _arms(found) == [*ARMS[1::-1], found["references"][0]["arm"]]
    found["references"][0]["arm"] = "y" * 60
    assert _arms(found)[-1] == "y" * 60


def _arms(found: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(row[0] for row in tables(found)[0][2]))


def test_a_column_that_is_empty_in_all_rows_is_in_no_table(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = [f"{arm},,{seed},0.{seed}" for arm in ("new", "lora") for seed in (1, 2, 4)]
    path.write_text("\n".join(["arm,epochs,seed,score", *rows, ""]))
    found = report(path, Question())
    for shown in (page(found), html_page(found, [])):
        assert "epochs" not in shown
    assert "| epochs |" in page(table_report())


def test_a_table_that_is_empty_in_all_cells_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arm,epochs,seed,score\nnew,,1,0\nlora,,1,0\n")
    found = report(path, Question(), tmp_path / "out")
    assert "ratios" not in page(found)
    assert "ratios" not in html_page(found, [])
    assert "effect sizes" in page(table_report())


def test_every_heading_has_something_below_it() -> None:
    for found in (table_report(), runs_report()):
        lines = [line for line in page(found).splitlines() if line]
        pairs = zip(lines, [*lines[1:], "# the end"], strict=True)
        bare = [a for a, b in pairs if a.startswith("## ") and b.startswith(("# ", "## "))]
        assert bare == []
