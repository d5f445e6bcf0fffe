"""Settings of the tasks: the data, the prompt, the target and how completions are scored."""

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from schemabank.config.base import Int, Later, PositiveInt, Rate, Seed, Settings, Share

TARGET = "{answer}"  # template of the task records
TaskName = Literal[
    "gsm8k", "gsm_symbolic", "conditional", "humaneval", "narrativeqa", "perplexity", "records"
]
TASK_NAMES: tuple[TaskName, ...] = get_args(TaskName)
MetricName = Literal[
    "numeric", "exact_match", "choice", "f1", "rouge_l", "reading", "code", "perplexity", "none"
]


class Gsm8kSettings(Settings):
    """GSM8K, from the hub or from SCHEMABANK_DATA."""

    validation_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of train that is set aside for validation by a hash of the question."""
    calculator_marks: bool = False
    """Keep the marks <<48/2=24>> in worked solutions."""


class GsmSymbolicSettings(Settings):
    """Generated GSM8K-like problems from the package reasoning-gym."""

    train_size: PositiveInt = 2000
    """Training problems."""
    validation_size: Int = 200
    """Validation problems, of seen templates."""
    test_size: PositiveInt = 200
    """Test problems of seen templates, and as many of held-out ones."""
    held_out_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the 85 templates that training never sees."""
    max_question_words: PositiveInt | None = None
    """Longest question, in words."""
    data_seed: Seed = 0
    """Seed of the problems' numbers and names."""


class ConditionalSettings(Settings):
    """Generated questions, each governed by one known if-then rule."""

    train_size: PositiveInt = 2000
    """Training examples."""
    validation_size: Int = 200
    """Validation examples, of seen words and wordings."""
    test_size: PositiveInt = 200
    """Test examples of seen words and wordings, and as many again of held-out ones."""
    num_rules: PositiveInt = 8
    """How many rules govern the examples."""
    held_out_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of each rule's words and of the wordings that training never sees."""
    show_rule: bool = False
    """Begin each question with its rule: a control."""
    data_seed: Seed = 0
    """Seed of all draws."""


class HumanevalSettings(Settings):
    """Python functions, checked by running them in a sandbox."""

    run_untrusted_code: bool = False
    """Allow what a model wrote to be run, in the sandbox."""
    timeout_s: Rate = 10.0
    """Wall clock time of a check, in seconds."""
    memory_mib: PositiveInt = 1024
    """Memory of a check, in MiB."""


class NarrativeqaSettings(Settings):
    """Questions on stories, with a summary of each, from the hub or from SCHEMABANK_DATA."""

    validation_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the documents for validation where the data has no training split."""
    natural_text: bool = True
    """Texts as people write them; else tokenised, as upstream."""
    max_summary_words: PositiveInt | None = None
    """Leave out questions whose summary is longer; no summary is ever cut."""


class RecordsSettings(Settings):
    """Data of your own: files, a folder, or a data set on the Hugging Face hub."""

    path: str = ""
    """A JSONL, JSON, CSV, TSV, Parquet or Arrow file, a folder of them, or a hub data set's id."""
    target: str = TARGET
    """Template of the target, from a row's columns."""
    messages: Annotated[str | tuple[str, str] | None, Later(None)] = None
    """Column with a chat, or two: what goes before, and what is learned; null: see tasks.md."""
    turns: Annotated[Literal["all", "last"], Later("all")] = "all"
    """Turns of the assistant in a chat that have loss."""
    references: str | None = None
    """Column with all right answers, a text or a list; without it the target is the one."""
    id: str | None = None
    """Column with an id; without it rows are counted."""
    group: str | None = None
    """Column with the group that a row's score is reported under."""
    cluster: str | None = None
    """Column with what rows share, such as a document; intervals treat these as drawn together."""
    train_split: str = "train"
    """Name of the training split; all rows of a single file belong to it."""
    validation_split: str | None = None
    """Validation split; null: "validation" if there is one, else a share of the training rows."""
    test_split: str | None = None
    """Test split; null: "test" if there is one, else a share of the training rows."""
    validation_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the training rows set aside by a hash of the prompt."""
    test_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the training rows set aside by a hash of the prompt."""
    config: str | None = None
    """Configuration of a data set on the hub."""
    revision: str | None = None
    """Revision of a data set on the hub; the default branch without it."""
    digest: str | None = None
    """SHA-256 of all rows; filled in when they are first read, checked when read again."""

    @property
    def has_own_target(self) -> bool:
        """Whether the target is another template than the default one."""
        return self.target != TARGET


class PerplexitySettings(Settings):
    """Whole books, scored after a short and after a long context."""

    path: str | None = None
    """Folder with index.jsonl and text/; without it, books/ in SCHEMABANK_DATA."""
    windows: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1)] = (512, 4096)
    """Lengths in tokens of the windows that end with the same targets."""
    num_targets: PositiveInt = 64
    """Tokens at a window's end that are scored."""
    windows_per_book: PositiveInt = 4
    """Places in a book that are scored, evenly over it."""
    validation_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the books that are not for testing set aside by a hash of their ids."""
    leave_out: tuple[str, ...] = ("the-cask-of-amontillado",)
    """Ids of books that are too short for the longest window."""

    @model_validator(mode="after")
    def _check_windows(self) -> Self:
        if len(set(self.windows)) < len(self.windows):
            raise ValueError(f"windows {self.windows} repeat: allowed are distinct lengths")
        if min(self.windows) <= self.num_targets:
            raise ValueError(
                f"num_targets is {self.num_targets}, but a window has {min(self.windows)} tokens: "
                f"allowed are 1 to {min(self.windows) - 1}, lower it"
            )
        return self


class TaskSettings(Settings):
    """What is learned: the data, the prompt and the target."""

    name: TaskName = "gsm_symbolic"
    """The task."""
    prompt: str | None = None
    """Prompt template; {question} and other columns are filled in. Null: the task's own."""
    chat_template: bool = False
    """Put the prompt into the tokenizer's chat template, as the user's turn."""
    metric: MetricName | None = None
    """How completions are scored; null: the task's own."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts that end a completion, beside the end token, and are no part of it."""
    target: Literal["solution", "final"] = "solution"
    """What follows the prompt: the worked solution or the bare final answer."""
    end_token: bool = True
    """End the target with the end-of-sequence token."""
    completion_only_loss: bool = True
    """Loss on the target alone, not on the prompt."""
    max_length: Annotated[int, Field(ge=8)] = 512
    """Longest training example in tokens; the rest is cut off."""
    max_cut_ratio: Share = 0.01
    """More training examples cut off than this share is an error."""
    train_limit: PositiveInt | None = None
    """Train on the first so many examples only."""
    gsm8k: Gsm8kSettings = Gsm8kSettings()
    """Settings of gsm8k."""
    gsm_symbolic: GsmSymbolicSettings = GsmSymbolicSettings()
    """Settings of gsm_symbolic."""
    conditional: ConditionalSettings = ConditionalSettings()
    """Settings of conditional."""
    humaneval: HumanevalSettings = HumanevalSettings()
    """Settings of humaneval."""
    narrativeqa: NarrativeqaSettings = NarrativeqaSettings()
    """Settings of narrativeqa."""
    records: RecordsSettings = RecordsSettings()
    """Settings of records."""
    perplexity: PerplexitySettings = PerplexitySettings()
    """Settings of perplexity."""

    @model_validator(mode="after")
    def _check_records(self) -> Self:
        if self.name == "records" and not self.records.path:
            raise ValueError(
                "name is 'records' but no data is named: set records.path to a file, a folder of "
                "files or a data set on the hub"
            )
        if self.records.messages is not None and (
            self.prompt is not None or self.records.has_own_target
        ):
            raise ValueError(
                f"records.messages is {self.records.messages!r}, so prompt and records.target, "
                "templates over columns, have no effect: name a chat or templates, not both"
            )
        if self.records.validation_ratio + self.records.test_ratio >= 1:
            raise ValueError(
                f"records.validation_ratio {self.records.validation_ratio:g} and "
                f"records.test_ratio {self.records.test_ratio:g} leave nothing to train on: "
                "allowed is a sum below 1"
            )
        return self
