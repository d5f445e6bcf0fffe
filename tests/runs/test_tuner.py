import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from itertools import chain, count
from pathlib import Path
from typing import Any

import datasets
import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

import schemabank
from schemabank import BankSettings, InputError, LoraSettings, RunConfig, TagSettings, TrainSettings
from schemabank.config.settings import EngineSettings, EvalSettings, ModelSettings
from schemabank.config.task import TaskSettings
from schemabank.config.train import THREE_STAGES
from schemabank.engine.cohort import Cohort, RunStep
from schemabank.engine.loss import mean_per_slot
from schemabank.engine.programs import Programs
from schemabank.runs import asking, rescale
from tiny import END_TOKEN_ID, Kind, mixed, state, tiny_model, tiny_tokenizer
from tinyruns import write_model

# PEFT 0.21 asks transformers 5.23 for a property by its deprecated name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

PAIRS = [(f"{i}+{i}=", f"{2 * i}") for i in range(12)]
TOKENS = torch.tensor([[5, 9, 200, 33, 12]])
KINDS: tuple[Kind, ...] = ("llama", "qwen2", "gemma3")


def config(**changes: object) -> RunConfig:
    common = {"arm": "schemabank", "lora": LoraSettings(r=4, lora_alpha=10)}
    if changes.get("arm") == "lora":
        train = TrainSettings(num_train_epochs=4, learning_rate=1e-2)
        return RunConfig.model_validate({**common, "train": train, **changes})
    stages = [stage.model_copy(update={"learning_rate": 1e-2}) for stage in THREE_STAGES]
    own = {"bank": BankSettings(num_schemas=8, rank=4), "curriculum": stages}
    own["train"] = TrainSettings(num_train_epochs=4)
    return RunConfig.model_validate({**common, **own, **changes})


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(input_ids=TOKENS, use_cache=False).logits
    return result


def test_the_readmes_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path
    folder = write_model(root / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    untouched = logits(model)
    tuner = schemabank.Tuner(model, tokenizer, config())
    steps = tuner.train(PAIRS)
    assert [s.stage for s in steps] == ["router"] * 4 + ["schemas"] * 3 + ["joint"] * 5
    bare = logits(model)
    tuner.set_routing("on")
    routed = logits(model)
    tuner.set_routing("dense")
    dense = logits(model)
    assert not torch.equal(routed, bare)
    assert not torch.equal(dense, routed)
    tuner.detach()
    assert torch.equal(logits(model), bare), "detach restores the unrouted logits bit for bit"
    assert (bare - untouched).abs().max() > 1e-3
    tuner.save(root / "adapter")
    fresh = AutoModelForCausalLM.from_pretrained(folder)
    stock = peft.PeftModel.from_pretrained(fresh, root / "adapter")
    torch.testing.assert_close(logits(stock), bare, rtol=0, atol=1e-5)
    assert stock.peft_config["default"].base_model_name_or_path == str(folder)
    tuner.remove()
    assert torch.equal(logits(model), untouched)
    assert capsys.readouterr().out == "", "progress goes to stderr"


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_was_never_saved_trains_and_comes_back(kind: Kind) -> None:
    model, plain = tiny_model(kind), tiny_model(kind)
    tuner = schemabank.Tuner(model, tiny_tokenizer(), config())
    assert torch.equal(logits(model), logits(plain)), "LoRA's B starts at zero"
    steps = tuner.train(PAIRS)
    assert sum(s.loss for s in steps[-3:]) < sum(s.loss for s in steps[:3])
    tuner.remove()
    assert torch.equal(logits(model), logits(plain))
    assert list(model.state_dict()) == list(plain.state_dict())


def test_generation_runs_with_the_adapter() -> None:
    model = tiny_model("llama")
    tuner = schemabank.Tuner(model, tiny_tokenizer(), config())
    tuner.train([("1+1=", "2")] * 40)
    prompt = torch.tensor([tiny_tokenizer()("1+1=")["input_ids"]])
    made = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=2
    )
    assert tiny_tokenizer().decode(made[0, prompt.shape[1] :]) == "2<|end|>"


def test_lora_alone_and_defaults() -> None:
    tuner = schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), config(arm="lora"))
    assert {s.stage for s in tuner.train(PAIRS)} == {"lora"}
    with pytest.raises(InputError, match="routing 'on' needs banks, and none are attached"):
        tuner.set_routing("on")
    tuner.set_routing("off")
    assert schemabank.Tuner(tiny_model("llama"), tiny_tokenizer()).config == RunConfig(arm="lora")


@pytest.mark.parametrize("failure", [None, KeyboardInterrupt])
def test_a_trained_model_runs_as_it_is_written(
    monkeypatch: pytest.MonkeyPatch, failure: type[BaseException] | None
) -> None:
    """As the engine does on a GPU, blocks are compiled for the training."""
    steps = Cohort.steps

    def compiled_steps(self: Cohort) -> Iterator[list[RunStep]]:
        self.stack.compile()
        yield from steps(self)
        if failure is not None:
            raise failure

    monkeypatch.setattr(Cohort, "steps", compiled_steps)
    monkeypatch.setattr(torch, "compile", lambda forward, **_: lambda *a, **k: forward(*a, **k))
    model = tiny_model("llama")
    tuner = schemabank.Tuner(model, tiny_tokenizer(), config())
    for _ in range(2):
        with nullcontext() if failure is None else pytest.raises(failure):
            tuner.train(PAIRS)
        assert not any("forward" in vars(module) for module in model.modules())
        assert not model.get_input_embeddings()._forward_hooks
    tuner.set_routing("on")
    routed = logits(model)
    tuner.detach()
    assert not torch.equal(logits(model), routed), "adapter and banks are still there"


def test_what_the_engine_explains_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = Cohort.steps

    def explained_steps(self: Cohort) -> Iterator[list[RunStep]]:
        self._explain("there is no Triton")
        yield from steps(self)

    monkeypatch.setattr(Cohort, "steps", explained_steps)
    schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), config()).train(PAIRS)
    assert capsys.readouterr().err.count("there is no Triton") == 1


def test_training_twice_starts_from_fresh_weights() -> None:
    tuner = schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), config())
    assert tuner.train(PAIRS) == tuner.train(PAIRS)
    other = schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), config(seed=7))
    assert [s.loss for s in other.train(PAIRS)] != [s.loss for s in tuner.train(PAIRS)]


def test_what_came_off_cannot_train_or_route() -> None:
    tuner = schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), config())
    tuner.detach()
    with pytest.raises(InputError, match=r"train\(\) after the banks came off: allowed is"):
        tuner.train(PAIRS)
    with pytest.raises(InputError, match="routing 'dense' needs banks"):
        tuner.set_routing("dense")
    tuner = schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), config(arm="lora"))
    tuner.remove()
    with pytest.raises(InputError, match=r"train\(\) after the adapter came off"):
        tuner.train(PAIRS)


def test_removing_twice_leaves_a_later_adapter_alone() -> None:
    model = tiny_model("llama")
    first = schemabank.Tuner(model, tiny_tokenizer(), config())
    first.remove()
    second = schemabank.Tuner(model, tiny_tokenizer(), config())
    second.train(PAIRS)
    adapted = logits(model)
    first.remove()
    assert torch.equal(logits(model), adapted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": LoraSettings(target_modules=("query",))}, r"'query', which matches no linear"),
        ({"bank": BankSettings(last_n=4)}, r"last_n is 4, but the model has 3 blocks"),
    ],
)
def test_settings_that_do_not_fit_leave_the_model_alone(
    changes: dict[str, object], message: str
) -> None:
    model = tiny_model("llama")
    with pytest.raises(InputError, match=message):
        schemabank.Tuner(model, tiny_tokenizer(), config(**changes))
    assert torch.equal(logits(model), logits(tiny_model("llama")))
    assert list(model.state_dict()) == list(tiny_model("llama").state_dict())


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "0 training examples"),
        ([("", "x")], "'examples/0' has an empty prompt"),
        ([("1" * 600, "x")], r"'examples/0': its prompt alone has 600 tokens"),
    ],
)
def test_examples_that_cannot_be_trained_on(pairs: list[tuple[str, str]], message: str) -> None:
    tuner = schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), config())
    with pytest.raises(InputError, match=message):
        tuner.train(pairs)


def test_pairs_have_no_columns_to_tag_by() -> None:
    tags = TagSettings(tagger="field", field="template")
    tuner = schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), config(tags=tags))
    with pytest.raises(InputError, match="no field 'template'"):
        tuner.train(PAIRS)


def test_a_scale_cannot_be_chosen_without_validation_examples() -> None:
    rescaled = config(arm="lora", rescale={"factors": [0.5]})
    tuner = schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), rescaled)
    before = logits(tuner.model)
    with pytest.raises(InputError, match=r"factors is \[0\.5, 1\.0\], .*give them as validation"):
        tuner.train(PAIRS)
    assert torch.equal(logits(tuner.model), before)


def test_a_scale_is_chosen_by_the_validation_examples() -> None:
    short = TrainSettings(max_steps=3, learning_rate=1e-3)
    plain = schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), config(arm="lora", train=short))
    plain.train(PAIRS, validation=PAIRS[:2])
    assert plain.rescaled is None
    rescaled = config(arm="lora", train=short, rescale={"factors": [0.25, 2]})
    tuner = schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), rescaled)
    tuner.train(PAIRS, validation=PAIRS[:2])
    chosen = tuner.rescaled
    assert chosen is not None
    assert list(chosen.losses) == [0.25, 1, 2]
    assert chosen.losses[1] == plain.validation_loss
    assert chosen.factor != 1
    assert tuner.validation_loss == min(chosen.losses.values()) == tuner.evaluate(PAIRS[:2])
    own, others = (t.stack.lora.tensors(0) for t in (tuner, plain))
    for path, (a, b) in own.items():
        assert torch.equal(a, others[path][0])
        assert torch.equal(b, chosen.factor * others[path][1])


def test_memory_that_runs_out_at_another_scale_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object, **_options: object) -> None:
        raise torch.OutOfMemoryError("no room for 20 GiB")

    monkeypatch.setattr(rescale, "mean_losses", full)
    short = TrainSettings(max_steps=1)
    rescaled = config(arm="lora", train=short, rescale={"factors": [2]})
    tuner = schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), rescaled)
    with pytest.raises(RuntimeError, match=r"a single run, .* leave out the longest validation"):
        tuner.train(PAIRS, validation=PAIRS[:2])


def test_a_method_that_can_do_nothing_here_is_refused() -> None:
    experts = {"routing": "learned", "consistency_weight": 1}
    lora = LoraSettings(r=4, lora_dropout=0)
    settings = RunConfig.model_validate({"arm": "experts", "lora": lora, "experts": experts})
    tuner = schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), settings)
    with pytest.raises(InputError, match="both passes over a batch are the same"):
        tuner.train(PAIRS)


def test_gradients_that_stay_non_finite_are_a_failure() -> None:
    train = TrainSettings(num_train_epochs=1, learning_rate=1e38)
    tuner = schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), config(arm="lora", train=train))
    with pytest.raises(RuntimeError, match=r"not finite in 2 of the \d+ steps of the run"):
        tuner.train(PAIRS * 10)


def test_steps_that_a_failed_run_does_not_report_are_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a GPU, steps are under way when the run is given up."""
    steps = Cohort.steps
    monkeypatch.setattr(Cohort, "steps", lambda self: chain(steps(self), [[], []]))
    train = TrainSettings(num_train_epochs=1, learning_rate=1e38)
    tuner = schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), config(arm="lora", train=train))
    with pytest.raises(RuntimeError, match=r"not finite in 2 of the \d+ steps of the run"):
        tuner.train(PAIRS * 10)


def test_the_compilers_hints_go_while_it_trains_and_nothing_else_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hint = "TensorFloat32 tensor cores for float32 matrix multiplication available but not enabled."
    steps = Cohort.steps

    def warn() -> None:
        warnings.warn_explicit(hint, UserWarning, "file", 1, "torch._inductor.compile_fx", {})

    def hinting(self: Cohort) -> Iterator[list[RunStep]]:
        warn()
        return steps(self)

    monkeypatch.setattr(Cohort, "steps", hinting)
    filters, variables = list(warnings.filters), dict(os.environ)
    tuner = schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), config(arm="lora"))
    tuner.train(PAIRS)
    assert (list(warnings.filters), dict(os.environ)) == (filters, variables)
    with pytest.raises(UserWarning, match="TensorFloat32"):
        warn()


def test_steps_that_were_skipped_are_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = count()
    monkeypatch.setattr(
        "schemabank.engine.step.mean_per_slot",
        lambda losses, weights: (
            mean_per_slot(losses, weights) * (torch.nan if next(calls) == 5 else 1.0)
        ),
    )
    tuner = schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), config(arm="lora"))
    done = tuner.train(PAIRS)
    assert [step.step for step in done if step.skipped] == [5]
    said = "1 of 12 steps skipped, since their loss or gradient was not finite"
    assert said in capsys.readouterr().err.splitlines()


def test_saving_never_overwrites(tmp_path: Path) -> None:
    tuner = schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), config())
    with pytest.raises(InputError, match="exists and is not overwritten"):
        tuner.save(tmp_path)


def test_an_arm_without_training_is_refused() -> None:
    with pytest.raises(InputError, match="arm is 'base'"):
        schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), config(arm="base"))


def test_a_model_that_was_moved_meanwhile_is_refused() -> None:
    model = tiny_model("llama")
    tuner = schemabank.Tuner(model, tiny_tokenizer(), config())
    model.to(torch.float64).to(torch.float32)
    with pytest.raises(InputError, match="moved or cast"):
        tuner.train(PAIRS)


def test_removing_gives_back_what_the_user_trained() -> None:
    model = tiny_model("llama")
    before = mixed(model)
    tuner = schemabank.Tuner(model, tiny_tokenizer(), config())
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training
    tuner.remove()
    assert state(model) == before


@pytest.mark.parametrize(
    "settings",
    [
        {"lora": {"target_modules": ["not_there"]}},
        {"lora": {"layers_to_transform": [99]}},
        {"bank": {"layers": [99]}},
    ],
)
def test_a_refused_tuner_leaves_the_model_as_it_was(settings: dict[str, object]) -> None:
    model = tiny_model("llama")
    before, modules = mixed(model), dict(model.named_modules())
    with pytest.raises(InputError):
        schemabank.Tuner(model, tiny_tokenizer(), config(**settings))
    assert state(model) == before
    assert dict(model.named_modules()) == modules


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, KeyboardInterrupt])
def test_training_that_is_interrupted_leaves_a_model_that_can_be_used(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    tuner = schemabank.Tuner(model, tiny_tokenizer(), config())
    launch, calls = Programs.launch, iter(range(100))

    def interrupted(self: Programs, *args: object) -> object:
        if next(calls) == 5:
            raise error
        return launch(self, *args)

    monkeypatch.setattr(Programs, "launch", interrupted)
    with pytest.raises(error):
        tuner.train(PAIRS)
    found = logits(model)
    with tuner.stack.evaluating("off"):
        assert torch.equal(logits(model), found)
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("steps", [5, 100])
def test_what_is_saved_of_a_run_with_a_higher_rank_is_what_the_model_computes(
    steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the end, and where it was interrupted before the adapter was reduced."""
    model = tiny_model("llama")
    own = RunConfig(
        arm="shrink",
        lora=LoraSettings(r=4, lora_alpha=10),
        shrink={"ratio": 0.9},
        train={"num_train_epochs": 8, "learning_rate": 1e-2},
    )
    tuner = schemabank.Tuner(model, tiny_tokenizer(), own)
    launch, calls = Programs.launch, iter(range(1000))

    def interrupted(self: Programs, *args: object) -> object:
        if next(calls) == steps:
            raise KeyboardInterrupt
        return launch(self, *args)

    monkeypatch.setattr(Programs, "launch", interrupted)
    with suppress(KeyboardInterrupt):
        tuner.train(PAIRS)
    assert next(calls) <= steps + 1
    found = logits(model)
    assert not torch.equal(found, logits(tiny_model("llama")))
    tuner.save(tmp_path / "adapter")
    stock = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "adapter")
    torch.testing.assert_close(logits(stock), found, rtol=0, atol=1e-5)


def test_a_wrapped_model_does_not_save_itself(tmp_path: Path) -> None:
    model = tiny_model("llama")
    tuner = schemabank.Tuner(model, tiny_tokenizer(), config())
    for _ in range(2):  # with banks, and without
        for saver in (model.save_pretrained, model.push_to_hub):
            with pytest.raises(
                InputError, match=r"allowed is tuner\.save_pretrained\(folder\) for"
            ):
                saver(tmp_path / "model")
        tuner.detach()
    trainer = Trainer(model, TrainingArguments(str(tmp_path), report_to=[]))
    with pytest.raises(InputError, match=r"tuner\.save"):
        trainer.save_model(str(tmp_path / "model"))
    assert not (tmp_path / "model" / "model.safetensors").exists()
    tuner.remove()
    assert not {"save_pretrained", "push_to_hub"} & vars(model).keys()
    model.save_pretrained(tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(logits(again), logits(tiny_model("llama")))


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("stripped", [False, True])
def test_other_trainers_are_refused_while_the_layers_are_on(
    *, checkpointing: bool, stripped: bool, tmp_path: Path
) -> None:
    model = tiny_model("llama")
    tuner = schemabank.Tuner(model, tiny_tokenizer(), config())
    if stripped:
        tuner.detach()
    before = state(model)
    arguments = TrainingArguments(
        str(tmp_path), report_to=[], gradient_checkpointing=checkpointing, max_steps=1, use_cpu=True
    )
    rows = [{"input_ids": [5, 9, 33], "labels": [5, 9, 33]}] * 8
    with pytest.raises(InputError, match=r"would change no weight.*tuner\.remove\(\) first"):
        Trainer(model, arguments, train_dataset=rows).train()
    assert state(model) == before
    assert model.eval() is model
    tuner.remove()
    assert not {"train", "gradient_checkpointing_enable"} & vars(model).keys()
    model.requires_grad_(True)
    Trainer(model, arguments, train_dataset=rows).train()
    assert not torch.equal(logits(model.eval()), logits(tiny_model("llama")))


def test_a_saver_of_the_users_own_comes_back() -> None:
    model = tiny_model("llama")
    own = model.save_pretrained = lambda *_: None
    schemabank.Tuner(model, tiny_tokenizer(), config()).remove()
    assert vars(model)["save_pretrained"] is own


def test_settings_without_effect_are_said() -> None:
    idle = config(
        eval=EvalSettings(limit=3),
        engine=EngineSettings(slots=4),
        model=ModelSettings(name="other"),
        task=TaskSettings(name="gsm8k", max_length=99),
    )
    names = r"^model\.name, task\.name, eval\.limit, engine\.slots: no effect on a Tuner"
    with pytest.warns(UserWarning, match=names) as said:
        schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), idle)
    assert said[0].filename == __file__, "it points at the user's line"
    of_arm = config(arm="lora", bank=BankSettings(rank=4))
    with pytest.warns(UserWarning, match=r"^no effect: bank\.rank \(the arm lora has") as said:
        schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), of_arm)
    assert [warning.filename for warning in said] == [__file__]


def test_columns_train_as_pairs_do() -> None:
    rows = [{"prompt": p, "completion": c, "source": 1} for p, c in PAIRS]
    found = []
    for examples in (PAIRS, [list(p) for p in PAIRS], rows, datasets.Dataset.from_list(rows)):
        tuner = schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), config())
        found.append([step.loss for step in tuner.train(examples)])
    assert all(losses == found[0] for losses in found)


def test_the_loss_of_a_chat_is_that_of_what_the_assistant_says() -> None:
    """Compared with transformers' own mask, which the template's keyword gives."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ': ' }}{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content + eos_token }}{% endgeneration %}{% else %}{{ m.content + eos_token }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    chat = [
        {"role": role, "content": f"{role} says {i}"}
        for i, role in enumerate(["system", "user", "assistant", "user", "assistant"])
    ]
    tuner = schemabank.Tuner(
        tiny_model("llama"), tokenizer, config(arm="lora", train={"max_steps": 1})
    )
    (first,) = tuner.train([{"messages": chat}])
    whole = tokenizer.apply_chat_template(
        chat, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
    )
    labels = whole["input_ids"].masked_fill(whole["assistant_masks"] == 0, -100)
    with torch.no_grad():
        loss = tiny_model("llama")(input_ids=whole["input_ids"], labels=labels).loss
    assert first.loss == pytest.approx(loss.item(), rel=1e-5)


def test_a_chat_has_no_place_for_a_prefix_of_tags() -> None:
    tagged = config(tags={"tagger": "hash", "delivery": "prefix"})
    tuner = schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), tagged)
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(InputError, match=r"tags\.delivery is 'prefix', but a prefix has no place"):
        tuner.train([{"messages": chat}])


HELD_OUT = [("20+20=", "40"), ("7+8=", "15"), ("3+9+11=", "23")]
TEMPLATE = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def chatting_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def trained(*, steps: int = 6, **changes: object) -> schemabank.Tuner:
    train = {"max_steps": steps, "learning_rate": 3e-2}
    settings = config(arm="lora", train=train, **changes)
    tuner = schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), settings)
    tuner.train(PAIRS, quiet=True)
    return tuner


def library_loss(model: nn.Module, pairs: Sequence[tuple[str, str]]) -> float:
    """The mean over all completion tokens and their end tokens, by transformers' own loss."""
    tokenizer, nats, count = tiny_tokenizer(), 0.0, 0
    for prompt, completion in pairs:
        asked, said = tokenizer(prompt)["input_ids"], tokenizer(completion)["input_ids"]
        tokens = torch.tensor([[*asked, *said, END_TOKEN_ID]])
        labels = tokens.clone()
        labels[:, : len(asked)] = -100
        with torch.no_grad():
            mean = model(input_ids=tokens, labels=labels, use_cache=False).loss.item()
        nats, count = nats + mean * (len(said) + 1), count + len(said) + 1
    return nats / count


def test_the_loss_is_that_of_transformers_over_all_tokens(tmp_path: Path) -> None:
    tuner = trained()
    loss = tuner.evaluate(HELD_OUT)
    assert loss == pytest.approx(library_loss(tuner.model, HELD_OUT), rel=1e-5)
    tuner.save_pretrained(tmp_path / "adapter")
    stock = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "adapter")
    assert loss == pytest.approx(library_loss(stock, HELD_OUT), rel=1e-5)
    rows = [{"prompt": p, "completion": c} for p, c in HELD_OUT]
    assert tuner.evaluate(datasets.Dataset.from_list(rows)) == loss
    assert abs(loss - library_loss(tiny_model("llama"), HELD_OUT)) > 0.1


def test_the_loss_before_training_is_the_first_steps() -> None:
    settings = config(
        arm="lora", lora={"r": 4, "lora_dropout": 0}, train={"max_steps": 1, "batch_size": 16}
    )
    tuner = schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), settings)
    (first,) = tuner.train(PAIRS, quiet=True)
    tuner.remove()
    fresh = schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), settings)
    assert fresh.evaluate(PAIRS) == pytest.approx(first.loss, rel=1e-5)


def test_the_loss_of_a_chat_is_on_all_that_the_assistant_says() -> None:
    """As in training, and not on the last turn alone."""
    says = ["one", "two, and more"]
    chat = [
        {"role": role, "content": text}
        for said in says
        for role, text in (("user", "tell me"), ("assistant", said))
    ]
    settings = config(arm="lora", lora={"r": 4, "lora_dropout": 0}, train={"max_steps": 1})
    tuner = schemabank.Tuner(tiny_model("llama"), chatting_tokenizer(), settings)
    before = tuner.evaluate([{"messages": chat}])
    (first,) = tuner.train([{"messages": chat}], quiet=True)
    assert before == pytest.approx(first.loss, rel=1e-5)


def test_validation_is_measured_after_the_last_step() -> None:
    tuner = schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), config(arm="lora"))
    assert tuner.validation_loss is None
    tuner.train(PAIRS, validation=HELD_OUT, quiet=True)
    assert tuner.validation_loss == tuner.evaluate(HELD_OUT)
    tuner.train(PAIRS[:4], quiet=True)
    assert tuner.validation_loss is None, "it was another training's"


def test_an_adapter_that_is_not_finite_is_named_by_its_tensor() -> None:
    tuner = schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), config(arm="lora"))
    with torch.no_grad():
        tuner.stack.lora.groups["lora"].weights[0, -1] = torch.nan
    with pytest.raises(
        InputError, match=r"tensor base_model\.model\.\S+\.lora_[AB]\.weight holds 1 "
    ):
        tuner.generate(["1+1="])


def test_banks_do_not_change_the_loss_or_what_is_generated() -> None:
    tuner = schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), config())
    tuner.train(PAIRS, quiet=True)
    before = tuner.evaluate(HELD_OUT), tuner.generate(["1+1="], max_new_tokens=4)
    tuner.set_routing("on")
    routed = logits(tuner.model)
    assert (tuner.evaluate(HELD_OUT), tuner.generate(["1+1="], max_new_tokens=4)) == before
    assert torch.equal(logits(tuner.model), routed), "routing is as it was"


@pytest.mark.parametrize("by_slot", [False, True])
def test_what_is_generated_is_what_the_model_generates(
    by_slot: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_slot:
        monkeypatch.setattr(asking, "why_by_slot", lambda _: "its attention is another")
    tuner, tokenizer = trained(steps=20), tiny_tokenizer()
    prompts = ["1+1=", "10+10=", "2+2="]
    made = tuner.generate(prompts, max_new_tokens=5, batch_size=2)
    for prompt, said in zip(prompts, made, strict=True):
        asked = torch.tensor([tokenizer(prompt)["input_ids"]])
        whole = tuner.model.generate(
            asked, attention_mask=torch.ones_like(asked), do_sample=False, max_new_tokens=5
        )
        expected = tokenizer.decode(whole[0, asked.shape[1] :], skip_special_tokens=True)
        assert said == expected
    assert tuner.generate([]) == []
    (first, *_) = tuner.generate(prompts, max_new_tokens=5, temperature=5.0, seed=1)
    assert tuner.generate(prompts[:1], max_new_tokens=5, temperature=5.0, seed=1) == [first]
    assert tuner.generate(prompts[:1], max_new_tokens=5, temperature=5.0, seed=2) != [first]


def test_a_chat_is_answered_and_a_stop_text_is_cut_off() -> None:
    chat = [{"role": "user", "content": "name it"}, {"role": "assistant", "content": "a;b"}]
    lora = {"r": 8, "lora_alpha": 16, "lora_dropout": 0, "target_modules": ["all-linear"]}
    train = {"max_steps": 40, "learning_rate": 1e-2}
    settings = config(arm="lora", lora=lora, train=train)
    tuner = schemabank.Tuner(tiny_model("llama"), chatting_tokenizer(), settings)
    tuner.train([{"messages": chat}], quiet=True)
    assert tuner.generate([chat[:1], "user: name it<|end|>assistant: "]) == ["a;b", "a;b"]
    assert tuner.generate([chat[:1]], stop=[";"]) == ["a"]


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ("1+1=", {}, "the prompts are a str: allowed is a list of texts"),
        (["1+1=", 3], {}, "prompt 1 is 3: allowed is"),
        ([""], {}, "prompt 0 is '': allowed is"),
        ([[{"role": "user"}]], {}, "prompt example 0, turn 1 says None"),
        (["1"], {"max_new_tokens": 0}, "max_new_tokens is 0"),
        (["1"], {"top_p": 2.0}, "top_p is 2"),
        (["1"], {"stop": "end"}, "stop is 'end': allowed is a list of texts"),
        (["1"], {"stop": None}, "stop is None: allowed is a list of texts"),
        (["1"], {"stop": [3]}, r"stop is \[3\]: allowed is a list of texts"),
        (["\ud800"], {}, "prompt 0 is no Unicode"),
        (["1"], {"max_new_tokens": 2048}, r"'prompt/0' has 1 tokens .* has 2048 positions"),
    ],
)
def test_prompts_that_cannot_be_completed(
    prompts: Any,  # noqa: ANN401
    options: dict[str, Any],
    message: str,
) -> None:
    tuner = schemabank.Tuner(tiny_model("llama"), chatting_tokenizer(), config(arm="lora"))
    with pytest.raises(InputError, match=message):
        tuner.generate(prompts, **options)


def test_what_came_off_is_neither_evaluated_nor_asked() -> None:
    tuner = schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), config())
    tuner.detach()
    assert tuner.evaluate(PAIRS) > 0, "the adapter alone is measured"
    tuner.remove()
    with pytest.raises(InputError, match=r"evaluate\(\) after the adapter came off: allowed is to"):
        tuner.evaluate(PAIRS)
    with pytest.raises(InputError, match=r"generate\(\) after the adapter came off"):
        tuner.generate(["1"])


def test_validation_that_cannot_be_measured_is_refused_before_any_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(_: Cohort) -> Iterator[list[RunStep]]:
        raise AssertionError("a step")

    monkeypatch.setattr(Cohort, "steps", never)
    tuner = schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), config(arm="lora"))
    with pytest.raises(InputError, match="the completion of validation example 0 is empty"):
        tuner.train(PAIRS, validation=[("a", " ")])
    long = config(arm="lora", task={"max_length": 4000})
    tuner.remove()
    tuner = schemabank.Tuner(tuner.model, tiny_tokenizer(), long)
    with pytest.raises(InputError, match=r"'validation/0' has 2,?1\d\d tokens, .* 2048 positions"):
        tuner.train(PAIRS, validation=[("1" * 2100, "x")])


def test_every_step_is_told_and_an_error_of_the_users_passes() -> None:
    tuner = schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), config(arm="lora"))
    told: list[RunStep] = []
    assert tuner.train(PAIRS, on_step=told.append, quiet=True) == told
    assert [step.step for step in told] == list(range(12))

    def stop(step: RunStep) -> None:
        if step.step == 2:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        tuner.train(PAIRS, on_step=stop, quiet=True)
    assert tuner.evaluate(PAIRS) > 0, "the model can be used"


def test_a_quiet_tuner_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    tuner = schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), config(arm="lora"))
    tuner.train(PAIRS, validation=HELD_OUT, quiet=True)
    tuner.generate(["1+1="], max_new_tokens=2)
    assert capsys.readouterr() == ("", "")
    tuner.train(PAIRS[:4])
    assert "train lora: 4/4" in capsys.readouterr().err


def test_the_two_savers_write_the_same(tmp_path: Path) -> None:
    tuner = trained()
    tuner.save(tmp_path / "short")
    tuner.save_pretrained(tmp_path / "long")
    files = [sorted((p.name, p.read_bytes()) for p in f.iterdir()) for f in tmp_path.iterdir()]
    assert files[0] == files[1]


def test_one_tuner_at_a_time() -> None:
    model = tiny_model("llama")
    with (
        schemabank.Tuner(model, tiny_tokenizer(), config(arm="lora")),
        pytest.raises(InputError, match=r"already has a Tuner's layers on it: .* remove\(\)"),
    ):
        schemabank.Tuner(model, tiny_tokenizer(), config(arm="lora"))
    assert torch.equal(logits(model), logits(tiny_model("llama")))
    assert not {"save_pretrained", "push_to_hub"} & vars(model).keys()


def of_peft(folder: Path, **settings: Any) -> nn.Module:  # noqa: ANN401
    """A model with an adapter of stock PEFT with random weights, which is saved."""
    options = {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "up_proj"], **settings}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = peft.get_peft_model(
            tiny_model("llama"),
            peft.LoraConfig(**options, init_lora_weights=False, task_type="CAUSAL_LM"),
        )
    model.save_pretrained(folder)
    return model.eval()


def test_a_tuner_goes_on_from_pefts_adapter(tmp_path: Path) -> None:
    stock = of_peft(tmp_path / "peft", use_rslora=True, layers_to_transform=[0, 2])
    model = tiny_model("llama")
    train = TrainSettings(max_steps=3, learning_rate=1e-2)
    tuner = schemabank.Tuner.from_adapter(
        model, tiny_tokenizer(), tmp_path / "peft", RunConfig(arm="lora", train=train)
    )
    found = tuner.config.lora
    assert (found.r, found.lora_alpha, found.use_rslora) == (3, 5, True)
    assert (set(found.target_modules), found.layers_to_transform) == ({"q_proj", "up_proj"}, (0, 2))
    torch.testing.assert_close(logits(model), logits(stock), rtol=0, atol=1e-5)
    loss = tuner.evaluate(PAIRS)
    steps = tuner.train(PAIRS, quiet=True)
    assert tuner.evaluate(PAIRS) < loss, "it goes on from there"
    assert tuner.train(PAIRS, quiet=True) == steps, "and every training begins there"
    tuner.save_pretrained(tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "ours")
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=1e-5)
    tuner.remove()
    assert torch.equal(logits(model), logits(tiny_model("llama")))


def test_the_first_step_is_taken_with_the_adapter(tmp_path: Path) -> None:
    """Its loss is that of PEFT's model, its gradients those of its weights."""
    stock = of_peft(tmp_path / "peft", lora_dropout=0.3)
    train = TrainSettings(max_steps=1, batch_size=16)
    settings = RunConfig(arm="lora", train=train, lora=LoraSettings(lora_dropout=0.0))
    tuner = schemabank.Tuner.from_adapter(
        tiny_model("llama"), tiny_tokenizer(), tmp_path / "peft", settings
    )
    assert tuner.config.lora.lora_dropout == 0, "dropout is the training's own"
    (first,) = tuner.train(PAIRS, quiet=True)
    assert first.loss == pytest.approx(library_loss(stock, PAIRS), rel=1e-5)
    assert first.loss != pytest.approx(library_loss(tiny_model("llama"), PAIRS), rel=1e-3)


def test_an_adapter_of_ours_goes_on(tmp_path: Path) -> None:
    first = trained()
    first.save_pretrained(tmp_path / "first")
    tuner = schemabank.Tuner.from_adapter(tiny_model("llama"), tiny_tokenizer(), tmp_path / "first")
    assert torch.equal(logits(tuner.model), logits(first.model))
    assert tuner.generate(["1+1="], max_new_tokens=3) == first.generate(["1+1="], max_new_tokens=3)


@pytest.mark.parametrize("arm", ["coto", "experts", "molf", "swap"])
def test_other_arms_go_on_from_an_adapter(arm: str, tmp_path: Path) -> None:
    of_peft(tmp_path / "peft", r=4)
    settings = RunConfig.model_validate(
        {"arm": arm, "train": {"max_steps": 1, "learning_rate": 1e-30}}
    )
    tuner = schemabank.Tuner.from_adapter(
        tiny_model("llama"), tiny_tokenizer(), tmp_path / "peft", settings
    )
    before = logits(tuner.model)
    tuner.train(PAIRS, quiet=True)
    torch.testing.assert_close(logits(tuner.model), before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("targets", ["all-linear", r".*\.(q|v)_proj"])
def test_an_adapter_goes_on_under_the_settings_that_it_was_made_with(
    targets: str, tmp_path: Path
) -> None:
    asked = RunConfig.model_validate({"arm": "lora", "lora": {"target_modules": targets}})
    model = tiny_model("llama")
    with schemabank.Tuner(model, tiny_tokenizer(), asked) as tuner:
        tuner.save_pretrained(tmp_path / "adapter")
    with schemabank.Tuner.from_adapter(
        model, tiny_tokenizer(), tmp_path / "adapter", asked
    ) as again:
        assert again.config.lora.target_modules == tuner.stack.lora.settings[0].target_modules
    other = RunConfig.model_validate({"arm": "lora", "lora": {"target_modules": r".*\.k_proj"}})
    with pytest.raises(InputError, match=r"config\.lora\.target_modules is .*k_proj.*leave it out"):
        schemabank.Tuner.from_adapter(model, tiny_tokenizer(), tmp_path / "adapter", other)


@pytest.mark.parametrize(
    ("adapter", "settings", "message"),
    [
        ({"use_dora": True}, {}, "uses use_dora, allowed is plain LoRA"),
        ({"modules_to_save": ["lm_head"]}, {}, "uses modules_to_save, allowed is plain LoRA"),
        ({}, {"lora": {"r": 8}}, r"config\.lora\.r is 8, but the adapter in .* has 3: allowed is"),
        ({}, {"lora": {"target_modules": ["q_proj"]}}, "config.lora.target_modules is"),
        ({}, {"arm": "schemabank"}, "config.arm is 'schemabank', which begins with the stage 'rou"),
        ({}, {"arm": "shrink"}, "config.arm is 'shrink', which begins with the rank 12, but"),
        ({}, {"average": {"kind": "bema"}}, "config.average.kind is 'bema', which adds what"),
        ({}, {"arm": "base"}, "config.arm is 'base', which trains nothing"),
        (
            {"exclude_modules": ["1.self_attn.q_proj"]},
            {},
            r"leaves out 'model\.layers\.1.* train a new",
        ),
    ],
)
def test_an_adapter_that_cannot_go_on_leaves_the_model_as_it_was(
    adapter: dict[str, Any], settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    of_peft(tmp_path / "peft", **adapter)
    model = tiny_model("llama")
    before, modules = mixed(model), dict(model.named_modules())
    asked = RunConfig.model_validate({"arm": "lora", **settings})
    with pytest.raises(InputError, match=message):
        schemabank.Tuner.from_adapter(model, tiny_tokenizer(), tmp_path / "peft", asked)
    assert state(model) == before
    assert dict(model.named_modules()) == modules
    assert "save_pretrained" not in vars(model)


def test_an_adapter_of_another_model_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    of_peft(tmp_path / "peft")
    shape = {**tiny_model("llama").config.to_dict(), "hidden_size": 64}
    model = LlamaForCausalLM(LlamaConfig(**shape)).eval()
    before = logits(model)
    with pytest.raises(InputError, match="allowed is the base model that it was trained on"):
        schemabank.Tuner.from_adapter(model, tiny_tokenizer(), tmp_path / "peft")
    assert torch.equal(logits(model), before)


def test_a_model_with_pefts_layers_is_refused_and_goes_on_as_the_message_says(
    tmp_path: Path,
) -> None:
    stock = of_peft(tmp_path / "peft")
    with pytest.raises(InputError, match=r"PEFT's layers on it: .*unload\(\).* Tuner.from_adapter"):
        schemabank.Tuner(stock, tiny_tokenizer())
    expected = logits(stock)
    base = stock.unload()
    schemabank.Tuner.from_adapter(base, tiny_tokenizer(), tmp_path / "peft")
    torch.testing.assert_close(logits(base), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("examples", "validation"),
    [([("1" * 600, "x")], None), (PAIRS, []), (PAIRS, [("1" * 600, "x")])],
)
def test_a_training_that_is_refused_leaves_what_was_trained(
    examples: list[tuple[str, str]], validation: list[tuple[str, str]] | None
) -> None:
    tuner = schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), config(arm="lora"))
    tuner.train(PAIRS, validation=HELD_OUT, quiet=True)
    before, loss = logits(tuner.model), tuner.validation_loss
    with pytest.raises(InputError):
        tuner.train(examples, validation=validation, quiet=True)
    assert torch.equal(logits(tuner.model), before)
    assert tuner.validation_loss == loss == tuner.evaluate(HELD_OUT)


@pytest.mark.parametrize("arm", ["lora", "experts", "shrink", "schemabank"])
def test_in_on_step_the_model_is_what_is_saved(arm: str, tmp_path: Path) -> None:
    """Nothing of it is dropped out, and a rank that is yet to be reduced is."""
    lora = LoraSettings(r=4, lora_alpha=10, lora_dropout=0.5)
    train = TrainSettings(max_steps=4, learning_rate=1e-2)
    own = RunConfig(arm=arm, lora=lora, train=train)
    tuner = schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), own)
    plain = tuner.train(PAIRS, quiet=True)
    expected, shown = logits(tuner.model), []

    def look(step: RunStep) -> None:
        tuner.save_pretrained(tmp_path / str(step.step))
        shown.append(logits(tuner.model))
        tuner.evaluate(HELD_OUT)

    assert tuner.train(PAIRS, on_step=look, quiet=True) == plain, "looking changes nothing"
    assert torch.equal(logits(tuner.model), expected)
    for step, found in enumerate(shown):
        stock = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path / str(step))
        if arm != "shrink" or step > 1:  # whose model has the higher rank until it is reduced
            torch.testing.assert_close(logits(stock), found, rtol=0, atol=1e-5)


def test_what_is_saved_before_a_rank_is_reduced_is_the_nearest_adapter(tmp_path: Path) -> None:
    train = TrainSettings(max_steps=4, learning_rate=1e-2)
    own = RunConfig(arm="shrink", lora=LoraSettings(r=4), train=train)
    tuner = schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), own)

    def stop(_: RunStep) -> None:
        tuner.save_pretrained(tmp_path / "adapter")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuner.train(PAIRS, on_step=stop, quiet=True)
    stock = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "adapter")
    torch.testing.assert_close(logits(stock), logits(tuner.model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("call", ["train", "detach", "remove"])
def test_on_step_cannot_take_away_what_trains(call: str) -> None:
    tuner = schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), config())
    calls = {
        "train": lambda: tuner.train(PAIRS, quiet=True),
        "detach": tuner.detach,
        "remove": tuner.remove,
    }
    with pytest.raises(InputError, match=rf"{call}\(\) while the Tuner trains: .* on_step"):
        tuner.train(PAIRS, on_step=lambda _: calls[call](), quiet=True)
    tuner.remove()
    assert torch.equal(logits(tuner.model), logits(tiny_model("llama")))


def test_what_is_no_model_tokenizer_or_settings_is_refused() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    takes: Any = schemabank.Tuner
    for given, message in [
        (("gpt2", tokenizer), "model is a str: allowed is a PreTrainedModel .* AutoModelForCausal"),
        ((nn.Linear(2, 2), tokenizer), "model is a Linear: allowed is"),
        ((model, None), r"tokenizer is a NoneType: .* AutoTokenizer\.from_pretrained\(\) returns"),
        ((model, "gpt2"), "tokenizer is a str: allowed is a PreTrainedTokenizerBase"),
        ((model, tokenizer, {"arm": "lora"}), r"config is \{'arm': 'lora'\}: allowed is a schema"),
        (
            (model, tokenizer, peft.LoraConfig(r=4)),
            r"config: PEFT's LoraConfig .*LoraSettings\(r=4, ",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            takes(*given)
    tuner: Any = schemabank.Tuner(model, tokenizer, config(arm="lora"))
    with pytest.raises(InputError, match="on_step is 5: allowed is a function"):
        tuner.train(PAIRS, on_step=5, quiet=True)


def test_what_does_nothing_where_nothing_is_drawn_is_said() -> None:
    tuner = schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), config(arm="lora"))
    with pytest.warns(UserWarning, match=r"^top_p, seed: no effect at temperature 0") as said:
        tuner.generate(["1+1="], max_new_tokens=1, top_p=0.5, seed=3)
    assert [warning.filename for warning in said] == [__file__], "it points at the user's line"
    tuner.generate(["1+1="], max_new_tokens=1, temperature=1.0, top_p=0.5, seed=3)


def test_a_model_in_training_mode_drops_nothing_of_its_own() -> None:
    """Its own dropout would draw from the process's generator, and change results in silence."""
    model = tiny_model("llama")
    for block in model.model.layers:
        block.self_attn.attention_dropout = 0.5
    tuner = schemabank.Tuner(model, tiny_tokenizer(), config(arm="lora"))
    steps = tuner.train(PAIRS, quiet=True)
    loss, said = tuner.evaluate(HELD_OUT), tuner.generate(["1+1="], max_new_tokens=8)
    model.model.train()
    assert tuner.evaluate(HELD_OUT) == loss
    model.model.train()
    assert tuner.generate(["1+1="], max_new_tokens=8) == said
    model.model.train()
    assert tuner.train(PAIRS, quiet=True) == steps
