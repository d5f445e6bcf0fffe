"""The maps of ``experts`` in a trainer: what cannot be told apart or fade is refused."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from schemabank import InputError
from schemabank.engine.lora import Maps
from schemabank.engine.loralayers import MIX
from schemabank.trainer.adapter import PeftAdapter
from schemabank.trainer.maps import ExpertMaps
from tiny import tiny_model, tiny_tokenizer
from trainers import (
    LORA,
    TinyTrainer,
    arguments,
    collate,
    method,
    rows,
    tokens_of,
    trainer,
    wrapped,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

HASHED = method("experts", experts={"routing": "hash"})
TWICE = method("experts", experts={"consistency_weight": 0.5})


def test_routing_that_fades_in_the_first_step_is_refused(tmp_path: Path) -> None:
    fading = method("experts", experts={"routing": "learned", "annealing_ratio": 0.02})
    made = trainer(tmp_path, fading)
    with pytest.raises(InputError, match=r"annealing_ratio is 0.02 of 50 steps, .*raise it"):
        made.train()
    trainer(tmp_path, fading, max_steps=51).train()


def test_two_passes_that_nothing_tells_apart_are_refused(tmp_path: Path) -> None:
    learned = method("experts", experts={"routing": "learned", "consistency_weight": 0.5})
    with pytest.raises(InputError, match=r"both passes over a batch are the same: set it to 0"):
        trainer(tmp_path, learned)
    dropped = LORA.model_copy(update={"lora_dropout": 0.2})
    made = trainer(tmp_path, learned, lora=dropped, max_steps=2)
    made.train()


def test_rows_without_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"are a list, but tags and experts .*experts\.routing to"):
        TinyTrainer(
            method=HASHED,
            model=wrapped(),
            args=arguments(tmp_path),
            train_dataset=list(rows(tokens_of())),
            data_collator=collate,
            processing_class=tiny_tokenizer(),
        )


def test_a_batch_with_more_than_rows_cannot_run_twice(tmp_path: Path) -> None:
    def more(batch: list[Any]) -> dict[str, Tensor]:
        return {**collate(batch), "position_ids": torch.arange(3)[None]}

    made = trainer(tmp_path, TWICE)
    made.data_collator = more
    with pytest.raises(InputError, match=r"'position_ids', which does not go by its rows"):
        made.train()


def test_two_passes_need_a_frozen_output_layer(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    made = TinyTrainer(
        method=TWICE,
        model=peft.get_peft_model(tiny_model("llama"), config),
        args=arguments(tmp_path),
        train_dataset=rows(tokens_of()),
        data_collator=collate,
        processing_class=tiny_tokenizer(),
    )
    with pytest.raises(InputError, match=r"the output layer has an adapter, .*without the output"):
        made.train()


def test_a_layer_that_sees_other_tokens_than_the_batch_is_refused() -> None:
    model = wrapped()
    maps = ExpertMaps(model, PeftAdapter(model), Maps(2))
    one_each = torch.eye(2)[:, None].expand(2, len(maps.a), 2)
    maps.use({MIX: one_each.tolist()}, None, 10)
    maps.act()
    model(torch.ones(2, 5, dtype=torch.long))
    with pytest.raises(
        InputError, match=r"sees 8 tokens of a batch of 10, .*'random' or 'learned'"
    ):
        model(torch.ones(2, 4, dtype=torch.long))
    maps.remove()
