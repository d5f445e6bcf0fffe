"""Owns how text is scored: answers in words, choices by letter, and several samples a task.

Predictions and references come in as strings, numbers go out; every score is a fraction in [0, 1].
Where an item has several references, the best one counts. docs/scoring.md states the rules and
where they differ from the reference implementations.

- pass@k: Chen et al., arXiv 2107.03374, eq. 1.
- Exact match and token F1: Rajpurkar et al., SQuAD, arXiv 1606.05250, sections 6.1 and 6.2.
- ROUGE-L: Lin 2004, https://aclanthology.org/W04-1013, through the package rouge-score.
- BLEU: Papineni et al. 2002, https://aclanthology.org/P02-1040, through the package sacrebleu (Post
  2018, arXiv 1804.08771).
- METEOR: Banerjee and Lavie 2005, https://aclanthology.org/W05-0909, through the package nltk.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from math import comb
from typing import Any

from schemabank.common.errors import InputError

_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WORD_OR_MARK = re.compile(r"\w+|[^\w\s]")

# Every repetition below is possessive or bounded, and no two can start in the same run of
# characters: matching stays linear in the length of a completion, however odd it is.
_BLANK = r"[^\S\n]"
_WRAPPING = rf"""(?:{_BLANK}|[*_:=$"'`“‘]|\\(?:text|textbf|mathrm)\{{|\\[(\[])*+"""
# A lone A or I before a word is a word itself ("A dog", "I think"), save before a reason.
_PROSE = rf"{_BLANK}++(?!(?:because|since|as|for|with|and|or)\b)[^\W\d_]"
_BARE = rf"(?P<bare>[A-J])(?![\w'’+\#]|[-.]\w)(?:(?<=[B-HJ])|(?!{_PROSE}))"
_BRACKETED = r"[(\[{](?P<bracketed>[A-Ja-j])[)\]}]"
# "B or C" chooses neither; after a comma a further letter may begin a clause: "B, C is wrong".
_ANOTHER = rf"""
    [*_]*+{_BLANK}*+(?:
        (?:[/&]|(?:and|or)\b){_BLANK}*+[*_(\[]*+[A-J](?![\w'’])
      | ,{_BLANK}*+(?:(?:and|or)\b{_BLANK}*+)?+[*_(\[]*+[A-J](?![\w'’])
        (?![)\]*_]*+{_BLANK}++(?!(?:and|or)\b)[a-z])
    )
"""
_LETTER = rf"(?:{_BRACKETED}|{_BARE})(?!{_ANOTHER})"
_LETTER_AFTER_MARK = re.compile(
    rf"""
    {_WRAPPING}(?:\n{_WRAPPING})?+
    (?:(?i:the|option|choice|letter)\b{_WRAPPING}){{0,2}}+
    {_LETTER}
    """,
    re.VERBOSE,
)
_LETTER_AT_START = re.compile(
    rf"\s*+{_WRAPPING}{_LETTER}"
    rf"(?(bare)[*_]*+(?:[.:,)\]\"'`”’]|{_BLANK}*+(?:\n|\Z)|{_BLANK}++[-–—]))",
    re.VERBOSE,
)
_BOX_MARK = re.compile(r"\\boxed\{")
_ANSWER_MARK = re.compile(r"\b(?:answer|option|choice)[ \t*_]{0,4}(?:is\b|=|:)", re.IGNORECASE)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Return the chance that ``k`` samples hold a correct one, from ``num_samples`` drawn.

    The unbiased estimator 1 - C(n - c, k) / C(n, k) of Chen et al., arXiv 2107.03374, eq. 1, in
    exact fractions; the mean over problems is taken by the caller.
    """
    if k < 1:
        raise InputError(f"k {k} of pass@k is not positive: use 1 or more")
    if num_samples < k:
        raise InputError(
            f"pass@{k} cannot be estimated from {num_samples} samples a problem, it needs at least "
            f"{k}: draw more samples or lower k"
        )
    if not 0 <= num_correct <= num_samples:
        raise InputError(
            f"{num_correct} correct of {num_samples} samples is not a count: give one from 0 to "
            f"{num_samples}"
        )
    return float(1 - Fraction(comb(num_samples - num_correct, k), comb(num_samples, k)))


def normalised(text: str) -> str:
    """Return a text in SQuAD's form: lower case, no ASCII punctuation, no articles, single blanks.

    As in https://worksheets.codalab.org/rest/bundles/0x6b567e1cf2e041ec80d7098f031c5c9e/contents/blob/
    a mark is deleted, not replaced by a blank: ``well-known`` becomes ``wellknown``.
    """
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """Return 1 where the normalised prediction equals a normalised reference, else 0."""
    _check_references(references)
    return float(normalised(prediction) in {normalised(reference) for reference in references})


def token_f1(prediction: str, references: Sequence[str]) -> float:
    """Return the best F1 between the bags of normalised words of prediction and reference.

    Where one side has no words left, the score is 1 if the other has none either, else 0 (the rule
    of SQuAD 2.0), so an exact match always scores 1.
    """
    _check_references(references)
    words = normalised(prediction).split()
    return max(_bag_f1(words, normalised(reference).split()) for reference in references)


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """Return the best ROUGE-L F-measure: the longest common subsequence of words, without stemming.

    Words are runs of ASCII letters and digits, lower-cased; a text without any scores 0.
    """
    _check_references(references)
    scores = _rouge_scorer().score_multi(list(references), prediction)
    return float(scores["rougeL"].fmeasure)


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return ``bleu_1`` and ``bleu_4`` of a corpus, in lower case, one row of references an item.

    sacreBLEU's signature is ``case:lc|eff:no|tok:13a|smooth:exp``; items may have different numbers
    of references. Scores of a corpus are not the mean of its items' scores.
    """
    if not predictions or len(predictions) != len(references):
        raise InputError(
            f"{len(predictions)} predictions and {len(references)} rows of references: give one "
            f"row for each prediction, at least 1"
        )
    for row in references:
        _check_references(row)
    # Imported on use: scoring numbers must not wait for packages that it does not need.
    from sacrebleu.metrics.bleu import BLEU  # noqa: PLC0415

    most = max(map(len, references))
    # None is sacrebleu's mark for a missing reference, which its annotations leave out.
    streams: list[Any] = [
        [row[i] if i < len(row) else None for row in references] for i in range(most)
    ]
    scores = {}
    for order in (1, 4):
        # Tokenised text is meant to come in, which sacrebleu would warn about for every call.
        metric = BLEU(lowercase=True, tokenize="13a", max_ngram_order=order, force=True)
        scores[f"bleu_{order}"] = metric.corpus_score(predictions, streams).score / 100
    return scores


def meteor(prediction: str, references: Sequence[str]) -> float | None:
    """Return the best METEOR, or None where WordNet is missing; `meteor_obstacle` says why.

    nltk's version with alpha 0.9, beta 3 and gamma 0.5: words match exactly, by stem or by WordNet
    synonym, in lower case. Nothing is ever downloaded.
    """
    _check_references(references)
    if meteor_obstacle() is not None:
        return None
    from nltk.translate.meteor_score import meteor_score  # noqa: PLC0415

    tokens = [_WORD_OR_MARK.findall(reference) for reference in references]
    return float(meteor_score(tokens, _WORD_OR_MARK.findall(prediction)))


def meteor_obstacle() -> str | None:
    """Return why METEOR cannot be computed and how to mend it, or None where it can."""
    from nltk.corpus import wordnet  # noqa: PLC0415

    try:
        wordnet.ensure_loaded()
    except (LookupError, OSError):
        return (
            "METEOR needs WordNet, which nltk does not find whole in its data folders: install it "
            "with 'python -m nltk.downloader wordnet'"
        )
    return None


def choice_letter(completion: str) -> str | None:
    r"""Return the letter from A to J that a completion chooses, or None; never raises.

    The last of ``\boxed{B}`` counts, else the last of "answer is B" or a like phrase, else a letter
    that opens the completion, alone on its line or before a mark: ``B``, ``(B)``, ``B.``,
    ``B) Paris``.
    Text from the start of a next question on is the caller's to cut.
    """
    for mark in (_BOX_MARK, _ANSWER_MARK):
        letters = [_LETTER_AFTER_MARK.match(completion, m.end()) for m in mark.finditer(completion)]
        found = [letter for letter in letters if letter is not None]
        if found:
            return _spell_letter(found[-1])
    opening = _LETTER_AT_START.match(completion)
    return None if opening is None else _spell_letter(opening)


def _check_references(references: Sequence[str]) -> None:
    if isinstance(references, str):
        raise InputError(
            f"references {references!r:.80} is one text, a sequence of texts is needed: put it in "
            f"a list"
        )
    if not references:
        raise InputError("an item has 0 references, at least 1 is needed: give its gold answers")


def _bag_f1(prediction: list[str], reference: list[str]) -> float:
    if not prediction or not reference:
        return float(prediction == reference)
    num_common = (Counter(prediction) & Counter(reference)).total()
    # 2PR / (P + R) with precision P and recall R, without their rounding.
    return 2 * num_common / (len(prediction) + len(reference))


def _spell_letter(letter: re.Match[str]) -> str:
    return str(letter["bracketed"] or letter["bare"]).upper()


@cache
def _rouge_scorer() -> Any:  # noqa: ANN401 -- the package has no types
    from rouge_score.rouge_scorer import RougeScorer  # noqa: PLC0415

    return RougeScorer(["rougeL"], use_stemmer=False)
