import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapterfiles import LORA, TARGETS, TOKENS, drawn_stack, export, logits, stack_logits
from cohorts import BANK, with_banks
from schemabank.adapters.config import CONFIG, AdapterConfig
from schemabank.adapters.files import (
    BANK_WEIGHTS,
    CARD,
    WEIGHTS,
    Adapter,
    load_adapter,
    load_bank,
    load_card,
    put_on,
    save_bank,
    write_adapter,
)
from schemabank.common.errors import InputError
from schemabank.engine.stack import AdapterStack
from schemabank.methods.schemabank.attach import banks_of
from tiny import tiny_model

# PEFT 0.21 asks transformers 5.23 for a property by its deprecated name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

FIRST = "base_model.model.model.layers.0.self_attn.q_proj"
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def stack() -> AdapterStack:
    return drawn_stack(BANK)


@pytest.fixture
def folder(stack: AdapterStack, tmp_path: Path) -> Path:
    return export(stack, 0, tmp_path / "adapter")


def reconfigured(folder: Path, **changes: object) -> Path:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))
    return folder


def reweighted(folder: Path, change: Callable[[Weights], Weights]) -> Path:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)
    return folder


def test_the_adapter_is_minimal(stack: AdapterStack, tmp_path: Path) -> None:
    folder = export(stack, 0, tmp_path / "new" / "adapter", base_name="owner/model")
    assert {p.name for p in folder.iterdir()} == {CONFIG, WEIGHTS, "README.md"}
    assert json.loads((folder / CONFIG).read_text()) == {
        "base_model_name_or_path": "owner/model",
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": 10.0,
        "lora_dropout": 0.2,
        "peft_type": "LORA",
        "r": 4,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "task_type": "CAUSAL_LM",
    }
    weights = load_file(folder / WEIGHTS)
    assert len(weights) == 3 * len(TARGETS) * 2
    assert all(any(f".{target}.lora_" in key for target in TARGETS) for key in weights)
    assert {w.dtype for w in weights.values()} == {torch.float32}
    key = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
    assert weights[key].shape == (4, 64)


def test_the_card_carries_what_the_hub_reads(stack: AdapterStack, tmp_path: Path) -> None:
    text = (export(stack, 0, tmp_path / "a", base_name="owner/model") / "README.md").read_text()
    head = text.split("---\n")[1].splitlines()
    assert "library_name: peft" in head
    assert "base_model: owner/model" in head
    assert head[head.index("tags:") :] == ["tags:", "- lora", "- schemabank"]
    assert "Rank 4, alpha 10, on q_proj, v_proj, down_proj." in text


def test_an_adapter_survives_the_round_trip_bit_for_bit(
    stack: AdapterStack, tmp_path: Path
) -> None:
    adapter = load_adapter(export(stack, 1, tmp_path / "adapter"))
    assert adapter.config == AdapterConfig(LORA[1], "tiny")
    fresh = AdapterStack(tiny_model("llama"), lora=[adapter.config.settings])
    put_on(fresh, 0, adapter)
    for path, pair in stack.lora.tensors(1).items():
        assert all(map(torch.equal, fresh.lora.tensors(0)[path], pair))
    torch.testing.assert_close(stack_logits(fresh)[0], stack_logits(stack)[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("alpha", [4, 10])
def test_what_peft_saved_computes_the_same_here(alpha: int, tmp_path: Path) -> None:
    config = peft.LoraConfig(
        r=4, lora_alpha=alpha, target_modules=["q_proj", "up_proj"], init_lora_weights=False
    )
    model = peft.get_peft_model(tiny_model("llama"), config)
    model.save_pretrained(tmp_path)
    adapter = load_adapter(tmp_path)
    settings = adapter.config.settings
    assert (settings.r, settings.lora_alpha) == (4, alpha)
    assert set(settings.target_modules) == {"q_proj", "up_proj"}
    fresh = AdapterStack(tiny_model("llama"), lora=[adapter.config.settings])
    put_on(fresh, 0, adapter)
    expected = logits(model)
    torch.testing.assert_close(stack_logits(fresh), expected, rtol=0, atol=1e-5)
    assert (expected - logits(tiny_model("llama"))).abs().max() > 1e-2


def as_in_peft(config: peft.LoraConfig, folder: Path) -> tuple[Adapter, torch.Tensor]:
    """Save an adapter by PEFT and read it; our logits with it must be PEFT's, which come back."""
    model = peft.get_peft_model(tiny_model("llama"), config)
    model.save_pretrained(folder)
    adapter = load_adapter(folder)
    fresh = AdapterStack(tiny_model("llama"), lora=[adapter.config.settings])
    put_on(fresh, 0, adapter)
    torch.testing.assert_close(stack_logits(fresh), logits(model), rtol=0, atol=1e-5)
    return adapter, logits(model)


def test_layers_that_peft_left_out_stay_untouched(tmp_path: Path) -> None:
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj"], layers_to_transform=[1], init_lora_weights=False
    )
    as_in_peft(config, tmp_path)


def test_a_rank_stabilised_adapter_of_pefts_is_scaled_as_in_peft(tmp_path: Path) -> None:
    as_in_peft(
        peft.LoraConfig(
            r=4, lora_alpha=3, target_modules=["q_proj"], use_rslora=True, init_lora_weights=False
        ),
        tmp_path,
    )
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"use_rslora": "yes"}))
    with pytest.raises(InputError, match="use_rslora is 'yes', allowed is true or false"):
        load_adapter(tmp_path)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
        ({"target_modules": r".*\.q_proj"}, "target_modules as a pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
    ],
)
def test_more_than_plain_lora_is_refused(
    options: dict[str, object], named: str, tmp_path: Path
) -> None:
    config = peft.LoraConfig(**({"r": 2, "target_modules": ["q_proj"]} | options))
    peft.get_peft_model(tiny_model("llama"), config).save_pretrained(tmp_path)
    with pytest.raises(InputError) as error:
        load_adapter(tmp_path)
    assert str(error.value) == (
        f"{str(tmp_path)!r} uses {named}, allowed is plain LoRA with a list of targets: evaluate "
        "it with PEFT, or merge it and name the merged folder as the model"
    )


def test_another_kind_of_adapter_is_refused(tmp_path: Path) -> None:
    config = peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[])
    peft.get_peft_model(tiny_model("llama"), config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"of type 'IA3', allowed is LORA"):
        load_adapter(tmp_path)


def test_weights_beyond_lora_are_refused_whatever_the_configuration_says(
    stack: AdapterStack, tmp_path: Path
) -> None:
    folder = export(stack, 0, tmp_path / "adapter")
    key = "base_model.model.lm_head.weight"
    save_file({**load_file(folder / WEIGHTS), key: torch.zeros(300, 32)}, folder / WEIGHTS)
    with pytest.raises(InputError, match=rf"holds '{key}', allowed are LoRA's A and B"):
        load_adapter(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"r": 0}, r"r is 0, but .* greater than or equal to 1"), ({"r": None}, "r is None")],
)
def test_a_damaged_configuration(
    change: dict[str, object], message: str, stack: AdapterStack, tmp_path: Path
) -> None:
    path = export(stack, 0, tmp_path / "adapter") / CONFIG
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=message):
        load_adapter(path.parent)
    del config["lora_alpha"]
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match="lacks 'lora_alpha'"):
        load_adapter(path.parent)


def test_files_that_are_missing_or_torn(stack: AdapterStack, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"adapter_config\.json"):
        load_adapter(tmp_path / "nothing")
    folder = export(stack, 0, tmp_path / "adapter")
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:100])
    with pytest.raises(InputError, match="cannot read"):
        load_adapter(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(InputError, match="cannot read"):
        load_adapter(folder)


def test_an_existing_folder_is_never_overwritten(stack: AdapterStack, tmp_path: Path) -> None:
    folder = export(stack, 0, tmp_path / "adapter")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(InputError, match="exists and is not overwritten: name a new folder"):
        export(stack, 1, folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_bank_survives_the_round_trip_bit_for_bit(stack: AdapterStack, tmp_path: Path) -> None:
    save_bank(tmp_path / "bank", banks_of(stack).tensors(1))
    assert [p.name for p in (tmp_path / "bank").iterdir()] == ["bank.safetensors"]
    loaded = load_bank(tmp_path / "bank")
    assert set(loaded) == {
        f"layers.{i}.{n}" for i in (1, 2) for n in ("router", "U", "V", "attributes", "query")
    }
    fresh = AdapterStack(tiny_model("llama"), lora=[LORA[1]], attach=with_banks(BANK))
    fresh.lora.load(0, stack.lora.tensors(1))
    banks_of(fresh).load(0, loaded)
    for name, values in banks_of(stack).tensors(1).items():
        assert torch.equal(banks_of(fresh).tensors(0)[name], values)
    with fresh.evaluating("on"), stack.evaluating("on"):
        torch.testing.assert_close(
            fresh.hidden(TOKENS[None])[0],
            stack.hidden(TOKENS.expand(2, 1, -1))[1],
            rtol=1e-5,
            atol=1e-5,
        )


def test_a_folder_without_a_bank(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no bank .*: allowed is --routing off, or a run"):
        load_bank(tmp_path)


def without(weights: Weights, part: str) -> Weights:
    return {name: tensor for name, tensor in weights.items() if part not in name}


def with_one(weights: Weights, value: float) -> Weights:
    weights[FIRST + ".lora_B.weight"][3, 1] = value
    return weights


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_weight_that_is_not_finite_is_refused(value: float, folder: Path) -> None:
    reweighted(folder, lambda weights: with_one(weights, value))
    with pytest.raises(InputError, match=r"q_proj\.lora_B\.weight' with values that are not"):
        load_adapter(folder)


@pytest.mark.parametrize("rank", [2, 8])
def test_weights_of_another_rank_than_configured_are_refused(rank: int, folder: Path) -> None:
    reconfigured(folder, r=rank)
    with pytest.raises(InputError, match=rf"of shape \[4, .*\], but .* says r {rank}: allowed is"):
        load_adapter(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: without(w, "0.self_attn.q_proj.lora_B"), r"lacks '.*q_proj\.lora_B\.weight'"),
        (lambda w: without(w, "2.mlp.down_proj.lora_A"), r"lacks '.*down_proj\.lora_A\.weight'"),
        (lambda w: without(w, "down_proj"), "has no weights of the target 'down_proj'"),
        (lambda _: {}, "has no weights of the target 'q_proj'"),
        (lambda w: {k: t.to(torch.int32) for k, t in w.items()}, r"as I32, allowed are BF16"),
        (lambda w: {k: t.to(torch.float8_e4m3fn) for k, t in w.items()}, r"as F8_E4M3"),
        (lambda w: {k: torch.zeros(0) for k in w}, r"of shape \[0\]"),
        (lambda w: {k: t[..., None].clone() for k, t in w.items()}, r"of shape \[4, 64, 1\]"),
        (
            lambda w: {k.replace("q_proj", "o_proj"): t for k, t in w.items()},
            r"weights of 'model\.layers\.0\.self_attn\.o_proj', allowed are the targets",
        ),
        (
            lambda w: {
                k.replace("lora_A.weight", "lora_A.default.weight"): t for k, t in w.items()
            },
            "holds '.*default.weight', allowed are LoRA's A and B",
        ),
        (lambda w: {k.replace("base_model.", ""): t for k, t in w.items()}, "allowed are LoRA's"),
    ],
)
def test_weights_that_are_not_the_configured_ones_are_refused(
    change: Callable[[Weights], Weights], message: str, folder: Path
) -> None:
    reweighted(folder, change)
    with pytest.raises(InputError, match=message):
        load_adapter(folder)


def test_weights_of_a_block_too_few_are_refused_on_the_model(folder: Path) -> None:
    reweighted(folder, lambda weights: without(weights, "layers.1."))
    fresh = AdapterStack(tiny_model("llama"), lora=[LORA[0]])
    with pytest.raises(InputError, match=r"no weights for 'model\.layers\.1\.self_attn\.q_proj'"):
        put_on(fresh, 0, load_adapter(folder))


@pytest.mark.parametrize(
    "harmless",
    [
        {"use_future": False, "new_config": None, "new_pattern": {}, "enable_lora": None},
        {"peft_version": "0.99", "corda_config": {"a": 1}, "megatron_core": "megatron.core"},
        {"layers_pattern": "layers", "layers_to_transform": [0, 1, 2]},
        {"layers_pattern": ["model.layers"], "exclude_modules": ["lm_head"]},
        {"init_lora_weights": "gaussian", "base_model_name_or_path": None, "revision": "main"},
    ],
)
def test_settings_without_effect_are_taken(harmless: dict[str, Any], folder: Path) -> None:
    assert len(load_adapter(reconfigured(folder, **harmless)).tensors) == 9


@pytest.mark.parametrize(
    ("special", "named"),
    [
        ({"use_future": True}, "use_future"),
        ({"monteclora_config": {"a": 1}}, "monteclora_config"),
        ({"target_modules": "(a+)+$"}, "target_modules as a pattern"),
        ({"target_modules": "all-linear"}, "target_modules as a pattern"),
        ({"exclude_modules": "(.*)*x"}, "exclude_modules as a pattern"),
        ({"layers_pattern": "(a+)+"}, "layers_pattern"),
        ({"layers_pattern": {"a": 1}}, "layers_pattern"),
        ({"init_lora_weights": ["x"]}, r"init_lora_weights \['x'\]"),
        ({"init_lora_weights": 1}, "init_lora_weights 1"),
        ({"bias": None}, "bias"),
    ],
)
def test_special_settings_are_refused_by_name(
    special: dict[str, Any], named: str, folder: Path
) -> None:
    with pytest.raises(InputError, match=rf" uses {named}, allowed is plain LoRA with a list"):
        load_adapter(reconfigured(folder, **special))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": True}, "r is True, allowed is a number"),
        ({"r": "4"}, "r is '4', allowed is a number"),
        ({"r": 4.0}, "r is 4.0, allowed is a number"),
        ({"r": 10**12}, "r is 1000000000000, but"),
        ({"lora_alpha": float("nan")}, "holds no finite number in 'lora_alpha'"),
        ({"lora_alpha": -1}, "lora_alpha is -1"),
        ({"lora_dropout": None}, "lora_dropout is None"),
        ({"lora_dropout": 1.0}, "lora_dropout is 1.0"),
        ({"target_modules": None}, r"target_modules is \[\]"),
        ({"target_modules": [1]}, r"target_modules is \[1\], allowed is a list of names"),
        ({"target_modules": {"q_proj": 1}}, "target_modules is"),
        ({"layers_to_transform": [0, 0]}, "distinct block indices"),
        ({"layers_to_transform": [-1]}, "layers_to_transform"),
        ({"base_model_name_or_path": 7}, "base_model_name_or_path is 7, allowed is text"),
        ({"peft_type": None}, "of type None"),
    ],
)
def test_values_of_the_wrong_kind_are_refused(
    change: dict[str, Any], message: str, folder: Path
) -> None:
    with pytest.raises(InputError, match=message):
        load_adapter(reconfigured(folder, **change))


def test_a_hostile_pattern_costs_no_time(folder: Path) -> None:
    hostile = "(" * 50 + "a*" + ")*" * 50 + "$"
    began = time.process_time()
    for name in ("target_modules", "exclude_modules", "layers_pattern"):
        with pytest.raises(InputError):
            load_adapter(reconfigured(folder, **{name: hostile}))
    assert time.process_time() - began < 5


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, CARD])
def test_no_link_is_followed_out_of_the_folder(name: str, folder: Path, tmp_path: Path) -> None:
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"is a link to .*outside its folder"):
        load_card(folder) if name == CARD else load_adapter(folder)


def test_the_hubs_cache_of_links_is_read(folder: Path, tmp_path: Path) -> None:
    store, snapshot = tmp_path / "repo" / "blobs", tmp_path / "repo" / "snapshots" / "abc"
    store.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        file.rename(store / f"sha-{file.name}")
        (snapshot / file.name).symlink_to(Path("../../blobs", f"sha-{file.name}"))
    assert len(load_adapter(snapshot).tensors) == 9


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
@pytest.mark.parametrize("kind", ["folder", "pipe", "circle", "dangling"])
def test_what_is_no_file_is_refused(kind: str, name: str, folder: Path) -> None:
    path = folder / name
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path if kind == "circle" else folder / "nothing")
    with pytest.raises(InputError, match=name):
        load_adapter(folder)


def test_a_pickle_is_not_read(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"cannot read .*adapter_model\.safetensors"):
        load_adapter(folder)


def test_excluded_layers_stay_untouched_as_in_peft(tmp_path: Path) -> None:
    config = peft.LoraConfig(
        r=4,
        target_modules=["q_proj"],
        exclude_modules=["1.self_attn.q_proj"],
        init_lora_weights=False,
    )
    adapter, expected = as_in_peft(config, tmp_path)
    (tmp_path / "again").mkdir()
    write_adapter(tmp_path / "again", adapter, card="")
    again = peft.PeftModel.from_pretrained(tiny_model("llama"), str(tmp_path / "again"))
    torch.testing.assert_close(logits(again), expected, rtol=0, atol=1e-5)


def test_weights_keep_their_type_when_they_are_written_again(folder: Path, tmp_path: Path) -> None:
    reweighted(folder, lambda w: {k: t.to(torch.bfloat16) for k, t in w.items()})
    (tmp_path / "again").mkdir()
    write_adapter(tmp_path / "again", load_adapter(folder), card="")
    before, after = load_file(folder / WEIGHTS), load_file(tmp_path / "again" / WEIGHTS)
    assert before.keys() == after.keys()
    assert all(after[n].dtype == t.dtype and torch.equal(after[n], t) for n, t in before.items())
    assert (tmp_path / "again" / CONFIG).read_bytes() == (folder / CONFIG).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b | {"layers.1.V": b["layers.1.V"] * float("nan")}, "not finite"),
        (lambda b: b | {"layers.1.extra": torch.zeros(2)}, r"holds 'layers\.1\.extra', allowed"),
        (lambda _: {}, "holds 'nothing', allowed"),
        (lambda b: {k: t.to(torch.int64) for k, t in b.items()}, "as I64"),
    ],
)
def test_a_bank_is_read_as_strictly(
    change: Callable[[Weights], Weights], message: str, stack: AdapterStack, tmp_path: Path
) -> None:
    save_bank(tmp_path / "bank", banks_of(stack).tensors(0))
    path = tmp_path / "bank" / BANK_WEIGHTS
    save_file(change(load_file(path)), path)
    with pytest.raises(InputError, match=message):
        load_bank(path.parent)
