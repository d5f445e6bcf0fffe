from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from cohorts import with_banks
from schemabank.common.errors import InputError
from schemabank.config.presets import PRESETS
from schemabank.config.settings import (
    BankSettings,
    EvalSettings,
    ExperimentConfig,
    LoraSettings,
    RunConfig,
    TagSettings,
    TaskSettings,
)
from schemabank.engine.cohort import Cohort
from schemabank.engine.run import OnCourse, Run, TrainingData
from schemabank.engine.stack import AdapterStack
from schemabank.methods.schemabank.course import Banked, TagPlan
from schemabank.methods.schemabank.tagging import check_tags, embeddings, uses_prefix
from schemabank.runs.prepare import (
    engine_run,
    evaluation_items,
    task_training_data,
    training_data,
)
from schemabank.tasks import Example, TaskData
from schemabank.tasks.catalog import TASKS, load_task, split_of
from schemabank.tasks.prompts import few_shot_examples, target_text
from tiny import END_TOKEN, END_TOKEN_ID, sentencepiece_tokenizer, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
BANK = BankSettings(num_schemas=8, rank=4, attribute_dim=4)


def examples(count: int = 12, *, group: str = "all") -> list[Example]:
    return [
        Example(
            id=f"{group}/{i}",
            question=f"Tom has {'1' * (i % 3 + 1)}{i} clips and sold half. How many are left?",
            solution=f"half of {i} is gone\n#### 1,{i:03}",
            answer=f"1,{i:03}",
            fields={"template": str(i % 4)},
            group=group,
        )
        for i in range(count)
    ]


def preset_task(name: str) -> TaskSettings:
    return TaskSettings.model_validate(PRESETS[name].get("task", {}))


def run_config(**changes: object) -> RunConfig:
    return RunConfig.model_validate(
        {"arm": "schemabank", "bank": BANK, "lora": LoraSettings(r=4)} | changes
    )


def stacked(run: RunConfig, slots: int = 1) -> AdapterStack:
    bank = run.bank if run.arm == "schemabank" else None
    stack = AdapterStack(tiny_model("llama"), lora=[run.lora] * slots, attach=with_banks(bank))
    for slot in range(slots):
        stack.initialise(slot, slot)
    return stack


def training_data_of(run: RunConfig) -> TrainingData:
    return task_training_data(examples(), run, TOKENIZER)


def tags_of(run: Run) -> TagPlan | None:
    return run.method.tags if isinstance(run.method, Banked) else None


def text_of(tokens: Sequence[int]) -> str:
    return str(TOKENIZER.decode(list(tokens)))


class TestTokens:
    @pytest.mark.parametrize(
        ("preset", "completion"),
        [("sound", f"half of 3 is gone\n#### 1,003{END_TOKEN}"), ("paper", "1003")],
    )
    def test_both_presets_are_as_the_method_says(self, preset: str, completion: str) -> None:
        run = run_config(task=preset_task(preset))
        example = examples()[3]
        encoded = task_training_data([example], run, TOKENIZER).encoded[0]
        prompt = f"{example.question}\nThe answer is: "
        assert text_of(encoded.tokens) == prompt + completion
        (item,) = evaluation_items(
            TaskData(train=[], validation=[], test=[example]),
            run.task,
            EvalSettings(split="test"),
            TOKENIZER,
        )
        length = len(item.prompt_tokens)
        assert text_of(item.prompt_tokens) == item.prompt == prompt
        assert encoded.tokens[:length] == item.prompt_tokens, "asked as trained, token for token"
        ends = encoded.tokens[-1] == END_TOKEN_ID
        assert ends == (preset == "sound")
        assert encoded.label_start == (length if preset == "sound" else 1)
        assert encoded.num_labels == len(encoded.tokens) - encoded.label_start
        assert item.target_tokens == encoded.tokens[length:] + (() if ends else (END_TOKEN_ID,))

    def test_the_space_after_the_colon_belongs_to_the_prompt(self) -> None:
        run = run_config()
        encoded = task_training_data(examples(1), run, TOKENIZER).encoded[0]
        assert text_of(encoded.tokens[: encoded.label_start]).endswith("The answer is: ")
        assert text_of(encoded.tokens[encoded.label_start :]).startswith("half of")

    def test_paper_is_the_published_protocol(self) -> None:
        paper = ExperimentConfig.model_validate({"arm": "schemabank"} | PRESETS["paper"])
        assert (paper.task.end_token, paper.task.completion_only_loss) == (False, False)
        assert (paper.bank.residual, paper.tags.delivery) == (False, "prefix")
        assert uses_prefix(paper.runs()[0])

    def test_the_training_limit_takes_the_first_examples(self) -> None:
        run = run_config(task=TaskSettings(train_limit=5))
        data = task_training_data(examples(), run, TOKENIZER)
        assert [e.id for e in data.encoded] == [e.id for e in examples()[:5]]
        assert list(data.examples) == examples()[:5]

    def test_the_loss_sees_the_same_positions_in_the_schedule(self) -> None:
        for completion_only in (True, False):
            run = run_config(task=TaskSettings(completion_only_loss=completion_only))
            data = task_training_data(examples(), run, TOKENIZER)
            assert data.completion_only is completion_only
            labels = {e.num_labels for e in data.encoded}
            assert max(b.num_labels for b in data.schedule.buckets) == max(labels)


class TestLimits:
    def test_a_tag_prefix_takes_nothing_from_the_length_limit(self) -> None:
        longest = max(len(e.tokens) for e in training_data_of(run_config()).encoded)
        task = TaskSettings(max_length=longest)
        plain, prefixed = (
            training_data_of(run_config(task=task, tags=TagSettings(delivery=delivery)))
            for delivery in ("loss", "prefix")
        )
        assert not any(e.cut for e in prefixed.encoded)
        assert prefixed.encoded == plain.encoded
        assert prefixed.schedule == plain.schedule

    def test_no_examples(self) -> None:
        with pytest.raises(InputError, match="0 training examples, allowed is at least 1"):
            training_data([], [], run_config(), TOKENIZER)


class TestTags:
    def test_only_runs_with_a_prefix_keep_room_for_it(self) -> None:
        for delivery, prefixed in (("loss", False), ("prefix", True), ("both", True)):
            run = run_config(tags=TagSettings(delivery=delivery))
            planned = tags_of(engine_run(run, examples(), stacked(run), TOKENIZER, name="run"))
            assert uses_prefix(run) is prefixed
            longest = len(TOKENIZER("[Schema: 7,7] ")["input_ids"])
            assert planned is not None
            assert planned.prefix_room == (longest if prefixed else 0)
        for other in ({"arm": "lora"}, {"tags": TagSettings(tagger="none", delivery="prefix")}):
            run = run_config(**({"tags": {"delivery": "prefix"}} | other))
            assert not uses_prefix(run)
            assert tags_of(engine_run(run, examples(), stacked(run), TOKENIZER, name="run")) is None

    @pytest.mark.parametrize(
        "tokenizer", [TOKENIZER, sentencepiece_tokenizer()], ids=["bytes", "sentencepiece"]
    )
    @pytest.mark.parametrize("completion_only", [True, False])
    def test_a_prefix_fits_its_room_and_shifts_the_loss(
        self, completion_only: bool, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        run = run_config(
            tags=TagSettings(delivery="prefix"),
            task=TaskSettings(completion_only_loss=completion_only),
        )
        data = task_training_data(examples(), run, tokenizer)
        stack = stacked(run)
        planned = engine_run(run, data.examples, stack, tokenizer, name="run")
        slot = Cohort(stack, [planned], data).slots[0]
        settings = slot.settings()
        room = slot.kind(settings).room
        rows = slot.rows(settings)
        width, num_labels = data.shape(0, room)
        plain_width, plain_labels = data.shape(0, 0)
        assert (width, num_labels) == (
            plain_width + room,
            plain_labels + (0 if completion_only else room),
        )
        for shown in rows:
            assert shown is not None
            row, given = shown.encoded, shown.shown
            text = str(tokenizer.decode(row.tokens[data.beginning :]))
            assert text.startswith(f"[Schema: {given[0]},{given[1]}] Tom has")
            assert 0 < len(row.tokens) - len(data.encoded[shown.index].tokens) <= room
            assert len(row.tokens) <= width
            assert row.num_labels <= num_labels
            first = str(tokenizer.decode(row.tokens[row.label_start :]))
            assert first.startswith("half of") == completion_only

    @pytest.mark.parametrize("tagger", ["hash", "content", "random", "field", "cluster", "none"])
    @pytest.mark.parametrize("delivery", ["prefix", "loss", "both"])
    def test_every_tagger_trains(self, tagger: str, delivery: str) -> None:
        field = "template" if tagger == "field" else None
        run = run_config(
            tags=TagSettings(tagger=tagger, field=field, delivery=delivery, loss_weight=2.0),
            train={"max_steps": 3},
        )
        data = task_training_data(examples(), run, TOKENIZER)
        check_tags(run, data.examples)
        stack = stacked(run)
        planned = engine_run(run, data.examples, stack, TOKENIZER, name="run")
        if tagger == "none":
            assert tags_of(planned) is None
        else:
            found = tags_of(planned)
            assert found is not None
            assert (found.prefix_room > 0) == (delivery != "loss")
            assert found.num_tags == 2
            assert found.loss_weight == (0.0 if delivery == "prefix" else 2.0)
            rng = np.random.default_rng(0)
            for example in examples():
                tags = found.tagger(example, rng=rng)
                assert len(set(tags)) == 2
                assert all(0 <= tag < BANK.num_schemas for tag in tags)
        steps = list(Cohort(stack, [planned], data).steps())
        assert all(np.isfinite(step.total_loss) for (step,) in steps)
        in_loss = tagger != "none" and delivery != "prefix"
        assert (steps[0][0].total_loss > steps[0][0].loss + 1) == in_loss

    def test_lora_has_neither_bank_nor_tags(self) -> None:
        run = run_config(arm="lora")
        planned = engine_run(run, examples(), stacked(run), TOKENIZER, name="run")
        assert planned.method == OnCourse()
        assert [stage.name for stage in planned.stages] == ["lora"]

    def test_a_field_that_is_not_there_is_found_early(self) -> None:
        run = run_config(tags=TagSettings(tagger="field", field="colour"))
        with pytest.raises(InputError, match=r"no field 'colour' .* it has template"):
            check_tags(run, examples())

    def test_too_few_questions_for_clusters_are_found_early(self) -> None:
        run = run_config(tags=TagSettings(tagger="cluster"))
        check_tags(run, examples(8))
        with pytest.raises(InputError, match=r"num_schemas is 8, .* 'cluster' allows 1 to 7"):
            check_tags(run, examples(7))


class TestEmbeddings:
    @pytest.mark.parametrize("slots", [1, 2])
    def test_are_the_base_models_mean_hidden_states(self, slots: int) -> None:
        given = examples(19)  # more than a batch, of different lengths
        found = embeddings(stacked(run_config(), slots), TOKENIZER, given)
        assert list(found) == [e.id for e in given]
        base = tiny_model("llama").base_model
        for example in given:
            tokens = torch.tensor([TOKENIZER(example.question)["input_ids"]])
            with torch.no_grad():
                hidden = base(input_ids=tokens).last_hidden_state[0]
            np.testing.assert_allclose(found[example.id], hidden.mean(0).numpy(), atol=1e-5)


class TestItems:
    DATA = TaskData(
        train=examples(9),
        validation=examples(2, group="held back"),
        test=examples(5, group="seen") + examples(3, group="held_out"),
    )

    def ids(self, **settings: object) -> list[str]:
        items = evaluation_items(
            self.DATA,
            TaskSettings(),
            EvalSettings.model_validate({"split": "test", **settings}),
            TOKENIZER,
        )
        return [item.id for item in items]

    def test_the_limit_holds_for_every_group(self) -> None:
        assert self.ids(limit=2) == ["seen/0", "seen/1", "held_out/0", "held_out/1"]
        assert len(self.ids(limit=4)) == 7
        assert len(self.ids()) == 8
        assert self.ids(split="validation") == ["held back/0", "held back/1"]

    def test_validation_is_scored_where_nothing_is_said(self) -> None:
        items = evaluation_items(self.DATA, TaskSettings(), EvalSettings(), TOKENIZER)
        assert [item.id for item in items] == ["held back/0", "held back/1"]
        assert {
            name: split_of(
                TaskSettings.model_validate({"name": name, "records": {"path": "a.jsonl"}}), None
            )
            for name in TASKS
        } == {name: "test" if name == "humaneval" else "validation" for name in TASKS}

    def test_an_empty_split(self) -> None:
        empty = TaskData(train=examples(1), validation=[], test=examples(1))
        with pytest.raises(InputError) as error:
            evaluation_items(empty, TaskSettings(name="gsm8k"), EvalSettings(), TOKENIZER)
        assert str(error.value) == (
            "the split 'validation' of gsm8k holds 0 items, allowed is at least 1: set eval.split "
            "(or --split of routing) to one that holds some (train with 1, test with 1), or "
            "enlarge it by the settings of task.gsm8k"
        )

    @pytest.mark.parametrize("target", ["solution", "final"])
    def test_few_shot_prompts_show_training_examples_in_the_same_form(self, target: str) -> None:
        task = TaskSettings(target=target)
        items = evaluation_items(self.DATA, task, EvalSettings(split="test", few_shot=2), TOKENIZER)
        first, second = few_shot_examples(self.DATA, 2)

        def shown(example: Example) -> str:
            answer = example.solution if target == "solution" else example.answer.replace(",", "")
            return f"{example.question}\nThe answer is: {answer}\n\n"

        for item, example in zip(items, self.DATA.test, strict=True):
            own = f"{example.question}\nThe answer is: "
            assert item.prompt == shown(first) + shown(second) + own
            assert text_of(item.prompt_tokens) == item.prompt
            assert item.golds == (example.answer,)

    def test_the_seams_of_shots_are_tokenised_as_the_examples_own(self) -> None:
        task = TaskSettings(prompt="Q{question} is", target="final")
        item = evaluation_items(
            self.DATA, task, EvalSettings(split="test", few_shot=1, limit=1), TOKENIZER
        )[0]
        (shot,) = few_shot_examples(self.DATA, 1)
        answer = TOKENIZER(target_text(shot, target="final") + "\n\n")["input_ids"]
        own = TOKENIZER(f"Q{self.DATA.test[0].question} is")["input_ids"]
        asked = TOKENIZER(f"Q{shot.question} is")["input_ids"]
        assert list(item.prompt_tokens) == [*asked, *answer, *own]

    def test_more_shots_than_training_examples(self) -> None:
        with pytest.raises(InputError, match=r"10 few-shot .* allows 0 to 9"):
            evaluation_items(
                self.DATA, TaskSettings(), EvalSettings(split="test", few_shot=10), TOKENIZER
            )


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({"train_size": 6, "validation_size": 2, "test_size": 3, "held_out_ratio": 0.5}, (6, 2, 6)),
        ({"train_size": 2, "validation_size": 0, "test_size": 1, "held_out_ratio": 0.0}, (2, 0, 1)),
    ],
)
def test_a_task_is_loaded_with_its_own_settings(
    settings: Mapping[str, object], sizes: tuple[int, int, int]
) -> None:
    data = load_task(TaskSettings.model_validate({"gsm_symbolic": settings}))
    assert tuple(len(data.split(s)) for s in ("train", "validation", "test")) == sizes
