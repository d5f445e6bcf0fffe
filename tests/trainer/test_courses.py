"""What a trainer's schedule is under a method."""

from pathlib import Path

import pytest

from trainers import BATCH, method, trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def test_counted_warm_up_is_that_many_steps_of_a_single_stage(tmp_path: Path) -> None:
    for steps in (1, 7, 33):
        trained = trainer(tmp_path, method("lora"), warmup_steps=steps, logging_steps=1)
        trained.train()
        rates = [row["learning_rate"] for row in trained.state.log_history if "loss" in row]
        assert rates.index(max(rates)) == steps
        assert rates[0] == pytest.approx(max(rates) / (steps + 1))


def test_a_constant_rate_does_not_warm_up_as_in_transformers(tmp_path: Path) -> None:
    trained = trainer(
        tmp_path, method("lora"), lr_scheduler_type="constant", warmup_steps=9, logging_steps=1
    )
    trained.train()
    assert {row["learning_rate"] for row in trained.state.log_history if "loss" in row} == {1e-2}
    assert trained.args.per_device_train_batch_size == BATCH
