"""Owns what the names of columns say about the user's rows.

Most data sets call what is asked and what is answered by one of a few names. Other names say that
the rows are for another kind of training than there is here.
"""

from collections.abc import Iterable

# Columns that data sets have for what is asked and what is answered.
PAIRS = (
    *(("prompt", "completion"), ("question", "answer"), ("instruction", "output")),
    *(("instruction", "response"), ("prompt", "response"), ("query", "response")),
    *(("input", "output"), ("problem", "solution"), ("source", "target"), ("text", "label")),
)
# What an instruction or a question is about, where it has a column of its own.
CONTEXTS = ("context", "passage", "input")


def known_pair(columns: Iterable[str]) -> tuple[str, str] | None:
    """Return the columns for what is asked and answered, if they have usual names."""
    names = set(columns)
    return next((pair for pair in PAIRS if set(pair) <= names), None)


def contexts_of(asked: str, columns: Iterable[str]) -> list[str]:
    """Return the columns that say what is asked about; a column ``prompt`` is the whole prompt."""
    names = set() if asked == "prompt" else set(columns) - {asked}
    return [name for name in CONTEXTS if name in names]


def prompt_of(asked: str, columns: Iterable[str]) -> str:
    """Return a template of the prompt, with what the question or instruction is about.

    A column named ``prompt`` is the whole prompt, as TRL has it. A context that is empty in a row
    leaves an empty line there.
    """
    if asked == "prompt":
        return "{prompt}"
    about = [f"{{{name}}}" for name in contexts_of(asked, columns)]
    order = [f"{{{asked}}}", *about] if asked == "instruction" else [*about, f"{{{asked}}}"]
    return "\n".join([*order, "Answer: "])


def may_be_answered(columns: Iterable[str]) -> bool:
    """Whether rows that look like plain text have more columns, one of which may be an answer."""
    names = set(columns)
    is_other = {"chosen", "rejected"} <= names or "input_ids" in names
    return "text" in names and len(names) > 1 and not is_other


def other_training(columns: Iterable[str]) -> str | None:
    """Say what rows with such columns are for instead, and the way on; ``None`` if nothing does."""
    names = set(columns)
    here = "what is trained here is the completion of a prompt, or a chat"
    if {"chosen", "rejected"} <= names:
        return (
            f"these are preferences, but {here}: TRL's DPOTrainer trains on preferences; to learn "
            "the chosen answers alone, give them as completions"
        )
    if "input_ids" in names:
        return (
            f"these are tokens, but {here}, both as text: give the texts that the tokens were made "
            "of, or take a trainer, which schemabank.trainer lets train by a method, too"
        )
    if "text" in names:
        return (
            f"this is plain text, but {here}: divide each text into the columns prompt and "
            "completion, or train on whole texts with TRL's SFTTrainer"
        )
    return None
