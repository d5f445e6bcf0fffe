from copy import deepcopy
from pathlib import Path

import pytest
import yaml

from schemabank.common.errors import InputError
from schemabank.config.file import load_experiment, run_id
from schemabank.config.presets import PRESETS
from schemabank.suites.suite import load_suite
from tinysuites import GRID, PAPER, write


def test_the_papers_suite_is_its_forty_configurations() -> None:
    suite = load_suite(PAPER / "suite.yaml", ["engine.device=cpu", "model.dtype=float32"])
    apart = {
        (run.arm, run.seed, run.train.num_train_epochs): run
        for path in PAPER.glob("*epochs.yaml")
        for run in load_experiment(path, ["engine.device=cpu", "model.dtype=float32"]).runs()
    }
    found = {(r.arm, r.seed, r.config.train.num_train_epochs): r.config for r in suite.runs}
    assert len(found) == len(suite.runs) == 40
    assert found.keys() == apart.keys()
    for key, config in found.items():
        resolved = {"prompt": config.task.prompt, "metric": config.task.metric}
        task = apart[key].task.model_copy(update=resolved)
        assert config == apart[key].model_copy(update={"task": task})


def test_the_pages_suite_is_what_it_says(tmp_path: Path) -> None:
    page = (PAPER.parents[1] / "docs" / "suites.md").read_text(encoding="utf-8")
    text = page.partition("<!-- suite -->\n```yaml\n")[2].partition("```")[0]
    path = tmp_path / "suite.yaml"
    path.write_text(text, encoding="utf-8")
    arms = [run.arm for run in load_suite(path).runs]
    assert {arm: arms.count(arm) for arm in arms} == {
        "zero-shot": 1,
        "eight-shot": 1,
        "lora": 16,
        "lora, all layers": 16,
        "schemabank": 8,
    }


def test_arms_stand_on_defaults_and_the_grid_on_arms(tmp_path: Path) -> None:
    path = write(
        tmp_path / "suite.yaml",
        defaults={"train": {"batch_size": 8, "learning_rate": 1e-4}},
        arms={
            "plain": {"arm": "lora"},
            "wide": {"arm": "lora", "train": {"batch_size": 16}, "lora": {"r": 32}},
        },
        seeds=[3, 4],
        grid={"train.learning_rate": [1e-3, 2e-3], "curriculum.joint.learning_rate": [5e-4]},
    )
    suite = load_suite(path, ["train.weight_decay=0.5"])
    assert len(suite.runs) == 8
    for run in suite.runs:
        assert run.config.train.batch_size == (16 if run.arm == "wide" else 8)
        assert run.config.lora.r == (32 if run.arm == "wide" else 16)
        assert run.config.train.learning_rate == run.point["train.learning_rate"]
        assert run.config.curriculum[-1].learning_rate == 5e-4
        assert run.config.seed == run.seed
        assert run.config.train.weight_decay == 0.5
    assert [row["run_id"] for row in suite.rows()] == [run_id(r.config) for r in suite.runs]


def test_a_suite_changes_the_one_that_it_extends(tmp_path: Path) -> None:
    """Null leaves out an arm or a setting of the grid that the other has, and nothing else."""
    write(
        tmp_path / "base.yaml",
        arms={"lora": {}, "wide": {"arm": "lora", "lora": {"r": 32}}, "base": {}},
        grid={"train.batch_size": [4, 8], "train.learning_rate": [1e-3, 2e-3]},
        contrast={"treatment": "wide", "control": "lora"},
    )
    own = tmp_path / "own.yaml"
    arms = {"base": None, "wide": {"lora": {"lora_alpha": 64}}}
    text = {"extends": "base.yaml", "arms": arms, "grid": {"train.batch_size": None}, "seeds": [3]}
    own.write_text(yaml.safe_dump(text))
    suite = load_suite(own)
    assert [run.arm for run in suite.runs] == ["lora", "lora", "wide", "wide"]
    assert all(list(run.point) == ["train.learning_rate"] for run in suite.runs)
    assert {(run.config.lora.r, run.config.lora.lora_alpha) for run in suite.runs} == {
        (16, 16),
        (32, 64),
    }
    assert suite.contrast is not None
    own.write_text(yaml.safe_dump({**text, "arms": {"other": None}}))
    with pytest.raises(InputError, match=r"own\.yaml:2: arms\.other is None"):
        load_suite(own)


@pytest.mark.parametrize("section", ["defaults", "grid", "exclude", "contrast", "tune", "seeds"])
def test_null_leaves_out_a_section_of_the_other_suite(section: str, tmp_path: Path) -> None:
    others = {
        "defaults": {"train": {"batch_size": 2}, "eval": {"split": "test"}},
        "grid": {"train.weight_decay": [0.1, 0.2]},
        "exclude": [{"arm": "lora", "seed": 8}],
        "contrast": {"treatment": "schemabank", "control": "lora"},
        "tune": {},
        "seeds": [7, 8],
    }
    if section == "defaults":  # without a split of its own, tune would be refused
        del others["tune"]
    if section == "seeds":  # the exclusion names one
        del others["exclude"]
    write(tmp_path / "base.yaml", **others)
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump({"extends": "base.yaml", section: None}))
    del others[section]
    assert load_suite(own) == load_suite(write(tmp_path / "whole.yaml", **others))


def test_arms_cannot_be_left_out_as_a_whole(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml")
    own = tmp_path / "own.yaml"
    own.write_text("extends: base.yaml\narms: null\n")
    with pytest.raises(InputError, match=r"own\.yaml:2: arms is missing: add it"):
        load_suite(own)


def test_no_run_leaves_a_trace_in_the_preset(tmp_path: Path) -> None:
    before = deepcopy(PRESETS)
    path = write(
        tmp_path / "s.yaml",
        defaults={"preset": "paper"},
        grid={"train.weight_decay": [0.1, 0.2], "curriculum.joint.learning_rate": [1e-3]},
        exclude=[{"arm": "lora"}],
    )
    load_suite(path, ["model.dtype=float32", "eval.limit=3"])
    assert before == PRESETS


def test_what_is_excluded_is_left_out(tmp_path: Path) -> None:
    exclude = [{"arm": "lora", "train.num_train_epochs": 2}, {"seed": 5, "arm": "schemabank"}]
    path = write(tmp_path / "s.yaml", seeds=[4, 5], grid=GRID, exclude=exclude)
    found = {(r.arm, r.seed, r.config.train.num_train_epochs) for r in load_suite(path).runs}
    assert found == {("lora", 4, 1), ("lora", 5, 1), ("schemabank", 4, 1), ("schemabank", 4, 2)}


@pytest.mark.parametrize(("epochs", "allowed"), [(2, True), (2.0, True), (1, False), (3, False)])
def test_a_contrast_rests_on_a_point_that_both_arms_have(
    tmp_path: Path, epochs: float, *, allowed: bool
) -> None:
    setting = {"train.num_train_epochs": epochs}
    contrast = {"treatment": "schemabank", "control": "lora", "setting": setting}
    exclude = [{"arm": "lora", "train.num_train_epochs": 1}]
    path = write(tmp_path / "s.yaml", seeds=[4], grid=GRID, exclude=exclude, contrast=contrast)
    if allowed:
        found = load_suite(path).contrast
        assert found is not None
        assert str(found.setting) == "{'train.num_train_epochs': 2}"  # as the grid writes it
    else:
        with pytest.raises(InputError, match=r"both arms have, \{'train\.num_train_epochs': 2\}"):
            load_suite(path)


def test_a_contrast_with_an_arm_that_trains_nothing_rests_on_any_point(tmp_path: Path) -> None:
    setting = {"train.num_train_epochs": 2}
    contrast = {"treatment": "lora", "control": "base", "setting": setting}
    arms: dict[str, object] = {"base": {}, "lora": {}}
    path = write(tmp_path / "s.yaml", arms=arms, seeds=[4], grid=GRID, contrast=contrast)
    found = load_suite(path).contrast
    assert found is not None
    assert found.setting == setting


def test_a_base_model_is_scored_once_for_each_number_of_shots(tmp_path: Path) -> None:
    arms = {"zero-shot": {"arm": "base"}, "8-shot": {"arm": "base", "eval": {"few_shot": 8}}}
    path = write(tmp_path / "s.yaml", arms={**arms, "lora": {}}, seeds=[1, 2], grid=GRID)
    runs = load_suite(path).runs
    assert [r.arm for r in runs].count("zero-shot") == 1
    assert [r.arm for r in runs].count("8-shot") == 1
    assert [r.arm for r in runs].count("lora") == 4


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        ({"arms": {"lora": {"lora": {"rank": 4}}}}, r"s\.yaml:4: unknown key 'lora\.rank'"),
        ({"arms": {"mine": {}}}, r"s\.yaml:2: arm is 'mine', but input should be 'base', 'lora'"),
        ({"arms": {}}, r"arms is \{\}, but .* at least 1 item"),
        ({"defaults": {"preset": "best"}}, r"s\.yaml:\d+: preset is 'best', allowed are sound, p"),
        ({"grid": {"train.lr": [1]}}, r"s\.yaml:\d+: unknown key 'train\.lr'"),
        ({"grid": {"train.batch_size": [0]}}, r"s\.yaml:\d+: train\.batch_size is 0, but"),
        ({"grid": {"train.batch_size": []}}, r"grid\.train\.batch_size is \[\], but"),
        ({"grid": {"seed": [1]}}, r"grid names 'seed', allowed are other settings: use seeds"),
        ({"grid": {"curriculum.last.ratio": [1]}}, r"has no stage 'last', allowed are router, "),
        ({"exclude": [{"seed": 7}]}, r"\{'seed': 7\} matches no run"),
        ({"exclude": [{"seed": 42}]}, r"s\.yaml:\d+: exclude leaves 0 of 2 runs"),
        ({"contrast": {"treatment": "x", "control": "lora"}}, r"contrast\.treatment is 'x', all"),
        (
            {"contrast": {"treatment": "lora", "control": "lora", "margin": 0}},
            r"contrast\.margin is 0, but .* greater than 0",
        ),
        (
            {"contrast": {"treatment": "lora", "control": "lora", "margin": 101}},
            r"contrast\.margin is 101, but .* less than or equal to 100",
        ),
        (
            {"contrast": {"treatment": "lora", "control": "schemabank", "setting": {"a": 3}}},
            r"s\.yaml:\d+: contrast\.setting is \{'a': 3\}, but the arms have no point of a grid",
        ),
        ({"arms": {"a": {"arm": "lora"}, "b": {"arm": "lora"}}}, r"have the same settings"),
        ({"seeds": [1, 1]}, r"have the same settings"),
        ({"train": {}}, r"s\.yaml:\d+: unknown key 'train', did you mean 'defaults\.train'\?"),
        ({"seed": 1}, r"unknown key 'seed', did you mean 'seeds'\? \(a suite has defaults, arms"),
        ({"runs": 3}, r"s\.yaml:\d+: unknown key 'runs'"),
        ({"tune": {"seeds": [7, 42]}}, r"s\.yaml:5: tune\.seeds names 42, a seed of the suite"),
        ({"tune": {"seeds": []}}, r"tune\.seeds is \[\], but .* at least 1 item"),
        ({"tune": {"seeds": [7, 7]}}, r"s\.yaml:\d+: tune: seeds are 7, 7, allowed are distinct"),
        ({"tune": {"factors": [1, 2, 1]}}, r"tune: factors are 1\.0, 2\.0, 1\.0, allowed are dist"),
        ({"tune": {"factors": [1]}}, r"tune\.factors is \[1\], but .* at least 2 items"),
        ({"tune": {"factors": [0, 1]}}, r"tune\.factors\.0 is 0, but .* greater than 0"),
        ({"tune": {"extend": -1}}, r"tune\.extend is -1, but .* greater than or equal to 0"),
        ({"arms": {"a[b]": 3}}, r"arms\.a\[b\] is 3, but it is a section, allowed are names with"),
        ({"defaults": {"seed": 3}}, r"s\.yaml:\d+: seed has no effect here, .*: use seeds"),
        ({"arms": {"lora": {"seed": 3}}}, r"s\.yaml:\d+: seed has no effect here, .*: use seeds"),
        ({"tune": {"rates": [1]}}, r"unknown key 'tune\.rates'"),
    ],
)
def test_slips_are_named_with_their_line(
    suite: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        load_suite(write(tmp_path / "s.yaml", **suite))


@pytest.mark.parametrize("override", ["seed=7", "arm=lora"])
def test_what_a_place_names_is_not_overridden(override: str, tmp_path: Path) -> None:
    path = write(tmp_path / "suite.yaml")
    with pytest.raises(InputError, match=rf"--set '{override}': a suite says itself which"):
        load_suite(path, [override])


def test_a_search_and_its_final_runs_have_other_items(tmp_path: Path) -> None:
    path = write(tmp_path / "suite.yaml", defaults={"eval": {"split": "validation"}}, tune={})
    with pytest.raises(InputError, match="on which tune chooses the learning rates"):
        load_suite(path)


def test_an_exclusion_with_a_misspelt_name_matches_nothing(tmp_path: Path) -> None:
    grid = {"lora.layers_to_transform": [None, [0]]}
    exclude = [{"arm": "lora", "lora.layers_to_transfrom": None}]
    path = write(tmp_path / "suite.yaml", grid=grid, exclude=exclude)
    with pytest.raises(InputError, match="matches no run"):
        load_suite(path)
