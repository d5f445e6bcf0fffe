"""What is refused of a model with a Tuner's layers on it.

The model refuses to save itself and to be trained by others; the Tuner refuses calls for which its
layers are not, or not all, where they were.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NoReturn

from transformers import PreTrainedModel

from schemabank.common.errors import InputError
from schemabank.engine.stack import AdapterStack

SAVERS = ("save_pretrained", "push_to_hub")
# What trainers call before their first step; the last has both names, by transformers' version.
TRAINERS = ("train", "activation_checkpointing_enable", "gradient_checkpointing_enable")


def guard(model: PreTrainedModel) -> Mapping[str, object]:
    """Let a model refuse such calls.

    Returns:
        What :func:`unguard` gives back: the methods that were set on this one model, by name.
    """
    own = {name: vars(model).get(name) for name in (*SAVERS, *TRAINERS)}
    for name in SAVERS:
        setattr(model, name, partial(_refuse_to_save, name))
    for name in TRAINERS:
        setattr(model, name, partial(_refuse_to_train, name, type(model).train, model))
    return own


def unguard(model: PreTrainedModel, own: Mapping[str, object]) -> None:
    """Give a model its methods back."""
    for name, method in own.items():
        delattr(model, name)
        if method is not None:  # the user's, not the class's
            setattr(model, name, method)


def check_idle(call: str, *, is_training: bool) -> None:
    """Refuse what would take the weights away from the steps that train them.

    Raises:
        InputError: the Tuner trains.
    """
    if is_training:
        raise InputError(
            f"{call} while the Tuner trains: allowed is to call it afterwards; raise an error in "
            "on_step to end the training before"
        )


def check_on_model(call: str, stack: AdapterStack) -> None:
    """Refuse to go on without the adapter on the model, where and as it was put there.

    Raises:
        InputError: it came off, or the model was moved or cast.
    """
    if not stack.is_whole():
        raise InputError(
            "the model was moved or cast after the Tuner took it: allowed is to do so before, make "
            "the Tuner of the model where it is to train"
        )
    if not stack.attached:
        raise came_off(call, "adapter")


def came_off(call: str, what: str) -> InputError:
    """Return the error of a call that needs what was taken off the model."""
    return InputError(
        f"{call} after the {what} came off: allowed is to {call.removesuffix('()')} before "
        "detach() and remove(), make a new Tuner of the model"
    )


def _refuse_to_save(name: str, *_args: object, **_options: object) -> NoReturn:
    raise InputError(
        f"model.{name}() while a Tuner's layers are on the model would write what loads with "
        "missing weights: allowed is tuner.save_pretrained(folder) for the adapter, or "
        "tuner.remove() first for the model without it"
    )


def _refuse_to_train(
    name: str,
    switch: Callable[[PreTrainedModel, bool], PreTrainedModel],
    model: PreTrainedModel,
    mode: object = True,
    **_options: object,
) -> PreTrainedModel:
    """Refuse what trainers begin with, but not ``model.eval()``, which is ``train(False)``."""
    if name == "train" and mode is False:
        return switch(model, False)
    raise InputError(
        f"model.{name}() while a Tuner's layers are on the model: another trainer would change no "
        "weight, since all are frozen outside of tuner.train(). Allowed is tuner.train(examples), "
        "or tuner.remove() first and then transformers' Trainer or TRL's SFTTrainer on the model, "
        "which schemabank.trainer lets train by a method, too"
    )
