"""Numeric answers: extraction from a completion, and exact match by value.

A completion is read by two rules side by side: ``strict`` takes the answer the model marked,
``flexible`` the last number it wrote; both compare exact decimal values.

GSM8K and its ``####`` mark: Cobbe et al., arXiv 2110.14168. The rules follow, and mend,
https://github.com/EleutherAI/lm-evaluation-harness/blob/47f16bf6a68ec19467e728ce52ac6c5937d5b3da/lm_eval/tasks/gsm8k/gsm8k.yaml
Every choice, with an example and its reason: docs/scoring.md.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from decimal import Decimal

from schemabank.common.errors import InputError
from schemabank.common.files import parse_json

# Every repetition below is possessive or bounded, and no two can start in the same run of
# characters: matching stays linear in the length of a completion, however odd it is.
_BLANK = r"[^\S\n]"
_SIGNS = "$€£¥₹₩₽₺₫₱฿"
_CODES = ("USD", "EUR", "GBP", "JPY", "CNY", "INR", "CAD", "AUD", "CHF")
_CODE = "|".join(_CODES)
_BEHIND_CODE = "|".join(rf"(?<=\b{code})" for code in _CODES)
_CURRENCY = rf"(?:[{_SIGNS}]|{_CODE}){_BLANK}?"
# Letters of the scripts that write names with digits in them (x2, H2O): Latin, Greek, Cyrillic and
# their kin. Chinese, Japanese and Thai part words by no blank, and Arabic and Hebrew join a
# preposition to its number: there a letter before digits says nothing.
_LETTER = (
    r"A-Za-zªµºÀ-ÖØ-öø-\u02af\u0370-\u058f\u10a0-\u10ff\u13a0-\u13ff\u1c80-\u1cbf\u1d00-\u1fff"
    r"\u2c00-\u2dff\ua640-\ua69f\ua720-\ua7ff\uab30-\uabbf\uff21-\uff3a\uff41-\uff5a"
)
# Digits that touch such a letter before them, a slash or a colon (3/4, 3:30) or a second decimal
# point (1.2.3) are part of something that is not a number.
_NUMBER = rf"""
    (?:
        (?P<currency_first>(?<![0-9]){_CURRENCY}-)
      | (?P<sign>(?<![{_LETTER}0-9])(?<![)\]}}%{_SIGNS}-])-)(?:{_CURRENCY})?
      | {_CURRENCY}
    )?
    (?:(?<![{_LETTER}0-9])|{_BEHIND_CODE})(?<![{_LETTER}0-9]_)(?<![0-9][./:])
    (?P<digits>
        (?>
            (?<![0-9],)[1-9][0-9]{{0,2}}(?:,[0-9]{{3}})++(?!,?[0-9])
          | [0-9]++
        )(?:\.[0-9]++)?+
      | (?<!\.)\.[0-9]++
    )
    (?![./:]?[0-9]|\d)
"""
_WRAPPING = r"""(?:[^\S\n]|[*_:=~≈+"'`“‘「『【(\[{]|\\[(\[]|\\text\{|\$(?=\$))*+"""
_NUMBER_ANYWHERE = re.compile(_NUMBER, re.VERBOSE)
_NUMBER_AFTER_MARK = re.compile(
    rf"{_WRAPPING}(?:\n{_WRAPPING})?+(?:\$?[A-Za-z]{_BLANK}*+={_WRAPPING})?+(?:{_NUMBER})",
    re.VERBOSE,
)
_BARE_NUMBER = re.compile(
    rf"""
    \s*+{_WRAPPING}(?:{_NUMBER})
    (?:{_BLANK}|[*_%.!。！{_SIGNS})\]}}"'`”’」』】]|\\[)\]]|{_CODE})*+(?:\n|\Z)
    """,
    re.VERBOSE,
)
_OPERATOR = r"(?:[-+*/×÷=xX]|\\times|\\cdot|\\div)"
_OPERATION = re.compile(rf"[ \t%{_SIGNS})]*+{_OPERATOR}[ \t]*+[-({_SIGNS}]*+\.?[0-9]")
_FORMULA = re.compile(rf"(?:{_OPERATOR}|[0-9.,{_SIGNS}%() \t])*+")
_LIST = re.compile(r"\s*+1[.)](?s:.*?)\n[^\S\n]*+2[.)]")

_HASH_MARK = re.compile("#{4,}")
_BOX_MARK = re.compile(r"\\boxed")
_ANSWER_MARK = re.compile(r"\banswer[ \t*_]{0,4}(?:is|=|:)", re.IGNORECASE)
_ANY_MARK = re.compile(rf"(?i:{_ANSWER_MARK.pattern})|{_BOX_MARK.pattern}|{_HASH_MARK.pattern}")

_CALCULATOR = re.compile(r"<<[^<>\n]*+(?:>>|>?\Z)")  # the second form was cut by the token limit
_PLAIN = str.maketrans(
    dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d", "-")
    # Full-width forms, and what Arabic writes for a decimal point, a thousands comma and percent.
    | dict(zip("．：％／＃＊＝＋（）＄￡￥￦٫٬٪", ".:%/#*=+()$£¥₩.,%", strict=True))
)
_OTHER_DIGIT = re.compile(r"(?![0-9])\d")
_WIDE_COMMA = re.compile("(?<=[０-９])，(?=[０-９]{3}(?![０-９]))")
_FRACTION_COMMAND = re.compile(r"\\[dt]?frac\{(-?[0-9]++)\}\{([0-9]++)\}")
_LATEX = re.compile(r"\\[$%,!]|\{,\}")
_LATEX_PLAIN = {r"\$": "$", r"\%": "%", r"\,": ",", r"\!": "", "{,}": ","}

_TURN = r"(?:question|problem|exercise|q|user|human|input|instruction)"
_NEXT_QUESTION = re.compile(
    rf"""
    ^{_BLANK}*+(?P<heading>\#{{1,6}}{_BLANK}*+)?+\*{{0,2}}{_TURN}
        {_BLANK}*+\#?+[0-9]*+{_BLANK}*+\*{{0,2}}{_BLANK}*+(?(heading)(?::|$)|:)
    | ^{_BLANK}*+\[schema:
    | <\|(?:im_start|start_header_id)\|>\s*+(?:user|human|system)
    | <start_of_turn>\s*+user | \[INST\] | <\|(?:user|human|system)\|>
    | </s> | <end_of_turn> | <\|(?:im_end|eot_id|end|end_of_text|endoftext)\|>
    """,
    re.VERBOSE | re.MULTILINE | re.IGNORECASE,
)
_BLANK_LINE = re.compile(rf"\n{_BLANK}*+\n")
_PROMPT_AGAIN = re.compile(rf"\?{_BLANK}*+\n{_BLANK}*+\**+the answer is:", re.IGNORECASE)


@dataclass(frozen=True)
class Extraction:
    """What the two rules read in one completion, as canonical numbers.

    Attributes:
        strict: the marked answer, or None.
        flexible: the last number, or None.
    """

    strict: str | None
    flexible: str | None

    @property
    def answer(self) -> str | None:
        """The marked answer where there is one, else the last number."""
        return self.flexible if self.strict is None else self.strict


@dataclass(frozen=True)
class Score:
    """Whether each rule hits the gold answer; ``correct`` judges ``extraction.answer``."""

    strict: bool
    flexible: bool
    correct: bool
    extraction: Extraction


def score_lines(lines: Iterable[str]) -> Iterator[dict[str, object]]:
    """Score JSON lines with ``completion`` and ``gold``, one result per line that is not blank."""
    for line_number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = _parse_line(line)
            score = score_completion(_completion_in(row), _gold_in(row))
        except InputError as error:
            raise InputError(f"line {line_number}: {error}") from error
        named = {"id": row["id"]} if "id" in row else {}
        yield {**named, **asdict(score.extraction), "correct": score.correct}


def score_completion(completion: str, gold: str) -> Score:
    """Score one completion; ``gold`` is a number or a worked solution that ends in ``#### 72``."""
    gold_value = gold_number(gold)
    extraction = extract(completion)
    return Score(
        strict=same_value(extraction.strict, gold_value),
        flexible=same_value(extraction.flexible, gold_value),
        correct=same_value(extraction.answer, gold_value),
        extraction=extraction,
    )


def extract(completion: str) -> Extraction:
    """Read a completion by both rules; never raises, whatever the text."""
    text = _plain_characters(cut_next_question(completion))
    return Extraction(strict=_marked_answer(text), flexible=_last_number(text))


def plain_decimal(value: float) -> str:
    """Spell a number without an exponent, in the shortest way that gives it back."""
    return format(Decimal(repr(value)), "f")


def cut_next_question(completion: str) -> str:
    """Return the text before the start of a next question (docs/scoring.md lists the starts).

    A completion that opens with a question answers nothing: the result is then empty or blank.
    """
    text, longer = _cut_once(completion), completion
    # A heading may come to stand alone by the first cut: "### Question</s>". The cut of a cut is
    # the same cut, so nothing depends on how often a completion went through here.
    while text != longer:
        text, longer = _cut_once(text), text
    return text


def same_value(left: str | None, right: str | None) -> bool:
    """Compare two numbers by exact decimal value; a missing number equals nothing."""
    if left is None or right is None:
        return False
    number = canonical_number(left)  # equal values have one spelling
    return number is not None and number == canonical_number(right)


def canonical_number(text: str) -> str | None:
    """Return a text's first number in one spelling, or None: ``'-$1,234.50'`` -> ``'-1234.5'``."""
    number = _NUMBER_ANYWHERE.search(_plain_characters(text))
    return None if number is None else _spell_number(number)


def gold_number(gold: str) -> str:
    """Return the number of a gold answer, in one spelling.

    Raises:
        InputError: it holds none.
    """
    number = extract(gold).answer
    if number is None:
        raise InputError(
            f"gold {gold!r:.80} holds no number; a number such as 72 or a solution that ends in "
            "'#### 72' is allowed: correct it"
        )
    return number


def _cut_once(text: str) -> str:
    start = _NEXT_QUESTION.search(text)
    text = text if start is None else text[: start.start()]
    return text[: _repeated_prompt(text)]


def _repeated_prompt(text: str) -> int:
    """Where a further question starts that ends in our own prompt line, else the text's length.

    ``18`` / blank line / ``Tom has 5 apples. How many now?`` / ``The answer is: 7``: only after an
    answer, and only below a line that ends in a question mark, so that a second look at the same
    question (``Wait. The answer is: 7``) still counts.
    """
    answer = _ANY_MARK.search(text)
    if _bare_number(_plain_characters(text)) is not None:
        after = 0
    else:
        after = answer.end() if answer else len(text)
    blank_lines = [match.start() for match in _BLANK_LINE.finditer(text, after)]
    prompt = _PROMPT_AGAIN.search(text, blank_lines[0]) if blank_lines else None
    if prompt is None:
        return len(text)
    return max(start for start in blank_lines if start < prompt.start())


def _plain_characters(text: str) -> str:
    """Drop calculator marks; bring digits, marks and LaTeX spellings to plain characters."""
    text = _WIDE_COMMA.sub(",", _CALCULATOR.sub("", text)).translate(_PLAIN)
    text = _OTHER_DIGIT.sub(lambda match: str(unicodedata.decimal(match.group())), text)
    text = _FRACTION_COMMAND.sub(r"\1/\2", text)
    return _LATEX.sub(lambda match: _LATEX_PLAIN[match.group()], text)


def _marked_answer(text: str) -> str | None:
    """The answer by the strict rule: ``####``, then a box, then a bare number, then "answer is".

    A first line that is a number alone answers a prompt that ends in "The answer is: "; a text
    that goes on to "The answer is: 5" has asked the next question. Only the first number of a list
    (``1.``, and ``2.`` further down) opens a worked solution.
    """
    # GSM8K's format ends at its first ``####``; elsewhere a later mark corrects an earlier one.
    marked = _marked_numbers(text, _HASH_MARK)[:1] or _marked_numbers(text, _BOX_MARK)[-1:]
    if marked:
        return marked[0]
    bare = _bare_number(text)
    if bare is not None and not _LIST.match(text):
        return bare
    said = _marked_numbers(text, _ANSWER_MARK)
    return said[-1] if said else bare


def _marked_numbers(text: str, mark: re.Pattern[str]) -> list[str]:
    """The numbers that follow a mark closely, in their order."""
    numbers = [_number_after(text, match.end()) for match in mark.finditer(text)]
    return [number for number in numbers if number is not None]


def _number_after(text: str, start: int) -> str | None:
    """The number that follows a mark closely; of arithmetic (``5 + 3 = 8``) the result."""
    number = _NUMBER_AFTER_MARK.match(text, start)
    if number is not None and _OPERATION.match(text, number.end()):
        formula = _FORMULA.match(text, number.end())
        assert formula is not None
        equals = text.rfind("=", *formula.span())
        number = None if equals < 0 else _NUMBER_AFTER_MARK.match(text, equals + 1)
        if number is not None and _OPERATION.match(text, number.end()):
            return None
    return None if number is None else _spell_number(number)


def _bare_number(text: str) -> str | None:
    """The first line's number when that line holds nothing else (prompts end in "answer is: ")."""
    number = _BARE_NUMBER.match(text)
    return None if number is None else _spell_number(number)


def _last_number(text: str) -> str | None:
    numbers = [*_NUMBER_ANYWHERE.finditer(text)]
    return _spell_number(numbers[-1]) if numbers else None


def _spell_number(number: re.Match[str]) -> str:
    # By characters, not by Decimal.normalize(), which rounds to the context's precision.
    whole, _, decimals = number["digits"].replace(",", "").partition(".")
    whole = whole.lstrip("0") or "0"
    decimals = decimals.rstrip("0")
    value = f"{whole}.{decimals}" if decimals else whole
    negative = number["sign"] is not None or number["currency_first"] is not None
    return f"-{value}" if negative and value != "0" else value


def _parse_line(line: str) -> dict[str, object]:
    shown = f"{line.strip()!r:.80}"
    try:
        row = parse_json(line, "the line", finite=True)
    except InputError as error:
        raise InputError(
            f"{shown} is not valid JSON ({error.__cause__ or error}); each line must be one JSON "
            "object with 'completion' and 'gold': correct or remove it"
        ) from error
    if not isinstance(row, dict):
        raise InputError(
            f"{shown} is not a JSON object; each line must be one with 'completion' "
            "and 'gold': wrap it in braces"
        )
    return row


def _completion_in(row: dict[str, object]) -> str:
    completion = _required_value(row, "completion")
    if not isinstance(completion, str):
        raise InputError(
            f"'completion' is {completion!r:.80}, only text is allowed: put it in quotes"
        )
    return completion


def _gold_in(row: dict[str, object]) -> str:
    gold = _required_value(row, "gold")
    if isinstance(gold, str):
        return gold
    if isinstance(gold, bool) or not isinstance(gold, int | float):
        raise InputError(
            f"'gold' is {gold!r:.80}, only text or a number is allowed: give the answer"
        )
    return plain_decimal(gold)


def _required_value(row: dict[str, object], key: str) -> object:
    if key not in row:
        keys = ", ".join(map(repr, row)) or "none"
        raise InputError(f"key {key!r} is missing, the line has {keys[:80]}: add {key!r}")
    return row[key]
