"""What a trainer cannot honour is refused by one sentence, before it has trained anything."""

import inspect
from pathlib import Path
from typing import Any

import datasets
import peft
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from transformers import Trainer, TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from schemabank import BankSettings, InputError, LoraSettings, RunConfig, TagSettings, TrainSettings
from schemabank.config.settings import EvalSettings
from schemabank.config.task import TaskSettings
from schemabank.trainer import MethodTrainerMixin
from schemabank.trainer.checks import check_arguments
from tiny import tiny_model, tiny_tokenizer
from trainers import (
    BANK,
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
REENTRANT = {"use_reentrant": True}


def made(folder: Path, arm: RunConfig, **options: object) -> TinyTrainer:
    """A trainer with other options than the usual ones."""
    usual = {
        "model": wrapped(),
        "args": arguments(folder),
        "train_dataset": rows(tokens_of()),
        "data_collator": collate,
        "processing_class": tiny_tokenizer(),
    }
    return TinyTrainer(method=arm, **{**usual, **options})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"arm": "swap"},
            "arm is 'swap', .* own engine alone: allowed in a trainer are lora, molf",
        ),
        ({"arm": "molf", "molf": {"num_adapters": 3}}, r"lora\.r is 4 and molf\.num_adapters is 3"),
        ({"arm": "base"}, "arm is 'base', which"),
        ({"arm": "coto", "seed": 3}, r"states seed, which has no effect .*; set it in args\.seed"),
        (
            {"arm": "coto", "lora": LoraSettings(r=4)},
            r"states lora\.r, .*set it in peft\.LoraConfig",
        ),
        (
            {"arm": "lora", "train": TrainSettings(max_skipped_in_row=3)},
            r"states train\.max_skipped_in_row, .*set it in the trainer's arguments, if they have",
        ),
        (
            {"arm": "lora", "train": TrainSettings(learning_rate=1e-4)},
            r"states train\.learning_rate, .*set it in the trainer's arguments",
        ),
        ({"arm": "lora", "average": {"kind": "bema"}}, r"states average\.kind.*Tuner"),
        ({"arm": "lora", "eval": EvalSettings(limit=3)}, r"states eval\.limit.*leave it out"),
        ({"arm": "lora", "task": TaskSettings(max_length=9)}, r"states task\.max_length"),
        ({"arm": "lora", "bank": BankSettings(rank=2)}, r"states bank\.rank"),
        ({"arm": "coto", "coto": {"initial_probability": 1, "rising_ratio": 0.5}}, "rising_ratio"),
        (
            {"arm": "schemabank", "tags": TagSettings(delivery="both")},
            r"tags\.delivery is 'both', .*allowed is loss",
        ),
        (
            {"arm": "schemabank", "tags": TagSettings(tagger="cluster")},
            r"tagger is 'cluster', .*allowed .* are content, field, hash, none and random",
        ),
        (
            {"arm": "schemabank", "tags": TagSettings(tagger="field", field="kind")},
            "has no field 'kind'",
        ),
        ({"arm": "schemabank", "bank": BankSettings(last_n=4)}, "last_n is 4, but the model has 3"),
    ],
)
def test_settings_of_the_method(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        made(tmp_path, RunConfig.model_validate(settings)).train()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": "adafactor"}, r"args\.optim is 'adafactor', .*allowed is adamw_torch or"),
        ({"lr_scheduler_type": "inverse_sqrt"}, "allowed is linear, cosine, constant_with_warmup"),
        ({"learning_rate": 0}, r"args\.learning_rate is 0\.?0?, .*above 0"),
        ({"warmup_steps": 10}, r"args\.warmup_steps is 10, .*a share of every stage's steps"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size is True"),
        ({"torch_compile": True}, "torch_compile is True"),
        (
            {"gradient_accumulation_steps": 2},
            r"gradient_accumulation_steps is 2, .*allowed is 1 with bank\.load_balance_weight",
        ),
        (
            {
                "gradient_checkpointing": True,
                "gradient_checkpointing_kwargs": {"use_reentrant": True},
            },
            "allowed is use_reentrant False",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_arguments_of_the_trainer(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        trainer(tmp_path, method("schemabank"), **changes)


@pytest.mark.parametrize(
    ("arm", "changes", "message"),
    [
        ("schemabank", {}, r"world_size is 2, .*allowed is 1 with bank\.load_balance_weight"),
        ("lora", {"average_tokens_across_devices": False}, "allowed is True in several processes"),
        (
            "lora",
            {"accelerator_config": AcceleratorConfig(even_batches=False)},
            r"accelerator_config is \{'even_batches': False\}, .*allowed is even_batches True",
        ),
        (
            "lora",
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": REENTRANT},
            r"kwargs is \{'use_reentrant': True\}, .*False in several processes",
        ),
        ("coto", {"n_gpu": 2}, "n_gpu is 2, .*allowed is one visible GPU a process"),
        ("even", {"ddp_find_unused_parameters": False}, "unused_parameters is False.*is True, sin"),
        ("even", {"ddp_static_graph": True}, "ddp_static_graph is True, .*allowed is False"),
        ("lora", {"parallelism_config": object()}, "parallelism_config is 'given', .*is DDP"),
    ],
)
def test_several_processes_that_would_train_otherwise(
    arm: str,
    changes: dict[str, object],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    even = method("schemabank", bank=BANK.model_copy(update={"load_balance_weight": 0.0}))
    args = arguments(tmp_path)
    for name, value in {"world_size": 2, **changes}.items():
        monkeypatch.setattr(TrainingArguments, name, value)
        vars(args).pop(name, None)
    own = even if arm == "even" else method(arm)
    with pytest.raises(InputError, match=message):
        check_arguments(args, own)
    if not changes.keys() & {"n_gpu", "parallelism_config"}:
        monkeypatch.setattr(TrainingArguments, "world_size", 1)
        check_arguments(args, own)


def test_processes_that_split_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = made(tmp_path, method("lora"))
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.MEGATRON_LM)
    with pytest.raises(InputError, match=r"processes are started as MEGATRON_LM, .*or DDP"):
        late.train()


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (
            {"use_dora": True},
            "use_dora is True, but SchemaBank trains plain LoRA: allowed is False",
        ),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern is"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
    ],
)
def test_adapters_that_are_more_than_lora(
    lora: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = peft.get_peft_model(
        tiny_model("llama"), peft.LoraConfig(r=4, target_modules=["q_proj"], **lora)
    )
    with pytest.raises(InputError, match=message):
        made(tmp_path, method("lora"), model=model)


def test_models_without_the_one_adapter(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model is a LlamaForCausalLM: allowed is a peft\.Peft"):
        made(tmp_path, method("lora"), model=tiny_model("llama"))
    model = wrapped()
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(InputError, match=r"default \(LoraConfig\), second \(LoraConfig\): allowed"):
        made(tmp_path, method("lora"), model=model)
    with pytest.raises(InputError, match=r"weights are torch\.bfloat16, which swallows"):
        made(tmp_path, method("lora"), model=wrapped().to(torch.bfloat16))
    one = peft.LoraConfig(r=4, target_modules=["q_proj"], layers_to_transform=[1])
    with pytest.raises(InputError, match="a single block has adapters"):
        made(tmp_path, method("coto"), model=peft.get_peft_model(tiny_model("llama"), one))


def test_what_is_no_method(tmp_path: Path) -> None:
    for wrong in ("coto", None, {"arm": "coto"}):
        with pytest.raises(InputError, match=r"method is .*: allowed is a schemabank\.RunConfig"):
            made(tmp_path, wrong)  # type: ignore[arg-type]


def test_weights_that_no_stage_would_train(tmp_path: Path) -> None:
    unfrozen = wrapped()
    unfrozen.get_base_model().model.norm.weight.requires_grad_(True)
    with pytest.raises(InputError, match=r"model\.norm\.weight is to be trained.*requires_grad_"):
        made(tmp_path, method("lora"), model=unfrozen)
    embedded = peft.LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(InputError, match=r"embed_tokens\.lora_embedding_A\.default is to be"):
        made(tmp_path, method("lora"), model=peft.get_peft_model(tiny_model("llama"), embedded))
    later = made(tmp_path, method("lora"))
    later.model.get_base_model().model.norm.weight.requires_grad_(True)
    with pytest.raises(InputError, match=r"model\.norm\.weight is to be trained"):
        later.train()


def test_options_may_be_given_by_their_places(tmp_path: Path) -> None:
    given = (wrapped(), arguments(tmp_path, max_steps=2), collate, rows(tokens_of()))
    placed = TinyTrainer(*given, method=method("schemabank"), processing_class=tiny_tokenizer())
    placed.train()
    assert placed.state.global_step == 2
    own = (torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), None)
    names = list(inspect.signature(Trainer.__init__).parameters)[1:]
    between = [None] * (names.index("optimizers") - len(given))
    with pytest.raises(InputError, match="optimizers was given to the trainer"):
        TinyTrainer(*given, *between, own, method=method("lora"))


def test_an_optimizer_of_ones_own_making_is_refused(tmp_path: Path) -> None:
    early = made(tmp_path, method("lora"))
    for make in (early.create_optimizer, lambda: early.create_optimizer_and_scheduler(5)):
        with pytest.raises(InputError, match=r"outside of train\(\).*call trainer\.train\(\)"):
            make()


def test_places_that_have_no_names_are_refused(tmp_path: Path) -> None:
    class Relaying(Trainer):
        def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 -- a relay
            super().__init__(*args, **options)

    class TinyRelaying(MethodTrainerMixin, Relaying):
        pass

    for given in ((wrapped(), arguments(tmp_path)), (wrapped(),)):
        named = {"args": arguments(tmp_path)} if len(given) == 1 else {}
        with pytest.raises(InputError, match="were given to the trainer by their places"):
            TinyRelaying(*given, method=method("lora"), **named)
    TinyRelaying(
        model=wrapped(),
        args=arguments(tmp_path),
        method=method("schemabank"),
        train_dataset=rows(tokens_of()),
    )


def test_arguments_are_refused_before_the_data_are_prepared(tmp_path: Path) -> None:
    class Slow(MethodTrainerMixin, _Tokenizing):
        pass

    prepared: list[bool] = []
    usual = _Tokenizing.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            _Tokenizing, "__init__", lambda *a, **o: (prepared.append(True), usual(*a, **o))
        )
        with pytest.raises(InputError, match=r"args\.optim is 'adafactor'"):
            Slow(
                method=method("lora"),
                model=wrapped(),
                args=arguments(tmp_path, optim="adafactor"),
                train_dataset=rows(tokens_of()),
            )
    assert not prepared


def test_what_else_a_trainer_may_be_given(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    own = (torch.optim.SGD([weight], lr=1.0), None)
    for options in ({"optimizers": own}, {"compute_loss_func": lambda *_, **__: None}):
        with pytest.raises(InputError, match=rf"{next(iter(options))} was given to the trainer"):
            made(tmp_path, method("lora"), **options)


def test_data_that_tags_cannot_be_made_of(tmp_path: Path) -> None:
    bare = rows(tokens_of()).remove_columns(["prompt", "completion"])
    with pytest.raises(
        InputError, match=r"tags\.tagger is 'hash', which needs the examples' texts"
    ):
        made(tmp_path, method("schemabank"), train_dataset=bare)
    untagged = method("schemabank", tags={"tagger": "none"})
    made(tmp_path, untagged, train_dataset=bare).train()
    with pytest.raises(InputError, match="data are a list, but tags and experts need numbered"):
        made(tmp_path, method("schemabank"), train_dataset=list(rows(tokens_of())))

    named = rows(tokens_of())
    named = named.add_column("example_index", list(range(len(named))))
    with pytest.raises(InputError, match=r"column example_index, .* rename it"):
        made(tmp_path, method("schemabank"), train_dataset=named)

    class Tokenizing(MethodTrainerMixin, _Tokenizing):
        pass

    with pytest.raises(InputError, match=r"no column example_index .*allowed is no packing"):
        Tokenizing(
            method=method("schemabank"),
            model=wrapped(),
            args=arguments(tmp_path),
            train_dataset=rows(tokens_of()),
        )


class _Tokenizing(Trainer):
    """Leaves no columns but its own, as TRL's does when it packs rows."""

    def __init__(self, *, train_dataset: datasets.Dataset, **options: object) -> None:
        own = train_dataset.select_columns(["input_ids", "labels"])
        super().__init__(train_dataset=own, **options)


def test_batches_that_do_not_say_what_is_padding(tmp_path: Path) -> None:
    def without_mask(batch: list[Any]) -> dict[str, torch.Tensor]:
        return {k: v for k, v in collate(batch).items() if k != "attention_mask"}

    unsure = made(tmp_path, method("schemabank"), data_collator=without_mask)
    with pytest.raises(InputError, match="a batch has no attention_mask"):
        unsure.train()
    assert unsure.state.global_step == 0
    made(tmp_path, method("coto"), data_collator=without_mask).train()


def test_warm_up_beyond_the_last_step_is_refused(tmp_path: Path) -> None:
    for steps in (21, 50):  # of which the first is more than what stands for any number
        trainer(tmp_path, method("lora"), warmup_steps=steps)
    late = trainer(tmp_path, method("lora"), warmup_steps=9, max_steps=8)
    with pytest.raises(InputError, match=r"args\.warmup_steps is 9, .* run has 8 steps"):
        late.train()
    constant = {"lr_scheduler_type": "constant", "warmup_steps": 9, "max_steps": 8}
    trainer(tmp_path, method("lora"), **constant).train()


def test_what_was_changed_after_a_trainer_was_made(tmp_path: Path) -> None:
    def merge(late: TinyTrainer) -> None:
        late.model.merge_adapter()

    def disable(late: TinyTrainer) -> None:
        late.model.base_model.disable_adapter_layers()

    def halve(late: TinyTrainer) -> None:
        late.model.to(torch.bfloat16)

    def accumulate(late: TinyTrainer) -> None:
        late.args.gradient_accumulation_steps = 2

    for change, message in (
        (merge, r"the adapter is merged.*unmerge_adapter"),
        (disable, r"the adapter is disabled.*enable_adapter_layers"),
        (halve, r"weights are torch\.bfloat16, which swallows"),
        (accumulate, r"args\.gradient_accumulation_steps is 2"),
    ):
        late = made(tmp_path, method("schemabank"))
        change(late)
        with pytest.raises(InputError, match=message):
            late.train()
        assert late.state.global_step == 0


@pytest.mark.parametrize("name", ["train_dataset", "data_collator"])
def test_batches_that_lost_the_examples_numbers(name: str, tmp_path: Path) -> None:
    late = made(tmp_path, method("schemabank"))
    setattr(late, name, {"train_dataset": rows(tokens_of()), "data_collator": collate}[name])
    with pytest.raises(InputError, match=r"a batch has no example_index, .*a new trainer"):
        late.train()
    assert late.state.global_step == 0
