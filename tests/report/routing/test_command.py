import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from schemabank.common.errors import InputError
from schemabank.config.file import load_experiment
from schemabank.report.command import Question, report
from schemabank.report.routing.command import route
from schemabank.report.routing.report import tables
from schemabank.report.routing.routed import RoutingQuestion
from schemabank.runs.experiment import run_experiment
from tinyruns import Finished, Notes, snapshot

pytestmark = pytest.mark.usefixtures("gsm8k")
FILES = {"routing.json", "routing.md", "usage.svg", "usage.png"}


def routed(
    folder: Path, out: Path | None, *overrides: str, **question: object
) -> tuple[Path, dict[str, Any], list[str]]:
    notes = Notes()
    asked = RoutingQuestion(**question)  # type: ignore[arg-type]
    place, report = route(folder, asked, overrides, out, notes)
    return place, dict(report), notes.lines


@pytest.fixture
def own(finished: Finished, tmp_path: Path) -> Path:
    """A copy of the finished run, to write into."""
    return Path(shutil.copytree(finished.schemabank.folder, tmp_path / "run"))


def test_every_state_is_measured_on_the_same_examples(finished: Finished, tmp_path: Path) -> None:
    folder = finished.schemabank.folder
    place, report, lines = routed(folder, tmp_path / "out", split="train", limit=12)
    assert {p.name for p in place.iterdir()} == FILES
    assert report == json.loads((place / "routing.json").read_text())
    assert report["states"] == ["start", "1-router", "2-schemas", "end"]
    assert lines == [f"route {state}: 12" for state in report["states"]]
    assert report["run"] == folder.name
    assert (report["split"], report["num_examples"]) == ("train", 12)
    layers = {(row["state"], row["layer"]): row for row in report["layers"]}
    assert len(layers) == 4 * 2
    assert all(sum(row["usage"]) == pytest.approx(1) for row in layers.values())
    first = min(layer for _, layer in layers)
    assert layers["start", first]["changed"] is None
    assert layers["1-router", first]["changed"] > 0


def test_stage_1_teaches_the_tags(finished: Finished, tmp_path: Path) -> None:
    _, report, _ = routed(finished.schemabank.folder, tmp_path / "out", split="train", limit=20)
    agreement = {
        state: [
            row["tag_agreement"] - row["tag_agreement_by_chance"]
            for row in report["layers"]
            if row["state"] == state
        ]
        for state in report["states"]
    }
    for before, after in zip(agreement["start"], agreement["1-router"], strict=True):
        assert after > before + 0.03
    assert report["tags"] == 2


def test_what_is_said_to_have_no_effect_has_none(finished: Finished, tmp_path: Path) -> None:
    asked = ["task.stop=[a]", "task.metric=f1", "task.train_limit=5", "task.end_token=false"]
    asked += ["task.max_length=50", "task.completion_only_loss=false"]
    folder = finished.schemabank.folder
    plain, _, _ = routed(folder, tmp_path / "plain", limit=4)
    place, _, lines = routed(folder, tmp_path / "out", *asked, limit=4)
    assert sum(line.startswith("no effect") for line in lines) == 3
    assert (place / "routing.json").read_bytes() == (plain / "routing.json").read_bytes()


def test_columns_meanings_and_pages(own: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "test"):
        rows = [
            {"question": f"{a}+1=?", "answer": str(a + 1), "parity": str(a % 2), "way": str(a % 3)}
            for a in range(40 if split == "train" else 24)
        ]
        if split == "test":
            rows = [{**row, "question": f"1+{row['question']}"} for row in rows]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    settings = ["task.name=records", f"task.records.path={data}", "task.max_length=96"]
    place, report, _ = routed(
        own, tmp_path / "out", *settings, fields=("parity",), meaning="parity", wording="way"
    )
    assert {p.name for p in place.iterdir()} == FILES | {
        f"by-1-parity-{place}.{kind}"
        for place in ("prompt", "answer", "target")
        for kind in ("svg", "png")
    }
    places = {"prompt", "answer", "target"}
    found = {(row["field"], row["place"]) for row in report["information"]}
    assert found == {("parity", name) for name in places}
    assert len(report["reuse"]) == len(places) * 2
    titles = [title for title, _, _ in tables(report)]
    assert len(titles) == 3
    page = (place / "routing.md").read_text()
    assert "](by-1-parity-answer.svg)" in page
    svg = (place / "usage.svg").read_text()
    assert "prefers-color-scheme:dark" in svg
    assert "currentColor" in svg
    assert (place / "usage.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_question_gives_the_same_bytes_and_is_answered_once(own: Path) -> None:
    place, report, _ = routed(own, None, limit=3)
    assert place.parent == own / "routing"
    before = snapshot(own)
    again, found, lines = routed(own, None, limit=3)
    assert (again, found) == (place, report)
    assert lines == [f"reused: {place} (same question, finished)"]
    assert snapshot(own) == before
    other, _, _ = routed(own, own.parent / "elsewhere", limit=3)
    for path in place.iterdir():
        assert (other / path.name).read_bytes() == path.read_bytes()
    assert routed(own, None, limit=4)[0] != place


def test_an_analysis_that_did_not_know_what_examples_were_drawn_with_is_not_used_again(
    own: Path,
) -> None:
    conditional = ("task.name=conditional",)
    place, found, _ = routed(own, None, *conditional, limit=3)
    assert 1 <= found["num_clusters"] <= found["num_examples"]
    assert routed(own, None, *conditional, limit=3)[2][-1].startswith("reused: ")
    older = {name: value for name, value in found.items() if name != "num_clusters"}
    (place / "routing.json").write_text(json.dumps(older))
    with pytest.raises(InputError, match="is of an older version, which shuffled examples of cond"):
        routed(own, None, *conditional, limit=3)
    assert routed(own, None, limit=3)[1]["num_clusters"] is None


@pytest.mark.parametrize("damage", [{}, {"layers": 3}, {"inputs": None}, {"inputs": {"model": 3}}])
def test_a_damaged_analysis_is_named_by_both_that_read_it(
    damage: dict[str, object], finished: Finished, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished.out, tmp_path / "runs"))
    run = out / finished.schemabank.folder.name
    place, whole, _ = routed(run, None, limit=3)
    (place / "routing.json").write_text(json.dumps(whole | damage if damage else {}))
    message = f"{str(place / 'routing.json')!r} lacks a usable "
    with pytest.raises(InputError, match=re.escape(message)):
        routed(run, None, limit=3)
    with pytest.raises(InputError, match=re.escape(message)):
        report(out, Question(treatment="schemabank", control="lora"))


def test_without_kept_stages_start_and_end_are_shown(own: Path, tmp_path: Path) -> None:
    shutil.rmtree(own / "stages" / "2-schemas")
    _, report, lines = routed(own, tmp_path / "out", limit=3)
    assert report["states"] == ["start", "1-router", "end"]
    assert lines[0] == (
        "no weights were kept at the end of 2-schemas, so changes there are not shown: "
        "engine.keep_stages keeps them, unless a stage took no step"
    )


@pytest.mark.parametrize("tagger", ["random", "none", "cluster", "hash"])
def test_tags_that_are_not_the_examples_own_are_not_compared(
    tagger: str, finished: Finished, tmp_path: Path
) -> None:
    settings = ["arm=schemabank", f"tags.tagger={tagger}", "tags.delivery=loss"]
    (outcome,) = run_experiment(
        load_experiment(finished.config, settings), tmp_path / "runs", Notes()
    )
    _, report, _ = routed(outcome.folder, tmp_path / "out", limit=3)
    assert tagger in report["tags"]
    assert "tag_agreement" not in report["layers"][0]
    assert report["tags"] in (tmp_path / "out" / "routing.md").read_text()
    if tagger in {"cluster", "hash"}:
        _, report, _ = routed(outcome.folder, tmp_path / "train", split="train", limit=20)
        best = max(r["tag_agreement"] - r["tag_agreement_by_chance"] for r in report["layers"])
        assert best > 0.05


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"fields": ("colour",)}, r"'gsm8k/test/0' has no field 'colour': allowed are its fie"),
        ({"meaning": "colour"}, r"no field 'colour': allowed are its fields, operations"),
        ({"wording": "colour"}, r"--wording is 'colour', but nothing says what examples mean"),
        ({"meaning": "operations", "wording": "colour"}, r"no field 'colour'"),
        ({"split": "validation"}, r"the split 'validation' of gsm8k holds 0 items"),
    ],
)
def test_bad_questions_are_named_and_nothing_is_written(
    question: dict[str, object], message: str, finished: Finished, tmp_path: Path
) -> None:
    settings = ["task.gsm8k.validation_ratio=0"]
    with pytest.raises(InputError, match=message):
        routed(finished.schemabank.folder, tmp_path / "out", *settings, **question)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arm", ["base", "lora"])
def test_a_run_without_a_bank_has_no_routing(arm: str, finished: Finished, tmp_path: Path) -> None:
    folder = getattr(finished, arm).folder
    with pytest.raises(InputError, match="holds no bank"):
        routed(folder, tmp_path / "out")


@pytest.mark.parametrize("setting", ["seed=99", "arm=base", "preset=paper", "eval.limit=2"])
def test_a_setting_that_plays_no_part_is_refused(
    setting: str, finished: Finished, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=rf"--set '{setting}': .* is a setting of"):
        routed(finished.schemabank.folder, tmp_path / "out", setting)
    assert not list(tmp_path.iterdir())


def test_a_setting_without_effect_is_said(own: Path, tmp_path: Path) -> None:
    _, _, lines = routed(own, tmp_path / "out", "task.max_length=96", limit=3)
    assert lines[0].startswith("no effect: task.max_length (texts are routed from end to end")


def test_nothing_is_overwritten(finished: Finished, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists and is not overwritten"):
        routed(finished.schemabank.folder, tmp_path)
