"""Dense models do what docs/models.md says of them."""

from pathlib import Path

import pytest

from architectures import DENSE
from trials import check_row


@pytest.mark.parametrize("name", sorted(DENSE))
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_architecture_does_what_the_page_says(name: str, tmp_path: Path) -> None:
    check_row(name, tmp_path)
