"""The methods by name, and which settings each uses. A new method is named here.

Nothing here loads a method, which takes PyTorch: ``where`` says from where it is loaded. Methods of
other packages come in by the entry point ``schemabank.methods``, as a :class:`MethodEntry` each.
"""

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Annotated, Literal

from pydantic import Field

from schemabank.common.errors import InputError
from schemabank.config.base import OF_LORA, Later, MethodEntry, Settings, Share, Weight

GROUP = "schemabank.methods"
MOST_ADAPTERS = 8
# Top-level keys of configurations and suites, which no method may have for its name.
RESERVED = {
    *("arm", "seed", "preset", "model", "task", "lora", "bank", "tags", "curriculum", "train"),
    *("average", "rescale", "distill", "eval", "engine", "base_shots", "defaults", "arms"),
    *("seeds", "grid", "tune", "contrast", "exclude"),
}


class CoToSettings(Settings):
    """Progressive activation of adapters (CoTo)."""

    initial_probability: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Probability that a block's adapters act in the first step."""
    rising_ratio: Share = 0.75
    """Share of the steps in which that probability rises to 1."""


def _unused_in_coto(coto: CoToSettings) -> dict[str, str]:
    if coto.initial_probability == 1:
        return {"rising_ratio": "coto.initial_probability is 1 from the first step on"}
    if coto.rising_ratio == 0:
        return {"initial_probability": "coto.rising_ratio is 0, and all blocks act"}
    return {}


class ExpertsSettings(Settings):
    """Several maps B over one A in every layer, folded to their mean (AdaMix, HydraLoRA)."""

    num_experts: Annotated[int, Field(ge=2, le=64)] = 4
    """Maps of a layer; the adapter at the end is their mean."""
    routing: Literal["random", "hash", "learned"] = "random"
    """One map drawn a step and layer, one fixed for each example and layer, or all by a router."""
    annealing_ratio: Annotated[float, Field(gt=0, le=1), Later(0.75)] = 0.75
    """Share of the steps in which learned routing fades linearly to equal shares of all maps."""
    consistency_weight: Annotated[Weight, Later(0.0)] = 0.0
    """Weight of the difference between the predictions of two passes; doubles the cost."""


def _unused_in_experts(experts: ExpertsSettings) -> dict[str, str]:
    if experts.routing != "learned":
        return {"annealing_ratio": f"experts.routing is {experts.routing!r}, which does not fade"}
    return {}


class MoLFSettings(Settings):
    """Several adapters in every layer, one of which a step moves (MoLF)."""

    num_adapters: Annotated[int, Field(ge=2, le=MOST_ADAPTERS)] = 2
    """Adapters of a layer, which share lora.r; their sum is the adapter at the end."""


class ShrinkSettings(Settings):
    """A higher rank at the beginning, reduced by the singular value decomposition."""

    factor: Annotated[int, Field(ge=2, le=16)] = 4
    """The rank at the beginning, as a multiple of lora.r."""
    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the steps that the adapter of the higher rank takes."""


class SWAPSettings(Settings):
    """Training that goes on in several branches, whose mean is the adapter (SWAP)."""

    num_branches: Annotated[int, Field(ge=2, le=64)] = 8
    """Branches; each goes on from the same weights with other batches."""
    branch_ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Steps of a branch, as a share of those before the branches, which train gives."""

    def branch_steps(self, steps: int) -> int:
        """Return how many steps a branch has, given those before."""
        return max(1, round(self.branch_ratio * steps))


def _length_of_swap(swap: SWAPSettings, steps: int) -> int:
    return steps + swap.num_branches * swap.branch_steps(steps)


BUILT_IN: Mapping[str, MethodEntry] = {
    "base": MethodEntry("schemabank.methods.method:Method", sections=()),
    "lora": MethodEntry("schemabank.methods.method:Method"),
    "schemabank": MethodEntry(
        "schemabank.methods.schemabank.method:SchemaBankMethod",
        sections=(*OF_LORA, "bank", "tags", "curriculum"),
        shared=(
            *("bank.num_schemas", "bank.attribute_dim", "bank.residual", "bank.last_n"),
            *("bank.layers", "tags.num_tags"),
        ),
    ),
    "coto": MethodEntry(
        "schemabank.methods.coto:CoTo",
        sections=(*OF_LORA, "coto"),
        settings=CoToSettings,
        unused=_unused_in_coto,
    ),
    "experts": MethodEntry(
        "schemabank.methods.experts:Experts",
        sections=(*OF_LORA, "experts"),
        settings=ExpertsSettings,
        other_weights=lambda experts: experts.routing == "learned",  # routers
        second_pass=("experts.consistency_weight",),
        unused=_unused_in_experts,
    ),
    "shrink": MethodEntry(
        "schemabank.methods.shrink:Shrink",
        sections=(*OF_LORA, "shrink"),
        settings=ShrinkSettings,
    ),
    "molf": MethodEntry(
        "schemabank.methods.molf:MoLF",
        sections=(*OF_LORA, "molf"),
        settings=MoLFSettings,
    ),
    "swap": MethodEntry(
        "schemabank.methods.swap:SWAP",
        sections=(*(section for section in OF_LORA if section != "average"), "swap"),
        settings=SWAPSettings,
        length=_length_of_swap,
        ends_as_mean=True,
    ),
}


def all_methods() -> dict[str, MethodEntry]:
    """Return our methods and those of other packages.

    Raises:
        InputError: another package's method has a name that is taken, or is something else.
    """
    found = dict(BUILT_IN)
    for point in entry_points(group=GROUP):
        problem = "is taken" if point.name in found else None
        try:
            entry = point.load()
        except Exception as error:  # whatever another package's import may raise
            entry, problem = None, f"cannot be loaded ({type(error).__name__}: {error})"
        if problem is None:
            problem = _problem(point.name, entry)
        if problem is not None:
            raise InputError(
                f"the entry point {point.name!r} of {GROUP} ({point.value}) {problem}: allowed are "
                "new names, each of a schemabank.config.base.MethodEntry: mend its package or "
                "remove it"
            )
        found[point.name] = entry
    return found


def _problem(name: str, entry: object) -> str | None:
    """What is wrong with another package's entry, or ``None``."""
    if not isinstance(entry, MethodEntry):
        return f"names a {type(entry).__name__}"
    if name in RESERVED:
        return "has the name of another setting"
    if (entry.settings is not None) != (name in entry.sections):
        return f"has sections {entry.sections}, which must name {name!r} if it has settings, only"
    return None


METHODS: Mapping[str, MethodEntry] = all_methods()
