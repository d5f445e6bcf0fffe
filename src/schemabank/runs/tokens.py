"""Texts and chats as tokens, with the labels that the loss sees.

Prompt and completion are tokenised apart and joined, and so are the turns of a chat, so that
training and decoding see the very same prompt tokens whatever a tokenizer would merge across the
seam.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice

from transformers import PreTrainedTokenizerBase

from schemabank.common.errors import InputError
from schemabank.common.stored import kept
from schemabank.config.task import TaskSettings
from schemabank.engine.batches import ENCODED, Encoded, encode, encode_turns
from schemabank.tasks import Example
from schemabank.tasks.catalog import TASKS
from schemabank.tasks.chat import Piece, chat_pieces, in_chat
from schemabank.tasks.seams import (
    beginning_tokens,
    continuation_tokens,
    continuation_tokens_of,
    plain_tokens,
    plain_tokens_of,
)

# Of training tokens in memory, about seven million of them; more lie in a file, from which a row
# takes some 20 microseconds.
MOST_BYTES = 256 * 2**20
AT_ONCE = 256  # texts that a tokenizer is given together


def tokenise(
    texts: Iterable[tuple[str, str, str]],
    settings: TaskSettings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    purpose: str = "training",
) -> Sequence[Encoded]:
    """Turn prompts and completions into tokens with their labels.

    Args:
        texts: id, prompt and completion of every example.
        settings: end token, loss and length limit.
        tokenizer: the base model's.
        purpose: what the examples are for, for messages.

    Raises:
        InputError: an example whose completion is cut off whole, or more cut ones than allowed.
    """
    rest = iter(texts)
    parts = iter(lambda: [*islice(rest, AT_ONCE)], [])
    encoded = (each for part in parts for each in _encoded(part, settings, tokenizer))
    return _checked(encoded, settings, tokenizer, purpose)


def _encoded(
    texts: Sequence[tuple[str, str, str]],
    settings: TaskSettings,
    tokenizer: PreTrainedTokenizerBase,
) -> Iterator[Encoded]:
    """Tokenise a few examples together."""
    ends = settings.end_token and TASKS[settings.name].ends
    front, end = beginning(settings, tokenizer), [end_token_id(tokenizer)] if ends else []
    names, prompts, completions = zip(*texts, strict=True)
    asked = plain_tokens_of([as_chat(p, settings, tokenizer) for p in prompts], tokenizer)
    answered = continuation_tokens_of(completions, tokenizer)
    for name, prompt, completion in zip(names, asked, answered, strict=True):
        yield encode(
            [*front, *prompt],
            [*completion, *end],
            example_id=name,
            max_length=settings.max_length,
            completion_only=settings.completion_only_loss,
        )


def tokenise_chats(
    examples: Sequence[Example],
    settings: TaskSettings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    purpose: str = "training",
) -> Sequence[Encoded]:
    """Turn chats into tokens with a label for each that a learned turn says.

    Args:
        examples: with their turns.
        settings: end token, loss and length limit.
        tokenizer: the base model's.
        purpose: what the chats are for, for messages.

    Raises:
        InputError: as `tokenise`, and a chat that the tokenizer's template cannot render.
    """
    encoded = (
        encode_turns(
            _chat_tokens(example, tokenizer, end_token=settings.end_token),
            example_id=example.id,
            max_length=settings.max_length,
            completion_only=settings.completion_only_loss,
        )
        for example in examples
    )
    return _checked(encoded, settings, tokenizer, purpose)


def _checked(
    examples: Iterable[Encoded],
    settings: TaskSettings,
    tokenizer: PreTrainedTokenizerBase,
    purpose: str,
) -> Sequence[Encoded]:
    """Refuse texts that the tokenizer does not know, and more cut ones than allowed."""
    encoded = kept(examples, ENCODED, at_most=MOST_BYTES)
    check_known((e.tokens[: e.label_start] for e in encoded), tokenizer)
    num_cut = sum(e.cut for e in encoded)
    if num_cut > settings.max_cut_ratio * len(encoded):
        raise InputError(
            f"task.max_length is {settings.max_length}, which cuts {num_cut} of {len(encoded)} "
            f"{purpose} examples: allowed is a share of task.max_cut_ratio = "
            f"{settings.max_cut_ratio:g}, raise either"
        )
    return encoded


def completion_tokens(
    text: str, tokenizer: PreTrainedTokenizerBase, *, end_token: bool
) -> tuple[int, ...]:
    """Return the tokens of a text behind a prompt, with the end token if it is to have one."""
    tokens = continuation_tokens(text, tokenizer)
    return (*tokens, end_token_id(tokenizer)) if end_token else tuple(tokens)


def end_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that ends a target."""
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no end-of-sequence token: give it an eos_token")
    return int(tokenizer.eos_token_id)


def check_known(prompt_tokens: Iterable[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse prompts that are lost on the tokenizer: its unknown token says nothing.

    Raises:
        InputError: more of the prompts' tokens are unknown than known.
    """
    if tokenizer.unk_token_id in {None, tokenizer.eos_token_id}:
        return
    counts = Counter(chain.from_iterable(prompt_tokens))
    unknown, total = counts[tokenizer.unk_token_id], counts.total()
    if 2 * unknown > total:
        raise InputError(
            f"{unknown:,} of the prompts' {total:,} tokens are {tokenizer.unk_token!r}, since the "
            "tokenizer does not know their text: allowed are at most half of them, use a model "
            "for this script or language"
        )


def as_chat(prompt: str, settings: TaskSettings, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a prompt as the user's turn of a chat, where the settings ask for one."""
    return in_chat(prompt, tokenizer) if settings.chat_template else prompt


def beginning(settings: TaskSettings, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Special tokens in front of a prompt; a chat template has its own in its text."""
    return () if settings.chat_template else beginning_tokens(tokenizer)


def _chat_tokens(
    example: Example, tokenizer: PreTrainedTokenizerBase, *, end_token: bool
) -> list[tuple[Sequence[int], bool]]:
    """The tokens of a chat's pieces, and whether the loss sees them."""
    pieces = chat_pieces(example, tokenizer)
    tokens = tokens_of(pieces, tokenizer, end_token=end_token)
    seen = [piece.kind != "given" for piece in pieces] + [True] * (len(tokens) - len(pieces))
    return list(zip(tokens, seen, strict=True))


def tokens_of(
    pieces: Sequence[Piece], tokenizer: PreTrainedTokenizerBase, *, end_token: bool
) -> list[list[int]]:
    """Tokens of every piece of a chat, and of the end token where its template ends it with none.

    Each is tokenised by itself, as a model that answers is given the prompt and says the rest.
    """
    first, *rest = pieces
    found = [plain_tokens(first.text, tokenizer)]
    found += [continuation_tokens(piece.text, tokenizer) for piece in rest]
    if end_token and pieces[-1].kind == "said":
        found.append([end_token_id(tokenizer)])
    return found
