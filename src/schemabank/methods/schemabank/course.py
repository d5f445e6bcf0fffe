"""What the host decides for each step of a run with a schema bank: bank scale, tags, penalties."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemabank.config.settings import BankSettings
from schemabank.engine.batches import EMPTY, prepend
from schemabank.engine.run import Course, Row, Rows, Run, TrainingData
from schemabank.engine.schedule import StepSettings, keyed_uniform, steps_before_lora
from schemabank.methods.schemabank.curriculum import BankStep, step_settings, trained_groups
from schemabank.methods.schemabank.tags import Tagger, prefix_text
from schemabank.tasks.seams import leading_tokens

BANK = "bank"  # the part's name, which is that of its settings
Tags = tuple[int, ...]


@dataclass(frozen=True)
class TagPlan:
    """How a run's examples are tagged, and how the model learns their tags.

    Attributes:
        tagger: maps an example to ``num_tags`` schema ids.
        num_tags: tags of an example.
        prefix_room: most tokens of a text prefix that names the tags; 0: no prefix.
        loss_weight: weight of the router's loss on the tags; 0: no loss.
        fixed: whether an example has the same tags every time.
    """

    tagger: Tagger
    num_tags: int
    prefix_room: int
    loss_weight: float
    fixed: bool = False


@dataclass(frozen=True)
class Banked:
    """LoRA under schema banks.

    Attributes:
        bank: the bank's settings.
        tags: ``None`` for a run without tags.
    """

    bank: BankSettings
    tags: TagPlan | None = None

    @property
    def settings(self) -> Mapping[str, object]:
        """The bank's settings, by the part's name."""
        return {BANK: self.bank}

    def course(self, run: Run, data: TrainingData) -> Course:
        """Return what the run's steps do."""
        return BankCourse(run, data, self)


class BankCourse(Course):
    """The course of a run with a bank.

    Args:
        run: the run.
        data: its training data.
        method: bank and tags.
    """

    def __init__(self, run: Run, data: TrainingData, method: Banked) -> None:
        super().__init__(run, data)
        self._tags = method.tags
        self.num_cached = steps_before_lora(self.plans)
        self._weights = {
            name: getattr(method.bank, name)
            for name in BankSettings.model_fields
            if name.endswith("_weight")
        }
        if method.tags is not None:
            self._weights["tag_loss_weight"] = method.tags.loss_weight
        self.penalties = frozenset(name for name, weight in self._weights.items() if weight != 0)
        self._fixed: dict[int, Tags] = {}
        self._prefixes: dict[Tags, list[int]] = {}

    @property
    def trained_groups(self) -> frozenset[str]:
        """The groups that some step updates; a stage without its bank trains none of it."""
        return trained_groups(self.run.stages)

    def step(self, number: int) -> BankStep:
        """Return the settings of a step, from 0."""
        return step_settings(self.plans, number, seed=self.run.seed)

    def room(self, at: StepSettings) -> int:
        """Return the room of a tag prefix, in steps that may show one."""
        return self._tags.prefix_room if self._tags and _of_bank(at).tag_keep > 0 else 0

    def rows(self, at: StepSettings, indices: Sequence[int]) -> Rows:
        """Return a step's rows, with the tags that it shows."""
        step = _of_bank(at)
        return [None if i == EMPTY else self._tagged_row(step, i) for i in indices]

    def values(self, at: StepSettings, rows: Rows) -> Mapping[str, npt.ArrayLike]:
        """Return a step's bank scale, penalties' weights and tags."""
        step = _of_bank(at)
        found: dict[str, npt.ArrayLike] = {"bank_scale": step.bank_scale}
        if step.bank_scale != 0:  # a bare step has no router to penalise
            found |= self._weights
            if step.tag_keep == 0:
                found["tag_loss_weight"] = 0.0
        shown = [() if row is None else row.shown for row in rows]
        if self._tags is not None and any(shown):
            none = (0,) * self._tags.num_tags
            found["tags"] = [tags or none for tags in shown]
            found["tagged"] = [bool(tags) for tags in shown]
        return found

    def logged(self, at: StepSettings) -> Mapping[str, float]:
        """Return a step's bank scale."""
        return {"bank_scale": _of_bank(at).bank_scale}

    def _tagged_row(self, step: BankStep, index: int) -> Row:
        """Return an example with its tags, in a text prefix if the run has those."""
        tags, encoded = self.shown_tags(step, index), self.data.encoded[index]
        method = self._tags
        if not tags or method is None or not method.prefix_room:
            return Row(index, encoded, tags)
        prefix = self._prefixes.get(tags)
        if prefix is None:
            prefix = leading_tokens(prefix_text(tags), self.data.tokenizer)
            self._prefixes[tags] = prefix
        in_loss = not self.data.completion_only
        told = prepend(encoded, prefix, after=self.data.beginning, in_loss=in_loss)
        return Row(index, told, tags, in_text=True, lasting=method.fixed)

    def shown_tags(self, at: StepSettings, index: int) -> Tags:
        """Return the tags that a step shows of an example; none if the tag schedule drops them."""
        step, method = _of_bank(at), self._tags
        if method is None or step.tag_keep == 0:
            return ()
        # Hashed from run, step and example, not drawn one after another: neither the other rows of
        # the batch nor a run that goes on after a pause change which tags are shown.
        key = (self.run.seed, step.step, index)
        if keyed_uniform(f"tags/{key}") >= step.tag_keep:
            return ()
        tags = self._fixed.get(index)
        if tags is None:
            rng = np.random.default_rng(key)
            tags = method.tagger(self.data.examples[index], rng=rng)
            if method.fixed:
                self._fixed[index] = tags
        return tags


def _of_bank(at: StepSettings) -> BankStep:
    """Narrow a step's settings to those that :meth:`BankCourse.step` gives."""
    assert isinstance(at, BankStep)
    return at
