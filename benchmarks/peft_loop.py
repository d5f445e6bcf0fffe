"""The baseline of the engine: a training loop around PEFT, from plain to compiled."""

import copy
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Literal

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from schemabank.config.settings import LoraSettings
from schemabank.engine.batches import Batch
from schemabank.engine.cohort import RunStep
from schemabank.engine.execute import keep_workers_awake

LEARNING_RATE = 1e-4

Kind = Literal["plain", "tuned", "compiled", "captured"]
COMPILED: tuple[Kind, ...] = ("compiled", "captured")
# Code is compiled for every shape, so widths are rounded up to a few.
STATIC_WIDTH, STATIC_LABELS = 32, 8


class PeftLoop:
    """A training loop around PEFT: plain, or with what a careful user would switch on.

    Plain: the adapter in float32, the model's own loss over the full logits, and the default
    AdamW. Tuned: the adapter in the model's type, the output layer at labelled positions only, no
    attention mask, fused AdamW. Compiled: tuned, with forward, loss and backward as one compiled
    graph for every shape. Captured: compiled, and replayed as CUDA graphs (PyTorch's mode
    ``reduce-overhead``).
    """

    def __init__(self, base: PreTrainedModel, lora: LoraSettings, *, kind: Kind) -> None:
        tuned = kind != "plain"
        config = LoraConfig(
            r=lora.r,
            lora_alpha=lora.lora_alpha,
            lora_dropout=lora.lora_dropout,
            target_modules=list(lora.target_modules),
            task_type="CAUSAL_LM",
        )
        self._base = base
        self._model = get_peft_model(base, config, autocast_adapter_dtype=not tuned).train()
        self._trained = [p for p in self._model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._trained, lr=LEARNING_RATE, weight_decay=0.01, fused=tuned or None
        )
        self._kind = kind
        self._loss_of: Callable[..., Tensor] = _labelled_loss if tuned else _full_loss
        if kind in COMPILED:
            mode = "reduce-overhead" if kind == "captured" else None
            keep_workers_awake()
            self._loss_of = torch.compile(_labelled_loss, dynamic=False, mode=mode)

    def step(self, batch: Batch) -> None:
        """Train on a batch."""
        if self._kind == "captured":
            torch.compiler.cudagraph_mark_step_begin()
        self._loss_of(self._model, batch).backward()
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def close(self) -> None:
        """Take the adapter off."""
        self._model.unload()
        self._base.requires_grad_(False)
        torch.compiler.reset()


class Alternating:
    """A clock for steps of the engine and, on a CPU, of the tuned PEFT loop, taken in turns.

    A CPU shares its time with other work, so only steps taken at the same time can be compared.
    """

    def __init__(self, base: PreTrainedModel, lora: LoraSettings, batches: Sequence[Batch]) -> None:
        self._loop: PeftLoop | None = None
        if base.device.type == "cpu":
            self._loop = PeftLoop(copy.deepcopy(base), lora, kind="tuned")
        self._batches = cycle(batches)
        self.reset()

    def reset(self) -> None:
        """Start counting from zero."""
        self.began, self.steps, self.real = time.perf_counter(), 0, 0
        self._peft_s, self._peft_real = 0.0, 0

    def count(self, reports: Sequence[RunStep]) -> None:
        """Count a step of the engine, and let PEFT take one."""
        self.steps += 1
        self.real += sum(r.num_tokens for r in reports)
        if self._loop is not None:
            batch, began = next(self._batches), time.perf_counter()
            self._loop.step(batch)
            self._peft_s += time.perf_counter() - began
            self._peft_real += int(batch.real.sum())

    @property
    def elapsed_s(self) -> float:
        """Time of the engine's steps since the last reset."""
        return time.perf_counter() - self.began - self._peft_s

    @property
    def ratio(self) -> float | None:
        """The engine's tokens a second over PEFT's, where both ran."""
        if self._loop is None:
            return None
        return self.real / self.elapsed_s / (self._peft_real / self._peft_s)


def _full_loss(model: torch.nn.Module, batch: Batch) -> Tensor:
    tokens, real = batch.tokens[0], batch.real[0]
    labels = torch.full_like(tokens, -100)
    kept = batch.weights[0] > 0
    rows = torch.arange(len(tokens), device=tokens.device)[:, None].expand_as(kept)
    labels[rows[kept], batch.positions[0][kept] + 1] = batch.labels[0][kept]
    output = model(input_ids=tokens, attention_mask=real.long(), labels=labels, use_cache=False)
    loss: Tensor = output.loss
    return loss


def _labelled_loss(model: torch.nn.Module, batch: Batch) -> Tensor:
    inner = model.get_base_model()
    hidden = inner.base_model(input_ids=batch.tokens[0], use_cache=False).last_hidden_state
    index = batch.positions[0][..., None].expand(-1, -1, hidden.shape[-1])
    logits = inner.get_output_embeddings()(hidden.gather(1, index)).float()
    losses = cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="none")
    weights = batch.weights.flatten()
    return (losses * weights).sum() / weights.sum()
