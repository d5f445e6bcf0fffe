"""The same inside TRL's `SFTTrainer`; nothing else needs TRL."""

from pathlib import Path
from typing import Any

import datasets
import peft
import pytest
import torch
import trl

from schemabank import InputError, RunConfig, Tuner
from schemabank.trainer import MethodTrainerMixin
from tiny import tiny_model, tiny_tokenizer
from tinyruns import write_model
from trainers import PAIRS, ROUNDING, engine, furthest, logits, method, rows, tensors, tokens_of
from trltrainers import TinySFT, sft_trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:.*pin_memory"
)

ARMS = ("lora", "coto", "molf", "schemabank", "shrink", "experts")


def on_tokens(folder: Path, arm: RunConfig, *, engines_order: bool = False) -> TinySFT:
    """A trainer whose data are the engine's tokens."""
    data = rows(tokens_of())
    return sft_trainer(folder, arm, train_dataset=data, engines_order=engines_order)


@pytest.mark.parametrize("arm", ARMS)
def test_it_ends_at_the_engines_weights_and_in_stock_peft(arm: str, tmp_path: Path) -> None:
    trained = on_tokens(tmp_path, method(arm), engines_order=True)
    assert trained.args.gradient_checkpointing
    trained.train()
    assert furthest(tensors(trained), engine(method(arm))[0]) < ROUNDING
    trained.save_model(str(tmp_path / "adapter"))
    stock = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "adapter")
    assert torch.equal(logits(stock), logits(trained.model))


def test_texts_are_tagged_as_they_were_before_trl_made_tokens_of_them(tmp_path: Path) -> None:
    trained = sft_trainer(tmp_path, method("schemabank"), engines_order=True)
    trained.train()
    assert furthest(tensors(trained), engine(method("schemabank"))[0]) < ROUNDING


def test_the_trainers_own_noise_on_embeddings_acts(tmp_path: Path) -> None:
    noises: tuple[dict[str, float], ...] = ({}, {}, {"neftune_noise_alpha": 5.0})
    plain, again, noisy = (
        sft_trainer(tmp_path / str(i), method("coto"), **noise) for i, noise in enumerate(noises)
    )
    for trained in (plain, again, noisy):
        torch.manual_seed(0)
        trained.train()
    assert furthest(tensors(again), tensors(plain)) == 0
    assert furthest(tensors(noisy), tensors(plain)) > ROUNDING


@pytest.mark.parametrize("step", [8, 24, 40])
def test_a_run_goes_on_from_every_stage(step: int, tmp_path: Path) -> None:
    folders = (tmp_path, tmp_path / "again")
    whole, again = (on_tokens(folder, method("schemabank")) for folder in folders)
    whole.args.save_strategy, whole.args.save_steps = "steps", 8
    whole.state.save_steps = 8
    whole.train()
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert furthest(tensors(again), tensors(whole)) == 0


@pytest.mark.parametrize(
    ("changes", "kept"), [({"shuffle_dataset": True}, len(PAIRS)), ({"max_length": 5}, 6)]
)
def test_rows_that_trl_shuffles_or_drops_keep_their_tags(
    changes: dict[str, Any], kept: int, tmp_path: Path
) -> None:
    pairs = [
        (f"{i}+{i}=" if i < kept else f"{i} and {i} = ", f"{2 * i}") for i in range(len(PAIRS))
    ]
    texts = datasets.Dataset.from_list([{"prompt": p, "completion": c} for p, c in pairs])
    trained = sft_trainer(tmp_path, method("schemabank"), train_dataset=texts, **changes)
    numbers = trained.train_dataset["example_index"][:]
    assert trained.train_dataset["prompt"][:] == [pairs[number][0] for number in numbers]
    assert len(numbers) == kept
    assert (numbers != sorted(numbers)) == ("shuffle_dataset" in changes)


def test_a_model_that_a_tuner_has_wrapped_is_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    Tuner(model, tiny_tokenizer(), RunConfig(arm="lora"))
    args = trl.SFTConfig(str(tmp_path), use_cpu=True, bf16=False, max_steps=1, report_to=[])
    texts = datasets.Dataset.from_list([{"prompt": p, "completion": c} for p, c in PAIRS])
    stock = trl.SFTTrainer(model, args, train_dataset=texts, processing_class=tiny_tokenizer())
    with pytest.raises(InputError, match=r"would change no weight.*tuner\.remove\(\) first"):
        stock.train()


def test_other_trainers_of_trl_are_refused(tmp_path: Path) -> None:
    class TinyDPO(MethodTrainerMixin, trl.DPOTrainer):
        pass

    with pytest.raises(InputError, match=r"DPOTrainer.*allowed are transformers' Trainer and"):
        TinyDPO(
            method=method("coto"),
            model=tiny_model("llama"),
            args=trl.DPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to=[]),
        )


def test_the_docs_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "trainer.md").read_text(encoding="utf-8")
    _, code, _ = page.partition("<!-- example: trl -->")[2].split("```", 2)
    # TRL asks for a GPU unless it is told otherwise.
    code = code.removeprefix("python\n").replace('SFTConfig("out"', 'SFTConfig("out", use_cpu=True')
    assert len(code.strip().splitlines()) > 15
    write_model(tmp_path / "Qwen" / "Qwen2-0.5B", "llama")
    monkeypatch.chdir(tmp_path)
    exec(code, {})  # noqa: S102 -- our own page
    stock = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "my-adapter")
    assert not torch.equal(logits(stock), logits(tiny_model("llama")))
