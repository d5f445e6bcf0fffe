"""Settings that a user stated and that change nothing, each with the reason.

Such a setting is a slip or a misunderstanding, so the user is told before anything is computed.
Only what the user wrote counts, not what a preset or a default adds. A setting has no effect if
none of the runs uses it. Of one that nearly all methods have, it is also said which arm has not.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from schemabank.common.errors import InputError
from schemabank.config.base import OF_LORA
from schemabank.config.methods import METHODS
from schemabank.config.naming import dotted, set_by
from schemabank.config.presets import PRESETS
from schemabank.config.settings import (
    BankSettings,
    EvalSettings,
    ExperimentConfig,
    RunConfig,
)
from schemabank.config.task import TASK_NAMES
from schemabank.config.train import INHERITED, StageSettings
from schemabank.engine.planner import num_steps
from schemabank.tasks.catalog import TASKS, metric_of
from schemabank.tasks.scoring.scores import METRICS

MOST_NAMED = 6  # settings in a sentence

Reasons = dict[str, str]  # by dotted name of a setting or of a whole section

# How an example becomes tokens for training; a text that is routed is read from end to end.
WHOLE_TEXTS = (
    *("task.completion_only_loss", "task.end_token", "task.max_length", "task.max_cut_ratio"),
)
TRAINING = (
    *dict.fromkeys(section for method in METHODS.values() for section in method.sections),
    *(*WHOLE_TEXTS, "task.train_limit", "engine.keep_stages"),
)
# Settings of which a trained run makes no more use, whatever is computed with its weights.
OVER = (
    *("arm", "seed", "preset"),
    *(name for name in TRAINING if name != "bank"),
    *("engine.checkpoint_minutes", "engine.checkpoint_steps"),  # which `base` has a use for, too
    *(f"bank.{n}" for n in BankSettings.model_fields if n.endswith(("init_std", "_weight"))),
    *("engine.slots", "engine.trackers", "engine.tracker_project"),
)
SCORING = ("task.metric", "task.stop", "task.humaneval")
PROMPTS = ("task.prompt", "task.chat_template", "task.target")
SAMPLING = ("eval.top_p", "eval.sampling_seed")
DECODING = (*SAMPLING, "eval.max_new_tokens", "eval.num_samples", "eval.temperature", "task.stop")


@dataclass(frozen=True)
class Idle:
    """A setting without effect: its dotted name, and why."""

    name: str
    reason: str


def idle_settings(names: Iterable[str], runs: Sequence[RunConfig]) -> list[Idle]:
    """Return the settings that none of these runs uses.

    Args:
        names: dotted names of what a user set; a stage of the curriculum goes by its own name.
        runs: the runs that it was set for; at least one.
    """
    return _idle_everywhere(names, [unused_settings(run) for run in dict.fromkeys(runs)])


def idle_in_experiment(experiment: ExperimentConfig) -> list[Idle]:
    """Return the settings of a configuration that have no effect on any of its runs."""
    runs, names = experiment.runs(), stated(experiment)
    found = idle_settings(names, runs)
    untrained = [run for run in runs if not run.trains]
    if experiment.base_shots and not untrained:
        found.append(Idle("base_shots", "the arm base is not run"))
    elif experiment.base_shots and "eval.few_shot" in names:
        found.append(Idle("eval.few_shot", "base_shots says how many shots the arm base has"))
    for name in ("arm", "seed"):
        values = getattr(experiment, name)
        if isinstance(values, tuple) and len(set(values)) < len(values):
            found.append(Idle(f"naming one {name} twice", "a run is made once"))
    arms = {arm: [run for run in runs if run.arm == arm] for arm in {run.arm: 0 for run in runs}}
    found += idle_in_some_arms(names, arms)
    seeds = experiment.seed if isinstance(experiment.seed, tuple) else (experiment.seed,)
    if len(untrained) == len(runs) and len(set(seeds)) > 1:
        found.append(Idle("every seed but the first", "nothing of the arm base is drawn"))
    return found


def idle_in_some_arms(names: Iterable[str], arms: Mapping[str, Sequence[RunConfig]]) -> list[Idle]:
    """Return the settings of all arms that act in some, and in others have nothing to act on.

    What one method has for itself is by its name no setting of another. But an average that all
    arms have, and one has not since it ends as a mean of its own, is a difference between them.

    Args:
        names: dotted names of what a user set for all arms.
        arms: the runs of each.
    """
    training = [run for runs in arms.values() for run in runs if run.trains]
    acting = {
        section
        for run in training
        for section in OF_LORA
        if run.uses(section) and (own := getattr(run, section)) != type(own)()
    }
    shared = [name for name in names if name.partition(".")[0] in acting]
    in_none = {idle.name for idle in idle_settings(shared, training)} if shared else set()
    return [
        Idle(
            f"{name} of the arm {arm!r}",
            f"the method {runs[0].arm} has no such setting, while others have",
        )
        for arm, runs in arms.items()
        for name in shared
        if name not in in_none
        and all(run.trains and not run.uses(name.partition(".")[0]) for run in runs)
    ]


def check_asked_of_evaluation(overrides: Iterable[str]) -> None:
    """Refuse ``a.b=value`` settings that only training uses, where a trained run is evaluated.

    Raises:
        InputError: naming the first of them.
    """
    over = dict.fromkeys(OVER, "a setting of training, which is over")
    allowed = "model, task, eval, bank and engine.device"
    _check_asked(overrides, over, f"those of {allowed}, leave it out or train anew")


def check_asked_of_routing(overrides: Iterable[str]) -> None:
    """Refuse ``a.b=value`` settings that the analysis of a trained run's routing does not use.

    Raises:
        InputError: naming the first of them.
    """
    over = (name for name in OVER if not name.startswith("task."))
    refused = dict.fromkeys(over, "a setting of training, which is over")
    names = (f"eval.{name}" for name in EvalSettings.model_fields if name != "split")
    refused |= dict.fromkeys(names, "a setting of completions, and routing needs none")
    allowed = "model, task and bank, eval.split and engine.device"
    _check_asked(overrides, refused, f"{allowed}, leave it out or train anew")


def idle_in_evaluation(overrides: Iterable[str], runs: Sequence[RunConfig]) -> list[Idle]:
    """Return the overrides that have no effect on the evaluation of a trained run.

    Args:
        overrides: ``a.b=value``, checked by :func:`check_asked_of_evaluation`.
        runs: its settings, once for each routing.
    """
    unused = []
    for run in runs:
        found = _unused_in_items(run) | _unused_in_task(run) | _unused_in_evaluation(run)
        if run.eval.routing == "off":
            found["bank"] = "eval.routing is off, so there is no bank"
        unused.append(found)
    return _idle_everywhere((name for text in overrides for name in set_by(text)), unused)


def idle_in_routing(
    overrides: Iterable[str], run: RunConfig, *, split: str | None = None
) -> list[Idle]:
    """Return the overrides that have no effect on the analysis of a run's routing.

    Args:
        overrides: ``a.b=value``, checked by :func:`check_asked_of_routing`.
        run: its settings.
        split: the one that ``--split`` names; ``None``: that of the settings.
    """
    unused = dict.fromkeys(WHOLE_TEXTS, "texts are routed from end to end, and nothing is trained")
    unused |= dict.fromkeys(SCORING, "routing asks for no completions and scores none")
    if split is not None:
        unused["eval.split"] = f"--split says that {split} is routed"
    # The clusters are those of the training examples, and tell tags of these alone.
    if (run.tags.tagger, split) != ("cluster", "train") or run.tags.delivery == "prefix":
        unused["task.train_limit"] = "nothing is trained, and no tags are sought by clusters"
    unused |= _unused_in_items(run) | _unused_in_task(run)
    return _idle_everywhere((name for text in overrides for name in set_by(text)), [unused])


def sentences(found: Iterable[Idle]) -> list[str]:
    """Say what has no effect: one sentence a reason."""
    by_reason: dict[str, list[str]] = {}
    for idle in found:
        by_reason.setdefault(idle.reason, []).append(idle.name)
    return [
        f"no effect: {', '.join(names[:MOST_NAMED])}"
        f"{f' and {len(names) - MOST_NAMED} more' if len(names) > MOST_NAMED else ''} ({reason})"
        for reason, names in by_reason.items()
    ]


def stated(config: BaseModel) -> list[str]:
    """Return the names of the settings that the user gave, without a preset's and defaults."""
    tree = config.model_dump(mode="json", exclude_unset=True)
    of_preset = dotted(PRESETS[str(tree.get("preset", "sound"))])
    missing = object()
    return [n for n, value in dotted(tree).items() if of_preset.get(n, missing) != value]


def unused_settings(run: RunConfig) -> Reasons:
    """Return the settings and sections that a run does not use, with the reason."""
    found: Reasons = {}
    if not run.uses("bank"):
        found["eval.routing"] = "the arm schemabank alone has a bank"
    if run.trains:
        found["eval.few_shot"] = "the arm base alone is shown examples"
        found |= _unused_in_training(run)
    else:
        found |= dict.fromkeys(TRAINING, "the arm base trains nothing") | _unused_in_items(run)
    return found | _unused_in_task(run) | _unused_in_evaluation(run)


def _idle_everywhere(names: Iterable[str], unused: Sequence[Reasons]) -> list[Idle]:
    """The settings that every run has a reason not to use."""
    found = []
    for name in names:
        reasons = dict.fromkeys(_reason_against(name, own) for own in unused)
        if None not in reasons:
            found.append(Idle(name, ", and ".join(map(str, reasons))))
    return found


def _check_asked(overrides: Iterable[str], refused: Reasons, allowed: str) -> None:
    for text in overrides:
        for name in set_by(text):
            # A section that is given empty falls back to its defaults, all that is in it.
            inside = next((n for n in refused if n.startswith(f"{name}.")), name)
            reason = _reason_against(name, refused) or refused.get(inside)
            if reason is not None:
                raise InputError(f"--set {text!r}: {inside} is {reason}: allowed are {allowed}")


def _reason_against(name: str, unused: Mapping[str, str]) -> str | None:
    """Why a setting or a section around it is not used, or ``None``."""
    parts = name.split(".")
    around = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
    return next((unused[place] for place in around if place in unused), None)


def _unused_in_training(run: RunConfig) -> Reasons:
    found: Reasons = {}
    train = run.train
    if train.max_steps is not None:
        found["train.num_train_epochs"] = "train.max_steps counts instead"
    elif num_steps(run, epoch=1) == 1:
        found["train.epoch_orders"] = "a single epoch has one order"
    found |= (
        _unused_in_average(run)
        | _unused_in_distill(run)
        | _unused_in_muon(run)
        | _unused_in_method(run)
    )
    found |= dict.fromkeys(run.unused_sections, f"no setting of the arm {run.arm}")
    if not run.uses("curriculum"):
        of_stages = ("bank", "tags", "curriculum", "engine.keep_stages")
        return found | dict.fromkeys(of_stages, f"the arm {run.arm} has neither bank nor stages")
    for name in INHERITED:
        if all(getattr(stage, name) is not None for stage in run.curriculum):
            found[f"train.{name}"] = f"every stage of the arm schemabank has a {name} of its own"
    return found | _unused_in_bank(run) | _unused_in_tags(run)


def _unused_in_method(run: RunConfig) -> Reasons:
    """The settings of a method's own section that the method says it does not use."""
    method = METHODS[run.arm]
    if method.settings is None:
        return {}
    unused = method.unused(run.own(method.settings))
    return {f"{run.arm}.{name}": reason for name, reason in unused.items()}


def _unused_in_distill(run: RunConfig) -> Reasons:
    if run.num_teachers:
        return {}
    names = set(type(run.distill).model_fields) - {"teachers"}
    return {f"distill.{name}": "distill.teachers is 0" for name in sorted(names)}


def _unused_in_average(run: RunConfig) -> Reasons:
    used = {
        "none": set[str](),
        "last": {"last", "span_ratio"},
        "exponential": {"decay"},
        "bema": {"ema_power", "bias_power", "lag"},
    }[run.average.kind]
    if not any("lora" in stage.train for stage in run.stages()):
        idle = ("average", "rescale", "train.loraplus_lr_ratio", "train.optimizer")
        return dict.fromkeys(idle, "no stage trains lora")
    names = set(type(run.average).model_fields) - used - {"kind"}
    found = {f"average.{name}": f"average.kind is {run.average.kind}" for name in sorted(names)}
    if run.average.kind == "last" and run.average.last == 1:
        found["average.span_ratio"] = "average.last is 1, the last weights alone"
    return found


def _unused_in_muon(run: RunConfig) -> Reasons:
    """AdamW's own settings, where it updates nothing at all."""
    method = METHODS[run.arm]
    if run.train.optimizer == "adamw" or any(set(s.train) != {"lora"} for s in run.stages()):
        return {}
    if method.settings is not None and method.other_weights(run.own(method.settings)):
        return {}
    names = ("train.adam_beta2", "train.adam_epsilon")
    return dict.fromkeys(names, "train.optimizer is muon, which has neither")


def _unused_in_bank(run: RunConfig) -> Reasons:
    found: Reasons = {}
    routed = [stage for stage in run.curriculum if not _is_bare(stage)]
    if not routed:
        found["bank"] = found["tags"] = "no stage uses the bank"
    elif not any("schemas" in stage.train for stage in routed):
        found["bank.orthonormality_weight"] = "no stage trains schemas"
    if run.bank.layers is not None:
        found["bank.last_n"] = "bank.layers says where banks are"
    for stage in run.curriculum:
        if _is_bare(stage):
            other = "bank_probability" if stage.bank_scale == (0.0, 0.0) else "bank_scale"
            for name in (other, "bare_tail_ratio"):
                reason = f"the stage {stage.name} is bare from its start"
                found[f"curriculum.{stage.name}.{name}"] = reason
    return found


def _unused_in_tags(run: RunConfig) -> Reasons:
    tags = run.tags
    keeping = [stage for stage in run.curriculum if any(stage.tag_keep)]
    if tags.tagger == "none":
        names = [f"tags.{name}" for name in ("num_tags", "field", "delivery", "loss_weight")]
        names += [f"curriculum.{stage.name}.tag_keep" for stage in keeping]
        return dict.fromkeys(names, "tags.tagger is none")
    found: Reasons = {}
    if not keeping:
        found["tags"] = "no stage has a tag_keep above 0"
    elif tags.delivery == "loss" and tags.loss_weight == 0:
        found["tags"] = "tags.loss_weight is 0, and nothing else tells of tags"
    elif tags.delivery == "loss":
        bare = [stage for stage in keeping if _is_bare(stage)]
        names = [f"curriculum.{stage.name}.tag_keep" for stage in bare]
        found = dict.fromkeys(names, "tags are told by a loss on the router, and the stage is bare")
    if tags.tagger != "field":
        found["tags.field"] = f"tags.tagger is {tags.tagger}, not field"
    if tags.delivery == "prefix":
        found["tags.loss_weight"] = "tags.delivery is prefix"
    return found


def _is_bare(stage: StageSettings) -> bool:
    return (0.0, 0.0) in (stage.bank_scale, stage.bank_probability)


def _unused_in_items(run: RunConfig) -> Reasons:
    """The settings of prompts, for a task that asks no prompts."""
    if TASKS[run.task.name].items is None:
        return {}
    return dict.fromkeys(PROMPTS, f"{run.task.name} asks pieces of its texts, not prompts")


def _unused_in_task(run: RunConfig) -> Reasons:
    task, own = run.task, run.task.records
    found = {f"task.{n}": f"task.name is {task.name}" for n in TASK_NAMES if n != task.name}
    if not TASKS[task.name].ends:
        found["task.end_token"] = f"targets of {task.name} have no end token"
    if task.name == "gsm8k" and task.target == "final":
        found["task.gsm8k.calculator_marks"] = "task.target is final, which has no marks"
    if task.name == "records":
        for part in ("validation", "test"):
            if getattr(own, f"{part}_split") is not None:
                reason = f"task.records.{part}_split names a split of the data"
                found[f"task.records.{part}_ratio"] = reason
        if Path(own.path).expanduser().exists():
            names = ("task.records.config", "task.records.revision")
            found |= dict.fromkeys(names, "the data lie on this machine, not on the hub")
    return found


def _unused_in_evaluation(run: RunConfig) -> Reasons:
    found: Reasons = {}
    metric = metric_of(run.task)
    if not METRICS[metric].decodes:
        found |= dict.fromkeys(DECODING, f"the metric {metric} asks for no completions")
    elif run.eval.temperature == 0:
        found |= dict.fromkeys(SAMPLING, "eval.temperature is 0, so nothing is drawn")
    if not run.engine.trackers:
        found["engine.tracker_project"] = "engine.trackers names none"
    return found
