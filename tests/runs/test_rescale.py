"""An adapter's scale is chosen on validation, and all that follows sees the adapter with it."""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from schemabank import RunConfig
from schemabank.common.errors import InputError
from schemabank.config.file import config_hash, run_id
from schemabank.config.settings import LoraSettings
from schemabank.config.train import RescaleSettings
from schemabank.engine.cohort import Cohort
from schemabank.models.basemodel import load_base_model
from schemabank.report.command import Question, report
from schemabank.report.page import page
from schemabank.runs import rescale
from schemabank.runs.experiment import run_all
from schemabank.runs.loading import loaded_task
from schemabank.runs.members import Outcome, Rescaled
from schemabank.runs.planning import plan_all
from schemabank.runs.rescale import chosen, validation_items
from schemabank.runs.stored import read_result
from schemabank.tasks import Item
from tinyruns import STAGES, Notes, snapshot, write_gsm8k, write_model

# PEFT 0.21 asks transformers 5.23 for a property by its deprecated name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

FACTORS = (0.25, 2.0, 4.0)
ALL_FACTORS = (0.25, 1.0, 2.0, 4.0)
CPU = torch.device("cpu")
ADAPTER = "adapter/adapter_model.safetensors"


@dataclass(frozen=True)
class Ran:
    """Runs of several methods that chose their scale, and the same runs without a choice."""

    model: Path
    runs: list[RunConfig]
    rescaled: list[Outcome]
    plain: list[Outcome]
    notes: list[str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = write_gsm8k(tmp_path_factory.mktemp("data"), num_train=40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCHEMABANK_DATA", str(folder))
        yield folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def run_of(
    folder: Path, arm: str, seed: int = 1, *, dtype: str = "float32", **changes: object
) -> RunConfig:
    """A run that trains too little, so that a larger adapter does better."""
    settings: dict[str, object] = {
        "arm": arm,
        "seed": seed,
        "model": {"name": str(folder), "dtype": dtype},
        "task": {"name": "gsm8k", "max_length": 96, "gsm8k": {"validation_ratio": 0.3}},
        "lora": LoraSettings(r=4, lora_alpha=10, lora_dropout=0.1),
        "bank": {"num_schemas": 8, "rank": 4, "attribute_dim": 4},
        "curriculum": [{**stage, "learning_rate": 2e-3} for stage in STAGES],
        "train": {"num_train_epochs": 2, "learning_rate": 2e-3},
        "rescale": {"factors": FACTORS},
        "eval": {"split": "validation", "max_new_tokens": 4, "batch_size": 4},
        "engine": {"slots": 4},
    }
    return RunConfig.model_validate(settings | changes)


def plain(run: RunConfig) -> RunConfig:
    return run.model_copy(update={"rescale": RescaleSettings()})


def with_slots(run: RunConfig, slots: int) -> RunConfig:
    return run.model_copy(update={"engine": run.engine.model_copy(update={"slots": slots})})


def ran(runs: Sequence[RunConfig], out: Path) -> tuple[list[Outcome], list[str]]:
    notes = Notes()
    return run_all(runs, out, notes, device=CPU), notes.lines


@pytest.fixture(scope="module")
def both(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Five runs in four slots, so that two of them are seated after the others."""
    assert data.is_dir()
    out = tmp_path_factory.mktemp("runs")
    runs = [
        run_of(model, "lora"),
        run_of(model, "lora", 2, rescale={"factors": [0.25]}),
        run_of(model, "coto", rescale={"factors": [2, 0.5]}, average={"kind": "bema"}),
        run_of(model, "experts"),
        run_of(model, "schemabank"),
    ]
    rescaled, notes = ran(runs, out / "rescaled")
    unchanged, _ = ran([plain(run) for run in runs], out / "plain")
    return Ran(model, runs, rescaled, unchanged, notes)


def choice(outcome: Outcome) -> dict[str, Any]:
    assert outcome.failure is None
    assert outcome.result is not None
    found: dict[str, Any] = outcome.result["training"]["rescale"]
    return found


def losses(outcome: Outcome) -> dict[float, float]:
    return {row["factor"]: row["gold_nll_with_end"] for row in choice(outcome)["tried"]}


def adapter(outcome: Outcome) -> dict[str, Tensor]:
    return load_file(outcome.folder / ADAPTER)


# The choice.


def test_the_lowest_loss_is_chosen_and_of_equals_the_factor_closest_to_1() -> None:
    assert chosen({0.5: 2.0, 1.0: 3.0, 1.5: 2.5}) == Rescaled(0.5, {0.5: 2.0, 1.0: 3.0, 1.5: 2.5})
    tied = {0.25: 2.0, 0.75: 2.0, 1.0: 3.0, 2.0: 2.0}
    assert getattr(chosen(tied), "factor", None) == 0.75
    assert getattr(chosen(dict.fromkeys((0.5, 1.0, 1.5), 2.0)), "factor", None) == 1
    assert getattr(chosen({0.5: 2.0, 1.0: 3.0, 1.5: 2.0}), "factor", None) == 0.5


def test_a_loss_that_is_no_number_is_not_chosen_and_stands_as_null() -> None:
    found = chosen({0.5: math.nan, 1.0: 3.0, 9.0: math.inf})
    assert found is not None
    assert json.loads(json.dumps(found.row(), allow_nan=False)) == {
        "factor": 1.0,
        "tried": [
            {"factor": 0.5, "gold_nll_with_end": None},
            {"factor": 1.0, "gold_nll_with_end": 3.0},
            {"factor": 9.0, "gold_nll_with_end": None},
        ],
    }
    assert chosen({1.0: math.nan, 2.0: math.inf}) is None


def items_of(run: RunConfig) -> list[Item]:
    base = load_base_model(run.model.name, dtype=torch.float32, device=CPU)
    return validation_items(loaded_task(run.task, print), run, base)


def loss_in_peft(model: nn.Module, items: Sequence[Item]) -> float:
    """The mean loss of gold targets with their end token, one item at a time."""
    found = []
    for item in items:
        tokens = torch.tensor([[*item.prompt_tokens, *item.target_tokens]])
        labels = tokens.clone()
        labels[:, : len(item.prompt_tokens)] = -100
        with torch.no_grad():
            found.append(float(model(input_ids=tokens, labels=labels, use_cache=False).loss))
    return sum(found) / len(found)


def test_the_choice_is_that_of_every_factor_tried_in_stock_peft(both: Ran) -> None:
    """The adapters that were not rescaled, each factor put into lora_B by hand."""
    items = items_of(both.runs[0])
    assert len(items) > 8
    for run, own, unchanged in zip(both.runs, both.rescaled, both.plain, strict=True):
        base = AutoModelForCausalLM.from_pretrained(both.model)
        stock = peft.PeftModel.from_pretrained(base, unchanged.folder / "adapter").eval()
        weights = {n: p.clone() for n, p in stock.named_parameters() if "lora_B" in n}
        found = {}
        for factor in run.rescale.factors:
            for name, weight in weights.items():
                stock.get_parameter(name).data = weight * factor
            found[factor] = loss_in_peft(stock, items)
        assert losses(own) == pytest.approx(found, abs=1e-5)
        assert choice(own)["factor"] == min(found, key=lambda factor: found[factor])
    factors = {choice(own)["factor"] for own in both.rescaled}
    assert factors == {1, 2, 4}, "choices that change nothing would prove nothing"


# What the choice does.


def test_the_adapter_is_that_of_b_times_the_factor_and_nothing_else_changes(both: Ran) -> None:
    for own, unchanged in zip(both.rescaled, both.plain, strict=True):
        factor, before = choice(own)["factor"], adapter(unchanged)
        assert adapter(own).keys() == before.keys()
        for name, weight in adapter(own).items():
            assert torch.equal(weight, before[name] * (factor if "lora_B" in name else 1)), name
        steps = [(o.folder / "metrics.jsonl").read_text() for o in (own, unchanged)]
        assert steps[0].replace(own.folder.name, unchanged.folder.name) == steps[1]


def test_evaluation_and_stock_peft_see_the_scaled_adapter(both: Ran) -> None:
    for own in both.rescaled:
        assert own.result is not None
        groups, check = own.result["groups"], own.result["peft_check"]
        # Both on the validation split, in the very same batches.
        assert groups["all"]["gold_nll_with_end"] == losses(own)[choice(own)["factor"]]
        assert check["difference"] <= check["allowed"]


def test_a_bank_and_what_stages_left_stay_as_they_were(both: Ran) -> None:
    own, unchanged = both.rescaled[-1].folder, both.plain[-1].folder
    kept = [*unchanged.glob("stages/*/*/*.safetensors"), *unchanged.glob("bank/*.safetensors")]
    assert len(kept) == 5
    for path in kept:
        assert (own / path.relative_to(unchanged)).read_bytes() == path.read_bytes()


def test_every_choice_is_said(both: Ran) -> None:
    assert [note for note in both.notes if note.startswith("choose the scale")] == [
        f"choose the scale of adapters at 4 factors: {4 * len(items_of(both.runs[0]))}"
    ] * 2
    for run, own in zip(both.runs, both.rescaled, strict=True):
        factor, loss = choice(own)["factor"], losses(own)[choice(own)["factor"]]
        said = f"{run.arm} seed {run.seed}: B x {factor:g}, loss {loss:.4f} on validation"
        assert any(note.startswith(said) for note in both.notes), said


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_neighbour_that_chooses_changes_no_bit(
    dtype: str, model: Path, data: Path, tmp_path: Path
) -> None:
    assert data.is_dir()
    # Processors without instructions for bfloat16 are twenty times as slow in it.
    short = {"train": {"max_steps": 4, "learning_rate": 2e-3}} if dtype == "bfloat16" else {}
    beside = run_of(model, "lora", dtype=dtype, **short)
    others = [run_of(model, arm, dtype=dtype, **short) for arm in ("coto", "schemabank")]
    runs = [beside, *map(plain, others)]
    (own, *unscaled), _ = ran(runs, tmp_path / "beside")
    (before, *same), _ = ran([plain(run) for run in runs], tmp_path / "alone")
    assert choice(own)["factor"] != 1
    for weights in zip(adapter(own).items(), adapter(before).values(), strict=True):
        (name, weight), unchanged = weights
        assert torch.equal(weight, unchanged * (choice(own)["factor"] if "_B" in name else 1))
    for one, other in zip(unscaled, same, strict=True):
        for path in other.folder.rglob("*"):
            if path.is_file() and path.name != "cost.json":
                ours = one.folder / path.relative_to(other.folder)
                assert ours.read_bytes() == path.read_bytes(), path
        assert one.result is not None
        assert "rescale" not in one.result["training"]


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_fewer_slots_choose_alike(slots: int, both: Ran, data: Path, tmp_path: Path) -> None:
    assert data.is_dir()
    outcomes, notes = ran([with_slots(run, slots) for run in both.runs], tmp_path)
    for own, other in zip(outcomes, both.rescaled, strict=True):
        assert own.folder.name == other.folder.name
        assert choice(own)["factor"] == choice(other)["factor"]
        assert losses(own) == pytest.approx(losses(other), abs=1e-3)
    chosen_at = [note for note in notes if note.startswith("choose the scale")]
    assert len(chosen_at) == math.ceil(len(outcomes) / slots)


def test_a_run_that_is_used_again_or_made_anew_has_the_same_bytes(
    both: Ran, data: Path, tmp_path: Path
) -> None:
    assert data.is_dir()
    out = tmp_path / "runs"
    shutil.copytree(both.rescaled[0].folder.parent, out)
    before = snapshot(out)
    again, _ = ran(both.runs, out)
    assert all(outcome.reused for outcome in again)
    assert snapshot(out) == before
    for lost in again[1:4]:
        shutil.rmtree(lost.folder)
    outcomes, _ = ran(both.runs, out)
    assert [outcome.reused for outcome in outcomes] == [True, False, False, False, True]
    for path, (_, contents) in before.items():
        if not path.endswith("cost.json"):
            assert snapshot(out)[path][1] == contents, path


# What fails.


def failing(model: Path, **changes: object) -> list[RunConfig]:
    return [run_of(model, "lora", **changes), plain(run_of(model, "coto"))]


def test_a_run_that_failed_stays_as_it_is(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert data.is_dir()
    seen: list[Sequence[Sequence[float]]] = []
    measured = rescale.losses_at

    def noting(
        cohort: Cohort,
        names: Sequence[str],
        factors: Sequence[Sequence[float]],
        held: rescale.Held,
        *,
        advance: Callable[[int], None],
    ) -> list[dict[float, float]]:
        seen.append(factors)
        return measured(cohort, names, factors, held, advance=advance)

    monkeypatch.setattr(rescale, "losses_at", noting)
    wild = {"train": {"num_train_epochs": 2, "learning_rate": 1e38}}
    runs = [run_of(model, "lora", **wild), run_of(model, "lora", 2)]
    (failed, fine), notes = ran(runs, tmp_path)
    assert failed.failure is not None
    assert failed.failure.kind == "diverged"
    assert choice(fine)["factor"] != 1
    assert seen == [[(), ALL_FACTORS]]
    assert not any("lora seed 1: B x" in note for note in notes)


def test_what_goes_wrong_fails_the_runs_that_choose_alone(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert data.is_dir()

    def full(*_args: object, **_options: object) -> None:
        raise torch.OutOfMemoryError("no room for 20 GiB")

    monkeypatch.setattr(rescale, "gold_losses", full)
    (failed, fine), _ = ran(failing(model), tmp_path)
    assert failed.failure is not None
    assert failed.failure.kind == "memory"
    assert "engine.slots is 2, but the losses" in failed.failure.message
    assert (failed.folder / ADAPTER).is_file(), "what was trained is kept"
    assert fine.failure is None


def test_a_run_without_a_finite_loss_has_diverged(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert data.is_dir()
    lost = [[(math.nan, math.nan)]] * 2
    monkeypatch.setattr(rescale, "gold_losses", lambda *_args, **_options: lost)
    (failed, fine), _ = ran(failing(model), tmp_path)
    assert failed.failure is not None
    assert str(failed.failure).startswith("diverged: no finite loss on validation at any of")
    assert fine.failure is None


@pytest.mark.parametrize("call", ["plan_all", "run_all"])
def test_without_a_validation_split_nothing_is_trained(
    call: str, model: Path, data: Path, tmp_path: Path
) -> None:
    assert data.is_dir()
    task = {"name": "gsm8k", "max_length": 96, "gsm8k": {"validation_ratio": 0}}
    run = run_of(model, "lora", task=task, eval={"split": "test"})
    asked: Callable[[], object] = {
        "plan_all": lambda: plan_all([run], Notes(), device=CPU),
        "run_all": lambda: ran([run], tmp_path / "out"),
    }[call]
    message = r"rescale\.factors is \[0\.25, 1\.0, 2\.0, 4\.0\].* 'validation' of gsm8k.* 0 items"
    with pytest.raises(InputError, match=message):
        asked()
    assert not (tmp_path / "out").exists()
    assert len(plan_all([plain(run)], Notes(), device=CPU)) == 1


# Settings and files.


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ([1], r"factors is \[1\], which changes nothing: allowed are lists with another number"),
        ([0.5, 2, 0.5], "allowed are distinct numbers: name each factor once"),
        ([0, 1], "greater than 0"),
        ([-1], "greater than 0"),
        ([1e9], "less than or equal to 100"),
        ([float("nan")], "less than or equal|greater than|finite"),
    ],
)
def test_factors_that_cannot_be_tried(factors: list[float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RescaleSettings.model_validate({"factors": factors})


def test_1_is_always_tried_and_the_order_does_not_matter(model: Path) -> None:
    runs = [run_of(model, "lora", rescale={"factors": f}) for f in ([2, 0.5], [0.5, 1, 2])]
    assert {run.rescale.factors for run in runs} == {(0.5, 1.0, 2.0)}
    assert len({run_id(run) for run in runs}) == 1
    assert RescaleSettings.model_validate(runs[0].rescale.model_dump()) == runs[0].rescale


def test_without_factors_a_runs_id_is_what_it_was() -> None:
    run = RunConfig(arm="lora")
    assert run.rescale.factors == ()
    rescaled = run.model_copy(update={"rescale": RescaleSettings(factors=(2.0,))})
    assert config_hash(rescaled) != config_hash(run)


def test_a_result_says_what_was_tried(both: Ran) -> None:
    for run, own, unchanged in zip(both.runs, both.rescaled, both.plain, strict=True):
        path = own.folder / "result.json"
        assert read_result(path) == json.loads(path.read_text()) == own.result
        assert tuple(losses(own)) == run.rescale.factors
        assert unchanged.result is not None
        assert "rescale" not in unchanged.result["training"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"factor": 0}, r"training\.rescale\.factor"),
        ({"factor": 3.0}, r"training\.rescale .*a factor that is among those tried"),
        ({"tried": []}, r"training\.rescale\.tried"),
        ({"tried": [{"factor": 2.0}] * 2}, r"training\.rescale\.tried\.0\.gold_nll_with_end"),
    ],
)
def test_a_damaged_choice_is_named(
    change: dict[str, object], named: str, both: Ran, tmp_path: Path
) -> None:
    result = json.loads((both.rescaled[0].folder / "result.json").read_text())
    result["training"]["rescale"] |= change
    (tmp_path / "result.json").write_text(json.dumps(result))
    with pytest.raises(InputError, match=rf"lacks a usable {named}"):
        read_result(tmp_path / "result.json")


def test_a_report_shows_the_factor_of_every_run_that_chose_one(both: Ran) -> None:
    question = Question(treatment="schemabank", control="lora")
    shown, other = (
        page(report(outcomes[0].folder.parent, question))
        for outcomes in (both.rescaled, both.plain)
    )
    assert "adapter times" in shown
    assert "adapter times" not in other
