"""What holds for every method: neighbours do not matter, and the end is a plain adapter."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
import torch

import cohorts
from adapterfiles import export
from schemabank.adapters.export import check_with_peft, probe
from schemabank.config.file import to_yaml
from schemabank.config.methods import METHODS
from schemabank.config.settings import BankSettings, LoraSettings, RunConfig
from schemabank.engine.cohort import Cohort, RunStep
from schemabank.engine.keeping import Standing
from schemabank.engine.run import Run
from schemabank.engine.slots import Slot
from schemabank.models.basemodel import BaseModel, load_base_model
from schemabank.runs.checkpoints import At, checkpoints_in, read_checkpoint, write_checkpoint
from schemabank.runs.members import Trainee, standing_of
from schemabank.runs.prepare import engine_run
from schemabank.runs.stacks import build_stack
from schemabank.runs.trained import TrainedState
from tinyruns import write_model

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT, and on a GPU the compiler, warn of theirs

# Every method that trains, and those of its settings that take another way through the engine.
VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    **{name: (name, {}) for name, method in METHODS.items() if method.trains},
    "swap": ("swap", {"swap": {"num_branches": 2, "branch_ratio": 0.3}}),
    "learned": ("experts", {"experts": {"routing": "learned", "num_experts": 3}}),
    "consistent": ("experts", {"experts": {"consistency_weight": 0.05}}),
    "muon": ("lora", {"train": {"optimizer": "muon"}}),
}
TRAINED = list(VARIANTS)
DATA = cohorts.data(batch_size=8)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def run_of(method: str, seed: int, **changes: object) -> RunConfig:
    arm, own = VARIANTS[method]
    train: dict[str, object] = {"num_train_epochs": 3, "learning_rate": 1e-2}
    for given in (own, changes):
        more = given.get("train", {})
        assert isinstance(more, dict)
        train |= more
    settings = {
        "arm": arm,
        "seed": seed,
        "lora": LoraSettings(r=4, lora_dropout=0.2),
        "bank": BankSettings(num_schemas=8, rank=4, attribute_dim=4),
    }
    return RunConfig.model_validate(settings | own | changes | {"train": train})


def made_up(name: str) -> RunConfig:
    """A short run of a method, or of one that carries more."""
    method, changes = CARRYING.get(name, (name, {}))
    return run_of(method, 1, **changes, **{} if "train" in changes else {"train": SHORT})


@dataclass(frozen=True)
class Kept:
    """All steps of a cohort, and by the number of steps before, what was kept of its runs."""

    steps: list[list[RunStep]]
    finished: dict[int, set[str]]
    begun: dict[int, dict[str, Standing]]


def all_runs(seed: int, **changes: object) -> list[RunConfig]:
    return [run_of(name, seed, **changes) for name in TRAINED]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("base"))


def base_model(folder: Path, device: str) -> BaseModel:
    return load_base_model(str(folder), dtype=torch.float32, device=torch.device(device))


def cohort(runs: Mapping[str, RunConfig], base: BaseModel) -> Cohort:
    """Runs in two slots that have room for all methods, as if all were planned."""
    stack = build_stack(all_runs(0), base, slots=2)
    planned = [
        engine_run(run, DATA.examples, stack, DATA.tokenizer, name=name)
        for name, run in runs.items()
    ]
    return Cohort(stack, planned, DATA, explain=pytest.fail)


def trained(
    runs: Mapping[str, RunConfig], base: BaseModel
) -> tuple[dict[str, list[RunStep]], Mapping[str, Mapping[str, torch.Tensor]]]:
    """What runs did at every step, and their weights at the end."""
    made = cohort(runs, base)
    steps = [step for steps in made.steps() for step in steps]
    finished = cohorts.ended(made)
    made.stack.remove()
    return {run.name: [s for s in steps if s.run == run.name] for run in _runs(made)}, finished


def _runs(made: Cohort) -> list[Run]:
    return [slot.run for slot in made.slots]


@pytest.mark.parametrize("device", DEVICES)
def test_neighbours_of_all_methods_change_no_bit(device: str, folder: Path) -> None:
    """A run of every method in two slots, and all in another order, so with others beside it."""
    base, runs = base_model(folder, device), {name: run_of(name, 1) for name in TRAINED}
    found, beside = [], []
    for names in (TRAINED, [*TRAINED[1::2], *TRAINED[::2]]):
        made = cohort({name: runs[name] for name in names}, base)
        ticks = list(made.steps())
        steps = {name: [s for tick in ticks for s in tick if s.run == name] for name in names}
        found.append((steps, made.finished))
        together = [{step.run for step in tick} for tick in ticks]
        beside.append({n: set().union(*(t for t in together if n in t)) for n in names})
        made.stack.remove()
    (first, ends), (second, others) = found
    for name in TRAINED:
        assert beside[0][name] != beside[1][name], name
        assert first[name] == second[name], name
        for group, rows in ends[name].items():
            assert torch.equal(rows, others[name][group]), (name, group)
        losses = [step.loss for step in first[name]]
        assert sum(losses[-3:]) < sum(losses[:3]), name


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", TRAINED)
def test_neighbours_of_any_method_change_no_bit(method: str, device: str, folder: Path) -> None:
    """Half of all methods, one after another in the slot beside it, against the other half."""
    base, found, halves = base_model(folder, device), [], (TRAINED[::2], TRAINED[1::2])
    short, long = (
        {"num_train_epochs": epochs, "learning_rate": 1e-2} for epochs in (1, len(halves[0]) + 1)
    )
    for names in halves:
        others = {f"beside {name}": run_of(name, 2, train=short) for name in names}
        steps, weights = trained({"own": run_of(method, 1, train=long), **others}, base)
        found.append((steps["own"], weights["own"]))
        assert all(steps[name] for name in others)
        assert sum(len(steps[name]) for name in others) <= len(steps["own"])
    for steps, weights in found[1:]:
        assert steps == found[0][0]
        assert all(torch.equal(rows, found[0][1][group]) for group, rows in weights.items())
    first, last = found[0][0][:5], found[0][0][-5:]
    assert sum(s.loss for s in last) < sum(s.loss for s in first)


# What carries more from step to step than methods do by themselves.
CARRYING: dict[str, tuple[str, dict[str, object]]] = {
    "mean of the last": ("lora", {"average": {"kind": "last"}}),
    "exponential mean, reduced": ("shrink", {"average": {"kind": "exponential"}}),
    "BEMA under banks": ("schemabank", {"average": {"kind": "bema"}}),
    "Muon, reduced": ("shrink", {"train": {"optimizer": "muon", "num_train_epochs": 2}}),
}
MADE = {"device": "cpu"}
SHORT = {"num_train_epochs": 2}


def kept_at(made: Cohort, ticks: Sequence[int], place: Path) -> Kept:
    """Train all runs; write what they have come to before some steps of the cohort."""
    configs, kept, steps = {r.name: r for r in _runs(made)}, Kept([], {}, {}), count()
    made.is_due = lambda: next(steps) in ticks

    def save() -> None:
        tick = len(kept.steps)
        kept.finished[tick] = set(cohorts.ended(made))
        kept.begun[tick] = made.standings()
        for name, standing in kept.begun[tick].items():
            folder = place / str(tick) / name
            folder.mkdir(parents=True)
            (folder / "config.yaml").write_text(to_yaml(made_up(name)))
            (folder / "metrics.jsonl").touch()
            at = At(made.tick, made.stack.num_slots, 0, float(tick), 0)
            write_checkpoint(folder, standing, at, MADE)

    made.save = save
    assert configs.keys() == {*TRAINED, *CARRYING}
    kept.steps.extend(made.steps())
    return kept


@pytest.mark.parametrize("device", DEVICES)
def test_a_run_of_any_method_goes_on_to_the_bit_wherever_it_was(
    device: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs of all methods in three slots, so that runs end, wait and enter all the time."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    base = base_model(folder, device)

    def cohort_of(trainees: Sequence[Trainee]) -> Cohort:
        stack = build_stack([each.run for each in trainees], base, slots=3)
        runs = [
            engine_run(each.run, DATA.examples, stack, DATA.tokenizer, name=each.name)
            for each in trainees
        ]
        halted = standing_of(trainees, [Slot(run, DATA) for run in runs], stack)
        return Cohort(stack, runs, DATA, explain=pytest.fail, halted=halted)

    names = [*TRAINED, *CARRYING]
    whole = cohort_of([Trainee(name, made_up(name)) for name in names])
    ticks = range(2, whole.num_steps, whole.num_steps // 4)
    kept = kept_at(whole, ticks, tmp_path)
    whole.stack.remove()
    assert kept.finished.keys() == set(ticks)
    for tick in ticks:
        trainees = [Trainee(name, made_up(name)) for name in names]
        for each, slot in zip(trainees, whole.slots, strict=True):
            if each.name in kept.finished[tick]:
                weights = whole.finished[each.name]
                each.trained = TrainedState.of(slot, weights, training_s=0.0)
            elif each.name in kept.begun[tick]:
                (place,) = checkpoints_in(tmp_path / str(tick) / each.name)
                each.begun = read_checkpoint(place, each.run, MADE)
        again = cohort_of(trainees)
        assert list(again.steps()) == kept.steps[tick:]
        again.stack.remove()
        for one, other in zip(again.slots, whole.slots, strict=True):
            assert one.num_updates == other.num_updates
            rows = whole.finished[one.run.name]
            assert again.finished[one.run.name].keys() == rows.keys()
            assert all(torch.equal(again.finished[one.run.name][n], rows[n]) for n in rows)


Tensors = dict[str, tuple[torch.Tensor, torch.Tensor]]


def all_together(base: BaseModel, **changes: object) -> Cohort:
    """A run of every method at its end, each in a slot of its own."""
    runs = all_runs(1, **changes)
    stack = build_stack(runs, base, slots=len(runs))
    planned = [
        engine_run(run, DATA.examples, stack, DATA.tokenizer, name=name)
        for name, run in zip(TRAINED, runs, strict=True)
    ]
    made = Cohort(stack, planned, DATA, explain=pytest.fail)
    list(made.steps())
    made.seat(TRAINED)
    return made


@pytest.mark.parametrize("device", DEVICES)
def test_runs_end_as_adapters_that_stock_peft_agrees_with_rescaled_or_not(
    device: str, folder: Path, tmp_path: Path
) -> None:
    """With B times its factor, seated for a trial or kept: the same bits, and PEFT agrees."""
    base = base_model(folder, device)
    made, slots = all_together(base), range(len(TRAINED))
    factors = [0.3 if slot % 2 else 1.7 for slot in slots]
    before, unscaled = [made.stack.lora.tensors(slot) for slot in slots], probe(made.stack, base)
    for slot in slots:
        export(made.stack, slot, tmp_path / f"unscaled-{slot}")
    made.seat(TRAINED, factors=factors)
    tried = [made.stack.lora.tensors(slot) for slot in slots]
    for name, factor in zip(TRAINED, factors, strict=True):
        made.finished[name] = made.stack.lora.rescaled(made.finished[name], factor)
    made.seat(TRAINED)
    expected = probe(made.stack, base)
    for slot, factor in enumerate(factors):
        for path, (a, b) in made.stack.lora.tensors(slot).items():
            assert all(map(torch.equal, (a, b), tried[slot][path])), TRAINED[slot]
            assert torch.equal(a, before[slot][path][0]), TRAINED[slot]
            assert torch.equal(b, before[slot][path][1] * factor), TRAINED[slot]
        export(made.stack, slot, tmp_path / str(slot))
    made.stack.remove()
    for slot, name in enumerate(TRAINED):
        assert check_with_peft(tmp_path / f"unscaled-{slot}", base, unscaled[slot]).agrees, name
        assert check_with_peft(tmp_path / str(slot), base, expected[slot]).agrees, name
        assert not check_with_peft(tmp_path / str(slot), base, unscaled[slot]).agrees, name


@pytest.fixture(scope="module")
def plain(folder: Path) -> dict[str, Tensors]:
    """What every method ends as without options."""
    stack = all_together(base_model(folder, "cpu")).stack
    return {name: stack.lora.tensors(slot) for slot, name in enumerate(TRAINED)}


OPTIONS: dict[str, dict[str, object]] = {
    "all linear": {"lora": {"r": 4, "target_modules": "all-linear"}},
    "rank-stabilised": {"lora": {"r": 4, "use_rslora": True, "lora_alpha": 3}},
    "LoRA+": {"train": {"loraplus_lr_ratio": 8, "learning_rate": 1e-2, "num_train_epochs": 3}},
    "Muon": {"train": {"optimizer": "muon", "learning_rate": 8e-3}},
    "last": {"average": {"kind": "last"}},
    "exponential": {"average": {"kind": "exponential"}},
    "BEMA": {"average": {"kind": "bema"}},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options_work_for_all_methods(
    option: str, plain: dict[str, Tensors], folder: Path, tmp_path: Path
) -> None:
    """All methods at once; each ends as another adapter, and stock PEFT agrees with it."""
    base = base_model(folder, "cpu")
    stack = all_together(base, **OPTIONS[option]).stack
    expected = probe(stack, base)
    ends = [stack.lora.tensors(slot) for slot in range(len(TRAINED))]
    for slot in range(len(TRAINED)):
        export(stack, slot, tmp_path / str(slot))
    stack.remove()
    for slot in range(len(TRAINED)):
        config = json.loads((tmp_path / str(slot) / "adapter_config.json").read_text())
        assert ("down_proj" in config["target_modules"]) == (option == "all linear")
        assert config.get("use_rslora", False) == (option == "rank-stabilised")
        assert check_with_peft(tmp_path / str(slot), base, expected[slot]).agrees
    for slot, name in enumerate(TRAINED):
        has_effect = {*OPTIONS[option]} <= {*METHODS[VARIANTS[name][0]].sections}
        for path, (_, b) in plain[name].items():
            assert torch.equal(ends[slot][path][1], b) != has_effect, (name, path)


@pytest.mark.parametrize("method", TRAINED)
def test_a_method_is_no_other(method: str, plain: dict[str, Tensors]) -> None:
    """All begin with one seed, and each sees the same batches."""
    own = plain[method]
    assert all(b.abs().max() > 0 for _, b in own.values())
    for name in set(TRAINED) - {method}:
        assert not any(torch.equal(b, plain[name][path][1]) for path, (_, b) in own.items()), name
