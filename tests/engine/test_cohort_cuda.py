"""The engine's promises with compiling and capture on; skipped, and said so, without a GPU."""

import gc
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import cohorts
from cohorts import FAST_STAGES, bank_run, lora_run, train, weights
from schemabank.engine import execute
from schemabank.engine.batches import encode, plan_schedule
from schemabank.engine.cohort import Cohort, RunStep
from schemabank.engine.decoding.completion import Completion
from schemabank.engine.decoding.decode import generate
from schemabank.engine.run import Run
from schemabank.engine.stack import AdapterStack
from schemabank.methods.schemabank.attach import banks_of
from tiny import END_TOKEN_ID
from tinyruns import write_config, write_gsm8k, write_model

pytestmark = [
    pytest.mark.gpu,
    # The compiler and its libraries warn of their own deprecations.
    pytest.mark.filterwarnings("ignore"),
]

SOLO_TOLERANCE = {torch.float32: 5e-4, torch.bfloat16: 5e-2}
DTYPES = [torch.float32, torch.bfloat16]
STAGE_1 = replace(bank_run(5), stages=(FAST_STAGES[0].model_copy(update={"ratio": 1.0}),))
DATA = cohorts.data(max_buckets=3)


def captured(runs: list[Run], *, dtype: torch.dtype, slots: int | None = None) -> Cohort:
    """A cohort on the GPU, which must not fall back to anything."""
    return cohorts.cohort(
        runs, DATA, dtype=dtype, device="cuda", slots=slots, explain=lambda line: pytest.fail(line)
    )


def losses(steps: list[list[RunStep]], run: str) -> list[tuple[float, float, float]]:
    return [(r.loss, r.total_loss, r.grad_norm) for step in steps for r in step if r.run == run]


def assert_same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert torch.equal(values, other[name]), name


@pytest.fixture(autouse=True)
def _no_graph_is_left() -> Iterator[None]:
    """Free a test's captured graphs: freed while another is traced, they can end the process."""
    yield
    gc.collect()


@pytest.mark.parametrize("dtype", DTYPES)
def test_neighbours_change_no_bit(dtype: torch.dtype) -> None:
    """Whatever their seed, arm, stage or settings, at a fixed number of slots."""
    found = []
    muon = lora_run(8, optimizer="muon")
    for neighbour in (bank_run(6), bank_run(7, weight_decay=0.5), lora_run(9), STAGE_1, muon):
        together = captured([bank_run(5), replace(neighbour, name="neighbour")], dtype=dtype)
        found.append((losses(train(together), "bank-5"), together.finished["bank-5"]))
        together.stack.remove()
    for other in found[1:]:
        assert other[0] == found[0][0]
        assert_same_bits(other[1], found[0][1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_seed_has_the_same_bits_in_every_slot_with_long_rows(dtype: torch.dtype) -> None:
    """A library's attention sums the gradients of long rows in an order that depends on timing."""
    rng = np.random.default_rng(3)
    encoded = [
        encode(
            rng.integers(2, 90, size=200).tolist(),
            [*rng.integers(2, 90, size=int(size)).tolist(), END_TOKEN_ID],
            example_id=str(number),
            max_length=512,
            completion_only=True,
        )
        for number, size in enumerate(rng.integers(100, 300, size=len(DATA.encoded)))
    ]
    schedule = plan_schedule(encoded, batch_size=4, max_buckets=3, num_orders=2)
    long = replace(DATA, encoded=encoded, schedule=schedule)
    runs = [replace(lora_run(5, max_steps=150), name=name) for name in "abcd"]
    trained = cohorts.cohort(runs, long, dtype=dtype, device="cuda", explain=pytest.fail)
    steps = train(trained)
    for name in "bcd":
        assert losses(steps, name) == losses(steps, "a")
        assert_same_bits(trained.finished[name], trained.finished["a"])


@pytest.mark.parametrize("prefix", [False, True])
def test_the_trunk_cache_changes_no_bit_whatever_its_limit(
    prefix: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With prefixes beside a run without them: two kinds of step at a time."""
    runs = [bank_run(5, prefix=prefix), bank_run(6)]
    found = []
    for limit in (0, 20_000, 2**40):
        monkeypatch.setattr("schemabank.engine.cohort._cache_limit", lambda _, n=limit: n)
        trained = captured(runs, dtype=torch.bfloat16)
        found.append((train(trained), trained.finished))
        trained.stack.remove()
    for steps, finished in found[1:]:
        assert steps == found[0][0]
        for run in runs:
            assert_same_bits(finished[run.name], found[0][1][run.name])


@pytest.mark.parametrize("dtype", DTYPES)
def test_together_equals_alone(dtype: torch.dtype) -> None:
    together = captured([bank_run(3), lora_run(4)], dtype=dtype)
    steps = train(together)
    for run in [bank_run(3), lora_run(4)]:
        alone = captured([run], dtype=dtype)
        solo = losses(train(alone), run.name)
        pairs = zip(losses(steps, run.name), solo, strict=True)
        assert max(abs(a[0] - b[0]) for a, b in pairs) < SOLO_TOLERANCE[dtype]
        if dtype == torch.float32:
            for name, row in alone.finished[run.name].items():
                torch.testing.assert_close(
                    together.finished[run.name][name], row, rtol=0, atol=SOLO_TOLERANCE[dtype]
                )
        alone.stack.remove()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_refilled_slot_carries_nothing_over(dtype: torch.dtype) -> None:
    before = [lora_run(1, num_train_epochs=1), bank_run(2, num_train_epochs=3)]
    refilled = captured([*before, bank_run(5)], dtype=dtype, slots=2)
    steps = train(refilled)
    fresh = captured([bank_run(5), lora_run(8)], dtype=dtype)
    assert losses(steps, "bank-5") == losses(train(fresh), "bank-5")
    for name, row in refilled.finished["bank-5"].items():
        assert torch.equal(row, fresh.finished["bank-5"][name])


def test_the_same_cohort_twice_gives_the_same_bits() -> None:
    first, second = (captured([bank_run(5)], dtype=torch.bfloat16) for _ in range(2))
    assert losses(train(first), "bank-5") == losses(train(second), "bank-5")
    assert_same_bits(weights(first, 0), weights(second, 0))


def test_what_is_frozen_never_moves() -> None:
    trained = captured([STAGE_1], dtype=torch.float32)
    own = {id(p) for group in trained.stack.groups.values() for p in group.parameters.values()}
    base = {n: p.clone() for n, p in trained.stack.model.named_parameters() if id(p) not in own}
    trained.stack.initialise(0, 5)
    before = weights(trained, 0)
    train(trained)
    after = weights(trained, 0)
    assert not torch.equal(after["router"], before["router"])
    assert torch.equal(after["schemas"], before["schemas"])
    assert torch.equal(after["lora"], before["lora"])
    parameters = dict(trained.stack.model.named_parameters())
    assert all(torch.equal(parameters[name], value) for name, value in base.items())


def test_removal_restores_the_logits_bit_for_bit() -> None:
    tokens = torch.arange(3, 40, device="cuda")[None]
    trained = captured([bank_run(1), lora_run(2)], dtype=torch.bfloat16)
    model = trained.stack.model
    trained.stack.remove()
    with torch.no_grad():
        before = model(tokens).logits
    trained = cohorts.cohort([bank_run(1)], DATA, dtype=torch.bfloat16, device="cuda")
    train(trained)
    trained.stack.remove()
    with torch.no_grad():
        assert torch.equal(trained.stack.model(tokens).logits, before)


def test_a_step_that_is_not_finite_changes_nothing_and_no_neighbour() -> None:
    poisoned = captured([bank_run(5), bank_run(6, num_train_epochs=9)], dtype=torch.float32)
    clean = captured([bank_run(5), bank_run(7, num_train_epochs=9)], dtype=torch.float32)
    reports = []
    for number, step in enumerate(poisoned.steps()):
        if number == 0:
            # The longer run has the first slot.
            banks_of(poisoned.stack).banks[2].router.data[0, 0, 0] = float("nan")
        reports.append(step)
    assert poisoned.slots[1].failure is not None
    assert losses(reports, "bank-5") == losses(train(clean), "bank-5")
    assert_same_bits(poisoned.finished["bank-5"], clean.finished["bank-5"])


def test_forty_runs_evaluate_as_one_alone() -> None:
    runs = [bank_run(seed) if seed % 2 else lora_run(seed) for seed in range(40)]
    together = captured(runs, dtype=torch.float32)
    train(together)
    together.seat([run.name for run in runs])
    prompts = [e.tokens[: e.label_start] for e in DATA.encoded]
    for index in (3, 38):
        alone = captured([runs[index]], dtype=torch.float32)
        train(alone)
        for name, row in alone.finished[runs[index].name].items():
            torch.testing.assert_close(
                together.finished[runs[index].name][name],
                row,
                rtol=0,
                atol=SOLO_TOLERANCE[torch.float32],
            )
        expected, found = (
            _completions(cohort.stack, prompts)[slot]
            for cohort, slot in ((alone, 0), (together, index))
        )
        alone.stack.remove()
        same = sum(a.tokens == b.tokens for a, b in zip(found, expected, strict=True))
        assert same >= len(prompts) - 1, "near ties may turn on rounding"


TWO_COHORTS = """
import sys, time
import torch._inductor.config as config
config.quiesce_async_compile_time = 1
import cohorts
from cohorts import bank_run, lora_run, train
from torch._inductor.async_compile import AsyncCompile
for number, runs in enumerate([[lora_run(1)], [bank_run(2), lora_run(3)]]):
    if number:
        time.sleep(5)  # the processes that compile would be asleep by now
    trained = cohorts.cohort(runs, cohorts.data(batch_size=3 + number), device="cuda")
    train(trained)
    assert [slot.failure for slot in trained.slots] == [None] * len(runs)
    trained.stack.remove()
    print("trained", number, "awake", AsyncCompile.process_pool().timer is None, flush=True)
"""


@pytest.mark.timeout(500)
def test_two_cohorts_of_one_process_train_though_the_compiler_had_nothing_to_do_between(
    tmp_path: Path,
) -> None:
    """With nothing in its caches, the second has to compile, too; it would hang."""
    ended = _alone([sys.executable, "-c", TWO_COHORTS], tmp_path, timeout_s=450)
    assert ended.stdout.splitlines() == ["trained 0 awake True", "trained 1 awake True"]


def test_a_users_screen_shows_no_hint_of_the_compiler_and_no_bar(tmp_path: Path) -> None:
    config = write_config(tmp_path / "tiny.yaml", write_model(tmp_path / "model"))
    command = [sys.executable, "-c", "from schemabank.cli import main; main()", "train", config]
    write_gsm8k(tmp_path / "data")
    ended = _alone(
        [*map(str, command), "--out", str(tmp_path / "runs"), "--set", "model.dtype=bfloat16"],
        tmp_path,
        timeout_s=450,
        SCHEMABANK_DATA=str(tmp_path / "data"),
    )
    sys.stdout.write(ended.stderr)
    for unwanted in ("softmax", "TensorFloat32", "max_autotune", "it/s", "%|"):
        assert unwanted not in ended.stderr
    assert "Warning" not in ended.stderr, "something else that no user can act on?"


def _alone(
    command: Sequence[str], folder: Path, *, timeout_s: int, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, with empty caches of the compiler's."""
    caches = {name: str(folder / name) for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(
        command,
        env={**os.environ, **caches, **path, **variables},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=True,
    )


def _completions(stack: AdapterStack, prompts: list[tuple[int, ...]]) -> list[list[Completion]]:
    with stack.evaluating("off"):
        return generate(
            stack, prompts, max_new_tokens=8, end_token_ids=[END_TOKEN_ID], batch_size=8
        )


def test_without_triton_runs_train_as_plain_pytorch_and_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled = captured([bank_run(5), lora_run(4)], dtype=torch.float32)
    expected = losses(train(compiled), "bank-5")
    compiled.stack.remove()
    monkeypatch.setattr(execute, "_lack_of_triton", lambda: "there is none")
    for name in ("cross_entropy", "flash", "lora"):
        kernel = f"schemabank.engine.kernels.{name}"
        assert kernel in sys.modules
        monkeypatch.setitem(sys.modules, kernel, None)  # importing it fails
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("needs Triton"))
    notes: list[str] = []
    runs = [bank_run(5), lora_run(4)]
    plain = cohorts.cohort(runs, DATA, device="cuda", explain=notes.append)
    found = losses(train(plain), "bank-5")
    pairs = zip(found, expected, strict=True)
    assert max(abs(a[0] - b[0]) for a, b in pairs) < SOLO_TOLERANCE[torch.float32]
    (note,) = notes
    assert note.endswith("there is none")
