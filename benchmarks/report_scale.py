"""Write synthetic runs by the thousand and measure the report on them.

    python benchmarks/report_scale.py --runs 10000 --items 1319 --out results/report_scale.json
    python benchmarks/report_scale.py --show --out results/report_scale.json

There are ten arms at two settings, with as many seeds as the number of runs needs; the first two
arms are compared. A run's folder has everything that a real one has, except weights. Only a few
runs have completions and logs, since a report shows samples and curves of a few. The program prints
and writes the seconds and the process's peak memory.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from schemabank.common.cores import given_cores
from schemabank.common.files import read_json
from schemabank.common.writing import write_json, write_lines
from schemabank.config.file import run_id, to_yaml
from schemabank.config.settings import RunConfig
from schemabank.report.command import HTML, JSON, Question, report
from schemabank.runs.folder import CONFIG, COST, METRICS, PREDICTIONS, RESULT, SUITE
from schemabank.runs.itemscores import save_item_scores
from schemabank.tasks.scoring.scores import METRICS as KINDS
from schemabank.tasks.scoring.scores import ItemRecord, summarise

ARMS, SETTINGS = 10, (1, 2)
FULL_SEEDS = 16  # of every arm and setting: these have completions and logs
STEPS = 200
SHARES = ("correct", "correct_among_ended")
DECODED = ("few_shot", "routing", "max_new_tokens", "num_samples", "temperature", "top_p")
DECODED += ("sampling_seed", "batch_size")

Correct = npt.NDArray[np.bool_]  # (num_items)


def main() -> None:
    """Write the runs, report on them, and print what that took."""
    arguments = _arguments()
    if arguments.show:
        print(table(read_json(Path(arguments.out))))  # noqa: T201 -- this is a script
        return
    with TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        num_seeds = arguments.runs // (ARMS * len(SETTINGS))
        write_runs(runs, num_seeds=num_seeds, num_items=arguments.items)
        began = time.perf_counter()
        out = Path(folder) / "report"
        report(runs, Question(), out)
        row = {
            "runs": num_seeds * ARMS * len(SETTINGS),
            "items": arguments.items,
            "seconds": round(time.perf_counter() - began, 1),
            "peak_memory_gib": round(_peak_gib(), 2),
            "page_mb": round((out / HTML).stat().st_size / 1e6, 2),
            "json_mb": round((out / JSON).stat().st_size / 1e6, 2),
            "cores": given_cores(),
        }
    print(json.dumps(row))  # noqa: T201 -- this is a script
    Path(arguments.out).write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")


def table(row: Mapping[str, object]) -> str:
    """A record as a Markdown table."""
    head = ["runs", "items", "cores", "seconds", "peak memory, GiB", "page, MB"]
    names = ["runs", "items", "cores", "seconds", "peak_memory_gib", "page_mb"]
    lines = [head, ["---:"] * len(head), [str(row[name]) for name in names]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_runs(
    folder: Path, *, num_seeds: int, num_items: int, full_seeds: int = FULL_SEEDS
) -> None:
    """Write a suite of finished runs with drawn scores; arm 0 is slightly better than the others.

    Args:
        folder: to write; must not exist.
        num_seeds: of every arm at every setting.
        num_items: of every run.
        full_seeds: seeds of every arm and setting that have completions and a log.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    difficulty = rng.normal(size=num_items)
    rows = []
    for arm in range(ARMS):
        for epochs in SETTINGS:
            for seed in range(num_seeds):
                config = _config(arm, epochs, seed)
                skill = 0.1 * (arm == 0) + 0.05 * epochs + rng.normal(scale=0.1)
                chance = 1 / (1 + np.exp(difficulty - skill))
                correct = rng.random(num_items) < chance
                _write_run(folder / run_id(config), config, correct, full=seed < full_seeds)
                settings = {"train.num_train_epochs": epochs}
                row = {"run_id": run_id(config), "arm": f"arm {arm}", "seed": seed}
                rows.append({**row, "settings": settings})
    contrast = {"treatment": "arm 0", "control": "arm 1"}
    write_json(folder / SUITE, {"contrast": contrast, "runs": rows, "tuning": None})


def _config(arm: int, epochs: int, seed: int) -> RunConfig:
    found = RunConfig(arm="lora", seed=seed)
    lora = found.lora.model_copy(update={"r": arm + 1})
    train = found.train.model_copy(update={"num_train_epochs": epochs})
    return found.model_copy(update={"lora": lora, "train": train})


def _write_run(folder: Path, config: RunConfig, correct: Correct, *, full: bool) -> None:
    folder.mkdir()
    rows = [
        row | {"scores": {"correct": float(c)}}
        for row, c in zip(_rows(len(correct)), correct, strict=True)
    ]
    (folder / CONFIG).write_text(_settings(config), encoding="utf-8")
    save_item_scores(folder, rows, "correct")
    write_json(folder / RESULT, _result(config, correct))
    write_json(
        folder / COST,
        {"runs_in_cohort": 40, "slots": 40, "training_s": 400.0, "evaluation_s": 40.0}
        | {"peak_host_memory_gib": 4.0},
    )
    if full:
        write_lines(folder / PREDICTIONS, rows)
        write_lines(folder / METRICS, _log(config))


def _settings(config: RunConfig) -> str:
    """The same as ``to_yaml``, which would take minutes for thousands of runs."""
    return _unseeded(config.model_copy(update={"seed": 0})).replace(
        "\nseed: 0\n", f"\nseed: {config.seed}\n"
    )


@cache
def _unseeded(config: RunConfig) -> str:
    return to_yaml(config)


@cache
def _records(num_items: int) -> tuple[ItemRecord, ...]:
    """Every item answered right."""
    return tuple(
        ItemRecord(
            id=f"test-{number}",
            sample=0,
            group="all",
            cluster="",
            prompt=f"How much is {number} and 1?\nThe answer is: ",
            completion=f"add 1 to {number}\n#### {number + 1}",
            golds=(str(number + 1),),
            extracted=str(number + 1),
            readings={},
            scores={"correct": 1.0},
            new_tokens=12,
            stop_reason="end_token",
            gold_tokens=3,
            gold_nll=1.0,
            gold_nll_with_end=0.9,
        )
        for number in range(num_items)
    )


@cache
def _rows(num_items: int) -> list[dict[str, object]]:
    return [asdict(record) for record in _records(num_items)]


@cache
def _summary(num_items: int) -> dict[str, object]:
    return summarise(_records(num_items), KINDS["numeric"])


def _result(config: RunConfig, correct: Correct) -> dict[str, object]:
    training = {"num_steps": STEPS, "num_examples": 4 * STEPS, "num_skipped_steps": 0}
    training |= {"num_lora_updates": STEPS, "num_updates": {"lora": STEPS}}
    training |= {"num_trained_parameters": 10**6 * config.lora.r}
    return {
        "arm": config.arm,
        "seed": config.seed,
        "config_hash": run_id(config).rpartition("-")[2],
        "model": config.model.name,
        "dtype": "bfloat16",
        "task": "gsm8k",
        "split": "test",
        "padding_side": "right",
        **{name: getattr(config.eval, name) for name in DECODED},
        "versions": {"schemabank": "0.1.0"},
        "training": {**training, "failure": None},
        "metric": "numeric",
        "scores": ["correct"],
        "groups": {
            "all": {**_summary(len(correct)), **dict.fromkeys(SHARES, float(correct.mean()))}
        },
    }


def _log(config: RunConfig) -> Iterator[dict[str, object]]:
    for step in range(STEPS):
        yield {
            "run": run_id(config),
            "step": step,
            "num_steps": STEPS,
            "stage": "lora",
            "loss": 2 / (1 + step / 20) + 0.01 * (config.seed % 7),
            "num_tokens": 400,
        }


def _peak_gib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--items", type=int, default=1_319)
    parser.add_argument("--show", action="store_true", help="only print --out as a table")
    parser.add_argument("--out", required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
