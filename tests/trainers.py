"""Tiny trainers of transformers under a method, and the engine's run of the same settings."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import peft
import torch
from torch import Tensor, nn
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from schemabank import BankSettings, RunConfig, TrainSettings, Tuner
from schemabank.config.settings import LoraSettings
from schemabank.engine.run import TrainingData
from schemabank.methods.schemabank.attach import banks_of
from schemabank.runs.pairs import as_examples
from schemabank.runs.prepare import training_data
from schemabank.trainer import MethodTrainerMixin
from tiny import END_TOKEN_ID, Kind, tiny_model, tiny_tokenizer

STEPS, BATCH, SEED, RATE = 50, 4, 7, 1e-2
PAIRS = [(f"{i}+{i % 5}=", f"{'so ' * (i % 4)}{i + i % 5}") for i in range(24)]
LORA = LoraSettings(r=4, lora_alpha=10, lora_dropout=0, target_modules=("q_proj", "v_proj"))
BANK = BankSettings(
    num_schemas=8, rank=4, attribute_dim=4, load_balance_weight=0.1, entropy_weight=0.05
)
OWN: dict[str, dict[str, object]] = {
    "schemabank": {"bank": BANK},
    "experts": {"experts": {"routing": "learned"}},
}
TOKENS = torch.tensor([[5, 9, 200, 33, 12]])
# What weights may differ by after training; docs/trainer.md says so. In float64 a trainer and the
# engine both round rates and shares to float32. A wrong rate, draw, order or penalty in one step
# moves Adam's weights by a share of the rate.
TOLERANCE = 1e-5
ROUNDING = 1e-3  # in float32; Adam stretches rounding where gradients are tiny
OF_PROCESSES = 1e-10  # in float64, where one and several processes round rates alike


def method(arm: str, **changes: object) -> RunConfig:
    """A method with little settings; a bank has all of its penalties, and experts have routers."""
    own: dict[str, object] = OWN.get(arm, {})
    return RunConfig.model_validate({"arm": arm, **own, **changes})


def tokens_of(pairs: list[tuple[str, str]] = PAIRS) -> TrainingData:
    """The pairs as the engine's tokens and batches."""
    examples = as_examples(pairs)
    texts = [(e.id, e.question, e.solution) for e in examples]
    settings = RunConfig(arm="lora", train=TrainSettings(batch_size=BATCH))
    return training_data(examples, texts, settings, tiny_tokenizer())


def rows(data: TrainingData) -> datasets.Dataset:
    """The same as a trainer's rows, with their texts."""
    found = []
    for (prompt, completion), e in zip(PAIRS, data.encoded, strict=True):
        labels = [-100] * e.label_start + list(e.tokens[e.label_start :])
        row = {"input_ids": list(e.tokens), "labels": labels}
        found.append({"prompt": prompt, "completion": completion, **row})
    return datasets.Dataset.from_list(found)


def collate(batch: list[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Pad rows on the right."""
    width = max(len(row["input_ids"]) for row in batch)

    def padded(name: str, padding: int) -> Tensor:
        return torch.tensor([[*r[name], *[padding] * (width - len(r[name]))] for r in batch])

    lengths = torch.tensor([len(row["input_ids"]) for row in batch])
    return {
        "input_ids": padded("input_ids", END_TOKEN_ID),
        "labels": padded("labels", -100),
        "attention_mask": (torch.arange(width) < lengths[:, None]).long(),
    }


class EnginesOrder(torch.utils.data.Sampler[int]):
    """The engine's examples of one epoch after another."""

    def __init__(self, data: TrainingData) -> None:
        self._data, self._epoch = data, 0

    def __len__(self) -> int:
        return len(self._data.examples)

    def __iter__(self) -> Iterator[int]:
        batches = self._data.schedule.rows(SEED, self._epoch).tolist()
        self._epoch += 1
        return iter([index for batch in batches for index in batch])


class TinyTrainer(MethodTrainerMixin, Trainer):
    """transformers' trainer under a method; with ``data`` in the engine's order of examples."""

    data: TrainingData | None = None

    def _get_train_sampler(self, *args: object) -> object:
        if self.data is None:
            return super()._get_train_sampler(*args)
        return EnginesOrder(self.data)


class Stopping(TrainerCallback):
    """Ends a run after twelve steps, in the middle of its course."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        del args
        control.should_training_stop = state.global_step == 12


ARGUMENTS: dict[str, Any] = {
    "max_steps": STEPS,
    "per_device_train_batch_size": BATCH,
    "learning_rate": RATE,
    "warmup_steps": 0.05,
    "weight_decay": 0.01,
    "seed": SEED,
    "use_cpu": True,
    "report_to": [],
    "save_strategy": "no",
    "disable_tqdm": True,
}


def arguments(folder: Path, **changes: object) -> TrainingArguments:
    """Arguments of a tiny trainer on the CPU."""
    return TrainingArguments(str(folder), **{**ARGUMENTS, "logging_steps": 10, **changes})


def wrapped(
    kind: Kind = "llama", *, lora: LoraSettings = LORA, dtype: torch.dtype = torch.float32
) -> peft.PeftModel:
    """A tiny model under PEFT."""
    config = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=list(lora.target_modules),
        task_type="CAUSAL_LM",
    )
    model = tiny_model(kind)
    return peft.get_peft_model(model if dtype == torch.float32 else model.to(dtype), config)


def trainer(
    folder: Path,
    arm: RunConfig,
    *,
    kind: Kind = "llama",
    lora: LoraSettings = LORA,
    engines_order: bool = False,
    dtype: torch.dtype = torch.float32,
    **changes: object,
) -> TinyTrainer:
    """A tiny trainer that has not begun."""
    data = tokens_of()
    made = TinyTrainer(
        method=arm,
        model=wrapped(kind, lora=lora, dtype=dtype),
        args=arguments(folder, **changes),
        train_dataset=rows(data),
        eval_dataset=rows(data) if "eval_strategy" in changes else None,
        data_collator=collate,
        processing_class=tiny_tokenizer(),
    )
    made.data = data if engines_order else None
    return made


def engine(
    arm: RunConfig, kind: Kind = "llama"
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Adapter and bank that the engine comes to with the same settings."""
    given = {"max_steps": STEPS, "learning_rate": RATE, "batch_size": BATCH}
    given["loraplus_lr_ratio"] = arm.train.loraplus_lr_ratio
    settings = arm.model_copy(
        update={"seed": SEED, "lora": LORA, "train": TrainSettings.model_validate(given)}
    )
    tuner = Tuner(tiny_model(kind), tiny_tokenizer(), settings)
    tuner.train(PAIRS)
    banks = banks_of(tuner.stack).tensors(0) if settings.uses("bank") else {}
    return tuner.stack.lora.tensors(0), banks


def tensors(trained: TinyTrainer) -> dict[str, tuple[Tensor, Tensor]]:
    """What a trainer has come to."""
    return dict(trained._adapter.tensors())


def logits(model: nn.Module) -> Tensor:
    """Logits of a short text."""
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=TOKENS, use_cache=False).logits
    return found


def furthest(
    ours: Mapping[str, tuple[Tensor, Tensor]], theirs: Mapping[str, tuple[Tensor, Tensor]]
) -> float:
    """The largest difference of two adapters' weights."""
    assert ours.keys() == theirs.keys()
    pairs = [(x, y) for path in ours for x, y in zip(ours[path], theirs[path], strict=True)]
    return max(float((x - y).abs().max()) for x, y in pairs)
