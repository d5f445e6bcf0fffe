"""Weights that train in the place of PEFT's: what looks at the model sees what they fold to."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import TrainerCallback

from tiny import tiny_model
from trainers import LORA, Stopping, logits, method, trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def test_a_wide_adapter_is_seen_as_the_nearest_of_its_rank(tmp_path: Path) -> None:
    """Whenever a callback looks, wherever it stands among the others."""
    differences = []

    class Looking(TrainerCallback):
        def look(self, *_: object, **__: object) -> None:
            assert made._steps is not None
            logits(made.model)
            parts = made._steps.stand_ins
            assert parts is not None
            wide = [b.detach() @ a.detach() for a, b in zip(parts.a, parts.b, strict=True)]
            for (a, b), whole in zip(made._adapter.tensors().values(), wide, strict=True):
                u, s, v = torch.linalg.svd(whole)
                best = u[:, : LORA.r] * s[: LORA.r] @ v[: LORA.r]
                differences.append(float((b @ a - best).abs().max()))

        on_pre_optimizer_step = on_optimizer_step = on_step_end = look

    made = trainer(tmp_path, method("shrink"), max_steps=4)
    made.callback_handler.callbacks.insert(0, Looking())
    made.train()
    assert len(differences) == 4 * 3 * len(made._adapter.layers)
    assert max(differences) < 1e-5


def test_the_best_checkpoint_is_what_a_run_ends_with(tmp_path: Path) -> None:
    """Nothing that later steps came to is put over it."""
    watched: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 5, "save_steps": 5}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
    stopped = trainer(tmp_path, method("shrink"), save_strategy="steps", **watched, **best)
    stopped.add_callback(Stopping())
    with pytest.warns(UserWarning, match="ended after 12 of 50 steps"):
        stopped.train()
    assert stopped.state.best_model_checkpoint == str(tmp_path / "checkpoint-10")
    stock = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "checkpoint-10")
    assert torch.equal(logits(stock), logits(stopped.model))
