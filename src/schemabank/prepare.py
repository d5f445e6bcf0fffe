"""From a task's examples to tokens: what the loss sees, what is asked at evaluation, which tags.

Prompt and completion are tokenised apart and joined, so that training and decoding see the very
same prompt tokens whatever a tokenizer would merge across the seam.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from schemabank.cohort.batches import Encoded, collate, encode, plan_schedule
from schemabank.cohort.slots import Run, TagPlan, TrainingData
from schemabank.cohort.stack import AdapterStack
from schemabank.config import BankSettings, EvalSettings, RunConfig, TagSettings, TaskSettings
from schemabank.errors import InputError
from schemabank.tags import (
    Tagger,
    cluster_tagger,
    content_tagger,
    field_tagger,
    hash_tagger,
    prefix_text,
    random_tagger,
)
from schemabank.tasks import Example, TaskData, gsm8k, gsm_symbolic
from schemabank.tasks.prompts import few_shot_examples, prompt_text, target_text

Embed = Callable[[], Mapping[str, np.ndarray]]
EMBEDDING_BATCH = 16


@dataclass(frozen=True)
class Item:
    """One question of an evaluation.

    Attributes:
        id, group: the example's.
        prompt: what the model is given, as text.
        prompt_tokens: the same as token ids.
        target_tokens: the gold target with its end token.
        gold: the final answer.
    """

    id: str
    group: str
    prompt: str
    prompt_tokens: tuple[int, ...]
    target_tokens: tuple[int, ...]
    gold: str


def load_task(settings: TaskSettings) -> TaskData:
    """Load the task that the settings name."""
    loaders: dict[str, Callable[[], TaskData]] = {
        "gsm8k": lambda: gsm8k.load(**settings.gsm8k.model_dump()),
        "gsm_symbolic": lambda: gsm_symbolic.load(**settings.gsm_symbolic.model_dump()),
    }
    return loaders[settings.name]()


def tokenise(
    texts: Sequence[tuple[str, str, str]],
    settings: TaskSettings,
    tokenizer: PreTrainedTokenizerBase,
) -> list[Encoded]:
    """Turn prompts and completions into tokens with their labels.

    Args:
        texts: id, prompt and completion of every example.
        settings: end token, loss and length limit.
        tokenizer: the base model's.

    Raises:
        InputError: an example whose completion is cut off whole, or more cut ones than allowed.
    """
    encoded = [
        encode(
            tokenizer(prompt)["input_ids"],
            _completion_tokens(completion, tokenizer, end_token=settings.end_token),
            example_id=example_id,
            max_length=settings.max_length,
            completion_only=settings.completion_only_loss,
        )
        for example_id, prompt, completion in texts
    ]
    num_cut = sum(e.cut for e in encoded)
    if num_cut > settings.max_cut_ratio * len(encoded):
        raise InputError(
            f"task.max_length is {settings.max_length}, which cuts {num_cut} of {len(encoded)} "
            f"training examples: allowed is a share of task.max_cut_ratio = "
            f"{settings.max_cut_ratio:g}, raise either"
        )
    return encoded


def task_training_data(
    examples: Sequence[Example], run: RunConfig, tokenizer: PreTrainedTokenizerBase
) -> TrainingData:
    """Tokenise a task's training examples and plan the schedule of their batches."""
    task = run.task
    chosen = examples[: task.train_limit]
    texts = [(e.id, _prompt(e, task, ()), target_text(e, target=task.target)) for e in chosen]
    return training_data(chosen, texts, run, tokenizer)


def training_data(
    examples: Sequence[Example],
    texts: Sequence[tuple[str, str, str]],
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
    encoded = tokenise(texts, run.task, tokenizer)
    return TrainingData(
        examples=examples,
        encoded=encoded,
        schedule=plan_schedule(
            encoded, batch_size=run.train.batch_size, max_buckets=run.train.max_buckets
        ),
        tokenizer=tokenizer,
        beginning=len(tokenizer("")["input_ids"]),
        completion_only=run.task.completion_only_loss,
    )


def engine_run(
    run: RunConfig,
    examples: Sequence[Example],
    stack: AdapterStack,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
) -> Run:
    """Return a run as the engine takes it; the tagger ``cluster`` reads the stack's base model."""
    return Run(
        name=name,
        seed=run.seed,
        stages=run.stages(),
        train=run.train,
        lora=run.lora,
        bank=run.bank if run.arm == "schemabank" else None,
        tags=_tag_plan(run, tokenizer, lambda: embeddings(stack, tokenizer, examples)),
    )


def embeddings(
    stack: AdapterStack, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]
) -> dict[str, np.ndarray]:
    """Mean-pooled final hidden states of the questions, by example id.

    Before training, when LoRA's B is zero, these are the base model's.
    """
    found: dict[str, np.ndarray] = {}
    with stack.evaluating("off"):
        for start in range(0, len(examples), EMBEDDING_BATCH):
            chosen = examples[start : start + EMBEDDING_BATCH]
            encoded = [
                Encoded(id=e.id, tokens=tuple(tokenizer(e.question)["input_ids"]), label_start=1)
                for e in chosen
            ]
            width = max(len(e.tokens) for e in encoded)
            batch = collate([encoded] * stack.num_slots, width=width, num_labels=width)
            batch = batch.to(stack.model.device)
            hidden = stack.hidden(batch.tokens)[: len(chosen)].float()
            real = batch.real[0][..., None]
            pooled = (hidden * real).sum(1) / real.sum(1)
            found |= dict(zip((e.id for e in chosen), pooled.cpu().numpy(), strict=True))
    return found


def evaluation_items(
    data: TaskData,
    task: TaskSettings,
    settings: EvalSettings,
    tokenizer: PreTrainedTokenizerBase,
) -> list[Item]:
    """Return the items to score: the first ``limit`` of every group of the split.

    Raises:
        InputError: the split is empty, or there are fewer training examples than shots.
    """
    shots = few_shot_examples(data, settings.few_shot)
    items: list[Item] = []
    taken: dict[str, int] = {}
    for example in data.split(settings.split):
        taken[example.group] = taken.get(example.group, 0) + 1
        if settings.limit is not None and taken[example.group] > settings.limit:
            continue
        items.append(
            Item(
                id=example.id,
                group=example.group,
                prompt=_prompt(example, task, shots),
                prompt_tokens=_prompt_tokens(example, task, shots, tokenizer),
                target_tokens=_completion_tokens(
                    target_text(example, target=task.target), tokenizer, end_token=True
                ),
                gold=example.answer,
            )
        )
    if not items:
        raise InputError(
            f"the split {settings.split!r} of {task.name} holds 0 items, allowed is at least 1: "
            "choose another split or enlarge it"
        )
    return items


def uses_prefix(run: RunConfig) -> bool:
    """Whether a run puts tags in front of its prompts."""
    tagged = run.arm == "schemabank" and run.tags.tagger != "none"
    return tagged and run.tags.delivery in {"prefix", "both"}


def check_tags(run: RunConfig, examples: Sequence[Example]) -> None:
    """Find what no tagger can work with, a missing field for one, before anything is computed."""
    if run.arm != "schemabank" or run.tags.tagger == "none":
        return
    if run.tags.tagger == "cluster":
        num_questions = len({example.question for example in examples})
        if num_questions < run.bank.num_schemas:
            raise InputError(
                f"bank.num_schemas is {run.bank.num_schemas}, but tags.tagger 'cluster' allows 1 "
                f"to {num_questions}, the number of distinct training questions: lower it"
            )
        return
    tagger = _tagger(run.tags, run.bank, run.seed, dict)
    tagger(examples[0], rng=np.random.default_rng(0))


def end_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that ends a target."""
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no end-of-sequence token: give it an eos_token")
    return int(tokenizer.eos_token_id)


def _tag_plan(run: RunConfig, tokenizer: PreTrainedTokenizerBase, embed: Embed) -> TagPlan | None:
    """How a run's examples are tagged, or ``None`` for a run without tags."""
    if run.arm != "schemabank" or run.tags.tagger == "none":
        return None
    return TagPlan(
        tagger=_tagger(run.tags, run.bank, run.seed, embed),
        num_tags=run.tags.num_tags,
        prefix_room=_prefix_room(run, tokenizer),
        loss_weight=run.tags.loss_weight if run.tags.delivery in {"loss", "both"} else 0.0,
        fixed=run.tags.tagger != "random",
    )


def _tagger(tags: TagSettings, bank: BankSettings, seed: int, embed: Embed) -> Tagger:
    sizes = {"num_schemas": bank.num_schemas, "num_tags": tags.num_tags}
    makers: dict[str, Callable[[], Tagger]] = {
        "hash": lambda: hash_tagger(**sizes),
        "content": lambda: content_tagger(**sizes),
        "field": lambda: field_tagger(field=str(tags.field), **sizes),
        "random": lambda: random_tagger(**sizes),
        "cluster": lambda: cluster_tagger(embed(), seed=seed, **sizes),
    }
    return makers[tags.tagger]()


def _prefix_room(run: RunConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of the longest tag prefix; 0 for a run without prefixes."""
    if not uses_prefix(run):
        return 0
    prefixes = [prefix_text((i,) * run.tags.num_tags) for i in range(run.bank.num_schemas)]
    return max(len(tokenizer(p, add_special_tokens=False)["input_ids"]) for p in prefixes)


def _prompt(example: Example, settings: TaskSettings, shots: Sequence[Example]) -> str:
    return prompt_text(
        example.question, template=settings.prompt, shots=shots, target=settings.target
    )


def _prompt_tokens(
    example: Example,
    settings: TaskSettings,
    shots: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[int, ...]:
    """Tokens of a prompt, with the seams of shots tokenised as the example's own seam is."""
    pieces: list[str] = []
    for shot in shots:
        pieces += [_prompt(shot, settings, ()), target_text(shot, target=settings.target) + "\n\n"]
    first, *rest = [*pieces, _prompt(example, settings, ())]
    tokens = list(tokenizer(first)["input_ids"])
    for piece in rest:
        tokens += tokenizer(piece, add_special_tokens=False)["input_ids"]
    return tuple(tokens)


def check_positions(items: Sequence[Item], settings: EvalSettings, model: PreTrainedModel) -> None:
    """Refuse prompts and completions that outgrow the model's positions.

    Raises:
        InputError: naming the longest prompt.
    """
    allowed = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(len(item.prompt_tokens) for item in items)
    if allowed is not None and longest + settings.max_new_tokens > allowed:
        raise InputError(
            f"the longest prompt has {longest} tokens and eval.max_new_tokens is "
            f"{settings.max_new_tokens}, but the model has {allowed} positions: use fewer shots or "
            "fewer new tokens"
        )


def _completion_tokens(
    text: str, tokenizer: PreTrainedTokenizerBase, *, end_token: bool
) -> tuple[int, ...]:
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    return (*tokens, end_token_id(tokenizer)) if end_token else tuple(tokens)
