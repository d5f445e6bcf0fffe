"""What makes a class of transformers' or TRL's trainers train by a method.

    class BankTrainer(MethodTrainerMixin, SFTTrainer): ...

    trainer = BankTrainer(method=RunConfig(arm="schemabank"), model=..., peft_config=...)

A callback tells the step that begins what trains in it, `training_step` lets the method act, and
`compute_loss` adds its penalties. Optimizer and schedule are those of the engine: AdamW with weight
decay on all weights, started anew with every stage.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from schemabank.common.errors import InputError
from schemabank.config.settings import RunConfig
from schemabank.trainer.adapter import PeftAdapter
from schemabank.trainer.checkpoint import (
    check_checkpoint,
    given_settings,
    load_state,
    save_state,
)
from schemabank.trainer.checks import (
    PACKED,
    by_name,
    check_adapter,
    check_arguments,
    check_class,
    check_early_stopping,
    check_method,
    check_model,
    check_options,
    check_processes,
    check_trained,
    check_warm_up,
)
from schemabank.trainer.courses import check_length, new_course, resolved
from schemabank.trainer.packed import check_apart
from schemabank.trainer.rows import INDEX, WithIndices, check_numbers, examples_by_number, numbered
from schemabank.trainer.sharded import as_whole, average_gradients, check_split, keep_whole
from schemabank.trainer.steps import Steps

if TYPE_CHECKING:
    from transformers import Trainer as AnyTrainer
else:  # a mixin: the user's class names the trainer
    AnyTrainer = object


class MethodTrainerMixin(AnyTrainer):
    """Stands in front of ``Trainer`` or ``SFTTrainer`` in a class's bases.

    Args:
        args: of the trainer.
        method: what trains: ``arm`` and the settings of its own sections. Steps, rates and the seed
            are the trainer's arguments, and the adapter is PEFT's configuration.
        options: of the trainer, by their names.

    Raises:
        InputError: a setting that cannot be honoured here, or a model without a LoRA adapter.
    """

    def __init__(
        self,
        *args: Any,  # noqa: ANN401 -- a trainer's own, whichever it is
        method: RunConfig,
        **options: Any,  # noqa: ANN401
    ) -> None:
        check_class(type(self))
        check_method(method)
        given = by_name(super().__init__, args, options)
        check_options(given)
        if isinstance(given.get("args"), TrainingArguments):
            check_arguments(given["args"], method)  # before the data are prepared
        self._method = method
        self._steps: Steps | None = None
        self._examples = examples_by_number(method, given.get("train_dataset"))
        if self._examples:
            given["train_dataset"] = numbered(given["train_dataset"])
        super().__init__(**given)
        check_model(self.model)
        self._adapter = PeftAdapter(self.model)
        self._adapter.widen()
        self._check()
        # Twenty steps stand for any number: settings and data are checked, nothing is trained.
        self._new_course(20)
        if self._examples:
            check_numbers(self.train_dataset)
            self.data_collator = WithIndices(self.data_collator)
        self.add_callback(_OnCourse(self))

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        *args: Any,  # noqa: ANN401 -- a trainer's own
        **options: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Train from fresh weights, or on from a checkpoint; at the end the banks are off.

        Raises:
            InputError: the adapter has been trained already, or the checkpoint is of another run or
                of its end.
        """
        self._check()  # once more: arguments and model may have been changed
        if any(getattr(self.args, name, False) for name in PACKED):
            with self.accelerator.autocast():  # FlashAttention, for one, refuses float32
                check_apart(self.model, self.data_collator)
        self._resumed = self._checkpoint(resume_from_checkpoint)
        if self._resumed is not None:
            check_checkpoint(Path(self._resumed), given_settings(self.args, self._adapter))
        elif not self._adapter.is_fresh:
            raise InputError(
                "train() on an adapter that has been trained: allowed is a fresh one, or "
                "resume_from_checkpoint; make a new trainer of the base model"
            )
        # Those of an earlier call, which was interrupted, are at another step.
        self.optimizer = self.lr_scheduler = None
        assert self.model is not None
        self.model_wrapped = self.model  # DDP of an earlier call would not know the new banks
        epsilon = self.args.adam_epsilon
        self._steps = Steps(self.model, self._adapter, self._method, epsilon=epsilon)
        keep_whole(self.accelerator, self._steps.modules)
        try:
            result = super().train(self._resumed, *args, **options)
            self._steps.warn_if_unfinished(self.state.global_step)
            return result
        finally:
            self._steps.remove()
            self._steps = None

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return AdamW on adapter and banks, with B in a group of its own."""
        del model  # DDP's wrapper has the same weights
        if self.optimizer is None:
            steps = self._under_way()
            if steps.stand_ins is not None:
                steps.stand_ins.freeze()
            kind, options = self.get_optimizer_cls_and_kwargs(self.args)
            others = [p for name, p in steps.weights if name != "lora"]
            groups = [{"params": [*steps.of_lora.a, *others]}, {"params": steps.of_lora.b}]
            options |= {"lr": 1.0, "weight_decay": self.args.weight_decay}
            self.optimizer = kind(groups, **options)
            self.optimizer.register_step_post_hook(steps.moved)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LRScheduler:
        """Return the stages' learning rates; here the number of steps is known, and the course."""
        steps = self._under_way()
        config, course = self._new_course(num_training_steps)
        check_early_stopping(self.callback_handler.callbacks, course)
        check_warm_up(self.args, num_training_steps)
        check_length(config, num_training_steps)
        self._check_not_over(num_training_steps)
        steps.begin(config, course)
        if self._resumed is None:
            steps.initialise()
        else:
            parts = (steps.banks, steps.stand_ins)
            steps.skipped = load_state(Path(self._resumed), config, parts)
        ratio = config.train.loraplus_lr_ratio

        def rate(step: int) -> float:
            return course.step(step).learning_rate if step < num_training_steps else 0.0

        rates = [rate, lambda step: rate(step) * ratio]
        stepped = optimizer or self.optimizer
        assert stepped is not None
        self.lr_scheduler = LambdaLR(stepped, rates)
        return self.lr_scheduler

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Return a step's batches; over all of their tokens its penalties are means."""
        samples, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._steps is not None:
            self._steps.begin_batches(samples, self._mean_of_processes)
        return samples, num_items

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Go forward and backward with a part of a step's batch, in which the method acts."""
        with nullcontext() if self._steps is None else self._steps.acting():
            loss = super().training_step(model, inputs, num_items_in_batch)
        if self._steps is not None:
            average_gradients(self.accelerator, (weight for _, weight in self._steps.weights))
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:  # noqa: ANN401
        """Return the trainer's loss and, in a training step, the method's penalties."""
        indices = inputs.pop(INDEX, None)

        def loss(shown: dict[str, Any]) -> Any:  # noqa: ANN401
            return super(MethodTrainerMixin, self).compute_loss(
                model, shown, return_outputs, num_items_in_batch
            )

        if self._steps is None or self._steps.at is None:
            return loss(inputs)
        if self._examples and indices is None:
            raise InputError(
                f"a batch has no {INDEX}, so its tags or experts are unknown: the training data or "
                "the collator were replaced after the trainer was made, make a new trainer of them"
            )
        shown = self._steps.shown(inputs, indices)
        with self._steps.noting():
            found = loss(dict(shown))  # a trainer may take its labels out
        task, *outputs = found if return_outputs else (found,)
        total = self._steps.total_loss(task, shown, indices)
        return (total, *outputs) if return_outputs else total

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter in PEFT's format, and into a checkpoint what its run goes on with."""
        if self._steps is not None:
            self._steps.fold()
        super().save_model(output_dir, _internal_call)
        if _internal_call and self._steps is not None and self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            self._steps.save(folder, save_state, given_settings(self.args, self._adapter))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the method's own figures of the last step beside the loss."""
        if self._steps is not None and "loss" in logs:
            logs |= self._steps.logged
        super().log(logs, start_time)

    def _load_best_model(self) -> None:
        if self._steps is not None:
            self._steps.fold()  # later it would undo what is loaded
        with as_whole(self):
            super()._load_best_model()

    def _load_from_checkpoint(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
        with as_whole(self):
            super()._load_from_checkpoint(*args, **options)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        with as_whole(self):
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with as_whole(self):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns = self._signature_columns
        if columns is not None and INDEX not in columns:
            self._signature_columns = [*columns, INDEX]

    def _under_way(self) -> Steps:
        if self._steps is None:
            raise InputError(
                "optimizer and schedule were asked for outside of train(), but they are a "
                "method's own: allowed is to call trainer.train() alone"
            )
        return self._steps

    def _checkpoint(self, asked: str | bool | None) -> str | None:
        """Return the folder from which a run is to go on; ``True``: the last."""
        if asked is not True:
            return str(asked) if asked else None
        folder = str(self.args.output_dir)
        found = get_last_checkpoint(folder) if Path(folder).is_dir() else None
        if found is None:
            raise InputError(
                f"resume_from_checkpoint is True, but args.output_dir, {folder!r}, has no "
                "checkpoint: allowed are a checkpoint's folder, or None for a new run"
            )
        return str(found)

    def _check(self) -> None:
        """Refuse what cannot be honoured."""
        check_arguments(self.args, self._method)
        check_model(self.model)
        check_adapter(self.model, self._adapter)
        check_trained(self.model, self._adapter)
        check_processes(self.accelerator)
        quantised, passes = self._adapter.is_quantised, self._method.passes
        check_split(self.accelerator, self.args, quantised=quantised, passes=passes)
        self._check_parts()

    def _check_not_over(self, num_steps: int) -> None:
        """Refuse a checkpoint of a run's end, from which a trainer would take one step more."""
        done = self.state.global_step
        if self._resumed is not None and done >= num_steps:
            raise InputError(
                f"the checkpoint {self._resumed!r} was written after {done} of {num_steps} steps, "
                "so nothing is left to train: allowed is an earlier one, or load it by "
                "peft.PeftModel.from_pretrained"
            )

    def _check_parts(self) -> None:
        for name in ("gradient_accumulation_steps", "world_size"):
            parts = getattr(self.args, name)
            if parts > 1 and not self.model_accepts_loss_kwargs:
                raise InputError(
                    f"args.{name} is {parts}, but this model averages every part of a batch by "
                    "itself: allowed is 1"
                )

    def _mean_of_processes(self, number: float) -> float:
        own = torch.tensor(number, device=self.accelerator.device)
        return float(self.accelerator.reduce(own, "mean"))

    def _new_course(self, num_steps: int) -> Any:  # noqa: ANN401
        config = resolved(self._method, self.args, num_steps, self._adapter.config)
        return config, new_course(config, self._examples, self.processing_class, self._adapter)


class _OnCourse(TrainerCallback):
    """Tells a trainer's steps when a step begins, and when it is about to update."""

    def __init__(self, trainer: MethodTrainerMixin) -> None:
        self._trainer = trainer

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        del args, control
        steps = self._steps()
        if steps.begin_step(state.global_step):
            assert self._trainer.optimizer is not None
            self._trainer.optimizer.state.clear()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        del args, state, control
        self._steps().before_update()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        del args, state, control
        assert self._trainer.optimizer is not None
        self._steps().after_update(self._trainer.optimizer.state)

    def _steps(self) -> Steps:
        assert self._trainer._steps is not None
        return self._trainer._steps
