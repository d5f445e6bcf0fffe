"""Numbers that are not finite, put into single slots of a cohort at single steps, in many places.

Where something is put stands in masks on the device, at fixed addresses, so that captured steps
read them, too. A cohort of every kind of run is what it is put into.
"""

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import pytest
import torch
from torch import Tensor, nn

import cohorts
from schemabank.config.settings import RunConfig
from schemabank.engine import cohort as engine
from schemabank.engine import step as steps
from schemabank.engine.cohort import Cohort, RunStep
from schemabank.engine.part import StepInput
from schemabank.engine.run import TrainingData
from schemabank.engine.slots import Kind, Slot
from schemabank.engine.step import Training
from schemabank.models.basemodel import BaseModel
from schemabank.runs.prepare import engine_run
from schemabank.runs.stacks import build_stack
from tiny import END_TOKEN_ID, tiny_model, tiny_tokenizer

# What is NaN: the states of the batch's tokens, the loss, one number of the gradient, one weight.
# An "infinite" loss has a finite gradient. "skip" leaves a step out without any such number.
Place = Literal["data", "loss", "infinite", "gradient", "weight", "skip"]
PASSING: tuple[Place, ...] = ("data", "loss", "infinite", "gradient")
Schedule = Mapping[tuple[str, int], Place]  # by run and step

NUM_STEPS = 32
DATA = cohorts.data()
ARMS: Mapping[str, Mapping[str, object]] = {
    "lora": {},
    "schemabank": {"bank": {"num_schemas": 8, "rank": 4, "attribute_dim": 4}},
    "experts": {"experts": {"num_experts": 2, "routing": "learned"}},
    "swap": {"swap": {"num_branches": 2, "branch_ratio": 0.5}},
    "molf": {"molf": {"num_adapters": 2}},
}
NAMES = (*ARMS, "muon", "mean")
# A fault that stays, of each of these runs; the others have none.
LASTING: Mapping[str, Place] = {
    **dict(zip(("schemabank", "swap", "molf", "muon"), PASSING, strict=True)),
    "experts": "weight",
}


def run_configs(**train: object) -> dict[str, RunConfig]:
    """A run of every arm, one with Muon and one that ends as a mean, all of as many steps."""
    settings = {"learning_rate": 1e-2, "max_grad_norm": 0.5, **train}

    def one(arm: str, seed: int, **own: object) -> RunConfig:
        num_steps = NUM_STEPS // (2 if arm == "swap" else 1)  # whose branches take as many
        optimizer = {"optimizer": own.pop("optimizer")} if "optimizer" in own else {}
        given = {"train": {**settings, "max_steps": num_steps, **optimizer}, **own}
        lora = {"r": 4, "lora_dropout": 0.2}
        return RunConfig.model_validate({"arm": arm, "seed": seed, "lora": lora, **given})

    found = {arm: one(arm, seed, **own) for seed, (arm, own) in enumerate(ARMS.items())}
    found["muon"] = one("lora", 8, optimizer="muon")
    found["mean"] = one("lora", 9, average={"kind": "exponential"})
    return found


def new_cohort(
    configs: Mapping[str, RunConfig],
    data: TrainingData = DATA,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Cohort:
    """Runs by their names, in a slot each."""
    model = tiny_model("llama").to(dtype).to(device)
    base = BaseModel("tiny", None, model, tiny_tokenizer(), (END_TOKEN_ID,), "tiny")
    stack = build_stack(list(configs.values()), base, slots=len(configs))
    runs = [
        engine_run(config, data.examples, stack, data.tokenizer, name=name)
        for name, config in configs.items()
    ]
    return Cohort(stack, runs, data, explain=pytest.fail)


class Poison:
    """Spoils the steps of runs as a schedule says, in cohorts that are made after it.

    Args:
        patch: undoes what is changed in the engine.
        num_slots: of the cohorts.
        device: of the cohorts.
    """

    def __init__(self, patch: pytest.MonkeyPatch, num_slots: int, device: str = "cpu") -> None:
        self._masks = {
            place: torch.zeros(num_slots, dtype=torch.bool, device=device)
            for place in get_args(Place)
        }
        self._patch(patch)

    def follow(self, trained: Cohort, schedule: Schedule) -> None:
        """Spoil a cohort's runs."""
        trained.between = lambda seated: self._set(trained, seated, schedule)
        trained.stack.model.get_input_embeddings().register_forward_hook(self._spoil_embedded)

    def _set(self, trained: Cohort, seated: Mapping[int, Slot], schedule: Schedule) -> None:
        for mask in self._masks.values():
            mask.fill_(False)
        for index, slot in seated.items():
            place = schedule.get((slot.run.name, slot.step))
            if place == "weight":
                group = trained.stack.groups["lora"]
                group.weights[index, 3] = torch.nan
                group.publish()
            elif place is not None:
                self._masks[place][index] = True

    def _patch(self, patch: pytest.MonkeyPatch) -> None:
        train_step, mean, found = steps.train_step, steps.mean_per_slot, steps._gradients

        def step(training: Training, kind: Kind, given: StepInput, states: Tensor | None) -> Tensor:
            states = None if states is None else self._spoilt(states, "data")
            active = given["active"] & ~self._masks["skip"][:, None]
            spoilt = StepInput(given.batch, {**given.fields, "active": active})
            return train_step(training, kind, spoilt, states)

        def loss(losses: Tensor, weights: Tensor) -> Tensor:
            values = mean(losses, weights) * torch.where(self._masks["loss"], torch.nan, 1.0)
            return values + torch.where(self._masks["infinite"], torch.inf, 0.0)

        def gradients(*args: object) -> dict[str, Tensor]:
            grads = found(*args)  # type: ignore[arg-type]
            for grad in grads.values():
                column = grad[:, 5]  # in place: a copy would be as large as all gradients
                column.copy_(self._spoilt(column, "gradient"))
            return grads

        patch.setattr(engine, "train_step", step)
        patch.setattr(steps, "mean_per_slot", loss)
        patch.setattr(steps, "_gradients", gradients)

    def _spoil_embedded(self, _module: nn.Module, _args: object, output: Tensor) -> Tensor | None:
        # The base model's own states, which all runs share, are computed without gradients.
        return self._spoilt(output, "data") if torch.is_grad_enabled() else None

    def _spoilt(self, values: Tensor, place: Place) -> Tensor:
        """Make a slot's numbers NaN; rows of ``values`` belong to the slots in equal parts."""
        mask = self._masks[place]
        rows = mask[:, None].expand(-1, len(values) // len(mask)).reshape(-1)
        return torch.where(rows.view(-1, *(1,) * (values.dim() - 1)), torch.nan, values)


def in_turn(places: tuple[Place, ...]) -> dict[tuple[str, int], Place]:
    """Every run once in every place, no two at the same step."""
    pairs = [(place, name) for place in places for name in NAMES]
    return {(name, 2 + number): place for number, (place, name) in enumerate(pairs)}


def reports(trained: Cohort) -> dict[str, list[RunStep]]:
    """Train a cohort to its end, look for idle parts, and return what every run reported."""
    found: dict[str, list[RunStep]] = {slot.run.name: [] for slot in trained.slots}
    for reported in trained.steps():
        trained.idle_parts()
        for each in reported:
            found[each.run].append(each)
    return found


def assert_same_steps(
    one: list[RunStep], other: list[RunStep], keep: Callable[[RunStep], bool]
) -> None:
    """Both runs reported the same bits in the steps of ``one`` that ``keep`` chooses."""
    pairs = [(a, b) for a, b in zip(one, other, strict=False) if keep(a)]
    assert pairs
    for a, b in pairs:
        assert (a.loss, a.total_loss, a.grad_norm) == (b.loss, b.total_loss, b.grad_norm), a


def assert_same_end(one: Cohort, other: Cohort, run: str) -> None:
    """A run ended with the same bits in both cohorts."""
    assert one.finished[run].keys() == other.finished[run].keys()
    for group, row in one.finished[run].items():
        assert torch.equal(row, other.finished[run][group]), (run, group)
