"""With the same seed, settings and batches a trainer comes to the engine's weights."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from schemabank import RunConfig, TrainSettings
from schemabank.config.settings import TagSettings
from schemabank.config.train import StageSettings
from schemabank.engine.flat import FlatGroup
from schemabank.methods.schemabank import attach
from tiny import Kind
from trainers import (
    BATCH,
    LORA,
    ROUNDING,
    SEED,
    TOLERANCE,
    TinyTrainer,
    engine,
    furthest,
    method,
    tensors,
    trainer,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

FEW = 20  # through all stages, where a trainer is compared with a trainer
ARMS = ("lora", "coto", "schemabank")
OTHERS = ("molf", "shrink", "experts")
BARE = [
    {"name": "router", "ratio": 0.2, "train": ["router"], "tag_keep": [1.0, 0.5]},
    {
        "name": "handover",
        "ratio": 0.8,
        "train": ["schemas", "lora"],
        "bank_probability": (0.9, 0.2),
        "bank_scale": (1.0, 0.3),
        "bare_tail_ratio": 0.2,
        "learning_rate_ratio": 0.5,
        "lr_scheduler_type": "cosine",
    },
]


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let models, adapters, banks and optimizers compute in float64."""

    def group(weights: Mapping[str, nn.Parameter], *, num_slots: int, dtype: object) -> FlatGroup:
        del dtype
        return FlatGroup(weights, num_slots=num_slots, dtype=torch.float64)

    monkeypatch.setattr(attach, "FlatGroup", group)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class LastBank(TrainerCallback):
    """Keeps a trainer's bank from before its removal."""

    def __init__(self, tensors: Callable[[], dict[str, Tensor]]) -> None:
        self._tensors, self.found = tensors, dict[str, Tensor]()

    def on_train_end(self, *_: object, **__: object) -> None:
        self.found = self._tensors()


def keeping(trained: TinyTrainer) -> LastBank:
    """Let a trainer keep its bank."""

    def bank() -> dict[str, Tensor]:
        assert trained._steps is not None
        return {} if trained._steps.banks is None else trained._steps.banks.tensors()

    kept = LastBank(bank)
    trained.add_callback(kept)
    return kept


def assert_as_the_engine(
    folder: Path, arm: RunConfig, kind: Kind = "llama", *, tolerance: float = TOLERANCE
) -> None:
    ours = trainer(folder, arm, kind=kind, engines_order=True)
    bank = keeping(ours)
    ours.train()
    theirs, their_bank = engine(arm, kind)
    assert furthest(tensors(ours), theirs) < tolerance
    assert max(float(b.abs().max()) for _, b in theirs.values()) > 0.01, "it has trained"
    torch.testing.assert_close(bank.found, their_bank, rtol=0, atol=tolerance)
    assert bool(bank.found) == arm.uses("bank")


@pytest.mark.parametrize("arm", ARMS)
def test_in_float32_rounding_is_the_only_difference(arm: str, tmp_path: Path) -> None:
    assert_as_the_engine(tmp_path, method(arm), tolerance=ROUNDING)


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("arm", [*ARMS, *OTHERS])
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_fifty_steps_end_at_the_engines_weights(arm: str, kind: Kind, tmp_path: Path) -> None:
    assert_as_the_engine(tmp_path, method(arm), kind)


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize(
    "changes",
    [
        {"bank": {"num_schemas": 8, "rank": 4, "residual": False, "layers": (0, 2), "top_k": 1}},
        {"curriculum": BARE},
        {"tags": TagSettings(tagger="random", loss_weight=0.5)},
        {"tags": TagSettings(tagger="none")},
        {
            "bank": {"num_schemas": 8, "rank": 2, "orthonormality_weight": 0},
            "tags": {"tagger": "none"},
        },
    ],
)
def test_other_banks_tags_and_stages_end_there_too(
    changes: dict[str, object], tmp_path: Path
) -> None:
    assert_as_the_engine(tmp_path, method("schemabank", **changes))


@pytest.mark.usefixtures("wide")
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize(
    ("experts", "changes"),
    [
        ({"routing": "random", "consistency_weight": 0.5}, {}),
        ({"routing": "hash"}, {}),
        ({"routing": "hash", "consistency_weight": 0.5}, {"gradient_checkpointing": True}),
        (
            {"num_experts": 3, "consistency_weight": 0.5},
            {"per_device_train_batch_size": 1, "gradient_accumulation_steps": BATCH},
        ),
    ],
)
def test_experts_of_all_kinds_end_there_too(
    experts: dict[str, object], changes: dict[str, object], tmp_path: Path
) -> None:
    """With both passes, in parts of a batch and with checkpointed blocks."""
    arm = method("experts", experts=experts)
    ours = trainer(tmp_path, arm, engines_order=True, **changes)
    ours.train()
    theirs, _ = engine(arm)
    assert furthest(tensors(ours), theirs) < TOLERANCE
    assert max(float(b.abs().max()) for _, b in theirs.values()) > 0.01, "it has trained"


@pytest.mark.usefixtures("wide")
def test_a_stage_that_trains_nothing_in_some_steps_is_as_in_the_engine(tmp_path: Path) -> None:
    router = {"name": "router", "ratio": 0.5, "train": ["router"], "bank_probability": (0.5, 0.5)}
    lora = {"name": "lora", "ratio": 0.5, "train": ["lora"]}
    stages = [StageSettings.model_validate(stage) for stage in (router, lora)]
    assert_as_the_engine(tmp_path, method("schemabank", curriculum=stages))


@pytest.mark.usefixtures("wide")
def test_lora_plus_is_as_in_the_engine(tmp_path: Path) -> None:
    assert_as_the_engine(tmp_path, method("coto", train=TrainSettings(loraplus_lr_ratio=4)))


@pytest.mark.usefixtures("wide")
def test_another_seed_ends_elsewhere(tmp_path: Path) -> None:
    """What the comparisons above would not let pass."""
    ours = trainer(tmp_path, method("coto"), engines_order=True, seed=SEED + 1)
    ours.train()
    assert furthest(tensors(ours), engine(method("coto"))[0]) > 1000 * TOLERANCE


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("arm", ARMS)
def test_parts_of_a_batch_add_up_to_it(arm: str, tmp_path: Path) -> None:
    own = method(arm)
    if own.uses("bank"):
        own = method(arm, bank=own.bank.model_copy(update={"load_balance_weight": 0}))
    whole = trainer(tmp_path / "whole", own, engines_order=True, max_steps=FEW)
    parts = trainer(
        tmp_path / "parts",
        own,
        engines_order=True,
        max_steps=FEW,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=BATCH,
    )
    banks = [keeping(whole), keeping(parts)]
    for each in (whole, parts):
        each.train()
    assert furthest(tensors(whole), tensors(parts)) < TOLERANCE
    torch.testing.assert_close(banks[0].found, banks[1].found, rtol=0, atol=TOLERANCE)
    assert parts.state.global_step == FEW


@pytest.mark.usefixtures("wide")
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("arm", ARMS)
def test_checkpointed_blocks_change_nothing(arm: str, tmp_path: Path) -> None:
    dropped = LORA.model_copy(update={"lora_dropout": 0.2})
    runs, banks = [], []
    for on in (False, True):  # one after the other: making a trainer sets the seed of dropout
        changes = {"gradient_checkpointing": on, "max_steps": FEW}
        runs.append(trainer(tmp_path / str(on), method(arm), lora=dropped, **changes))
        banks.append(keeping(runs[-1]))
        runs[-1].train()
    assert furthest(tensors(runs[0]), tensors(runs[1])) < TOLERANCE
    torch.testing.assert_close(banks[0].found, banks[1].found, rtol=0, atol=TOLERANCE)


@pytest.mark.usefixtures("wide")
def test_dropout_is_on(tmp_path: Path) -> None:
    """In the comparison above; without it checkpointing would have nothing to repeat."""
    runs = []
    for rate in (0, 0.2):
        lora = LORA.model_copy(update={"lora_dropout": rate})
        runs.append(trainer(tmp_path, method("lora"), lora=lora))
        runs[-1].train()
    assert furthest(tensors(runs[0]), tensors(runs[1])) > 1000 * TOLERANCE
