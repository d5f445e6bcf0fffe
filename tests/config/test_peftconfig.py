"""PEFT's configurations where settings are due."""

import peft
import pytest

import schemabank as sb
from schemabank.config.peftconfig import SHARED, instead_of

PLAIN = peft.LoraConfig(
    r=8,
    lora_alpha=16,
    lora_dropout=0.1,
    use_rslora=True,
    target_modules=["v_proj", "q_proj"],
    layers_to_transform=1,
    task_type="CAUSAL_LM",
)
WRITTEN = (
    "LoraSettings(r=8, lora_alpha=16, use_rslora=True, lora_dropout=0.1, "
    "target_modules=['q_proj', 'v_proj'], layers_to_transform=[1])"
)


def test_what_both_have_is_written_out() -> None:
    with pytest.raises(TypeError) as refused:
        sb.RunConfig(arm="lora", lora=PLAIN)
    said = str(refused.value)
    begin = "PEFT's LoraConfig was given, but allowed is a schemabank.LoraSettings: write"
    assert said == f"{begin} {WRITTEN}"
    settings = eval(said.partition("write ")[2], {"LoraSettings": sb.LoraSettings})  # noqa: S307
    assert settings.target_modules == ("q_proj", "v_proj")
    assert (settings.r, settings.layers_to_transform, settings.use_rslora) == (8, (1,), True)
    assert set(SHARED) == set(sb.LoraSettings.model_fields)


def test_pefts_defaults_are_written_where_ours_are_others() -> None:
    assert str(instead_of(peft.LoraConfig())).endswith(
        "write LoraSettings(r=8, lora_alpha=8, lora_dropout=0.0), and name target_modules, since "
        "PEFT's defaults are mostly other layers than ours"
    )
    said = str(instead_of(peft.LoraConfig(r=16, use_dora=True)))
    assert ") without use_dora, which is not trained here, and name target_modules, since" in said


def test_pefts_default_layers_are_mostly_others_than_ours() -> None:
    ours = set(sb.LoraSettings().target_modules)
    theirs = peft.utils.constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    assert [kind for kind, names in theirs.items() if set(names) == ours] == ["nemotron_h"]


def test_what_is_not_trained_here_is_named() -> None:
    more = peft.LoraConfig(target_modules="all-linear", use_dora=True, modules_to_save=["lm_head"])
    said = str(instead_of(more))
    assert said.endswith(
        "target_modules='all-linear') without modules_to_save, use_dora, which is not trained here"
    )


def test_other_tuners_are_for_peft() -> None:
    for config in (peft.IA3Config(), peft.PromptTuningConfig(num_virtual_tokens=4)):
        said = str(instead_of(config))
        assert said.startswith(f"PEFT's {type(config).__name__} was given")
        assert said.endswith("since plain LoRA alone is trained here: train it with PEFT")


def test_nothing_is_said_of_anything_else() -> None:
    assert instead_of(None) is instead_of({"r": 8}) is instead_of(sb.LoraSettings()) is None
