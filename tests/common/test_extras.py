import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from schemabank.common.errors import InputError
from schemabank.common.extras import EXTRAS, install_command, is_there, require

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
OTHERS = {"all", "browser", "dev", "docs"}  # which bring nothing that a feature asks for
SAID = (
    r"^drawing needs the package 'altair', which cannot be imported \(.*altair.*\): "
    r"run `pip install 'schemabank\[report\]'`"
)


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    require("report", "drawing")
    assert is_there("report")
    monkeypatch.setitem(sys.modules, "altair", None)
    with pytest.raises(InputError, match=f"{SAID}$"):
        require("report", "drawing")
    with pytest.raises(InputError, match=f"{SAID} or leave it out$"):
        require("report", "drawing", otherwise="leave it out")
    assert not is_there("report")


def test_every_package_of_an_extra_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in EXTRAS["scores"]:
        with monkeypatch.context() as hidden:
            hidden.setitem(sys.modules, name, None)
            with pytest.raises(InputError, match=f"'{name}'.*{install_command('scores')[:12]}"):
                require("scores", "it")


@pytest.mark.parametrize("error", ["ImportError", "AttributeError", "OSError"])
def test_a_package_that_is_broken_says_why(
    error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suite asks at its end what can be reported; that must not end it with an error."""
    (tmp_path / "wandb.py").write_text(f"raise {error}('libssl is too old')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(InputError, match=r"'wandb', .* \(libssl is too old\): run `pip install"):
        require("wandb", "it")
    assert not is_there("wandb")


def test_the_extras_are_those_of_the_package() -> None:
    declared = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    assert declared.keys() - OTHERS == EXTRAS.keys()
    everywhere = sorted(EXTRAS.keys() - {"ray"})  # which is of no use without a cluster
    assert declared["all"] == [f"schemabank[{','.join(everywhere)}]"]
    names = {"vl_convert": "vl-convert-python"}
    for extra, modules in EXTRAS.items():
        brought = {line.partition(">=")[0] for line in declared[extra]}
        assert brought == {names.get(name, name.replace("_", "-")) for name in modules}
    assert "vl-convert-python" in packages_distributions()["vl_convert"]
