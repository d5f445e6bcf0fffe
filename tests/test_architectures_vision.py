"""Text models beside a vision tower do what docs/models.md says of them."""

from pathlib import Path

import pytest
from peft.tuners.lora import LoraLayer
from transformers import LlavaForConditionalGeneration

import schemabank
from architectures import WRAPPERS, tiny_architecture
from schemabank.adapters.peftcheck import read_check
from schemabank.config.file import load_experiment
from schemabank.runs.experiment import run_experiment
from schemabank.runs.saved import export_run
from tiny import tiny_tokenizer
from tinyruns import Notes, write_config, write_gsm8k
from trials import check_row


@pytest.mark.parametrize("name", sorted(WRAPPERS))
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_architecture_does_what_the_page_says(name: str, tmp_path: Path) -> None:
    check_row(name, tmp_path)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_run_loads_the_whole_model_and_its_card_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    tiny_architecture("llava").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    monkeypatch.setenv("SCHEMABANK_DATA", str(write_gsm8k(tmp_path / "data")))
    config = write_config(tmp_path / "run.yaml", folder, arm="lora", train={"max_steps": 2})
    (done,) = run_experiment(load_experiment(config), tmp_path / "runs", Notes())
    assert done.result is not None
    check = read_check(done.result)
    assert check is not None
    assert check.agrees, check.said
    adapter = done.folder / "adapter"
    check_card(adapter)
    (adapter / "README.md").unlink()
    assert export_run(done.folder, tmp_path / "exported", merge=False).agrees
    check_card(tmp_path / "exported")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_the_card_of_an_adapter_from_python_says_how_to_load_the_model(tmp_path: Path) -> None:
    tiny_architecture("llava").save_pretrained(tmp_path / "model")
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "model")
    config = schemabank.RunConfig(arm="lora", train=schemabank.TrainSettings(max_steps=2))
    examples = [(f"{number} + {number} = ", f"{2 * number}") for number in range(16)]
    with schemabank.Tuner(model, tiny_tokenizer(), config) as tuner:
        tuner.train(examples, quiet=True)
        tuner.save_pretrained(tmp_path / "tuner")
    runs = schemabank.train_cohort(model, tiny_tokenizer(), [config], examples, quiet=True)
    (result,) = runs.values()
    result.save_pretrained(tmp_path / "cohort")
    check_card(tmp_path / "tuner")
    check_card(tmp_path / "cohort")


def check_card(adapter: Path) -> None:
    """Run a card's code: PEFT puts the adapter on the text model of the whole LLaVA."""
    code = (adapter / "README.md").read_text(encoding="utf-8").partition("```python\n")[2]
    code = code.partition("```")[0].replace("path/to/this/adapter", str(adapter))
    names: dict[str, object] = {}
    exec(code, names)  # noqa: S102 -- what our own card says
    assert type(names["base"]).__name__ == "LlavaForConditionalGeneration"
    layers = {path for path, m in names["model"].named_modules() if isinstance(m, LoraLayer)}  # type: ignore[attr-defined]
    assert layers
    assert all(".language_model." in path for path in layers)
