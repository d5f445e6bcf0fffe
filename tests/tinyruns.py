"""A tiny experiment on disk: base model, GSM8K folder and configuration, for whole-path tests."""

import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from schemabank.config.file import load_experiment
from schemabank.engine.cohort import RunStep
from schemabank.runs.checkpointing import Checkpoints
from schemabank.runs.experiment import run_experiment
from schemabank.runs.members import Outcome
from schemabank.runs.progress import RunState
from tiny import Kind, tiny_model, tiny_tokenizer

STAGES = [
    {"name": "router", "ratio": 0.3, "train": ["router"], "learning_rate": 1e-2, "tag_keep": [1.0]},
    {"name": "schemas", "ratio": 0.3, "train": ["schemas", "lora"], "learning_rate": 1e-2},
    {"name": "joint", "ratio": 0.4, "train": ["router", "schemas", "lora"], "learning_rate": 1e-2},
]
SETTINGS: dict[str, Any] = {
    "arm": ["base", "lora", "schemabank"],
    "model": {"dtype": "float32"},
    "task": {"name": "gsm8k", "max_length": 96},
    "lora": {"r": 4, "lora_alpha": 10, "lora_dropout": 0.1},
    "bank": {"num_schemas": 8, "rank": 4, "attribute_dim": 4},
    "curriculum": STAGES,
    "train": {"num_train_epochs": 3, "learning_rate": 1e-2},
    "eval": {"split": "test", "max_new_tokens": 8, "batch_size": 4},
}


@dataclass(frozen=True)
class Finished:
    """The tiny experiment after its runs; tests must not change its folders."""

    model: Path
    data: Path
    config: Path
    out: Path
    base: Outcome
    lora: Outcome
    schemabank: Outcome
    notes: tuple[str, ...]


class Notes:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.done = 0
        self.titles: dict[str, str] = {}
        self.stepped: set[str] = set()
        self.states: dict[str, list[tuple[RunState, str]]] = {}

    def note(self, text: str) -> None:
        self.lines.append(text)

    def start(self, title: str, total: int) -> None:
        self.lines.append(f"{title}: {total}")

    def advance(self, units: int, detail: str) -> None:
        del detail
        self.done += units

    def finish(self) -> None:
        pass

    def runs(self, titles: Mapping[str, str]) -> None:
        self.titles = dict(titles)

    def run_steps(self, steps: Sequence[RunStep]) -> None:
        self.stepped |= {step.run for step in steps}

    def run_state(self, run: str, state: RunState, detail: str = "") -> None:
        self.states.setdefault(run, []).append((state, detail))


def write_model(folder: Path, kind: Kind = "llama") -> Path:
    """Save a tiny model with its tokenizer."""
    tiny_model(kind).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def write_gsm8k(folder: Path, *, num_train: int = 24, num_test: int = 6) -> Path:
    """Write sums in GSM8K's format, as SCHEMABANK_DATA has it."""
    (folder / "gsm8k").mkdir(parents=True)
    for split, start, count in (("train", 0, num_train), ("test", 100, num_test)):
        rows = [
            {"question": f"{a}+{a % 5}=?", "answer": f"add {a} and {a % 5}\n#### {a + a % 5}"}
            for a in range(start, start + count)
        ]
        with gzip.open(folder / "gsm8k" / f"{split}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


def write_config(path: Path, model: Path, **changes: object) -> Path:
    """Write a configuration: ``SETTINGS`` with some changed, sections merged."""
    tree = _merged({**SETTINGS, "model": {"name": str(model), "dtype": "float32"}}, changes)
    path.write_text(yaml.safe_dump(tree))
    return path


def run(config: Path, out: Path, *settings: str) -> tuple[list[Outcome], list[str]]:
    """Do the runs of a configuration; return how they ended and what was said."""
    notes = Notes()
    return run_experiment(load_experiment(config, settings), out, notes), notes.lines


def wait_for_checkpoints(patch: pytest.MonkeyPatch) -> None:
    """Let every checkpoint be written before another is due, so that none is left out."""
    is_due = Checkpoints.is_due

    def waiting(own: Checkpoints) -> bool:
        if own._writing is not None:
            own._writing.exception()
        return is_due(own)

    patch.setattr(Checkpoints, "is_due", waiting)


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    """Every path below a folder with its time of change and a hash of its contents."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder",
        )
        for path in sorted(folder.rglob("*"))
    }


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        nested = isinstance(merged.get(key), Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(merged[key], value) if nested else value
    return merged
