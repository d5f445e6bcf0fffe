import os
import warnings
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from itertools import chain, count
from pathlib import Path

import datasets
import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

import schemabank
from schemabank import BankSettings, InputError, LoraSettings, RunConfig, TagSettings, TrainSettings
from schemabank.config.settings import EngineSettings, EvalSettings, ModelSettings
from schemabank.config.task import TaskSettings
from schemabank.config.train import THREE_STAGES
from schemabank.engine.cohort import Cohort, RunStep
from schemabank.engine.loss import mean_per_slot
from schemabank.engine.programs import Programs
from tiny import Kind, mixed, state, tiny_model, tiny_tokenizer
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


def test_a_scale_cannot_be_chosen_without_a_validation_split() -> None:
    rescaled = config(arm="lora", rescale={"factors": [0.5]})
    model = tiny_model("llama")
    with pytest.raises(
        InputError, match=r"factors is \[0\.5, 1\.0\], but a Tuner has no validation"
    ):
        schemabank.Tuner(model, tiny_tokenizer(), rescaled)
    assert torch.equal(logits(model), logits(tiny_model("llama")))


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
    with pytest.raises(RuntimeError, match=r"no finite gradient in 2 of the \d+ steps of the run"):
        tuner.train(PAIRS * 10)


def test_steps_that_a_failed_run_does_not_report_are_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a GPU, steps are under way when the run is given up."""
    steps = Cohort.steps
    monkeypatch.setattr(Cohort, "steps", lambda self: chain(steps(self), [[], []]))
    train = TrainSettings(num_train_epochs=1, learning_rate=1e38)
    tuner = schemabank.Tuner(tiny_model("llama"), tiny_tokenizer(), config(arm="lora", train=train))
    with pytest.raises(RuntimeError, match=r"no finite gradient in 2 of the \d+ steps of the run"):
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
    said = "1 of 12 steps skipped, since their gradient was not finite"
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
            with pytest.raises(InputError, match=r"allowed is tuner\.save\(folder\) for"):
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
