"""Two processes that split the base model by FSDP2 come to what one comes to."""

from pathlib import Path
from types import SimpleNamespace

import peft
import pytest
import torch
from accelerate.utils import DistributedType
from torch import Tensor

from schemabank import InputError
from schemabank.trainer.sharded import check_split
from tiny import tiny_model
from trainerprocess import GOES_ON, METHODS, fsdp_plugin, split, together, trained, wide
from trainers import BATCH, OF_PROCESSES, arguments, method, trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("split")


@pytest.fixture(scope="module")
def both(folder: Path) -> list[dict[str, Tensor]]:
    return together(folder, main=split)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    with wide():
        return trained(tmp_path_factory.mktemp("alone"), rows=BATCH, parts=1)


@pytest.mark.parametrize("name", METHODS)
def test_split_base_models_train_as_whole_ones(
    name: str, both: list[dict[str, Tensor]], alone: dict[str, Tensor], folder: Path
) -> None:
    expected = {k: w for k, w in alone.items() if k.startswith(f"1 parts, {name}, ")}
    assert expected
    for parts in ("1 parts", "2 parts"):
        number, of_trained = both[0][f"{parts}, {name}: split"].tolist()
        assert number > 20
        assert of_trained == 0
        for key, weight in expected.items():
            found = both[0][key.replace("1 parts", parts)]
            assert (found - weight).abs().max() < OF_PROCESSES
    saved = peft.PeftModel.from_pretrained(
        tiny_model("llama"), folder / "halves" / name / "adapter"
    )
    a = [w for k, w in saved.named_parameters() if "lora_A" in k]
    assert any(
        (w - x).abs().max() < 1e-6 for w in a for x in expected.values() if w.shape == x.shape
    )


def test_processes_agree_to_the_bit(both: list[dict[str, Tensor]]) -> None:
    first, second = both
    assert first.keys() == second.keys()
    assert all(torch.equal(weight, second[key]) for key, weight in first.items())


@pytest.mark.parametrize(("name", "step"), GOES_ON)
def test_split_models_go_on_from_a_checkpoint_to_the_bit(
    name: str, step: int, both: list[dict[str, Tensor]]
) -> None:
    whole = {k: w for k, w in both[0].items() if k.startswith(f"{name}, whole, ")}
    assert whole
    for key, weight in whole.items():
        assert torch.equal(weight, both[0][key.replace("whole", f"from {step}")])


@pytest.mark.parametrize(
    ("changes", "quantised", "message"),
    [
        ({"fsdp_version": 1}, False, "FSDP's version is 1: allowed in a trainer is 2"),
        ({"state_dict_type": "SHARDED_STATE_DICT"}, False, "is 'SHARDED_STATE_DICT'.*is FULL"),
        ({"cpu_ram_efficient_loading": True}, False, "ram_efficient_loading is True: .*is False"),
        ({"cpu_offload": True}, False, "cpu_offload is True: allowed in a trainer is False"),
        ({"activation_checkpointing": True}, False, "set args.gradient_checkpointing in its"),
        ({}, True, "base model is 'quantised': allowed in a trainer is one that is not"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of FSDP1
def test_forms_of_fsdp_that_are_refused(
    changes: dict[str, object], quantised: bool, message: str, tmp_path: Path
) -> None:
    def given(**changes: object) -> SimpleNamespace:
        state = SimpleNamespace(fsdp_plugin=fsdp_plugin(**changes))
        return SimpleNamespace(distributed_type=DistributedType.FSDP, state=state)

    args = arguments(tmp_path)
    check_split(given(), args, quantised=False)
    with pytest.raises(InputError, match=message):
        check_split(given(**changes), args, quantised=quantised)


def test_two_passes_are_refused_where_the_output_layer_is_split(tmp_path: Path) -> None:
    state = SimpleNamespace(fsdp_plugin=fsdp_plugin())
    split_up = SimpleNamespace(distributed_type=DistributedType.FSDP, state=state)
    args = arguments(tmp_path)
    check_split(split_up, args, quantised=False, passes=1)
    with pytest.raises(
        InputError, match=r"experts\.consistency_weight is above 0, .* is 0, or DDP"
    ):
        check_split(split_up, args, quantised=False, passes=2)


def test_weights_that_are_to_be_split_where_they_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accelerate leaves FSDP out on CPUs, and says nothing."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(
        InputError, match=r"FSDP is asked for, but .* NO, .*leave args\.fsdp, use_f"
    ):
        trainer(tmp_path, method("lora"))
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    late = trainer(tmp_path, method("lora"))
    late.args.fsdp = True
    with pytest.raises(InputError, match="FSDP is asked for"):
        late.train()
