"""What a cohort is called."""

import pytest

from schemabank.config.settings import RunConfig
from schemabank.runs.training import names_of


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ((1,), "lora seed 1"),
        ((1, 2), "lora seed 1, lora seed 2"),
        ((1, 2, 1, 2), "4 runs (4 lora)"),  # as a search for learning rates has them
    ],
)
def test_runs_are_named_where_their_names_differ(seeds: tuple[int, ...], said: str) -> None:
    assert names_of([RunConfig(arm="lora", seed=seed) for seed in seeds]) == said
