"""The untouched model is asked with and without the white space at a prompt's end."""

import json
from dataclasses import replace
from typing import Any

import pytest

from schemabank.config.settings import EvalSettings, RunConfig, TaskSettings
from schemabank.runs.forms import better
from schemabank.runs.prepare import prompt_forms
from schemabank.runs.tables import results_tables
from schemabank.tasks import Example, TaskData
from schemabank.tasks.scoring.scores import METRICS, ItemRecord
from schemabank.tasks.seams import continuation_tokens, plain_tokens
from tiny import END_TOKEN_ID, sentencepiece_tokenizer, tiny_tokenizer
from tinyruns import Finished

TOKENIZER = tiny_tokenizer()
RECORD = ItemRecord(
    id="e/1",
    sample=0,
    group="all",
    cluster="",
    prompt="",
    completion="",
    golds=("18",),
    extracted=None,
    readings={},
    scores={"correct": 0.0},
    new_tokens=1,
    stop_reason="length",
    gold_tokens=2,
    gold_nll=1.0,
    gold_nll_with_end=1.0,
)


def example(number: int) -> Example:
    return Example(id=f"e/{number}", question=f"What is {number}?", solution="18", answer="18")


DATA = TaskData(train=[example(1), example(2)], validation=[], test=[example(3)])


def forms(arm: str = "base", *, few_shot: int = 0, **task: object) -> dict[str, Any]:
    run = RunConfig.model_validate({"arm": arm, "task": TaskSettings.model_validate(task)})
    settings = EvalSettings(split="test", few_shot=few_shot)
    return {form: item for form, (item,) in prompt_forms(DATA, run, settings, TOKENIZER).items()}


@pytest.mark.parametrize("few_shot", [0, 2])
@pytest.mark.parametrize(
    ("prompt", "end"), [("{question}\nThe answer is: ", " "), ("{question}\n", "\n")]
)
def test_trimmed_white_space_begins_the_answer(few_shot: int, prompt: str, end: str) -> None:
    found = forms(few_shot=few_shot, prompt=prompt)
    whole, trimmed = found["whole"], found["trimmed"]
    assert whole.prompt == trimmed.prompt + end
    said = {
        form: TOKENIZER.decode([*item.prompt_tokens, *item.target_tokens])
        for form, item in found.items()
    }
    assert said["whole"] == said["trimmed"], "the same text"
    assert trimmed.target_tokens == (*plain_tokens(f"{end}18", TOKENIZER), END_TOKEN_ID)
    assert TOKENIZER.decode(list(trimmed.prompt_tokens)) == trimmed.prompt
    shot = continuation_tokens(f"{end}18\n\n", TOKENIZER)
    assert json.dumps(shot)[1:-1] in json.dumps(trimmed.prompt_tokens) or not few_shot, (
        "shots have the example's own seam"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"arm": "lora"},
        {"arm": "schemabank"},
        {"prompt": "{question} ="},
    ],
)
def test_there_is_one_form_for_trained_arms_and_where_no_white_space_ends(
    changes: dict[str, Any],
) -> None:
    assert list(forms(**changes)) == ["whole"]


def test_a_chats_prompt_has_one_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TOKENIZER, "chat_template", "{{ messages[0].content }}\n", raising=False)
    assert list(forms(chat_template=True)) == ["whole"]


def test_a_tokenizer_that_puts_a_blank_before_texts_has_none_too_many() -> None:
    tokenizer = sentencepiece_tokenizer()
    run = RunConfig(arm="base")
    found = prompt_forms(DATA, run, EvalSettings(split="test", few_shot=1), tokenizer)
    for (item,) in found.values():
        text = tokenizer.decode([*item.prompt_tokens[1:], *item.target_tokens[:-1]])
        assert text == "What is 1?\nThe answer is: 18\n\nWhat is 3?\nThe answer is: 18".replace(
            "1?", text[8:10]
        )


@pytest.mark.parametrize(
    ("scores", "nats", "form"),
    [
        ((0.0, 1.0), (1.0, 9.0), "trimmed"),
        ((1.0, 0.0), (9.0, 1.0), "whole"),
        ((1.0, 1.0), (2.0, 1.0), "trimmed"),
        ((1.0, 1.0), (1.0, 2.0), "whole"),
        ((1.0, 1.0), (1.0, 1.0), "whole"),
    ],
)
def test_the_better_score_counts_and_of_equals_the_likelier_gold(
    scores: tuple[float, float], nats: tuple[float, float], form: str
) -> None:
    records = [
        [replace(RECORD, scores={"correct": score}, gold_nll_with_end=nll / 2)]
        for score, nll in zip(scores, nats, strict=True)
    ]
    found = better({"whole": records[0], "trimmed": records[1]}, METRICS["numeric"])
    assert found.form == form
    assert found.records is records[form == "trimmed"]
    assert found.forms == {
        "whole": {"all": {"correct": scores[0], "gold_nats": nats[0]}},
        "trimmed": {"all": {"correct": scores[1], "gold_nats": nats[1]}},
    }


def test_likelihoods_of_forms_are_of_the_whole_text() -> None:
    """The same nats over more tokens are no better: 3 tokens of 1 nat are worse than 1 of 2."""
    long = replace(RECORD, scores={}, gold_tokens=3, gold_nll_with_end=1.0)
    short = replace(RECORD, scores={}, gold_tokens=1, gold_nll_with_end=2.0)
    assert better({"whole": [long], "trimmed": [short]}, METRICS["none"]).form == "trimmed"


def test_results_hold_both_forms_and_the_table_says_which_is_shown(finished: Finished) -> None:
    result = finished.base.result
    assert result is not None
    assert set(result["prompt_forms"]) == {"whole", "trimmed"}  # type: ignore[call-overload]
    shown = result["prompt_forms"][result["prompt_form"]]["all"]  # type: ignore[index]
    assert shown["correct"] == result["groups"]["all"]["correct"]  # type: ignore[index]
    lines = (finished.base.folder / "predictions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert all(row["prompt"].endswith(" ") == (result["prompt_form"] == "whole") for row in rows)
    for outcome in (finished.lora, finished.schemabank):
        assert outcome.result is not None
        assert (outcome.result["prompt_form"], outcome.result["prompt_forms"]) == ("whole", {})
    for form in ("whole", "trimmed"):
        table = results_tables([{**result, "prompt_form": form}])[0]
        (cells,) = (list(map(str, column.cells)) for column in table.columns[:1])
        assert ("base, prompt trimmed" in cells) == (form == "trimmed")
        assert ("base" in cells) == (form == "whole")
