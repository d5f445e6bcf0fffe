"""Small cohorts on tiny models, for the tests of the engine and of what stands on it."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from schemabank.config.settings import BankSettings, LoraSettings, Stage, TrainSettings
from schemabank.config.train import THREE_STAGES
from schemabank.engine.batches import Batch, Encoded, encode, plan_schedule
from schemabank.engine.cohort import Cohort, RunStep
from schemabank.engine.dropout import dropout_keys
from schemabank.engine.finished import Weights
from schemabank.engine.part import Attach, StepInput
from schemabank.engine.run import Run, TrainingData
from schemabank.engine.stack import AdapterStack
from schemabank.methods.schemabank.attach import banks_for
from schemabank.methods.schemabank.course import Banked, TagPlan
from schemabank.methods.schemabank.tags import hash_tagger
from schemabank.tasks import Example
from tiny import END_TOKEN_ID, Kind, tiny_model, tiny_tokenizer

BANK = BankSettings(num_schemas=8, rank=4, attribute_dim=4, load_balance_weight=0.1)
LORA_STAGE = Stage(name="lora", ratio=1.0, train=("lora",), learning_rate=1e-2)
LORA = LoraSettings(r=4, lora_dropout=0.2)
FAST_STAGES = tuple(s.model_copy(update={"learning_rate": 1e-2}) for s in THREE_STAGES)
PREFIX_ROOM = 16
NUM_TAGS = 2
# Rounding alone: other shapes give the matrix products another order of summation, and Adam's
# square root stretches it where gradients are tiny.
SOLO_TOLERANCE = 2e-4


def examples(count: int = 22) -> list[Example]:
    """Sums of different lengths."""
    return [
        Example(
            id=f"sum/{i}",
            question="+".join(str(i * j % 97) for j in range(2 + i % 7)) + "=",
            solution=f"the sum of {i} #### {i}",
            answer=str(i),
        )
        for i in range(count)
    ]


def data(
    *, batch_size: int = 4, completion_only: bool = True, max_buckets: int = 3, num_orders: int = 2
) -> TrainingData:
    """Tokenised examples with their schedule."""
    tokenizer = tiny_tokenizer()
    encoded: list[Encoded] = [
        encode(
            tokenizer(e.question)["input_ids"],
            [*tokenizer(e.solution)["input_ids"], END_TOKEN_ID],
            example_id=e.id,
            max_length=96,
            completion_only=completion_only,
        )
        for e in examples()
    ]
    return TrainingData(
        examples=examples(),
        encoded=encoded,
        schedule=plan_schedule(
            encoded, batch_size=batch_size, max_buckets=max_buckets, num_orders=num_orders
        ),
        tokenizer=tokenizer,
        completion_only=completion_only,
    )


def lora_run(seed: int, **train: object) -> Run:
    """A plain LoRA run of two epochs."""
    return Run(
        name=f"lora-{seed}", seed=seed, stages=(LORA_STAGE,), train=_train(**train), lora=LORA
    )


def bank_run(
    seed: int,
    *,
    bank: BankSettings = BANK,
    stages: tuple[Stage, ...] = FAST_STAGES,
    prefix: bool = False,
    lora: LoraSettings = LORA,
    **train: object,
) -> Run:
    """A run under the curriculum, with hash tags."""
    tagger = hash_tagger(num_schemas=bank.num_schemas, num_tags=NUM_TAGS)
    return Run(
        name=f"bank-{seed}",
        seed=seed,
        stages=stages,
        train=_train(**train),
        lora=lora,
        method=Banked(
            bank,
            TagPlan(
                tagger=tagger,
                num_tags=NUM_TAGS,
                prefix_room=PREFIX_ROOM if prefix else 0,
                loss_weight=0.0 if prefix else 1.0,
            ),
        ),
    )


def with_banks(bank: BankSettings | None) -> list[Attach]:
    """What puts banks on a model, if there are any."""
    return [] if bank is None else [banks_for(bank, num_tags=NUM_TAGS)]


def bank_of(run: Run) -> BankSettings | None:
    """A run's bank."""
    return run.method.bank if isinstance(run.method, Banked) else None


def cohort(
    runs: Sequence[Run],
    training: TrainingData,
    *,
    kind: Kind = "llama",
    lora: LoraSettings | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    slots: int | None = None,
    explain: Callable[[str], None] = lambda _: None,
) -> Cohort:
    """A cohort of runs on a fresh tiny model, in ``slots`` or one a run; dropout is on."""
    if lora is not None:
        runs = [replace(run, lora=lora) for run in runs]
    seated = runs[:slots]
    bank = next((bank_of(run) for run in runs if bank_of(run) is not None), None)
    model = tiny_model(kind).to(dtype).to(device)
    stack = AdapterStack(model, lora=[run.lora for run in seated], attach=with_banks(bank))
    return Cohort(stack, runs, training, explain=explain)


def assert_goes_on(
    new: Callable[[], Cohort], runs: Sequence[Run], widest: LoraSettings, *, steps: int, slots: int
) -> None:
    """A halted cohort ends as one that was not: in as many slots to the bit, else within rounding.

    Args:
        new: makes a cohort of the runs, in a slot each.
        runs: of it.
        widest: with the rank that every slot of the second cohort has room for.
        steps: after which the first is halted.
        slots: of the second.
    """
    undisturbed, trained = new(), new()
    train(undisturbed)
    going = trained.steps()
    for _ in range(steps):
        next(going)
    model, halted = trained.stack.model, trained.halt()
    second = Cohort(AdapterStack(model, lora=[widest] * slots), runs, trained.data, halted=halted)
    train(second)
    tolerance = 0 if slots == len(runs) else SOLO_TOLERANCE
    for name, groups in ended(undisturbed).items():
        row = second.finished[name]["lora"]
        torch.testing.assert_close(row, groups["lora"], rtol=0, atol=tolerance)


def ended(made: Cohort) -> dict[str, Weights]:
    """What the runs of a cohort that have ended came to, by name."""
    names = [slot.run.name for slot in made.slots if slot.run.name in made.finished]
    return {name: made.finished[name] for name in names}


def train(trained: Cohort) -> list[list[RunStep]]:
    """Run a cohort to its end."""
    return list(trained.steps())


def weights(trained: Cohort, slot: int) -> dict[str, torch.Tensor]:
    """A copy of all of a slot's weights by group."""
    return {name: g.weights[slot].clone() for name, g in trained.stack.groups.items()}


def step_input(runs: Sequence[tuple[int, int]], device: str = "cpu") -> StepInput:
    """What begins a step of ``(seed, step)`` in every slot, with banks at full scale."""
    keys = torch.tensor(dropout_keys(runs), dtype=torch.int32)
    fields = {"dropout_keys": keys, "bank_scale": torch.ones(len(runs))}
    fields["adapter_strength"] = torch.ones(len(runs), 64)  # of more blocks than any has
    empty = Batch(*(torch.empty(0) for _ in Batch.__dataclass_fields__))
    return StepInput(empty, {name: value.to(device) for name, value in fields.items()})


def _train(**changes: object) -> TrainSettings:
    return TrainSettings.model_validate({"num_train_epochs": 2, "max_grad_norm": 0.5, **changes})
