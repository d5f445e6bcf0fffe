"""What a Python program gives: its own model and tokenizer, settings, examples and functions."""

import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from schemabank.adapters.files import LoraTensors, model_card, save_adapter
from schemabank.common.errors import InputError
from schemabank.config.methods import METHODS
from schemabank.config.naming import dotted
from schemabank.config.peftconfig import instead_of
from schemabank.config.settings import LoraSettings, RunConfig
from schemabank.engine.batches import Encoded
from schemabank.engine.cohort import Cohort, RunStep
from schemabank.engine.lora import StackedLora
from schemabank.engine.run import TrainingData
from schemabank.engine.stack import AdapterStack
from schemabank.engine.targets import Layout
from schemabank.models.architecture import auto_class
from schemabank.models.basemodel import BaseModel, check_unquantised
from schemabank.runs.effects import WHOLE_TEXTS, idle_settings, sentences, stated
from schemabank.runs.modelfit import check_encoded
from schemabank.runs.pairs import as_examples
from schemabank.runs.prepare import chat_training_data, training_data
from schemabank.runs.progress import Reporter
from schemabank.runs.tokens import tokenise, tokenise_chats
from schemabank.runs.trackers import Trackers
from schemabank.runs.training import Context
from schemabank.tasks import Example

# A program has the model, the examples and the device already, and asks for evaluations itself.
WITHOUT_EFFECT = ("model.", "eval.", "engine.", "task.")
OF_TOKENS = ("task.chat_template", *WHOLE_TEXTS)
OF_CHECKPOINTS = ("engine.checkpoint_minutes", "engine.checkpoint_steps")
VALIDATION = "validation"

OnStep = Callable[[RunStep], None]
"""Called after every step of every run; what it raises ends the training."""


@dataclass(frozen=True)
class Weights:
    """The adapter that a run has come to, on the CPU.

    Attributes:
        tensors: ``A: (rank, in)`` and ``B: (out, rank)`` by the path of their layer.
        settings: rank, scale and targets.
        layout: what PEFT must be told beside these to find the same layers.
    """

    tensors: LoraTensors
    settings: LoraSettings
    layout: Layout

    @classmethod
    def in_slot(cls, stack: AdapterStack, slot: int) -> "Weights":
        """Copy those in a slot of a stack."""
        lora = stack.lora
        tensors = {path: (a.cpu(), b.cpu()) for path, (a, b) in lora.tensors(slot).items()}
        return cls(tensors, lora.settings[slot], lora.layout)

    def save(self, folder: Path, config: RunConfig, base: BaseModel) -> None:
        """Write them in PEFT's format.

        Args:
            folder: for the adapter.
            config: settings of the run that came to them.
            base: the model that they were trained on.

        Raises:
            InputError: the folder exists, or its place cannot be written.
        """
        training = f"Trained by SchemaBank, arm `{config.arm}`, seed {config.seed}."
        loader = auto_class(base.model.config).__name__
        save_adapter(
            folder,
            self.tensors,
            self.settings,
            base_name=base.name,
            card=model_card(base.name, self.settings, training=training, loader=loader),
            layout=self.layout,
        )


class KeptSteps:
    """Keeps the steps of every run, and tells a program's function of each.

    Args:
        on_step: the function.

    Attributes:
        by_run: the steps so far, by the run's name.
        raised: what the function raised.
    """

    def __init__(self, on_step: OnStep | None) -> None:
        if on_step is not None and not callable(on_step):
            raise InputError(
                f"on_step is {on_step!r:.80}: allowed is a function that takes a RunStep, give one "
                "or leave it out"
            )
        self.by_run: dict[str, list[RunStep]] = defaultdict(list)
        self.raised: BaseException | None = None
        self._on_step = on_step
        self._stack: AdapterStack | None = None

    @contextmanager
    def following(self, cohort: Cohort) -> Iterator[Self]:
        """Take note of a cohort's steps for a while."""
        self._stack = cohort.stack
        try:
            yield self
        finally:
            self._stack = None

    def write(self, step: RunStep) -> None:
        """Take note of a step."""
        self.by_run[step.run].append(step)
        if self._on_step is not None:
            assert self._stack is not None
            self._stack.rest()  # else the function would use the model with the step's dropout
            try:
                self._on_step(step)
            except torch.OutOfMemoryError as error:
                # Else it would be taken for a step that does not fit, and the runs would go on.
                self.raised = RuntimeError(f"on_step ran out of the device's memory ({error})")
                raise self.raised from error
            except BaseException as error:
                self.raised = error
                raise


def check_config(config: RunConfig, *, what: str) -> None:
    """Refuse a run that a program cannot train with its own model and examples.

    Args:
        config: the run's settings.
        what: what they are called, for messages.

    Raises:
        InputError: no settings at all, an arm that trains nothing, or teachers.
    """
    if not isinstance(config, RunConfig):
        if (sentence := instead_of(config)) is not None:
            raise InputError(f"{what}: {sentence}; it is lora of a schemabank.RunConfig")
        raise InputError(
            f"{what} is {config!r:.80}: allowed is a schemabank.RunConfig, make one of it"
        )
    if not config.trains:
        raise InputError(
            f"{what}.arm is {config.arm!r}, which trains nothing: allowed are "
            f"{', '.join(name for name, method in METHODS.items() if method.trains)}"
        )
    if config.distill.teachers:
        raise InputError(
            f"{what}.distill.teachers is {config.distill.teachers}, but teachers are runs with "
            "folders, and a program's runs have none: allowed is 0 here, or use `schemabank train`"
        )


def check_scale(config: RunConfig, *, validated: bool, what: str) -> None:
    """Refuse to choose an adapter's scale without examples to choose it by.

    Raises:
        InputError: there are no validation examples.
    """
    if config.rescale.factors and not validated:
        raise InputError(
            f"{what}.rescale.factors is {list(config.rescale.factors)}, one of which is chosen by "
            "the loss on validation examples, but there are none: give them as validation, or "
            "leave rescale out"
        )


def tell_without_effect(
    configs: Iterable[RunConfig], *, who: str, stacklevel: int, saves: bool = False
) -> None:
    """Warn of settings that change nothing here, since the program or the arm does without them.

    Args:
        configs: settings of runs.
        who: trains them.
        stacklevel: of the program's own line, as :func:`warnings.warn` counts.
        saves: whether checkpoints are made.
    """
    used = (*OF_TOKENS, *(OF_CHECKPOINTS if saves else ()))
    said = dict.fromkeys(sentence for config in configs for sentence in _idle(config, who, used))
    for sentence in said:
        warnings.warn(sentence, stacklevel=stacklevel)


def tell_unsaved(config: RunConfig, *, who: str, stacklevel: int) -> None:
    """Warn of settings of when a run is saved, where it is not saved."""
    defaults = when_saved(RunConfig(arm=config.arm))
    idle = [n for n, value in when_saved(config).items() if value != defaults[n]]
    if idle:
        names = ", ".join(f"engine.{name}" for name in idle)
        warnings.warn(
            f"{names}: no effect on {who} without a folder of checkpoints; give one or leave this "
            "out",
            stacklevel=stacklevel,
        )


def _idle(config: RunConfig, who: str, used: Collection[str]) -> list[str]:
    """What has no effect in one run, a sentence each."""
    defaults = dotted(RunConfig(arm=config.arm).model_dump())
    idle = [
        name
        for name, value in dotted(config.model_dump()).items()
        if name.startswith(WITHOUT_EFFECT) and name not in used and value != defaults[name]
    ]
    found = []
    if idle:
        found.append(
            f"{', '.join(idle)}: no effect on {who}, which has its model, its examples and "
            "arguments of its own; leave this out"
        )
    of_arm = [name for name in stated(config) if not name.startswith(WITHOUT_EFFECT)]
    return [*found, *sentences(idle_settings(of_arm, [config]))]


def only_used(config: RunConfig, **engine: object) -> RunConfig:
    """Return a run's settings with the defaults of those that have no effect on a program.

    So runs that differ in nothing else share their data and a cohort.

    Args:
        config: the run's settings.
        engine: settings of ``engine`` that the program gives as arguments.
    """
    plain = RunConfig(arm=config.arm)
    names = (name.removeprefix("task.") for name in OF_TOKENS)
    task = plain.task.model_copy(update={name: getattr(config.task, name) for name in names})
    update = {"model": plain.model, "eval": plain.eval, "task": task}
    return config.model_copy(
        update={**update, "engine": plain.engine.model_copy(update=dict(engine))}
    )


def when_saved(config: RunConfig) -> dict[str, object]:
    """Return a run's settings of ``engine`` that say when it is saved."""
    names = (name.removeprefix("engine.") for name in OF_CHECKPOINTS)
    return {name: getattr(config.engine, name) for name in names}


def held_base(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> BaseModel:
    """Return a program's model as a base model.

    Raises:
        InputError: no model or no tokenizer of transformers, or adapters are on the model, another
            Tuner's or PEFT's.
    """
    # First, since PEFT's own model is no PreTrainedModel, and has a way on.
    modules = [*model.modules()] if isinstance(model, nn.Module) else []
    if any(isinstance(module, BaseTunerLayer) for module in modules):
        raise InputError(
            "the model already has PEFT's layers on it: allowed is the base model alone, such as "
            "PeftModel.unload() returns; to go on from the adapter, save it before and give its "
            "folder to Tuner.from_adapter"
        )
    _check_kind("model", model, PreTrainedModel)
    _check_kind("tokenizer", tokenizer, PreTrainedTokenizerBase)
    if any(isinstance(module, StackedLora) for module in modules):
        raise InputError(
            "the model already has a Tuner's layers on it: allowed is one Tuner at a time, call "
            "its remove() first"
        )
    name = str(model.name_or_path)
    check_unquantised(name, model.config)
    return BaseModel(name, None, model, tokenizer, end_token_ids=(), source="in memory")


def _check_kind(name: str, given: object, kind: type) -> None:
    """Refuse what stands in another argument's place, or is a name in place of the thing."""
    if not isinstance(given, kind):
        raise InputError(
            f"{name} is a {type(given).__name__}: allowed is a {kind.__name__} of transformers, "
            f"such as Auto{'Tokenizer' if name == 'tokenizer' else 'ModelForCausalLM'}"
            ".from_pretrained() returns"
        )


def held_context(
    base: BaseModel,
    training: TrainingData,
    reporter: Reporter,
    *,
    start: LoraTensors | None = None,
    held_out: Sequence[Encoded] = (),
    inputs: Mapping[str, str] | None = None,
) -> Context:
    """Return what runs on a program's model and examples share."""
    return Context(
        base,
        training,
        items={},
        validation=(),
        reporter=reporter,
        trackers=Trackers({}, reporter),
        inputs=inputs or {},
        start=start,
        slots_setting="slots",
        held_out=held_out,
    )


def check_tags(config: RunConfig, examples: Sequence[Example]) -> None:
    """Refuse tags that chats have no place for.

    Raises:
        InputError: tags in a prefix.
    """
    tags = config.tags
    if examples[0].turns and config.is_tagged and tags.delivery != "loss":
        raise InputError(
            f"config.tags.delivery is {tags.delivery!r}, but a prefix has no place in a chat "
            "template: allowed is loss"
        )


def held_data(
    examples: Sequence[Example], config: RunConfig, tokenizer: PreTrainedTokenizerBase
) -> TrainingData:
    """Tokenise a program's training examples, and plan the schedule of their batches.

    Raises:
        InputError: an example that the length limit cuts off, or tags that chats have no place for.
    """
    check_tags(config, examples)
    if examples[0].turns:
        return chat_training_data(examples, config, tokenizer)
    return training_data(examples, _texts(examples), config, tokenizer)


def validation_data(examples: object, config: RunConfig, base: BaseModel) -> Sequence[Encoded]:
    """Tokenise a program's validation examples as training does.

    Args:
        examples: of the kinds that training takes.
        config: end token, loss and length limit.
        base: whose tokenizer it is, and which is to read them.

    Raises:
        InputError: other examples, or one that the settings or the model have no room for.
    """
    named = as_examples(examples, purpose=VALIDATION)
    if named[0].turns:
        found = tokenise_chats(named, config.task, base.tokenizer, purpose=VALIDATION)
    else:
        found = tokenise(_texts(named), config.task, base.tokenizer, purpose=VALIDATION)
    check_encoded(found, base.model, base.tokenizer)
    return found


def _texts(examples: Iterable[Example]) -> Iterator[tuple[str, str, str]]:
    return ((e.id, e.question, e.solution) for e in examples)
