"""Runs that go on from an adapter on disk: which settings are the adapter's, which arms can."""

from pathlib import Path

from transformers import PreTrainedModel

from schemabank.adapters.config import is_named
from schemabank.adapters.files import Adapter
from schemabank.common.errors import InputError
from schemabank.config.settings import RunConfig
from schemabank.engine.targets import resolved, target_layers
from schemabank.methods import method_of
from schemabank.runs.effects import stated

DROPOUT = "lora_dropout"  # of training alone, so a run may state another one than the adapter's


def continued(
    config: RunConfig,
    adapter: Adapter,
    folder: str | Path,
    model: PreTrainedModel,
    *,
    what: str = "config",
) -> RunConfig:
    """Return a run's settings with the rank, scale and targets of an adapter.

    Args:
        config: the run's settings.
        adapter: that it begins with.
        folder: of the adapter, for messages.
        model: the base model, which knows what ``all-linear`` and patterns stand for.
        what: the settings are called, for messages.

    Raises:
        InputError: the run states other ones, or cannot begin with an adapter.
    """
    own, found = config.lora, adapter.config.settings
    names = [name.partition(".")[2] for name in stated(config) if name.startswith("lora.")]
    for name in names:
        asked, has = getattr(own, name), getattr(found, name)
        same = asked == has
        if name == "target_modules":
            meant = resolved(model, found.model_copy(update={name: asked}))
            same = set(meant.target_modules) == set(has)
        if name != DROPOUT and not same:
            raise InputError(
                f"{what}.lora.{name} is {asked!r}, but the adapter in {str(folder)!r} has "
                f"{has!r}: allowed is the adapter's own, leave it out"
            )
    kept = {DROPOUT: own.lora_dropout} if DROPOUT in names else {}
    whole = config.model_copy(update={"lora": found.model_copy(update=kept)})
    check_continues(whole, what=what)
    return whole


def check_continues(config: RunConfig, *, what: str = "config") -> None:
    """Refuse a run that cannot begin with an adapter.

    Raises:
        InputError: naming the setting that asks for freshly drawn weights.
    """
    mend = "allowed is the arm lora, or another without this: take it, or train from fresh weights"
    first, rank = config.stages()[0], method_of(config).rank(config)
    if "lora" not in first.train:
        raise InputError(
            f"{what}.arm is {config.arm!r}, which begins with the stage {first.name!r}, which "
            f"trains on the untouched base model, so an adapter would be passed over: {mend}"
        )
    if rank != config.lora.r:
        raise InputError(
            f"{what}.arm is {config.arm!r}, which begins with the rank {rank}, but the adapter has "
            f"rank {config.lora.r}: {mend}"
        )
    if config.averaging.kind == "bema":
        raise InputError(
            f"{what}.average.kind is 'bema', which adds what a run has come away from freshly "
            "drawn weights: allowed with an adapter are 'none', 'last' and 'exponential', set one "
            "of these"
        )


def check_whole(model: PreTrainedModel, adapter: Adapter, folder: str | Path) -> None:
    """Refuse an adapter that leaves out layers of a plain model which would now train.

    Raises:
        InputError: naming one of them.
    """
    layers = target_layers(model, adapter.config.settings)
    left_out = [path for path in layers if is_named(path, adapter.config.excluded)]
    if left_out:
        raise InputError(
            f"the adapter in {str(folder)!r} leaves out {left_out[0]!r}, which its targets name "
            "(exclude_modules): allowed is one on all layers that its targets name, train a new "
            "one without exclude_modules"
        )
