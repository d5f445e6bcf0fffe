"""One of several processes that train together, as torchrun would start them."""

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

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
    "shrink": method("shrink"),
    "experts": method("experts", experts={"routing": "hash"}),
    # The load-balancing term needs the whole batch at once.
    "schemabank": method("schemabank", bank=BANK.model_copy(update={"load_balance_weight": 0.0})),
}
# After these steps: in all stages of a bank, and before, at and after the reduction. All are in the
# first epoch, with which the order of `EnginesOrder` begins.
GOES_ON = (
    *(("schemabank", step) for step in (1, 4, 5)),
    *(("shrink", step) for step in (2, 4, 5)),
    ("experts", 5),
)
CONSISTENT = {
    "consistent": method("experts", experts={"routing": "hash", "consistency_weight": 0.5})
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


def trained(
    folder: Path, *, rows: int, parts: int, methods: Mapping[str, RunConfig] = METHODS
) -> dict[str, Tensor]:
    """What every method comes to, by names; a step's batch has ``parts`` of so many rows."""
    found = {}
    for name, own in methods.items():
        made = _trainer(folder / name, own, rows, parts)
        made.train()
        found |= _named(f"{parts} parts, {name}", made)
        found[f"{parts} parts, {name}: split"] = _num_split(made)
        made.save_model(str(folder / name / "adapter"))
    return found


def resumed(folder: Path, *, rows: int) -> dict[str, Tensor]:
    """Runs that go on from checkpoints, and the same without a break."""
    found = {}
    for arm in dict(GOES_ON):
        at = [("whole", None), *((f"from {step}", step) for name, step in GOES_ON if name == arm)]
        for name, step in at:
            saving = {"save_strategy": "steps" if step is None else "no", "save_steps": 1}
            made = _trainer(folder / arm, METHODS[arm], rows, 1, **saving)
            checkpoint = None if step is None else f"{folder}/{arm}/checkpoint-{step}"
            made.train(resume_from_checkpoint=checkpoint)
            found |= _named(f"{arm}, {name}", made)
    return found


def together(
    folder: Path, *, processes: int = 2, main: Callable[[Path], None] | None = None
) -> list[dict[str, Tensor]]:
    """Let processes train together; return what each of them has come to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    with TemporaryFile() as said:
        started = [
            forked(
                main or _main,
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


def split(folder: Path) -> None:
    """Train with the base model's weights split by FSDP2, which accelerate leaves out on CPUs."""
    made = TinyTrainer.create_accelerator_and_postprocess

    def telling(own: TinyTrainer) -> None:
        made(own)
        state = AcceleratorState()
        state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = fsdp_plugin()
        own.is_fsdp_enabled = True

    TinyTrainer.create_accelerator_and_postprocess = telling
    _save(folder, _with_resumed)


def going_on(folder: Path) -> None:
    """Go on from checkpoints as every process of several."""
    _save(folder, lambda folder, rows: resumed(folder / "resumed", rows=rows))


def fsdp_plugin(**changes: object) -> FullyShardedDataParallelPlugin:
    """Settings of FSDP2 that a trainer takes."""
    given: dict[str, Any] = {
        "fsdp_version": 2,
        "auto_wrap_policy": "transformer_based_wrap",
        "transformer_cls_names_to_wrap": ["LlamaDecoderLayer"],
        "state_dict_type": "FULL_STATE_DICT",
        "cpu_ram_efficient_loading": False,
    }
    return FullyShardedDataParallelPlugin(**{**given, **changes})


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


def _num_split(made: TinyTrainer) -> Tensor:
    """How many of the model's weights a process has in part, and how many of what it trains."""
    weights = [w for w in made.model.parameters() if isinstance(w, DTensor)]
    return torch.tensor([len(weights), sum(w.requires_grad for w in weights)])


def _named(name: str, made: TinyTrainer) -> dict[str, Tensor]:
    return {
        f"{name}, {path}.{matrix}": weight
        for path, pair in made._adapter.tensors().items()
        for matrix, weight in zip("AB", pair, strict=True)
    }


def _main(folder: Path) -> None:
    _save(
        folder,
        lambda folder, rows: {
            **_of_all_methods(folder, rows),
            **trained(folder / "consistent", rows=rows // 2, parts=2, methods=CONSISTENT),
        },
    )


def _with_resumed(folder: Path, rows: int) -> dict[str, Tensor]:
    return {**_of_all_methods(folder, rows), **resumed(folder / "resumed", rows=rows)}


def _of_all_methods(folder: Path, rows: int) -> dict[str, Tensor]:
    found = trained(folder / "halves", rows=rows, parts=1)
    return {**found, **trained(folder / "quarters", rows=rows // 2, parts=2)}


def _save(folder: Path, train: Callable[[Path, int], dict[str, Tensor]]) -> None:
    """Write what a process comes to."""
    count, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    with wide():
        found = train(folder, BATCH // count)
    save_file(found, folder / f"{rank}.safetensors")
    torch.distributed.destroy_process_group()
