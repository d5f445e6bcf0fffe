"""Measure what runs that differ in the seed alone predict together, on the validation split.

    SCHEMABANK_DATA=FOLDER python benchmarks/ensembles.py RUNS [--out FILE] [--limit N]
    python benchmarks/ensembles.py --show [--out FILE]

RUNS is a folder of finished runs of one task and model; those that differ in the seed alone form a
group. The record gives each run's loss on the gold solutions, that of the group's mean prediction,
of the mean of its updates (an adapter of as many times the rank), and of the nearest adapter of the
runs' own rank. Losses are means over a solution's tokens with its end token, and then over items,
in nats, computed in float32.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from schemabank.adapters.files import Adapter, LoraTensors, load_adapter, put_on
from schemabank.common.tables import markdown_table
from schemabank.config.file import load_run, overridden
from schemabank.config.settings import LoraSettings, RunConfig
from schemabank.engine.batches import Encoded, collate
from schemabank.engine.loss import gather_labelled
from schemabank.engine.stack import AdapterStack
from schemabank.models.basemodel import BaseModel
from schemabank.runs.loading import load_base, resolve_device
from schemabank.runs.prepare import task_training_data
from schemabank.tasks.catalog import load_task

OUT = Path(__file__).parents[1] / "results" / "ensembles.json"
BATCH = 8
SPLIT = "validation"


@dataclass(frozen=True)
class Ensemble:
    """A group of runs; losses in nats per token.

    Attributes:
        arm: of the runs.
        learning_rate: of the runs.
        seeds: of the runs.
        num_items: whose solutions were measured.
        losses: of each run.
        mean_prediction: of the mean of their distributions.
        mean_update: of the mean of their updates.
        reduced: of the nearest update of the runs' own rank.
    """

    arm: str
    learning_rate: float
    seeds: tuple[int, ...]
    num_items: int
    losses: tuple[float, ...]
    mean_prediction: float
    mean_update: float
    reduced: float


def groups(folder: Path) -> list[list[tuple[RunConfig, Path]]]:
    """Return the finished runs of a folder, those together that differ in the seed alone."""
    found: dict[RunConfig, list[tuple[RunConfig, Path]]] = {}
    for path in sorted(folder.glob("*/result.json")):
        run = load_run(path.with_name("config.yaml"))
        if run.trains:
            found.setdefault(run.model_copy(update={"seed": 0}), []).append((run, path.parent))
    return [group for group in found.values() if len(group) > 1]


def measure(
    group: Sequence[tuple[RunConfig, Path]], base: BaseModel, examples: Sequence[Encoded]
) -> Ensemble:
    """Measure a group of runs."""
    adapters = [load_adapter(folder / "adapter") for _, folder in group]
    (*own, together) = losses(adapters, base, examples)
    mean, nearest = mean_update([each.tensors for each in adapters])
    settings = adapters[0].config.settings
    wide = LoraSettings.model_validate(
        {**settings.model_dump(), "r": len(group) * settings.r, "use_rslora": False}
        | {"lora_alpha": settings.scaling * len(group) * settings.r}
    )
    mean_loss, _ = losses([_with(adapters[0], mean, wide)], base, examples)
    reduced_loss, _ = losses([_with(adapters[0], nearest, settings)], base, examples)
    run = group[0][0]
    return Ensemble(
        arm=run.arm,
        learning_rate=run.train.learning_rate,
        seeds=tuple(run.seed for run, _ in group),
        num_items=len(examples),
        losses=tuple(own),
        mean_prediction=together,
        mean_update=mean_loss,
        reduced=reduced_loss,
    )


def mean_update(adapters: Sequence[LoraTensors]) -> tuple[LoraTensors, LoraTensors]:
    """Return the mean of adapters' updates, of their ranks' sum, and the nearest of one's rank."""
    mean: LoraTensors = {}
    nearest: LoraTensors = {}
    for path, (first, _) in adapters[0].items():
        wide = torch.cat([each[path][0] for each in adapters]).double()
        tall = torch.cat([each[path][1] for each in adapters], dim=1).double() / len(adapters)
        left, sizes, right = torch.linalg.svd(tall @ wide, full_matrices=False)
        rank = len(first)
        mean[path] = (wide.to(first.dtype), tall.to(first.dtype))
        nearest[path] = (
            right[:rank].to(first.dtype),
            (left[:, :rank] * sizes[:rank]).to(first.dtype),
        )
    return mean, nearest


def losses(
    adapters: Sequence[Adapter], base: BaseModel, examples: Sequence[Encoded]
) -> list[float]:
    """Return every adapter's loss, and behind them that of their mean prediction."""
    stack = AdapterStack(base.model, lora=[each.config.settings for each in adapters])
    try:
        for slot, adapter in enumerate(adapters):
            put_on(stack, slot, adapter)
        with stack.evaluating("off"):
            found = torch.cat([*_losses(stack, examples)], dim=1)
    finally:
        stack.remove()
    return [float(loss) for loss in found.mean(1)]


def _losses(stack: AdapterStack, examples: Sequence[Encoded]) -> Iterator[Tensor]:
    """Losses of a batch's items, ``(slot + 1, item)``, the mean prediction's last."""
    longest_first = sorted(examples, key=lambda example: -len(example.tokens))
    for start in range(0, len(examples), BATCH):
        chosen = longest_first[start : start + BATCH]
        batch = collate(
            [chosen] * stack.num_slots,
            width=max(len(e.tokens) for e in chosen),
            num_labels=max(e.num_labels for e in chosen),
        ).to(stack.model.device)
        picked = gather_labelled(stack.hidden(batch.tokens), batch.positions)
        log_probs = stack.head(picked).float().log_softmax(-1)
        of_label = log_probs.gather(1, batch.labels.flatten()[:, None]).view_as(batch.labels)
        of_mean = (of_label.logsumexp(0) - torch.tensor(float(stack.num_slots)).log())[None]
        counts = batch.weights[0].sum(-1)
        summed = (torch.cat([of_label, of_mean]) * batch.weights[:1]).sum(-1)
        yield (-summed / counts).cpu()


def _with(adapter: Adapter, tensors: LoraTensors, settings: LoraSettings) -> Adapter:
    """An adapter of the same layers with other weights and settings."""
    config = type(adapter.config)(
        settings,
        adapter.config.base_name,
        excluded=adapter.config.excluded,
        transposed=adapter.config.transposed,
    )
    return Adapter(config, tensors)


def record(folder: Path, limit: int | None) -> list[Ensemble]:
    """Measure all groups of a folder."""
    found = groups(folder)
    if not found:
        sys.exit(f"{folder} holds no two finished runs that differ in the seed alone")
    run = overridden(found[0][0][0], ["model.dtype=float32"])
    base = load_base(run, resolve_device("auto"))
    items = load_task(run.task).split(SPLIT)[:limit]
    examples = task_training_data(items, run, base.tokenizer).encoded
    return [measure(group, base, examples) for group in found]


def table(rows: Sequence[Ensemble]) -> str:
    """Return the record as a Markdown table."""
    names = ["runs", "arm", "learning rate", "one run", "mean prediction", "mean update", "reduced"]
    cells = [
        [
            str(len(row.seeds)),
            row.arm,
            f"{row.learning_rate:g}",
            f"{sum(row.losses) / len(row.losses):.4f}",
            *(f"{loss:.4f}" for loss in (row.mean_prediction, row.mean_update, row.reduced)),
        ]
        for row in rows
    ]
    return "\n".join(markdown_table(names, cells))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--limit", type=int, help="measure the first N items only")
    parser.add_argument("--show", action="store_true", help="print a record")
    given = parser.parse_args(arguments)
    if not given.show:
        if given.runs is None:
            parser.error("name a folder of runs, or --show")
        rows = [asdict(row) for row in record(given.runs, given.limit)]
        given.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    rows = json.loads(given.out.read_text(encoding="utf-8"))
    sys.stdout.write(table([Ensemble(**row) for row in rows]) + "\n")


if __name__ == "__main__":
    main()
