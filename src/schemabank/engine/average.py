"""Averages of a run's adapter over its steps, which it ends as instead of its last weights.

All kinds are one update, ``mean += rate * (weights - mean)``, with rates of their own: the last so
many checkpoints, an exponential mean, or BEMA (arXiv 2508.00180), which adds a share of the way
from the first weights to the last.
"""

from functools import cache

from torch import Tensor

from schemabank.config.train import AverageSettings


def average_rate(settings: AverageSettings, step: int, num_steps: int) -> float:
    """Return which share of the new weights the mean takes after a step, from 0.

    Args:
        settings: of the average.
        step: the step that has been taken.
        num_steps: of the run.
    """
    number = step + 1
    if settings.kind == "exponential":
        return (1 - settings.decay) / (1 - settings.decay**number)
    if settings.kind == "bema":
        return float((settings.lag + number) ** -settings.ema_power)
    if settings.kind == "last":
        places = checkpoints(settings, num_steps)
        return 1 / (places.index(number) + 1) if number in places else 0.0
    return 0.0


@cache
def checkpoints(settings: AverageSettings, num_steps: int) -> tuple[int, ...]:
    """Return after how many steps the weights are among the last checkpoints.

    As many as asked for, unless a run has fewer steps; in a short run they spread over more of it.
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
        mean: over the steps, ``(size,)``.
        start: the first weights.
        end: the last weights.
        num_steps: of the run.
    """
    if settings.kind == "bema":
        share = float((settings.lag + num_steps) ** -settings.bias_power)
        return mean + share * (end - start)
    return mean
