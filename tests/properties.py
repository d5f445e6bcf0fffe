"""Hypothesis: the same examples every time, and free exploration by ``make soak``.

The profiles are chosen when conftest.py is imported, so every ``settings(...)`` in a test file
inherits them. A file that wants another number of examples asks :func:`examples`, so that
exploration has more of them too.
"""

import os

from hypothesis import HealthCheck, settings

# ``make soak SOAK_FACTOR=50`` draws 50 times as many examples as the fixed profile.
SOAK_FACTOR_VARIABLE = "SCHEMABANK_SOAK_FACTOR"
NUM_EXAMPLES = 50


def register_profiles() -> None:
    """Make the profiles ``fixed`` and ``soak``, and choose the fixed one.

    ``--hypothesis-profile=soak`` chooses the other afterwards.
    """
    # Deadlines measure the machine. A database would make runs depend on the ones before.
    settings.register_profile(
        "fixed",
        settings.get_profile("default"),
        derandomize=True,
        database=None,
        deadline=None,
        print_blob=True,
        max_examples=NUM_EXAMPLES,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.register_profile(
        "soak",
        settings.get_profile("fixed"),
        derandomize=False,
        max_examples=_factor() * NUM_EXAMPLES,
    )
    settings.load_profile("fixed")


def examples(count: int) -> settings:
    """Settings of a property that draws this many examples, and more of them in ``make soak``."""
    return settings(max_examples=count * _factor())


def _factor() -> int:
    return int(os.environ.get(SOAK_FACTOR_VARIABLE, "1"))
