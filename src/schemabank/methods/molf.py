"""MoLF: several adapters act in every layer, and a step moves one of them (arXiv 2605.07111).

This is the paper's MoLF-Efficient, which freezes the base model. The adapter of rank ``r`` is seen
as the sum of adapters of rank ``r / num_adapters``. All act in every forward pass and get their
exact gradient. In each step and layer, the optimizer moves the one whose step should save the most
loss (:mod:`schemabank.engine.slices`). The sum of the adapters is a plain one of rank ``r``, so
there is nothing to fold.

All adapters of a layer have one rank here, and the scale of the whole. In the paper their ranks
differ, each has the scale of its own rank, and a step may move more than one.
"""

from collections.abc import Mapping

from schemabank.common.errors import InputError
from schemabank.config.methods import MOST_ADAPTERS, MoLFSettings
from schemabank.config.settings import RunConfig
from schemabank.engine.run import OnCourse, RunMethod
from schemabank.engine.stack import SLICES
from schemabank.methods.method import Method, Setup


class MoLF(Method):
    """LoRA of which a step moves a slice in every layer."""

    def of_run(self, run: RunConfig, setup: Setup) -> RunMethod:
        """Return plain LoRA's course, with slices."""
        del setup
        return OnCourse(settings=self.settings(run))

    def settings(self, run: RunConfig) -> Mapping[str, object]:
        """Return the number of slices."""
        return {SLICES: run.own(MoLFSettings).num_adapters}

    def check(self, run: RunConfig, setup: Setup) -> None:
        """Refuse a rank that cannot be shared equally, and Muon, which has no second moment."""
        del setup
        if run.train.optimizer != "adamw":
            raise InputError(
                f"train.optimizer is {run.train.optimizer!r}, but the arm {run.arm} chooses what a "
                "step moves by AdamW's moments: allowed is 'adamw', set it, or choose another arm"
            )
        check_slices(run)


def check_slices(run: RunConfig) -> None:
    """Refuse a rank that cannot be shared equally.

    Raises:
        InputError: naming ranks that can.
    """
    rank, count = run.lora.r, run.own(MoLFSettings).num_adapters
    if rank % count:
        divisors = [str(n) for n in range(2, MOST_ADAPTERS + 1) if rank % n == 0]
        other = f", or molf.num_adapters to {' or '.join(divisors)}" if divisors else ""
        raise InputError(
            f"lora.r is {rank} and molf.num_adapters is {count}, but all adapters of a layer "
            f"have the same rank: allowed for lora.r are multiples of {count}, set it to "
            f"{(rank // count + 1) * count}{other}"
        )
