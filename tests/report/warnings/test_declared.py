"""Which part and which setting a verdict rests on: as declared, or as asked later."""

import shutil
from pathlib import Path

import pytest

from schemabank.common.errors import InputError
from schemabank.report.planning import Wanted, plan_comparison
from schemabank.report.reading.question import Question
from schemabank.runs.folder import SUITE
from synthetic import change, examined, finding, ids, in_parts, rows

ARMS = {"treatment": "arm 0", "control": "arm 1"}
EPOCHS = {"train.num_train_epochs": 2}


def test_a_declared_group_is_compared(runs: Path) -> None:
    in_parts(runs, "seen", "held out")
    change(runs / SUITE, contrast={**ARMS, "group": "held out"})
    found, _ = examined(runs)
    assert found["group"] == "held out"
    assert found["primary"] == examined(runs, group="held out")[0]["primary"]
    assert "group-not-declared" not in ids(runs)
    assert "group-not-declared" not in ids(runs, group="held out")
    other = finding(runs, "group-not-declared", group="seen")
    assert other["numbers"] == {"declared": "held out", "group": "seen"}
    assert "but 'held out' was declared before the runs" in other["sentence"]


def test_a_declared_group_belongs_to_its_contrast(runs: Path) -> None:
    """For other arms nothing was declared, which stands for the first."""
    in_parts(runs, "seen", "held out")
    change(runs / SUITE, contrast={**ARMS, "group": "held out"})
    for others in ({"control": "arm 2"}, {"treatment": "arm 1", "control": "arm 0"}):
        assert examined(runs, **others)[0]["group"] == "seen"
        assert "group-not-declared" not in ids(runs, **others, group="seen")
        other = finding(runs, "group-not-declared", **others, group="held out")
        assert other["numbers"] == {"declared": None, "group": "held out"}
        assert (
            "none was declared for these arms before the runs, so that the first counts"
            in other["sentence"]
        )
    pilot = Question(control="arm 2")
    assert plan_comparison(runs, pilot, Wanted()).group == "seen"
    assert plan_comparison(runs, Question(), Wanted()).group == "held out"


def test_without_a_declared_group_the_first_is_compared(runs: Path) -> None:
    in_parts(runs, "seen", "held out")
    assert examined(runs)[0]["group"] == "seen"
    assert "group-not-declared" not in ids(runs, group="seen")
    other = finding(runs, "group-not-declared", group="held out")
    assert (
        "none was declared for these arms before the runs, so that the first counts"
        in other["sentence"]
    )


def test_a_declared_group_that_is_not_there_is_named(runs: Path) -> None:
    change(runs / SUITE, contrast={**ARMS, "group": "held out"})
    message = r"contrast\.group 'held out' of the suite: the runs share 'all': name one"
    with pytest.raises(InputError, match=message):
        examined(runs)


def test_the_verdict_rests_on_a_declared_setting(runs: Path) -> None:
    change(runs / SUITE, contrast={**ARMS, "setting": EPOCHS})
    primary = examined(runs)[0]["primary"]
    asked = examined(runs, primary="2")[0]["primary"]
    assert primary["chosen_by"] == "declared in the suite"
    assert {**primary, "chosen_by": "--primary"} == asked
    assert not {"setting-not-declared"} & {*ids(runs), *ids(runs, primary="2")}
    other = finding(runs, "setting-not-declared", primary="1")
    assert other["numbers"] == {"declared": "2", "setting": "1"}


def test_a_declared_setting_belongs_to_its_contrast(runs: Path) -> None:
    change(runs / SUITE, contrast={**ARMS, "setting": EPOCHS})
    found = examined(runs, control="arm 2")[0]["primary"]
    assert found["contrast"] == "mean over train.num_train_epochs"
    other = finding(runs, "setting-not-declared", control="arm 2", primary="2")
    assert other["numbers"] == {"declared": None, "setting": "2"}


def test_a_setting_that_was_not_declared_is_named(runs: Path) -> None:
    assert "setting-not-declared" not in ids(runs)
    other = finding(runs, "setting-not-declared", primary="2")
    assert "so that the mean over all settings counts: it may have been chosen" in other["sentence"]


def test_a_declared_setting_without_a_finished_run_is_named(runs: Path) -> None:
    for row in rows(runs, "arm 0", 2):
        shutil.rmtree(runs / row["run_id"])
    change(runs / SUITE, contrast={**ARMS, "setting": EPOCHS})
    message = r"contrast\.setting '2' of the suite has no finished run of 'arm 0' yet: wait for one"
    with pytest.raises(InputError, match=message):
        examined(runs)
    assert examined(runs, primary="1")[0]["primary"]["chosen_by"] == "--primary"
