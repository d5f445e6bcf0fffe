"""Text metrics: each against an independent version of its definition, and on hostile input."""

import re
import string
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nltk.corpus import wordnet
from rouge_score.rouge_scorer import RougeScorer

from properties import examples
from schemabank.common.errors import InputError
from schemabank.tasks.scoring.metrics import (
    bleu,
    choice_letter,
    exact_match,
    meteor,
    meteor_obstacle,
    normalised,
    pass_at_k,
    rouge_l,
    token_f1,
)

SCORING = Path(__file__).parents[3] / "docs" / "scoring.md"

# No deadline: the machine is shared, and a slow draw is no failure.
prop = examples(60)

words = st.sampled_from(
    [
        "the",
        "The",
        "a",
        "an",
        "cat",
        "Cat.",
        "sat",
        "sat,",
        "on",
        "don't",
        "—",
        ".",
        "é",
        "7",
        "a b",
    ]
)
answers = st.lists(words, max_size=8).map(" ".join) | st.text(max_size=12)
reference_lists = st.lists(answers, min_size=1, max_size=3)
parts_of_completions = st.sampled_from(
    [
        *"ABJKIabj()[]{}*_$:.,/&'\"` \n\t-–\\\x00\ud800é",
        *("answer is", "The answer is ", "Answer:", "\\boxed{", "\\text{", "option", "the "),
        *(" or ", " and ", "because ", "A dog", "I think", "C++"),
    ]
)
soups = st.lists(parts_of_completions | st.text(max_size=4), max_size=30).map("".join)


@prop
@given(st.data(), st.integers(1, 8))
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_one(data: st.DataObject, n: int) -> None:
    num_correct, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    samples = [True] * num_correct + [False] * (n - num_correct)
    subsets = [any(chosen) for chosen in combinations(samples, k)]
    assert pass_at_k(n, num_correct, k) == sum(subsets) / len(subsets)


def test_pass_at_k_of_many_samples_is_exact() -> None:
    assert pass_at_k(200, 0, 100) == 0
    assert pass_at_k(200, 100, 101) == 1
    assert pass_at_k(5000, 1, 1) == 1 / 5000
    assert pass_at_k(5000, 1, 2500) == 0.5


@pytest.mark.parametrize(
    ("counts", "words_of_it"),
    [
        ((5, 2, 10), ["pass@10", "5 samples", "lower k"]),
        ((0, 0, 1), ["pass@1", "0 samples", "draw more"]),
        ((5, 2, 0), ["k 0", "1 or more"]),
        ((5, 6, 1), ["6 correct of 5 samples", "from 0 to 5"]),
        ((5, -1, 1), ["-1 correct of 5 samples"]),
    ],
)
def test_impossible_counts_are_refused(
    counts: tuple[int, int, int], words_of_it: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        pass_at_k(*counts)
    for part in words_of_it:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  quick, brown fox!", "quick brown fox"),
        ("An apple a day", "apple day"),
        ("theatre Another", "theatre another"),
        ("well-known", "wellknown"),
        ("Mark's", "marks"),
        ("“Quoted”", "“quoted”"),
        ("The a an", ""),
        ("\t\n", ""),
    ],
)
def test_normalised_as_squad_does(text: str, normal: str) -> None:
    assert normalised(text) == normal


def squad_words(text: str) -> list[str]:
    """SQuAD's normalisation, character by character instead of by regular expressions."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    runs, run = [], ""
    for c in [*kept, " "]:
        is_word = c.isalnum() or c == "_"
        if not is_word:
            run = "" if run in ("a", "an", "the") else run
            runs.append(run)
            runs.append(c)
            run = ""
        else:
            run += c
    # Removed articles leave a blank behind.
    text, previous = "", None
    for part in runs:
        text += part if part or previous is None else " "
        previous = part
    return text.split()


def squad_f1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    if not prediction or not reference:
        return float(not prediction and not reference)
    left = list(reference)
    for word in prediction:
        if word in left:
            left.remove(word)
    num_common = len(reference) - len(left)
    if num_common == 0:
        return 0.0
    precision, recall = num_common / len(prediction), num_common / len(reference)
    return 2 * precision * recall / (precision + recall)


@prop
@given(st.lists(words, max_size=8).map(" ".join), reference_lists)
@example("the", ["A"])
@example("", ["cat"])
def test_token_f1_agrees_with_squads_definition(prediction: str, references: list[str]) -> None:
    golds = [r for r in references if r.isascii()] or ["cat sat"]
    expected = max(squad_f1(squad_words(prediction), squad_words(r)) for r in golds)
    assert token_f1(prediction, golds) == pytest.approx(expected)
    same = any(squad_words(prediction) == squad_words(r) for r in golds)
    assert exact_match(prediction, golds) == float(same)


def test_token_f1_by_hand() -> None:
    assert token_f1("the black cat sat", ["A black cat"]) == pytest.approx(0.8)
    assert token_f1("cat cat", ["cat"]) == pytest.approx(2 / 3)
    assert token_f1("dog", ["cat", "a dog!"]) == 1


@prop
@given(answers, reference_lists)
def test_scores_of_an_item_are_fractions(prediction: str, references: list[str]) -> None:
    scores = [score(prediction, references) for score in (exact_match, token_f1, rouge_l)]
    assert all(0 <= score <= 1 for score in scores)
    assert scores[0] <= scores[1]


def lcs_f(prediction: list[str], reference: list[str]) -> float:
    """ROUGE-L by its definition, with the longest subsequence found by trying them all."""
    for length in range(min(len(prediction), len(reference)), 0, -1):
        if set(combinations(prediction, length)) & set(combinations(reference, length)):
            precision, recall = length / len(prediction), length / len(reference)
            return 2 * precision * recall / (precision + recall)
    return 0.0


@prop
@given(answers, reference_lists)
def test_rouge_l_agrees_with_the_package_and_with_its_definition(
    prediction: str, references: list[str]
) -> None:
    score = rouge_l(prediction, references)
    scorer = RougeScorer(["rougeL"])
    assert score == max(scorer.score(r, prediction)["rougeL"].fmeasure for r in references)
    tokens = [re.findall("[a-z0-9]+", text.lower()) for text in (prediction, *references)]
    assert score == pytest.approx(max(lcs_f(tokens[0], gold) for gold in tokens[1:]))


def test_rouge_l_does_not_stem() -> None:
    assert rouge_l("running cats", ["run cat"]) == 0
    assert rouge_l("the cat sat down", ["The cat, it sat."]) == pytest.approx(0.75)


def test_bleu_by_hand() -> None:
    scores = bleu(["The cat sat down today"], [["the cat sat up today", "a cat"]])
    assert scores["bleu_1"] == pytest.approx(4 / 5)
    # Precisions 4/5, 2/4, 1/3 and, smoothed, 1/4 for none of the two four-grams.
    assert scores["bleu_4"] == pytest.approx((4 / 5 * 2 / 4 * 1 / 3 * 1 / 4) ** 0.25)


def test_bleu_is_that_of_the_corpus_with_any_number_of_references() -> None:
    perfect = bleu(["A b c d .", "e f g h"], [["a b c d ."], ["x", "E f g h", "y"]])
    assert perfect == {"bleu_1": pytest.approx(1), "bleu_4": pytest.approx(1)}
    # Brevity penalty: 6 words against 9 of the closest references together.
    short = bleu(["a b c d e", "f"], [["a b c d e"], ["f g h i"]])
    assert short["bleu_1"] == pytest.approx(2.718281828 ** (1 - 9 / 6))
    assert bleu(["", ""], [["a b"], ["c"]]) == {"bleu_1": 0, "bleu_4": 0}


@pytest.mark.parametrize(
    ("predictions", "references"), [([], []), (["a"], []), (["a"], [["a"], ["b"]])]
)
def test_bleu_wants_a_row_a_prediction(predictions: list[str], references: list[list[str]]) -> None:
    with pytest.raises(InputError, match=f"{len(predictions)} predictions and {len(references)}"):
        bleu(predictions, references)


@pytest.mark.parametrize("score", [exact_match, token_f1, rouge_l, meteor])
def test_one_text_as_references_and_none_are_refused(
    score: Callable[[str, Sequence[str]], float | None],
) -> None:
    with pytest.raises(InputError, match=r"'Paris' is one text.*list"):
        score("Paris", "Paris")
    with pytest.raises(InputError, match="0 references"):
        score("Paris", [])
    with pytest.raises(InputError, match="one text"):
        bleu(["Paris"], ["Paris"])


@pytest.fixture
def no_wordnet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A state without WordNet, whatever the machine has, and without what a test loaded."""
    monkeypatch.setattr("nltk.data.path", [])
    unload()
    yield
    unload()


def unload() -> None:
    if "_unload" in vars(wordnet):
        wordnet._unload()


@pytest.mark.usefixtures("no_wordnet")
def test_without_wordnet_meteor_is_absent_and_says_why() -> None:
    assert meteor("a car", ["a car"]) is None
    assert "nltk.downloader wordnet" in str(meteor_obstacle())


def write_wordnet(folder: Path) -> None:
    """A WordNet of the one synset {car, auto}, in the format of its database files."""
    folder.mkdir(parents=True)
    header = "  1 WordNet 3.0 Copyright\n"
    synset = f"{len(header):08} 06 n 02 car 0 auto 0 000 | a vehicle\n"
    index = "".join(f"{word} n 1 0 1 0 {len(header):08}\n" for word in ("auto", "car"))
    for part in ("noun", "verb", "adj", "adv"):
        (folder / f"data.{part}").write_text(header + (synset if part == "noun" else ""))
        (folder / f"index.{part}").write_text(header + (index if part == "noun" else ""))
        (folder / f"{part}.exc").write_text("")
    senses = "".join(f"{word}%1:06:00:: {len(header):08} 1 0\n" for word in ("auto", "car"))
    (folder / "index.sense").write_text(senses)
    (folder / "lexnames").write_text("".join(f"{i:02}\tname.{i}\t1\n" for i in range(45)))


@pytest.mark.usefixtures("no_wordnet")
def test_meteor_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # nltk reads no data from folders that others may write to.
    data = tmp_path / "nltk_data"
    write_wordnet(data / "corpora" / "wordnet")
    for path in [data, *data.rglob("*")]:
        path.chmod(0o700 if path.is_dir() else 0o600)
    monkeypatch.setattr("nltk.data.path", [str(data)])
    assert meteor_obstacle() is None
    # All 3 words match (exactly, by stem, by synonym) in 1 chunk: 1 - 0.5 * (1 / 3) ** 3.
    assert meteor("A red auto", ["a reds car"]) == pytest.approx(1 - 0.5 / 27)
    assert meteor("bicycle", ["a red car", "car"]) == 0
    # Precision 1/2, recall 1: F = 10 P R / (R + 9 P), one chunk of one match.
    assert meteor("car !", ["x y", "car"]) == pytest.approx(5 / 5.5 * 0.5)


def documented_letters() -> Iterator[tuple[str, str, str, str]]:
    """Choice, example, our letter and lm-eval's, from the table in docs/scoring.md."""
    for line in SCORING.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 5 and cells[1].startswith("`"):
            yield (cells[0], *(cell.strip("`").replace("⏎", "\n") for cell in cells[1:4]))


@pytest.mark.parametrize(
    ("text", "letter", "lm_eval"),
    [pytest.param(*cells, id=choice) for choice, *cells in documented_letters()],
)
def test_the_documented_letters(text: str, letter: str, lm_eval: str) -> None:
    assert (choice_letter(text) or "—") == letter
    reference = re.search(r"answer is \(?([ABCDEFGHIJ])\)?", text)
    assert (reference[1] if reference else "—") == lm_eval


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("", None),
        ("  (J)", "J"),
        ("**C**", "C"),
        ("**C.** Rome", "C"),
        ("C - Rome", "C"),
        ("[d] Rome", "D"),
        ("A cat", None),
        ("A", "A"),
        ("A and B", None),
        ("(A), (B) and (C)", None),
        ("(A) or (B)", None),
        ("A, B", None),
        ("A/B", None),
        ("E = mc", None),
        ("The answer is: **B**.", "B"),
        ("the answer is $B$", "B"),
        (r"The answer is \(B\)", "B"),
        ("The answer is (B) and not (A)", "B"),
        ("Answer = the letter B", "B"),
        ("The answer is the option (B)", "B"),
        ("The answer is I think", None),
        ("The answer is I'm", None),
        ("The answer is I", "I"),
        ("The answer island B", None),
        ("The answer is\n\nB", None),
        (r"\boxed{A} or \boxed{B}", "B"),
        (r"\boxed{dog}. The answer is B", "B"),
        ("answer is A or B. So the answer is B", "B"),
    ],
)
def test_further_letters(text: str, letter: str | None) -> None:
    assert choice_letter(text) == letter


@prop
@given(soups)
def test_any_text_has_a_letter_or_none(text: str) -> None:
    assert choice_letter(text) in {None, *"ABCDEFGHIJ"}


@prop
@given(st.sampled_from("ABCDEFGHIJ"), st.sampled_from(["{}", "({})", "**{}**", "{}.", '"{}"']))
def test_each_form_of_a_letter_is_read(letter: str, form: str) -> None:
    spelt = form.format(letter)
    for text in (spelt, f"The answer is {spelt}", f"ANSWER: {spelt}", f"so\n\nanswer:\n{spelt}\n"):
        assert choice_letter(text) == letter


@pytest.mark.alone
@pytest.mark.parametrize(
    "unit",
    [
        *(
            "answer is ",
            "answer is",
            "answer:\n",
            "answer is (",
            "answer is A, ",
            "answer is A or ",
        ),
        *("answer is the the ", "\\boxed{", "\\text{", "A or ", "A, ", "A and"),
        *("*", "(", "[", " ", "\n", " \n"),
    ],
)
def test_reading_a_letter_takes_linear_time(unit: str) -> None:
    def best(size: int) -> float:
        text = unit * (size // len(unit))
        times = []
        for _ in range(3):
            start = time.perf_counter()
            choice_letter(text)
            times.append(time.perf_counter() - start)
        return min(times)

    assert best(400_000) < 30 * best(40_000) + 0.05
