"""The table of docs/trainer.md says truly what trains where."""

from pathlib import Path

import pytest
import trl

import trainerprocess
from schemabank import InputError, RunConfig, Tuner
from schemabank.config.methods import METHODS
from schemabank.trainer import MethodTrainerMixin
from schemabank.trainer.checks import check_class, check_method
from schemabank.trainer.courses import COURSES
from tiny import tiny_model, tiny_tokenizer
from trainers import LORA, OF_PROCESSES, PAIRS, ROUNDING, STEPS, TOLERANCE

PAGE = Path(__file__).parents[2] / "docs" / "trainer.md"
HEADS = [
    *("`arm`", "engine, `Tuner`", "`Trainer`", "`SFTTrainer`", "`padding_free`", "`packing`"),
    *("DDP", "4 bits", "FSDP2"),
]


def _cells() -> dict[str, dict[str, str]]:
    """The table's cells by arm and column."""
    lines = PAGE.read_text(encoding="utf-8").partition("<!-- what trains where -->\n")[2]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines.partition("\n\n")[0].splitlines()
    ]
    assert rows[0] == HEADS
    return {row[0].strip("`"): dict(zip(HEADS[1:], row[1:], strict=True)) for row in rows[2:]}


CELLS = _cells()
SAYS_NO = {"no"}
ON_CPUS = ("DDP", "4 bits", "FSDP2")
PACKED = {"schemabank": "without tags", "experts": "without `hash`"}


def _trains(arm: str, column: str) -> bool:
    return CELLS[arm][column] not in SAYS_NO


def test_it_has_every_method_that_trains_something() -> None:
    assert CELLS.keys() == METHODS.keys() - {"base"}


@pytest.mark.parametrize("arm", CELLS)
def test_the_engine_trains_it(arm: str) -> None:
    assert _trains(arm, "engine, `Tuner`")
    train = {"max_steps": 4, "batch_size": 4}
    tuner = Tuner(tiny_model("llama"), tiny_tokenizer(), RunConfig(arm=arm, lora=LORA, train=train))
    tuner.train(PAIRS)


@pytest.mark.parametrize("arm", CELLS)
def test_trainers_train_it_or_name_the_way_on(arm: str) -> None:
    for column, kind in (("`Trainer`", MethodTrainerMixin), ("`SFTTrainer`", _SFT)):
        check_class(kind)
        if _trains(arm, column):
            check_method(RunConfig(arm=arm))
        else:
            with pytest.raises(InputError, match=r"own engine alone.*or use schemabank\.Tuner"):
                check_method(RunConfig(arm=arm))
    # What is not in a trainer cannot be in several processes or on 4 bits either.
    others = [name for name in HEADS[2:] if _trains(arm, name)]
    assert others == (HEADS[2:] if arm in COURSES else [])


def test_every_cell_is_one_of_the_words_that_are_tested() -> None:
    """Another word counts as trained; "yes" would say of the last three that GPUs were tried."""
    for arm, cells in CELLS.items():
        is_inside = arm in COURSES
        where = "on CPUs" if is_inside else "no"
        assert {name: cells[name] for name in ON_CPUS} == dict.fromkeys(ON_CPUS, where), arm
        assert cells["engine, `Tuner`"] == "yes"
        for name in ("`Trainer`", "`SFTTrainer`", "`padding_free`"):
            assert cells[name] == ("yes" if is_inside else "no"), (arm, name)
        packed = PACKED.get(arm, "yes") if is_inside else "no"
        assert cells["`packing`"] == packed, arm


def test_every_yes_is_what_tests_train() -> None:
    """Those of `padding_free` and `packing` are in test_packed.py, by their own names."""
    here = Path(__file__).parent
    for column, tested in (
        ("DDP", set(trainerprocess.METHODS)),
        ("FSDP2", set(trainerprocess.METHODS)),
        ("4 bits", _named(here / "test_quantised.py", "ARMS = ")),
        ("`padding_free`", _named(here / "test_packed.py", "WITHOUT_PADDING = ")),
        ("`packing`", _named(here / "test_packed.py", "ALL_PACKED = ")),
        ("`SFTTrainer`", _named(here / "test_trl.py", "ARMS = ")),
    ):
        assert {arm for arm in CELLS if _trains(arm, column)} == tested, column


def test_the_page_names_what_tests_allow() -> None:
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    exact, rounded, shared = (
        f"{bound:.0e}".replace("e-0", "e-") for bound in (TOLERANCE, ROUNDING, OF_PROCESSES)
    )
    assert f"{STEPS} steps of each arm in float64, where no weight may differ by {exact} or" in page
    assert f"with its checkpointing, where none may differ by {rounded} or more." in page
    assert f"each arm in float64, where no weight may differ by {shared} or more." in page
    assert f"come to the weights of one, within the same {shared}." in page


class _SFT(MethodTrainerMixin, trl.SFTTrainer):
    """TRL's trainer under a method."""


def _named(path: Path, start: str) -> set[str]:
    """The arms of a tuple of names in a test's file."""
    (line,) = (x for x in path.read_text(encoding="utf-8").splitlines() if x.startswith(start))
    return {word.strip("'\" ,") for word in line.removeprefix(start).strip("()").split(",")} - {""}
