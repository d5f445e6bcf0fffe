"""Results of other tools, made up in the shape in which these write them."""

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DATE = "2026-03-04T10-20-30.123456"
Json = dict[str, Any]


def write_lm_eval(
    folder: Path,
    tasks: Mapping[str, Sequence[float]],
    *,
    metric: str = "exact_match",
    **changes: object,
) -> Path:
    """Write a run's folder as ``lm_eval --output_path FOLDER --log_samples`` does.

    Each task has the scores of its items for the filter ``strict-match``, and is right throughout
    for ``flexible-extract``. ``changes`` are keys of the results.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for task, scores in tasks.items():
        rows = [
            _sample(task, number, by, score, metric)
            for number, own in enumerate(scores)
            for by, score in (("strict-match", own), ("flexible-extract", 1.0))
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"samples_{task}_{DATE}.jsonl").write_text(text)
    path = folder / f"results_{DATE}.json"
    path.write_text(json.dumps(_results(tasks, metric) | changes, indent=2))
    return path


def _sample(task: str, number: int, by: str, score: float, metric: str) -> Json:
    doc = {"question": f"{task} {number}?", "answer": f"#### {number}", "topic": f"t{number // 3}"}
    prompt = f"Question: {doc['question']}\nAnswer:"
    return {
        "doc_id": number,
        "doc": doc,
        "target": doc["answer"],
        "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": {"until": ["\n"]}}},
        "resps": [[f" {number}"]],
        "filtered_resps": [f"{number}" if score else "[invalid]"],
        "filter": by,
        "metrics": [metric],
        "doc_hash": _sha(json.dumps(doc)),
        "prompt_hash": _sha(prompt),
        "target_hash": _sha(str(doc["answer"])),
        metric: score,
    }


def _results(tasks: Mapping[str, Sequence[float]], metric: str) -> Json:
    counts = {task: {"original": len(own), "effective": len(own)} for task, own in tasks.items()}
    return {
        "results": {
            task: {
                "alias": task,
                f"{metric},strict-match": sum(own) / max(len(own), 1),
                f"{metric}_stderr,strict-match": "N/A",
                f"{metric},flexible-extract": 1.0,
                f"{metric}_stderr,flexible-extract": "N/A",
            }
            for task, own in tasks.items()
        },
        "group_subtasks": {task: [] for task in tasks},
        "configs": {task: {"task": task, "output_type": "generate_until"} for task in tasks},
        "versions": dict.fromkeys(tasks, 3.0),
        "n-shot": dict.fromkeys(tasks, 5),
        "higher_is_better": {task: {metric: True} for task in tasks},
        "n-samples": counts,
        "config": {"model": "hf", "model_args": "pretrained=base,peft=adapter", "limit": None},
        "git_hash": "abcdef1",
        "date": 1772619630.0,
        "task_hashes": {},
        "model_source": "hf",
        "model_name": "org/model",
        "model_name_sanitized": "org__model",
        "system_instruction": None,
        "system_instruction_sha": None,
        "fewshot_as_multiturn": False,
        "chat_template": None,
        "chat_template_sha": None,
        "total_evaluation_time_seconds": "12.5",
    }


def inspect_log(
    values: Sequence[Any], *, task: str = "arithmetic", model: str = "hf/base", epochs: int = 1
) -> Json:
    """A log as Inspect writes it in JSON; ``values`` are those of sample 1, 2, … at every epoch."""
    samples = [
        {
            "id": number,
            "epoch": epoch,
            "input": f"What is {number} + 1?",
            "target": str(number + 1),
            "messages": [{"role": "user", "content": f"What is {number} + 1?"}],
            "output": {"model": model, "choices": []},
            "scores": {"match": {"value": value, "answer": "2"}},
            "metadata": {"topic": f"t{number // 3}"},
            "store": {},
        }
        for epoch in range(1, epochs + 1)
        for number, value in enumerate(values, start=1)
    ]
    return {
        "version": 2,
        "status": "success",
        "eval": {
            "run_id": "BpiPFmbVcMCRUAXv8ovCTx",
            "created": "2026-03-04T10:20:30+00:00",
            "task": task,
            "task_id": "9eTnG3tV8jGRYoTPMH54Ee",
            "task_version": 0,
            "task_args": {},
            "dataset": {"name": task, "samples": len(values), "shuffled": False},
            "model": model,
            "model_args": {},
            "config": {"epochs": epochs},
            "packages": {"inspect_ai": "0.3.41"},
        },
        "plan": {"name": "plan", "steps": [{"solver": "generate", "params": {}}], "config": {}},
        "results": {
            "total_samples": len(samples),
            "completed_samples": len(samples),
            "scores": [
                {
                    "name": "match",
                    "scorer": "match",
                    "params": {},
                    "metrics": {"accuracy": {"name": "accuracy", "value": 0.5, "options": {}}},
                }
            ],
        },
        "stats": {"started_at": "2026-03-04T10:20:30+00:00", "model_usage": {}},
        "samples": samples,
    }


def write_inspect(path: Path, log: Mapping[str, Any]) -> Path:
    """Write a log as JSON, or as a zip where the name ends in ``.eval``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(log, indent=2))
        return path
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        start = {key: log[key] for key in ("version", "eval", "plan")}
        archive.writestr("_journal/start.json", json.dumps(start))
        for sample in log["samples"]:
            name = f"samples/{sample['id']}_epoch_{sample['epoch']}.json"
            archive.writestr(name, json.dumps(sample))
        header = {key: value for key, value in log.items() if key != "samples"}
        archive.writestr("summaries.json", "[]")
        archive.writestr("header.json", json.dumps(header))
    return path


def write_peft(path: Path, name: str, score: float, *, seed: int = 0, **changes: object) -> Path:
    """Write a result as PEFT's method comparison does; ``changes`` are keys of ``train_info``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    steps = [{"step": 250 * n, "valid accuracy": 0.4, "train loss": 0.7} for n in (1, 2)]
    trained = {
        "cuda_memory_max": 22273851392,
        "train_time": 1796.2,
        "num_trainable_params": 9175040,
        "status": "success",
        "metrics": [*steps, {"step": 500, "test accuracy": score, "train total tokens": 4198051}],
    }
    run = {
        "created_at": "2025-06-19T19:15:35+00:00",
        "experiment_name": name,
        "train_config": {"model_id": "meta-llama/Llama-3.2-3B", "seed": seed},
        "peft_config": {"peft_type": "LORA", "r": 32},
        "error_msg": "",
    }
    tree = {"run_info": run, "train_info": trained | changes, "meta_info": {}}
    path.write_text(json.dumps(tree, indent=2))
    return path


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
