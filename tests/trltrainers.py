"""Tiny trainers of TRL under a method."""

from pathlib import Path
from typing import Any

import datasets
import peft
import trl

from schemabank import RunConfig
from schemabank.trainer import MethodTrainerMixin
from tiny import tiny_model, tiny_tokenizer
from trainers import ARGUMENTS, LORA, PAIRS, EnginesOrder, tokens_of


class TinySFT(MethodTrainerMixin, trl.SFTTrainer):
    """TRL's trainer under a method; if asked, in the engine's order of examples."""

    engines_order = False

    def _get_train_sampler(self, *args: object) -> object:
        if self.engines_order:
            return EnginesOrder(tokens_of())
        return super()._get_train_sampler(*args)


def sft_trainer(
    folder: Path,
    arm: RunConfig,
    *,
    model: object = None,
    train_dataset: datasets.Dataset | None = None,
    engines_order: bool = False,
    **changes: object,
) -> TinySFT:
    """Make a trainer of TRL with its defaults, checkpointed blocks among them.

    Args:
        folder: of its checkpoints.
        arm: its method.
        model: a tiny Llama if left out.
        train_dataset: the texts of all pairs if left out.
        engines_order: whether the examples come in the engine's order.
        changes: to its arguments.
    """
    common: dict[str, Any] = {**ARGUMENTS, "bf16": False}
    texts = datasets.Dataset.from_list([{"prompt": p, "completion": c} for p, c in PAIRS])
    made = TinySFT(
        method=arm,
        model=model or tiny_model("llama"),
        args=trl.SFTConfig(str(folder), **{**common, **changes}),
        train_dataset=texts if train_dataset is None else train_dataset,
        processing_class=tiny_tokenizer(),
        peft_config=peft.LoraConfig(
            r=LORA.r, lora_alpha=10, target_modules=list(LORA.target_modules)
        ),
    )
    made.engines_order = engines_order
    return made
