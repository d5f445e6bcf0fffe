"""One of several processes that train together, as torchrun would start them."""

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from programs import forked
from schemabank import RunConfig
from schemabank.engine.flat import FlatGroup
from schemabank.methods.schemabank import attach
from trainers import BANK, BATCH, TinyTrainer, method, trainer

STEPS = 8  # two epochs are 12
METHODS: Mapping[str, RunConfig] = {
    "lora": method("lora"),
    "coto": method("coto"),
    "molf": method("molf"),
    # The load-balancing term needs the whole batch at once.
    "schemabank": method("schemabank", bank=BANK.model_copy(update={"load_balance_weight": 0.0})),
}


@contextmanager
def wide() -> Iterator[None]:
    """Let models, adapters, banks and optimizers compute in float64."""
    narrow = attach.FlatGroup

    def group(weights: Mapping[str, nn.Parameter], *, num_slots: int, dtype: object) -> FlatGroup:
        del dtype
        return FlatGroup(weights, num_slots=num_slots, dtype=torch.float64)

    attach.FlatGroup = group  # type: ignore[assignment, misc]
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        attach.FlatGroup = narrow  # type: ignore[misc]


def trained(folder: Path, *, rows: int, parts: int) -> dict[str, Tensor]:
    """What every method comes to, by names; a step's batch has ``parts`` of so many rows."""
    found = {}
    for name, own in METHODS.items():
        made = _trainer(folder / name, own, rows, parts)
        made.train()
        found |= _named(f"{parts} parts, {name}", made)
    return found


def resumed(folder: Path, *, rows: int) -> dict[str, Tensor]:
    """A run that goes on from a checkpoint, and the same without a break."""
    found = {}
    for name, checkpoint in (("whole", None), ("resumed", f"{folder}/checkpoint-5")):
        saving = {"save_strategy": "steps", "save_steps": 5}
        made = _trainer(folder, METHODS["schemabank"], rows, 1, **saving)
        made.train(resume_from_checkpoint=checkpoint)
        found |= _named(name, made)
    return found


def together(folder: Path, *, processes: int = 2) -> list[dict[str, Tensor]]:
    """Let processes train together; return what each of them has come to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    with TemporaryFile() as said:
        started = [
            forked(
                _main,
                folder,
                environment={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=said.fileno(),
                stderr=said.fileno(),
            )
            for rank in range(processes)
        ]
        for process in started:
            process.join(300)
        said.seek(0)
        assert [process.exitcode for process in started] == [0] * processes, said.read().decode()
    return [load_file(folder / f"{rank}.safetensors") for rank in range(processes)]


def _trainer(folder: Path, own: RunConfig, rows: int, parts: int, **changes: object) -> TinyTrainer:
    return trainer(
        folder,
        own,
        engines_order=True,
        max_steps=STEPS,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=parts,
        **changes,
    )


def _named(name: str, made: TinyTrainer) -> dict[str, Tensor]:
    return {
        f"{name}, {path}.{matrix}": weight
        for path, pair in made._adapter.tensors().items()
        for matrix, weight in zip("AB", pair, strict=True)
    }


def _main(folder: Path) -> None:
    count, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    with wide():
        found = trained(folder / "halves", rows=BATCH // count, parts=1)
        found |= trained(folder / "quarters", rows=BATCH // count // 2, parts=2)
        found |= resumed(folder / "resumed", rows=BATCH // count)
    save_file(found, folder / f"{rank}.safetensors")
    torch.distributed.destroy_process_group()
