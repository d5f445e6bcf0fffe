"""Every setting with its one default and its checks.

Settings are frozen pydantic models that reject unknown keys. Defaults are the preset ``sound``;
:mod:`schemabank.config.presets` lists in what ``paper`` differs. Keys carry the names that PEFT and
transformers use. Origin of the method's figures: the results document of SchemaBank on GSM8K.
"""

import inspect
import math
from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    Field,
    create_model,
    model_validator,
)

from schemabank.config.base import LARGEST, Int, Later, PositiveInt, Rate, Seed, Settings, Weight
from schemabank.config.methods import METHODS
from schemabank.config.peftconfig import refuse_pefts
from schemabank.config.targets import ATTENTION, Targets, check_targets
from schemabank.config.task import TaskSettings
from schemabank.config.train import (
    EQUAL_RATE_STAGES,
    AverageSettings,
    DistillSettings,
    RescaleSettings,
    Stage,
    StageSettings,
    TrainSettings,
)

if TYPE_CHECKING:
    Arm = str
else:
    Arm = Literal[tuple(METHODS)]

Own = TypeVar("Own", bound=Settings)
RATIO_TOLERANCE = 1e-6


class ModelSettings(Settings):
    """The base model."""

    name: str = "smollm2-135m-instruct"
    """Embedded name, folder, GGUF file or Hugging Face hub id."""
    revision: str | None = None
    """Revision on the hub; the default branch without it."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number type of the frozen weights; auto is bfloat16 where the processor has it."""


class LoraSettings(Settings):
    """The LoRA adapter, as in PEFT's LoraConfig."""

    r: PositiveInt = 16
    """Rank."""
    lora_alpha: Rate = 16.0
    """Scale: the update is multiplied by lora_alpha / r."""
    use_rslora: Annotated[bool, Later(False)] = False
    """Multiply by lora_alpha / √r instead, which suits large ranks (arXiv 2312.03732)."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Dropout on the adapter's input."""
    target_modules: Targets = ATTENTION
    """Adapted layers: names, a pattern of paths, or all-linear; by default the attention's."""
    layers_to_transform: Annotated[
        Annotated[
            tuple[Int, ...],
            Field(min_length=1),
            AfterValidator(lambda indices: tuple(sorted(indices))),
        ]
        | None,
        Later(None),
    ] = None
    """Indices of the blocks whose layers get one; null: all blocks."""

    @model_validator(mode="before")
    @classmethod
    def _check_kind(cls, given: object) -> object:
        refuse_pefts(given)
        return given

    @model_validator(mode="after")
    def _check_places(self) -> Self:
        layers = self.layers_to_transform or ()
        if len(set(layers)) < len(layers):
            raise ValueError(
                f"layers_to_transform is {layers}, allowed are distinct block indices: name each "
                "block once"
            )
        check_targets(self.target_modules)
        return self

    @property
    def scaling(self) -> float:
        """What the update is multiplied by."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)


class BankSettings(Settings):
    """The schema bank on a decoder block's output."""

    num_schemas: PositiveInt = 32
    """S, how many schemas the router chooses from."""
    rank: PositiveInt = 16
    """r, rank of a schema."""
    top_k: PositiveInt = 2
    """Schemas a token uses."""
    attribute_dim: PositiveInt = 32
    """a, width of a schema's attribute vector."""
    residual: bool = True
    """Add the mixture to the hidden state; false puts the mixture in its place."""
    init_std: Rate = 0.02
    """Standard deviation of the router and of U at the start."""
    last_n: PositiveInt = 2
    """Banks sit on the last so many blocks."""
    layers: tuple[Int, ...] | None = None
    """Indices of the blocks with a bank, instead of last_n."""
    orthonormality_weight: Weight = 0.01
    """Weight of the schemas' orthonormality term."""
    entropy_weight: Annotated[float, Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False)] = 0.0
    """Weight of the router's entropy in the loss: positive sharpens, negative spreads."""
    load_balance_weight: Weight = 0.0
    """Weight of the load-balancing term."""

    @model_validator(mode="after")
    def _check_bank(self) -> Self:
        if self.top_k > self.num_schemas:
            raise ValueError(
                f"top_k is {self.top_k}, allowed is 1 to num_schemas = {self.num_schemas}: "
                "lower top_k or raise num_schemas"
            )
        distinct = self.layers is None or len(set(self.layers)) == len(self.layers) > 0
        if not distinct:
            raise ValueError(
                f"layers is {self.layers}, allowed are distinct block indices, at least one: "
                "name each block once or leave layers out"
            )
        return self


class TagSettings(Settings):
    """Which schemas an example is tagged with, and how the model is told."""

    tagger: Literal["hash", "content", "cluster", "field", "random", "none"] = "hash"
    """How tags are chosen."""
    num_tags: PositiveInt = 2
    """Distinct tags of each example."""
    field: str | None = None
    """Column of the data that the tagger field uses, such as template."""
    delivery: Literal["prefix", "loss", "both"] = "loss"
    """As a text prefix, as a router loss on the tagged schemas, or both."""
    loss_weight: Weight = 1.0
    """Weight of the router loss."""

    @model_validator(mode="after")
    def _check_field(self) -> Self:
        if self.tagger == "field" and self.field is None:
            raise ValueError("tagger is 'field' but no field is named: set tags.field to a column")
        return self


class EvalSettings(Settings):
    """The evaluation after training."""

    split: Literal["validation", "test"] | None = None
    """Split to score; null: validation, but test for humaneval. Read test once, at the end."""
    limit: PositiveInt | None = None
    """Score the first so many items of every group only."""
    max_new_tokens: PositiveInt = 256
    """Longest completion in tokens."""
    batch_size: PositiveInt = 64
    """Completions decoded at once for each run."""
    num_samples: PositiveInt = 1
    """Completions of every item; scores are means over them."""
    temperature: Weight = 0.0
    """Tokens are drawn from the logits divided by it; 0: the most likely one is taken."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Tokens are drawn from the most likely ones that hold this probability."""
    sampling_seed: Seed = 0
    """Seed of the draws."""
    pass_at: tuple[PositiveInt, ...] = ()
    """Numbers k of samples for pass@k, the chance that one of k is right."""
    few_shot: Int = 0
    """Worked examples in front of the arm base's prompt."""
    routing: Literal["off", "on", "dense"] = "off"
    """Bank at evaluation: removed, routed as in training, or all schemas without the router."""

    @model_validator(mode="after")
    def _check_samples(self) -> Self:
        if self.num_samples > 1 and self.temperature == 0:
            raise ValueError(
                f"num_samples is {self.num_samples}, but at temperature 0 all samples of an item "
                "are the same: set eval.temperature, such as 0.8, or take 1 sample"
            )
        if any(k > self.num_samples for k in self.pass_at):
            raise ValueError(
                f"pass_at names {max(self.pass_at)}, which {self.num_samples} samples cannot "
                f"estimate: allowed are 1 to num_samples, draw more samples or lower k"
            )
        return self


Minutes = Annotated[float, Field(gt=0, le=LARGEST)]


class EngineSettings(Settings):
    """Where and how wide runs execute; changes no result beyond rounding, so no run's id."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device; auto takes the GPU if there is one."""
    slots: PositiveInt | Literal["auto"] = "auto"
    """Runs trained at once; auto: one on a CPU, on a GPU as many as fit and make it faster."""
    keep_stages: bool = True
    """Keep the arm schemabank's adapter and bank at the end of every stage, in RUN/stages."""
    checkpoint_minutes: Minutes | None = 5.0
    """Minutes between checkpoints of runs in training, or in evaluation on a CPU; null: none."""
    checkpoint_steps: PositiveInt | None = None
    """Steps of all slots, or answers of a run, between checkpoints, too; null: none."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Libraries in which runs are followed; each is a package of its own."""
    tracker_project: Annotated[str, Field(min_length=1)] | None = None
    """Name of the project in a tracker; the output folder's name without it."""


class _OfAllMethods(Settings):
    """All settings but the arm and the seed, and but what a method has for itself."""

    preset: Literal["sound", "paper"] = "sound"
    """Where defaults come from."""
    model: ModelSettings = ModelSettings()
    """The base model."""
    task: TaskSettings = TaskSettings()
    """The task."""
    lora: LoraSettings = LoraSettings()
    """The adapter."""
    bank: BankSettings = BankSettings()
    """The schema bank."""
    tags: TagSettings = TagSettings()
    """Tags."""
    curriculum: Annotated[tuple[StageSettings, ...], Field(min_length=1)] = EQUAL_RATE_STAGES
    """Stages of the arm schemabank."""
    train: TrainSettings = TrainSettings()
    """Training."""
    average: Annotated[AverageSettings, Later(AverageSettings())] = AverageSettings()
    """Average of the adapter over its steps."""
    rescale: Annotated[RescaleSettings, Later(RescaleSettings())] = RescaleSettings()
    """Scale of the adapter, chosen after training."""
    distill: Annotated[DistillSettings, Later(DistillSettings())] = DistillSettings()
    """Teachers, from whose predictions a run learns."""
    eval: EvalSettings = EvalSettings()
    """Evaluation."""
    engine: EngineSettings = EngineSettings()
    """Execution."""

    @model_validator(mode="after")
    def _check_whole(self) -> Self:
        for stage in self.curriculum:
            rate = stage.resolved(self.train).learning_rate
            if not 0 < rate <= LARGEST:
                raise ValueError(
                    f"the stage {stage.name!r} has learning_rate_ratio "
                    f"{stage.learning_rate_ratio:g} of train.learning_rate "
                    f"{self.train.learning_rate:g}, which is {rate:g}, allowed is above 0 and at "
                    f"most {LARGEST:g}: change one of them"
                )
        total = sum(stage.ratio for stage in self.curriculum)
        if abs(total - 1) > RATIO_TOLERANCE:
            raise ValueError(
                f"the curriculum's ratios sum to {total:g}, allowed is 1: change the stages' ratio"
            )
        names = [stage.name for stage in self.curriculum]
        if len(set(names)) < len(names):
            raise ValueError(f"stage names {names} repeat: give every stage a name of its own")
        if self.task.chat_template and self.tags.delivery != "loss" and self.tags.tagger != "none":
            raise ValueError(
                f"tags.delivery is {self.tags.delivery!r}, but a prefix has no place in "
                "task.chat_template: allowed is loss"
            )
        if self.tags.num_tags > self.bank.num_schemas:
            raise ValueError(
                f"tags.num_tags is {self.tags.num_tags}, allowed is 1 to bank.num_schemas = "
                f"{self.bank.num_schemas}: lower it"
            )
        return self


if TYPE_CHECKING:
    CommonSettings = _OfAllMethods
else:
    CommonSettings = create_model(
        "CommonSettings",
        __base__=_OfAllMethods,
        __doc__="All settings but the arm and the seed.",
        **{
            name: Annotated[own, Field(default=own(), description=inspect.getdoc(own))]
            for name, entry in METHODS.items()
            if (own := entry.settings) is not None
        },
    )


class RunConfig(CommonSettings):
    """One run, fully resolved."""

    arm: Arm
    """What is trained, by the name of its method; base: nothing."""
    seed: Seed = 42
    """Seed of initial weights, data order and dropout."""

    @property
    def trains(self) -> bool:
        """Whether anything is trained."""
        return METHODS[self.arm].trains

    @property
    def passes(self) -> int:
        """How often every step runs its batch, each time with other draws."""
        names = (name.split(".") for name in METHODS[self.arm].second_pass)
        return 2 if any(getattr(getattr(self, section), key) for section, key in names) else 1

    @property
    def num_teachers(self) -> int:
        """How many other runs it learns from."""
        return self.distill.teachers if self.uses("distill") else 0

    @property
    def averaging(self) -> AverageSettings:
        """How it averages its adapter over the steps; not at all if its method does not."""
        return self.average if self.uses("average") else AverageSettings()

    @property
    def is_tagged(self) -> bool:
        """Whether its examples are tagged."""
        return self.uses("tags") and self.tags.tagger != "none"

    @property
    def unused_sections(self) -> frozenset[str]:
        """The sections of its settings that its method does not use."""
        everyones = {section for entry in METHODS.values() for section in entry.sections}
        return frozenset(everyones - set(METHODS[self.arm].sections))

    def own(self, kind: type[Own]) -> Own:
        """Return the settings that the run's method has for itself."""
        found: Own = getattr(self, self.arm)
        assert isinstance(found, kind)
        return found

    def uses(self, section: str) -> bool:
        """Whether the run's method uses a section of its settings."""
        return section in METHODS[self.arm].sections

    def stages(self) -> tuple[Stage, ...]:
        """Return the arm's curriculum: none, one plain LoRA stage, or the configured stages."""
        if not self.trains:
            return ()
        plain = StageSettings(name="lora", ratio=1.0, train=("lora",))
        stages = self.curriculum if self.uses("curriculum") else (plain,)
        return tuple(stage.resolved(self.train) for stage in stages)

    def evaluation(self) -> EvalSettings:
        """Return the evaluation's settings: shots for the arm base, routing where a bank is."""
        update: dict[str, object] = {}
        if self.trains:
            update["few_shot"] = 0
        if not self.uses("bank"):
            update["routing"] = "off"
        return self.eval.model_copy(update=update)


class ExperimentConfig(CommonSettings):
    """A configuration file: one run, or one for each arm and seed."""

    arm: Arm | Annotated[tuple[Arm, ...], Field(min_length=1)] = ("base", "lora")
    """One method or a list of them; base trains nothing."""
    seed: Seed | Annotated[tuple[Seed, ...], Field(min_length=1)] = 42
    """One seed, or a list of seeds."""
    base_shots: tuple[Int, ...] = ()
    """Score the arm base once for each number of shots here, instead of eval.few_shot."""

    def runs(self) -> tuple[RunConfig, ...]:
        """Return one run for each arm and seed; the arm ``base`` needs only the first seed."""
        arms = (self.arm,) if isinstance(self.arm, str) else tuple(dict.fromkeys(self.arm))
        seeds = (self.seed,) if isinstance(self.seed, int) else tuple(dict.fromkeys(self.seed))
        runs: list[RunConfig] = []
        for arm in arms:
            if not METHODS[arm].trains:
                shots = dict.fromkeys(self.base_shots or (self.eval.few_shot,))
                runs += [self._run_config(arm, seeds[0], few_shot=k) for k in shots]
            else:
                runs += [self._run_config(arm, seed, few_shot=self.eval.few_shot) for seed in seeds]
        return tuple(runs)

    def _run_config(self, arm: Arm, seed: int, *, few_shot: int) -> RunConfig:
        common = {name: getattr(self, name) for name in CommonSettings.model_fields}
        common["eval"] = self.eval.model_copy(update={"few_shot": few_shot})
        return RunConfig(arm=arm, seed=seed, **common)
