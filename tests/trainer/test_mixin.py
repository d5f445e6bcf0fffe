"""Runs that go on, what they leave, and what is acting meanwhile."""

import json
import shutil
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors import safe_open
from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from schemabank import InputError, LoraSettings, TrainSettings
from schemabank.trainer.steps import Steps
from tiny import tiny_model, tiny_tokenizer
from trainers import (
    LORA,
    RATE,
    STEPS,
    Stopping,
    TinyTrainer,
    arguments,
    collate,
    furthest,
    logits,
    method,
    rows,
    tensors,
    tokens_of,
    trainer,
    wrapped,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

DROPPED = LORA.model_copy(update={"lora_dropout": 0.2})
ARMS = ("lora", "coto", "molf", "schemabank", "shrink", "experts")
# In the middle of all three stages, at the end of the first, and one step before the second's.
OF_BANKS, OF_SHRINK = (7, 15, 22, 29, 40), (7, 25, 40)  # before, at and after the reduction
CHECKPOINTS = tuple(sorted({*OF_BANKS, *OF_SHRINK}))


class Saving(TrainerCallback):
    """Lets a trainer write checkpoints after some steps."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        del args
        control.should_save = state.global_step in CHECKPOINTS


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, TinyTrainer]:
    """Trainers of all arms after their training, by the arm; tests change nothing in them."""
    made = {arm: trainer(tmp_path_factory.mktemp(arm), method(arm)) for arm in ARMS}
    for each in made.values():
        each.train()
    return made


@pytest.mark.parametrize("arm", ARMS)
def test_a_run_goes_on_from_every_stage_as_if_never_stopped(arm: str, tmp_path: Path) -> None:
    """A method of one stage from its beginning and its end."""
    whole = trainer(tmp_path, method(arm), lora=DROPPED)
    whole.add_callback(Saving())
    whole.train()
    steps = {"schemabank": OF_BANKS, "shrink": OF_SHRINK}.get(arm, (7, 40))
    stages = {whole_stage(arm, step) for step in steps}
    assert len(stages) == (3 if arm == "schemabank" else 1)
    for step in steps:
        again = trainer(tmp_path / "again", method(arm), lora=DROPPED)
        again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert again.state.global_step == STEPS
        assert furthest(tensors(again), tensors(whole)) == 0, f"after step {step}"


def whole_stage(arm: str, step: int) -> int:
    """The stage of the step that comes after so many."""
    ends = (15, 30, STEPS) if arm == "schemabank" else (STEPS,)
    return next(stage for stage, end in enumerate(ends) if step < end)


class Interrupting(TrainerCallback):
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        del args, control
        if state.global_step == 33:
            raise KeyboardInterrupt


def test_the_same_trainer_goes_on_after_an_interruption(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", method("schemabank"), lora=DROPPED)
    whole.train()
    stopped = trainer(tmp_path, method("schemabank"), lora=DROPPED)
    stopped.add_callback(Saving())
    stopped.add_callback(Interrupting())
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    assert not any("schema_banks" in name for name, _ in stopped.model.named_parameters())
    with pytest.raises(InputError, match="adapter that has been trained: allowed is a fresh one"):
        stopped.train()
    stopped.remove_callback(Interrupting)
    stopped.train(resume_from_checkpoint=True)
    assert furthest(tensors(stopped), tensors(whole)) == 0


@pytest.mark.parametrize("arm", ARMS)
def test_what_is_saved_is_stock_peft_with_the_banks_off(
    arm: str, plain: Mapping[str, TinyTrainer], tmp_path: Path
) -> None:
    trained = plain[arm]
    trained.save_model(str(tmp_path / "adapter"))
    assert not list((tmp_path / "adapter").glob("schemabank*"))
    kept = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (kept["peft_type"], kept["r"]) == ("LORA", LORA.r)
    stock = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "adapter")
    assert torch.equal(logits(stock), logits(trained.model))
    assert (logits(stock) - logits(tiny_model("llama"))).abs().max() > 1e-3


@pytest.mark.parametrize("arm", ["coto", "schemabank", "shrink", "experts"])
def test_a_checkpoint_is_an_adapter_of_stock_peft_too(arm: str, tmp_path: Path) -> None:
    trained = trainer(tmp_path, method(arm))
    seen: dict[int, torch.Tensor] = {}

    class Looking(Saving):
        def on_save(self, args: object, state: TrainerState, *_: object, **__: object) -> None:
            del args
            seen[state.global_step] = logits(trained.model)

    trained.add_callback(Looking())
    trained.train()
    assert set(seen) == set(CHECKPOINTS)
    for step, found in seen.items():
        folder = tmp_path / f"checkpoint-{step}"
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
            assert all("lora_" in name for name in file.keys())  # noqa: SIM118 -- it has no others
        stock = peft.PeftModel.from_pretrained(tiny_model("llama"), folder)
        assert torch.equal(logits(stock), found), "nothing but the adapter acts between steps"


@pytest.mark.parametrize("arm", ["coto", "schemabank", "shrink"])
def test_evaluation_sees_the_adapter_alone_and_changes_nothing(
    arm: str, plain: Mapping[str, TinyTrainer], tmp_path: Path
) -> None:
    watched = trainer(tmp_path, method(arm), eval_strategy="steps", eval_steps=9)
    watched.train()
    assert furthest(tensors(plain[arm]), tensors(watched)) == 0
    losses = [row["eval_loss"] for row in watched.state.log_history if "eval_loss" in row]
    assert len(losses) == 6
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("arm", ["coto", "schemabank", "shrink"])
def test_a_users_callback_sees_the_adapter_alone_wherever_it_stands(
    arm: str, tmp_path: Path
) -> None:
    """One that is given to the constructor is called before the method's own."""
    data = rows(tokens_of())
    acting: set[object] = set()

    class Looking(TrainerCallback):
        def look(self, *_: object, **__: object) -> None:
            assert made._steps is not None
            banks = made._steps.banks
            acting.add(0.0 if banks is None else banks.scale)
            acting.add(len({layer.scaling["default"] for layer in made._adapter.layers.values()}))
            made.evaluate(data.select(range(2)))

        on_pre_optimizer_step = on_optimizer_step = on_step_end = look

    made = TinyTrainer(
        method=method(arm),
        model=wrapped(),
        args=arguments(tmp_path, max_steps=6),
        train_dataset=data,
        data_collator=collate,
        processing_class=tiny_tokenizer(),
        callbacks=[Looking()],
    )
    made.train()
    assert acting == {0.0, 1}
    quiet = trainer(tmp_path, method(arm), max_steps=6)
    quiet.train()
    assert furthest(tensors(made), tensors(quiet)) == 0


def test_a_run_that_a_callback_ends_says_that_its_course_is_not_over(tmp_path: Path) -> None:
    stopped = trainer(tmp_path, method("schemabank"))
    stopped.add_callback(Stopping())
    with pytest.warns(UserWarning, match="ended after 12 of 50 steps.*never been trained"):
        stopped.train()
    stopped = trainer(tmp_path, method("coto"))
    stopped.add_callback(Stopping())
    with pytest.warns(UserWarning, match="ended after 12 of 50 steps") as told:
        stopped.train()
    assert "never" not in str(told[0].message)


def test_early_stopping_is_refused_where_evaluation_cannot_change_at_first(tmp_path: Path) -> None:
    watched: dict[str, Any] = {
        "eval_strategy": "steps",
        "eval_steps": 4,
        "save_strategy": "steps",
        "save_steps": 4,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
    }
    stopping = trainer(tmp_path, method("schemabank"), **watched)
    stopping.add_callback(EarlyStoppingCallback(2))
    with pytest.raises(InputError, match="EarlyStoppingCallback, but the first 15 of 50 steps"):
        stopping.train()
    assert stopping.state.global_step == 0
    kept = trainer(tmp_path / "coto", method("coto"), **watched)
    kept.add_callback(EarlyStoppingCallback(2))
    kept.train()


def test_what_the_course_says_is_logged(plain: Mapping[str, TinyTrainer]) -> None:
    for arm, figure in (("coto", "acting_blocks"), ("schemabank", "bank_scale")):
        logged = [row for row in plain[arm].state.log_history if "loss" in row]
        assert len(logged) == 5
        assert all(figure in row for row in logged)


def test_a_step_without_a_finite_gradient_changes_nothing(tmp_path: Path) -> None:
    trained = trainer(tmp_path, method("schemabank"))
    seen: list[float] = []

    class Spoiling(TrainerCallback):
        def on_step_begin(self, *told: object, **_: object) -> None:
            self.before = tensors(trained)
            if told[1].global_step == 40:
                weight = trained._adapter.b[1]
                self.spoilt = weight.register_hook(lambda grad: grad * torch.nan)

        def on_step_end(self, *told: object, **_: object) -> None:
            if told[1].global_step in {40, 41, 42}:
                seen.append(furthest(tensors(trained), self.before))
            if told[1].global_step == 41:
                self.spoilt.remove()

    trained.add_callback(Spoiling())
    trained.train()
    assert [moved > 0 for moved in seen] == [True, False, True]
    counted = [row.get("skipped_steps") for row in trained.state.log_history if "loss" in row]
    assert counted == [None] * 4 + [1]


def test_a_step_whose_loss_alone_is_infinite_changes_nothing(tmp_path: Path) -> None:
    trained = trainer(tmp_path, method("lora"), max_steps=4, logging_steps=1)
    before: list[dict[str, torch.Tensor]] = []
    total_loss = Steps.total_loss

    def grown(self: Steps, task: torch.Tensor, *others: torch.Tensor | None) -> torch.Tensor:
        return total_loss(self, task + torch.inf if len(before) == 3 else task, *others)

    class Keeping(TrainerCallback):
        def on_step_begin(self, *_: object, **_named: object) -> None:
            before.append(tensors(trained))

    trained.add_callback(Keeping())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Steps, "total_loss", grown)
        trained.train()
    moved = [furthest(a, b) > 0 for a, b in pairwise([*before, tensors(trained)])]
    assert moved == [True, True, False, True]


@pytest.mark.parametrize(("ratio", "count"), [(0.05, 3), (0.0, 1), (0.1, 6)])
def test_too_many_such_steps_end_the_run(ratio: float, count: int, tmp_path: Path) -> None:
    asked = method("lora", train=TrainSettings(max_skipped_ratio=ratio))
    trained = trainer(tmp_path, asked, learning_rate=1e30)
    said = f"loss or gradient not finite in {count} of 50 steps: lower"
    with pytest.raises(RuntimeError, match=said):
        trained.train()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run under a bank, after half of its steps."""
    folder = tmp_path_factory.mktemp("half")
    trainer(folder, method("schemabank"), save_strategy="steps", save_steps=25).train()
    return folder / "checkpoint-25"


def wider(**changes: object) -> LoraSettings:
    """Another adapter."""
    return LORA.model_copy(update=changes)


@pytest.mark.parametrize(
    ("arm", "changes", "message"),
    [
        ("coto", {}, r"arm is 'coto', but the checkpoint .* was trained with 'schemabank'"),
        ("schemabank", {"seed": 8}, r"seed is 8, but the checkpoint .* with 7"),
        ("schemabank", {"max_steps": 60}, r"train.max_steps is 60, but the checkpoint"),
        ("schemabank", {"learning_rate": RATE / 2}, r"train.learning_rate is 0.005, but"),
        ("schemabank", {"weight_decay": 0.5}, r"args.weight_decay is 0.5, but .* with 0.01"),
        ("schemabank", {"adam_beta1": 0.5}, r"args.adam_beta1 is 0.5, but"),
        ("schemabank", {"max_grad_norm": 9.0}, r"args.max_grad_norm is 9.0, but"),
        ("schemabank", {"per_device_train_batch_size": 2}, r"args.per_device_train_batch_size is"),
        ("schemabank", {"lora": wider(r=8)}, r"LoraConfig's r is 8, but .* with 4"),
        ("schemabank", {"lora": wider(lora_alpha=40)}, r"LoraConfig's lora_alpha is 40, but"),
        (
            "schemabank",
            {"lora": wider(target_modules=("q_proj",))},
            r"the adapter's list of layers",
        ),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    arm: str, changes: dict[str, object], message: str, *, checkpoint: Path, tmp_path: Path
) -> None:
    again = trainer(tmp_path, method(arm), **changes)
    with pytest.raises(InputError, match=message):
        again.train(resume_from_checkpoint=str(checkpoint))


def test_a_checkpoint_without_its_bank_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    again = trainer(tmp_path, method("schemabank"))
    folder = tmp_path / "checkpoint-25"
    shutil.copytree(checkpoint, folder)
    shutil.rmtree(folder / "schemabank_bank")
    with pytest.raises(InputError, match="schemabank_bank"):
        again.train(resume_from_checkpoint=str(folder))
    (folder / "schemabank.json").unlink()
    with pytest.raises(InputError, match="was not written under a method of SchemaBank"):
        again.train(resume_from_checkpoint=str(folder))


@pytest.mark.parametrize("steps", [6, 8])
def test_a_checkpoint_of_a_run_that_is_over_is_refused(steps: int, tmp_path: Path) -> None:
    """At the end of an epoch, and within one, where a trainer would take one step more."""
    common: dict[str, Any] = {"max_steps": steps, "save_strategy": "steps", "save_steps": steps}
    trainer(tmp_path, method("coto"), **common).train()
    again = trainer(tmp_path, method("coto"), **common)
    with pytest.raises(InputError, match=f"after {steps} of {steps} steps, .*PeftModel"):
        again.train(resume_from_checkpoint=True)


def test_a_folder_without_checkpoints_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match=r"resume_from_checkpoint is True, .* has no"):
            trainer(folder, method("coto")).train(resume_from_checkpoint=True)


def test_a_checkpoint_of_weights_alone_is_refused(tmp_path: Path) -> None:
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 5, "save_only_model": True}
    trainer(tmp_path, method("coto"), max_steps=10, **saving).train()
    again = trainer(tmp_path / "again", method("coto"), max_steps=10)
    with pytest.raises(InputError, match=r"has no optimizer\.pt.*args\.save_only_model"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert again._adapter.is_fresh


def test_an_adapter_that_was_trained_before_is_not_overwritten(tmp_path: Path) -> None:
    trained = trainer(tmp_path, method("lora"))
    with torch.no_grad():
        trained._adapter.b[0][0, 0] = 1
    before = tensors(trained)
    with pytest.raises(InputError, match="has been trained"):
        trained.train()
    assert furthest(tensors(trained), before) == 0


@pytest.mark.parametrize("changes", [{"bf16": True}, {"dtype": torch.bfloat16}])
def test_bfloat16_trains_weights_that_stay_in_float32(
    changes: dict[str, Any], plain: Mapping[str, TinyTrainer], tmp_path: Path
) -> None:
    trained = trainer(tmp_path, method("schemabank"), **changes)
    dtypes: set[torch.dtype] = set()

    class Looking(TrainerCallback):
        def on_train_end(self, *_: object, **__: object) -> None:
            assert trained._steps is not None
            dtypes.update(weight.dtype for _, weight in trained._steps.weights)

    trained.add_callback(Looking())
    trained.train()
    assert dtypes == {torch.float32}
    ends = [run.state.log_history[-2]["loss"] for run in (trained, plain["schemabank"])]
    assert ends[0] == pytest.approx(ends[1], rel=0.02)
