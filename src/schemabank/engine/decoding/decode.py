"""Decoding with all slots' adapters at once, unmerged: greedy or by drawing.

Every slot completes the same prompts, from a queue of its own. A completion that ends leaves its
row of the batch to the slot's next prompt, as in serving engines (Orca, OSDI 2022). So the batch
stays full until the queues are empty, and shrinks afterwards. A decoding step reads and writes
fixed addresses only: on CUDA it is captured once and replayed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from schemabank.common.errors import InputError
from schemabank.engine.batches import round_up
from schemabank.engine.decoding.completion import Completion, Limits, Memory, Stopped
from schemabank.engine.decoding.rowcache import DecodingRows, row_attention_in
from schemabank.engine.decoding.sampling import Sampling
from schemabank.engine.execute import Executor
from schemabank.engine.stack import AdapterStack

Advance = Callable[[int], None]

PREFILL_SHARE = 8  # a prefill reads prompts into at most one in so many rows
# A slot with too few free rows gets dummies in a prefill, whose computation is wasted. So a prefill
# waits until prompts fill this share of the rows that they would fill if all rows were free.
LEAST_FILLED = 0.75


@dataclass(frozen=True)
class Pace:
    """How decoding trades wasted work for fewer calls and waits, which cost a GPU more.

    Each number of rows and of visible tokens is a program of its own, which a GPU has to capture.

    Attributes:
        steps: how many steps run before the host reads their tokens; a completion that ends on the
            way wastes the rest of them.
        shrink_at: the batch shrinks to the rows that are going when they are this share of a
            slot's rows.
        visible_unit: attention covers a multiple of so many tokens; ``None``: a whole row.
        small_prefills: whether a prefill may have fewer rows than the most that it can have.
    """

    steps: int
    shrink_at: float
    visible_unit: int | None
    small_prefills: bool


PACES = {
    "cpu": Pace(steps=1, shrink_at=0.75, visible_unit=32, small_prefills=True),
    "cuda": Pace(steps=8, shrink_at=0.5, visible_unit=None, small_prefills=False),
}


def generate(
    stack: AdapterStack,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    end_token_ids: Sequence[int],
    batch_size: int,
    sampling: Sampling | None = None,
    stopped: Stopped = lambda _prompt, _tokens: False,
    executor: Executor | None = None,
    advance: Advance = lambda _: None,
    memory: Memory | None = None,
) -> list[list[Completion]]:
    """Complete the same prompts with every slot's adapter.

    Call it inside ``stack.evaluating(...)``. Prompts of similar length should be neighbours.

    Args:
        stack: the adapters, in evaluation mode.
        prompts: token ids of each prompt.
        max_new_tokens: limit of a completion.
        end_token_ids: tokens that end a completion.
        batch_size: completions decoded at once for each slot.
        sampling: how tokens are drawn; without it, the most likely one is taken.
        stopped: from a prompt's tokens and its completion's, whether the completion ends here,
            though none is an end token.
        executor: runs the decoding step; without it, it runs one operation at a time.
        advance: called with the number of prompts that all slots have completed since the last
            call.
        memory: completions that are known from an earlier call. Their prompts get their rows and
            leave them as if they were completed here, so that all others are computed in batches
            of the same shapes, and to the same bits. What concerns known ones alone is left out.

    Returns:
        Completions as ``[slot][prompt]``.

    Raises:
        InputError: a prompt without tokens, or a model with attention of an unknown kind.
    """
    check_prompts(prompts)
    if not prompts:
        return [[] for _ in range(stack.num_slots)]
    limits = Limits(max_new_tokens, frozenset(end_token_ids), stopped)
    rows = min(batch_size, len(prompts))
    ledger = _Ledger(stack.num_slots, prompts, limits, rows, memory or Memory())
    with stack.uncompiled():
        batch = _ActiveRows(stack, ledger, executor, sampling)
        while True:
            _admit_prompts(batch, ledger)
            advance(ledger.newly_done())
            if not ledger.going:
                return ledger.completions
            _decode_steps(batch, ledger)


def check_prompts(prompts: Sequence[Sequence[int]]) -> None:
    """Refuse prompts without tokens, which no token can follow.

    Raises:
        InputError: a prompt without tokens.
    """
    if not all(prompts):
        raise InputError(
            f"prompt {[bool(p) for p in prompts].index(False)} has no tokens: allowed is one or "
            "more, begin it with some text or token"
        )


class _Ledger:
    """Which prompt each row of each slot is completing, and what it has written so far.

    Args:
        num_slots: slots.
        prompts: the same for every slot.
        limits: what ends a completion.
        rows: rows a slot.
        memory: completions that are known.

    Attributes:
        occupants: ``[slot][row]``, index of the prompt, or ``None`` for a free row.
        next_prompt: ``[slot]``, index of the first prompt that still waits.
        completions: ``[slot][prompt]``.
    """

    def __init__(
        self,
        num_slots: int,
        prompts: Sequence[Sequence[int]],
        limits: Limits,
        rows: int,
        memory: Memory,
    ) -> None:
        self.prompts, self.limits, self._memory = prompts, limits, memory
        self._known = [memory.completions(slot) for slot in range(num_slots)]
        self.occupants: list[list[int | None]] = [[None] * rows for _ in range(num_slots)]
        self.next_prompt = [0] * num_slots
        self.completions = [[Completion() for _ in prompts] for _ in range(num_slots)]
        self._going_slots = [num_slots] * len(prompts)  # slots that have not completed each prompt
        self._newly_done = 0

    @property
    def going(self) -> int:
        """The number of rows that are completing a prompt, in the slot with the most."""
        return max(len(self.rows(slot)) for slot in range(len(self.occupants)))

    @property
    def waiting(self) -> list[int]:
        """``[slot]``, the number of prompts that have no row yet."""
        return [len(self.prompts) - n for n in self.next_prompt]

    def rows(self, slot: int, *, free: bool = False) -> list[int]:
        """Return the rows of a slot that are completing a prompt, or those that are not."""
        return [row for row, prompt in enumerate(self.occupants[slot]) if (prompt is None) == free]

    def take(self, slot: int, row: int) -> Sequence[int]:
        """Give a row to a slot's next prompt; return its tokens."""
        prompt = self.next_prompt[slot]
        self.occupants[slot][row], self.next_prompt[slot] = prompt, prompt + 1
        return self.prompts[prompt]

    def record(self, slot: int, row: int, token: int) -> None:
        """Add a token to a row's completion; a completion that ends frees its row.

        One that is known gets its own next token, whatever the row has computed, if anything.
        """
        prompt = self.occupants[slot][row]
        if prompt is None:  # it has ended, and the device has run on until the host looked
            return
        completion, known = self.completions[slot][prompt], self._known[slot].get(prompt)
        if known is None:
            has_ended = self.limits.extend(completion, token, self.prompts[prompt])
        else:
            has_ended = completion.follow(known)
        if has_ended:
            self.occupants[slot][row] = None
            self._going_slots[prompt] -= 1
            self._newly_done += self._going_slots[prompt] == 0
            if known is None:
                self._memory.completed(slot, prompt, completion)

    def is_new(self, slot: int, row: int) -> bool:
        """Whether a row is completing a prompt whose completion is not known."""
        prompt = self.occupants[slot][row]
        return prompt is not None and prompt not in self._known[slot]

    @property
    def has_new(self) -> bool:
        """Whether any row is."""
        rows = range(len(self.occupants[0]))
        return any(self.is_new(slot, row) for slot in range(len(self.occupants)) for row in rows)

    def newly_done(self) -> int:
        """Return how many prompts all slots have completed since the last call."""
        count, self._newly_done = self._newly_done, 0
        return count

    def generated(self) -> list[tuple[int, int]]:
        """Return the number of tokens of prompt and completion for every row that is going."""
        return [
            (len(self.prompts[prompt]), len(completions[prompt].tokens))
            for occupants, completions in zip(self.occupants, self.completions, strict=True)
            for prompt in occupants
            if prompt is not None
        ]

    def keep(self, count: int) -> list[int]:
        """Leave every slot ``count`` rows, those that are going before free ones.

        Returns:
            Where the kept rows were in the batch, slots outermost.
        """
        kept = []
        for slot, occupants in enumerate(self.occupants):
            chosen = (self.rows(slot) + self.rows(slot, free=True))[:count]
            kept += [slot * len(occupants) + row for row in chosen]
            self.occupants[slot] = [occupants[row] for row in chosen]
        return kept


class _ActiveRows:
    """The rows that are in use, and the programs that extend them.

    Args:
        stack: the adapters.
        ledger: what has to be decoded.
        executor: runs the decoding step.
        sampling: how tokens are drawn, if they are.

    Attributes:
        per_slot: rows a slot.
    """

    def __init__(
        self,
        stack: AdapterStack,
        ledger: _Ledger,
        executor: Executor | None,
        sampling: Sampling | None,
    ) -> None:
        self.pace = PACES["cuda" if stack.model.device.type == "cuda" else "cpu"]
        self.num_slots, self.per_slot = stack.num_slots, len(ledger.occupants[0])
        self.rows = DecodingRows(
            stack,
            num_rows=self.num_slots * self.per_slot,
            longest=max(map(len, ledger.prompts)),
            max_new_tokens=ledger.limits.max_new_tokens,
            steps=self.pace.steps,
            sampling=sampling,
        )
        self._executor, self._has_states = executor, False
        self._programs: dict[tuple[int, int], Callable[[], Tensor]] = {}

    def prefill(
        self, prompts: Sequence[Sequence[int]], targets: Sequence[int | None], keys: Sequence[int]
    ) -> list[int]:
        """Read prompts into rows, as :meth:`DecodingRows.prefill` says."""
        self._has_states = True
        return self.rows.prefill(prompts, targets, keys)

    def decode(self, steps: int, *, visible: int) -> list[list[int]]:
        """Extend every row in use by some tokens.

        Args:
            steps: at most as many as the pace has.
            visible: how many tokens of a row attention has to cover, at least.

        Returns:
            ``[step][row]``.
        """
        num_rows, length = self.num_slots * self.per_slot, self.rows.cache.length
        key = num_rows, min(round_up(visible, self.pace.visible_unit or length), length)
        with row_attention_in(self.rows.stack.model):
            if key not in self._programs:
                self._programs[key] = _make_program(self.rows, *key, self._executor)
            self.rows.column.zero_()
            for _ in range(steps):
                self._programs[key]()
        block: list[list[int]] = self.rows.tokens[:steps, :num_rows].tolist()
        return block

    def shrink(self, rows: Sequence[int]) -> None:
        """Go on with some rows only, the same number of each slot."""
        if self._has_states:  # else all that was done so far was known
            self.rows.keep(rows)
        self.per_slot = len(rows) // self.num_slots


def _make_program(
    rows: DecodingRows, num_rows: int, visible: int, executor: Executor | None
) -> Callable[[], Tensor]:
    """Make the program of a step; warming it up leaves the rows as they were.

    The warm-up takes real steps, because rows are going. So tokens, positions and column are put
    back. What it writes into the cache need not be: the real steps will write it there again.

    The step must not refer to the object that holds the program. In such a circle, the cache would
    keep its memory until Python next looks for circles.
    """

    def step() -> Tensor:
        return rows.step(num_rows, visible)

    if executor is None:
        return step
    changing = (rows.current, rows.positions, rows.column)
    before = [values.clone() for values in changing]
    what = f"a decoding step of {num_rows} rows of up to {visible} tokens"
    program = executor.program(step, what)
    for values, value in zip(changing, before, strict=True):
        values.copy_(value)
    return program


def _admit_prompts(batch: _ActiveRows, ledger: _Ledger) -> None:
    """Fill free rows with waiting prompts, as long as enough of them are free.

    A completion may end with its first token, which frees its row at once.
    """
    while count := _prefill_rows(batch, ledger):
        prompts: list[Sequence[int]] = []
        targets: list[int | None] = []
        keys: list[int] = []
        sampling = batch.rows.sampling
        for slot, waiting in enumerate(ledger.waiting):
            chosen = ledger.rows(slot, free=True)[: min(count, waiting)]
            dummies = count - len(chosen)
            if sampling is not None:
                start = ledger.next_prompt[slot]
                keys += sampling.keys[start : start + len(chosen)]
            # Adapters are applied slot by slot to equal numbers of rows, hence the dummies.
            prompts += [ledger.take(slot, row) for row in chosen] + [[0]] * dummies
            targets += [slot * batch.per_slot + row for row in chosen] + [None] * dummies
        rows = [target for target in targets if target is not None]
        is_new = any(ledger.is_new(*divmod(row, batch.per_slot)) for row in rows)
        first = batch.prefill(prompts, targets, keys) if is_new else [0] * len(rows)
        for row, token in zip(rows, first, strict=True):
            ledger.record(*divmod(row, batch.per_slot), token)


def _prefill_rows(batch: _ActiveRows, ledger: _Ledger) -> int:
    """Return how many prompts a slot to admit at once; 0: none now."""
    free = [len(ledger.rows(slot, free=True)) for slot in range(len(ledger.occupants))]
    waiting = ledger.waiting
    most = max(1, batch.per_slot // PREFILL_SHARE)
    for count in range(most, 0, -1) if batch.pace.small_prefills else [most]:
        wanted = sum(min(count, w) for w in waiting)
        admitted = sum(min(count, w, f) for w, f in zip(waiting, free, strict=True))
        if admitted and admitted >= LEAST_FILLED * wanted:
            return count
    return 0


def _decode_steps(batch: _ActiveRows, ledger: _Ledger) -> None:
    """Take some steps with the rows that are going, in a smaller batch once no prompt waits."""
    if not any(ledger.waiting) and ledger.going <= batch.pace.shrink_at * batch.per_slot:
        batch.shrink(ledger.keep(ledger.going))
    lengths = ledger.generated()
    # As many steps as the row that may still write most has left, but no more than the pace says.
    left = ledger.limits.max_new_tokens - min(new for _, new in lengths)
    steps = min(batch.pace.steps, left)
    visible = max(prompt + new for prompt, new in lengths) + steps - 1
    known = [[0] * (batch.num_slots * batch.per_slot)] * steps  # where no row has more to compute
    for tokens in batch.decode(steps, visible=visible) if ledger.has_new else known:
        for row, token in enumerate(tokens):
            ledger.record(*divmod(row, batch.per_slot), token)
