"""From a task's examples to tokens: what the loss sees, what is asked at evaluation, which tags.

Prompt and completion are tokenised apart and joined, so that training and decoding see the very
same prompt tokens whatever a tokenizer would merge across the seam.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from schemabank.cohort.batches import Encoded, encode, plan_schedule
from schemabank.cohort.slots import TagPlan, TrainingData
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

Embeddings = Callable[[Sequence[Example]], Mapping[str, np.ndarray]]


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
    examples: Sequence[Example],
    settings: TaskSettings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    prefix_room: int = 0,
) -> list[Encoded]:
    """Turn training examples into tokens with their labels.

    Args:
        examples: training examples.
        settings: prompt, target, end token and length limit.
        tokenizer: the base model's.
        prefix_room: tokens of ``max_length`` that are kept free for a tag prefix.

    Raises:
        InputError: an example whose completion is cut off whole, or more cut ones than allowed.
    """
    encoded = [
        encode(
            tokenizer(_prompt(e, settings, ()))["input_ids"],
            _target_tokens(e, settings, tokenizer, end_token=settings.end_token),
            example_id=e.id,
            max_length=settings.max_length - prefix_room,
            completion_only=settings.completion_only_loss,
        )
        for e in examples
    ]
    num_cut = sum(e.cut for e in encoded)
    if num_cut > settings.max_cut_ratio * len(encoded):
        raise InputError(
            f"task.max_length is {settings.max_length}, which cuts {num_cut} of {len(encoded)} "
            f"training examples: allowed is a share of task.max_cut_ratio = "
            f"{settings.max_cut_ratio:g}, raise either"
        )
    return encoded


def training_data(
    examples: Sequence[Example], run: RunConfig, tokenizer: PreTrainedTokenizerBase
) -> TrainingData:
    """Tokenise a run's training examples and plan the schedule of its batches."""
    chosen = examples[: run.task.train_limit]
    if not chosen:
        raise InputError("the training split holds 0 examples, allowed is at least 1: widen it")
    room = _prefix_room(run, tokenizer)
    encoded = tokenise(chosen, run.task, tokenizer, prefix_room=room)
    return TrainingData(
        examples=chosen,
        encoded=encoded,
        schedule=plan_schedule(
            encoded, batch_size=run.train.batch_size, max_buckets=run.engine.max_buckets
        ),
        tokenizer=tokenizer,
        prefix_room=room,
        beginning=len(tokenizer("")["input_ids"]),
        completion_only=run.task.completion_only_loss,
    )


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
        prompt = _prompt(example, task, shots)
        items.append(
            Item(
                id=example.id,
                group=example.group,
                prompt=prompt,
                prompt_tokens=tuple(tokenizer(prompt)["input_ids"]),
                target_tokens=_target_tokens(example, task, tokenizer, end_token=True),
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


def tag_plan(run: RunConfig, examples: Sequence[Example], embeddings: Embeddings) -> TagPlan | None:
    """Return how a run's examples are tagged, or ``None`` for a run without tags.

    Args:
        run: the run.
        examples: its training examples.
        embeddings: gives base-model embeddings by example id; called for the tagger ``cluster``.
    """
    if run.arm != "schemabank" or run.tags.tagger == "none":
        return None
    return TagPlan(
        tagger=_tagger(run.tags, run.bank, run.seed, examples, embeddings),
        prefix=uses_prefix(run),
        loss_weight=run.tags.loss_weight if run.tags.delivery in {"loss", "both"} else 0.0,
    )


def check_tags(run: RunConfig, examples: Sequence[Example]) -> None:
    """Tag one example, so that a missing field is found before anything is computed."""
    if run.arm == "schemabank" and run.tags.tagger not in {"none", "cluster"}:
        tagger = _tagger(run.tags, run.bank, run.seed, examples, lambda _: {})
        tagger(examples[0], rng=np.random.default_rng(0))


def end_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that ends a target."""
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no end-of-sequence token: give it an eos_token")
    return int(tokenizer.eos_token_id)


def _tagger(
    tags: TagSettings,
    bank: BankSettings,
    seed: int,
    examples: Sequence[Example],
    embeddings: Embeddings,
) -> Tagger:
    sizes = {"num_schemas": bank.num_schemas, "num_tags": tags.num_tags}
    makers: dict[str, Callable[[], Tagger]] = {
        "hash": lambda: hash_tagger(**sizes),
        "content": lambda: content_tagger(**sizes),
        "field": lambda: field_tagger(field=str(tags.field), **sizes),
        "random": lambda: random_tagger(**sizes),
        "cluster": lambda: cluster_tagger(embeddings(examples), seed=seed, **sizes),
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


def _target_tokens(
    example: Example,
    settings: TaskSettings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    end_token: bool,
) -> tuple[int, ...]:
    text = target_text(example, target=settings.target)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    return (*tokens, end_token_id(tokenizer)) if end_token else tuple(tokens)
