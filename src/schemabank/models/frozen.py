"""Freezes a model, or lends it to other code, for a while, and then restores it.

Which weights train and which modules are in training mode are the user's own settings, module by
module. They are restored, and so are layers that PEFT has wrapped.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def lent(model: nn.Module) -> Iterator[None]:
    """Lend a model to other code, such as PEFT's, and take it back as it was.

    Afterwards its modules and parameters are in their places again, attributes that were added to
    the model are gone, and :func:`kept_state` is restored, even if the other code failed halfway.
    Buffers and attributes of the inner modules are not restored.
    """
    places = [(m, dict(m._modules), dict(m._parameters)) for m in model.modules()]
    attributes = set(vars(model))
    give_back = kept_state(model)
    try:
        yield
    finally:
        for module, modules, parameters in places:
            module._modules.clear()  # so that their order is what it was, too
            module._modules.update(modules)
            module._parameters.clear()
            module._parameters.update(parameters)
        for name in set(vars(model)) - attributes:
            delattr(model, name)
        give_back()


def kept_state(model: nn.Module) -> Callable[[], None]:
    """Note which parameters train, and which modules are in training mode.

    Returns:
        A function that restores both, wherever the parameters and modules are by then.
    """
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]

    def give_back() -> None:
        for parameter, trains in trained:
            parameter.requires_grad_(trains)
        for module, mode in modes:
            module.training = mode

    return give_back
