"""MoLF against plain PyTorch, and that of every layer's adapters a step moves one."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import cohorts
from cohorts import LORA, LORA_STAGE, SOLO_TOLERANCE, lora_run
from schemabank.common.errors import InputError
from schemabank.config.methods import MoLFSettings
from schemabank.config.settings import LoraSettings, RunConfig
from schemabank.engine.cohort import Cohort
from schemabank.engine.lora import Maps
from schemabank.engine.run import OnCourse, Rows, Run
from schemabank.engine.slots import Slot
from schemabank.engine.stack import SLICES, AdapterStack
from schemabank.methods.method import Setup
from schemabank.methods.molf import MoLF
from tiny import tiny_model

Adapters = dict[str, list[tuple[Tensor, Tensor]]]

DATA = cohorts.data()
STILL = LoraSettings(r=4, lora_alpha=8, lora_dropout=0.0)
WIDE = LoraSettings(r=8, lora_dropout=0.2)
NUM_STEPS = 12
# The compiler has warnings of its own.
GPU = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]


def run(seed: int, count: int = 2, *, lora: LoraSettings = LORA, **train: object) -> Run:
    return Run(
        name=f"molf-{seed}",
        seed=seed,
        stages=(LORA_STAGE,),
        train=lora_run(seed, **train).train,
        lora=lora,
        method=OnCourse(settings={SLICES: count}),
    )


def new_cohort(
    runs: Sequence[Run],
    *,
    slots: int | None = None,
    widest: LoraSettings = LORA,
    device: str = "cpu",
    **stack: object,
) -> Cohort:
    """Runs in slots with room for the widest of them."""
    lora = [widest] * (slots or len(runs))
    model = tiny_model("llama").to(device)
    return Cohort(AdapterStack(model, lora=lora, **stack), runs, DATA, explain=pytest.fail)  # type: ignore[arg-type]


def adapters_of(trained: Cohort, slot: int, count: int) -> Adapters:
    """A copy of every layer's adapters, ``A: (rank, in)`` and ``B: (out, rank)`` of each."""
    tensors = trained.stack.lora.tensors(slot)
    return {
        p: list(zip(a.chunk(count), b.chunk(count, 1), strict=True))
        for p, (a, b) in tensors.items()
    }


def moved(before: Adapters, after: Adapters) -> dict[str, list[int]]:
    """Which adapters of every layer changed a bit."""
    return {
        path: [
            number
            for number, (old, new) in enumerate(zip(before[path], after[path], strict=True))
            if not all(map(torch.equal, old, new))
        ]
        for path in before
    }


# By hand: one module a layer, autograd, and an optimizer that is a loop over modules.


class SumOfLoras(nn.Module):
    """A frozen layer and its adapters, all of which act."""

    def __init__(
        self, base: nn.Module, adapters: Sequence[tuple[Tensor, Tensor]], scale: float
    ) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        self.adapters = [tuple(w.clone().requires_grad_() for w in pair) for pair in adapters]

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.base(inputs)
        for a, b in self.adapters:
            output = output + self.scale * (inputs @ a.T @ b.T)
        return output


@dataclass
class ByHand:
    """MoLF as its paper says it: moments for all, a step for the adapter with the highest score."""

    layers: dict[str, SumOfLoras]
    run: Run
    step = 0

    def __post_init__(self) -> None:
        self.weights = [w for la in self.layers.values() for pair in la.adapters for w in pair]
        self.moments = {id(w): (torch.zeros_like(w), torch.zeros_like(w)) for w in self.weights}
        self.gap = 1.0  # the smallest relative difference of a layer's two highest scores

    @torch.no_grad()
    def update(self, rate: float) -> dict[str, int]:
        """Take a step with the gradients that are there; return which adapters moved."""
        train = self.run.train
        nn.utils.clip_grad_norm_(self.weights, train.max_grad_norm)
        self.step += 1
        for weight in self.weights:
            mean, square = self.moments[id(weight)]
            assert weight.grad is not None
            mean.lerp_(weight.grad, 1 - train.adam_beta1)
            square.lerp_(weight.grad.square(), 1 - train.adam_beta2)
        chosen = {}
        for path, layer in self.layers.items():
            scores = [sum(map(self._score, pair)) for pair in layer.adapters]
            best, second = sorted(scores, reverse=True)[:2]
            self.gap = min(self.gap, (best - second) / best)
            chosen[path] = scores.index(best)
            a, b = layer.adapters[chosen[path]]
            self._step(a, rate)
            self._step(b, rate * train.loraplus_lr_ratio)
        return chosen

    def _score(self, weight: Tensor) -> float:
        mean, square = self.moments[id(weight)]
        return (mean.square() / (square.sqrt() + self.run.train.adam_epsilon)).sum().item()

    def _step(self, weight: Tensor, rate: float) -> None:
        train, (mean, square) = self.run.train, self.moments[id(weight)]
        weight.mul_(1 - rate * train.weight_decay)
        denominator = (square / (1 - train.adam_beta2**self.step)).sqrt() + train.adam_epsilon
        weight.sub_(rate / (1 - train.adam_beta1**self.step) * mean / denominator)


def loss_of(model: nn.Module, rows: Rows) -> Tensor:
    """The mean loss of a batch's labels."""
    losses = []
    for encoded in (row.encoded for row in rows if row is not None):
        tokens = torch.tensor(encoded.tokens)
        logits = model(input_ids=tokens[None]).logits[0, encoded.label_start - 1 : -1]
        targets = tokens[encoded.label_start :]
        losses.append(nn.functional.cross_entropy(logits, targets, reduction="none"))
    return torch.cat(losses).mean()


def by_hand(adapters: Adapters, made: Run) -> tuple[nn.Module, ByHand]:
    model = tiny_model("llama").requires_grad_(False)
    layers = {}
    for path, pairs in adapters.items():
        layers[path] = SumOfLoras(model.get_submodule(path), pairs, made.lora.scaling)
        model.set_submodule(path, layers[path])
    return model, ByHand(layers, made)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("count", "joined", "train"),
    [
        (2, False, {}),
        (2, True, {}),
        (4, True, {"loraplus_lr_ratio": 4.0, "weight_decay": 0.3, "adam_beta2": 0.9}),
    ],
    ids=str,
)
def test_every_step_is_that_of_one_module_a_layer_in_plain_pytorch(
    count: int,
    joined: bool,
    train: dict[str, object],
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the base model's q, k and v are one product."""
    batches: list[Rows] = []
    rows = Slot.rows

    def noted(slot: Slot, settings: object) -> Rows:
        batches.append(rows(slot, settings))  # type: ignore[arg-type]
        return batches[-1]

    monkeypatch.setattr(Slot, "rows", noted)
    monkeypatch.setattr("schemabank.engine.loralayers._joins", lambda *_: joined)
    made = run(1, count, lora=STILL, max_steps=NUM_STEPS, **train)
    stack = AdapterStack(tiny_model("llama").to(device), lora=[WIDE])
    trained = Cohort(stack, [made], DATA)
    stack.configure(0, STILL, {})
    stack.initialise(0, made.seed)  # as its first step does again
    model, reference = by_hand(
        {p: [(a.cpu(), b.cpu()) for a, b in x] for p, x in adapters_of(trained, 0, count).items()},
        made,
    )
    every = set()
    for number, (report,) in enumerate(trained.steps()):
        loss = loss_of(model, batches[number])
        model.zero_grad()
        for weight in reference.weights:
            weight.grad = None
        loss.backward()
        chosen = reference.update(report.learning_rate)
        every |= set(chosen.items())
        assert report.loss == pytest.approx(loss.item(), abs=1e-4 if device == "cuda" else 1e-5)
    trained.seat([made.name])
    tolerance = 5e-4 if device == "cuda" else 1e-5
    assert reference.gap > 1e-5, "a choice that rounding alone may change tells nothing"
    assert len(every) > len(reference.layers), "not always the same adapter"
    for path, pairs in adapters_of(trained, 0, count).items():
        for ours, theirs in zip(pairs, reference.layers[path].adapters, strict=True):
            for one, other in zip(ours, theirs, strict=True):
                torch.testing.assert_close(one.cpu(), other.data, rtol=0, atol=tolerance)


def in_steps(trained: Cohort, slot: int, count: int) -> Iterator[Adapters]:
    """The adapters after every step."""
    for _ in trained.steps():
        yield adapters_of(trained, slot, count)


@pytest.mark.parametrize("stack", [{}, {"maps": Maps(3, routed=True)}], ids=["plain", "maps"])
@pytest.mark.parametrize("count", [2, 4])
def test_of_every_layer_each_step_moves_one_adapter_and_the_moments_of_all(
    count: int, stack: dict[str, object]
) -> None:
    """In a stack with room for higher ranks, beside plain LoRA."""
    runs = [run(1, count), replace(lora_run(2), lora=WIDE)]
    trained = new_cohort(runs, widest=WIDE, **stack)
    means, found = [], []
    for adapters in in_steps(trained, 0, count):
        found.append(adapters)
        means.append(trained.optimizers["lora"].mean[0].clone())
    chosen = [moved(*pair) for pair in pairwise(found)]
    assert all(len(numbers) == 1 for step in chosen for numbers in step.values())
    assert {numbers[0] for step in chosen for numbers in step.values()} == set(range(count))
    views = trained.stack.groups["lora"].views
    for before, after in pairwise(means):
        for name, mean in views(after).items():
            own = mean[:, : LORA.r] if name.endswith(".A") else mean[: LORA.r]
            old = views(before)[name]
            old = old[:, : LORA.r] if name.endswith(".A") else old[: LORA.r]
            assert name.endswith(".router") or (own != old).any(1 - name.endswith(".B")).all()


@pytest.mark.parametrize("device", DEVICES)
def test_neighbours_change_no_bit_of_plain_lora_and_of_molf(device: str) -> None:
    """Whether or not the neighbour has slices, as many or others, at a fixed number of slots."""
    beside = {
        "lora-1": (lora_run(1), [run(2), run(2, 4), lora_run(2), run(3, lora=WIDE)]),
        "molf-1": (run(1), [run(2), run(2, 4), lora_run(2), lora_run(3)]),
    }
    for name, (own, others) in beside.items():
        found = []
        for other in others:
            trained = new_cohort([own, other], widest=WIDE, device=device)
            steps = [r for step in trained.steps() for r in step if r.run == name]
            found.append((steps, trained.finished[name]["lora"]))
        for steps, row in found[1:]:
            assert steps == found[0][0]
            assert torch.equal(row, found[0][1])


def test_alone_a_run_comes_to_what_it_comes_to_among_others() -> None:
    alone = new_cohort([run(1)])
    among = new_cohort([replace(lora_run(2), lora=WIDE), run(1), run(3, 4, lora=WIDE)], widest=WIDE)
    for trained in (alone, among):
        list(trained.steps())
        trained.seat(["molf-1"])
    for path, pair in alone.stack.lora.tensors(0).items():
        for one, other in zip(pair, among.stack.lora.tensors(0)[path], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=SOLO_TOLERANCE)


def test_a_refilled_slot_has_the_slices_of_its_run() -> None:
    """A longer run of another kind before it, in a cohort of one slot."""
    first = {"num_train_epochs": 3}
    for before, own in (
        (run(1, **first), lora_run(2)),
        (replace(lora_run(1, **first), lora=WIDE), run(2)),
        (run(1, 4, lora=WIDE, **first), run(2)),
    ):
        rows = []
        for runs in ([before, own], [own]):
            # A cohort in which no run has slices is another one: no bit may depend on it.
            trained = new_cohort(runs, slots=1, widest=WIDE)
            list(trained.steps())
            rows.append(trained.finished[own.name]["lora"])
        assert torch.equal(*rows)


@pytest.mark.parametrize("slots", [1, 2])
def test_a_run_goes_on_where_its_cohort_was_halted(slots: int) -> None:
    """As where memory runs out: in as many slots to the bit, in fewer within rounding."""
    runs = [run(1), run(2, 4, max_steps=9)]
    cohorts.assert_goes_on(lambda: new_cohort(runs), runs, LORA, steps=5, slots=slots)


def checked(rank: int, count: int) -> Callable[[], None]:
    config = RunConfig(arm="molf", lora={"r": rank}, molf={"num_adapters": count})
    setup = Setup((), AdapterStack(tiny_model("llama"), lora=[LORA]), DATA.tokenizer)
    return lambda: MoLF().check(config, setup)


@pytest.mark.parametrize(
    ("rank", "count", "mend"),
    [
        (7, 2, "set it to 8, or molf.num_adapters to 7"),
        (4, 3, "set it to 6, or molf.num_adapters to 2 or 4"),
        (1, 2, "set it to 2$"),
    ],
)
def test_a_rank_that_cannot_be_shared_is_refused(rank: int, count: int, mend: str) -> None:
    with pytest.raises(
        InputError, match=rf"lora\.r is {rank} and molf\.num_adapters is {count}.*{mend}"
    ):
        checked(rank, count)()


def test_muon_is_refused() -> None:
    config = RunConfig(arm="molf", train={"optimizer": "muon"})
    setup = Setup((), AdapterStack(tiny_model("llama"), lora=[LORA]), DATA.tokenizer)
    with pytest.raises(InputError, match=r"train\.optimizer is 'muon'.* allowed is 'adamw'"):
        MoLF().check(config, setup)


@pytest.mark.parametrize(("rank", "count"), [(4, 2), (2, 2), (9, 3), (8, 8)])
def test_a_rank_that_can_be_shared_is_not(rank: int, count: int) -> None:
    checked(rank, count)()


@pytest.mark.parametrize("count", [1, 9])
def test_there_are_two_to_eight_adapters(count: int) -> None:
    with pytest.raises(ValueError, match="than or equal to"):
        MoLFSettings(num_adapters=count)
