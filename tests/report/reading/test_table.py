from fractions import Fraction
from pathlib import Path

import pytest

from schemabank.common.errors import InputError
from schemabank.report.reading.table import ScoreTable, choose_arms, read_scores

HEAD = "arm,epochs,seed,score,n_items\n"


def read(tmp_path: Path, text: str) -> ScoreTable:
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    return read_scores(path)


def refused(tmp_path: Path, text: str) -> str:
    with pytest.raises(InputError) as error:
        read(tmp_path, text)
    assert ": " in str(error.value)
    return str(error.value)


def test_rows_are_read_exactly(tmp_path: Path) -> None:
    table = read(tmp_path, "\ufeff" + HEAD + ' lora ,2,42,0.028,500\n\n"a,b",,,2.5e-2,\n')
    run, reference = table.rows
    assert (run.arm, run.setting, run.seed, run.exact) == ("lora", "2", "42", Fraction(28, 1000))
    assert (run.decimals, run.num_items, run.num_correct, run.line) == (3, 500, 14, 2)
    assert (reference.arm, reference.seed, reference.num_items) == ("a,b", None, None)
    assert (reference.exact, reference.decimals) == (Fraction(1, 40), 3)
    assert reference.num_correct is None
    assert table.references == [reference]
    assert table.arms == ["lora"]


def test_columns_in_any_order_and_without_items(tmp_path: Path) -> None:
    (row,) = read(tmp_path, "score,seed,arm,epochs\n1,7,lora,\n").rows
    assert (row.exact, row.seed, row.arm, row.setting, row.num_items) == (1, "7", "lora", "", None)


def test_epochs_and_seeds_come_in_order_of_value(tmp_path: Path) -> None:
    lines = [f"lora,{e},{s},0.{e}\n" for e in (10, 2) for s in (100, 20)]
    table = read(tmp_path, "arm,epochs,seed,score\n" + "".join(lines))
    assert table.settings("lora") == ["2", "10"]
    assert list(table.scores("lora", "2")) == ["20", "100"]
    named = [f"lora,{e},1,0.5\n" for e in ("long", "short", "inf")]
    found = read(tmp_path, "arm,epochs,seed,score\n" + "".join(named))
    assert found.settings("lora") == ["long", "short", "inf"]


def test_means_are_of_seeds_that_have_every_setting(tmp_path: Path) -> None:
    rows = "a,1,1,0.1\na,2,1,0.2\na,1,2,0.3\n"
    table = read(tmp_path, "arm,epochs,seed,score\n" + rows)
    assert table.means("a", ["1", "2"]) == {"1": Fraction(3, 20)}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("lora,2,1,2.8%,500", "score '2.8%' is no share"),
        ("lora,2,1,2.8,500", "score 2.8 is above 1"),
        ("lora,2,1,,500", "score '' is no share"),
        ("lora,2,1,.,500", "score '.' is no share"),
        ("lora,2,1,nan,500", "score 'nan' is no share"),
        ("lora,2,1,-0.1,500", "score '-0.1' is no share"),
        ("lora,2,1,1_0,500", "score '1_0' is no share"),
        ("lora,2,1,٠.1,500", "is no share"),
        ("lora,2,1,1e-999999999,500", "is no share"),
        (f"lora,2,1,0.{'1' * 50},500", "is no share"),
        ("lora,2,1,0.1,0", "n_items '0' is no number of items"),
        ("lora,2,1,0.1,5.5", "n_items '5.5' is no number of items"),
        ("lora,2,1,0.1,²", "n_items '²' is no number of items"),
        (f"lora,2,1,0.1,{'9' * 5000}", "is no number of items"),
        (",2,1,0.1,500", "arm is empty"),
        ("lora,2,1,0.1", "4 cells for 5 columns"),
        ("lo\x1b[31mra,2,1,0.1,500", "cannot be printed"),
        ('"lora,2,1,0.1,500', "is no CSV"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, row: str, words: str) -> None:
    message = refused(tmp_path, HEAD + row + "\n")
    assert words in message
    assert "t.csv line 2" in message


NA = ["NA", "NaN", "nan", "N/A", "n/a", "#N/A", "<NA>", "null", "NULL", "None", "nil", "missing"]


@pytest.mark.parametrize("na", NA)
def test_a_cell_that_says_it_holds_nothing_is_empty(tmp_path: Path, na: str) -> None:
    rows = f"lora,2,1,0.1,500\nlora,4,1,0.1,{na}\nsix,{na},{na},0.036,{na}\n"
    run, without_items, reference = read(tmp_path, HEAD + rows).rows
    assert (run.num_items, without_items.num_items) == (500, None)
    assert (reference.setting, reference.seed, reference.num_items) == ("", None, None)
    assert read(tmp_path, HEAD + f"lora,{na},1,0.1,500\n").setting_name == ""
    assert f"score {na!r} is no share" in refused(tmp_path, HEAD + f"lora,2,1,{na},500\n")
    message = refused(tmp_path, HEAD + f"lora,2,1,0.1,500\nlora,2,{na},0.2,500\n")
    assert "a row without one is a reference" in message


@pytest.mark.parametrize("na", ["NA", "NaN", "null"])
def test_an_arm_has_a_name(tmp_path: Path, na: str) -> None:
    message = refused(tmp_path, HEAD + f"{na},2,1,0.1,500\n")
    assert f"line 2: arm is {na!r}, which names no arm: name what was trained" in message


def test_an_arm_may_be_called_none(tmp_path: Path) -> None:
    assert read(tmp_path, HEAD + "none,2,1,0.1,500\n").arms == ["none"]


def test_a_run_is_one_row(tmp_path: Path) -> None:
    message = refused(tmp_path, HEAD + "lora,2,1,0.1,500\nlora,2,1,0.2,500\n")
    assert message.startswith("t.csv line 3: arm 'lora', epochs '2', seed '1' stands on line 2")
    assert "line 2" in refused(tmp_path, HEAD + "six,,,0.1,500\nsix,,,0.1,500\n")


def test_an_arm_is_no_reference(tmp_path: Path) -> None:
    message = refused(tmp_path, HEAD + "lora,2,1,0.1,500\nlora,2,,0.2,500\n")
    assert "t.csv line 3" in message
    assert "a row without one is a reference" in message


@pytest.mark.parametrize("head", ["arm,epochs,seed", "arm,epochs,seed,score,lr", "a", "arm,arm"])
def test_wrong_columns_are_named(tmp_path: Path, head: str) -> None:
    assert "allowed is arm,epochs,seed,score[,n_items]" in refused(tmp_path, head + "\n")


def test_a_file_that_is_none(tmp_path: Path) -> None:
    assert "is empty" in refused(tmp_path, "\n")
    with pytest.raises(InputError, match="cannot read"):
        read_scores(tmp_path / "missing.csv")
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="name a CSV in UTF-8"):
        read_scores(tmp_path / "t.csv")


def arms(tmp_path: Path, *names: str) -> ScoreTable:
    return read(tmp_path, HEAD + "".join(f"{name},2,1,0.1,10\n" for name in names))


@pytest.mark.parametrize("control", ["lora", "baseline", "base", "control", "LoRA"])
@pytest.mark.parametrize("first", [True, False])
def test_of_two_arms_the_control_is_known_by_name(
    tmp_path: Path, control: str, first: bool
) -> None:
    names = (control, "new") if first else ("new", control)
    assert choose_arms(arms(tmp_path, *names), None, None) == ("new", control)


def test_arms_as_asked(tmp_path: Path) -> None:
    table = arms(tmp_path, "x", "y", "z")
    assert choose_arms(table, "z", "x") == ("z", "x")
    two = arms(tmp_path, "x", "y")
    assert choose_arms(two, "x", None) == ("x", "y")
    assert choose_arms(two, None, "x") == ("y", "x")


def test_arms_that_are_not_clear(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has the arms x, y, so treatment and control are not"):
        choose_arms(arms(tmp_path, "x", "y"), None, None)
    with pytest.raises(InputError, match="has the arms base, lora, so"):
        choose_arms(arms(tmp_path, "base", "lora"), None, None)
    with pytest.raises(InputError, match="has the arms x, y, lora"):
        choose_arms(arms(tmp_path, "x", "y", "lora"), None, "lora")
    with pytest.raises(InputError, match="has the arms lora, so"):
        choose_arms(arms(tmp_path, "lora"), None, None)
    with pytest.raises(InputError, match="has the arms none with a seed"):
        choose_arms(read(tmp_path, HEAD + "six,,,0.1,\n"), None, None)
    with pytest.raises(InputError, match=r"arm 'w' has no runs in t\.csv: name one of x, y"):
        choose_arms(arms(tmp_path, "x", "y"), "w", None)
    with pytest.raises(InputError, match="is treatment and control"):
        choose_arms(arms(tmp_path, "x", "y"), "x", "x")
    apart = read(tmp_path, HEAD + "x,1,1,0.1,\nlora,2,1,0.1,\n")
    with pytest.raises(InputError, match="no setting of epochs in common"):
        choose_arms(apart, None, None)
