"""A file's settings lie on top of those of the file that it extends, and errors say in which."""

from pathlib import Path

import pytest

from schemabank.common.errors import InputError
from schemabank.config.file import load_experiment, load_run

BASE = """\
arm: lora
train:
  learning_rate: 1e-3
  batch_size: 8
lora:
  target_modules: [q_proj, v_proj]
"""


def write(folder: Path, **texts: str) -> Path:
    """Write files, and return the last one's path."""
    for name, text in texts.items():
        path = folder / f"{name}.yaml"
        path.write_text(text)
    return path


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_experiment(path)
    return str(caught.value)


def test_sections_are_put_into_sections_and_all_else_replaces(tmp_path: Path) -> None:
    own = "extends: base.yaml\ntrain: {learning_rate: 2e-3}\nlora: {target_modules: [o_proj]}\n"
    found = load_experiment(write(tmp_path, base=BASE, own=own))
    assert found.arm == "lora"
    assert (found.train.learning_rate, found.train.batch_size) == (2e-3, 8)
    assert found.lora.target_modules == ("o_proj",)


def test_what_was_said_on_the_command_line_comes_last(tmp_path: Path) -> None:
    path = write(tmp_path, base=BASE, own="extends: base.yaml\n")
    assert load_experiment(path, ["train.batch_size=2"]).train.batch_size == 2


def test_a_file_that_is_extended_may_extend_another(tmp_path: Path) -> None:
    """Names are relative to the folder of the file that has them."""
    (tmp_path / "deep").mkdir()
    write(tmp_path, base=BASE)
    write(tmp_path / "deep", middle="extends: ../base.yaml\nseed: 7\n")
    found = load_experiment(write(tmp_path, own="extends: deep/middle.yaml\narm: base\n"))
    assert (found.seed, found.arm, found.train.batch_size) == (7, "base", 8)


def test_the_same_run_has_the_same_id(tmp_path: Path) -> None:
    whole = load_experiment(write(tmp_path, whole=BASE))
    assert load_experiment(write(tmp_path, base=BASE, own="extends: base.yaml\n")) == whole


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("extends: other.yaml\n", "own.yaml:1: extends is 'other.yaml', but there is no file"),
        ("extends: [base.yaml]\n", "own.yaml:1: extends is ['base.yaml'], allowed is the name"),
        ('extends: "a\\0b"\n', "which cannot be read (embedded null byte): name a file"),
        (f"extends: {'x' * 300}\n", "which cannot be read ([Errno 36] File name too long"),
        ("extends: circle.yaml\n", "extends is 'circle.yaml', which cannot be read (Symlink loop"),
        ("arm: lora\nextend: base.yaml\n", "unknown key 'extend': a file names another one with"),
        ("arm: lora\ntrain.batch_size: 8\n", "in a file write train: {batch_size: ...}"),
        ("extends: own.yaml\n", "own.yaml:1: extends is 'own.yaml', which extends this file"),
        ("extends: loop.yaml\n", "loop.yaml:1: extends is 'own.yaml', which extends this file"),
        ("extends: base.yaml\ntrain: {lr: 1}\n", "own.yaml:2: unknown key 'train.lr'"),
        ("extends: wrong.yaml\n", "wrong.yaml:1: train.batch_size is -1"),
        ("extends: wrong.yaml\ntrain: 3\n", "own.yaml:2: train is 3"),
        ("extends: list.yaml\n", "list.yaml holds a list"),
        ("extends: list.yaml\nextends: base.yaml\n", "own.yaml:2: extends is already in line 1"),
    ],
)
def test_errors_say_in_which_file(tmp_path: Path, own: str, expected: str) -> None:
    others = {
        "base": BASE,
        "loop": "extends: own.yaml\n",
        "wrong": "train: {batch_size: -1}\narm: lora\n",
        "list": "- lora\n",
    }
    (tmp_path / "circle.yaml").symlink_to("circle.yaml")
    assert expected in refused(write(tmp_path, **others, own=own))


def test_a_line_of_the_other_file_is_not_named_for_what_this_one_replaces(tmp_path: Path) -> None:
    own = "extends: base.yaml\nlora:\n  target_modules: [q_proj, 3]\n"
    assert "own.yaml:3: lora.target_modules.1 is 3" in refused(write(tmp_path, base=BASE, own=own))


def test_a_saved_run_extends_nothing(tmp_path: Path) -> None:
    """Its folder may come from anybody."""
    path = write(tmp_path, base=BASE, config="extends: base.yaml\narm: lora\n")
    with pytest.raises(InputError, match=r"config\.yaml:1: unknown key 'extends'"):
        load_run(path)
