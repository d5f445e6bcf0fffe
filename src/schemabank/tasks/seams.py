"""Owns the seam between a prompt and what follows it: tokens of a text there, and text of tokens.

Prompt and completion are tokenised apart, and many tokenizers treat the beginning and the end of a
text specially: SentencePiece-style ones put a blank before the first word and remove it when they
decode, others append an end token. Neither belongs in the middle of a text. So both directions
treat a completion as text behind a prompt.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from schemabank.common.errors import InputError

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerBase

# What a text may stand behind, to see its tokens there; one that it does not merge with is used.
ANCHORS = ("\n", ":", "a")


def beginning_tokens(tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """Return the special tokens that a tokenizer puts before a text, such as ``<s>`` or ``[CLS]``.

    What it puts behind one (an end token, ``[SEP]``) is for texts that are complete, and a prompt
    is not.

    Raises:
        InputError: the tokenizer changes the text's own tokens when it adds special ones.
    """
    plain, whole = plain_tokens("a", tokenizer), list(tokenizer("a")["input_ids"])
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return tuple(whole[:start])
    raise InputError(
        f"the tokenizer turns 'a' into the tokens {plain}, but with its special tokens into "
        f"{whole}: allowed are special tokens before and behind a text's own, use a tokenizer "
        "whose post-processor does no more"
    )


def plain_tokens(text: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the tokens of a text that begins a sequence, without any special tokens."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def plain_tokens_of(texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    """Return the `plain_tokens` of several texts, which tokenizers in Rust cut on all cores."""
    return [*tokenizer([*texts], add_special_tokens=False)["input_ids"]]


def continuation_tokens_of(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase"
) -> list[list[int]]:
    """Return the `continuation_tokens` of several texts."""
    return [
        tokens if _stands_alone(text, tokens, tokenizer) else continuation_tokens(text, tokenizer)
        for text, tokens in zip(texts, plain_tokens_of(texts, tokenizer), strict=True)
    ]


def continuation_tokens(text: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the tokens of a text that stands behind another one, where they are read as ``text``.

    These are its tokens alone where the tokenizer adds nothing to a text, else those that it has
    behind another character. A tokenizer that changes every text (to lower case, say) gives the
    tokens of the text alone.
    """
    alone = plain_tokens(text, tokenizer)
    if _stands_alone(text, alone, tokenizer):
        return alone
    for anchor in ANCHORS:
        before, joined = plain_tokens(anchor, tokenizer), plain_tokens(anchor + text, tokenizer)
        tokens = joined[len(before) :]
        is_apart = joined[: len(before)] == before
        if is_apart and continuation_text(before, tokens, tokenizer) == text:
            return tokens
    return alone


def leading_tokens(text: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the tokens of a text that stands before one that begins a sequence by itself.

    Where the tokenizer puts a blank before every text, a blank at this one's end would be a second
    one there, so it is left out. A tokenizer that changes every text gives the tokens of
    the whole.
    """
    whole, bare = plain_tokens(text, tokenizer), plain_tokens(text.rstrip(" "), tokenizer)
    for anchor in ANCHORS:
        behind = plain_tokens(anchor, tokenizer)
        blank = _decode_text(behind, tokenizer).removesuffix(anchor)  # some say it when they decode
        for tokens in (whole, bare):
            if _decode_text([*tokens, *behind], tokenizer) == blank + text + anchor:
                return tokens
    return whole


def continuation_text(
    before: Sequence[int], tokens: Sequence[int], tokenizer: "PreTrainedTokenizerBase"
) -> str:
    """Return what tokens say behind others, special tokens spelt out.

    It is what the whole has beyond the common beginning of the whole and of ``before`` alone; the
    two part earlier than at the end of ``before`` only where that ends within a character.
    """
    whole, start = _decode_text([*before, *tokens], tokenizer), _decode_text(before, tokenizer)
    if whole.startswith(start):
        return whole[len(start) :]
    common = next(i for i, (a, b) in enumerate(zip(whole + "\0", start, strict=False)) if a != b)
    return whole[common:]


def _stands_alone(text: str, tokens: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a text's own tokens say it behind any other text, too."""
    return _decode_text([*tokens, *tokens], tokenizer) == text + text


def _decode_text(tokens: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> str:
    # Cleaning up would take away blanks that the tokens say: those before punctuation.
    text = tokenizer.decode(
        list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return str(text)
