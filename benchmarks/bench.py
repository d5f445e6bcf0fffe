"""Shared by the benchmarks: models, data, runs, and the origin of each row."""

import gc
import json
import resource
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from schemabank.config.settings import RunConfig
from schemabank.config.train import Stage
from schemabank.engine.run import Run, TrainingData
from schemabank.engine.stack import AdapterStack
from schemabank.models.basemodel import BaseModel, load_base_model, resolve_dtype
from schemabank.models.embedded import EMBEDDED
from schemabank.runs.prepare import engine_run, task_training_data
from schemabank.tasks.catalog import load_task

Row = dict[str, object]

QWEN2 = "qwen2-0.5b-shape"
QWEN2_SHAPE = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}
LEARNING_RATE = 1e-4
STAGES = (
    Stage(name="stage 1", ratio=0.5, train=("router",), learning_rate=LEARNING_RATE),
    Stage(
        name="stages 2-3",
        ratio=0.5,
        train=("router", "schemas", "lora"),
        learning_rate=LEARNING_RATE,
    ),
)


@dataclass(frozen=True)
class Bench:
    """What all cases share."""

    base: BaseModel
    config: RunConfig
    data: TrainingData
    device: torch.device
    model_name: str

    @property
    def padding_ratio(self) -> float:
        """Share of padding in an epoch of the engine's batches."""
        return self.data.schedule.padding_ratio(sum(len(e.tokens) for e in self.data.encoded))


def make_bench(model_name: str, *, target: str, num_examples: int) -> Bench:
    """Load model and data."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = next(iter(EMBEDDED)) if model_name == QWEN2 else model_name
    config = RunConfig.model_validate(
        {
            "arm": "schemabank",
            "task": {
                "name": "gsm8k",
                "target": target,
                "train_limit": num_examples,
            },
            "curriculum": [stage.model_dump() for stage in STAGES],
            "tags": {"tagger": "hash", "delivery": "loss"},
            "train": {"num_train_epochs": 4, "batch_size": 4},
        }
    )
    base = load_base_model(name, dtype=resolve_dtype("auto", device), device=device)
    if model_name == QWEN2:
        base = BaseModel(**{**vars(base), "model": random_qwen2(base.model.dtype, device)})
    task = load_task(config.task)
    data = task_training_data(task.train, config, base.tokenizer)
    return Bench(base=base, config=config, data=data, device=device, model_name=model_name)


def random_qwen2(dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Return a model of Qwen2-0.5B's shape with the same random weights every time."""
    torch.manual_seed(0)
    with device:
        return Qwen2ForCausalLM(Qwen2Config(**QWEN2_SHAPE)).to(dtype).eval()


def bench_run(bench: Bench, stack: AdapterStack, config: RunConfig) -> Run:
    """Return a run of the engine with the benchmark's settings."""
    return engine_run(
        config, bench.data.examples, stack, bench.base.tokenizer, name=f"seed {config.seed}"
    )


def origin(model: PreTrainedModel, name: str) -> Row:
    """Where a row's figures come from."""
    return {
        "device": device_name(model.device),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "model": name,
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def read_rows(path: str) -> list[Row]:
    """Return the rows of a file."""
    rows: list[Row] = json.loads(Path(path).read_text(encoding="utf-8"))
    return rows


def free(device: torch.device) -> None:
    """Free memory, and start counting its peak again."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_gib(device: torch.device) -> float:
    """Peak memory so far: of the device since the case began, or else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def device_name(device: torch.device) -> str:
    """Name the device that the figures are of."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"
