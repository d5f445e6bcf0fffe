"""Whether what was saved computes what was trained, by stock PEFT, and a merged model.

Every export is loaded again by stock PEFT and its logits are compared with the stack's in float32
before anyone is told that it succeeded.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from schemabank.cohort.joined import JoinedLinear
from schemabank.cohort.stack import AdapterStack
from schemabank.models import BaseModel

TOLERANCE = 1e-5
PROBE = "If 3 pens cost 6 dollars, how much do 7 pens cost? The answer is: 14"


def probe_logits(stack: AdapterStack, base: BaseModel) -> Tensor:
    """Every slot's logits on a short text with the banks off, ``(slot, token, vocabulary)``.

    The adapters are those that are saved, in float32, even where the model computes with others.
    """
    tokens = _probe(base).expand(stack.num_slots, 1, -1)
    adapters = stack.groups.get("lora")  # the arm base has none
    saved = {p: adapters.master[n] for n, p in adapters.parameters.items()} if adapters else {}
    with stack.evaluating("off"), _in_float32(base.model, saved):
        return stack.head(stack.hidden(tokens)).float().cpu()


def check_with_peft(folder: Path, base: BaseModel, expected: Tensor) -> float:
    """Load an adapter with stock PEFT and compare its logits.

    Args:
        folder: the adapter.
        base: the plain base model; it is left as it was.
        expected: ``(token, vocabulary)``, from :func:`probe_logits`.

    Returns:
        The largest difference relative to the largest logit.

    Raises:
        RuntimeError: the difference exceeds ``TOLERANCE``.
    """
    with _in_float32(base.model), torch.no_grad():
        model = _peft_model(base, folder)
        logits = model(input_ids=_probe(base), use_cache=False).logits[0].float().cpu()
        model.unload()
    return _compare(logits, expected, f"the adapter in {str(folder)!r}")


def save_merged(folder: Path, adapter: Path, base: BaseModel) -> float:
    """Merge an adapter into its base model and write the whole model.

    The merge is done and stored in the base model's number type here, float32.

    Returns:
        The largest relative difference of the reloaded model's logits from the adapter's.
    """
    with torch.no_grad():
        model = _peft_model(base, adapter)
        expected = model(input_ids=_probe(base), use_cache=False).logits[0].float()
        merged: PreTrainedModel = model.merge_and_unload()
        merged.save_pretrained(folder)
        base.tokenizer.save_pretrained(folder)
        reloaded = type(merged).from_pretrained(folder, dtype=torch.float32)
        logits = reloaded(input_ids=_probe(base), use_cache=False).logits[0].float()
    return _compare(logits, expected, f"the merged model in {str(folder)!r}")


def _peft_model(base: BaseModel, folder: Path) -> PeftModel:
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5.23 for a property by its deprecated name.
        warnings.filterwarnings(
            "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
        )
        return PeftModel.from_pretrained(base.model, str(folder))


def _compare(logits: Tensor, expected: Tensor, what: str) -> float:
    difference = ((logits - expected).abs().max() / expected.abs().max()).item()
    if not difference <= TOLERANCE:
        raise RuntimeError(
            f"{what} gives other logits than the run: relative difference {difference:.2e}, "
            f"allowed {TOLERANCE:.0e}"
        )
    return difference


def _probe(base: BaseModel) -> Tensor:
    return torch.tensor([base.tokenizer(PROBE)["input_ids"]], device=base.model.device)


@contextmanager
def _in_float32(
    model: PreTrainedModel, exact: Mapping[nn.Parameter, Tensor] | None = None
) -> Iterator[None]:
    """Compute in float32 for a while; the same weights stand there again afterwards.

    Args:
        model: the model.
        exact: parameters that are known in float32, where they need no conversion.
    """
    known = exact or {}
    originals = [(p, p.data) for p in model.parameters() if p.dtype != torch.float32]
    joined = {m.joined for m in model.modules() if isinstance(m, JoinedLinear)}
    products = [(each, each.weight, each.bias) for each in joined]
    for parameter, data in originals:
        parameter.data = known[parameter] if parameter in known else data.float()
    for each, weight, bias in products:
        each.weight, each.bias = weight.float(), None if bias is None else bias.float()
    try:
        yield
    finally:
        for parameter, data in originals:
            parameter.data = data
        for each, weight, bias in products:
            each.weight, each.bias = weight, bias
