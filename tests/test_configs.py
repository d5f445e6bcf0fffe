"""The suites in configs/: they load, and arms differ in what they are said to differ in."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from transformers import Qwen2Config, Qwen2ForCausalLM

from cohorts import BANK, LORA, bank_run, cohort, data, train, weights, with_banks
from schemabank.config.file import run_id
from schemabank.config.naming import flat
from schemabank.config.settings import RunConfig
from schemabank.engine.schedule import plan
from schemabank.engine.stack import AdapterStack
from schemabank.methods.schemabank.curriculum import BankStep, step_settings, trained_groups
from schemabank.suites.file import Suite, SuiteRun, TuneSettings
from schemabank.suites.plan import plan_suite
from schemabank.suites.ratesearch import trials
from schemabank.suites.suite import load_suite
from tiny import END_TOKEN_ID, VOCAB_SIZE, tiny_model, tiny_tokenizer
from tinyruns import Notes

ROOT = Path(__file__).parents[1] / "configs"
ABLATIONS = sorted((ROOT / "ablations").glob("*.yaml"))
SOUND = ROOT / "sound" / "suite.yaml"
SUITES = sorted({*ROOT.rglob("suite*.yaml"), *ABLATIONS})
HERE = ["engine.device=cpu", "model.dtype=float32"]
NUM_BLOCKS = 24  # of Qwen2-0.5B
EMBEDDED_BLOCKS = 30  # of SmolLM2-135M


def of_arm(suite: Suite, arm: str) -> SuiteRun:
    return next(run for run in suite.runs if run.arm == arm)


def differing(one: RunConfig, other: RunConfig) -> set[str]:
    ours, theirs = (flat(config.model_dump(mode="json")) for config in (one, other))
    return {name for name in ours if ours[name] != theirs[name]}


@pytest.mark.parametrize("path", SUITES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_suite_loads_and_its_runs_are_distinct(path: Path) -> None:
    suite = load_suite(path, HERE)
    assert len({run_id(run.config) for run in suite.runs}) == len(suite.runs)
    assert suite.contrast is not None
    assert suite.contrast.treatment != suite.contrast.control
    if suite.tune is not None:
        tuning = trials(suite, suite.tune.factors)
        assert len({run_id(trial.run.config) for trial in tuning}) == len(tuning)


def test_there_is_an_ablation_for_everything_that_is_claimed_to_matter() -> None:
    assert {path.stem for path in ABLATIONS} == {
        "bank_layers",
        "delivery",
        "end_token",
        "hand_over",
        "lora_layers",
        "lora_targets",
        "residual",
        "router",
        "routing",
        "shape",
        "stages",
        "tag_schedule",
        "tags",
        "target",
        "weights",
    }


@pytest.mark.parametrize("path", [*ABLATIONS, SOUND], ids=lambda p: p.stem)
def test_an_arm_differs_from_its_control_in_just_the_settings_it_names(path: Path) -> None:
    suite, said = load_suite(path, HERE), yaml.safe_load(path.read_text(encoding="utf-8"))["arms"]
    assert suite.contrast is not None
    control = suite.contrast.control
    named = {arm: set(flat({"arm": arm, **settings})) for arm, settings in said.items()}
    first = of_arm(suite, control)
    assert {run.arm for run in suite.runs} == set(said)
    for arm in set(said) - {control}:
        run = of_arm(suite, arm)
        assert run.point == first.point
        found = differing(run.config, first.config)
        assert found, f"{arm} is {control}"
        assert found <= named[arm] | named[control]
        assert named[arm] - named[control] <= found, f"{arm} names a setting that {control} has too"


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda p: p.stem)
def test_an_ablation_says_what_it_asks_and_has_seeds_enough(path: Path) -> None:
    suite, lines = load_suite(path, HERE), path.read_text(encoding="utf-8").splitlines()
    assert [line.startswith("# ") for line in lines[:3]] == [True, True, False]
    for arm in {run.arm for run in suite.runs}:
        assert len({run.seed for run in suite.runs if run.arm == arm}) >= 6
    assert (suite.tune is None) == (path.stem == "routing")  # which compares the same weights
    assert {run.config.task.name for run in suite.runs} == {"gsm_symbolic"}
    assert {run.config.model.name for run in suite.runs} == {"smollm2-135m-instruct"}


def test_the_page_lists_the_ablations_and_its_search_is_one() -> None:
    page = (ROOT.parent / "docs" / "suites.md").read_text(encoding="utf-8")
    listed = page.partition("| ablation | arms |\n|---|---|\n")[2].splitlines()
    names = [name for row in listed for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(names) == [path.stem for path in ABLATIONS]
    text = page.partition("```yaml\ntune:")[2].partition("```")[0]
    tune = TuneSettings.model_validate(yaml.safe_load(f"tune:{text}")["tune"])
    assert tune == TuneSettings(limit=tune.limit), "the defaults"


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda p: p.stem)
def test_an_ablation_names_blocks_that_the_embedded_model_has(path: Path) -> None:
    for run in load_suite(path, HERE).runs:
        named = {*(run.config.bank.layers or ()), *(run.config.lora.layers_to_transform or ())}
        assert max(named, default=0) < EMBEDDED_BLOCKS


# The fair version of the document's comparison.


@pytest.fixture
def sound() -> Suite:
    return load_suite(SOUND, HERE)


def test_the_sound_suite_is_fair(sound: Suite) -> None:
    configs = [run.config for run in sound.runs]
    assert {c.model.name for c in configs} == {"Qwen/Qwen2-0.5B"}
    assert {(c.task.name, c.task.end_token, c.task.target) for c in configs} == {
        ("gsm8k", True, "solution")
    }
    assert {(c.eval.split, c.eval.limit) for c in configs} == {("test", None)}
    shots = {run.arm: run.config.eval.few_shot for run in sound.runs if run.config.arm == "base"}
    assert shots == {"zero-shot": 0, "eight-shot": 8}
    trained = {run.arm for run in sound.runs} - set(shots)
    for arm in trained:
        assert len({run.seed for run in sound.runs if run.arm == arm}) >= 8
    assert sound.tune is not None
    rates: dict[str, set[object]] = {arm: set() for arm in trained}
    for trial in trials(sound, sound.tune.factors):
        rates[trial.run.arm].add(trial.row()["learning_rate"])
    assert len({frozenset(found) for found in rates.values()}) == 1, "all arms have one grid"


@pytest.mark.parametrize("num_steps", [10, 16, 999, 3366])
def test_equal_updates_are_those_of_schemabank_without_its_bank(
    num_steps: int, sound: Suite
) -> None:
    ours, theirs = (of_arm(sound, a).config for a in ("lora, equal updates", "schemabank"))
    assert trained_groups(ours.stages()) == {"lora"}
    for mine, other in zip(steps(ours, num_steps), steps(theirs, num_steps), strict=True):
        assert mine.trained == other.trained & {"lora"}
        assert mine.bank_scale == mine.tag_keep == 0
        if "lora" in mine.trained:
            assert (mine.learning_rate, mine.first) == (other.learning_rate, other.first)


def steps(config: RunConfig, num_steps: int) -> list[BankStep]:
    plans = plan(config.stages(), num_steps)
    return [step_settings(plans, step, seed=config.seed) for step in range(num_steps)]


def test_a_stage_that_trains_the_router_without_the_bank_rests(sound: Suite) -> None:
    stages = of_arm(sound, "lora, equal updates").config.stages()
    done = cohort([bank_run(1, stages=stages), bank_run(2)], data())
    fresh = AdapterStack(tiny_model("llama"), lora=[LORA], attach=with_banks(BANK))
    fresh.initialise(0, 1)
    train(done)
    found, before = weights(done, 0), {n: g.weights[0] for n, g in fresh.groups.items()}
    for group in ("router", "schemas"):
        assert torch.equal(found[group], before[group])
    assert not torch.equal(found["lora"], before["lora"])


def test_equal_parameters_are_as_many_as_schemabank_trains(sound: Suite) -> None:
    """With Qwen2-0.5B's shape but for what neither LoRA nor a bank sits on."""
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=8,
            hidden_size=896,
            intermediate_size=8,
            num_hidden_layers=NUM_BLOCKS,
            num_attention_heads=14,
            num_key_value_heads=2,
        )
    )
    ours, theirs = (of_arm(sound, a).config for a in ("lora, equal parameters", "schemabank"))
    stack = AdapterStack(model, lora=[theirs.lora], attach=with_banks(theirs.bank))
    counts = {
        config.arm: sum(
            stack.num_weights(group, config.lora, {"bank": config.bank})
            for group in trained_groups(config.stages())
        )
        for config in (ours, theirs)
    }
    assert counts["lora"] == pytest.approx(counts["schemabank"], rel=0.001)
    assert counts["lora"] == 4_055_040


def test_format_only_trains_one_direction_after_the_last_attention(sound: Suite) -> None:
    lora = of_arm(sound, "format only").config.lora
    assert (lora.r, lora.target_modules, lora.layers_to_transform) == (
        1,
        ("down_proj",),
        (NUM_BLOCKS - 1,),
    )


@pytest.mark.usefixtures("gsm8k")
def test_the_sound_suite_can_be_had(tmp_path: Path) -> None:
    """On a small model with as many blocks and little data, all cohorts are built."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=VOCAB_SIZE,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=NUM_BLOCKS,
                num_attention_heads=4,
                num_key_value_heads=2,
                bos_token_id=None,
                eos_token_id=END_TOKEN_ID,
                max_position_embeddings=2048,
            )
        )
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    changes = [f"model.name={tmp_path / 'model'}", "eval.max_new_tokens=8", "train.max_steps=10"]
    notes = Notes()
    tables = plan_suite(load_suite(SOUND, [*HERE, *changes]), tmp_path / "runs", notes).tables()
    assert [title.split(",")[0] for title, _, _ in tables] == [
        f"60 tuning runs in {str(tmp_path / 'runs')!r}",
        "cohorts of the tuning runs",
        "cohorts of the final runs",
    ]
    assert any(note.startswith("50 final runs follow") for note in notes.lines)
