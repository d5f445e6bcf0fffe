"""What other tools call our settings: names that people bring, each with its counterpart here.

They come from transformers' TrainingArguments, PEFT's LoraConfig, TRL's SFTConfig, axolotl and
common usage. A name of ours is none of these, unless it stands behind a section where we have no
such setting. A unit that differs is said in `NOTES`.
"""

from collections.abc import Mapping

# By the setting that is meant.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "arm": ("method", "methods"),
    "model": ("model_config", "model_args"),
    "model.name": (
        *("model_name", "model_name_or_path", "base_model", "base_model_name_or_path"),
        *("pretrained_model_name_or_path", "model_id", "model_path", "name_or_path"),
    ),
    "model.revision": ("model_revision",),
    "model.dtype": ("torch_dtype", "bf16", "fp16", "precision", "mixed_precision"),
    "task.max_length": (
        *("max_seq_length", "max_seq_len", "model_max_length", "seq_length", "cutoff_len"),
        *("max_source_length", "sequence_length", "sequence_len", "block_size"),
    ),
    "task.completion_only_loss": ("train_on_inputs", "assistant_only_loss", "mask_prompt"),
    "task.end_token": ("eos_token", "add_eos_token", "append_eos"),
    "task.prompt": ("prompt_template", "instruction_template", "template"),
    "task.chat_template": ("apply_chat_template", "chat_template_path"),
    "task.train_limit": ("max_train_samples", "max_samples", "num_train_samples"),
    "task.metric": ("metrics", "compute_metrics"),
    "task.stop": ("stop_sequences", "stop_words", "stop_strings", "until"),
    "task.records.path": (
        *("data", "dataset", "datasets", "dataset_name", "dataset_path", "data_path", "data_files"),
        *("train_file", "train_data"),
    ),
    "task.records.config": ("dataset_config", "dataset_config_name"),
    "task.records.train_split": ("dataset_train_split",),
    "task.records.validation_split": ("dataset_validation_split", "eval_split"),
    "task.records.test_split": ("dataset_test_split",),
    "task.records.validation_ratio": ("val_set_size", "val_size"),
    "task.records.target": ("completion_field",),
    # In a section of its own it means a generated task's, elsewhere the order of the data.
    "task.gsm_symbolic.data_seed": ("task.data_seed",),
    "lora": ("peft", "peft_config", "lora_config", "adapter"),
    "lora.r": ("rank", "lora_r", "lora_rank", "lora_dim", "train.r", "train.rank"),
    "lora.lora_alpha": ("alpha", "scaling", "scale"),
    "lora.lora_dropout": ("dropout", "dropout_p"),
    "lora.target_modules": (
        *("targets", "lora_target_modules", "lora_targets", "lora_modules", "modules"),
        *("lora.target", "lora_target", "lora.layers_pattern", "target_layers"),
        "lora_target_linear",
    ),
    "lora.layers_to_transform": ("lora.layers", "lora_layers", "lora.blocks"),
    "lora.use_rslora": ("rslora", "rs_lora", "rank_stabilized"),
    "bank.rank": ("bank.r", "schema_rank"),
    "bank.top_k": ("bank.k", "num_experts_per_tok"),
    "bank.load_balance_weight": ("router_aux_loss_coef", "aux_loss_weight"),
    "bank.last_n": ("bank.last_n_layers", "num_layers"),
    "train": (
        *("training", "trainer", "training_args", "training_arguments", "sft", "sft_config"),
    ),
    "train.num_train_epochs": (
        *("epochs", "num_epochs", "n_epochs", "max_epochs", "nepochs", "epoch"),
    ),
    "train.max_steps": (
        *("steps", "num_steps", "max_train_steps", "num_train_steps", "num_training_steps"),
        *("max_iters", "total_steps"),
    ),
    "train.batch_size": (
        *("per_device_train_batch_size", "per_gpu_train_batch_size", "train_batch_size"),
        *("micro_batch_size", "batchsize", "bs", "gradient_accumulation_steps"),
    ),
    "train.max_buckets": ("group_by_length", "train_sampling_strategy"),
    "train.optimizer": ("optim", "optimizer_type", "optimizer_name"),
    "train.learning_rate": ("lr", "max_lr", "peak_lr", "base_lr", "lora_lr"),
    "train.loraplus_lr_ratio": ("lora_plus_lr_ratio", "lr_ratio"),
    "train.lr_scheduler_type": (
        *("lr_scheduler", "scheduler", "scheduler_type", "lr_schedule", "schedule", "lr_decay"),
        *("lr_decay_style", "schedule_type"),
    ),
    "train.warmup_ratio": (
        *("warmup_steps", "num_warmup_steps", "warmup", "lr_warmup_steps", "warmup_proportion"),
        *("lr_warmup_ratio", "warmup_iters"),
    ),
    "train.weight_decay": ("wd", "adam_weight_decay", "l2"),
    "train.adam_beta1": ("beta1", "adam_betas", "betas", "momentum"),
    "train.adam_beta2": ("beta2",),
    "train.adam_epsilon": ("eps", "epsilon", "adam_eps"),
    "train.max_grad_norm": (
        *("grad_clip", "gradient_clipping", "clip_grad", "clip_grad_norm", "max_norm"),
        *("gradient_clip_val", "grad_norm_clip", "max_gradient_norm"),
    ),
    "average.decay": ("ema_decay",),
    "eval": ("evaluation", "generation", "generation_config"),
    "eval.limit": ("max_eval_samples", "num_eval_samples", "eval_limit"),
    "eval.batch_size": (
        *("per_device_eval_batch_size", "per_gpu_eval_batch_size", "eval_batch_size"),
    ),
    "eval.max_new_tokens": (
        *("max_tokens", "max_completion_length", "max_gen_toks", "max_output_tokens"),
        *("eval.max_length", "generation_max_length"),
    ),
    "eval.num_samples": ("num_return_sequences", "num_generations", "n_samples", "repeats"),
    "eval.temperature": ("do_sample",),
    "eval.few_shot": ("num_fewshot", "fewshot", "n_shot", "num_shots", "shots"),
    "engine.device": ("use_cpu", "no_cuda", "device_map"),
    "engine.checkpoint_steps": ("save_steps", "checkpoint_every", "checkpointing_steps"),
    "engine.trackers": ("report_to", "tracker", "log_with", "logger", "use_wandb"),
    "engine.tracker_project": ("project", "wandb_project", "project_name"),
    "seed": ("random_seed", "random_state", "data_seed"),
}

SETTINGS: Mapping[str, str] = {
    other: setting for setting, others in _NAMES.items() for other in others
}

# What to know where the counterpart's values differ in meaning, by the other name.
NOTES: Mapping[str, str] = {
    **dict.fromkeys(("bf16", "fp16"), "its values are auto, float32 and bfloat16"),
    "train_on_inputs": "it is false for a loss on the prompt too",
    "gradient_accumulation_steps": "it counts all examples of an update",
    "group_by_length": "batches always hold examples of similar length, it says of how many",
    "do_sample": "at 0 the most likely token is taken",
    "lora_target_linear": "its value is all-linear then",
    **dict.fromkeys(("val_set_size", "val_size"), "it is a share of the rows"),
    "data_files": "task.name is records then",
    "data": "task.name is records then",
    "dataset": "task.name is records then",
    "dataset_name": "task.name is records then",
    "use_wandb": "it is a list, such as [wandb]",
    "adam_betas": "the second one is train.adam_beta2",
    "betas": "the second one is train.adam_beta2",
    **dict.fromkeys(
        ("warmup_steps", "num_warmup_steps", "lr_warmup_steps", "warmup_iters"),
        "it is a share of the steps",
    ),
}

IN_TRAINERS = "schemabank.trainer trains a method inside transformers' Trainer or TRL's SFTTrainer"
# Names of what is no setting here, and where it is instead.
NO_SETTINGS: Mapping[str, str] = {
    **dict.fromkeys(
        ("output_dir", "out_dir", "save_dir", "logging_dir"),
        "--out on the command line names the folder of the runs",
    ),
    "overwrite_output_dir": "nothing is ever overwritten, and --out names another folder",
    **dict.fromkeys(
        ("resume_from_checkpoint", "resume"),
        "the same command reuses runs that are finished, and goes on with the others",
    ),
    **dict.fromkeys(
        ("arms", "defaults", "grid", "tune", "contrast", "exclude"),
        "suites have it, which the command suite takes",
    ),
    **dict.fromkeys(
        ("extends", "extend", "include", "_base_", "inherits"),
        "a file names another one with extends, at its top",
    ),
    **dict.fromkeys(
        (
            *("load_in_4bit", "load_in_8bit", "quantization_config", "bnb_4bit_compute_dtype"),
            *("quantization", "quantization_bit"),
        ),
        "the engine trains on weights in float32 or bfloat16, as model.dtype says: leave it out; "
        f"on weights in 4 bits of bitsandbytes {IN_TRAINERS}",
    ),
    **dict.fromkeys(
        ("gradient_checkpointing", "use_gradient_checkpointing"),
        f"the engine keeps what a step needs: leave it out; with checkpointing {IN_TRAINERS}",
    ),
    **dict.fromkeys(
        ("packing", "padding_free", "sample_packing"),
        "batches of the engine hold examples of similar length: leave it out; on packed rows "
        f"{IN_TRAINERS}",
    ),
    **dict.fromkeys(
        ("fsdp", "fsdp_config", "deepspeed"),
        "the engine trains a run on one device: leave it out; in several processes, by DDP or "
        f"FSDP2, {IN_TRAINERS}",
    ),
    "neftune_noise_alpha": (
        f"the engine adds no noise to embeddings: leave it out; with it {IN_TRAINERS}"
    ),
    "dataloader_num_workers": "there is nothing like it here, leave it out",
    "use_liger_kernel": "the engine has fused kernels of its own on a GPU: leave it out",
    **dict.fromkeys(
        ("attn_implementation", "flash_attention", "flash_attn", "sdp_attention"),
        "the engine chooses the attention by model and device: leave it out",
    ),
    "trust_remote_code": (
        "no code of a model's repository is run: leave it out, or name a model that transformers "
        "knows itself"
    ),
    **dict.fromkeys(
        ("dataset_text_field", "text_field"),
        "texts are trained on as a prompt and its completion: task.prompt and task.records.target "
        "are templates over the columns",
    ),
    **dict.fromkeys(
        ("push_to_hub", "hub_model_id"),
        "nothing is ever uploaded: publish a run's folder adapter with `hf upload`, as "
        "docs/howto/hub.md shows",
    ),
    **dict.fromkeys(
        ("save_strategy", "save_total_limit", "eval_strategy", "eval_on_start"),
        "a run is evaluated and saved at its end",
    ),
    **dict.fromkeys(
        (
            *("eval_steps", "evaluation_strategy", "load_best_model_at_end"),
            *("early_stopping_patience", "metric_for_best_model", "greater_is_better"),
        ),
        "a run is measured at its end; in Python, schemabank.ValidationSettings measures it more "
        "often, and the lowest validation loss is the best",
    ),
    **dict.fromkeys(
        ("logging_steps", "logging_strategy", "logging_first_step"),
        "metrics.jsonl has a row for every step",
    ),
    **dict.fromkeys(
        ("use_dora", "dora", "use_qalora", "qalora_group_size", "alora_invocation_tokens"),
        "adapters here are plain LoRA, which all loaders know: leave it out, or train it with PEFT",
    ),
    **dict.fromkeys(
        ("modules_to_save", "trainable_token_indices", "target_parameters", "layer_replication"),
        "only the A and B of linear layers train here, so that the adapter stays small and merges: "
        "leave it out, or train it with PEFT",
    ),
    **dict.fromkeys(
        ("bias", "lora_bias"),
        "biases stay as the base model has them: leave it out, or train it with PEFT",
    ),
    **dict.fromkeys(
        ("rank_pattern", "alpha_pattern"),
        "lora.r and lora.lora_alpha hold for all layers of a run: name fewer layers in "
        "lora.target_modules, or list ranks as runs of a suite",
    ),
    "exclude_modules": (
        "lora.target_modules names the layers that get an adapter, by names, whole paths or a "
        "regular expression: leave others out there"
    ),
    "init_lora_weights": (
        "A is drawn and B is zero, as in PEFT's default, and base weights stay as they are: leave "
        "it out"
    ),
    **dict.fromkeys(
        ("task_type", "peft_type", "inference_mode"),
        "it is the same for all adapters here, leave it out",
    ),
    "hub_token": "the environment variable HF_TOKEN holds it",
}
