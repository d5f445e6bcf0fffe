"""Whole inputs of every kind that people bring, and the readers that take them.

Each kind is a folder of valid files, which all its readers accept; a campaign harms copies of it.
"""

import csv
import gzip
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

import adapterfiles
from schemabank.adapters.files import load_adapter, load_bank, load_card, save_bank
from schemabank.config.file import load_experiment
from schemabank.config.settings import BankSettings
from schemabank.config.task import TaskSettings
from schemabank.models.basemodel import load_base_model
from schemabank.report.reading.question import Question, read_results
from schemabank.report.routing.report import tables
from schemabank.runs.itemscores import load_item_scores
from schemabank.runs.located import locate
from schemabank.runs.stored import read_cost, read_result, read_routing
from schemabank.suites.file import read_suite_file
from schemabank.tasks.catalog import load_task
from schemabank.tasks.chat import in_chat
from tinyruns import write_model

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
CONFIGS = ("quickstart.yaml", "miniature/suite.yaml", "paper/suite.yaml")
Reader = Callable[[Path], object]
ROWS = [{"question": f"{n} + {n}?", "answer": str(2 * n), "note": "x"} for n in range(12)]
CHAT = [
    {
        "messages": [
            {"role": "user", "content": f"{n}?"},
            {"role": "assistant", "content": "yes", "tool_calls": []},
        ]
    }
    for n in range(12)
]


def _configurations(folder: Path) -> None:
    for name in CONFIGS:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / "configs" / name, folder / name)


def _data(folder: Path) -> None:
    lines = "".join(f"{json.dumps(row)}\n" for row in ROWS)
    (folder / "rows.jsonl").write_text(lines)
    (folder / "rows.json").write_text(json.dumps({"data": ROWS}))
    (folder / "chat.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in CHAT))
    (folder / "packed.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    for name, mark in (("rows.csv", ","), ("rows.tsv", "\t")):
        file = io.StringIO()
        table = csv.DictWriter(file, ROWS[0], delimiter=mark)
        table.writeheader()
        table.writerows(ROWS)
        (folder / name).write_text(file.getvalue())
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet")


def _adapters(folder: Path) -> None:
    stack = adapterfiles.drawn_stack(BankSettings(num_schemas=4, rank=2, attribute_dim=2))
    adapterfiles.export(stack, 0, folder / "adapter")
    save_bank(folder / "bank", {f"layers.0.{name}": torch.ones(2, 2) for name in ("U", "V")})


def _models(folder: Path) -> None:
    write_model(folder)
    config = folder / "tokenizer_config.json"
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    held = json.loads(config.read_text())
    config.write_text(json.dumps({**held, "chat_template": template}))


def _runs(folder: Path) -> None:
    from synthetic import GENERATOR, keep_rows

    GENERATOR.write_runs(folder / "runs", num_seeds=2, num_items=6, full_seeds=2)
    keep_rows(folder / "runs", lambda arm, epochs, _: arm in {"arm 0", "arm 1"} and epochs == 1)
    kept = {
        row["run_id"] for row in json.loads((folder / "runs" / "suite.json").read_text())["runs"]
    }
    for path in (folder / "runs").iterdir():
        if path.is_dir() and path.name not in kept:
            shutil.rmtree(path)
    shutil.copy(ROOT / "results" / "routing" / "rule-tags.json", folder / "routing.json")
    with tarfile.open(folder / "packed.tar.xz", "w:xz", preset=0) as packed:
        for path in sorted((folder / "runs").rglob("*")):
            if path.is_file():
                packed.add(path, arcname=str(path.relative_to(folder)))


def _tables(folder: Path) -> None:
    rows = [f"{arm},1,{n},0.{n}5,100" for arm in ("lora", "new") for n in range(4)]
    (folder / "scores.csv").write_text("\n".join(["arm,epochs,seed,score,n_items", *rows, ""]))
    items = [
        f"{arm},{n},q{q},{q % 2}" for arm in ("lora", "new") for n in range(2) for q in range(4)
    ]
    (folder / "items.csv").write_text("\n".join(["arm,seed,item,score", *items, ""]))
    exported = [f"{arm} {n},finished,{arm},{n},0.{n}5" for arm in ("lora", "new") for n in range(2)]
    (folder / "wandb.csv").write_text("\n".join(["Name,State,Group,seed,accuracy", *exported, ""]))
    for name in ("lm_eval", "inspect"):
        shutil.copytree(FIXTURES / name, folder / name)
    result = {
        "run_info": {"experiment_name": "lora/r8", "train_config": {"seed": 0}},
        "train_info": {"status": "success", "metrics": [{"test accuracy": 0.5}]},
    }
    (folder / "peft").mkdir()
    (folder / "peft" / "a.json").write_text(json.dumps(result))


def _records(path: Path) -> Reader:
    def read(folder: Path) -> object:
        own = {"path": str(folder / path), "test_ratio": 0.2}
        return load_task(TaskSettings.model_validate({"name": "records", "records": own}))

    return read


def _results(name: str, **asked: str) -> Reader:
    def read(folder: Path) -> object:
        with read_results(folder / name, Question(**asked)) as (_, found):
            return found

    return read


def _model(folder: Path) -> object:
    base = load_base_model(str(folder), dtype=torch.float32, device=torch.device("cpu"))
    return in_chat("a question", base.tokenizer) if base.tokenizer.chat_template else None


def _run(folder: Path) -> object:
    """All readers of a single run, each of its folders."""
    for own in sorted((folder / "runs").glob("*-*"))[:2]:
        read_result(own / "result.json")
        read_cost(own / "cost.json")
        load_item_scores(own, "correct")
        locate(own)
    return None


WRITERS: Mapping[str, Callable[[Path], None]] = {
    "configurations": _configurations,
    "data": _data,
    "adapters": _adapters,
    "models' configs": _models,
    "run folders": _runs,
    "tables": _tables,
}


@cache
def readers(kind: str) -> Mapping[str, Reader]:
    """The readers of a kind, by the file or folder that each is asked for."""
    data = ("rows.jsonl", "rows.json", "chat.jsonl", "packed.jsonl.gz", "rows.csv", "rows.tsv")
    own: Mapping[str, Mapping[str, Reader]] = {
        "configurations": {
            name: (lambda folder, name=name: read_suite_file(folder / name))
            if "suite" in name
            else (lambda folder, name=name: load_experiment(folder / name))
            for name in CONFIGS
        },
        "data": {name: _records(Path(name)) for name in (*data, "rows.parquet")},
        "adapters": {
            "adapter": lambda folder: (
                load_card(folder / "adapter"),
                load_adapter(folder / "adapter"),
            ),
            "bank": lambda folder: load_bank(folder / "bank"),
        },
        "models' configs": {"": _model},
        "run folders": {
            "runs": _results("runs"),
            "runs/": _run,
            "routing.json": lambda folder: tables(read_routing(folder / "routing.json")),
            "packed.tar.xz": _results("packed.tar.xz"),
        },
        "tables": {
            "scores.csv": _results("scores.csv"),
            "items.csv": _results("items.csv"),
            "wandb.csv": _results("wandb.csv", metric="accuracy"),
            "lm_eval": _results("lm_eval"),
            "inspect": _results("inspect"),
            "peft": _results("peft"),
        },
    }
    return own[kind]
