"""From a task's examples to tokens: what the loss sees and what is asked at evaluation.

Prompt and completion are tokenised apart and joined, so that training and decoding see the very
same prompt tokens whatever a tokenizer would merge across the seam.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain

from transformers import PreTrainedTokenizerBase

from schemabank.common.errors import InputError
from schemabank.config.settings import EvalSettings, RunConfig
from schemabank.config.task import TaskSettings
from schemabank.engine.batches import Encoded, plan_schedule
from schemabank.engine.run import Run, TrainingData
from schemabank.engine.softtargets import SoftTargets
from schemabank.engine.stack import AdapterStack
from schemabank.methods import method_of
from schemabank.methods.method import Setup
from schemabank.runs.forms import Items
from schemabank.runs.tokens import (
    as_chat,
    beginning,
    check_known,
    completion_tokens,
    tokenise,
    tokenise_chats,
    tokens_of,
)
from schemabank.tasks import Example, Item, TaskData
from schemabank.tasks.catalog import TASKS, metric_of, prompt_of, split_of
from schemabank.tasks.chat import Piece, calls_tools, chat_pieces, is_within, joined
from schemabank.tasks.prompts import few_shot_examples, prompt_text, target_text
from schemabank.tasks.scoring.scores import METRICS, Metric, check_pass_at
from schemabank.tasks.seams import beginning_tokens, continuation_tokens, plain_tokens


def task_training_data(
    examples: Sequence[Example], run: RunConfig, tokenizer: PreTrainedTokenizerBase
) -> TrainingData:
    """Tokenise a task's training examples and plan the schedule of their batches."""
    task = run.task
    chosen = examples[: task.train_limit]
    if chosen and chosen[0].turns:  # then all are chats
        return chat_training_data(chosen, run, tokenizer)
    texts = ((e.id, _prompt(e, task, ()), target_text(e, target=task.target)) for e in chosen)
    return training_data(chosen, texts, run, tokenizer)


def chat_training_data(
    examples: Sequence[Example], run: RunConfig, tokenizer: PreTrainedTokenizerBase
) -> TrainingData:
    """Tokenise chats and plan the schedule of their batches."""
    return _planned(examples, tokenise_chats(examples, run.task, tokenizer), run, tokenizer)


def training_data(
    examples: Sequence[Example],
    texts: Iterable[tuple[str, str, str]],
    run: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> TrainingData:
    """Tokenise examples and plan the schedule of their batches.

    Args:
        examples: what taggers see.
        texts: id, prompt and completion of each.
        run: its task's tokenisation settings and batch size.
        tokenizer: the base model's.
    """
    if not examples:
        raise InputError("there are 0 training examples, allowed is at least 1: add some")
    return _planned(examples, tokenise(texts, run.task, tokenizer), run, tokenizer)


def _planned(
    examples: Sequence[Example],
    encoded: Sequence[Encoded],
    run: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> TrainingData:
    front = beginning_tokens(tokenizer)  # a chat template may write none
    return TrainingData(
        examples=examples,
        encoded=encoded,
        schedule=plan_schedule(
            encoded,
            batch_size=run.train.batch_size,
            max_buckets=run.train.max_buckets,
            num_orders=run.train.epoch_orders,
        ),
        tokenizer=tokenizer,
        beginning=len(front) if encoded[0].tokens[: len(front)] == front else 0,
        completion_only=run.task.completion_only_loss,
    )


def engine_run(
    run: RunConfig,
    examples: Sequence[Example],
    stack: AdapterStack,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    soft: SoftTargets | None = None,
) -> Run:
    """Return a run as the engine takes it; its method may read the stack's base model."""
    return Run(
        name=name,
        seed=run.seed,
        stages=run.stages(),
        train=run.train,
        lora=run.lora,
        average=run.averaging,
        passes=run.passes,
        method=method_of(run).of_run(run, Setup(examples, stack, tokenizer)),
        soft=soft,
    )


def prompt_forms(
    data: TaskData, run: RunConfig, settings: EvalSettings, tokenizer: PreTrainedTokenizerBase
) -> Items:
    """Return a run's items in the forms that it is asked in.

    That is their prompts as they stand and, for the untouched model where that is another text,
    without the white space at their end; a chat's prompt ends as its template says.
    """
    task = run.task
    whole = evaluation_items(data, task, settings, tokenizer)
    is_trimmed = any(item.prompt != item.prompt.rstrip() for item in whole)
    has_prompts = TASKS[task.name].items is None and not task.chat_template
    if run.trains or not is_trimmed or not has_prompts:
        return {"whole": whole}
    trimmed = evaluation_items(data, task, settings, tokenizer, trimmed=True)
    return {"whole": whole, "trimmed": trimmed}


def evaluation_items(
    data: TaskData,
    task: TaskSettings,
    settings: EvalSettings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    trimmed: bool = False,
) -> list[Item]:
    """Return the items to score: the first ``limit`` of every group of the split.

    Args:
        data: the task's.
        task: how its examples are asked.
        settings: which of them, and after how many shots.
        tokenizer: the base model's.
        trimmed: whether the white space at a prompt's end is the answer's beginning instead.

    Raises:
        InputError: the split is empty, there are fewer training examples than shots, or a gold
            answer that the metric cannot use.
    """
    TASKS[task.name].check(task)
    split = split_of(task, settings.split)
    examples = chosen_examples(data, task, split=split, limit=settings.limit)
    return items_of(examples, data, task, settings, tokenizer, trimmed=trimmed)


def chosen_examples(
    data: TaskData, task: TaskSettings, *, split: str, limit: int | None
) -> list[Example]:
    """Return the first ``limit`` examples of every group of a split.

    Raises:
        InputError: the split is empty.
    """
    examples = data.split(split)
    if not examples:
        sizes = {name: len(data.split(name)) for name in ("train", "validation", "test")}
        held = ", ".join(f"{name} with {size:,}" for name, size in sizes.items() if size)
        raise InputError(
            f"the split {split!r} of {task.name} holds 0 items, allowed is at least 1: set "
            f"eval.split (or --split of routing) to one that holds some ({held or 'none does'}), "
            f"or enlarge it by the settings of task.{task.name}"
        )
    return _limited(examples, limit)


def items_of(
    examples: Sequence[Example],
    data: TaskData,
    task: TaskSettings,
    settings: EvalSettings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    trimmed: bool = False,
) -> list[Item]:
    """Turn examples into the items that an evaluation asks, see :func:`evaluation_items`.

    Raises:
        InputError: there are fewer training examples than shots, or a gold answer that the metric
            cannot use.
    """
    of_task = TASKS[task.name].items
    if of_task is not None:
        if metric_of(task) != TASKS[task.name].metric:
            raise InputError(
                f"task.metric is {metric_of(task)!r}, but {task.name} allows only "
                f"{TASKS[task.name].metric!r}: leave it out"
            )
        if settings.few_shot:
            raise InputError(
                f"eval.few_shot is {settings.few_shot}, but {task.name} has no prompts for "
                "examples to stand in: allowed is 0"
            )
        return of_task(examples, task, tokenizer)
    if metric_of(task) == "code" and TASKS[task.name].judge is None:
        raise InputError(
            f"task.metric is 'code', but {task.name} has no programs to run: allowed are the other "
            "metrics, take one of those"
        )
    shots = few_shot_examples(data, settings.few_shot)
    metric = METRICS[metric_of(task)]
    check_pass_at(metric, settings.pass_at)
    if settings.few_shot and any(example.turns for example in examples):
        raise InputError(
            f"eval.few_shot is {settings.few_shot}, but a chat has no place for other examples: "
            "allowed is 0, leave it out"
        )
    for example in examples:
        _check_golds(example, metric)
    items = [_item(example, task, shots, tokenizer, trimmed=trimmed) for example in examples]
    check_known((item.prompt_tokens for item in items), tokenizer)
    return [replace(i, sample=number) for i in items for number in range(settings.num_samples)]


def _limited(examples: Sequence[Example], limit: int | None) -> list[Example]:
    """The first so many examples of every group, in their order."""
    taken: Counter[str] = Counter()
    chosen = []
    for example in examples:
        taken[example.group] += 1
        if limit is None or taken[example.group] <= limit:
            chosen.append(example)
    return chosen


def _item(
    example: Example,
    task: TaskSettings,
    shots: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    trimmed: bool,
) -> Item:
    if example.turns:
        return chat_item(example, tokenizer)
    prompt = as_chat(_prompt(example, task, shots), task, tokenizer)
    *asked, target = _pieces(example, task, shots, trimmed=trimmed)
    return Item(
        id=example.id,
        group=example.group,
        cluster=example.cluster,
        prompt=prompt.rstrip() if trimmed else prompt,
        prompt_tokens=tuple(
            plain_tokens(prompt, tokenizer)
            if task.chat_template
            else [*beginning(task, tokenizer), *_joined(asked, tokenizer)]
        ),
        target_tokens=completion_tokens(target, tokenizer, end_token=True),
        golds=example.golds,
        fields=example.fields,
    )


def chat_item(example: Example, tokenizer: PreTrainedTokenizerBase) -> Item:
    """Ask for a chat's last turn after all that goes before, as its template writes that.

    These are the tokens of training, unless the template leaves out what earlier turns thought.
    """
    pieces = _asking_pieces(example, tokenizer)
    last = max(i for i, piece in enumerate(pieces) if piece.kind == "given")
    said, *end = tokens_of(pieces, tokenizer, end_token=True)[last + 1 :]
    # A mark and the end token behind it, as Phi-3 has them: the decoder stops at the token itself.
    mark = pieces[-1].text.strip() if pieces[-1].kind == "end" else ""
    mark = mark.removesuffix(tokenizer.eos_token or "").strip()
    # What the template writes before the answer, as Qwen3's empty thought, is no part of it.
    answer, whole = example.turns[-1].content.strip(), pieces[last + 1].text.strip()
    calls = calls_tools(example.turns[-1])  # then the answer is what the template writes
    before = whole.removesuffix(answer) if whole.endswith(answer) and not calls else ""
    return Item(
        id=example.id,
        group=example.group,
        cluster=example.cluster,
        prompt=joined(pieces[: last + 1]),
        prompt_tokens=tuple(chain(*tokens_of(pieces[: last + 1], tokenizer, end_token=False))),
        target_tokens=tuple(chain(said, *end)),
        golds=example.references or ((whole,) if calls else example.golds),
        num_end=sum(map(len, end)),
        start_text=before.strip(),
        end_text=mark,
        fields=example.fields,
    )


def _asking_pieces(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    """The pieces of a chat whose last turn is asked for; those of its training where they may."""
    pieces = chat_pieces(example, tokenizer)
    *earlier, last = example.turns
    if not any(turn.learned for turn in earlier):
        return pieces
    turns = (*(turn._replace(learned=False) for turn in earlier), last)
    alone = chat_pieces(replace(example, turns=turns), tokenizer)
    return pieces if joined(pieces) == joined(alone) else alone


def _prompt(example: Example, settings: TaskSettings, shots: Sequence[Example]) -> str:
    """Fill the template; every prompt, of whatever task, goes through here.

    Raises:
        InputError: the prompt lacks its question.
    """
    template = prompt_of(settings)
    prompt = prompt_text(example, template=template, shots=shots, target=settings.target)
    if not example.question.strip():
        raise InputError(f"{example.id!r} asks nothing: its question is empty, fill it in")
    if not is_within(example.question, prompt):
        raise InputError(
            f"task.prompt {template!r} leaves the question of {example.id!r} out: allowed are "
            "templates that hold {question}, add it"
        )
    return prompt


def _pieces(
    example: Example, settings: TaskSettings, shots: Sequence[Example], *, trimmed: bool
) -> list[str]:
    """Prompts and targets in turn, the example's last; joined they are the whole text.

    Shots' seams are the example's own: trimmed, white space at a prompt's end begins its target.
    """
    pieces: list[str] = []
    for shown in (*shots, example):
        prompt = _prompt(shown, settings, ())
        end = len(prompt.rstrip()) if trimmed else len(prompt)
        pieces += [prompt[:end], prompt[end:] + target_text(shown, target=settings.target)]
        pieces[-1] += "" if shown is example else "\n\n"
    return pieces


def _joined(pieces: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens of pieces of a text, each tokenised by itself."""
    first, *rest = pieces
    tokens = plain_tokens(first, tokenizer)
    for piece in rest:
        tokens += continuation_tokens(piece, tokenizer)
    return tokens


def _check_golds(example: Example, metric: Metric) -> None:
    """Find a gold answer that no completion can match, before anything is computed."""
    try:
        for gold in example.golds:
            metric.canonical(gold)
    except InputError as error:
        raise InputError(f"{example.id}: {error}") from error
