"""Checks by stock PEFT that a saved adapter computes what was trained, and writes merged models.

Every adapter is loaded again by stock PEFT and its logits on a short text are compared with the
run's. Both are computed in float64 throughout (:mod:`schemabank.adapters.precision`). There a wrong
adapter differs by many orders of magnitude more than rounding does, even if it has hardly begun to
learn. The weights are those that are saved; what bfloat16 makes of them is not compared.

A difference of up to ``SAFETY`` times float64's unit is rounding, whatever the adapter. Where it is
larger, what rounding explains is measured, since it depends on the adapter: large learning rates
blow up activations, and rounding with them. Two measurements, of which the larger counts:

- the adapter in float32 against float64, times the ratio of their units, 2⁻²⁹. It has the rounding
  of every operation in it, but says too little where float32 is all noise;
- the adapter in float64 against float64 with its matrix products summed back to front, which is
  rounding itself, though of matrix products alone.

Rounding in another order is another draw of the same size (N. Higham, Accuracy and Stability of
Numerical Algorithms, 2nd ed., ch. 3), and the stack does other products than PEFT, so the bound is
a multiple of it, ``SAFETY``. ``benchmarks/peft_check.py`` measures how far both sides are from it.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from schemabank.adapters.peftcheck import PeftCheck
from schemabank.adapters.precision import Precision, in_precision
from schemabank.common.errors import InputError, first_line
from schemabank.common.memory import is_out_of_memory
from schemabank.common.quiet import HUB, bars_on_terminals_only
from schemabank.common.writing import writing_tensors
from schemabank.engine.loss import Head
from schemabank.engine.stack import AdapterStack
from schemabank.models.basemodel import BaseModel
from schemabank.models.frozen import lent

SAFETY = 100
PROBE = "If 3 pens cost 6 dollars, how much do 7 pens cost? The answer is: 14"


@dataclass(frozen=True)
class Probe:
    """What a run computes for a short text, in float64.

    Attributes:
        states: after the final norm, ``(token, hidden)``; much smaller than logits, for a cohort
            keeps them all until its stack is off the model.
        head: the map to logits.
    """

    states: Tensor
    head: Head

    def logits(self, device: torch.device) -> Tensor:
        """Return the logits, ``(token, vocabulary)``."""
        with torch.no_grad(), Precision(torch.float64):
            return self.head(self.states.to(device))


def probe(stack: AdapterStack, base: BaseModel) -> list[Probe | PeftCheck]:
    """Compute a short text in every slot, with the banks off.

    The adapters are those that are saved, in float32, even where the model computes with others.
    Every slot is computed alone: a product of float64 matrices may round a row by its place among
    the others (MKL does), and what a result says must not depend on who else had a slot.

    Returns:
        One a slot; where the model cannot be computed in float64, a check that says why.
    """
    stack.uncompile()
    tokens = _probe_tokens(base)[None]
    found = list[Tensor]()
    try:
        with stack.evaluating("off"), _as_saved(stack), in_precision(stack.model, torch.float64):
            for slot in range(stack.num_slots):
                with stack.only(slot):
                    found.append(stack.hidden(tokens)[0])
    except Exception as error:  # in float64 a model's own code may fail in any way
        return [_not_compared(error)] * stack.num_slots
    return [Probe(states.cpu(), stack.head) for states in found]


def check_with_peft(
    folder: Path, base: BaseModel, expected: Probe | PeftCheck, *, always_measure: bool = False
) -> PeftCheck:
    """Load an adapter with stock PEFT and compare its logits with the run's.

    Args:
        folder: the adapter.
        base: the plain base model; it is left as it was.
        expected: from :func:`probe`.
        always_measure: measure what rounding explains of a small difference, too, which decides
            nothing and takes longer than the comparison.
    """
    if isinstance(expected, PeftCheck):
        return expected
    # A result keeps what is found here, so that a file which could not be read for a moment must
    # not settle it: what fails is tried once more.
    with suppress(Exception):
        return _compared_with_peft(folder, base, expected, always_measure)
    try:
        return _compared_with_peft(folder, base, expected, always_measure)
    except Exception as error:  # PEFT may fail in any way on a file
        return _not_compared(error)


def _compared_with_peft(
    folder: Path, base: BaseModel, expected: Probe, always_measure: bool
) -> PeftCheck:
    with torch.no_grad(), lent(base.model):
        model = _load_with_peft(base, folder)
        logits = _logits(model, base, torch.float64)
        wanted = expected.logits(logits.device)
        close = _compare_logits(logits, wanted, SAFETY * torch.finfo(torch.float64).eps)
        if close.agrees and not always_measure:
            return close
        allowed = _rounding_bound(model, base, logits, torch.float64)
        return _compare_logits(logits, wanted, allowed)


@bars_on_terminals_only(transformers_logging, HUB)
def save_merged(folder: Path, adapter: Path, base: BaseModel) -> PeftCheck:
    """Merge an adapter into its base model and write the whole model.

    The merge is done and stored in the base model's number type here, float32, so its weights are
    rounded to that: what rounding explains is measured in float32 instead of float64.

    Returns:
        How the reloaded model's logits compare with the adapter's.

    Raises:
        InputError: stock PEFT cannot load or merge the adapter.
        OSError: the model cannot be written, as on a full disk.
    """
    with torch.no_grad():
        with _peft_must("load"):
            model = _load_with_peft(base, adapter)
        expected = _logits_and_bound(model, base)
        with _peft_must("merge"):
            merged: PreTrainedModel = model.merge_and_unload()
        with writing_tensors(folder):
            merged.save_pretrained(folder)
            base.tokenizer.save_pretrained(folder)
        if isinstance(expected, PeftCheck):
            return expected
        try:
            reloaded = type(merged).from_pretrained(folder, dtype=torch.float32)
            return _compare_logits(_logits(reloaded, base, torch.float64), *expected)
        except Exception as error:  # loading runs the model's own code, too
            return _not_compared(error)


@contextmanager
def _peft_must(verb: str) -> Iterator[None]:
    """Turn a failure of stock PEFT, which does the merging, into an ``InputError``."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"stock PEFT cannot {verb} the adapter, so that it cannot be merged "
            f"({type(error).__name__}: {first_line(error)}): export it without --merge"
        ) from error


def _logits_and_bound(model: PeftModel, base: BaseModel) -> tuple[Tensor, float] | PeftCheck:
    """An adapter's logits, and what rounding explains of a merged model's difference from them."""
    try:
        logits = _logits(model, base, torch.float64)
        return logits, _rounding_bound(model, base, logits, torch.float32)
    except Exception as error:  # as in probe()
        return _not_compared(error)


def _load_with_peft(base: BaseModel, folder: Path) -> PeftModel:
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5.23 for a property by its deprecated name.
        warnings.filterwarnings(
            "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
        )
        return PeftModel.from_pretrained(base.model, str(folder))


def _rounding_bound(model: nn.Module, base: BaseModel, exact: Tensor, dtype: torch.dtype) -> float:
    """Return the relative difference that rounding in a number type explains.

    Args:
        model: the model with the adapter.
        base: whose tokenizer makes the text.
        exact: the model's logits in float64.
        dtype: float64 or float32.
    """
    eps = torch.finfo(dtype).eps
    in_float32 = _relative_difference(_logits(model, base, torch.float32), exact)
    seen = [eps, in_float32 * eps / torch.finfo(torch.float32).eps]
    if dtype == torch.float64:
        seen.append(_relative_difference(_logits(model, base, dtype, backwards=True), exact))
    return SAFETY * max(each for each in seen if math.isfinite(each))  # float32 may overflow


def _logits(
    model: nn.Module, base: BaseModel, dtype: torch.dtype, *, backwards: bool = False
) -> Tensor:
    """Logits on the short text, ``(token, vocabulary)``."""
    with in_precision(model, dtype, backwards=backwards):
        logits: Tensor = model(input_ids=_probe_tokens(base), use_cache=False).logits[0]
    return logits


def _relative_difference(logits: Tensor, expected: Tensor) -> float:
    return ((logits.double() - expected).abs().max() / expected.abs().max()).item()


def _compare_logits(logits: Tensor, expected: Tensor, allowed: float) -> PeftCheck:
    difference = _relative_difference(logits, expected)
    if math.isfinite(difference):
        return PeftCheck(difference, allowed)
    return PeftCheck(None, allowed, "its logits are not finite")


def _not_compared(error: Exception) -> PeftCheck:
    return PeftCheck(None, None, f"{type(error).__name__}: {first_line(error)}")


def _probe_tokens(base: BaseModel) -> Tensor:
    return torch.tensor([base.tokenizer(PROBE)["input_ids"]], device=base.model.device)


@contextmanager
def _as_saved(stack: AdapterStack) -> Iterator[None]:
    """Let a stack compute with the weights that are saved, and with scales that are not rounded.

    The stack keeps ``LoraSettings.scaling`` in float32, PEFT in float64. A scale that is this one
    rounded is taken as it was before; any other stays, to be found.
    """
    adapters = stack.groups.get("lora")  # the arm base has none
    named = {} if adapters is None else adapters.parameters
    masters = {} if adapters is None else adapters.master
    weights = [(p, p.data) for p in named.values()]
    scales = [(layer, layer.scaling) for layer in stack.lora.layers.values()]
    exact = torch.tensor([s.scaling for s in stack.lora.settings], dtype=torch.float64)
    for name, parameter in named.items():
        parameter.data = masters[name]
    for layer, scale in scales:
        wide = exact.to(scale.device)
        layer.scaling = torch.where(scale == wide.to(scale.dtype), wide, scale.double())
    try:
        yield
    finally:
        for parameter, data in weights:
            parameter.data = data
        for layer, scale in scales:
            layer.scaling = scale
