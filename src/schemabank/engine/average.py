"""Averages of a run's adapter over its steps, which replace its last weights at the end.

All kinds are one update, ``mean += rate * (weights - mean)``, and differ in their rates. They are
the mean of the last checkpoints, an exponential mean, and BEMA (arXiv 2508.00180), which adds a
share of the difference between the last weights and the first.
"""

from functools import cache

from torch import Tensor

from schemabank.config.train import AverageSettings


def average_rate(settings: AverageSettings, step: int, num_steps: int) -> float:
    """Return the rate at which the mean moves to the weights after a step.

    Args:
        settings: of the average.
        step: the step that has been taken, from 0.
        num_steps: the steps of the run.
    """
    number = step + 1
    if settings.kind == "exponential":
        # As in Adam's bias correction, the shares of all steps sum to 1 and the start has none.
        return (1 - settings.decay) / (1 - settings.decay**number)
    if settings.kind == "bema":
        return float((settings.lag + number) ** -settings.ema_power)
    if settings.kind == "last":
        places = checkpoints(settings, num_steps)
        # The n-th checkpoint moves the mean by 1/n: all checkpoints count the same.
        return 1 / (places.index(number) + 1) if number in places else 0.0
    return 0.0


@cache
def checkpoints(settings: AverageSettings, num_steps: int) -> tuple[int, ...]:
    """Return the numbers of steps after which the weights count as one of the last checkpoints.

    There are as many as the settings say, unless the run has fewer steps. In a short run they cover
    a larger part of it.
    """
    last = min(settings.last, num_steps)
    span = max(last, round(settings.span_ratio * num_steps))
    return tuple(num_steps - span * i // last for i in reversed(range(last)))


def averaged(
    settings: AverageSettings, mean: Tensor, *, start: Tensor, end: Tensor, num_steps: int
) -> Tensor:
    """Return the weights that a run ends as.

    Args:
        settings: of the average.
        mean: the mean over the steps, ``(size,)``.
        start: the first weights.
        end: the last weights.
        num_steps: the steps of the run.
    """
    if settings.kind == "bema":
        share = float((settings.lag + num_steps) ** -settings.bias_power)
        return mean + share * (end - start)
    return mean
