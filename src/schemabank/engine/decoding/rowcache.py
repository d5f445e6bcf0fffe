"""The KV cache of decoding: fixed memory in which every row stands at its own length.

A row holds one completion at a time and is overwritten by the next prompt when that one ends, as
slots of a serving engine are (Orca, OSDI 2022). Attention of one new token a row takes the query
heads that share a key head together (arXiv 2305.13245), so no key or value is ever repeated.
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
from schemabank.engine.decoding.sampling import Sampling, draw
from schemabank.engine.kernels.attention import IGNORED
from schemabank.engine.stack import AdapterStack

ROW_ATTENTION = "schemabank_rows"
ALIGNMENT = 8  # lengths are multiples of it, which the matrix products of a GPU like
LAYER_TYPES = ("full_attention", "sliding_attention")
# What models tell an attention function that changes nothing here: the bias has the windows.
UNUSED = IGNORED | {"sliding_window"}

Write = Callable[[Tensor, Tensor], Tensor]


class RowLayer(CacheLayerMixin):
    """One decoder block's keys and values, ``(row, kv_head, length, head_dim)``.

    Args:
        num_rows: rows of the cache.
        length: tokens that a row can hold.
        window: how many tokens back this block looks; ``None`` for all.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, *, num_rows: int, length: int, window: int | None) -> None:
        CacheLayerMixin.__init__(self)
        self.num_rows, self.length, self.window = num_rows, length, window
        self.is_sliding = window is not None
        self.write: Write = _unset

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take memory of the first states' kind."""
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
        """Masks are the model's own for whole prompts only, which see nothing but themselves."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Whole prompts start at the first position."""
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
        """From now on take whole prompts.

        Args:
            sources: ``(admitted,)``, rows of the batch to keep.
            targets: ``(admitted,)``, the cache's rows that they overwrite from end to end.
        """

        def write(memory: Tensor, states: Tensor) -> Tensor:
            room = memory.shape[2] - states.shape[2]
            rows = nn.functional.pad(states[sources], (0, 0, 0, room))
            memory.index_copy_(0, targets, rows)
            return states

        self._use(write)

    def extend(self, positions: Tensor, *, visible: int) -> list[Tensor]:
        """From now on take one more token a row.

        Args:
            positions: ``(row,)``, where the token stands in each of the first rows.
            visible: how much of a row to look at, more than the position of any live row.

        Returns:
            A bias on the scores, ``(row, 1, visible)``, for each block: 0, or the lowest number for
            what is not seen (not infinity, for a row that has ended may see nothing).
        """
        rows = torch.arange(len(positions), device=positions.device)

        def write(memory: Tensor, states: Tensor) -> Tensor:
            memory[rows, :, positions] = states[:, :, 0]
            return memory[: len(positions), :, :visible]

        self._use(write)
        keys = torch.arange(visible, device=positions.device)
        by_window = {
            window: _bias(positions[:, None] - keys, window, self.blocks[0].keys.dtype)
            for window in {layer.window for layer in self.blocks}
        }
        return [by_window[layer.window] for layer in self.blocks]

    def keep(self, rows: Tensor) -> None:
        """Move some rows, ``(kept,)``, to the front of the cache."""
        for layer in self.blocks:
            for memory in (layer.keys, layer.values):
                memory[: len(rows)] = memory[rows]

    def _use(self, write: Write) -> None:
        for layer in self.blocks:
            layer.write = write


class Rows:
    """The rows of a decoding batch on the device, slots outermost.

    Args:
        stack: the adapters.
        num_rows: rows of all slots.
        longest: tokens of the longest prompt.
        max_new_tokens: limit of a completion.
        steps: steps between two looks at the tokens.
        sampling: how tokens are drawn; ``None``: the most likely one is taken.

    Attributes:
        current: ``(row,)``, the last token of each row, not yet in the cache.
        positions: ``(row,)``, where it stands.
        tokens: ``(step, row)``, what the steps since the last look have generated.
        column: ``(1,)``, the next step's place in ``tokens``.
        keys: ``(row,)``, int32, of each row's sample.
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
        # The last token of a completion is never looked back at and has no place in the cache.
        self.last = longest + max_new_tokens - 2
        self.cache = RowCache(stack.model, num_rows=num_rows, length=_aligned(self.last + 1))

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
        """Read prompts into rows, and return the first token after each that is no dummy.

        Args:
            prompts: as many for every slot, slots outermost.
            targets: the row of each; ``None`` for a dummy.
            keys: of the samples, one for each that is no dummy, where tokens are drawn.
        """
        width = min(_aligned(max(map(len, prompts))), self.longest)
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
        # No mask: padding stands to the right, where no real token looks.
        hidden = self.stack.model.base_model(
            input_ids=tokens, past_key_values=self.cache, use_cache=True
        ).last_hidden_state
        if self.sampling is not None:
            self.keys[target] = torch.tensor(keys, dtype=torch.int32, device=self.keys.device)
        logits = self.stack.head(hidden[source, last])
        first = self._chosen(logits, self.keys[target], last + 1)
        self.current[target], self.positions[target] = first, last + 1
        return [int(token) for token in first.tolist()]

    def step(self, num_rows: int, visible: int) -> Tensor:
        """Extend the first rows by a token each, without a wait for the device."""
        current, positions = self.current[:num_rows], self.positions[:num_rows]
        logits = self.logits(num_rows, visible)
        chosen = self._chosen(logits, self.keys[:num_rows], positions + 1)
        self.tokens[:, :num_rows].index_copy_(0, self.column, chosen[None])
        self.column.add_(1).remainder_(len(self.tokens))
        current.copy_(chosen)
        positions.add_(1).clamp_(max=self.last)  # a row that ended waits at the end
        return chosen

    def logits(self, num_rows: int, visible: int) -> Tensor:
        """Return what follows the first rows' last tokens, ``(row, vocabulary)``."""
        current, positions = self.current[:num_rows], self.positions[:num_rows]
        hidden = self.stack.model.base_model(
            input_ids=current[:, None],
            position_ids=positions[:, None],
            past_key_values=self.cache,
            use_cache=True,
            row_biases=self.cache.extend(positions, visible=visible),
        ).last_hidden_state
        return self.stack.head(hidden[:, -1])

    def keep(self, rows: Sequence[int]) -> None:
        """Move some rows to the front."""
        index = torch.tensor(rows, device=self.tokens.device)
        self.cache.keep(index)
        for values in (self.current, self.positions, self.keys):
            values[: len(rows)] = values[index]

    def _chosen(self, logits: Tensor, keys: Tensor, positions: Tensor) -> Tensor:
        """The next token of each row, which will stand at its position."""
        if self.sampling is None:
            return logits.argmax(-1)
        return draw(logits, self.sampling, keys=keys, positions=positions)


def attention_windows(model: PreTrainedModel) -> list[int | None]:
    """Return how far back each block of a model looks; ``None`` for all the text.

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
    """Let a model attend by :func:`row_attention` for a while."""
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
    """Attend from one token a row to the cache: transformers' interface of attention functions.

    Args:
        module: the attention layer.
        query: ``(row, head, 1, head_dim)``.
        key: ``(row, kv_head, visible, head_dim)``.
        value: the same shape but for ``head_dim``.
        attention_mask: none, since transformers makes none for attention that it does not know.
        row_biases: of :meth:`RowCache.extend`; a model that does not pass them on is refused.
        scaling: factor on the scores, by default one over the root of ``head_dim``.
        softcap: soft limit of the scores, as in Gemma 2.
        others: what else the model says.

    Returns:
        ``(row, 1, head, head_dim)``, and no weights.

    Raises:
        InputError: the model asks for more than this.
    """
    unknown = [n for n, v in others.items() if v is not None and n not in UNUSED]
    if row_biases is None:
        unknown.append("no word of its rows")
    if row_biases is None or unknown or attention_mask is not None or query.shape[2] != 1:
        found = f"attention with {', '.join(unknown) or 'a mask of its own'}"
        raise _unsupported(module, found)
    rows, heads, _, size = query.shape
    scale = size**-0.5 if scaling is None else scaling
    grouped = (query * scale).view(rows, key.shape[1], -1, size)
    scores = grouped @ key.transpose(2, 3)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores += row_biases[cast(int, module.layer_idx)][:, None]
    # Of bfloat16, too, softmax is computed in float32.
    return (scores.softmax(-1) @ value).view(rows, 1, heads, -1), None


AttentionInterface.register(ROW_ATTENTION, row_attention)


def _unset(_memory: Tensor, _states: Tensor) -> Tensor:
    raise AssertionError("say first where the states go")


def _bias(distance: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    """From the distance back to each key, ``(row, visible)``, the bias on its score."""
    seen = distance >= 0
    if window is not None:
        seen &= distance < window
    bias = torch.zeros(distance.shape, dtype=dtype, device=distance.device)
    return bias.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def _unsupported(module: nn.Module, found: str) -> InputError:
    return InputError(
        f"{type(module).__name__} has {found}; to decode all slots at once, plain or "
        "sliding-window attention is allowed alone"
    )


def _aligned(length: int) -> int:
    return -(-length // ALIGNMENT) * ALIGNMENT
