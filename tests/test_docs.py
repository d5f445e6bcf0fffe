"""README and docs are held to what the program does."""

import importlib.util
import re
from pathlib import Path

import pytest
import transformers
from tiny import tiny_model, tiny_tokenizer
from typer.main import get_command

from schemabank.cli import app
from schemabank.configfile import load_experiment

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def test_the_python_example_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = README.partition("<!-- example -->")[2].partition("```python\n")[2].partition("```")[0]
    assert 0 < len(code.strip().splitlines()) < 20
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM, "from_pretrained", lambda _: tiny_model("qwen2")
    )
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda _: tiny_tokenizer())
    exec(code, {})  # noqa: S102 -- our own README
    assert (tmp_path / "my-adapter" / "adapter_model.safetensors").is_file()


def test_every_path_in_the_readme_exists() -> None:
    named = re.findall(r"(?:configs|docs)/[\w./{}-]+", README)
    assert len(named) > 8
    for name in named:
        assert (ROOT / name.rstrip("/.")).exists(), name


def test_every_command_in_the_readme_exists_and_none_is_missing() -> None:
    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    listed = set(re.findall(r"^\| `schemabank ([\w-]+)", README, flags=re.MULTILINE))
    assert listed == commands
    for make in re.findall(r"^\$ make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{make}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_configuration_is_valid(path: Path) -> None:
    assert load_experiment(path).runs()


def test_the_papers_configurations_are_its_forty_runs() -> None:
    runs = [run for p in CONFIGS if p.parent.name == "paper" for run in load_experiment(p).runs()]
    planned = {(run.arm, run.seed, run.train.num_train_epochs) for run in runs}
    assert planned == {
        (arm, seed, epochs)
        for arm in ("lora", "schemabank")
        for seed in (42, 123, 456, 789)
        for epochs in (2, 4, 6, 8, 10)
    }
    assert {run.model.name for run in runs} == {"Qwen/Qwen2-0.5B"}
    assert {run.preset for run in runs} == {"paper"}


def test_the_settings_page_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("build", ROOT / "docs" / "build_settings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.TARGET.read_text(encoding="utf-8") == module.page()
