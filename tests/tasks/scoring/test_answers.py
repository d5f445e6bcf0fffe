import gzip
import json
import os
import re
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from properties import examples
from schemabank.common.errors import InputError
from schemabank.tasks.scoring.answers import (
    Extraction,
    canonical_number,
    cut_next_question,
    extract,
    same_value,
    score_completion,
    score_lines,
)

ROOT = Path(__file__).parents[3]
DATA = Path(os.environ.get("SCHEMABANK_DATA", ROOT.parent / "shared" / "data"))
GSM8K_TEST = DATA / "gsm8k" / "test.jsonl.gz"

# No deadline: the machine is shared, and a slow draw is no failure.
prop = examples(60)

decimals = st.builds(
    lambda unscaled, places: Decimal(unscaled).scaleb(-places),
    st.integers(-(10**15), 10**15) | st.integers(-2000, 2000),
    st.integers(0, 4),
)
parts_of_completions = st.sampled_from(
    [
        *"18-−–$,.%/:\n =+x)(}_٣²２½\r\x00\ud800",
        *("#### ", "\\boxed{", "\\frac{", "{,}", "\\$", "**", "<<", ">>", "1,234", "3rd", "USD"),
        *("The answer is", "The answer is: ", "?\n", "\n\n", "Question:", "Q2:", "### Question"),
        *("[Schema: 5] ", "<|im_start|>", "user", "</s>", "3*4=12", "apples"),
    ]
)
soups = st.lists(parts_of_completions | st.text(max_size=4), max_size=30).map("".join)


@st.composite
def spelt_decimals(draw: st.DrawFn) -> tuple[Decimal, str]:
    value = draw(decimals)
    digits = format(abs(value), draw(st.sampled_from(["f", ",f"])))
    if "." in digits:
        digits += draw(st.sampled_from(["", "0", "00"]))
    if abs(value) < 1 and "." in digits and draw(st.booleans()):
        digits = digits.removeprefix("0")
    currency = draw(st.sampled_from(["", "$", r"\$", "€", "£ ", "USD "]))
    minus = draw(st.sampled_from("-−–")) if value < 0 else ""
    front = draw(st.sampled_from([minus + currency, currency + minus]))
    back = draw(st.sampled_from(["", "%", r"\%"] if not currency else ["", " USD"]))
    return value, front + digits + back


@st.composite
def gsm8k_solutions(draw: st.DrawFn) -> str:
    amounts = st.integers(0, 10**7).map(lambda n: f"{n:,}") | st.decimals(
        0, 10**5, places=2, allow_nan=False
    ).map(str)
    step = st.builds(
        "{0} has {3}{1} {4} {3}{2} = {3}<<{1}{4}{2}=9>>{1} {5}.".format,
        st.sampled_from(["She", "Tom’s sister", "The 2 of them"]),
        amounts,
        amounts,
        st.sampled_from(["", "$"]),
        st.sampled_from("+-*/"),
        st.sampled_from(["clips", "eggs per day", "dollars", "% of it"]),
    )
    steps = draw(st.lists(step, min_size=1, max_size=4))
    final = draw(amounts) if draw(st.booleans()) else f"-{draw(st.integers(1, 999))}"
    return "\n".join([*steps, f"#### {final}"])


def lm_eval_rules(completion: str) -> tuple[str | None, str | None]:
    """gsm8k.yaml of lm-evaluation-harness at the commit that answers.py names."""
    completion = re.split(r"Question:|</s>|<\|im_end\|>", completion)[0]
    strict = re.search(r"#### (\-?[0-9\.\,]+)", completion)
    flexible = re.findall(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", completion)
    found = [strict.group(1) if strict else None, "".join(flexible[-1]) if flexible else None]
    cleaned = [None if text is None else re.sub(r",|\$|\.$", "", text) for text in found]
    return cleaned[0], cleaned[1]


def documented_rows() -> Iterator[list[str]]:
    """Rows of the tables in docs/scoring.md that have an example, as plain cells."""
    for line in (ROOT / "docs" / "scoring.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 7 and cells[1].startswith("`"):
            yield [cells[0], *(cell.strip("`").replace("⏎", "\n") for cell in cells[1:6])]


class TestDocumentedChoices:
    @pytest.mark.parametrize("row", list(documented_rows()), ids=lambda row: row[0])
    def test_the_example_gives_what_the_document_says(self, row: list[str]) -> None:
        _, text, strict, flexible, lm_eval_strict, lm_eval_flexible = row
        found = extract(text)
        rules = (found.strict, found.flexible, *lm_eval_rules(text))
        shown = tuple("—" if value is None else value for value in rules)
        assert shown == (strict, flexible, lm_eval_strict, lm_eval_flexible)

    def test_the_tables_are_found(self) -> None:
        assert len(list(documented_rows())) >= 50


class TestExtract:
    @prop
    @given(
        spelt_decimals(),
        st.sampled_from(
            [
                "{}",
                " {}.\n",
                "**{}**",
                "#### {}",
                "She had 7 eggs.\n#### {}",
                "####{}.",
                "#### {}\n\nSam has 9 cats.",
                "It is 3 + 4 = <<3+4=7>>7.\nThe answer is {}.",
                "The final answer is: **{}** apples",
                "**Answer:** {}",
                "Answer: 7. No, the ANSWER is = {}.",
                r"The 7 cats: \boxed{{{}}}.",
                r"\boxed{{7}}, or rather $\boxed{{ {} }}$",
            ]
        ),
    )
    def test_a_marked_answer_is_read_by_value(self, spelt: tuple[Decimal, str], frame: str) -> None:
        value, spelling = spelt
        found = extract(frame.format(spelling))
        assert found.strict is not None
        assert Decimal(found.strict) == value
        assert found.answer == found.strict

    @prop
    @given(
        spelt_decimals(),
        st.sampled_from(
            ["It makes {} in all", "1,234 of H2O make {}.", "7−{} x2", "3 + 4 = {}\nQuestion: 5?"]
        ),
    )
    def test_the_last_number_is_read_by_value(self, spelt: tuple[Decimal, str], frame: str) -> None:
        value, spelling = spelt
        if "−{}" in frame:  # a dash between two numbers parts them
            value, spelling = abs(value), spelling.lstrip("-−–")
            spelling = re.sub("[-−–]", "", spelling)
        found = extract(frame.format(spelling))
        assert found.strict is None
        assert found.flexible is not None
        assert Decimal(found.flexible) == value

    @prop
    @given(soups)
    @example("")
    @example("####")
    @example("\\boxed{")
    def test_any_text_is_read_without_an_error(self, text: str) -> None:
        found = extract(text)
        for number in (found.strict, found.flexible):
            assert number is None or number == canonical_number(number)
        if found.strict is not None:
            assert found.flexible is not None

    @prop
    @given(soups, soups)
    def test_nothing_after_a_next_question_counts(self, text: str, rest: str) -> None:
        assert extract(f"{text}\nQuestion: {rest}") == extract(f"{text}\nQuestion: ")

    @pytest.mark.parametrize(
        "piece",
        [
            *("1", "1,", ",234", "1/", ".1", "$", "-", "USD ", "<", "<<1", "#", "#### 5 + ", "*"),
            *("answer is ", "\\boxed{", "\\frac{1}{", "\n", "\n ", "5\n\n", "Q ", "5 + ", "="),
            *(
                "1.\n",
                "1.\n ",
                "?\nThe answer is:",
                "<|im_start|> ",
                "The answer is 5\n\n?\nThe answer is:\n\n",
            ),
        ],
    )
    def test_long_text_takes_linear_time(self, piece: str) -> None:
        text = "5\n\n" + piece * (100_000 // len(piece))
        start = time.process_time()
        extract(text)
        assert time.process_time() - start < 2  # 0.05 s; a quadratic rule takes minutes

    def test_a_number_of_any_length_is_exact(self) -> None:
        digits = "12" + "0" * 50_000
        assert extract(f"#### {digits}").strict == digits
        assert not same_value(digits, digits[:-1] + "1")


class TestScripts:
    @pytest.mark.parametrize(
        "frame",
        [
            *("她每天赚{}美元。", "答案是{}。", "答えは{}です。", "คำตอบคือ{}บาท", "답은{}입니다"),
            *("الجواب و{}", "התשובה ב{}", "उत्तर{}है", "\\boxed{{{}}}元", "￥{}", "（{}）", "「{}」"),
            *("ចម្លើយគឺ{}", "မှာ{}ပါ", "$‎{}", "US${}", "USD{}", "{}€", "{}dollars", "CNY {}"),
        ],
    )
    @pytest.mark.parametrize("number", ["18", "１８", "١٨", "۱۸", "१८", "๑๘", "𝟏𝟖"])
    def test_digits_are_read_in_any_of_them(self, frame: str, number: str) -> None:
        assert score_completion(frame.format(number), "18").correct

    @pytest.mark.parametrize(
        "name", ["x18", "é18", "Ж18", "β18", "x_18", "ｘ18", "ł18", "İ18", "ß18", "XUSD18"]
    )
    def test_a_name_with_digits_is_none_in_cased_scripts(self, name: str) -> None:
        assert extract(f"It is {name}").answer is None

    @pytest.mark.parametrize(
        ("text", "number"),
        [
            ("１，０００", "1000"),
            ("３，１０００", "1000"),
            ("有3，100个", "100"),
            ("３：３０", None),
            ("３／４", None),
            ("－５", "-5"),
            ("-₩1,200", "-1200"),
            ("٣٫٥", "3.5"),
            ("18。5个", "5"),
            ("5×18", "18"),
            ("5÷18", "18"),
        ],
    )
    def test_marks_mean_what_they_mean_in_ascii(self, text: str, number: str | None) -> None:
        assert extract(text).flexible == number


@pytest.mark.skipif(not GSM8K_TEST.exists(), reason=f"{GSM8K_TEST} is not there")
@pytest.mark.parametrize("gap", ["\n", "\n\n", ".\n"])
@pytest.mark.parametrize("asked", ["{}\nThe answer is: ", "Question: {}\nThe answer is: "])
def test_a_bare_answer_counts_whatever_the_model_goes_on_to_ask(gap: str, asked: str) -> None:
    """The paper's format: a bare number without an end token, and then the next question."""
    with gzip.open(GSM8K_TEST, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    right = 0
    for row, following in zip(rows, [*rows[1:], rows[0]], strict=True):
        bare = row["answer"].rpartition("#### ")[2]
        other = following["answer"].rpartition("#### ")[2]
        completion = bare + gap + asked.format(following["question"]) + other
        right += score_completion(completion, row["answer"]).correct
    assert right == 1319


class TestAgreementWithLmEval:
    @prop
    @given(gsm8k_solutions())
    def test_on_text_shaped_like_gsm8k(self, solution: str) -> None:
        self.assert_agreement(solution)

    @pytest.mark.skipif(not GSM8K_TEST.exists(), reason=f"{GSM8K_TEST} is not there")
    def test_on_every_gsm8k_test_answer(self) -> None:
        with gzip.open(GSM8K_TEST, "rt", encoding="utf-8") as lines:
            answers = [json.loads(line)["answer"] for line in lines]
        assert len(answers) == 1319
        for answer in answers:
            self.assert_agreement(answer)
            assert score_completion(answer, answer).strict

    def assert_agreement(self, solution: str) -> None:
        strict, flexible = lm_eval_rules(solution)
        found = extract(solution)
        assert strict is not None
        assert flexible is not None
        assert found.strict is not None
        assert found.flexible is not None
        assert Decimal(found.strict) == Decimal(strict)
        assert Decimal(found.flexible) == Decimal(flexible)


class TestCutNextQuestion:
    @pytest.mark.parametrize(
        "start",
        [
            *("Question:", "Q:", "Question 2:", "question #3 :", "Problem: ", "  User: ", "Human:"),
            *("Input:", "Instruction:", "**Question:**", "**Q**: ", "[Schema: 5,12] "),
            *("### Question", "## Problem 4\r", "### Input:", "[INST]", "</s>", "<|im_end|>"),
            *("<|im_start|>user\n", "<|im_start|> system", "<start_of_turn>user"),
            "<|start_header_id|>user<|end_header_id|>",
        ],
    )
    @pytest.mark.parametrize("before", ["18\n", "So 2 + 3 = 5.\n\n#### 5\n\n", ""])
    def test_every_kind_of_start(self, before: str, start: str) -> None:
        cut = cut_next_question(f"{before}{start}\nTom has 5.")
        assert cut.rstrip() == before.rstrip()

    @pytest.mark.parametrize(
        "text",
        [
            "The question: 5",
            "Her Q: 5 stays",
            "Questions remain: 5",
            "### Problem-solving\n5",
            "Userland: 5",
            "<|im_start|>assistant\n5",
            "The answer is 5.\n\nWait, that is per day.\n\nThe answer is: 35",
            "How many eggs are left?\nThe answer is: 5",
            "How many eggs are left?\nThe answer is: 5\n\nSo 5.",
            "It is 3.\n\nSo how many eggs are left?\nThe answer is: 5",
        ],
    )
    def test_what_is_no_start(self, text: str) -> None:
        assert cut_next_question(text) == text

    @pytest.mark.parametrize(
        "answer", ["−18", "$1,234.", "7 * 2 = 14\n#### 14", "The answer is 5.", "5\n\nNo, 6."]
    )
    def test_our_own_prompt_again_after_an_answer(self, answer: str) -> None:
        text = f"{answer}\n\nTom has 5 cats.\nHow many now? \nThe answer is: 7"
        assert cut_next_question(text) == answer

    @prop
    @given(soups)
    def test_the_cut_is_a_prefix_that_holds_no_further_start(self, text: str) -> None:
        cut = cut_next_question(text)
        assert text.startswith(cut)
        assert cut_next_question(cut) == cut


class TestCanonicalNumber:
    @pytest.mark.parametrize(
        ("text", "number"),
        [
            ("1,234.00", "1234"),
            ("-$5.50", "-5.5"),
            ("-0.0", "0"),
            ("007", "7"),
            ("no number", None),
            ("3/4", None),
            ("1,234/5", None),
            ("1,234,56", "1"),
            ("1,2345", "1"),
            ("(10)-3 is 7", "10"),
            ("...6", "6"),
            ("12２", "122"),
            ("", None),
        ],
    )
    def test_spelling(self, text: str, number: str | None) -> None:
        assert canonical_number(text) == number

    @prop
    @given(spelt_decimals())
    def test_value_is_kept_and_spelling_is_fixed(self, spelt: tuple[Decimal, str]) -> None:
        value, spelling = spelt
        number = canonical_number(spelling)
        assert number is not None
        assert Decimal(number) == value
        assert canonical_number(number) == number
        assert re.fullmatch(r"-?(0|[1-9][0-9]*)(\.[0-9]*[1-9])?", number)


class TestSameValue:
    @prop
    @given(spelt_decimals(), spelt_decimals())
    def test_agrees_with_decimals(
        self, left: tuple[Decimal, str], right: tuple[Decimal, str]
    ) -> None:
        assert same_value(left[1], right[1]) == (left[0] == right[0])
        assert same_value(left[1], str(left[0]))

    def test_more_digits_than_a_float_holds(self) -> None:
        assert not same_value("9007199254740993", "9007199254740992")
        assert not same_value("0.1", "0.1000000000000000055511151231257827")

    def test_a_missing_number_equals_nothing(self) -> None:
        assert not same_value(None, None)
        assert not same_value("5", None)
        assert not same_value("none", "none")


class TestScoreCompletion:
    def test_the_two_rules_are_judged_side_by_side(self) -> None:
        score = score_completion("#### 5\nThat leaves 7.", "7.0")
        assert score.extraction == Extraction(strict="5", flexible="7")
        assert (score.strict, score.flexible, score.correct) == (False, True, False)

    def test_without_a_marked_answer_the_last_number_is_judged(self) -> None:
        score = score_completion("That leaves 7 eggs", "2 + 5 = <<2+5=7>>7\n#### 7")
        assert (score.strict, score.flexible, score.correct) == (False, True, True)

    def test_a_gold_without_a_number_is_an_error(self) -> None:
        with pytest.raises(InputError, match="holds no number"):
            score_completion("5", "five")


class TestScoreLines:
    def test_rows(self) -> None:
        lines = [
            '{"id": "a", "completion": "It is 7.\\n#### 1,200", "gold": "9\\n#### 1200", "x": 1}\n',
            "  \n",
            '{"completion": "about 0.50 litres", "gold": 0.5}',
            '{"id": 3, "completion": "none", "gold": -2}',
        ]
        assert list(score_lines(lines)) == [
            {"id": "a", "strict": "1200", "flexible": "1200", "correct": True},
            {"strict": None, "flexible": "0.5", "correct": True},
            {"id": 3, "strict": None, "flexible": None, "correct": False},
        ]

    @pytest.mark.parametrize("number", [1e22, 1e-7, 0.1, -12.5, 10**30])
    def test_a_numeric_gold_keeps_its_exact_value(self, number: float) -> None:
        spelt = format(Decimal(repr(number)), "f")
        row = json.dumps({"completion": spelt, "gold": number})
        assert [result["correct"] for result in score_lines([row])] == [True]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("{", "not valid JSON"),
            ("[" * 100_000, "not valid JSON"),
            ('{"completion": "5", "gold": 1' + "0" * 5000 + "}", "not valid JSON"),
            ("[1]", "not a JSON object"),
            ('{"gold": 5}', "key 'completion' is missing, the line has 'gold'"),
            ('{"completion": "5"}', "key 'gold' is missing"),
            ('{"completion": 5, "gold": 5}', "'completion' is 5, only text"),
            ('{"completion": "5", "gold": true}', "'gold' is True, only text or a number"),
            ('{"completion": "5", "gold": null}', "'gold' is None, only text or a number"),
            ('{"completion": "5", "gold": "five"}', "gold 'five' holds no number"),
            ('{"completion": "5", "gold": NaN}', "holds no finite number in 'gold'"),
        ],
    )
    def test_a_bad_line_is_named(self, line: str, message: str) -> None:
        good = '{"completion": "5", "gold": "5"}'
        results = score_lines([good, "", line])
        assert next(results)["correct"] is True
        with pytest.raises(InputError, match=f"^line 3: .*{re.escape(message)}") as caught:
            next(results)
        assert len(str(caught.value)) < 400
