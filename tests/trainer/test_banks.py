"""Banks of one run on a model that PEFT wraps."""

import pytest

from schemabank.trainer.banks import BlockBanks
from trainers import BANK, wrapped

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def test_a_bank_is_where_its_block_is() -> None:
    """A model with a device map is not moved as a whole, so neither would its banks be."""
    model = wrapped().to("meta")
    banks = BlockBanks(model, BANK)
    assert {weight.device.type for own in banks.groups.values() for weight in own} == {"meta"}
