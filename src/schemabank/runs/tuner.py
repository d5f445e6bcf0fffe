"""The Python interface: put LoRA and banks on your own model, train, take the banks off, save.

It is the cohort engine with one slot, so a configuration file leads to the same computation.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from schemabank.adapters.files import model_card, save_adapter
from schemabank.adapters.peftlayers import check_peft_layers
from schemabank.common.errors import InputError
from schemabank.common.quiet import quiet_compiler
from schemabank.common.waiting import waiting
from schemabank.config.methods import METHODS
from schemabank.config.naming import dotted
from schemabank.config.settings import RunConfig
from schemabank.engine.cohort import Cohort, RunStep
from schemabank.engine.run import TrainingData
from schemabank.engine.stack import AdapterStack
from schemabank.methods import method_of
from schemabank.methods.method import Setup
from schemabank.methods.schemabank.attach import banks_of
from schemabank.methods.schemabank.bank import Routing
from schemabank.runs.effects import WHOLE_TEXTS, idle_settings, sentences, stated
from schemabank.runs.modelfit import check_training
from schemabank.runs.pairs import as_examples
from schemabank.runs.prepare import chat_training_data, engine_run, training_data
from schemabank.runs.progress import Reporter, reporter
from schemabank.runs.training import skips
from schemabank.tasks import Example

if TYPE_CHECKING:
    import datasets

# A Tuner has the model, the examples and the device already, and does not evaluate.
WITHOUT_EFFECT = ("model.", "eval.", "engine.", "task.")
OF_TOKENS = ("task.chat_template", *WHOLE_TEXTS)
SAVERS = ("save_pretrained", "push_to_hub")
# What trainers call before their first step; the last has both names, by transformers' version.
TRAINERS = ("train", "activation_checkpointing_enable", "gradient_checkpointing_enable")


class Tuner:
    """Puts a LoRA adapter and, until :meth:`detach`, schema banks on a causal language model.

    The model is changed in place and stays usable all the time: ``model(...)`` and
    ``model.generate(...)`` run with the adapter, and with the banks as :meth:`set_routing` says.

    Meanwhile its layers are wrapped, so ``model.save_pretrained`` and ``push_to_hub`` are refused:
    they would write what loads with missing weights. :meth:`save` writes the adapter, and after
    :meth:`remove` the model saves itself as before. So is ``model.train()``, with which other
    trainers begin: outside of :meth:`train` all weights are frozen, so they would change none.

    Args:
        model: a decoder-only transformers model; all its weights are frozen.
        tokenizer: its tokenizer.
        config: settings; the preset ``sound`` of the arm ``lora`` without it. Those of
            ``model``, ``eval`` and ``engine``, and of ``task`` all that is not about tokens, have
            no effect here, which a warning says.

    Raises:
        InputError: targets or blocks that the model does not have, an arm that trains nothing, or
            factors of ``rescale``, which take a validation split.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: RunConfig | None = None,
    ) -> None:
        config = config or RunConfig(arm="lora")
        if not config.trains:
            raise InputError(
                f"config.arm is {config.arm!r}, which trains nothing: allowed are "
                f"{', '.join(name for name, method in METHODS.items() if method.trains)}"
            )
        if config.rescale.factors:
            raise InputError(
                f"config.rescale.factors is {list(config.rescale.factors)}, but a Tuner has no "
                "validation split on which to choose one: allowed is none here, leave it out, or "
                "train by `schemabank train`"
            )
        _tell_without_effect(config)
        self.model, self.tokenizer, self.config = model, tokenizer, config
        check_peft_layers(model, config.lora)
        method = method_of(config)
        self.stack = AdapterStack(
            model,
            lora=[config.lora.model_copy(update={"r": method.rank(config)})],
            attach=method.attach([config]),
            maps=method.maps(config),
            passes=config.passes,
        )
        self.stack.configure(0, config.lora, method.settings(config))
        self._banks = banks_of(self.stack) if config.uses("bank") else None
        self.stack.initialise(0, config.seed)
        self._own = {name: vars(model).get(name) for name in (*SAVERS, *TRAINERS)}
        for name in SAVERS:
            setattr(model, name, partial(_refuse_to_save, name))
        for name in TRAINERS:
            setattr(model, name, partial(_refuse_to_train, name, type(model).train, model))

    def train(
        self, examples: "Sequence[tuple[str, str] | Mapping[str, object]] | datasets.Dataset"
    ) -> list[RunStep]:
        """Train on pairs of prompt and completion or on chats, from fresh weights.

        Args:
            examples: pairs of texts, or dictionaries or a ``datasets.Dataset`` with the columns
                ``prompt`` and ``completion``; the end token is added, and the loss is on the
                completion, as the configuration's ``task`` says. Or dictionaries or a
                ``datasets.Dataset`` with a chat in ``messages`` or ``conversations``; the loss is
                on what the assistant says.

        Returns:
            What every step did.

        Raises:
            InputError: other examples, one that the length limit cuts off, tags that do not fit,
                or an adapter or banks that were taken off.
            RuntimeError: too many steps had no finite gradient.
        """
        self._check_attached()
        named = as_examples(examples)
        self.stack.initialise(0, self.config.seed)
        data = self._training_data(named)
        shown = method_of(self.config).prefixes(self.config, self.tokenizer)
        check_training(data, self.model, prefixes=shown)
        method_of(self.config).check(self.config, Setup(named, self.stack, self.tokenizer))
        run = engine_run(self.config, named, self.stack, self.tokenizer, name=self.config.arm)
        try:
            with quiet_compiler(), reporter() as progress:
                cohort = Cohort(self.stack, [run], data, explain=progress.note)
                done = _train_to_the_end(cohort, f"train {self.config.arm}", progress)
                cohort.free()
                cohort.seat([run.name])
        finally:
            self.stack.uncompile()
            self.stack.lora.reduce(0)  # what was interrupted may still have a higher rank
        if cohort.slots[0].failure is not None:
            raise RuntimeError(cohort.slots[0].failure.message)
        return done

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
        self.stack.strip()

    def remove(self) -> None:
        """Take banks and adapter off; the model is again what it was, bit for bit."""
        if self.stack.attached:
            self.stack.remove()
            for name, own in self._own.items():
                delattr(self.model, name)
                if own is not None:  # the user's, not the class's
                    setattr(self.model, name, own)

    def save(self, folder: str | Path) -> None:
        """Write the adapter for ``peft.PeftModel.from_pretrained``.

        Raises:
            InputError: the folder exists.
        """
        name = str(self.model.name_or_path)
        training = f"Trained by SchemaBank, arm `{self.config.arm}`, seed {self.config.seed}."
        lora, settings = self.stack.lora, self.stack.lora.settings[0]
        card = model_card(name, settings, training=training)
        tensors, layout = lora.tensors(0), lora.layout
        save_adapter(Path(folder), tensors, settings, base_name=name, card=card, layout=layout)

    def _training_data(self, named: list[Example]) -> TrainingData:
        if named[0].turns:
            tags = self.config.tags
            if self.config.is_tagged and tags.delivery != "loss":
                raise InputError(
                    f"config.tags.delivery is {tags.delivery!r}, but a prefix has no place in a "
                    "chat template: allowed is loss"
                )
            return chat_training_data(named, self.config, self.tokenizer)
        texts = [(e.id, e.question, e.solution) for e in named]
        return training_data(named, texts, self.config, self.tokenizer)

    def _check_attached(self) -> None:
        """Training what no longer sits on the model would change nothing and say nothing."""
        if not self.stack.is_whole():
            raise InputError(
                "the model was moved or cast after the Tuner took it: allowed is to do so before, "
                "make the Tuner of the model where it is to train"
            )
        banks_missing = self._banks is not None and not self._banks.handles
        if banks_missing or not self.stack.attached:
            what = "banks" if self.stack.attached else "adapter"
            raise InputError(
                f"train() after the {what} came off: allowed is to train before detach() and "
                "remove(), make a new Tuner of the model"
            )


def _tell_without_effect(config: RunConfig) -> None:
    """Warn of settings that change nothing here, since a Tuner or its arm does not use them."""
    defaults = dotted(RunConfig(arm=config.arm).model_dump())
    idle = [
        name
        for name, value in dotted(config.model_dump()).items()
        if name.startswith(WITHOUT_EFFECT) and name not in OF_TOKENS and value != defaults[name]
    ]
    if idle:
        warnings.warn(
            f"{', '.join(idle)}: no effect on a Tuner, which has its model and examples and does "
            "not evaluate; leave this out",
            stacklevel=3,
        )
    of_arm = [name for name in stated(config) if not name.startswith(WITHOUT_EFFECT)]
    for sentence in sentences(idle_settings(of_arm, [config])):
        warnings.warn(sentence, stacklevel=3)


def _refuse_to_save(name: str, *_args: object, **_options: object) -> NoReturn:
    raise InputError(
        f"model.{name}() while a Tuner's layers are on the model would write what loads with "
        "missing weights: allowed is tuner.save(folder) for the adapter, or tuner.remove() first "
        "for the model without it"
    )


def _refuse_to_train(
    name: str,
    switch: Callable[[PreTrainedModel, bool], PreTrainedModel],
    model: PreTrainedModel,
    mode: object = True,
    **_options: object,
) -> PreTrainedModel:
    """Refuse what trainers begin with, but not ``model.eval()``, which is ``train(False)``."""
    if name == "train" and mode is False:
        return switch(model, False)
    raise InputError(
        f"model.{name}() while a Tuner's layers are on the model: another trainer would change no "
        "weight, since all are frozen outside of tuner.train(). Allowed is tuner.train(examples), "
        "or tuner.remove() first and then transformers' Trainer or TRL's SFTTrainer on the model, "
        "which schemabank.trainer lets train by a method, too"
    )


def _train_to_the_end(cohort: Cohort, title: str, progress: Reporter) -> list[RunStep]:
    """Take all steps of a cohort of one run, and return what each did."""
    done: list[RunStep] = []
    progress.start(title, cohort.num_steps)
    with waiting("waiting for the next training step", progress.note) as wait:
        for steps in cohort.steps():
            wait.goes_on()
            done += steps  # empty for a step that was under way when the run was given up
            progress.advance(1, f"stage {done[-1].stage}, loss {done[-1].loss:.3f}")
    progress.finish()
    if cohort.slots[0].skipped:
        progress.note(skips(cohort.slots[0]))
    return done
