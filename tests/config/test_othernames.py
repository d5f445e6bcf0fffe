import dataclasses
from pathlib import Path

import peft
import pytest
import transformers

from schemabank.common.errors import InputError
from schemabank.config import othernames
from schemabank.config.file import load_experiment
from schemabank.config.places import setting_names
from schemabank.config.settings import ExperimentConfig
from schemabank.config.train import StageSettings

DOCS = Path(__file__).parents[2] / "docs"
OURS = set(setting_names(ExperimentConfig))
OF_TRANSFORMERS = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
OF_PEFT = {field.name for field in dataclasses.fields(peft.LoraConfig)}
# Of these we have no counterpart; all others should be hinted at, or be names of ours.
HAVE_A_COUNTERPART = {
    *("per_device_train_batch_size", "per_device_eval_batch_size", "num_train_epochs", "max_steps"),
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "optim", "weight_decay", "adam_beta1"),
    *("adam_beta2", "adam_epsilon", "gradient_accumulation_steps", "max_grad_norm", "bf16", "fp16"),
    *("report_to", "project", "seed", "use_cpu", "hub_token", "resume_from_checkpoint"),
    *("output_dir", "train_sampling_strategy", "metric_for_best_model"),
    *("base_model_name_or_path", "revision", "r", "target_modules", "lora_alpha", "lora_dropout"),
    *("use_rslora", "layers_to_transform", "use_dora", "modules_to_save", "rank_pattern"),
    *("alpha_pattern", "bias", "lora_bias", "exclude_modules", "init_lora_weights"),
    *("target_parameters", "trainable_token_indices", "layer_replication", "data_seed"),
    *("push_to_hub", "hub_model_id", "neftune_noise_alpha", "use_liger_kernel", "fsdp"),
    *("gradient_checkpointing", "deepspeed"),
}


def hint(tmp_path: Path, text: str, *overrides: str) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(f"arm: schemabank\n{text}", encoding="utf-8")
    with pytest.raises(InputError) as refusal:
        load_experiment(path, overrides)
    return str(refusal.value)


def test_every_counterpart_is_a_setting_and_no_other_name_is_one() -> None:
    assert set(othernames.SETTINGS.values()) <= OURS
    ours = {name.rpartition(".")[2] for name in OURS} | set(StageSettings.model_fields)
    assert set(othernames.SETTINGS) & (OURS | ours) == {"rank", "data_seed"}, (
        "LoRA's rank is meant, not bank.rank, and the order of the data, not a generated task's"
    )
    assert set(othernames.NO_SETTINGS) & (ours | set(othernames.SETTINGS)) == set()
    assert set(othernames.NOTES) <= set(othernames.SETTINGS)


def test_the_names_of_transformers_and_peft_are_known() -> None:
    known = {name.rpartition(".")[2] for name in OURS} | set(othernames.SETTINGS)
    known |= set(othernames.NO_SETTINGS)
    assert known >= HAVE_A_COUNTERPART
    later = {"output_dir", "warmup_steps"}  # some versions of the libraries lack a few
    assert HAVE_A_COUNTERPART - later <= OF_TRANSFORMERS | OF_PEFT


@pytest.mark.parametrize(("other", "setting"), othernames.SETTINGS.items())
def test_a_name_from_elsewhere_is_hinted_at(other: str, setting: str, tmp_path: Path) -> None:
    assert f"unknown key {other!r}, did you mean {setting!r}?" in hint(tmp_path, "", f"{other}=1")


@pytest.mark.parametrize(
    ("key", "setting"),
    [
        ("lora.rank", "lora.r"),
        ("lora.alpha", "lora.lora_alpha"),
        ("lora.dropout", "lora.lora_dropout"),
        ("lora.targets", "lora.target_modules"),
        ("lora.target", "lora.target_modules"),
        ("lora.layers", "lora.layers_to_transform"),
        ("bank.r", "bank.rank"),
        ("train.lr", "train.learning_rate"),
        ("train.epochs", "train.num_train_epochs"),
        ("train.per_device_train_batch_size", "train.batch_size"),
        ("train.Gradient-Clipping", "train.max_grad_norm"),
        ("train.rank", "lora.r"),
        ("eval.max_length", "eval.max_new_tokens"),
        ("train.data_seed", "seed"),
        ("task.data_seed", "task.gsm_symbolic.data_seed"),
        ("model.sequence_len", "task.max_length"),
        ("training.lr", "train"),
        ("peft.r", "lora"),
    ],
)
def test_hints_know_the_section(key: str, setting: str, tmp_path: Path) -> None:
    assert f"did you mean {setting!r}?" in hint(tmp_path, "", f"{key}=1")
    section, _, name = key.partition(".")
    in_file = hint(tmp_path, f"{section}:\n  {name}: 1\n")
    assert f"did you mean {setting!r}?" in in_file
    line = "2" if setting in {"train", "lora"} else "3"
    assert in_file.split(":")[1] == line


def test_a_stage_has_hints_of_its_own(tmp_path: Path) -> None:
    found = hint(tmp_path, "", "curriculum.joint.lr=1")
    assert (
        "unknown key 'curriculum.joint.lr', did you mean 'curriculum.joint.learning_rate'?" in found
    )


def test_another_unit_and_what_is_no_setting_are_said(tmp_path: Path) -> None:
    found = hint(tmp_path, "", "train.warmup_steps=10")
    assert "did you mean 'train.warmup_ratio'? (it is a share of the steps; allowed are" in found
    found = hint(tmp_path, "output_dir: runs\n")
    assert found.startswith(
        f"{tmp_path}/run.yaml:2: unknown key 'output_dir': --out on the command"
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "use_dora: true",
            "adapters here are plain LoRA, which all loaders know: leave it out",
        ),
        ("modules_to_save: [lm_head]", "only the A and B of linear layers train here"),
        ("rank_pattern: {q_proj: 4}", "hold for all layers of a run: name fewer layers in"),
        (
            "bias: all",
            "biases stay as the base model has them: leave it out, or train it",
        ),
        ("exclude_modules: [q_proj]", "a regular expression: leave others out there"),
    ],
)
def test_what_lora_is_not_here_is_said_with_what_to_do(
    given: str, said: str, tmp_path: Path
) -> None:
    key = given.partition(":")[0]
    found = hint(tmp_path, f"lora:\n  {given}\n")
    assert found.startswith(f"{tmp_path}/run.yaml:3: unknown key 'lora.{key}': ")
    assert said in found


@pytest.mark.parametrize(
    ("key", "said", "heading"),
    [
        ("packing", "on packed rows schemabank.trainer trains a method", "## Packed rows"),
        ("padding_free", "hold examples of similar length", "`padding_free`"),
        ("gradient_checkpointing", "with checkpointing schemabank.trainer", "checkpointing change"),
        ("fsdp", "by DDP or FSDP2, schemabank.trainer trains", "FSDP2 splits a large base model"),
        (
            "load_in_4bit",
            "in 4 bits of bitsandbytes schemabank.trainer",
            "## Base models in 4 bits",
        ),
        ("model.quantization", "float32 or bfloat16, as model.dtype says: leave it", "in 4 bits"),
        ("neftune_noise_alpha", "no noise to embeddings: leave it out; with it schema", "NEFTune"),
    ],
)
def test_what_trainers_have_is_said_and_their_page_says_so_too(
    key: str, said: str, heading: str, tmp_path: Path
) -> None:
    found = hint(tmp_path, "", f"{key}=1")
    assert said in found
    assert "inside transformers' Trainer or TRL's SFTTrainer" in found
    assert heading in (DOCS / "trainer.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("train.use_liger_kernel", "fused kernels of its own on a GPU: leave it out"),
        ("model.attn_implementation", "chooses the attention by model and device: leave it"),
        ("flash_attention", "chooses the attention by model and device: leave it"),
        ("model.trust_remote_code", "no code of a model's repository is run"),
        ("task.dataset_text_field", "task.prompt and task.records.target are templates over"),
        ("push_to_hub", "nothing is ever uploaded: publish a run's folder adapter with `hf upload"),
        ("hub_model_id", "as docs/howto/hub.md shows"),
        ("val_set_size", "'task.records.validation_ratio'? (it is a share of the rows;"),
        ("lora.lora_target_linear", "'lora.target_modules'? (its value is all-linear then;"),
    ],
)
def test_names_of_trl_and_axolotl_lead_to_what_is_here(key: str, said: str, tmp_path: Path) -> None:
    assert said in hint(tmp_path, "", f"{key}=1")


def test_the_page_that_a_hint_names_is_there() -> None:
    assert "hf upload" in (DOCS / "howto" / "hub.md").read_text(encoding="utf-8")
