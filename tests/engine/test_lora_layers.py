"""Adapters on some blocks alone: the same ones as in PEFT, in every way that a stack runs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from cohorts import BANK, bank_run, data, lora_run, step_input, train, weights, with_banks
from schemabank.adapters.files import load_adapter, model_card, put_on, save_adapter
from schemabank.common.errors import InputError
from schemabank.config.file import load_experiment
from schemabank.config.settings import LoraSettings
from schemabank.engine.cohort import Cohort
from schemabank.engine.dropout import SlotDropout, dropout_keys
from schemabank.engine.joined import join_linears
from schemabank.engine.lora import StackedLora, install_lora
from schemabank.engine.stack import AdapterStack
from schemabank.methods.schemabank.attach import banks_of
from schemabank.runs.experiment import run_experiment
from tiny import END_TOKEN_ID, Kind, tiny_model, tiny_tokenizer
from tinyruns import Finished, Notes, write_config

# PEFT 0.21 asks transformers 5.23 for a property by its deprecated name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

KINDS: tuple[Kind, ...] = ("llama", "qwen2", "gemma3")
LAYERS = [(0,), (2,), (0, 2), (2, 1), (0, 1, 2)]
TARGETS = ("q_proj", "v_proj", "down_proj")
TOKENS = torch.tensor([[5, 9, 200, 33, 12, 99, 4, 4]])


def settings(layers: tuple[int, ...] | None, *, r: int = 4, **changes: Any) -> LoraSettings:  # noqa: ANN401 -- settings
    given = {"r": r, "lora_alpha": 10, "target_modules": TARGETS, **changes}
    return LoraSettings(layers_to_transform=layers, **given)


def installed(model: PreTrainedModel, lora: LoraSettings) -> dict[str, StackedLora]:
    return install_lora(model, [lora], dropout=SlotDropout([0.0], device=model.device))


def trained(
    layers: tuple[int, ...] | None, *, kind: Kind = "llama", join: bool = False
) -> AdapterStack:
    """A run of each arm, of different ranks, trained side by side."""
    lora = [settings(layers), settings(layers, r=2)]
    model = tiny_model(kind)
    if join:
        join_linears(model)
    stack = AdapterStack(model, lora=lora, attach=with_banks(BANK))
    runs = [replace(lora_run(1), lora=lora[0]), bank_run(2, lora=lora[1])]
    train(Cohort(stack, runs, data()))
    return stack


def logits_of(stack: AdapterStack) -> Tensor:
    with stack.evaluating("off"):
        return stack.head(stack.hidden(TOKENS.expand(stack.num_slots, 1, -1)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", LAYERS, ids=str)
@pytest.mark.parametrize(
    "targets", [("q_proj", "down_proj"), ("self_attn.q_proj",), ("model.layers.1.mlp.up_proj",)]
)
def test_the_layers_are_those_that_peft_chooses(
    targets: tuple[str, ...], layers: tuple[int, ...], kind: Kind
) -> None:
    config = LoraConfig(target_modules=list(targets), layers_to_transform=list(layers))
    expected = {
        path
        for path, module in tiny_model(kind).named_modules()
        if isinstance(module, nn.Linear) and check_target_module_exists(config, path)
    }
    found = installed(tiny_model(kind), settings(layers, target_modules=targets))
    assert set(found) == expected
    assert expected


def test_all_layers_by_name_are_all_layers() -> None:
    named, default = (trained(layers) for layers in ((0, 1, 2), None))
    assert torch.equal(logits_of(named), logits_of(default))


def test_a_block_that_the_model_does_not_have_is_refused() -> None:
    model = tiny_model("llama")
    before = dict(model.named_modules())
    with pytest.raises(InputError) as error:
        installed(model, settings((1, 3)))
    assert str(error.value) == (
        "lora.layers_to_transform names block 3, but the model has 3 blocks: allowed are 0 to 2, "
        "name those"
    )
    assert dict(model.named_modules()) == before


def test_a_target_that_those_blocks_do_not_have_is_refused() -> None:
    with pytest.raises(InputError) as error:
        installed(tiny_model("llama"), settings((0, 2), target_modules=("1.mlp.up_proj",)))
    assert str(error.value) == (
        "lora.target_modules names '1.mlp.up_proj', which matches no linear layer of the blocks "
        "0, 2: allowed are down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj, name "
        "some of those, such as the attention's [q_proj, k_proj, v_proj, o_proj], or write "
        "all-linear"
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [(2,), (0, 2)], ids=str)
def test_stock_peft_loads_exactly_these_and_gives_the_same_logits(
    layers: tuple[int, ...], kind: Kind, tmp_path: Path
) -> None:
    stack = trained(layers, kind=kind)
    with torch.no_grad():
        plain = tiny_model(kind)(input_ids=TOKENS).logits[0]
    for slot, expected in enumerate(logits_of(stack)):
        lora, folder = stack.lora.settings[slot], tmp_path / str(slot)
        card = model_card("tiny", lora, training="Trained in a test.")
        save_adapter(folder, stack.lora.tensors(slot), lora, base_name="tiny", card=card)
        model = peft.PeftModel.from_pretrained(tiny_model(kind), str(folder))
        with torch.no_grad():
            found = model(input_ids=TOKENS).logits[0]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert (found - plain).abs().max() > 1e-3, "the adapter was trained"
        names = [n for n, m in model.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
        assert {int(name.split("layers.")[1].partition(".")[0]) for name in names} == set(layers)
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["layers_to_transform"] == list(layers)
        assert f"down_proj of the blocks {', '.join(map(str, layers))}." in card
        again = load_adapter(folder)
        assert again.config.settings == lora
        assert again.tensors.keys() == stack.lora.layers.keys()


@pytest.mark.parametrize("said", [2, [2]])
def test_what_peft_saved_of_one_block_is_on_that_block(
    said: int | list[int], tmp_path: Path
) -> None:
    config = LoraConfig(
        r=4, target_modules=list(TARGETS), layers_to_transform=said, init_lora_weights=False
    )
    model = peft.get_peft_model(tiny_model("llama"), config)
    model.save_pretrained(tmp_path)
    found = load_adapter(tmp_path)
    assert found.config.settings.layers_to_transform == (2,)
    stack = AdapterStack(tiny_model("llama"), lora=[found.config.settings])
    assert stack.lora.layers.keys() == found.tensors.keys()
    put_on(stack, 0, found)
    with torch.no_grad():
        expected = model(input_ids=TOKENS).logits
    torch.testing.assert_close(logits_of(stack), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layers", [(1,), (0, 2)], ids=str)
def test_on_joined_layers_the_same_is_trained(layers: tuple[int, ...]) -> None:
    """On a GPU, siblings are one product; blocks without adapters keep theirs."""
    lora = settings(layers, target_modules=("q_proj", "v_proj", "up_proj"))
    found = []
    for join in (False, True):
        model = tiny_model("qwen2").double().requires_grad_(False)
        if join:
            join_linears(model)
        dropout = SlotDropout([0.3], device=torch.device("cpu"))
        dropout.begin_step(torch.tensor(dropout_keys([(1, 0)]), dtype=torch.int32))
        adapters = install_lora(model, [lora], dropout=dropout)
        for path, layer in adapters.items():
            generator = torch.Generator().manual_seed(sum(path.encode()))
            layer.double()
            for parameter in (layer.A, layer.B):
                parameter.data.normal_(generator=generator)
        output = model(TOKENS).logits
        leaves = [p for layer in adapters.values() for p in (layer.A, layer.B)]
        found.append((list(adapters), output, torch.autograd.grad(output.square().mean(), leaves)))
    (paths, expected, theirs), (joined, output, ours) = found
    assert joined == paths
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-8, atol=1e-10)


def test_compiled_blocks_with_and_without_adapters_compute_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def eager(
        forward: Callable[..., object], *, dynamic: bool, options: object
    ) -> Callable[..., object]:
        del options
        assert not dynamic
        return lambda *args, **kwargs: forward(*args, **kwargs)

    monkeypatch.setattr(torch, "compile", eager)
    stack = trained((2,))
    expected = logits_of(stack)
    stack.compile()
    assert torch.equal(logits_of(stack), expected)
    stack.begin_step(step_input([(1, 0), (2, 0)]))
    stack.groups["lora"].require_grad(True)
    stack.hidden(TOKENS.expand(2, 1, -1)).square().mean().backward()
    gradients = [p.grad for p in stack.groups["lora"].parameters.values()]
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize("layers", [(0,), (1,), (2,)], ids=str)
def test_the_states_below_the_first_bank_serve_whatever_blocks_have_adapters(
    layers: tuple[int, ...],
) -> None:
    stack = AdapterStack(tiny_model("llama"), lora=[settings(layers)], attach=with_banks(BANK))
    stack.initialise(0, 7)
    banks_of(stack).routing = "on"
    expected = stack.hidden(TOKENS[None])
    states = stack.trunk(TOKENS)
    found = stack.hidden(TOKENS[None], states=states)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_neighbours_on_the_same_blocks_do_not_change_a_run() -> None:
    lora = settings((2,))
    runs = [bank_run(seed, lora=lora) for seed in (1, 2)]
    both = Cohort(
        AdapterStack(tiny_model("llama"), lora=[lora] * 2, attach=with_banks(BANK)), runs, data()
    )
    swapped = Cohort(
        AdapterStack(tiny_model("llama"), lora=[lora] * 2, attach=with_banks(BANK)),
        runs[::-1],
        data(),
    )
    train(both)
    train(swapped)
    for name, found in weights(both, 0).items():
        assert torch.equal(found, weights(swapped, 1)[name])


@pytest.mark.usefixtures("gsm8k")
def test_a_whole_run_counts_its_parameters_and_decodes_as_stock_peft(
    finished: Finished, tmp_path: Path
) -> None:
    lora = {"r": 1, "target_modules": ["down_proj"], "layers_to_transform": [2]}
    path = write_config(tmp_path / "c.yaml", finished.model, arm="lora", lora=lora)
    (outcome,) = run_experiment(load_experiment(path), tmp_path / "runs", Notes())
    assert outcome.result is not None
    training: Any = outcome.result["training"]
    assert training["num_trained_parameters"] == 64 + 32
    base = AutoModelForCausalLM.from_pretrained(finished.model)
    model = peft.PeftModel.from_pretrained(base, str(outcome.folder / "adapter"))
    tokenizer = tiny_tokenizer()
    for line in (outcome.folder / "predictions.jsonl").read_text().splitlines():
        row = json.loads(line)
        prompt = torch.tensor([tokenizer(row["prompt"])["input_ids"]])
        made = model.generate(
            input_ids=prompt,
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=END_TOKEN_ID,
            pad_token_id=END_TOKEN_ID,
        )
        text = tokenizer.decode(made[0, prompt.shape[1] :], skip_special_tokens=True)
        assert row["completion"] == text


@pytest.mark.usefixtures("gsm8k")
@pytest.mark.parametrize("arm", ["lora", "schemabank"])
def test_a_block_out_of_range_is_found_before_anything_is_computed(
    arm: str, finished: Finished, tmp_path: Path
) -> None:
    path = write_config(
        tmp_path / "c.yaml", finished.model, arm=arm, lora={"layers_to_transform": [9]}
    )
    with pytest.raises(InputError, match=r"names block 9, but the model has 3 blocks: allowed are"):
        run_experiment(load_experiment(path), tmp_path / "runs", Notes())
    assert not (tmp_path / "runs").exists()


def test_b_alone_may_have_a_learning_rate_of_its_own() -> None:
    stack = AdapterStack(tiny_model("llama"), lora=[LoraSettings()])
    group = stack.groups["lora"]
    assert group.faster is not None
    for name, own in group.views(group.faster).items():
        assert bool(own.all()) == bool(own.any()) == name.endswith(".B")
