"""A run with teachers learns their mean prediction, and ends as one adapter."""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import cohorts
from schemabank import RunConfig, train_cohort
from schemabank.common.errors import InputError
from schemabank.common.files import read_json
from schemabank.common.writing import write_json
from schemabank.config.file import run_id
from schemabank.config.settings import BankSettings
from schemabank.config.train import DistillSettings
from schemabank.engine.batches import Encoded
from schemabank.engine.softtargets import SoftTargets
from schemabank.engine.stack import AdapterStack
from schemabank.models.basemodel import load_base_model
from schemabank.runs import distill, experiment, predicting
from schemabank.runs.distill import (
    TEACHER_KEPT,
    TEACHERS,
    all_teachers,
    asking_time_s,
    learned_from_teachers,
    teachers_of,
)
from schemabank.runs.experiment import run_all
from schemabank.runs.folder import CONFIG, FAILURE, PREDICTIONS
from schemabank.runs.inmemory import held_context
from schemabank.runs.loading import loaded_task, resolved
from schemabank.runs.members import Member, Outcome
from schemabank.runs.prepare import task_training_data
from schemabank.runs.progress import RunState
from schemabank.runs.training import Context, train_runs
from tiny import tiny_model, tiny_tokenizer
from tinyruns import STAGES, Notes, snapshot, write_gsm8k, write_model
from tools import BENCHMARKS, load_tool

# PEFT 0.21 asks transformers 5.23 for a property by its deprecated name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

CPU = torch.device("cpu")
ADAPTER = "adapter/adapter_model.safetensors"


@dataclass(frozen=True)
class Ran:
    """Two runs with teachers, one without and the base model, and what was said."""

    runs: list[RunConfig]
    done: list[Outcome]
    out: Path
    notes: list[str]
    states: dict[str, list[tuple[RunState, str]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = write_gsm8k(tmp_path_factory.mktemp("data"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCHEMABANK_DATA", str(place))
        yield write_model(tmp_path_factory.mktemp("model"))


def run_of(folder: Path, seed: int, **changes: object) -> RunConfig:
    settings: dict[str, object] = {
        "arm": "lora",
        "seed": seed,
        "model": {"name": str(folder), "dtype": "float32"},
        "task": {"name": "gsm8k", "max_length": 96},
        "lora": {"r": 4, "lora_dropout": 0.1},
        "train": {"num_train_epochs": 1, "learning_rate": 1e-2},
        "distill": {"teachers": 2, "top_k": 6},
        "eval": {"split": "test", "max_new_tokens": 4, "batch_size": 4},
        "engine": {"slots": 3},
    }
    return RunConfig.model_validate(settings | changes)


def train(runs: Sequence[RunConfig], out: Path) -> Ran:
    notes = Notes()
    runs = resolved(runs, CPU, note=notes.note)
    done = run_all(runs, out, notes, device=CPU)
    return Ran([*runs], done, out, notes.lines, notes.states)


@pytest.fixture(scope="module")
def ran(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    runs = [run_of(folder, 1), run_of(folder, 2), run_of(folder, 1, distill={})]
    runs.append(run_of(folder, 1, arm="base"))  # as with teachers in a suite's defaults
    return train(runs, tmp_path_factory.mktemp("runs"))


def test_teachers_are_runs_of_the_same_settings_with_seeds_of_their_own(folder: Path) -> None:
    runs = [run_of(folder, 1), run_of(folder, 1, distill={"teachers": 3}), run_of(folder, 2)]
    first, more, other = map(teachers_of, runs)
    assert [len(first), len(more), len(other)] == [2, 3, 2]
    assert more[:2] == first
    assert all_teachers(runs) == [*more[:2], more[2], *other]
    assert len({run.seed for run in all_teachers(runs)}) == 5
    for teacher in first:
        assert teacher.distill == DistillSettings()
        assert (teacher.lora, teacher.train, teacher.arm) == (runs[0].lora, runs[0].train, "lora")


def test_teachers_are_finished_runs_beside_and_the_run_is_one_plain_adapter(ran: Ran) -> None:
    assert all(outcome.failure is None for outcome in ran.done)
    trainings = [(outcome.result or {})["training"] for outcome in ran.done]
    num_steps = trainings[0]["num_steps"]
    assert trainings.pop() is None  # the base model's
    assert [t.get("num_teacher_steps") for t in trainings] == [2 * num_steps, 2 * num_steps, None]
    found = {place.name for place in (ran.out / TEACHERS).iterdir()}
    assert found == {run_id(run) for run in all_teachers(ran.runs)}
    assert sum("teachers come first, in " in line for line in ran.notes) == 1
    taught, plain = (load_file(ran.done[index].folder / ADAPTER) for index in (0, 2))
    assert {name: each.shape for name, each in taught.items()} == {
        name: each.shape for name, each in plain.items()
    }
    assert any(not torch.equal(each, plain[name]) for name, each in taught.items())


def test_a_run_learns_the_mean_prediction_of_its_teachers_as_stock_peft_computes_it(
    ran: Ran, folder: Path
) -> None:
    run = ran.runs[0]
    base = load_base_model(str(folder), dtype=torch.float32, device=CPU)
    data = task_training_data(loaded_task(run.task, print).train, run, base.tokenizer)
    context, teachers = held_context(base, data, Notes()), ran.out / TEACHERS
    found = learned_from_teachers([run], context, teachers)[0][run]  # what the engine is given
    places = [teachers / run_id(teacher) for teacher in teachers_of(run)]
    model = AutoModelForCausalLM.from_pretrained(folder)
    loaded = peft.PeftModel.from_pretrained(model, places[0] / "adapter", adapter_name="0")
    loaded.load_adapter(places[1] / "adapter", adapter_name="1")
    for index, example in enumerate(data.encoded):
        chances = _mean_chances(loaded, example)
        rows = slice(*found.starts[index : index + 2])
        labels = torch.tensor(example.tokens)[example.labelled]
        assert torch.equal(torch.tensor(found.tokens[rows, 0]).long(), labels)
        own = chances.gather(1, torch.tensor(found.tokens[rows]).long())
        wanted = own / own.sum(1, keepdim=True)
        torch.testing.assert_close(torch.tensor(found.shares[rows]), wanted, atol=1e-5, rtol=1e-4)
        rivals = chances.scatter(1, labels[:, None], 0.0).topk(5).values
        torch.testing.assert_close(own[:, 1:].sort(1, descending=True).values, rivals)


def _mean_chances(model: peft.PeftModel, example: Encoded) -> torch.Tensor:
    """The mean of both adapters' distributions at every label."""
    found = []
    for name in ("0", "1"):
        model.set_adapter(name)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([example.tokens])).logits[0]
        found.append(logits[example.labelled - 1].softmax(-1))
    return torch.stack(found).mean(0)


def test_the_benchmark_of_ensembles_measures_runs_their_mean_prediction_and_mean_update(
    ran: Ran, folder: Path
) -> None:
    ensembles = load_tool(BENCHMARKS / "ensembles.py")
    (group,) = ensembles.groups(ran.out / TEACHERS)
    assert {run.seed for run, _ in group} == {run.seed for run in all_teachers(ran.runs)}
    base = load_base_model(str(folder), dtype=torch.float32, device=CPU)
    task = loaded_task(ran.runs[0].task, print)
    examples = task_training_data(task.train[:6], ran.runs[0], base.tokenizer).encoded
    found = ensembles.measure(group, base, examples)
    assert found.mean_prediction < sum(found.losses) / len(found.losses)  # Jensen's inequality
    same = ensembles.measure([group[0], group[0]], base, examples)
    assert same.losses[0] == same.losses[1] == pytest.approx(found.losses[0], abs=1e-6)
    for mean in (same.mean_prediction, same.mean_update, same.reduced):
        assert mean == pytest.approx(same.losses[0], abs=1e-5)


@pytest.mark.parametrize(("weight", "temperature"), [(1.0, 1.0), (0.25, 1.0), (1.0, 4.0)])
def test_weight_mixes_in_the_label_and_temperature_flattens(
    weight: float, temperature: float
) -> None:
    targets = _targets(top_k=6, weight=weight, temperature=temperature)
    plain = _targets(top_k=6)
    assert targets.shares.sum(1) == pytest.approx(np.ones(len(targets.shares)), abs=1e-5)
    if weight < 1:
        expected = weight * plain.shares + (1 - weight) * np.eye(6)[0]
        np.testing.assert_allclose(targets.shares, expected, atol=1e-6)
    if temperature > 1:
        assert targets.shares.max(1).mean() < plain.shares.max(1).mean()


def _targets(**settings: object) -> SoftTargets:
    stack = AdapterStack(tiny_model("llama"), lora=[cohorts.LORA])
    teachers = []
    for seed in range(2):
        stack.initialise(0, seed)
        teachers.append(stack.groups["lora"].weights[0].clone())
    asking = predicting.Asking((0, 1), DistillSettings.model_validate({"teachers": 2, **settings}))
    try:
        return predicting.soft_targets(stack, teachers, cohorts.data().encoded, [asking])[0]
    finally:
        stack.remove()


def test_each_teacher_predicts_the_same_whoever_else_is_asked(ran: Ran, folder: Path) -> None:
    one, two, four = (
        ran.runs[0].model_copy(update={"distill": DistillSettings(teachers=n, top_k=k)})
        for n, k in ((1, 6), (2, 6), (2, 4))
    )
    base = load_base_model(str(folder), dtype=torch.float32, device=CPU)
    data = task_training_data(loaded_task(one.task, print).train, one, base.tokenizer)
    context = held_context(base, data, Notes())
    together, none = learned_from_teachers([one, two, four], context, ran.out / TEACHERS)
    assert not none
    for run in (one, two, four):
        alone = learned_from_teachers([run], context, ran.out / TEACHERS)[0][run]
        assert np.array_equal(alone.tokens, together[run].tokens)
        assert np.array_equal(alone.shares, together[run].shares)
    assert not np.array_equal(together[one].shares, together[two].shares)
    assert together[four].width == 4


def test_started_again_it_takes_the_teachers_that_are_there_and_ends_with_the_same_bytes(
    ran: Ran, tmp_path: Path
) -> None:
    out = tmp_path / "runs"
    shutil.copytree(ran.out, out)
    lost = out / run_id(ran.runs[0])
    before = (lost / ADAPTER).read_bytes()
    shutil.rmtree(lost)
    kept = snapshot(out / TEACHERS)
    again = train(ran.runs, out)
    assert (lost / ADAPTER).read_bytes() == before
    assert {path: kept[path] for path in kept} == snapshot(out / TEACHERS)
    assert sum("reused" in line and TEACHERS in line for line in again.notes) == 2
    assert not any(" first, in " in line for line in again.notes)


def test_slots_are_planned_for_all_teachers_whichever_are_left(
    ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a full disk: a run and one of its teachers are left, all others are finished."""
    out = tmp_path / "runs"
    shutil.copytree(ran.out, out)
    lost, (teacher, _) = ran.runs[0], teachers_of(ran.runs[0])
    for gone in (out / run_id(lost), out / TEACHERS / run_id(teacher)):
        shutil.rmtree(gone)
    seen: dict[str, tuple[int, int]] = {}

    def look(members: Sequence[Member], context: Context, **planned: Any) -> Any:  # noqa: ANN401
        runs = planned["planned"]
        seen.update({each.name: (planned["slots"], len(runs)) for each in members})
        return train_runs(members, context, **planned)

    monkeypatch.setattr(experiment, "train_runs", look)
    train(ran.runs, out)
    assert seen == {run_id(teacher): (3, 4), run_id(lost): (2, 2)}
    place = Path(run_id(lost), ADAPTER)
    assert (out / place).read_bytes() == (ran.out / place).read_bytes()


def test_stopped_between_teachers_and_those_that_learn_it_ends_with_the_same_bytes(
    ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught = ran.runs[:2]

    def stop(runs: Sequence[RunConfig], context: Context, folder: Path) -> object:
        if runs[0].num_teachers:
            raise KeyboardInterrupt
        return learned_from_teachers(runs, context, folder)

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "learned_from_teachers", stop)
        with pytest.raises(KeyboardInterrupt):
            train(taught, tmp_path)
    assert [place.name for place in tmp_path.iterdir()] == [TEACHERS]
    found = train(taught, tmp_path)
    assert sum("reused" in line for line in found.notes) == 4
    for outcome in found.done:
        place = Path(outcome.folder.name, ADAPTER)
        assert (tmp_path / place).read_bytes() == (ran.out / place).read_bytes()


def test_a_damaged_teacher_fails_its_run_and_no_other(ran: Ran, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    shutil.copytree(ran.out, out)
    damaged = out / TEACHERS / run_id(teachers_of(ran.runs[0])[1])
    (damaged / ADAPTER).write_bytes(b"no tensors")
    before = (out / run_id(ran.runs[1]) / ADAPTER).read_bytes()
    for run in ran.runs[:2]:
        shutil.rmtree(out / run_id(run))
    first, second, *_ = train(ran.runs, out).done
    assert first.failure is not None
    for words in (f"its teacher {damaged.name} could not be asked", "remove its folder"):
        assert words in first.failure.message
    assert first.folder.name == f"{run_id(ran.runs[0])}.unfinished-1"
    assert {path.name for path in first.folder.iterdir()} == {CONFIG, FAILURE}
    assert second.failure is None
    assert (second.folder / ADAPTER).read_bytes() == before


def context_of(ran: Ran, notes: Notes) -> Context:
    """What the runs share."""
    run = ran.runs[0]
    base = load_base_model(run.model.name, dtype=torch.float32, device=CPU)
    data = task_training_data(loaded_task(run.task, print).train, run, base.tokenizer)
    return held_context(base, data, notes)


def displace(adapter: Path) -> None:
    """Let an adapter have a layer that the model has not."""
    place = adapter / "adapter_model.safetensors"
    save_file({k.replace("layers.0.", "layers.7."): v for k, v in load_file(place).items()}, place)


def other_scale(adapter: Path) -> None:
    """Let an adapter's configuration have another scale than the one that was trained."""
    place = adapter / "adapter_config.json"
    write_json(place, {**read_json(place), "lora_alpha": 99})


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("spoil", [displace, other_scale])
def test_a_teacher_that_does_not_fit_fails_the_runs_that_learn_from_it_and_no_other(
    spoil: Callable[[Path], None], number: int, ran: Ran, tmp_path: Path
) -> None:
    """All teachers here share their LoRA settings."""
    shutil.copytree(ran.out / TEACHERS, tmp_path / TEACHERS)
    spoiled = teachers_of(ran.runs[0])[number]
    spoil(tmp_path / TEACHERS / run_id(spoiled) / "adapter")
    context = context_of(ran, Notes())
    whole, _ = learned_from_teachers(ran.runs, context, ran.out / TEACHERS)
    found, failures = learned_from_teachers(ran.runs, context, tmp_path / TEACHERS)
    assert found.keys() == {ran.runs[1]}
    assert np.array_equal(found[ran.runs[1]].shares, whole[ran.runs[1]].shares)
    assert failures.keys() == {ran.runs[0]}
    (failure,) = failures.values()
    assert failure.kind == "input"
    assert "could not be asked: remove its folder, and it is trained again" in failure.message
    assert not context.base.model._forward_hooks, "the stack is off the model"


def test_a_batch_that_does_not_fit_fails_all_that_ask(
    ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object) -> object:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(predicting, "_of_batch", full)
    context = context_of(ran, Notes())
    found, failures = learned_from_teachers(ran.runs, context, ran.out / TEACHERS)
    assert not found
    assert failures.keys() == set(ran.runs[:2])
    assert all(failure.kind == "memory" for failure in failures.values())
    assert all("its teachers could not" in failure.message for failure in failures.values())


def test_asking_tells_its_progress_and_about_how_long_it_takes(ran: Ran) -> None:
    notes = Notes()
    context = context_of(ran, notes)
    learned_from_teachers(ran.runs, context, ran.out / TEACHERS)
    assert context.training is not None
    # Four read every example, and two runs learn from each.
    total = len(context.training.encoded) * (4 + 2)
    about, begun = notes.lines
    assert re.fullmatch(r"asking 4 teachers of lora seed 1, lora seed 2: about \d+ s", about)
    assert begun == f"ask 4 teachers: {total}"
    assert notes.done == total


def test_the_time_of_asking_is_that_of_what_is_read_and_of_what_is_mixed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill, "expected_s", lambda operations, _model: operations)
    monkeypatch.setattr(distill, "usual_s", lambda compute: 1e9 * len(compute()))
    stack = AdapterStack(tiny_model("llama"), lora=[cohorts.LORA])
    examples = cohorts.data().encoded
    read = 2 * sum(len(each.tokens) for each in examples)
    read *= sum(p.numel() for block in stack.blocks for p in block.parameters())
    mixed = 1e9 * sum(each.num_labels for each in examples)
    two, more = run_of(folder, 1), run_of(folder, 1, distill={"teachers": 3, "top_k": 6})
    other, none = run_of(folder, 2), run_of(folder, 3, distill={})
    for at_once, readers, askers in (
        ([[two]], 2, 1),
        ([[two, none]], 2, 1),
        ([[two, more]], 3, 2),
        ([[two], [more]], 5, 2),
        ([[two, other]], 4, 2),
        ([[none]], 0, 0),
    ):
        found = asking_time_s(stack, examples, at_once)
        assert found == pytest.approx(readers * read + askers * mixed), at_once


def test_a_run_that_has_trained_asks_no_teacher_again(
    ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught = ran.runs[:2]
    shutil.copytree(ran.out / TEACHERS, tmp_path / TEACHERS)
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "finish_runs", _stop)
        with pytest.raises(KeyboardInterrupt):
            train(taught, tmp_path)
    for teacher in teachers_of(taught[0]):
        (tmp_path / TEACHERS / run_id(teacher) / ADAPTER).write_bytes(b"no tensors")
    for outcome in train(taught, tmp_path).done:
        place = Path(outcome.folder.name, ADAPTER)
        assert (tmp_path / place).read_bytes() == (ran.out / place).read_bytes()


def test_a_teacher_whose_evaluation_fails_is_not_trained_again(
    ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object, **_options: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("schemabank.runs.finish.evaluate_forms", full)
        taught, plain, *_ = train([ran.runs[0], ran.runs[2]], tmp_path).done
    assert taught.kept == TEACHER_KEPT
    assert plain.kept.startswith("its training, ")
    names = {run_id(teacher) for teacher in teachers_of(ran.runs[0])}
    assert {place.name for place in (tmp_path / TEACHERS).iterdir()} == {
        f".{name}.partial" for name in names
    }
    again = train([ran.runs[0], ran.runs[2]], tmp_path)
    assert [outcome.failure for outcome in again.done] == [None, None]
    assert sum(line.startswith("trained already: ") for line in again.notes) == 3
    for outcome in again.done:
        place = Path(outcome.folder.name, ADAPTER)
        assert (tmp_path / place).read_bytes() == (ran.out / place).read_bytes()


def _stop(*_args: object, **_options: object) -> object:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("error", "mend"), [(MemoryError(), "a larger device"), (InputError("x"), "remove the folder")]
)
def test_what_keeps_teachers_from_being_asked_decides_the_mend(error: Exception, mend: str) -> None:
    assert mend in distill._failure_of(error).message


def test_teachers_of_an_older_version_whose_items_lack_clusters_are_used_again(
    folder: Path, tmp_path: Path
) -> None:
    """Nothing but their adapters is used; the run that learns from them is refused."""
    sizes = {"train_size": 8, "validation_size": 4, "test_size": 4}
    task = {"name": "conditional", "max_length": 512, "conditional": sizes}
    short = {"max_new_tokens": 2, "limit": 2}
    run, out = run_of(folder, 1, task=task, eval=short), tmp_path / "runs"
    done = train([run], out)
    (own,) = (outcome.folder for outcome in done.done)
    teachers = [path.parent for path in (out / TEACHERS).glob(f"*/{PREDICTIONS}")]
    assert len(teachers) == 2
    for place in (own, *teachers):
        rows = [json.loads(line) for line in (place / PREDICTIONS).read_text().splitlines()]
        assert all(row["cluster"] for row in rows)
        lines = [json.dumps({**row, "cluster": ""}) for row in rows]
        (place / PREDICTIONS).write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"items of conditional with one word .* another --out"):
        train([run], out)
    before = (own / ADAPTER).read_bytes()
    shutil.rmtree(own)
    again = train([run], out)
    assert (own / ADAPTER).read_bytes() == before
    assert sum("reused" in line and TEACHERS in line for line in again.notes) == 2


def test_teachers_of_other_data_are_refused_and_nothing_is_trained(
    ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "runs"
    shutil.copytree(ran.out / TEACHERS, out / TEACHERS)
    monkeypatch.setenv("SCHEMABANK_DATA", str(write_gsm8k(tmp_path / "data", num_train=20)))
    with pytest.raises(InputError, match=r"the task's data is not the one .*teachers"):
        train(ran.runs[:1], out)
    assert [place.name for place in out.iterdir()] == [TEACHERS]


def test_the_cached_stage_of_a_curriculum_learns_from_teachers_too(
    folder: Path, tmp_path: Path
) -> None:
    weights = [name for name in BankSettings.model_fields if name.endswith("_weight")]
    bank = {"num_schemas": 8, "rank": 4, "attribute_dim": 4} | dict.fromkeys(weights, 0)
    method = {"arm": "schemabank", "bank": bank, "curriculum": STAGES}
    (done,) = train([run_of(folder, 1, **method)], tmp_path).done
    assert done.failure is None
    lines = (done.folder / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    cached = [step for step in steps if step["stage"] == "router"]
    assert cached
    assert all(step["total_loss"] != pytest.approx(step["loss"], rel=1e-4) for step in cached)


def test_a_run_whose_teacher_failed_fails_by_name_and_no_other(
    folder: Path, tmp_path: Path
) -> None:
    huge = {"num_train_epochs": 1, "learning_rate": 1e30}
    runs = [run_of(folder, 1, train=huge), run_of(folder, 2, distill={})]
    found = train(runs, tmp_path)
    taught, plain = found.done
    assert plain.failure is None
    assert taught.failure is not None
    assert "its teacher lora-seed" in taught.failure.message
    assert taught.failure.kind == "diverged"
    assert taught.inputs == plain.inputs  # by which a suite tells whether it may end otherwise now
    assert found.states[taught.folder.name] == [("failed", taught.failure.message)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"distill": {"teachers": 2, "top_k": 1024}}, ["distill.top_k is 1024", "allowed is 2 to"]),
        (
            {
                "arm": "schemabank",
                "task": {"name": "gsm8k", "max_length": 96, "completion_only_loss": False},
                "tags": {"delivery": "prefix"},
                "bank": {"num_schemas": 8, "rank": 4, "attribute_dim": 4},
            },
            ["distill.teachers is 2", "tags.delivery is 'prefix'"],
        ),
        (
            {
                "arm": "schemabank",
                "bank": {"num_schemas": 8, "rank": 4, "attribute_dim": 4},
                "curriculum": [STAGES[0] | {"ratio": 1.0}],
            },
            ["distill.teachers is 2", "no stage trains lora"],
        ),
    ],
)
def test_what_cannot_be_taught_is_refused_before_a_teacher_trains(
    folder: Path, tmp_path: Path, changes: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        train([run_of(folder, 1, **changes)], tmp_path)
    assert all(word in str(caught.value) for word in words)
    assert not (tmp_path / TEACHERS).exists()


def test_python_without_run_folders_refuses_teachers() -> None:
    run = RunConfig.model_validate({"arm": "lora", "distill": {"teachers": 2}})
    with pytest.raises(InputError, match=r"distill\.teachers is 2.*allowed is 0 here"):
        train_cohort(tiny_model("llama"), tiny_tokenizer(), [run], [("a", "b")] * 4)
