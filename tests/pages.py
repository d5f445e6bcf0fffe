"""A report of runs and its samples, made up, with text of the kind that breaks pages."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from reports import report
from schemabank.report.command import Question

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "results" / "published" / "gsm8k.csv"
SCRIPT = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
NASTY = [
    SCRIPT,
    "<!-- <script> -->]]>",
    "[link](javascript:alert(1)) javascript:alert(1)",
    "\u202eright to left\u2066 and never back",
    "zero\u200bwidth\ufeff\u00adjoined",
    "x" * 20_000,
    "NUL\x00 bell\x07 line\u2028separator\x85",
    "lone \ud800 surrogate",
    "' onmouseover='alert(1)' \" autofocus onfocus=\"alert(1)",
    "&lt;b&gt; &amp;amp; &#60;",
    "{{7*7}} ${7*7} `code` | pipe | *star*",
    "Natalia sold 48 / 2 = 24 clips in May.\nAltogether 48 + 24 = 72.\n#### 72",
]
ARMS = ("schemabank", "lora", "lora, equal <updates>")


def table_report() -> dict[str, Any]:
    """A report of a table of scores."""
    return dict(json.loads(json.dumps(_of_table())))


@cache
def _of_table() -> dict[str, Any]:
    return report(TABLE, Question(test_size=1319))


def runs_report() -> dict[str, Any]:
    """A report of a folder of runs, with everything that it can have."""
    found = table_report()
    over_seeds = {**found["primary"]["verdict"], "outcome": "better", "sentence": "Better."}
    return {
        **found,
        "primary": {**found["primary"], "over_seeds": over_seeds},
        "setting": "epochs",
        "metric": "correct",
        "group": "test",
        "split": "test",
        "groups": [_group("seen", 0.06), _group("held out & <new>", -0.01)],
        "others": [_other(ARMS[2], 0.02), _other(NASTY[3], 0.05)],
        "items": _items(),
        "rates": [_rate(arm, step) for arm in ARMS for step in range(5)],
        "curves": [_curve(arm) for arm in ARMS],
        "behaviour": [_behaviour(arm) for arm in ARMS],
        "cost": [_cost(arm) for arm in ARMS],
        "routing": [_routing()],
        "samples_of": samples_of(24),
        "provenance": _provenance(300),
    }


def samples_of(num: int, *, binary: bool = True, without: int = 0) -> dict[str, Any]:
    """What so many samples are of."""
    return {
        "num_items": 3 * num,
        "shown": num,
        "seeds": [42, 43],
        "epochs": "2",
        "binary": binary,
        "without_predictions": without,
    }


def samples(num: int = 24) -> list[dict[str, Any]]:
    """Samples whose texts are in turn each of the nasty ones."""
    flips = ("gained", "lost", "both", "neither", "mixed", "unpaired", "gained")
    return [
        {
            "id": f"test-{index}" if index else "a/b c?<1>",
            "group": "seen" if index % 2 else "held out & <new>",
            "prompt": f"Question {index}: {NASTY[index % len(NASTY)]}\nAnswer: ",
            "golds": ["72"],
            "flip": flips[index % len(flips)],
            "answers": [
                _answer(arm, seed, index + place)
                for seed in (42, 43)
                for place, arm in enumerate(ARMS)
            ],
        }
        for index in range(num)
    ]


def _answer(arm: str, seed: int, index: int) -> dict[str, Any]:
    return {
        "arm": arm,
        "seed": seed,
        "epochs": "2",
        "completion": NASTY[index % len(NASTY)],
        "extracted": "72" if index % 3 else None,
        "score": float(index % 2),
        "stop_reason": "length" if index % 4 == 0 else "end",
        "new_tokens": 20 + index,
    }


def _group(name: str, difference: float) -> dict[str, Any]:
    return {
        "group": name,
        "num_items": 250,
        "treatment_mean": 0.1 + difference,
        "control_mean": 0.1,
        "difference": difference,
        "interval": [difference - 0.03, difference + 0.03],
        "p": 0.02,
        "p_holm": 0.04,
        "outcome": "better" if difference > 0.03 else "no difference detected",
        "sentence": "Better." if difference > 0.03 else "No difference detected.",
    }


def _other(name: str, difference: float) -> dict[str, Any]:
    return {
        "arm": name,
        "seeds": 4,
        "mean": 0.05,
        "difference": difference,
        "interval": [difference - 0.02, difference + 0.02],
        "p": 0.01,
        "p_holm": 0.02,
        "outcome": "better",
        "sentence": "Better.",
    }


def _items() -> dict[str, Any]:
    pairs = [
        {"seed": seed, "epochs": "2", "only_treatment": 30, "only_control": 9, "p": 0.001}
        for seed in (42, 123, 456, 789)
    ]
    crossed = {"mean": 0.06, "interval": [0.02, 0.1], "standard_error": 0.02, "df": 3.0, "p": 0.01}
    crossed |= {"confidence": 0.95, "num_seeds": 4, "num_clusters": 500}
    crossed |= {"seed_part": 0.5, "item_part": 0.5}
    places = {"epochs": None, "num_items": 500, "num_seeds": 4}
    return {**places, "crossed": crossed, "mcnemar": pairs}


def _rate(arm: str, step: int) -> dict[str, Any]:
    best = {"schemabank": 2, "lora": 4}.get(arm, 1)
    mean = 0.12 - 0.02 * abs(step - best) + 0.01 * ARMS.index(arm)
    return {
        "arm": arm,
        "epochs": None,
        "learning_rate": 5e-5 * 2**step,
        "split": "validation",
        "scores": {"1001": mean - 0.01, "1002": mean + 0.01},
        "mean": mean,
        "interval": [mean - 0.02, mean + 0.02],
        "chosen": step == best,
        "at_edge": step == best and step in {0, 4},
        "best_score": step == best,
        "failed": int(arm == "lora" and step == 0),
    }


def _curve(arm: str) -> dict[str, Any]:
    lift = 0.1 * ARMS.index(arm)
    points = [
        {"step": step, "mean": mean, "low": mean - 0.08, "high": mean + 0.12}
        for step in range(0, 600, 10)
        for mean in [lift + 0.4 + 2 / (1 + step / 60)]
    ]
    stages = [{"name": "router", "first_step": 0}, {"name": "all", "first_step": 180}]
    stages = stages if arm == "schemabank" else [{"name": "lora", "first_step": 0}]
    numbers = {"num_seeds": 4, "num_runs": 4, "mean_tokens": 500_000.0}
    return {"arm": arm, "epochs": None, **numbers, "points": points, "stages": stages}


def _behaviour(arm: str) -> dict[str, Any]:
    return {
        "arm": arm,
        "epochs": "2",
        "trained": True,
        "ended_ratio": 0.97,
        "at_limit_ratio": 0.03,
        "mean_new_tokens": 64.25,
        "read_ratio": 0.99,
    }


def _cost(arm: str) -> dict[str, Any]:
    return {
        "arm": arm,
        "epochs": None,
        "runs": 20,
        "num_steps": 1868,
        "num_lora_updates": 1308,
        "num_trained_parameters": 1_081_344,
        "tokens": None if arm == "lora" else 512_000,
        "training_s": 41.5,
        "evaluation_s": 12.25,
        "peak_host_memory_gib": 3.5,
        "peak_device_memory_gib": None,
    }


def _routing() -> dict[str, Any]:
    cells = [
        {"x": str(x), "y": str(y), "value": (x * y % 7) / 7, "panel": f"layer {panel}"}
        for panel in (20, 21)
        for y in range(4)
        for x in range(16)
    ]
    titles = {"x_title": "schema", "y_title": "tag <b>", "value_title": "share"}
    return {"run": "schemabank-42", "title": f"usage {SCRIPT}", **titles, "cells": cells}


def _provenance(num: int) -> dict[str, Any]:
    runs = [
        {"run_id": f"{arm}-{i}", "arm": arm, "seed": i, "epochs": "2"}
        for i in range(num)
        for arm in ARMS[:2]
    ]
    return {
        "runs": runs,
        "versions": {"torch": ["2.13.0"], "transformers": ["5.22.0", "5.23.0"]},
        "models": ["Qwen/Qwen2-0.5B"],
        "tasks": ["gsm8k"],
        "dtypes": ["bfloat16"],
        "devices": ["NVIDIA H200"],
        "failed": [{"run": "lora-<7>", "reason": f"loss is not finite at step 12 {SCRIPT}"}],
        "failed_trials": [{"run": "lora-t1", "reason": "no finite gradient in 3 steps in a row"}],
        "excluded": [{"run": "lora-8", "reason": "other model: Qwen/Qwen2-1.5B"}],
        "unfinished": ["lora-9"],
    }
