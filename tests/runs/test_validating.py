"""Validation while runs train: the best weights are kept, and runs that no longer improve stop."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

import schemabank as sb
from cohorts import SOLO_TOLERANCE
from schemabank.runs import validating
from schemabank.runs.evaluate import mean_losses
from tiny import tiny_model, tiny_tokenizer

PAIRS = [(f"{i}+{i}=", f"{2 * i}") for i in range(12)]
HELD_OUT = [("20+20=", "40"), ("7+8=", "15")]
EVERY = sb.ValidationSettings(eval_steps=2)
STOPPING = sb.ValidationSettings(eval_steps=1, early_stopping_patience=2)


def config(arm: str = "lora", **changes: object) -> sb.RunConfig:
    """A run whose loss on the held-out pairs soon rises."""
    train = {"max_steps": 12, "learning_rate": 3e-2, **dict(changes.pop("train", {}))}  # type: ignore[call-overload]
    own = {"arm": arm, "lora": {"r": 4, "lora_alpha": 10}, "train": train, **changes}
    if arm == "schemabank":
        own["bank"] = {"num_schemas": 8, "rank": 4}
    return sb.RunConfig.model_validate(own)


def trained(
    run: sb.RunConfig, validate: sb.ValidationSettings | None = None
) -> tuple[sb.Tuner, list[sb.RunStep]]:
    tuner = sb.Tuner(tiny_model("llama"), tiny_tokenizer(), run)
    held_out = None if validate is None else HELD_OUT
    return tuner, tuner.train(PAIRS, validation=held_out, validate=validate, quiet=True)


def weights(tuner: sb.Tuner) -> list[Tensor]:
    return [part for pair in tuner.stack.lora.tensors(0).values() for part in pair]


def same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("arm", ["lora", "coto", "schemabank", "experts", "shrink"])
def test_measuring_changes_no_bit_of_the_training(arm: str) -> None:
    run = config(arm, train={"max_steps": 10})
    measured, steps = trained(run, EVERY.model_copy(update={"load_best_model_at_end": False}))
    plain, expected = trained(run)
    assert same(weights(measured), weights(plain))
    assert steps == expected
    assert measured.validations
    assert not plain.validations


def test_a_run_ends_with_its_best_weights() -> None:
    tuner, steps = trained(config(), EVERY)
    assert [each.step for each in tuner.validations] == [2, 4, 6, 8, 10, 12]
    best = min(tuner.validations, key=lambda each: each.loss)
    assert 2 < best.step < 12
    assert [v for v in tuner.validations if v.best][-1] == best
    assert tuner.validation_loss == tuner.evaluate(HELD_OUT) == best.loss
    assert len(steps) == 12

    seen: dict[int, list[Tensor]] = {}
    other = sb.Tuner(tiny_model("llama"), tiny_tokenizer(), config())
    other.train(PAIRS, quiet=True, on_step=lambda s: seen.update({s.step + 1: weights(other)}))
    assert same(weights(tuner), seen[best.step])
    assert not same(weights(tuner), seen[12])


def test_a_run_that_no_longer_improves_stops() -> None:
    tuner, steps = trained(config(train={"max_steps": 40}), STOPPING)
    losses = [each.loss for each in tuner.validations]
    assert len(steps) == len(losses) < 40
    assert len(losses) == losses.index(min(losses)) + 1 + 2
    assert tuner.validation_loss == min(losses)


def test_the_threshold_is_that_of_transformers() -> None:
    """A fall within it is no improvement, and yet what the next loss is compared with."""
    fine = {"max_steps": 12, "learning_rate": 1e-4}
    free, _ = trained(config(train=fine), STOPPING)
    losses = [each.loss for each in free.validations]
    falls = [before - after for before, after in pairwise(losses)]
    assert len(losses) == 12
    assert all(fall > 0 for fall in falls)
    coarse = STOPPING.model_copy(update={"early_stopping_threshold": 1.5 * max(falls)})
    tuner, steps = trained(config(train=fine), coarse)
    assert len(steps) == 3
    assert [each.best for each in tuner.validations] == [True] * 3


def test_every_epoch_without_a_number_of_steps() -> None:
    tuner, _ = trained(config(train={"max_steps": 7}), sb.ValidationSettings())
    assert [each.step for each in tuner.validations] == [3, 6, 7]


@pytest.mark.parametrize(("arm", "first"), [("schemabank", 7), ("shrink", 4), ("coto", 1)])
def test_weights_that_an_arm_cannot_end_with_are_not_measured(arm: str, first: int) -> None:
    own = {"shrink": {"ratio": 0.3}} if arm == "shrink" else {}
    run = config(arm, train={"max_steps": 10}, **own)
    tuner, _ = trained(run, sb.ValidationSettings(eval_steps=1))
    assert [each.step for each in tuner.validations] == [*range(first, 11)]


RUNS: Mapping[str, sb.RunConfig] = {
    "slow": config(seed=1, train={"learning_rate": 1e-4, "max_steps": 16}),
    "stops": config(seed=2, train={"max_steps": 14}),
    "after": config(seed=3, train={"learning_rate": 1e-2, "max_steps": 8}),
    "banked": config("schemabank", seed=4),
}


Trained = tuple[sb.RunResult, list[Tensor]]


def cohort(names: Sequence[str], *, slots: int) -> dict[str, Trained]:
    runs = {name: RUNS[name] for name in names}
    found = sb.train_cohort(
        *(tiny_model("llama"), tiny_tokenizer(), runs, PAIRS),
        validation=HELD_OUT,
        validate=STOPPING,
        slots=slots,
        quiet=True,
    )
    return {name: (result, tensors(result)) for name, result in found.items()}


@pytest.fixture(scope="module")
def both() -> dict[str, Trained]:
    return cohort(["slow", "stops"], slots=2)


def tensors(result: sb.RunResult) -> list[Tensor]:
    assert result._weights is not None
    return [part for pair in result._weights.tensors.values() for part in pair]


def test_neighbours_do_not_matter_to_a_run_that_stops_or_takes_its_slot() -> None:
    many = cohort(["slow", "stops", "after"], slots=2)
    assert len(many["slow"][0].steps) == 16
    assert len(many["stops"][0].steps) < 14
    few = cohort(["stops", "banked"], slots=2) | cohort(["after", "banked"], slots=2)
    for name in ("stops", "after"):
        (here, own), (there, others) = many[name], few[name]
        assert here.steps == there.steps
        assert here.validations == there.validations
        assert here.validation_loss == min(each.loss for each in here.validations)
        assert same(own, others)


def test_a_run_that_stops_alone_is_a_tuners(both: Mapping[str, Trained]) -> None:
    found = cohort(["stops", "after"], slots=1)["stops"]
    tuner, steps = trained(RUNS["stops"], STOPPING)
    assert same(found[1], weights(tuner))
    assert found[0].validations == tuner.validations
    assert [step.loss for step in found[0].steps] == [step.loss for step in steps]
    pairs = zip(found[1], both["stops"][1], strict=True)
    assert max((a - b).abs().max().item() for a, b in pairs) <= SOLO_TOLERANCE


@pytest.mark.parametrize("lacking", [3, 16])  # the last one is of the longest run's last step
def test_memory_that_runs_out_in_a_measurement_loses_none(
    lacking: int, both: Mapping[str, Trained], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def short(*args: object) -> list[float]:
        calls.append(1)
        if len(calls) == lacking:
            raise torch.OutOfMemoryError("no room")
        return mean_losses(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(validating, "mean_losses", short)
    found = cohort(["slow", "stops"], slots=2)
    for name, (result, own) in found.items():
        assert result.failure is None
        steps = [each.step for each in result.validations]
        assert steps == [each.step for each in both[name][0].validations]
        pairs = zip(own, both[name][1], strict=True)
        assert max((a - b).abs().max().item() for a, b in pairs) <= SOLO_TOLERANCE


def test_what_ended_early_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with sb.Tuner(tiny_model("llama"), tiny_tokenizer(), config()) as tuner:
        tuner.train(PAIRS, validation=HELD_OUT, validate=STOPPING)
        tuner.save_pretrained(tmp_path / "adapter")
    said = re.sub(r"\s+", " ", capsys.readouterr().err)
    best = max(each.step for each in tuner.validations if each.best)
    assert f"stopped after {best + 2} of 12 steps, keeps the weights of step {best}" in said


def test_a_diverging_run_keeps_what_was_best() -> None:
    run = config(train={"max_steps": 6, "learning_rate": 1e-3})
    tuner = sb.Tuner(tiny_model("llama"), tiny_tokenizer(), run)
    with pytest.MonkeyPatch.context() as patch:
        losses = iter([[float("nan")], [3.0], [float("inf")], [2.0], [float("nan")], [2.0]])
        patch.setattr(validating, "mean_losses", lambda *_: next(losses))
        tuner.train(
            PAIRS, validation=HELD_OUT, validate=sb.ValidationSettings(eval_steps=1), quiet=True
        )
    assert [each.best for each in tuner.validations] == [False, True, False, True, False, False]


def test_patience_that_cannot_stop_a_run_is_told() -> None:
    validate = sb.ValidationSettings(eval_steps=4, early_stopping_patience=2)
    with pytest.warns(UserWarning, match=r"patience is 2, but 'lora' is measured 3 times.* to 1"):
        trained(config(), validate)


@pytest.mark.parametrize(
    ("arm", "given", "mend"),
    [
        ("lora", {"eval_steps": 8}, "eval_steps to at most 3"),
        ("lora", {}, "eval_steps to at most 3"),  # an epoch has as many steps
        ("schemabank", {"eval_steps": 2}, "train more steps"),
    ],
)
def test_one_measurement_that_leaves_nothing_to_choose_is_told(
    arm: str, given: Mapping[str, int], mend: str
) -> None:
    run = config(arm, train={"max_steps": 4 if arm == "lora" else 3, "batch_size": 3})
    with pytest.warns(UserWarning, match=f"load_best_model_at_end is True, .* alone, .*{mend}"):
        tuner, _ = trained(run, sb.ValidationSettings(**given))
    assert len(tuner.validations) == 1


def test_a_patience_that_nothing_is_short_enough_for_is_told() -> None:
    validate = sb.ValidationSettings(eval_steps=9, early_stopping_patience=1)
    with pytest.warns(UserWarning, match="measured 2 times .*allowed is to measure it more often"):
        trained(config(), validate)


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({}, {"validate": EVERY}, "no validation examples"),
        ({}, {"validate": 3, "validation": HELD_OUT}, "validate is 3: allowed is"),
        (
            {"arm": "swap"},
            {"validate": EVERY, "validation": HELD_OUT},
            r"arm is 'swap', which ends as a mean .*allowed are other arms",
        ),
        (
            {"average": {"kind": "exponential"}},
            {"validate": EVERY, "validation": HELD_OUT},
            r"average\.kind is 'exponential'.*allowed is 'none'",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(
    changes: Mapping[str, object], given: Mapping[str, object], message: str
) -> None:
    run, model = config(**changes), tiny_model("llama")
    with (
        sb.Tuner(model, tiny_tokenizer(), run) as tuner,
        pytest.raises(sb.InputError, match=message),
    ):
        tuner.train(PAIRS, **given)  # type: ignore[arg-type]
    with pytest.raises(sb.InputError, match=message):
        sb.train_cohort(model, tiny_tokenizer(), {"run": run}, PAIRS, **given)  # type: ignore[arg-type]


def test_a_threshold_without_patience_is_refused() -> None:
    with pytest.raises(ValidationError, match="no effect without early_stopping_patience"):
        sb.ValidationSettings(early_stopping_threshold=0.1)
