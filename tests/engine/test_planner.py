"""Runs share a cohort where their steps have equal shapes, in the fastest number of slots."""

from dataclasses import replace
from typing import Any

import pytest

from schemabank.config.methods import METHODS
from schemabank.config.settings import RunConfig
from schemabank.engine import planner
from schemabank.engine.planner import CohortPlan, best_slots, journey, plan_cohorts
from schemabank.engine.seating import Journey, count_steps

Changes = dict[str, Any]


def settings(arm: str = "schemabank", **changes: object) -> RunConfig:
    return RunConfig.model_validate({"arm": arm, **changes})


# Which runs share a cohort.

SHARED: dict[str, Changes] = {
    "seed": {"seed": 7},
    "arm": {"arm": "lora"},
    "arm and seed": {"arm": "lora", "seed": 7},
    "length": {"train": {"num_train_epochs": 5}},
    "max_steps": {"train": {"max_steps": 7}},
    "learning rate": {
        "train": {"learning_rate": 3e-4, "lr_scheduler_type": "cosine", "warmup_ratio": 0.2}
    },
    "adam": {
        "train": {
            "weight_decay": 0.5,
            "adam_beta1": 0.5,
            "adam_beta2": 0.9,
            "adam_epsilon": 1e-3,
            "max_grad_norm": 0.1,
        }
    },
    "muon": {"train": {"optimizer": "muon"}},
    "lora": {"lora": {"r": 2, "lora_alpha": 3, "lora_dropout": 0.5}},
    "curriculum": {
        "curriculum": [{"name": "all", "ratio": 1.0, "train": ["lora"], "learning_rate": 1e-3}]
    },
    "bank's terms": {
        "bank": {"orthonormality_weight": 0.5, "entropy_weight": -1, "load_balance_weight": 0.5}
    },
    "bank": {"bank": {"rank": 8, "top_k": 1, "init_std": 0.1}},
    "tagger": {"tags": {"tagger": "random"}},
    "no tagger": {"tags": {"tagger": "none"}},
    "field": {"tags": {"tagger": "field", "field": "template"}},
    "delivery": {"tags": {"delivery": "prefix", "loss_weight": 0.5}},
    "engine": {"engine": {"slots": 3}},
    "preset": {"preset": "paper"},
    "shots, which a trained run has none of": {"eval": {"few_shot": 8}},
}


@pytest.mark.parametrize("changes", SHARED.values(), ids=SHARED)
def test_runs_share_a_cohort_whatever_a_slot_has_for_itself(changes: Changes) -> None:
    runs = (settings(), settings(**changes))
    (plan,) = plan_cohorts(runs)
    assert set(plan.runs) == set(runs)
    assert plan.reason == ""


# Changes of one run, and what they and the defaults are called.
SPLIT: dict[str, tuple[Changes, str, str]] = {
    "base": ({"arm": "base"}, "arm = any that trains", "arm = base"),
    "model": (
        {"model": {"name": "other"}},
        "model.name = smollm2-135m-instruct",
        "model.name = other",
    ),
    "revision": ({"model": {"revision": "v2"}}, "model.revision = null", "model.revision = v2"),
    "dtype": ({"model": {"dtype": "float32"}}, "model.dtype = auto", "model.dtype = float32"),
    "task": ({"task": {"name": "gsm8k"}}, "task.name = gsm_symbolic", "task.name = gsm8k"),
    "prompt": (
        {"task": {"prompt": 'Say "so".\n{question}'}},
        "task.prompt = null",
        r"task.prompt = Say \"so\".\n{question}",
    ),
    "a task's own setting": (
        {"task": {"gsm_symbolic": {"held_out_ratio": 0.5}}},
        "task.gsm_symbolic.held_out_ratio = 0.2",
        "task.gsm_symbolic.held_out_ratio = 0.5",
    ),
    "two of the task": (
        {"task": {"end_token": False, "train_limit": 5}},
        "task.end_token = true, task.train_limit = null",
        "task.end_token = false, task.train_limit = 5",
    ),
    "batch size": ({"train": {"batch_size": 2}}, "train.batch_size = 4", "train.batch_size = 2"),
    "buckets": ({"train": {"max_buckets": 2}}, "train.max_buckets = 20", "train.max_buckets = 2"),
    "targets": (
        {"lora": {"target_modules": ["q_proj", "v_proj"]}},
        'lora.target_modules = ["q_proj", "k_proj", "v_proj", "o_proj"]',
        'lora.target_modules = ["q_proj", "v_proj"]',
    ),
    "blocks": (
        {"lora": {"layers_to_transform": [1, 3]}},
        "lora.layers_to_transform = null",
        "lora.layers_to_transform = [1, 3]",
    ),
    "schemas": ({"bank": {"num_schemas": 8}}, "bank.num_schemas = 32", "bank.num_schemas = 8"),
    "attributes": (
        {"bank": {"attribute_dim": 8}},
        "bank.attribute_dim = 32",
        "bank.attribute_dim = 8",
    ),
    "residual": ({"bank": {"residual": False}}, "bank.residual = true", "bank.residual = false"),
    "last_n": ({"bank": {"last_n": 1}}, "bank.last_n = 2", "bank.last_n = 1"),
    "layers": ({"bank": {"layers": [1, 3]}}, "bank.layers = null", "bank.layers = [1, 3]"),
    "tags": ({"tags": {"num_tags": 1}}, "tags.num_tags = 2", "tags.num_tags = 1"),
    "split": ({"eval": {"split": "validation"}}, "eval.split = null", "eval.split = validation"),
    "limit": ({"eval": {"limit": 9}}, "eval.limit = null", "eval.limit = 9"),
    "new tokens": (
        {"eval": {"max_new_tokens": 8}},
        "eval.max_new_tokens = 256",
        "eval.max_new_tokens = 8",
    ),
    "decoding": ({"eval": {"batch_size": 8}}, "eval.batch_size = 64", "eval.batch_size = 8"),
    "routing": ({"eval": {"routing": "on"}}, "eval.routing = off", "eval.routing = on"),
}


@pytest.mark.parametrize(("changes", "usual", "changed"), SPLIT.values(), ids=SPLIT)
def test_what_all_slots_share_splits_runs_and_the_reason_says_it(
    changes: Changes, usual: str, changed: str
) -> None:
    for first, arm in (("lora", "schemabank"), ("schemabank", "lora")):
        one, other = settings(first), settings(**{"arm": arm, **changes})
        assert plan_cohorts([one, other]) == [
            CohortPlan(runs=(one,), reason=usual),
            CohortPlan(runs=(other,), reason=changed),
        ]


def test_runs_that_take_two_passes_have_a_cohort_of_their_own() -> None:
    weights = [0, 0.5, 2]
    experts = [settings("experts", experts={"consistency_weight": weight}) for weight in weights]
    runs = [settings("lora"), *experts, settings("lora", experts={"consistency_weight": 1})]
    assert plan_cohorts(runs) == [
        CohortPlan(runs=(runs[0], runs[1], runs[4]), reason="passes over a batch = 1"),
        CohortPlan(runs=(runs[2], runs[3]), reason="passes over a batch = 2"),
    ]


def test_shots_split_runs_of_the_base_model_and_training_settings_do_not() -> None:
    train = {"batch_size": 2, "max_buckets": 1}
    lora, bank = {"target_modules": ["q_proj"]}, {"num_schemas": 4}
    runs = [
        settings("base"),
        settings("base", eval={"few_shot": 8}),
        settings("base", seed=1, train=train, lora=lora, bank=bank),
    ]
    plans = plan_cohorts(runs)
    assert [set(plan.runs) for plan in plans] == [{runs[0], runs[2]}, {runs[1]}]
    assert [plan.reason for plan in plans] == ["eval.few_shot = 0", "eval.few_shot = 8"]


def test_a_reason_leaves_out_what_all_cohorts_that_have_it_have_in_common() -> None:
    runs = [settings("base"), settings("lora"), settings("schemabank", train={"batch_size": 2})]
    assert [plan.reason for plan in plan_cohorts(runs)] == [
        "arm = base",
        "arm = any that trains, train.batch_size = 4",
        "arm = any that trains, train.batch_size = 2",
    ]


def test_every_run_is_in_one_cohort_longest_first_and_else_in_their_order() -> None:
    epochs = [2, 6, 2, 10, 6, 10]
    runs = [
        settings(arm, seed=seed, train={"num_train_epochs": n, "batch_size": batch_size})
        for seed, n in enumerate(epochs)
        for batch_size in (2, 4)
        for arm in ("lora", "schemabank")
    ]
    plans = plan_cohorts(runs)
    assert [{run.train.batch_size for run in plan.runs} for plan in plans] == [{2}, {4}]
    for plan in plans:
        assert [(run.seed, run.arm) for run in plan.runs] == [
            (seed, arm) for seed in (3, 5, 1, 4, 0, 2) for arm in ("lora", "schemabank")
        ]
    steps = [settings(train={"max_steps": n}) for n in (3, 9, 5)]
    (plan,) = plan_cohorts(steps)
    assert plan.runs == (steps[1], steps[2], steps[0])


def test_no_runs_need_no_cohort() -> None:
    assert plan_cohorts([]) == []


# How many slots.


@pytest.mark.parametrize(("fitting", "slots"), [(100, 19), (19, 19), (8, 8), (1, 1)])
def test_the_papers_suite_takes_19_slots_for_its_40_runs(fitting: int, slots: int) -> None:
    """Of 240 epochs, 36 are the routers' alone; 10 epochs are the longest run's.

    Two orders of batch lengths take turns. With one order it would be 22 slots, for 10 epochs.
    """
    runs = [
        settings(arm, preset="paper", seed=seed, train={"num_train_epochs": n})
        for arm in ("lora", "schemabank")
        for n in (2, 4, 6, 8, 10)
        for seed in range(4)
    ]
    (cohort,) = plan_cohorts(runs)
    journeys = [journey(run, epoch=100) for run in cohort.runs]
    assert sum(j.num_steps for j in journeys) == 24000
    assert sum(j.num_cached for j in journeys) == 3600
    assert best_slots(journeys, cycle=200, at_most=fitting) == slots
    if fitting >= 19:
        assert count_steps(journeys, num_slots=slots, cycle=200) == (300, 1200)
        assert best_slots(journeys, cycle=100, at_most=100) == 22


def test_equal_runs_that_all_fit_train_at_once() -> None:
    runs = [Journey(num_cached=30, num_steps=100) for _ in range(12)]
    assert best_slots(runs, cycle=50, at_most=40) == 12
    assert best_slots(runs, cycle=50, at_most=7) == 6, "two times six"


def test_a_runs_journey_is_cached_while_lora_is_untouched() -> None:
    train = {"num_train_epochs": 2}
    found = journey(settings(train=train), epoch=10)
    assert (found.num_cached, found.num_steps) == (6, 20)
    assert journey(settings("lora", train=train), epoch=10).num_cached == 0
    only_router = [{"name": "r", "ratio": 1.0, "train": ["router"], "learning_rate": 1e-3}]
    found = journey(settings(train={"max_steps": 7}, curriculum=only_router), epoch=10)
    assert (found.num_cached, found.num_steps) == (7, 7)


def test_steps_that_a_method_adds_move_no_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    run = settings(train={"num_train_epochs": 2})
    longer = replace(METHODS["schemabank"], length=lambda own, steps: steps + 5 + (own is not None))
    monkeypatch.setattr(planner, "METHODS", {**METHODS, "schemabank": longer})
    found = journey(run, epoch=10)
    assert (found.num_cached, found.num_steps) == (6, 25), "it has no section of its own"
