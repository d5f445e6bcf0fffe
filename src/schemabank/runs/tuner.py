"""The Python interface: put LoRA and banks on your own model, train, take the banks off, save.

It is the cohort engine with one slot, so a configuration file leads to the same computation.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from schemabank.adapters.files import LoraTensors, load_adapter
from schemabank.adapters.peftlayers import check_peft_layers
from schemabank.common.errors import InputError
from schemabank.common.quiet import quiet_compiler
from schemabank.config.settings import RunConfig
from schemabank.config.validation import ValidationSettings
from schemabank.engine.batches import Encoded
from schemabank.engine.cohort import RunStep
from schemabank.methods import method_of
from schemabank.methods.method import Setup
from schemabank.methods.schemabank.attach import banks_of
from schemabank.methods.schemabank.bank import Routing
from schemabank.models.basemodel import BaseModel
from schemabank.runs.asking import Prompt, check_adapter, completions, decodable
from schemabank.runs.continuing import check_continues, check_whole, continued
from schemabank.runs.evaluate import mean_losses
from schemabank.runs.guards import came_off, check_idle, check_on_model, guard, unguard
from schemabank.runs.inmemory import (
    KeptSteps,
    OnStep,
    Weights,
    check_config,
    check_scale,
    held_base,
    held_data,
    only_used,
    tell_unsaved,
    tell_without_effect,
    validation_data,
    when_saved,
)
from schemabank.runs.members import Rescaled
from schemabank.runs.modelfit import check_training
from schemabank.runs.onerun import OneRun
from schemabank.runs.pairs import Examples, as_examples
from schemabank.runs.prepare import engine_run
from schemabank.runs.programsaves import folder_of
from schemabank.runs.progress import reporter
from schemabank.runs.stacks import build_stack
from schemabank.runs.validating import Validation, Validator, check_validating

WHO = "a Tuner"


class Tuner:
    """Puts a LoRA adapter and, until :meth:`detach`, schema banks on a causal language model.

    The model is changed in place and stays usable all the time: ``model(...)`` and
    ``model.generate(...)`` run with the adapter, and with the banks as :meth:`set_routing` says.
    As a context manager, a Tuner calls :meth:`remove` at the end.

    Meanwhile its layers are wrapped, so ``model.save_pretrained`` and ``push_to_hub`` are refused:
    they would write what loads with missing weights. :meth:`save_pretrained` writes the adapter,
    and after :meth:`remove` the model saves itself as before. So is ``model.train()``, with which
    other trainers begin: outside of :meth:`train` all weights are frozen, so they would change
    none.

    Args:
        model: a decoder-only transformers model; all its weights are frozen.
        tokenizer: its tokenizer.
        config: settings; the preset ``sound`` of the arm ``lora`` without it. Those of
            ``model``, ``eval`` and ``engine``, and of ``task`` all that is not about tokens, have
            no effect here, which a warning says.

    Attributes:
        validation_loss: of the last :meth:`train` with ``validation``, in nats per token.
        rescaled: how the adapter's scale was chosen in it, where ``rescale.factors`` are given.
        validations: what was measured during it, where ``validate`` asked for it.

    Raises:
        InputError: targets or blocks that the model does not have, another Tuner's layers on it, or
            an arm that trains nothing.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: RunConfig | None = None,
    ) -> None:
        config = config or RunConfig(arm="lora")
        check_config(config, what="config")
        tell_without_effect([config], who=WHO, stacklevel=3, saves=True)
        self._put_on(held_base(model, tokenizer), config)

    @classmethod
    def from_adapter(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        folder: str | Path,
        config: RunConfig | None = None,
    ) -> Self:
        """Return a Tuner with an adapter that PEFT or SchemaBank saved, to use it or to go on.

        Every call of :meth:`train` then begins with this adapter instead of fresh weights, with a
        new optimizer.

        Args:
            model: the base model of the adapter.
            tokenizer: its tokenizer.
            folder: of the adapter, with ``adapter_config.json`` and ``adapter_model.safetensors``.
            config: settings; rank, scale and targets are the adapter's. So is the dropout unless
                the settings state ``lora.lora_dropout``.

        Raises:
            InputError: an adapter that is damaged, more than plain LoRA or of another model;
                settings that state another rank, scale or targets; or an arm that cannot begin with
                an adapter.
        """
        adapter = load_adapter(Path(folder))
        config = config or RunConfig(arm="lora")
        check_config(config, what="config")
        tell_without_effect([config], who=WHO, stacklevel=3, saves=True)
        base = held_base(model, tokenizer)
        config = continued(config, adapter, folder, model)
        check_whole(model, adapter, folder)
        tuner = cls.__new__(cls)
        tuner._put_on(base, config, adapter.tensors)
        return tuner

    def _put_on(self, base: BaseModel, config: RunConfig, start: LoraTensors | None = None) -> None:
        """Put the adapter and the banks on the model."""
        model = base.model
        self.model, self.tokenizer, self.config = model, base.tokenizer, config
        self.validation_loss: float | None = None
        self.rescaled: Rescaled | None = None
        self.validations: tuple[Validation, ...] = ()
        self._base, self._run, self._is_training = base, only_used(config), False
        self._decoded: BaseModel | None = None
        check_peft_layers(model, config.lora)
        self.stack = build_stack([config], base, slots=1, start=start)
        with ExitStack() as on_failure:
            on_failure.callback(self.stack.remove)
            self.stack.initialise(0, config.seed)
            on_failure.pop_all()
        self._banks = banks_of(self.stack) if config.uses("bank") else None
        self._own = guard(model)

    def __enter__(self) -> Self:
        """Use the adapter for a while."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Take everything off the model."""
        self.remove()

    def train(
        self,
        examples: Examples,
        *,
        validation: Examples | None = None,
        validate: ValidationSettings | None = None,
        checkpoints: str | Path | None = None,
        on_step: OnStep | None = None,
        quiet: bool = False,
    ) -> list[RunStep]:
        """Train on pairs of prompt and completion or on chats, from fresh weights.

        A Tuner :meth:`from_adapter` begins with that adapter instead.

        Args:
            examples: pairs of texts, or dictionaries or a ``datasets.Dataset`` with the columns
                ``prompt`` and ``completion``; the end token is added, and the loss is on the
                completion, as the configuration's ``task`` says. Or dictionaries or a
                ``datasets.Dataset`` with a chat in ``messages`` or ``conversations``; the loss is
                on what the assistant says.
            validation: examples of the same kinds; :attr:`validation_loss` is then what
                :meth:`evaluate` says of them after the last step.
            validate: measure them while it trains, too, to keep the best weights and to stop early.
            checkpoints: folder in which the run is saved while it trains; see
                :func:`schemabank.train_cohort`.
            on_step: called with every step. What it raises ends the training; the adapter stays as
                it was after the step that the engine had reached.
            quiet: show no progress and no notes.

        Returns:
            What every step did; losses in nats per token.

        Raises:
            InputError: other examples, one that the length limit cuts off, tags that do not fit,
                an adapter or banks that were taken off, or an address in place of a folder.
            RuntimeError: too many steps had no finite loss or gradient.
        """
        self._check_trainable()
        check_validating(validate, self.config, validated=validation is not None, what="config")
        check_scale(self.config, validated=validation is not None, what="config")
        place = folder_of(checkpoints)
        if place is None:
            tell_unsaved(self.config, who=WHO, stacklevel=3)
        steps = KeptSteps(on_step)
        named = as_examples(examples)
        data = held_data(named, self._run, self.tokenizer)
        asked = None if validation is None else self._encoded(validation)
        validator = Validator(validate or ValidationSettings(), asked or ())
        method = method_of(self._run)
        check_training(data, self.model, prefixes=method.prefixes(self._run, self.tokenizer))
        method.check(self._run, Setup(named, self.stack, self.tokenizer))
        run = engine_run(self._run, named, self.stack, self.tokenizer, name=self._run.arm)
        own = self._run if place is None else only_used(self.config, **when_saved(self.config))
        one = OneRun(self.stack, self._base, own, run, data, asked or (), validate, place)
        self._is_training, self.validation_loss, self.validations = True, None, ()
        self.rescaled = None
        try:
            with quiet_compiler(), reporter(quiet=quiet) as progress:
                ended = one.train(steps, validator, progress)
                self.rescaled = ended.rescaled
        finally:
            self._is_training = False
            self.validations = tuple(validator.found[run.name])
            self.stack.uncompile()
            self.stack.lora.reduce(0)  # what was interrupted may still have a higher rank
        if ended.failure is not None:
            raise RuntimeError(ended.failure.message)
        if asked is not None:
            self.validation_loss = self._loss(asked)
        return steps.by_run[run.name]

    def evaluate(self, examples: Examples) -> float:
        """Return the adapter's loss on examples, in nats per token.

        It is the mean over all tokens that training on these examples would see: those of
        completions or of what the assistant says, with their end tokens. ``math.exp`` of it is the
        perplexity. Banks are left out, whatever :meth:`set_routing` says: it is the adapter that
        :meth:`save_pretrained` writes.

        Args:
            examples: of the kinds that :meth:`train` takes.

        Raises:
            InputError: other examples, one that the length limit cuts off or the model has no room
                for, or an adapter that was taken off.
        """
        self._ready_for("evaluate()")
        return self._loss(self._encoded(examples))

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int = 256,
        batch_size: int = 64,
        stop: Sequence[str] = (),
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[str]:
        """Complete prompts with the adapter, banks left out.

        Prompts are tokenised as those of the training are. Where our decoder cannot decode the
        model, transformers' ``generate`` does, with the same results.

        Args:
            prompts: texts as in training; or chats, each a list of messages
                ``{"role": ..., "content": ...}`` that the assistant is to answer.
            max_new_tokens: the longest completion, in tokens.
            batch_size: how many are decoded at once.
            stop: texts that end a completion, and are cut off it.
            temperature: tokens are drawn from the logits divided by it; 0: the likeliest is taken.
            top_p: tokens are drawn from the most likely ones that hold this probability.
            seed: of the draws.

        Returns:
            The completions, without prompts and end tokens, in the order of ``prompts``.

        Raises:
            InputError: other prompts, prompts that the model has no room for, settings out of
                range, a model that cannot be decoded, or an adapter that was taken off or whose
                weights are not finite.
        """
        self._ready_for("generate()")
        asked = {
            "max_new_tokens": max_new_tokens,
            "batch_size": batch_size,
            "temperature": temperature,
            "top_p": top_p,
            "sampling_seed": seed,
        }
        check_adapter(self.stack)
        if self._decoded is None:  # asked once, since it takes a few passes of the model
            self._decoded = decodable(self._base, self.stack)
        return completions(self.stack, self._decoded, prompts, self._run, asked, stop=stop)

    def set_routing(self, routing: Routing) -> None:
        """Choose what the banks do in ``model(...)``: nothing (``off``), ``on`` or ``dense``.

        Raises:
            InputError: the banks were detached, or there never were any.
        """
        if self._banks is not None and self._banks.handles:
            self._banks.routing = routing
            self._banks.scale.fill_(1.0)
        elif routing != "off":
            raise InputError(f"routing {routing!r} needs banks, and none are attached: use 'off'")

    def detach(self) -> None:
        """Take the banks off; the adapter stays, and logits are those of routing off."""
        check_idle("detach()", is_training=self._is_training)
        self.stack.strip()

    def remove(self) -> None:
        """Take banks and adapter off; the model is again what it was, bit for bit."""
        check_idle("remove()", is_training=self._is_training)
        if self.stack.attached:
            self.stack.remove()
            unguard(self.model, self._own)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the adapter for ``peft.PeftModel.from_pretrained``.

        As in PEFT, the folder gets ``adapter_config.json``, ``adapter_model.safetensors`` and a
        model card. Unlike PEFT, nothing is overwritten.

        Raises:
            InputError: the folder exists.
        """
        Weights.in_slot(self.stack, 0).save(Path(folder), self.config, self._base)

    def save(self, folder: str | Path) -> None:
        """Do what :meth:`save_pretrained` does; it is the shorter name."""
        self.save_pretrained(folder)

    def _encoded(self, examples: Examples) -> Sequence[Encoded]:
        return validation_data(examples, self._run, self._base)

    def _loss(self, examples: Sequence[Encoded]) -> float:
        with self.stack.evaluating("off"):
            (loss,) = mean_losses(self.stack, examples)
        return loss

    def _check_trainable(self) -> None:
        """Training what no longer sits on the model would change nothing and say nothing."""
        check_idle("train()", is_training=self._is_training)
        if self.stack.start is not None:
            check_continues(self.config)
        if self.stack.attached and self._banks is not None and not self._banks.handles:
            raise came_off("train()", "banks")
        self._ready_for("train()")

    def _ready_for(self, call: str) -> None:
        """Refuse to go on without the adapter on the model, and drop nothing of the model's own."""
        check_on_model(call, self.stack)
        self.model.eval()  # where a program has set model.train(), its own dropout would act


def tuner_with(base: BaseModel, config: RunConfig, weights: LoraTensors) -> Tuner:
    """Return a Tuner that begins with weights of its settings' rank and targets."""
    tuner = Tuner.__new__(Tuner)
    tuner._put_on(base, config, weights)
    return tuner
