from schemabank.config.file import run_id
from schemabank.config.naming import dotted, dotted_settings, titles_of
from schemabank.config.settings import LoraSettings, RunConfig, TrainSettings


def lora(seed: int, rate: float, r: int = 16) -> RunConfig:
    return RunConfig(
        arm="lora", seed=seed, train=TrainSettings(learning_rate=rate), lora=LoraSettings(r=r)
    )


def test_settings_have_dotted_names_and_stages_their_own() -> None:
    settings = dotted_settings(RunConfig(arm="schemabank", seed=3))
    assert settings["curriculum.joint.learning_rate_ratio"] == 0.5
    assert settings["train.learning_rate"] == 1e-3
    assert settings["seed"] == 3
    assert not any(name.startswith("engine.") for name in settings)
    assert not any(name.startswith("bank.") for name in dotted_settings(lora(1, 1e-3)))


def test_nested_settings_have_dotted_names_whoever_wrote_them() -> None:
    stages = [{"name": "warm", "ratio": 0.5}, {"name": "joint", "train": ["lora"]}]
    written = {"train": {"max_steps": 3}, "curriculum": stages, "lora": {"target_modules": ["q"]}}
    assert dotted(written) == {
        "train.max_steps": 3,
        "curriculum.warm.ratio": 0.5,
        "curriculum.joint.train": ["lora"],
        "lora.target_modules": ["q"],
    }
    assert dotted({"curriculum": tuple(stages)}) == dotted({"curriculum": stages})
    assert stages[0]["name"] == "warm", "what was written is left as it was"
    assert dotted({"curriculum": "paper"}) == {"curriculum": "paper"}


def test_a_title_tells_what_varies_within_an_arm() -> None:
    runs = [lora(1, 1e-3), lora(2, 1e-3), lora(1, 2e-3), RunConfig(arm="schemabank", seed=1)]
    titles = titles_of(runs)
    assert list(titles) == [run_id(run) for run in runs]
    assert list(titles.values()) == [
        "lora seed 1, learning_rate=0.001",
        "lora seed 2, learning_rate=0.001",
        "lora seed 1, learning_rate=0.002",
        "schemabank seed 1",
    ]


def test_settings_whose_last_names_agree_are_named_in_full_and_many_are_counted() -> None:
    changed = RunConfig(
        arm="schemabank",
        seed=1,
        lora=LoraSettings(r=8),
        curriculum=tuple(
            stage.model_copy(update={"learning_rate_ratio": 0.5, "warmup_ratio": 0.0})
            for stage in RunConfig(arm="schemabank").curriculum
        ),
    )
    (title, _) = titles_of([changed, RunConfig(arm="schemabank", seed=1)]).values()
    assert title.startswith("schemabank seed 1, r=8, curriculum.router.learning_rate_ratio=0.5, ")
    assert title.endswith(", 2 more")
