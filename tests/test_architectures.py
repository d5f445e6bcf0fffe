"""Architectures one by one: which layers can have adapters, what is refused, how they decode.

What each does from its targets to its completions in stock PEFT is tried in the files
``test_architectures_*.py``, one a group of docs/models.md.
"""

import re
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_DEFAULTS

from architectures import GROUPS, NAMES, tiny_architecture
from cohorts import BANK, with_banks
from schemabank.adapters.export import check_with_peft, probe
from schemabank.adapters.files import save_adapter
from schemabank.adapters.peftlayers import check_peft_layers
from schemabank.common.errors import InputError
from schemabank.config.settings import LoraSettings
from schemabank.engine import targets
from schemabank.engine.decoding.choice import check_generates, why_by_slot
from schemabank.engine.kernels.attention import short_attention
from schemabank.engine.lora import StackedLora
from schemabank.engine.stack import AdapterStack
from schemabank.models.architecture import decoder_prefix
from schemabank.models.basemodel import BaseModel
from tiny import END_TOKEN_ID
from trials import (
    END,
    HEADERS,
    NOT,
    ONE_BY_ONE,
    PAGE,
    REMARKS,
    START,
    TOKENIZER,
    completed,
    exported,
    followed,
    page_rows,
    targets_in,
    trained,
    way_of_decoding,
)

# One of a kind: attention that is no module of its own, vision beside text, Conv1D, sinks, scaled
# logits, convolutions, recurrence, a shared expert. All others are tried in `make soak`.
OFTEN = ("falcon", "gemma3", "gpt2", "gpt_oss", "granite", "lfm2", "mamba", "qwen2_moe")
# Linear layers that cannot have an adapter: PEFT takes them for routed experts' weights or refuses
# them, or the model reads their weights by itself.
OF_EXPERTS = {"down_proj", "gate_proj", "up_proj"}
REFUSED = {
    **dict.fromkeys(
        ("deepseek_v2", "deepseek_v3", "ernie4_5_moe", "glm4_moe", "qwen3_next"), OF_EXPERTS
    ),
    "falcon_h1": {"out_proj"},
    "falcon_mamba": {"dt_proj", "out_proj"},
    "gemma3n_text": {"modality_router"},
    "hunyuan_v1_moe": {*OF_EXPERTS, "wg"},
    "jamba": {"dt_proj"},
    "mamba": {"dt_proj", "out_proj"},
    "mamba2": {"out_proj"},
    "nemotron_h": {"out_proj"},
    "phimoe": {"router"},
}
UNTRAINABLE = {"llama4_text": "no known decoder blocks"}
BANKLESS = {"gemma3n_text": "cannot be run from the first bank on"}
UNREADABLE = dict.fromkeys(
    ("rwkv", "zamba2"), r"neither by SchemaBank nor by transformers' generate \(its logits differ"
)


def each(*, but: tuple[str, ...] = ()) -> pytest.MarkDecorator:
    names = [
        pytest.param(name, marks=[] if name in OFTEN else [pytest.mark.soak])
        for name in NAMES
        if name not in but
    ]
    return pytest.mark.parametrize("name", names)


def layers_of(name: str) -> tuple[set[str], set[str]]:
    """Names of an architecture's linear layers: those that can have an adapter, and those not."""
    model = tiny_architecture(name)
    names = {path.rpartition(".")[2] for path, m in model.named_modules() if hasattr(m, "weight")}
    allowed, refused = set(), set()
    for target in names:
        settings = LoraSettings(r=2, target_modules=(target,))
        try:
            check_peft_layers(model, settings)
            AdapterStack(model, lora=[settings]).remove()
        except InputError as error:
            reason = str(error)
            if f"names {target!r}" not in reason:  # the model's fault, not the target's
                raise
            if "no linear layer" not in reason:
                refused.add(target)
        else:
            allowed.add(target)
    return allowed, refused


@pytest.mark.parametrize("name", ["gpt2", "mixtral", "opt_projected", "qwen2"])
def test_all_linear_layers_have_adapters_or_the_first_that_cannot_is_named(name: str) -> None:
    """Also those outside of all blocks, and an error names what nobody wrote."""
    model = tiny_architecture(name)
    settings = LoraSettings.model_validate({"r": 2, "target_modules": "all-linear"})
    try:
        stack = AdapterStack(model, lora=[settings])
    except InputError as error:
        assert "finds" in str(error)  # noqa: PT017 -- some models have such layers
        return
    names = {path.rpartition(".")[2] for path in stack.lora.layers}
    assert set(stack.lora.settings[0].target_modules) == names
    assert len(names) >= 3
    assert ("project_in" in names) == (name == "opt_projected")
    assert max(int(layer.block) for layer in stack.lora.layers.values()) < stack.lora.num_blocks


def test_the_page_has_a_row_for_every_architecture_in_its_group() -> None:
    made = PAGE.read_text(encoding="utf-8").partition(START)[2].partition(END)[0]
    parts = made.split("### ")[1:]
    assert [part.partition("\n")[0] for part in parts] == list(GROUPS)
    for part, names in zip(parts, GROUPS.values(), strict=True):
        rows = [line.split(" | ")[0].strip("| `") for line in part.splitlines()[2:]]
        assert [row for row in rows if row not in {"model_type", ""} and "---" not in row] == (
            sorted(names)
        )


def test_the_page_says_what_to_do_wherever_something_is_refused() -> None:
    for name, row in page_rows().items():
        cells = dict(zip(HEADERS, row, strict=True))
        is_whole = cells["trains"] == "lora, schemabank" and cells["decodes"] != NOT
        assert is_whole == (name not in REMARKS), name
        assert is_whole == (cells["refused, and what to do"] == ""), name


@pytest.mark.parametrize("name", ["falcon", "gpt2", "gpt_neox", "lfm2", "opt", "phi", "phi3"])
def test_where_the_default_targets_are_no_layers_those_of_the_attention_are_taken(
    name: str,
) -> None:
    model = tiny_architecture(name)
    said = targets.said_of(model, LoraSettings())
    stack = AdapterStack(model, lora=[LoraSettings(), LoraSettings(r=4)])
    attention = {p for p, m in model.named_modules() if type(m).__name__.endswith("Attention")}
    assert {path.rpartition(".")[0] for path in stack.lora.layers} == attention
    taken = stack.lora.settings[0].target_modules
    assert said == (
        f"LoRA is on {', '.join(taken)}, which {type(model).__name__} has in place of the default "
        "lora.target_modules (q_proj, k_proj, v_proj, o_proj)"
    )
    stack.lora.configure(0, LoraSettings(r=2))
    assert stack.lora.settings[0].target_modules == taken, "another run takes the slot over"


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("falcon_mamba", ("in_proj", "x_proj")),
        ("mamba", ("in_proj", "x_proj")),
        ("mamba2", ("in_proj",)),
    ],
)
def test_without_attention_the_default_targets_are_in_the_mixers(
    name: str, taken: tuple[str, ...]
) -> None:
    model = tiny_architecture(name)
    check_peft_layers(model, LoraSettings())
    stack = AdapterStack(model, lora=[LoraSettings()])
    assert stack.lora.settings[0].target_modules == taken


@pytest.mark.parametrize("name", ["jamba", "llama", "nemotron_h", "qwen3_next"])
def test_where_the_default_targets_are_layers_they_stay_and_nothing_is_said(name: str) -> None:
    model = tiny_architecture(name)
    assert targets.resolved(model, LoraSettings()) == LoraSettings()
    assert targets.said_of(model, LoraSettings()) is None


def test_pefts_own_default_targets_are_among_ours() -> None:
    """But for the Phi family's MLP, which has no adapter by our default."""
    known = {name: wanted for name, wanted in PEFT_DEFAULTS.items() if name in NAMES}
    assert len(known) > 15
    for name, wanted in known.items():
        if isinstance(wanted, list):
            found = targets.resolved(tiny_architecture(name), LoraSettings()).target_modules
            ours = {target.rpartition(".")[2] for target in found}
            assert {*wanted} - {"fc1", "fc2"} <= ours, name


def test_a_list_of_ones_own_must_name_layers_and_may_be_any_of_those_that_are_named() -> None:
    model = tiny_architecture("gpt2")
    own = LoraSettings(target_modules=("q_proj",))
    with pytest.raises(InputError, match=r"such as the attention's \[.*\], or write all-linear"):
        AdapterStack(model, lora=[own])


@pytest.mark.parametrize(
    ("name", "pattern", "targets"),
    [
        ("llama", r".*self_attn\.(q|v)_proj", ("q_proj", "v_proj")),
        ("llama", r"model\.layers\.1\..*(down|o)_proj", ("1.self_attn.o_proj", "1.mlp.down_proj")),
        ("gpt2", r".*attn\.c_proj", ("attn.c_proj",)),
        ("gemma3", ".*q_proj", ("q_proj",)),  # the vision tower's have none
    ],
)
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_pattern_stands_for_the_layers_whose_path_it_matches(
    name: str, pattern: str, targets: tuple[str, ...], tmp_path: Path
) -> None:
    model = tiny_architecture(name)
    start = decoder_prefix(model)
    settings = LoraSettings.model_validate({"r": 2, "target_modules": pattern})
    check_peft_layers(model, settings)
    stack, _ = trained(model, [pattern], banked=True)
    assert stack.lora.settings[0].target_modules == targets
    assert set(stack.lora.layers) == {
        path
        for path, module in model.named_modules()
        if re.fullmatch(pattern, path)
        and path.startswith(start)
        and isinstance(module, StackedLora)
    }
    exported(stack, tmp_path, None)


@pytest.mark.parametrize("name", ["jamba", "mamba", "phimoe", "qwen3_next"])
def test_where_all_linear_is_too_much_the_rest_is_named(name: str) -> None:
    model = tiny_architecture(name)
    taken = set(followed(model, "all-linear").target_modules)
    allowed, refused = layers_of(name)
    assert taken == allowed
    assert refused


@pytest.mark.parametrize("target", ["all-linear", r".*\.self_attn\.\w+"])
def test_many_layers_are_named_without_comparing_each_with_each(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mixture whose experts are layers of their own has thousands."""
    compared, plain = [], targets.matches

    def matches(path: str, name: str, inside: tuple[str, ...]) -> bool:
        compared.append(path)
        return plain(path, name, inside)

    model = tiny_architecture("llama")
    model.model.layers.extend(deepcopy(model.model.layers[0]) for _ in range(50))
    monkeypatch.setattr(targets, "matches", matches)
    found = targets.resolved(model, LoraSettings.model_validate({"target_modules": target}))
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert found.target_modules == (names if target == "all-linear" else names[:4])
    assert len(compared) < len(list(model.modules()))


def test_a_pattern_that_matches_nothing_shows_what_a_path_is() -> None:
    settings = LoraSettings.model_validate({"target_modules": "q_proj|v_proj"})
    said = (
        r"pattern 'q_proj\|v_proj', which matches the whole path of no linear layer: allowed are "
    )
    with pytest.raises(InputError, match=rf"{said}patterns for paths such as model\.layers\.0\."):
        check_peft_layers(tiny_architecture("llama"), settings)


def test_targets_are_read_out_of_messages() -> None:
    assert targets_in("PEFT ([PEFT:X] no): allowed are others, write [a, b.c]") == ["a", "b.c"]
    assert targets_in("allowed are a, name some of those, or write all-linear") == "all-linear"
    assert targets_in("allowed are others, leave it out") is None


@each(but=tuple(UNTRAINABLE))
def test_a_layer_can_have_an_adapter_or_is_refused_by_its_name(name: str) -> None:
    allowed, refused = layers_of(name)
    assert refused == REFUSED.get(name, set())
    assert allowed


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # the compiler and its libraries warn of their own
@pytest.mark.parametrize("name", [*OFTEN, "deepseek_v3", "opt"])
def test_an_architecture_trains_on_a_gpu_as_on_a_cpu(name: str, tmp_path: Path) -> None:
    allowed, _ = layers_of(name)
    targets = sorted(allowed)
    _, expected = trained(tiny_architecture(name), targets, banked=True)
    stack, losses = trained(tiny_architecture(name).to("cuda"), targets, banked=True)
    assert losses == pytest.approx(expected, abs=1e-2)
    completed(stack, by_slot=way_of_decoding(tiny_architecture(name)) == ONE_BY_ONE)
    base = BaseModel("tiny", None, stack.model, TOKENIZER, (END_TOKEN_ID,), "made here")
    probes = probe(stack, base)
    own = stack.lora.tensors(1)
    stack.remove()
    settings = stack.lora.settings[1]
    folder = tmp_path / "adapter"
    save_adapter(folder, own, settings, base_name="tiny", card="", layout=stack.lora.layout)
    check = check_with_peft(folder, base, probes[1])
    assert check.agrees, check.said


@pytest.mark.parametrize("name", UNTRAINABLE)
def test_an_architecture_that_cannot_be_trained_is_refused_in_one_sentence(name: str) -> None:
    with pytest.raises(InputError, match=UNTRAINABLE[name]):
        AdapterStack(tiny_architecture(name), lora=[LoraSettings()])


@pytest.mark.parametrize("name", BANKLESS)
def test_banks_on_blocks_that_cannot_be_left_out_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=BANKLESS[name]):
        AdapterStack(
            tiny_architecture(name), lora=[LoraSettings()], attach=with_banks(BANK), adapters=False
        )


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_architecture_that_nothing_decodes_rightly_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=UNREADABLE[name]):
        check_generates(tiny_architecture(name))


@each()
def test_attention_for_short_rows_is_the_models_own(name: str) -> None:
    model = tiny_architecture(name)
    tokens = torch.arange(1, 13).view(1, 12)  # more than a window has
    with torch.no_grad():
        expected = model(input_ids=tokens, use_cache=False).logits
        with short_attention(model):
            found = model(input_ids=tokens, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@each(but=(*UNTRAINABLE, *UNREADABLE))
def test_transformers_generates_what_our_decoder_does(name: str) -> None:
    model = tiny_architecture(name)
    check_generates(model)
    if why_by_slot(model) is None:
        stack = AdapterStack(model, lora=[LoraSettings()], adapters=False)
        ours, theirs = (completed(stack, by_slot=by_slot, limit=12) for by_slot in (False, True))
        assert ours == theirs
