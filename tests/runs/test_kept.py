"""What is kept of a training is whole, and of the same settings, or is refused."""

from pathlib import Path

import pytest
import yaml

from schemabank.common.errors import InputError
from schemabank.config.file import to_yaml
from schemabank.config.settings import RunConfig
from schemabank.runs import kept
from schemabank.runs.folder import CONFIG, METRICS
from schemabank.runs.kept import MEND, check_settings, digests

RUN = RunConfig(arm="schemabank", seed=3)


def test_a_file_that_is_missing_is_named_with_what_comes_of_it(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text("{}")
    with pytest.raises(InputError, match=rf"/{METRICS}' is missing, allowed are .*: {MEND}$"):
        digests(tmp_path, (CONFIG, METRICS))


def test_settings_are_read_only_where_their_text_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To read them takes longer than all else, and a cohort may have hundreds of runs."""
    (tmp_path / CONFIG).write_text(to_yaml(RUN))
    other = RUN.model_copy(update={"seed": 4})
    with pytest.raises(
        InputError, match=r"has other settings, allowed are the same: settings\.seed"
    ):
        check_settings(tmp_path, other, is_over=False)
    monkeypatch.setattr(kept, "load_run", None)
    check_settings(tmp_path, RUN, is_over=False)


def test_settings_are_written_by_sections_as_they_would_be_as_a_whole() -> None:
    written = to_yaml(RUN)
    whole = yaml.safe_load(written)
    assert written == yaml.safe_dump(whole, sort_keys=False, allow_unicode=True)
    assert len(whole) > 10
