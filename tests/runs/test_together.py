import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import schemabank as sb
from cohorts import SOLO_TOLERANCE
from schemabank.engine.cohort import Cohort
from schemabank.engine.programs import Programs
from schemabank.engine.run import TrainingData
from schemabank.runs import grouping
from schemabank.runs import together as together_module
from schemabank.runs.training import Context
from tiny import mixed, state, tiny_model, tiny_tokenizer

# PEFT 0.21 asks transformers 5.23 for a property by its deprecated name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

PAIRS = [(f"{i}+{i}=", f"{2 * i}") for i in range(12)]
HELD_OUT = [("20+20=", "40"), ("7+8=", "15")]
TOKENS = torch.tensor([[5, 9, 200, 33, 12]])


def config(arm: str = "lora", **changes: object) -> sb.RunConfig:
    train = {"max_steps": 4, "learning_rate": 1e-2, **dict(changes.pop("train", {}))}  # type: ignore[call-overload]
    own = {"arm": arm, "lora": {"r": 4, "lora_alpha": 10}, "train": train, **changes}
    if arm == "schemabank":
        own["bank"] = {"num_schemas": 8, "rank": 4}
    return sb.RunConfig.model_validate(own)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def alone(run: sb.RunConfig, folder: Path) -> dict[str, Tensor]:
    """What a Tuner by itself comes to."""
    with sb.Tuner(tiny_model("llama"), tiny_tokenizer(), run) as tuner:
        tuner.train(PAIRS, quiet=True)
        tuner.save_pretrained(folder)
    return weights(folder)


def together(
    runs: Mapping[str, sb.RunConfig], folder: Path, *, slots: int
) -> dict[str, dict[str, Tensor]]:
    """What each run of a cohort comes to."""
    found = sb.train_cohort(
        tiny_model("llama"), tiny_tokenizer(), runs, PAIRS, slots=slots, quiet=True
    )
    for name, result in found.items():
        result.save_pretrained(folder / name)
    return {name: weights(folder / name) for name in found}


def largest_difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=TOKENS, use_cache=False).logits
    return found


@pytest.mark.parametrize("arm", ["lora", "schemabank", "shrink", "experts", "swap"])
def test_a_cohort_of_one_has_a_tuners_weights_to_the_bit(arm: str, tmp_path: Path) -> None:
    run = config(arm)
    found = together({"only": run}, tmp_path, slots=1)["only"]
    assert largest_difference(found, alone(run, tmp_path / "tuner")) == 0


THREE = {
    "one": config(seed=1),
    "faster": config(seed=2, train={"learning_rate": 3e-2, "max_steps": 6}),
    "banked": config("schemabank", seed=3, lora={"r": 2, "lora_alpha": 4}),
}


@pytest.fixture(scope="module")
def three_alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("alone")
    return {name: alone(run, folder / name) for name, run in THREE.items()}


@pytest.mark.parametrize(("slots", "tolerance"), [(3, SOLO_TOLERANCE), (2, SOLO_TOLERANCE), (1, 0)])
def test_many_runs_come_to_what_tuners_come_to(
    slots: int, tolerance: float, three_alone: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    """One at a time they have a stack of their own, as a Tuner has."""
    found = together(THREE, tmp_path, slots=slots)
    assert list(found) == list(THREE)
    for name, own in found.items():
        assert largest_difference(own, three_alone[name]) <= tolerance
    assert largest_difference(found["one"], found["faster"]) > 1e-3


def test_neighbours_change_no_bit(tmp_path: Path) -> None:
    run = config(seed=1)
    beside = {"same": config("coto", seed=5), "other": config(seed=9, train={"max_steps": 2})}
    first = together({"run": run, "x": beside["same"]}, tmp_path / "first", slots=2)["run"]
    second = together({"x": beside["other"], "run": run}, tmp_path / "second", slots=2)["run"]
    assert largest_difference(first, second) == 0


def test_what_a_cohort_gives_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model("llama")
    before, modules = mixed(model), dict(model.named_modules())
    untouched = logits(model)
    told: list[sb.RunStep] = []
    runs = [config(seed=seed, train={"max_steps": seed}) for seed in (3, 2)]
    found = sb.train_cohort(
        *(model, tiny_tokenizer(), runs, PAIRS), validation=HELD_OUT, slots=2, on_step=told.append
    )
    assert state(model) == before
    assert dict(model.named_modules()) == modules
    assert torch.equal(logits(model), untouched)
    assert list(found) == ["lora seed 3, max_steps=3", "lora seed 2, max_steps=2"]
    first, second = found.values()
    assert [len(first.steps), len(second.steps)] == [3, 2]
    assert [*first.steps, *second.steps] == [s for n in found for s in told if s.run == n]
    assert (first.failure, first.config, first.name) == (None, runs[0], next(iter(found)))
    assert first.validation_loss != second.validation_loss
    said = capsys.readouterr().err
    assert f"{first.name}: finished, validation loss {first.validation_loss:.4f}" in said
    with first.attach() as tuner:
        assert tuner.evaluate(HELD_OUT) == pytest.approx(first.validation_loss, rel=1e-6)
        adapted = logits(model)
        with pytest.raises(sb.InputError, match=r"already has a Tuner's layers .* remove\(\)"):
            second.attach()
    assert torch.equal(logits(model), untouched)
    first.save_pretrained(tmp_path / "adapter")
    with pytest.raises(sb.InputError, match="exists and is not overwritten"):
        first.save_pretrained(tmp_path / "adapter")
    stock = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "adapter")
    torch.testing.assert_close(logits(stock), adapted, rtol=0, atol=1e-5)


def test_an_attached_run_with_a_bank_has_the_adapter_alone() -> None:
    run = {"banked": config("schemabank")}
    found = sb.train_cohort(tiny_model("llama"), tiny_tokenizer(), run, PAIRS, quiet=True)
    with (
        found["banked"].attach() as tuner,
        pytest.raises(sb.InputError, match="'on' needs banks, and none are attached"),
    ):
        tuner.set_routing("on")


def test_a_run_that_diverges_costs_the_others_nothing(
    three_alone: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    runs = {"bad": config(train={"learning_rate": 1e38}), "one": THREE["one"]}
    found = sb.train_cohort(
        tiny_model("llama"), tiny_tokenizer(), runs, PAIRS, slots=2, validation=HELD_OUT, quiet=True
    )
    bad, good = found.values()
    assert bad.failure is not None
    assert bad.failure.kind == "diverged"
    assert bad.validation_loss is None
    for use in (lambda: bad.save_pretrained(tmp_path / "bad"), bad.attach):
        with pytest.raises(sb.InputError, match=r"'bad' has no adapter, since it failed \(diverg"):
            use()
    assert not (tmp_path / "bad").exists()
    assert good.failure is None
    good.save_pretrained(tmp_path / "good")
    assert largest_difference(weights(tmp_path / "good"), three_alone["one"]) <= SOLO_TOLERANCE


def test_an_error_in_one_cohort_costs_the_others_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other batch sizes are other cohorts."""
    steps = Cohort.steps

    def failing(self: Cohort) -> Iterator[list[sb.RunStep]]:
        if self.data.schedule.batch_size == 2:
            raise RuntimeError("the driver is gone")
        yield from steps(self)

    monkeypatch.setattr(Cohort, "steps", failing)
    sizes = {f"size {size}": config(train={"batch_size": size}) for size in (2, 4)}
    model = tiny_model("llama")
    found = sb.train_cohort(model, tiny_tokenizer(), sizes, PAIRS, quiet=True)
    lost, kept = found.values()
    assert str(lost.failure) == "error: the driver is gone"
    assert (kept.failure, len(kept.steps)) == (None, 4)
    assert torch.equal(logits(model), logits(tiny_model("llama")))


def test_runs_that_cannot_share_steps_train_in_further_cohorts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cohorts: list[set[str]] = []
    steps = Cohort.steps

    def noted(self: Cohort) -> Iterator[list[sb.RunStep]]:
        cohorts.append({slot.run.name for slot in self.slots})
        yield from steps(self)

    monkeypatch.setattr(Cohort, "steps", noted)
    short = {"max_steps": 1}
    runs = {
        "a": config(seed=1, train=short),
        "b": config(seed=2, train=short),
        "narrow": config(train=short, lora={"r": 4, "target_modules": ["q_proj"]}),
        "small": config(train={**short, "batch_size": 2}),
        "whole": config(train=short, task={"completion_only_loss": False}),
    }
    found = sb.train_cohort(tiny_model("llama"), tiny_tokenizer(), runs, PAIRS, slots=4)
    said = capsys.readouterr().err
    assert "the runs train in 3 groups, one after the other, since they differ in" in said
    assert 'cohort 2 of 2: lora.target_modules = ["q_proj"]' in said
    assert sorted(map(sorted, cohorts)) == [["a", "b"], ["narrow"], ["small"], ["whole"]]
    assert all(result.failure is None for result in found.values())
    assert found["whole"].steps[0].num_tokens > found["a"].steps[0].num_tokens


def test_where_memory_runs_out_the_runs_go_on_in_fewer_slots(
    three_alone: dict[str, dict[str, Tensor]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    launch, calls = Programs.launch, iter(range(1000))

    def full(self: Programs, *args: object) -> object:
        if next(calls) == 2:
            raise torch.OutOfMemoryError("no room")
        return launch(self, *args)

    monkeypatch.setattr(Programs, "launch", full)
    runs = {name: THREE[name] for name in ("one", "faster")}
    found = sb.train_cohort(tiny_model("llama"), tiny_tokenizer(), runs, PAIRS, slots=2)
    assert "going on with 1; no step is lost (slots sets the number)" in capsys.readouterr().err
    for name, result in found.items():
        assert [step.step for step in result.steps] == list(range(result.steps[0].num_steps))
        result.save_pretrained(tmp_path / name)
        assert largest_difference(weights(tmp_path / name), three_alone[name]) <= SOLO_TOLERANCE


def test_a_run_whose_loss_cannot_be_measured_keeps_its_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> list[float]:
        raise torch.OutOfMemoryError("no room")

    for measure, said in [
        (full, "memory: slots is 2, but the losses of so many runs .* lower it"),
        (lambda *_: [1.5, float("nan")], "diverged: no finite loss on the validation examples"),
    ]:
        monkeypatch.setattr(together_module, "mean_losses", measure)
        runs = {"a": config(seed=1), "b": config(seed=2)}
        found = sb.train_cohort(
            *(tiny_model("llama"), tiny_tokenizer(), runs, PAIRS),
            validation=HELD_OUT,
            slots=2,
            quiet=True,
        )
        failed = [result for result in found.values() if result.failure is not None]
        assert len(failed) == (2 if measure is full else 1)
        assert all(re.match(said, str(result.failure)) for result in failed)
        failed[-1].save_pretrained(tmp_path / said[:6])
        assert (tmp_path / said[:6] / "adapter_model.safetensors").is_file()


def test_memory_that_on_step_lacks_is_not_the_engines() -> None:
    def full(_: sb.RunStep) -> None:
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(RuntimeError, match="on_step ran out of the device's memory"):
        sb.train_cohort(
            *(tiny_model("llama"), tiny_tokenizer(), {"a": config()}, PAIRS),
            on_step=full,
            quiet=True,
        )


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_on_step_raises_ends_the_training(error: type[BaseException]) -> None:
    def stop(step: sb.RunStep) -> None:
        if step.step == 1:
            raise error("enough")

    model = tiny_model("llama")
    with pytest.raises(error, match="enough"):
        sb.train_cohort(model, tiny_tokenizer(), {"a": config()}, PAIRS, on_step=stop, quiet=True)
    assert torch.equal(logits(model), logits(tiny_model("llama")))
    assert not any("forward" in vars(module) for module in model.modules())


def test_runs_go_on_from_an_adapter_as_tuners_do(tmp_path: Path) -> None:
    alone(config(lora={"r": 3, "target_modules": ["q_proj"]}), tmp_path / "first")
    runs = {
        seed: sb.RunConfig.model_validate({"arm": "lora", "seed": seed, "train": {"max_steps": 2}})
        for seed in (1, 2)
    }
    model, told = tiny_model("llama"), []
    with sb.Tuner.from_adapter(model, tiny_tokenizer(), tmp_path / "first", runs[1]) as tuner:
        tuner.train(PAIRS, quiet=True)
        tuner.save_pretrained(tmp_path / "tuner")
    for slots in (1, 2):
        found = sb.train_cohort(
            *(model, tiny_tokenizer(), {str(seed): run for seed, run in runs.items()}, PAIRS),
            adapter=tmp_path / "first",
            slots=slots,
            on_step=told.append,
            quiet=True,
        )
        assert found["1"].config.lora.r == 3
        found["1"].save_pretrained(tmp_path / str(slots))
    expected = weights(tmp_path / "tuner")
    assert largest_difference(weights(tmp_path / "1"), expected) == 0
    assert largest_difference(weights(tmp_path / "2"), expected) <= SOLO_TOLERANCE
    first_b = [t for n, t in weights(tmp_path / "first").items() if "lora_B" in n]
    assert all(b.abs().max() > 1e-3 for b in first_b), "else there was nothing to go on from"


@pytest.mark.parametrize(
    ("width", "run", "message"),
    [
        (32, {"arm": "shrink"}, "x.arm is 'shrink', which begins with the rank 12, but the"),
        (32, {"lora": {"r": 8}}, r"x\.lora\.r is 8, but the adapter in .* has 3: allowed is"),
        (64, {}, "allowed is the base model that it was trained on"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_before_any_step(
    width: int, run: dict[str, object], message: str, tmp_path: Path
) -> None:
    alone(config(lora={"r": 3, "target_modules": ["q_proj", "o_proj"]}), tmp_path / "first")
    shape = {**tiny_model("llama").config.to_dict(), "hidden_size": width}
    model = LlamaForCausalLM(LlamaConfig(**shape)).eval()
    before = logits(model)
    runs = {"x": sb.RunConfig.model_validate({"arm": "lora", **run})}
    with pytest.raises(sb.InputError, match=message):
        sb.train_cohort(model, tiny_tokenizer(), runs, PAIRS, adapter=tmp_path / "first")
    assert torch.equal(logits(model), before)


def test_a_quiet_cohort_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    runs = {"a": config(), "bad": config(train={"learning_rate": 1e38})}
    sb.train_cohort(tiny_model("llama"), tiny_tokenizer(), runs, PAIRS, slots=2, quiet=True)
    assert capsys.readouterr() == ("", "")


def test_each_run_chooses_its_own_scale() -> None:
    runs = {
        "plain": config(train={"learning_rate": 1e-3}),
        "few": config(train={"learning_rate": 1e-3}, rescale={"factors": [8]}),
        "many": config(train={"learning_rate": 1e-3}, rescale={"factors": [0.5, 4]}),
    }
    found = sb.train_cohort(
        *(tiny_model("llama"), tiny_tokenizer(), runs, PAIRS),
        validation=PAIRS[:2],
        slots=2,
        quiet=True,
    )
    assert found["plain"].rescaled is None
    few, many = found["few"].rescaled, found["many"].rescaled
    assert few is not None
    assert many is not None
    assert (list(few.losses), list(many.losses)) == ([1, 8], [0.5, 1, 4])
    for result, chosen in ((found["few"], few), (found["many"], many)):
        assert result.validation_loss == min(chosen.losses.values())
        assert chosen.losses[1] == found["plain"].validation_loss
        with result.attach() as tuner:
            assert tuner.evaluate(PAIRS[:2]) == pytest.approx(result.validation_loss, abs=1e-5)


TAGGED = config("schemabank", tags={"tagger": "hash", "delivery": "prefix"})
CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("runs", "changes", "message"),
    [
        ({}, {}, "there are 0 runs, allowed is at least 1: give a list of RunConfigs"),
        ("lora", {}, "runs is a str: allowed is a list of RunConfigs, or a dictionary"),
        ({"a": "lora"}, {}, "the run 'a' is 'lora': allowed is"),
        ([config(), config()], {}, "two of the runs in the list are 'lora seed 42': allowed is"),
        ({"x": config("base")}, {}, "x.arm is 'base', which trains nothing"),
        ([config(rescale={"factors": [0.5]})], {}, r"lora seed 42\.rescale\.factors .* validation"),
        (
            {"a\n\x1b[31m": config()},
            {},
            "a run is called 'a.n.x1b.*: allowed are names of one line",
        ),
        ({"": config()}, {}, "a run is called '': allowed are names"),
        ({"a": config()}, {"on_step": 5}, "on_step is 5: allowed is a function"),
        ({"a": config()}, {"slots": 0}, "slots is 0: allowed are 'auto' and a number of runs"),
        ({"a": config()}, {"slots": True}, "slots is True: allowed are"),
        ({"a": config()}, {"examples": []}, "there are 0 training examples"),
        ({"a": config()}, {"validation": []}, "there are 0 validation examples"),
        ({"a": config()}, {"validation": [("a", "")]}, "completion of validation example 0 is emp"),
        ({"a": config()}, {"validation": [("1" * 600, "x")]}, "'validation/0': its prompt alone"),
        ({"a": config(), "b": config(lora={"target_modules": ["wq"]})}, {}, "'wq', which match"),
        (
            {"bema": config("shrink", average={"kind": "bema"}), "none": config("shrink")},
            {},
            "average.kind is 'bema', but the first weights of the arm shrink",
        ),
        ({"a": config(), "b": TAGGED}, {"examples": [{"messages": CHAT}]}, "no place in a chat"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_any_step(
    runs: object, changes: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(_: Cohort) -> Iterator[list[sb.RunStep]]:
        raise AssertionError("a step")

    monkeypatch.setattr(Cohort, "steps", never)
    model = tiny_model("llama")
    given = {"examples": PAIRS, "quiet": True, **changes}
    with pytest.raises(sb.InputError, match=message):
        sb.train_cohort(model, tiny_tokenizer(), runs, **given)  # type: ignore[arg-type]
    assert torch.equal(logits(model), logits(tiny_model("llama")))


def test_settings_without_effect_on_a_cohort_are_said_once() -> None:
    short = {"max_steps": 1}
    idle = [config(seed=seed, train=short, engine={"slots": 4}) for seed in (1, 2)]
    names = r"^engine\.slots: no effect on train_cohort, .* arguments of its own"
    with pytest.warns(UserWarning, match=names) as said:
        found = sb.train_cohort(tiny_model("llama"), tiny_tokenizer(), idle, PAIRS, quiet=True)
    assert [warning.filename for warning in said] == [__file__], "it points at the user's line"
    assert re.fullmatch("lora seed 1|lora seed 2", next(iter(found)))


def test_settings_without_effect_keep_no_runs_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    steps = Cohort.steps

    def noted(self: Cohort) -> Iterator[list[sb.RunStep]]:
        sizes.append(len(self.slots))
        yield from steps(self)

    monkeypatch.setattr(Cohort, "steps", noted)
    short = {"max_steps": 1}
    runs = {
        "a": config(train=short),
        "b": config(train=short, eval={"limit": 3}, model={"name": "other"}),
        "same": config(train=short),
    }
    with pytest.warns(UserWarning, match=r"^model\.name, eval\.limit: no effect"):
        found = sb.train_cohort(
            tiny_model("llama"), tiny_tokenizer(), runs, PAIRS, slots=3, quiet=True
        )
    assert sizes == [3]
    losses = [[step.loss for step in result.steps] for result in found.values()]
    assert losses[0] == losses[1] == losses[2]


def test_an_error_in_planning_comes_before_any_step_and_leaves_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the number of slots is measured, as on a GPU."""
    sizes: list[int] = []
    asked, model = grouping.num_slots, tiny_model("llama")
    before = mixed(model)

    def measured(runs: Sequence[sb.RunConfig], context: Context, _: torch.device) -> int:
        return asked(runs, context, torch.device("cuda"))

    def fitting(_: object, data: TrainingData, __: object) -> int:
        sizes.append(data.schedule.batch_size)
        if len(sizes) == 2:
            raise KeyboardInterrupt
        return 1

    def never(_: Cohort) -> Iterator[list[sb.RunStep]]:
        raise AssertionError("a step")

    monkeypatch.setattr(grouping, "num_slots", measured)
    monkeypatch.setattr(grouping, "slots_that_fit", fitting)
    monkeypatch.setattr(Cohort, "steps", never)
    runs = {f"size {size}": config(train={"batch_size": size}) for size in (2, 4)}
    with pytest.raises(KeyboardInterrupt):
        sb.train_cohort(model, tiny_tokenizer(), runs, PAIRS, quiet=True)
    assert sizes == [2, 4]
    assert state(model) == before
    assert torch.equal(logits(model), logits(tiny_model("llama")))
