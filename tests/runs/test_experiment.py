import itertools
import json
import threading
from collections.abc import Callable, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from schemabank.common.errors import InputError
from schemabank.common.failure import Failure
from schemabank.config.file import load_experiment, load_run, run_id
from schemabank.config.settings import ExperimentConfig, RunConfig
from schemabank.engine import lora, loralayers, optimizers
from schemabank.engine.cohort import Cohort
from schemabank.engine.loss import mean_per_slot
from schemabank.engine.programs import Programs
from schemabank.engine.stack import AdapterStack
from schemabank.methods.schemabank import attach
from schemabank.models.basemodel import BaseModel
from schemabank.runs import training
from schemabank.runs.experiment import run_all, run_experiment
from schemabank.runs.loading import loaded_base, loaded_task, resolve_device, resolved
from schemabank.runs.members import Outcome
from schemabank.runs.steplogs import step_of_row
from schemabank.runs.tables import results_tables, skipped_lines
from tinyruns import Finished, Notes, run, snapshot, write_config

# Two runs in a cohort add up in another order than one run alone; Adam stretches the rounding.
SOLO_TOLERANCE = 2e-4


def contents(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_close(folder: Path, other: Path) -> None:
    """Weights, every step's loss and predictions are those of the other folder within rounding."""
    weights = load_file(folder / "adapter" / "adapter_model.safetensors")
    for key, value in load_file(other / "adapter" / "adapter_model.safetensors").items():
        torch.testing.assert_close(weights[key], value, rtol=0, atol=SOLO_TOLERANCE)
    for ours, theirs in zip(
        rows(folder / "metrics.jsonl"), rows(other / "metrics.jsonl"), strict=True
    ):
        assert ours["step"] == theirs["step"]
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=SOLO_TOLERANCE)
    for ours, theirs in zip(
        rows(folder / "predictions.jsonl"), rows(other / "predictions.jsonl"), strict=True
    ):
        for key in ("gold_nll", "gold_nll_with_end"):
            assert ours.pop(key) == pytest.approx(theirs.pop(key), abs=1e-3)
        assert ours == theirs


def test_a_runs_folder_is_laid_out_as_designed(finished: Finished) -> None:
    evaluated = {"config.yaml", "predictions.jsonl", "result.json", "cost.json"}
    evaluated |= {"scores.safetensors"}
    adapter = {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    adapter |= {"inputs.json", "schemabank.yaml"}
    trained = evaluated | {"metrics.jsonl"} | {f"adapter/{name}" for name in adapter}
    assert contents(finished.base.folder) == evaluated
    assert contents(finished.lora.folder) == trained
    bank = {"bank/bank.safetensors"}
    kept = {
        f"stages/{stage}/{name}"
        for stage in ("1-router", "2-schemas")
        for name in bank | {f"adapter/{name}" for name in adapter}
    }
    assert contents(finished.schemabank.folder) == trained | bank | kept
    assert {p.name for p in finished.out.iterdir()} == {
        outcome.folder.name for outcome in (finished.base, finished.lora, finished.schemabank)
    }, "no lock, no temporary folder is left"


def test_a_runs_files_say_what_was_done(finished: Finished) -> None:
    outcome = finished.schemabank
    settings = load_run(outcome.folder / "config.yaml")
    assert outcome.folder.name == run_id(settings)
    assert (settings.arm, settings.seed, settings.model.dtype) == ("schemabank", 42, "float32")
    assert load_run(outcome.folder / "adapter" / "schemabank.yaml") == settings
    steps = rows(outcome.folder / "metrics.jsonl")
    assert [s["stage"] for s in steps] == ["router"] * 5 + ["schemas"] * 6 + ["joint"] * 7
    assert [s["step"] for s in steps] == list(range(18))
    assert steps[-1]["loss"] < steps[0]["loss"]
    result = json.loads((outcome.folder / "result.json").read_text())
    assert result == outcome.result
    assert result["training"]["num_steps"] == len(steps)
    assert result["training"]["num_lora_updates"] == 13
    assert result["training"]["failure"] is None
    predictions = rows(outcome.folder / "predictions.jsonl")
    assert [p["id"] for p in predictions] == [f"gsm8k/test/{i}" for i in range(6)]
    assert predictions[0]["prompt"] == "100+0=?\nThe answer is: "
    assert result["groups"]["all"]["num_items"] == 6
    assert result["groups"]["all"]["gold_nll"] == pytest.approx(
        sum(p["gold_nll"] for p in predictions) / 6
    )


def test_what_a_run_had_come_to_is_kept_at_the_end_of_every_stage(finished: Finished) -> None:
    folder = finished.schemabank.folder
    router, schemas, end = (
        (
            load_file(place / "bank" / "bank.safetensors"),
            load_file(place / "adapter" / "adapter_model.safetensors"),
        )
        for place in (folder / "stages" / "1-router", folder / "stages" / "2-schemas", folder)
    )
    for name, weight in router[0].items():
        untouched = torch.equal(weight, schemas[0][name])
        assert untouched == name.endswith("router"), "stage 2 trains all but the router"
        if "attributes" not in name and "query" not in name:
            assert not torch.equal(schemas[0][name], end[0][name])
    assert all(not weight.any() for name, weight in router[1].items() if "lora_B" in name)
    assert all(weight.any() for name, weight in schemas[1].items() if "lora_B" in name)
    assert any(not torch.equal(w, end[1][name]) for name, w in schemas[1].items())
    card = (folder / "stages" / "1-router" / "adapter" / "README.md").read_text()
    assert "after the stage `router`, not at its end" in card


@pytest.mark.usefixtures("gsm8k")
def test_runs_in_turns_keep_their_stages_as_runs_at_once_do(
    finished: Finished, tmp_path: Path
) -> None:
    seeds = ["arm=schemabank", "seed=[42, 43, 44]"]
    apart, _ = run(finished.config, tmp_path / "apart", *seeds, "engine.slots=1")
    at_once, _ = run(finished.config, tmp_path / "at-once", *seeds, "engine.slots=2")
    for one, other in zip(apart, at_once, strict=True):
        for stage in ("1-router", "2-schemas"):
            ours, theirs = (
                load_file(o.folder / "stages" / stage / "bank" / "bank.safetensors")
                for o in (one, other)
            )
            for name, weight in ours.items():
                # Other seeds' weights are a hundred times as far away.
                torch.testing.assert_close(weight, theirs[name], rtol=0, atol=2e-3)


@pytest.mark.usefixtures("gsm8k")
def test_no_stage_is_kept_where_none_is_wanted(finished: Finished, tmp_path: Path) -> None:
    settings = ["arm=schemabank", "engine.keep_stages=false"]
    (outcome,), _ = run(finished.config, tmp_path, *settings)
    assert not (outcome.folder / "stages").exists()
    assert outcome.folder.name == finished.schemabank.folder.name


def test_training_helped_and_arms_differ(finished: Finished) -> None:
    losses = [
        outcome.result["groups"]["all"]["gold_nll_with_end"]
        for outcome in (finished.base, finished.lora, finished.schemabank)
        if outcome.result is not None
    ]
    assert losses[1] < losses[0] - 0.05
    assert losses[2] < losses[0] - 0.02
    assert losses[1] != losses[2]


def test_the_preflight_shows_what_the_loss_sees(finished: Finished) -> None:
    text = "\n".join(finished.notes)
    assert "no loss on 15 tokens: '0+0=?\\nThe answer is: '" in text
    assert "loss on 16 tokens:  'add 0 and 0\\n#### 0<|end|>'" in text
    assert "last token '<|end|>', the end token" in text
    assert "0 of 23 cut" in text
    assert "% padding" in text
    assert "18 steps, training about" in text
    assert text.count("the adapter gives the same logits in stock PEFT as in its run") == 2


@pytest.mark.usefixtures("gsm8k")
def test_a_second_call_reuses_everything_and_changes_no_byte(finished: Finished) -> None:
    before = snapshot(finished.out)
    outcomes, notes = run(finished.config, finished.out)
    assert snapshot(finished.out) == before
    assert all(outcome.reused for outcome in outcomes)
    first = [finished.base, finished.lora, finished.schemabank]
    assert [o.result for o in outcomes] == [o.result for o in first]
    assert notes == [f"reused: {o.folder} (same configuration, finished)" for o in first]


@pytest.mark.usefixtures("gsm8k")
def test_two_fresh_runs_are_byte_identical(finished: Finished, tmp_path: Path) -> None:
    run(finished.config, tmp_path / "again")
    assert {p.name for p in (tmp_path / "again").iterdir()} == {
        p.name for p in finished.out.iterdir()
    }
    compared = 0
    for path in finished.out.rglob("*"):
        if path.is_file() and path.name != "cost.json":
            again = tmp_path / "again" / path.relative_to(finished.out)
            assert again.read_bytes() == path.read_bytes(), path
            compared += 1
    assert compared == 4 + 10 + 11 + 2 * 6


@pytest.mark.usefixtures("gsm8k")
def test_only_what_is_missing_is_computed(finished: Finished, tmp_path: Path) -> None:
    (first,), _ = run(finished.config, tmp_path, "arm=base")
    before = snapshot(first.folder)
    outcomes, notes = run(finished.config, tmp_path, "arm=[base, lora]")
    assert [o.reused for o in outcomes] == [True, False]
    assert snapshot(first.folder) == before
    assert any(note.startswith("train lora") for note in notes)
    assert not any(note.startswith("evaluate base") for note in notes)


@pytest.mark.usefixtures("gsm8k")
def test_slots_change_no_result_beyond_rounding(finished: Finished, tmp_path: Path) -> None:
    outcomes, notes = run(finished.config, tmp_path, "engine.slots=2")
    assert any("train lora seed 42, schemabank seed 42" in note for note in notes)
    solo = [finished.base, finished.lora, finished.schemabank]
    for outcome, alone in zip(outcomes, solo, strict=True):
        assert outcome.folder.name == alone.folder.name, "engine settings are no identity"
        if alone.folder.name.startswith("base"):
            continue
        assert_close(outcome.folder, alone.folder)


@pytest.mark.usefixtures("gsm8k")
def test_seeds_and_prefixes_make_runs_of_their_own(finished: Finished, tmp_path: Path) -> None:
    overrides = ["arm=[base, schemabank]", "seed=[1, 2]", "tags.delivery=prefix"]
    outcomes, _ = run(finished.config, tmp_path, *overrides, "train.max_steps=4")
    names = [o.folder.name.rpartition("-")[0] for o in outcomes]
    assert names == ["base-seed1", "schemabank-seed1", "schemabank-seed2"]
    first, second = (rows(o.folder / "metrics.jsonl") for o in outcomes[1:])
    assert [r["loss"] for r in first] != [r["loss"] for r in second]


@pytest.mark.usefixtures("gsm8k")
def test_steps_in_which_all_slots_wait_are_no_error(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Cohort.steps
    monkeypatch.setattr(Cohort, "steps", lambda self: chain([[]], steps(self), [[]]))
    (outcome,), _ = run(finished.config, tmp_path, "arm=lora")
    assert contents(outcome.folder) == contents(finished.lora.folder)
    assert rows(outcome.folder / "metrics.jsonl") == rows(finished.lora.folder / "metrics.jsonl")


def test_what_takes_long_to_load_is_announced(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("schemabank.common.waiting.FIRST_S", 0.01)
    run = load_run(finished.lora.folder / "config.yaml")
    said = threading.Event()

    def note(text: str) -> None:
        heard.append(text)
        said.set()

    def stand_still(*_: object) -> None:
        assert said.wait(30)

    for load, ask, what in (
        ("load_base", lambda: loaded_base(run, torch.device("cpu"), note), "the base model"),
        ("load_task", lambda: loaded_task(run.task, note), "the data of the task gsm8k"),
    ):
        said.clear()
        heard: list[str] = []
        monkeypatch.setattr(f"schemabank.runs.loading.{load}", stand_still)
        ask()
        assert heard[0].startswith(f"still loading {what}")


def poison(monkeypatch: pytest.MonkeyPatch, spoiled: Callable[[int], bool]) -> None:
    """Make the loss of some slots non-finite, of which one in eighteen is forgiven."""

    def losses(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        mean = mean_per_slot(values, weights)
        factors = [float("nan") if spoiled(slot) else 1.0 for slot in range(len(mean))]
        return mean * torch.tensor(factors)

    monkeypatch.setattr("schemabank.engine.step.mean_per_slot", losses)


@pytest.mark.usefixtures("gsm8k")
def test_a_failed_run_is_reported_kept_aside_and_no_neighbour_suffers(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        poison(patch, lambda slot: slot == 1)
        outcomes, _ = run(finished.config, tmp_path, "arm=[lora, schemabank]", "engine.slots=2")
    good, bad = outcomes
    assert good.failure is None
    assert contents(good.folder) == contents(finished.lora.folder)
    # In the routers' stage it has the first slot, and then the second.
    assert bad.failure is not None
    assert bad.failure.kind == "diverged"
    assert bad.failure.message.startswith(
        "loss or gradient not finite in 2 of the 18 steps of the run (allowed: 1), up to step 6: "
        "lower the learning rate, or look at the examples of the skipped steps (gsm8k/train/"
    )
    assert bad.result is None
    aside = bad.folder
    assert aside.name.endswith(".unfinished-1")
    named = aside.with_name(aside.name.removesuffix(".unfinished-1"))
    assert not named.exists(), "a folder with a run's name is complete"
    failure = json.loads((aside / "failure.json").read_text())
    assert failure == bad.failure.row()
    assert len(rows(aside / "metrics.jsonl")) == 7
    outcomes, _ = run(finished.config, tmp_path, "arm=[lora, schemabank]")
    assert [(o.reused, o.failure) for o in outcomes] == [(True, None), (False, None)]
    assert aside.is_dir(), "nothing is deleted"


@pytest.mark.usefixtures("gsm8k")
def test_a_step_that_is_skipped_is_no_update_and_that_is_said(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count()
    poison(monkeypatch, lambda _: next(calls) == 7)
    (outcome,), notes = run(finished.config, tmp_path, "arm=schemabank")
    assert outcome.failure is None
    steps = rows(outcome.folder / "metrics.jsonl")
    assert [s["step"] for s in steps if s["skipped"]] == [7], "in the stage of schemas and LoRA"
    assert [number for number, s in enumerate(steps) if "examples" in s] == [7]
    ids = steps[7]["examples"]
    assert step_of_row(steps[7]).examples == tuple(ids)
    training = json.loads((outcome.folder / "result.json").read_text())["training"]
    assert (training["num_steps"], training["num_skipped_steps"]) == (18, 1)
    assert training["skipped_steps"] == [{"step": 7, "examples": ids}]
    assert all(name.startswith("gsm8k/train/") for name in ids)
    assert len(ids) > 1
    told = "step 7 is skipped and changes nothing, since its loss is nan and its gradient's norm"
    assert f"{told} nan; its examples are {', '.join(ids)}" in "".join(notes)
    assert training["num_lora_updates"] == 12
    assert training["num_updates"] == {"lora": 12, "router": 12, "schemas": 12}
    said = "1 of 18 steps skipped, since their loss or gradient was not finite"
    assert f"schemabank seed 42: {said}" in notes
    assert outcome.result is not None
    assert skipped_lines([outcome.result]) == [f"schemabank, seed 42: {said}; they changed nothing"]
    assert finished.schemabank.result is not None
    assert skipped_lines([finished.schemabank.result]) == [], "nothing was skipped"
    assert finished.base.result is not None
    assert skipped_lines([finished.base.result]) == [], "nothing was trained"
    (scores, *_) = results_tables([outcome.result])
    assert str([*scores.columns[-1].cells][-1]) == "12", "updates that were made"


@pytest.mark.usefixtures("gsm8k")
def test_a_run_that_skips_most_of_its_steps_fails_though_never_many_in_a_row(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count()
    poison(monkeypatch, lambda _: next(calls) % 8 != 0)
    (outcome,), _ = run(finished.config, tmp_path, "arm=lora")
    assert outcome.failure is not None
    assert outcome.failure.kind == "diverged"
    said = "loss or gradient not finite in 2 of the 18 steps of the run"
    assert outcome.failure.message.startswith(said)


@pytest.mark.usefixtures("gsm8k")
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lora.target_modules=[query]", r"target_modules names 'query', .*allowed are .*q_proj"),
        ("bank.last_n=4", r"bank\.last_n is 4, but the model has 3 blocks: allowed is 1 to 3"),
        ("model.name=/nowhere/model", r"'/nowhere/model' was not found"),
        ("task.max_length=15", r"'gsm8k/train/0': its prompt alone has 15 tokens, .* at least 16"),
        ("task.max_length=32", r"cuts \d+ of 23 training examples"),
        ("{tags: {tagger: field}}", "is not KEY=VALUE"),
        ("bank.num_schemas=64", "'cluster' allows 1 to 23"),
        ("eval.few_shot=24", "24 few-shot examples were asked for, .* allows 0 to 23"),
        ("task.gsm8k.validation_ratio=0", "holds 0 items"),
    ],
)
def test_bad_input_touches_nothing(
    override: str, message: str, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    extra = ["tags.tagger=cluster"] if "num_schemas" in override else []
    extra += ["eval.split=validation"] if "validation_ratio" in override else []
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=message):
        run(finished.config, tmp_path / "new" / "out", override, *extra)
    assert snapshot(tmp_path) == before


@pytest.mark.usefixtures("gsm8k")
def test_every_run_is_checked_with_its_methods_own_settings(
    finished: Finished, tmp_path: Path
) -> None:
    config = load_experiment(finished.config, ["arm=experts", "lora.lora_dropout=0"])
    good = config.runs()[0]
    own = good.experts.model_copy(update={"routing": "learned", "consistency_weight": 1.0})
    bad = good.model_copy(update={"experts": own})
    for runs in ([bad, good], [good, bad]):
        with pytest.raises(InputError, match=r"experts\.consistency_weight is 1"):
            run_all(runs, tmp_path, Notes(), device=torch.device("cpu"))


@pytest.mark.usefixtures("gsm8k")
def test_something_else_under_a_runs_name_is_never_overwritten(
    finished: Finished, tmp_path: Path
) -> None:
    (tmp_path / finished.lora.folder.name).mkdir()
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=r"exists but holds no result\.json"):
        run(finished.config, tmp_path)
    assert snapshot(tmp_path) == before


def test_the_device_is_resolved_and_part_of_what_was_computed(finished: Finished) -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    if not torch.cuda.is_available():
        assert resolve_device("auto") == torch.device("cpu")
        with pytest.raises(InputError, match="'cuda', but no GPU is visible: use auto or cpu"):
            resolve_device("cuda")
    auto = RunConfig(arm="base")
    (filled,) = resolved([auto], torch.device("cpu"))
    assert auto.model.dtype == "auto"
    assert filled.model.dtype in {"float32", "bfloat16"}
    assert run_id(filled) != run_id(auto)
    recorded = yaml.safe_load((finished.base.folder / "config.yaml").read_text())
    assert recorded["model"]["dtype"] == "float32"


def test_configurations_differ_only_where_asked(finished: Finished, tmp_path: Path) -> None:
    path = write_config(tmp_path / "c.yaml", finished.model, train={"batch_size": 2})
    ours, theirs = load_experiment(path), load_experiment(finished.config)
    assert ours.train.batch_size == 2
    assert ours.model_copy(update={"train": theirs.train}) == theirs


# Runs of different lengths, arms, ranks and tags in one cohort.


class Listed(ExperimentConfig):
    """Runs that differ in more than arm and seed, which a configuration file cannot name."""

    listed: tuple[RunConfig, ...]

    def runs(self) -> tuple[RunConfig, ...]:
        return self.listed


MIXED = [
    ("arm=lora", "seed=1", "train.num_train_epochs=1"),
    ("arm=schemabank", "seed=1"),
    ("arm=lora", "seed=2", "train.max_steps=5", "lora.r=2"),
    ("arm=schemabank", "seed=2", "train.num_train_epochs=2", "tags.delivery=prefix"),
    ("arm=lora", "seed=3", "train.learning_rate=3e-3", "lora.lora_dropout=0"),
    ("arm=schemabank", "seed=3", "train.max_steps=4", "lora.r=3", "tags.delivery=both"),
]
NUM_STEPS = [6, 18, 5, 12, 18, 4]


def run_mixed(config: Path, out: Path, slots: int) -> tuple[list[Outcome], list[str]]:
    """Run them all, with so many slots."""
    common = load_experiment(config, [f"engine.slots={slots}"])
    listed = tuple(
        run
        for changes in MIXED
        for run in load_experiment(config, [f"engine.slots={slots}", *changes]).runs()
    )
    reporter = Notes()
    settings = {name: getattr(common, name) for name in ExperimentConfig.model_fields}
    return run_experiment(Listed(**settings, listed=listed), out, reporter), reporter.lines


@pytest.fixture(scope="module")
def mixed(
    finished: Finished, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Outcome], list[str]]:
    """All of them at once, each in a slot of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCHEMABANK_DATA", str(finished.data))
        return run_mixed(finished.config, tmp_path_factory.mktemp("mixed"), len(MIXED))


def assert_complete_and_close(outcomes: list[Outcome], others: list[Outcome]) -> None:
    """Every run has a whole folder, every step once, and the results of the others."""
    assert [o.failure for o in outcomes] == [None] * len(MIXED)
    for outcome, other, num_steps in zip(outcomes, others, NUM_STEPS, strict=True):
        assert outcome.folder.name == other.folder.name
        assert contents(outcome.folder) == contents(other.folder)
        steps = rows(outcome.folder / "metrics.jsonl")
        assert [step["step"] for step in steps] == list(range(num_steps))
        assert {step["run"] for step in steps} == {outcome.folder.name}
        assert outcome.result["training"] == other.result["training"]
        assert_close(outcome.folder, other.folder)
    assert {p.name for p in outcomes[0].folder.parent.iterdir()} == {
        outcome.folder.name for outcome in outcomes
    }, "no lock, no temporary folder is left"


def starting(notes: list[str], words: str) -> list[str]:
    return [note for note in notes if note.startswith(words)]


@pytest.mark.usefixtures("gsm8k")
def test_runs_that_follow_one_another_in_slots_equal_those_with_a_slot_each(
    finished: Finished,
    mixed: tuple[list[Outcome], list[str]],
    tmp_path: Path,
) -> None:
    outcomes, notes = run_mixed(finished.config, tmp_path, 2)
    assert_complete_and_close(outcomes, mixed[0])
    assert len(starting(notes, "train ")) == 1, "both arms and prefixes share a cohort"
    assert len(starting(notes, "evaluate ")) == 3, "two runs at once"
    assert any("41 steps, 2 at once, training about" in note for note in notes)


def test_a_cohort_of_both_arms_is_trained_and_evaluated_at_once(
    mixed: tuple[list[Outcome], list[str]],
) -> None:
    outcomes, notes = mixed
    # 5 steps of routers alone, and 18 of the longest plain LoRA.
    assert starting(notes, "train ") == ["train 6 runs (3 schemabank, 3 lora): 23"]
    assert starting(notes, "evaluate ") == ["evaluate 6 runs (3 schemabank, 3 lora): 6"]
    assert not starting(notes, "cohort "), "one cohort needs no explanation"
    assert [o.folder.name.rpartition("-")[0] for o in outcomes] == [
        f"{arm}-seed{seed}" for seed in (1, 2, 3) for arm in ("lora", "schemabank")
    ]
    losses = [o.result["groups"]["all"]["gold_nll"] for o in outcomes]
    assert len(set(losses)) == len(losses)


def test_trained_parameters_are_those_in_a_runs_folder(
    mixed: tuple[list[Outcome], list[str]],
) -> None:
    found = []
    for outcome in mixed[0]:
        files = sorted(outcome.folder.glob("[ab]*/*.safetensors"))
        saved = sum(t.numel() for file in files for t in load_file(file).values())
        assert outcome.result["training"]["num_trained_parameters"] == saved
        found.append(saved)
    assert found[0] == 2 * found[2], "ranks 4 and 2"
    assert found[1] > found[5] > found[4]


def test_notes_say_why_there_are_several_cohorts(finished: Finished) -> None:
    assert starting(list(finished.notes), "cohort ") == [
        "cohort 1 of 2: arm = base",
        "cohort 2 of 2: arm = any that trains",
    ]


# Memory that runs out.


def exhaust(monkeypatch: pytest.MonkeyPatch, *programs: int) -> None:
    """Let memory run out where a step needs a new program: some of them, counted from 0."""
    make, count = Programs._make, itertools.count()

    def full(self: Programs, *args: object) -> object:
        if next(count) in programs:
            raise torch.OutOfMemoryError("no room for 20 GiB")
        return make(self, *args)

    monkeypatch.setattr(Programs, "_make", full)


@pytest.mark.usefixtures("gsm8k")
@pytest.mark.parametrize("program", [0, 2, 5])
def test_runs_go_on_in_half_the_slots_where_memory_runs_out(
    program: int,
    finished: Finished,
    mixed: tuple[list[Outcome], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exhaust(monkeypatch, program)
    outcomes, notes = run_mixed(finished.config, tmp_path, 4)
    assert_complete_and_close(outcomes, mixed[0])
    assert starting(notes, "4 runs at once") == [
        "4 runs at once do not fit into the device's memory: going on with 2; no step is lost "
        "(engine.slots sets the number)"
    ]
    assert len(starting(notes, "train ")) == 2, "progress starts anew with what is left"
    assert len(starting(notes, "evaluate ")) == 3, "two runs at once"


@pytest.mark.usefixtures("gsm8k")
def test_slots_are_halved_again_where_memory_runs_out_again(
    finished: Finished,
    mixed: tuple[list[Outcome], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exhaust(monkeypatch, 5, 7)
    outcomes, notes = run_mixed(finished.config, tmp_path, 4)
    halved = [note.partition(":")[0] for note in notes if " do not fit " in note]
    assert [note.partition(" ")[0] for note in halved] == ["4", "2"]
    assert_complete_and_close(outcomes, mixed[0])


@pytest.mark.usefixtures("gsm8k")
def test_an_odd_number_of_slots_is_halved_to_a_whole_one(
    finished: Finished,
    mixed: tuple[list[Outcome], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exhaust(monkeypatch, 4)
    outcomes, notes = run_mixed(finished.config, tmp_path, 3)
    assert_complete_and_close(outcomes, mixed[0])
    assert any("going on with 1;" in note for note in starting(notes, "3 runs at once"))


@pytest.mark.usefixtures("gsm8k")
def test_a_run_that_does_not_even_fit_alone_fails_and_no_other_does(
    finished: Finished,
    mixed: tuple[list[Outcome], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Memory runs out with two slots, with one, and does not for the others."""
    exhaust(monkeypatch, 5, 7)
    outcomes, _ = run_mixed(finished.config, tmp_path, 2)
    failures = [o.failure for o in outcomes if o.failure is not None]
    assert len(failures) == 1
    assert failures[0].kind == "memory"
    said = "train.batch_size is 4, but a step of a single run does not fit"
    assert failures[0].message.startswith(said)
    for outcome, other in zip(outcomes, mixed[0], strict=True):
        if outcome.failure is None:
            assert contents(outcome.folder) == contents(other.folder)
            assert_close(outcome.folder, other.folder)


@pytest.mark.usefixtures("gsm8k")
def test_slots_are_halved_where_there_is_no_room_to_begin_with(
    finished: Finished,
    mixed: tuple[list[Outcome], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build = training.build_stack

    def full(
        runs: Sequence[RunConfig], base: BaseModel, *, slots: int, start: None
    ) -> AdapterStack:
        if slots > 2:
            raise torch.OutOfMemoryError("no room")
        return build(runs, base, slots=slots, start=start)

    monkeypatch.setattr(training, "build_stack", full)
    outcomes, notes = run_mixed(finished.config, tmp_path, 5)
    assert_complete_and_close(outcomes, mixed[0])
    assert any("going on with 2;" in note for note in starting(notes, "5 runs at once"))
    assert any("41 steps, 2 at once, training about" in note for note in notes)


@pytest.mark.usefixtures("gsm8k")
@pytest.mark.parametrize("place", ["FlatGroup", "SchemaBank", "StackedLora"])
def test_memory_that_runs_out_while_a_stack_is_built_leaves_the_model_as_it_was(
    place: str,
    finished: Finished,
    mixed: tuple[list[Outcome], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = {"FlatGroup": loralayers, "SchemaBank": attach, "StackedLora": lora}[place]
    build, calls = getattr(module, place), itertools.count()

    def full(*args: object, **kwargs: Any) -> object:  # noqa: ANN401 -- of three functions
        # Stacks of one slot only check the settings.
        of_all = kwargs.get("num_slots", len(kwargs.get("settings", ()))) == 4
        if of_all and next(calls) == (5 if place == "StackedLora" else 0):
            raise torch.OutOfMemoryError("no room")
        return build(*args, **kwargs)

    monkeypatch.setattr(module, place, full)
    outcomes, notes = run_mixed(finished.config, tmp_path, 4)
    assert_complete_and_close(outcomes, mixed[0])
    assert any("going on with 2;" in note for note in starting(notes, "4 runs at once"))


def of_the_cpu() -> RuntimeError:
    """What PyTorch says where a machine's memory runs out."""
    with pytest.raises(RuntimeError) as error:
        torch.empty(10**15)
    return error.value


EXHAUSTED = (torch.OutOfMemoryError("no room"), MemoryError("no room"), of_the_cpu())


@pytest.mark.usefixtures("gsm8k")
@pytest.mark.parametrize("exhausted", EXHAUSTED)
def test_an_error_before_the_first_step_leaves_the_model_to_the_next_run(
    exhausted: Exception, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimate, calls = training.estimate, itertools.count()

    def full(*args: object, **options: object) -> object:
        if next(calls) == 0:
            raise exhausted
        return estimate(*args, **options)

    monkeypatch.setattr(training, "estimate", full)
    (failed, fine), _ = run(finished.config, tmp_path, "arm=[lora, schemabank]", "engine.slots=1")
    assert failed.failure == Failure("memory", str(exhausted))
    assert fine.failure is None
    assert contents(fine.folder) == contents(finished.schemabank.folder)


@pytest.mark.usefixtures("gsm8k")
def test_slots_are_halved_again_where_even_half_has_no_room_for_moments(
    finished: Finished,
    mixed: tuple[list[Outcome], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exhaust(monkeypatch, 1)
    adamw, calls = optimizers.SlotAdamW, itertools.count()

    def full(*args: object, **kwargs: object) -> object:
        if next(calls) == 4:  # three groups with four slots, then with two
            raise torch.OutOfMemoryError("no room")
        return adamw(*args, **kwargs)

    monkeypatch.setattr(optimizers, "SlotAdamW", full)
    outcomes, notes = run_mixed(finished.config, tmp_path, 4)
    assert_complete_and_close(outcomes, mixed[0])
    assert [note[0] for note in notes if " do not fit " in note] == ["4", "2"]


@pytest.mark.usefixtures("gsm8k")
@pytest.mark.parametrize("exhausted", EXHAUSTED)
def test_an_evaluation_that_does_not_fit_names_its_setting_and_keeps_the_adapter(
    exhausted: Exception, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object, **_kwargs: object) -> None:
        raise exhausted

    monkeypatch.setattr("schemabank.runs.forms.evaluate", full)
    (outcome,), _ = run(finished.config, tmp_path, "arm=lora")
    assert outcome.failure is not None
    assert outcome.failure.kind == "memory"
    assert outcome.failure.message == (
        f"eval.batch_size is {load_experiment(finished.config).eval.batch_size}, but so many "
        "questions at once for each of 1 runs do not fit into the device's memory: lower it "
        f"({exhausted})"
    )
    (kept,) = tmp_path.iterdir()
    assert (kept / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.usefixtures("gsm8k")
@pytest.mark.parametrize(
    ("slots", "said"),
    [(1, "lower eval.max_new_tokens or use"), (2, "memory: lower engine.slots (")],
)
def test_a_batch_of_one_question_cannot_be_lowered(
    slots: int, said: str, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object, **_kwargs: object) -> None:
        raise MemoryError

    monkeypatch.setattr("schemabank.runs.forms.evaluate", full)
    asked = ["arm=lora", "seed=[1, 2]", "eval.batch_size=1", f"engine.slots={slots}"]
    for outcome in run(finished.config, tmp_path, *asked)[0]:
        assert outcome.failure is not None
        assert said in outcome.failure.message


@pytest.mark.usefixtures("gsm8k")
def test_one_run_that_does_not_fit_fails_and_says_what_to_do(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        exhaust(patch, 1)
        (failed, fine), notes = run(
            finished.config, tmp_path, "arm=[lora, schemabank]", "engine.slots=1"
        )
    assert failed.result is None
    assert failed.failure == Failure(
        "memory",
        "train.batch_size is 4, but a step of a single run does not fit into the device's memory: "
        "lower it or task.max_length (no room for 20 GiB)",
    )
    assert not starting(notes, "1 runs at once")
    assert fine.failure is None
    assert contents(fine.folder) == contents(finished.schemabank.folder)
    kept = {p.name for p in tmp_path.iterdir()}
    assert kept == {failed.folder.name, fine.folder.name}
    assert failed.folder.name.endswith(".unfinished-1")
    outcomes, _ = run(finished.config, tmp_path, "arm=[lora, schemabank]")
    assert [(o.reused, o.failure) for o in outcomes] == [(False, None), (True, None)]
    assert_close(outcomes[0].folder, finished.lora.folder)


# What is said about every run.


@pytest.mark.usefixtures("gsm8k")
def test_every_run_is_named_and_followed_to_its_end(finished: Finished, tmp_path: Path) -> None:
    notes = Notes()
    settings = ["arm=[base, lora]", "train.max_steps=3"]
    run(finished.config, tmp_path, "arm=base")
    (base, plain) = run_experiment(load_experiment(finished.config, settings), tmp_path, notes)
    assert notes.titles == {base.folder.name: "base seed 42", plain.folder.name: "lora seed 42"}
    assert notes.stepped == {plain.folder.name}
    assert notes.states[base.folder.name] == [("reused", "")]
    assert plain.result is not None
    score = plain.result["groups"]["all"]["correct"]  # type: ignore[index]
    assert notes.states[plain.folder.name] == [
        ("evaluating", ""),
        ("finished", f"correct {score:.3f} all"),
    ]


@pytest.mark.usefixtures("gsm8k")
def test_runs_go_by_the_titles_that_they_are_given(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = Notes()
    poison(monkeypatch, lambda _: True)
    runs = load_experiment(finished.config, ["arm=lora"]).runs()
    (outcome,) = run_all(runs, tmp_path, notes, device=torch.device("cpu"), titles=["mine"])
    assert list(notes.titles.values()) == ["mine"]
    (states,) = notes.states.values()
    assert states[-1] == ("failed", outcome.failure.message)
