"""Owns the chat template: it puts a whole prompt into the user's turn, alike every day.

A template is a program that came with the tokenizer. It may refuse a chat, leave text out, or write
today's date; each would change what is asked without a word.
"""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from schemabank.common.errors import InputError, first_line

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerBase

# What a template gets that asks for today: another date would give other prompts every day. It is
# the one that Llama 3's template writes where it cannot ask.
CHAT_DATE = datetime(2024, 7, 26, tzinfo=UTC)
DIRECTIVES = "aAwdbBmyYHIpMSfjUWcxX"  # of strftime
# What a program in Jinja can end in, beside its own refusal.
FAULTS = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
SHOWN = 60  # characters of a prompt or a rendered chat in a message


def in_chat(prompt: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return a prompt as the user's turn of a chat that the assistant answers.

    Raises:
        InputError: there is no template, it raises, or the chat lacks a part of the prompt.
    """
    if tokenizer.chat_template is None:
        raise InputError(
            "task.chat_template is true, but the tokenizer has no chat template: allowed are "
            "models that have one, set it to false"
        )
    turn = [{"role": "user", "content": prompt}]
    try:
        template = tokenizer.get_chat_template()
        if "strftime_now" in template:
            template = _fixed_date_macro() + template
        rendered = tokenizer.apply_chat_template(
            turn, chat_template=template, tokenize=False, add_generation_prompt=True
        )
    except (*FAULTS, RecursionError) as error:
        raise InputError(
            f"the tokenizer's chat template cannot put the prompt {prompt!r:.{SHOWN}} into the "
            f"user's turn ({type(error).__name__}: {first_line(error)}): allowed are templates "
            "for a chat of one user's turn, mend it or set task.chat_template to false"
        ) from error
    if is_within(prompt, str(rendered)):
        return str(rendered)
    raise InputError(
        f"the tokenizer's chat template leaves out the prompt {prompt!r:.{SHOWN}} or a part of it "
        f"(it gives {rendered!r:.{SHOWN}}): allowed are templates that hold the user's whole turn, "
        "mend it or set task.chat_template to false"
    )


def is_within(part: str, whole: str) -> bool:
    """Return whether a text holds another one, whatever the white space."""
    return part.strip() in whole or " ".join(part.split()) in " ".join(whole.split())


def _fixed_date_macro() -> str:
    """Return what gives a template the fixed date: the library takes no function for a template."""
    kinds = [*DIRECTIVES, *(f"-{kind}" for kind in DIRECTIVES)]
    filters = "".join(f"|replace('%{kind}', '{CHAT_DATE:%{kind}}')" for kind in kinds)
    return f"{{%- macro strftime_now(format) -%}}{{{{ format{filters} }}}}{{%- endmacro -%}}"
