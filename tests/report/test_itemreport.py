"""``schemabank report`` on results of other tools, from the command line to the pages."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evaluations import inspect_log, write_inspect, write_lm_eval
from schemabank import stats
from schemabank.common.errors import InputError
from schemabank.report.command import Question
from schemabank.report.command import report as examine

Program = Callable[..., tuple[int, str, str]]
TASKS = {"gsm8k": 60, "arc": 90}


@pytest.fixture
def schemabank(program: Callable[[str], Program]) -> Program:
    return program("report")


def scores(seed: int, num: int, share: float) -> list[float]:
    return (np.random.default_rng(seed).random(num) < share).astype(float).tolist()


@pytest.fixture
def evals(tmp_path: Path) -> Path:
    """Five seeds of two arms, and the base model, on two tasks."""
    folder = tmp_path / "evals"
    for arm, share in (("lora", 0.3), ("new", 0.6)):
        for seed in range(1, 6):
            own = {t: scores(10 * seed + n, n, share) for t, n in TASKS.items()}
            write_lm_eval(folder / f"{arm}-seed{seed}" / "org__model", own)
    write_lm_eval(folder / "base", {t: scores(7, n, 0.1) for t, n in TASKS.items()})
    return folder


@pytest.fixture
def single(tmp_path: Path) -> Path:
    for arm, share in (("lora", 0.3), ("new", 0.6)):
        write_lm_eval(tmp_path / "single" / arm, {"gsm8k": scores(int(10 * share), 200, share)})
    return tmp_path / "single"


class TestTasks:
    def test_a_reference_is_of_its_own_task(self, schemabank: Program, tmp_path: Path) -> None:
        """The base is good at one task: an arm that is above it at both is not below it at one."""
        for seed in range(1, 6):
            for arm in ("lora", "new"):
                hard, easy = scores(seed, 80, 0.3), scores(seed + 50, 80, 0.97)
                write_lm_eval(tmp_path / f"{arm}-seed{seed}", {"hard": hard, "easy": easy})
            write_lm_eval(tmp_path / f"none-seed{seed}", {"hard": [0.0] * 80, "easy": [0.0] * 80})
        write_lm_eval(tmp_path / "base", {"hard": [0.0] * 80, "easy": scores(9, 80, 0.6)})
        code, out, _ = schemabank(tmp_path, "--control", "lora", "--treatment", "new")
        assert code == 0
        told = [line for line in out.splitlines() if "-reference:" in line]
        assert all("reference: none is" in line for line in told), "and that arm is below at one"
        assert "below-reference: none is below 'base' at task easy" in out
        assert "identical-rows" not in out, "a task may be too hard for every seed"

    def test_seeds_that_share_no_task(self, schemabank: Program, tmp_path: Path) -> None:
        for seed, task in ((1, "arc"), (2, "gsm8k")):
            for arm in ("lora", "new"):
                write_lm_eval(tmp_path / f"{arm}-seed{seed}", {task: scores(seed, 20, 0.5)})
        code, _, err = schemabank(tmp_path)
        assert code == 2
        assert "has all of the tasks arc, gsm8k: add the missing evaluations" in err
        code, _, err = schemabank(tmp_path, "--primary", "mmlu")
        assert "have 'arc', 'gsm8k' as tasks: name one of these" in err
        write_lm_eval(tmp_path / "third-seed1", {"mmlu": scores(3, 20, 0.5)})
        code, _, err = schemabank(tmp_path, "--treatment", "third", "--control", "lora")
        assert "have no task in common: evaluate both on one" in err

    def test_each_task_and_their_mean(self, schemabank: Program, evals: Path) -> None:
        code, out, err = schemabank(evals, "--json")
        assert (code, err) == (0, "")
        found = json.loads(out)
        assert (found["treatment"], found["control"]) == ("new", "lora")
        assert (found["setting"], found["metric"]) == ("tasks", "exact_match,strict-match")
        assert {c["epochs"] for c in found["contrasts"]} == set(TASKS)
        each = [c["crossed"]["difference"] for c in found["contrasts"]]
        pooled = found["pooled"]["crossed"]["difference"]
        assert pooled["mean"] == pytest.approx(np.mean([own["mean"] for own in each]))
        assert pooled["num_strata"] == 2
        assert found["primary"]["verdict"]["interval"] == pooled["interval"]
        assert found["primary"]["contrast"] == "mean over tasks"
        raw = [own["p"] for own in each]
        assert [c["crossed"]["p_holm"] for c in found["contrasts"]] == stats.holm(raw)
        assert found["references"][0]["arm"] == "base"
        assert found["items"]["num_items"] == sum(TASKS.values())

    def test_nothing_is_said_of_peaks_over_tasks(self, schemabank: Program, evals: Path) -> None:
        _, out, _ = schemabank(evals)
        assert "peak" not in out
        assert " task  " in out
        assert "epochs" not in out

    def test_one_task_may_be_primary(self, evals: Path) -> None:
        found = examine(evals, Question(primary="arc")).comparison
        assert found.primary.contrast == "task arc"
        assert found.primary_contrast.setting == "arc"
        with pytest.raises(InputError, match="--primary 'x'"):
            examine(evals, Question(primary="x"))

    def test_the_base_model_may_be_the_control(self, evals: Path) -> None:
        found = examine(evals, Question(treatment="new", control="base")).comparison
        assert found.primary.test == "crossed"
        assert found.primary.verdict.outcome == "better"
        with pytest.raises(InputError, match="--treatment 'base' has one run without a seed"):
            examine(evals, Question(treatment="base", control="new"))

    def test_all_pages_are_written(self, schemabank: Program, evals: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        assert schemabank(evals, "--out", out)[0] == 0
        assert {"report.html", "report.md", "report.json"} <= {p.name for p in out.iterdir()}
        shown = (out / "report.md").read_text()
        assert "What is compared: score: exact_match,strict-match." in shown
        assert "mean over tasks" in shown

    def test_a_task_of_one_arm_alone_is_named(self, evals: Path) -> None:
        for folder in (evals / "extra", evals / "more"):
            folder.mkdir()
        write_lm_eval(evals / "new-seed1" / "other", {"svamp": [1.0, 0.0]})
        found = {w.id: w for w in examine(evals, Question()).warnings}
        assert "do not share them: svamp." in found["excluded-tasks"].sentence


class TestSingleRuns:
    def test_the_verdict_is_over_items_and_says_so(self, schemabank: Program, single: Path) -> None:
        code, out, _ = schemabank(single, "--margin", "5")
        assert code == 0
        assert (
            "verdict: new against lora, task gsm8k (over items alone, of these very runs, "
            "default): Better: "
        ) in out
        assert "- single-runs: Each arm has a single run" in out
        assert "few-seeds" not in out
        assert "Margin (--margin): Not worse by more than 5.0 points" in out
        found = examine(single, Question()).comparison
        own = found.primary_contrast.own.difference
        a, b = (scores(int(10 * x), 200, x) for x in (0.6, 0.3))
        expected = stats.difference_over_items([stats.Stratum([a], [b])])
        assert own == expected

    def test_runs_that_hardly_differ_give_no_verdict(
        self, schemabank: Program, tmp_path: Path
    ) -> None:
        own = scores(1, 50, 0.5)
        for arm, first in (("lora", own[0]), ("new", 1 - own[0])):
            write_lm_eval(tmp_path / "e" / arm, {"gsm8k": [first, *own[1:]]})
        code, out, _ = schemabank(tmp_path / "e", "--out", tmp_path / "out")
        assert code == 0
        why = "the runs differ on 1 items or clusters, too few: a verdict over items takes 6."
        assert why in out
        assert f"No verdict: {why}" in (tmp_path / "out" / "report.md").read_text()
        assert schemabank(tmp_path / "e", "--fail-if-worse")[0] == 0, "as they are not worse"
        assert schemabank(tmp_path / "e", "--fail-if-worse", "--margin", "1")[0] == 1

    def test_a_gate_that_one_different_item_cannot_close(
        self, schemabank: Program, tmp_path: Path
    ) -> None:
        for arm in ("lora", "new"):
            write_lm_eval(tmp_path / arm, {"gsm8k": [1.0, 0.0, 1.0, 0.0, 1.0]})
        code, _, err = schemabank(tmp_path, "--fail-if-worse")
        assert code == 2, "five items can never show that an arm is worse"
        assert "so nothing tells whether it is worse" in err

    def test_items_that_all_differ_alike_are_told_so(
        self, schemabank: Program, tmp_path: Path
    ) -> None:
        for arm, score in (("lora", 1.0), ("new", 0.0)):
            write_lm_eval(tmp_path / arm, {"gsm8k": [score] * 20})
        code, _, err = schemabank(tmp_path, "--fail-if-worse")
        assert code == 2
        assert "items that all differ by the same amount cannot tell it from chance" in err

    def test_a_gate_for_two_models(self, schemabank: Program, single: Path) -> None:
        turned = ("--treatment", "lora", "--control", "new", "--fail-if-worse")
        code, _, err = schemabank(single, *turned)
        assert code == 1
        assert err.startswith("worse: lora against new: Worse: -")
        assert schemabank(single, "--fail-if-worse")[0] == 0

    def test_clusters_of_items_widen_the_interval(self, tmp_path: Path) -> None:
        """Topics of three items whose answers are alike."""
        for arm, share in (("lora", 0.3), ("new", 0.5)):
            own = np.repeat(scores(int(10 * share), 40, share), 3).tolist()
            write_lm_eval(tmp_path / arm, {"gsm8k": own})
        alone, together = (
            examine(tmp_path, Question(cluster_by=field)).comparison.primary_contrast.own.difference
            for field in (None, "topic")
        )
        assert alone.standard_error is not None
        assert together.standard_error == pytest.approx(alone.standard_error * 3**0.5, rel=0.02)
        assert together.mean == alone.mean


class TestArms:
    def test_arms_and_seeds_are_named(self, schemabank: Program, single: Path) -> None:
        code, out, _ = schemabank(
            "--arm", f"ours={single / 'new'}", "--arm", f"control:1={single / 'lora'}", "--json"
        )
        found = json.loads(out)
        assert code == 0
        assert found["table"]["name"] == "ours, control"
        code, out, _ = schemabank(
            "--arm", f"ours:1={single / 'new'}", "--arm", f"control:1={single / 'lora'}", "--json"
        )
        found = json.loads(out)
        assert (found["treatment"], found["control"]) == ("ours", "control")

    def test_inspect(self, schemabank: Program, tmp_path: Path) -> None:
        for arm, share in (("lora", 0.3), ("new", 0.6)):
            own = ["C" if x else "I" for x in scores(int(10 * share), 100, share)]
            write_inspect(tmp_path / "logs" / f"{arm}.eval", inspect_log(own, model=f"hf/{arm}"))
        options = ("--treatment", "hf/new", "--control", "hf/lora", "--json")
        code, out, _ = schemabank(tmp_path / "logs", *options)
        found = json.loads(out)
        assert code == 0
        assert found["primary"]["verdict"]["outcome"] == "better"
        assert found["metric"] == "match"

    def test_a_table_of_items(self, schemabank: Program, tmp_path: Path) -> None:
        path = tmp_path / "items.csv"
        rows = [
            f"{arm},{seed},{n},{own:.0f},{n // 5}"
            for arm, share in (("lora", 0.3), ("new", 0.6))
            for seed in range(4)
            for n, own in enumerate(scores(seed, 50, share))
        ]
        path.write_text("\n".join(["arm,seed,item,score,cluster", *rows, ""]))
        code, out, _ = schemabank(path, "--json")
        found = json.loads(out)
        assert code == 0
        assert found["primary"]["test"] == "crossed"
        assert found["items"]["crossed"]["num_clusters"] == 10

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--group", "all"], "--group 'all': not allowed with results of other tools"),
            (["--claims", "c.csv"], "--claims 'c.csv': not allowed with results of other tools"),
            (["--metric", "f1"], "has no metric f1: allowed are those of which more is better"),
            (["--cluster-by", "x"], "has None as its 'x'"),
            (["--control", "x"], "arm 'x' has no runs"),
        ],
    )
    def test_what_cannot_be_asked(
        self, schemabank: Program, single: Path, options: list[str], words: str
    ) -> None:
        code, out, err = schemabank(single, *options)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert words in err

    def test_options_of_other_tools_are_refused_elsewhere(
        self, schemabank: Program, runs: Path
    ) -> None:
        for option in ("--metric", "--cluster-by"):
            code, _, err = schemabank(runs, option, "x")
            assert code == 2
            assert f"{option} 'x': not allowed with " in err
        assert schemabank()[0] == 2
        assert schemabank(runs, "--arm", f"a={runs}")[0] == 2


def test_unlike_evaluations_are_named(tmp_path: Path) -> None:
    own = scores(1, 50, 0.5)
    write_lm_eval(tmp_path / "lora", {"gsm8k": own})
    write_lm_eval(tmp_path / "new", {"gsm8k": own[::-1]}, **{"n-shot": {"gsm8k": 0}})
    found = {w.id: w for w in examine(tmp_path, Question()).warnings}
    assert "(gsm8k: n-shot is 0 or 5)" in found["other-evaluation"].sentence
    write_lm_eval(tmp_path / "new", {"gsm8k": own[::-1]})
    assert "other-evaluation" not in {w.id for w in examine(tmp_path, Question()).warnings}
