"""The KV cache of decoding: fixed memory in which every row has a length of its own.

A row holds one completion at a time. When that ends, the next prompt overwrites the row, as in the
slots of a serving engine (Orca, OSDI 2022). Attention of one new token a row computes query heads
that share a key head together (arXiv 2305.13245), so no key or value is ever repeated in memory.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from schemabank.common.errors import InputError
from schemabank.engine.batches import round_up
from schemabank.engine.decoding.sampling import Sampling, draw
from schemabank.engine.kernels.attention import IGNORED
from schemabank.engine.stack import AdapterStack
from schemabank.models.architecture import cache_keyword

ROW_ATTENTION = "schemabank_rows"
ALIGNMENT = 8  # lengths are multiples of it, which the matrix products of a GPU like
LAYER_TYPES = ("full_attention", "sliding_attention")
# Arguments that models pass to an attention function and that change nothing here: windows are in
# the bias.
UNUSED = IGNORED | {"sliding_window"}

Write = Callable[[Tensor, Tensor], Tensor]


class RowLayer(CacheLayerMixin):
    """One decoder block's keys and values, ``(row, kv_head, length, head_dim)``.

    Args:
        num_rows: rows of the cache.
        length: tokens that a row can hold.
        window: how many tokens this block looks back; ``None``: all.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, *, num_rows: int, length: int, window: int | None) -> None:
        CacheLayerMixin.__init__(self)
        self.num_rows, self.length, self.window = num_rows, length, window
        self.is_sliding = window is not None
        # Models call `update`, which knows neither rows nor positions. So the cache sets here where
        # new states go, before each call of the model.
        self.write: Write = _not_set

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate memory for states of the first ones' heads and type."""
        self.keys, self.values = self._memory(key_states), self._memory(value_states)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: object, **_kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Store new states, ``(row, kv_head, token, head_dim)``; return those to attend to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self.write(self.keys, key_states), self.write(self.values, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """A model makes masks only for whole prompts, which see no earlier token of the cache."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """A whole prompt starts at the first position."""
        return 0

    def get_max_length(self) -> int:
        """Return how many tokens a row can hold."""
        return self.length

    def _memory(self, states: Tensor) -> Tensor:
        _, heads, _, size = states.shape
        return states.new_zeros(self.num_rows, heads, self.length, size)


class RowCache(Cache):
    """The cache of all blocks of a model.

    Args:
        model: whose blocks.
        num_rows: completions held at once.
        length: tokens that a row can hold.

    Raises:
        InputError: the model has attention of another kind.
    """

    def __init__(self, model: PreTrainedModel, *, num_rows: int, length: int) -> None:
        self.length = length
        self.blocks = [
            RowLayer(num_rows=num_rows, length=length, window=window)
            for window in attention_windows(model)
        ]
        super().__init__(layers=[*self.blocks])

    def admit(self, sources: Tensor, targets: Tensor) -> None:
        """Make the next states those of whole prompts.

        Args:
            sources: ``(admitted,)``, rows of the batch to keep.
            targets: ``(admitted,)``, rows of the cache that they overwrite.
        """

        def write(memory: Tensor, states: Tensor) -> Tensor:
            # Zeros up to the row's end: the mask's lowest number hides what an earlier completion
            # left there, but a NaN among it would pass through.
            room = memory.shape[2] - states.shape[2]
            rows = nn.functional.pad(states[sources], (0, 0, 0, room))
            memory.index_copy_(0, targets, rows)
            return states

        self._write_by(write)

    def extend(self, positions: Tensor, *, visible: int) -> list[Tensor]:
        """Make the next states those of one more token a row.

        Args:
            positions: ``(row,)``, the token's position in each of the first rows.
            visible: how many positions to look at, more than any row that is going has tokens.

        Returns:
            A bias on the scores, ``(row, 1, visible)``, for each block: 0 for a token that is seen,
            the lowest number for others. It is not minus infinity, because a row that has ended may
            see nothing, and a softmax over nothing but infinities is NaN.
        """
        rows = torch.arange(len(positions), device=positions.device)

        def write(memory: Tensor, states: Tensor) -> Tensor:
            memory[rows, :, positions] = states[:, :, 0]
            return memory[: len(positions), :, :visible]

        self._write_by(write)
        keys = torch.arange(visible, device=positions.device)
        by_window = {
            window: _window_bias(positions[:, None] - keys, window, self.blocks[0].keys.dtype)
            for window in {layer.window for layer in self.blocks}
        }
        return [by_window[layer.window] for layer in self.blocks]

    def keep(self, rows: Tensor) -> None:
        """Move some rows, ``(kept,)``, to the front of the cache."""
        for layer in self.blocks:
            for memory in (layer.keys, layer.values):
                memory[: len(rows)] = memory[rows]  # the right side is a copy: rows may overlap

    def _write_by(self, write: Write) -> None:
        for layer in self.blocks:
            layer.write = write


class DecodingRows:
    """The rows of a decoding batch on the device, slots outermost.

    A step reads and writes these tensors in place and gets no number from the host, so that it can
    be captured as a graph: even the place for its tokens is a tensor that it advances itself.

    Args:
        stack: the adapters.
        num_rows: rows of all slots.
        longest: tokens of the longest prompt.
        max_new_tokens: limit of a completion.
        steps: how many steps run before the host reads their tokens.
        sampling: how tokens are drawn; ``None``: the most likely one is taken.

    Attributes:
        current: ``(row,)``, the last token of each row, not yet in the cache.
        positions: ``(row,)``, the position of that token.
        tokens: ``(step, row)``, the tokens of the steps since the host last read them.
        column: ``(1,)``, the next step's place in ``tokens``.
        keys: ``(row,)``, int32, the key of each row's sample.
    """

    def __init__(
        self,
        stack: AdapterStack,
        *,
        num_rows: int,
        longest: int,
        max_new_tokens: int,
        steps: int,
        sampling: Sampling | None = None,
    ) -> None:
        self.stack, self.longest, self.sampling = stack, longest, sampling
        # No token attends to the last one of a completion, so the cache has no place for it.
        self.last = longest + max_new_tokens - 2
        length = round_up(self.last + 1, ALIGNMENT)
        self.cache = RowCache(stack.model, num_rows=num_rows, length=length)
        self.asked = {"use_cache": True, cache_keyword(stack.model): self.cache}

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.long, device=stack.model.device)

        self.current, self.positions, self.column = zeros(num_rows), zeros(num_rows), zeros(1)
        self.tokens, self.keys = zeros(steps, num_rows), zeros(num_rows).to(torch.int32)

    def prefill(
        self,
        prompts: Sequence[Sequence[int]],
        targets: Sequence[int | None],
        keys: Sequence[int] = (),
    ) -> list[int]:
        """Read prompts into rows, and return the first token after each that is not a dummy.

        Args:
            prompts: the same number for every slot, slots outermost.
            targets: the row of each prompt; ``None`` for a dummy.
            keys: the samples' keys, one for each prompt that is not a dummy, if tokens are drawn.
        """
        width = min(round_up(max(map(len, prompts)), ALIGNMENT), self.longest)
        sources = [i for i, target in enumerate(targets) if target is not None]
        source, target, last, tokens = (
            torch.tensor(values, device=self.tokens.device)
            for values in (
                sources,
                [target for target in targets if target is not None],
                [len(prompts[i]) - 1 for i in sources],
                [[*prompt, *[0] * (width - len(prompt))] for prompt in prompts],
            )
        )
        self.cache.admit(source, target)
        # There is no mask: padding stands to the right, where no real token looks. What the cache
        # gets for padding, the completion's tokens overwrite before their position is seen.
        hidden = self.stack.model.base_model(input_ids=tokens, **self.asked).last_hidden_state
        if self.sampling is not None:
            self.keys[target] = torch.tensor(keys, dtype=torch.int32, device=self.keys.device)
        logits = self.stack.head(hidden[source, last])
        first = self._choose(logits, self.keys[target], last + 1)
        self.current[target], self.positions[target] = first, last + 1
        return [int(token) for token in first.tolist()]

    def step(self, num_rows: int, visible: int) -> Tensor:
        """Extend the first rows by a token each, without waiting for the device."""
        current, positions = self.current[:num_rows], self.positions[:num_rows]
        logits = self.logits(num_rows, visible)
        chosen = self._choose(logits, self.keys[:num_rows], positions + 1)
        self.tokens[:, :num_rows].index_copy_(0, self.column, chosen[None])
        self.column.add_(1).remainder_(len(self.tokens))
        current.copy_(chosen)
        # A row that has ended keeps computing until it is refilled. It stays at the last position,
        # where it writes over its own tokens only.
        positions.add_(1).clamp_(max=self.last)
        return chosen

    def logits(self, num_rows: int, visible: int) -> Tensor:
        """Return the logits of the token after each of the first rows, ``(row, vocabulary)``."""
        current, positions = self.current[:num_rows], self.positions[:num_rows]
        hidden = self.stack.model.base_model(
            input_ids=current[:, None],
            position_ids=positions[:, None],
            **self.asked,
            row_biases=self.cache.extend(positions, visible=visible),
        ).last_hidden_state
        return self.stack.head(hidden[:, -1])

    def keep(self, rows: Sequence[int]) -> None:
        """Move some rows to the front."""
        index = torch.tensor(rows, device=self.tokens.device)
        self.cache.keep(index)
        for values in (self.current, self.positions, self.keys):
            values[: len(rows)] = values[index]

    def _choose(self, logits: Tensor, keys: Tensor, positions: Tensor) -> Tensor:
        """Return the next token of each row, at ``positions``."""
        if self.sampling is None:
            return logits.argmax(-1)
        return draw(logits, self.sampling, keys=keys, positions=positions)


def attention_windows(model: PreTrainedModel) -> list[int | None]:
    """Return how many tokens each block of a model looks back; ``None``: to the beginning.

    Raises:
        InputError: the model has attention of another kind.
    """
    config = model.config.get_text_config(decoder=True)
    layers = DynamicCache(config=config).layers
    kinds = set(getattr(config, "layer_types", None) or LAYER_TYPES)
    plain = all(type(layer) in {DynamicLayer, DynamicSlidingWindowLayer} for layer in layers)
    chunked = getattr(config, "attention_chunk_size", None) is not None
    whole = len(layers) == config.num_hidden_layers
    if not (plain and whole and not chunked and kinds <= set(LAYER_TYPES)):
        raise _unsupported(model, f"layers of the types {', '.join(sorted(kinds))}")
    if not type(model)._supports_attention_backend:
        raise _unsupported(model, "an attention that cannot be replaced")
    return [getattr(layer, "sliding_window", None) for layer in layers]


@contextmanager
def row_attention_in(model: PreTrainedModel) -> Iterator[None]:
    """Let a model use :func:`row_attention` for a while."""
    config = model.config.get_text_config(decoder=True)
    before = config._attn_implementation
    config._attn_implementation = ROW_ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


def row_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    row_biases: Sequence[Tensor] | None = None,
    scaling: float | None = None,
    softcap: float | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """Attend from one token a row to the cache, as one of transformers' attention functions.

    Args:
        module: the attention layer.
        query: ``(row, head, 1, head_dim)``.
        key: ``(row, kv_head, visible, head_dim)``.
        value: the same shape but for ``head_dim``.
        attention_mask: none, since transformers makes none for attention that it does not know.
        row_biases: see :meth:`RowCache.extend`; a model that does not pass them on is refused.
        scaling: factor of the scores, by default one over the root of ``head_dim``.
        softcap: soft limit of the scores, as in Gemma 2.
        others: further arguments of the model.

    Returns:
        ``(row, 1, head, head_dim)``, and no weights.

    Raises:
        InputError: the model needs more than this.
    """
    unknown = [n for n, v in others.items() if v is not None and n not in UNUSED]
    if row_biases is None:
        unknown.append("no row_biases")
    if row_biases is None or unknown or attention_mask is not None or query.shape[2] != 1:
        found = f"attention with {', '.join(unknown) or 'a mask of its own'}"
        raise _unsupported(module, found)
    rows, heads, _, size = query.shape
    scale = size**-0.5 if scaling is None else scaling
    # (row, kv_head, query head of the group, head_dim): a group's heads are one matrix product.
    grouped = (query * scale).view(rows, key.shape[1], -1, size)
    scores = grouped @ key.transpose(2, 3)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores += row_biases[cast(int, module.layer_idx)][:, None]
    # PyTorch computes the softmax of bfloat16 in float32, too.
    return (scores.softmax(-1) @ value).view(rows, 1, heads, -1), None


AttentionInterface.register(ROW_ATTENTION, row_attention)


def _not_set(_memory: Tensor, _states: Tensor) -> Tensor:
    raise AssertionError("call admit or extend first, which say where the states go")


def _window_bias(distance: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    """Return the bias on each key's score from how far back it is, ``(row, visible)``."""
    seen = distance >= 0
    if window is not None:
        seen &= distance < window
    bias = torch.zeros(distance.shape, dtype=dtype, device=distance.device)
    return bias.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def _unsupported(module: nn.Module, found: str) -> InputError:
    return InputError(
        f"{type(module).__name__} has {found}: to decode all slots at once, only plain and "
        "sliding-window attention are allowed"
    )
