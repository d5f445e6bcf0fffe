"""The runs that a program gives: a dictionary or a list of settings, each with its own name."""

from collections.abc import Mapping, Sequence

from schemabank.common.errors import InputError
from schemabank.config.file import run_id
from schemabank.config.naming import titles_of
from schemabank.config.settings import RunConfig
from schemabank.runs.inmemory import check_config, check_scale
from schemabank.runs.validating import check_validating

RUNS = "a list of RunConfigs, or a dictionary that names each"


def named_runs(runs: object) -> dict[str, RunConfig]:
    """Return the runs by name, each of them one that can be trained here.

    Raises:
        InputError: something else than runs, none, or one that cannot be trained.
    """
    if isinstance(runs, Mapping):
        named = dict(runs)
    elif isinstance(runs, Sequence) and not isinstance(runs, str | bytes):
        named = {f"runs[{index}]": run for index, run in enumerate(runs)}
    else:
        raise InputError(f"runs is a {type(runs).__name__}: allowed is {RUNS}")
    if not named:
        raise InputError(f"there are 0 runs, allowed is at least 1: give {RUNS}")
    for name, run in named.items():
        if not isinstance(name, str) or not isinstance(run, RunConfig):
            raise InputError(f"the run {name!r} is {run!r:.80}: allowed is {RUNS}")
        if not (name.strip() and name.isprintable()):
            raise InputError(
                f"a run is called {name!r:.80}: allowed are names of one line of printable "
                "characters, rename it"
            )
        check_config(run, what=name)
    return named if isinstance(runs, Mapping) else _titled(list(named.values()))


def _titled(runs: Sequence[RunConfig]) -> dict[str, RunConfig]:
    """Name runs by arm, seed and the settings in which they differ."""
    titles = titles_of(runs)
    named = {titles[run_id(run)]: run for run in runs}
    if len(named) < len(runs):
        again = next(n for n in named if [titles[run_id(run)] for run in runs].count(n) > 1)
        raise InputError(
            f"two of the runs in the list are {again!r}: allowed is each once, leave one out or "
            "give a dictionary that names them"
        )
    return named


def check_slots_and_validation(
    named: Mapping[str, RunConfig], slots: object, validate: object, *, validated: bool
) -> None:
    """Refuse slots that are no number of runs, and validation that runs cannot have or lack.

    Args:
        named: the runs.
        slots: how many train at once.
        validate: the settings by which they are measured while they train.
        validated: whether there are validation examples.

    Raises:
        InputError: naming what it is, and of which run.
    """
    _check_slots(slots)
    for name, config in named.items():
        check_validating(validate, config, validated=validated, what=name)
        check_scale(config, validated=validated, what=name)


def _check_slots(slots: object) -> None:
    is_count = isinstance(slots, int) and not isinstance(slots, bool) and slots > 0
    if slots != "auto" and not is_count:
        raise InputError(
            f"slots is {slots!r}: allowed are 'auto' and a number of runs from 1, set one of these"
        )
