"""What trains on one frozen model, for all slots: attached, seeded, run, evaluated and removed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from schemabank.common.errors import InputError
from schemabank.config.settings import LoraSettings
from schemabank.engine.blocks import Forward, noting, probed, replaced, returning
from schemabank.engine.execute import compiled
from schemabank.engine.flat import FlatGroup
from schemabank.engine.kernels.attention import short_attention
from schemabank.engine.lora import ONE_MAP, Maps
from schemabank.engine.loralayers import LoraLayers
from schemabank.engine.part import Attach, Part, StepInput
from schemabank.engine.targets import check_calls
from schemabank.models.architecture import decoder_blocks
from schemabank.models.checks import check_causal
from schemabank.models.frozen import kept_state, lent
from schemabank.models.refusals import RefusalError, asking

TRUNK_TOLERANCE = 1e-2
MAPS = "maps"  # a run's :class:`Maps`, among the settings of its parts
SLICES = "slices"  # there, too: how many slices the ranks of its adapters have
RANK = "rank"  # there, too: the rank with which it begins, if that is not its adapter's own


class AdapterStack:
    """LoRA adapters of ``num_slots`` runs on one frozen model, and what their methods attach.

    Args:
        model: the base model; it is changed in place until :meth:`remove`.
        lora: LoRA settings of each slot; all with the same target modules on the same blocks.
        attach: what puts further parts on the model.
        adapters: whether there are LoRA adapters at all; the untouched base model has none.
        maps: room for any run's B's over one A.
        passes: the most that a step takes over its batch.

    Attributes:
        lora: the adapters.
        parts: all that trains, the adapters last.
        groups: all weights, by the name of what a stage may train.
        attached: whether the adapters are still on the model.

    Raises:
        InputError: targets or layers that the model does not have, blocks that return no states,
            or an output layer that is more than a linear map with an optional soft cap.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        lora: Sequence[LoraSettings],
        attach: Sequence[Attach] = (),
        adapters: bool = True,
        maps: Maps = ONE_MAP,
        passes: int = 1,
    ) -> None:
        self.num_slots = len(lora)
        self._compiled = ExitStack()
        self._plain: dict[nn.Module, Forward] = {}
        self._unfreeze = kept_state(model)
        with ExitStack() as undo:  # settings may not fit, and memory may run out at any point
            undo.callback(self._unfreeze)
            self.model = model.requires_grad_(False).eval()
            self.blocks = decoder_blocks(model)
            self.head, self._tuples = probed(model, self.blocks)
            check_causal(model)
            self.parts: list[Part] = []
            for put_on in attach:
                self.parts.append(put_on(model, self.num_slots))
                undo.callback(self.parts[-1].detach)
            self.lora = LoraLayers(model, lora, adapters=adapters, maps=maps, passes=passes)
            self.parts.append(self.lora)
            undo.callback(self.lora.detach)
            self.groups: dict[str, FlatGroup] = {
                name: group for part in self.parts for name, group in part.groups.items()
            }
            self.freeze()
            self._check()
            undo.pop_all()
        self.attached = True

    def initialise(self, slot: int, seed: int) -> None:
        """Draw a slot's weights from a run's seed."""
        for part in self.parts:
            part.initialise(slot, seed)

    def configure(self, slot: int, lora: LoraSettings, others: Mapping[str, object]) -> None:
        """Give a slot another run's settings: of LoRA, and of the other parts by their names."""
        for part in self.parts:
            part.configure(slot, lora if part is self.lora else others.get(part.name))
        self.lora.use_maps(slot, maps_of(others))
        self.lora.use_rank(slot, rank_of(others, lora))

    def num_weights(self, group: str, lora: LoraSettings, others: Mapping[str, object]) -> int:
        """Weights of a group in a slot with these settings; without what pads their ranks."""
        part = next(part for part in self.parts if group in part.groups)
        if part is self.lora:
            lora = lora.model_copy(update={"r": rank_of(others, lora)})
            more = self.lora.num_more_maps(lora, maps_of(others))
            return self.lora.num_weights(group, lora) + more
        return part.num_weights(group, others.get(part.name))

    @property
    def modules(self) -> list[nn.Module]:
        """What is compiled: decoder blocks, and modules of parts."""
        return [*self.blocks, *(module for part in self.parts for module in part.modules)]

    def compile(self) -> None:
        """Compile blocks and parts, once for all widths; blocks of one shape share their code."""
        if not self._plain:
            self._plain = {module: module.forward for module in self.modules}
            self._compiled.enter_context(
                replaced(self.modules, lambda module: compiled(module.forward))
            )
            embeddings = self.model.get_input_embeddings()
            hook = embeddings.register_forward_hook(_requiring_grad)
            self._compiled.callback(hook.remove)

    def uncompile(self) -> None:
        """Let blocks and parts run as they are written again; adapters and parts stay."""
        self._compiled.close()
        self._plain.clear()

    def uncompiled(self) -> AbstractContextManager[None]:
        """Let blocks and parts run as they are written for a while."""
        return replaced(list(self._plain), self._plain.__getitem__)

    def is_whole(self) -> bool:
        """Whether the layers on the model still share their weights with the groups."""
        return all(group.is_whole() for group in self.groups.values())

    def freeze(self) -> None:
        """Train nothing: the state in which a stack is evaluated."""
        for group in self.groups.values():
            group.require_grad(False)

    def rest(self) -> None:
        """Freeze everything and let go of the last step."""
        self.freeze()
        for part in self.parts:
            part.rest()

    def begin_step(self, given: StepInput) -> None:
        """Prepare a training step."""
        for part in self.parts:
            part.begin_step(given)

    def hidden(self, tokens: Tensor, *, states: Tensor | None = None) -> Tensor:
        """Run all slots' models up to the final norm.

        Args:
            tokens: ``(slot, batch, token)``, right-padded.
            states: :meth:`trunk` of these tokens, to start from there.

        Returns:
            ``(slot * batch, token, hidden)``.
        """
        if states is None:
            return self._run(tokens)
        with replaced(self.blocks[: self._first_block + 1], self._returning(states)):
            return self._run(tokens)

    @torch.no_grad()
    def trunk(self, tokens: Tensor) -> Tensor:
        """Return the base model's states below the first part that acts on a block.

        Args:
            tokens: ``(row, token)``, right-padded.

        Returns:
            ``(row, token, hidden)``, what :meth:`hidden` takes as ``states``.
        """
        first = self._first_block
        found: list[Tensor] = []
        with ExitStack() as exits:
            for part in self.parts:
                exits.enter_context(part.absent())
            exits.enter_context(
                replaced([self.blocks[first]], lambda block: noting(block.forward, found))
            )
            exits.enter_context(replaced(self.blocks[first + 1 :], self._returning()))
            self._run(tokens[None])
        return found[0]

    def next_pass(self, given: StepInput) -> None:
        """Draw anew for a step's second pass over the same batch."""
        for part in self.parts:
            part.next_pass(given)

    @contextmanager
    def evaluating(self, mode: str) -> Iterator[None]:
        """Freeze everything; ``off`` is the adapter alone, other modes are those of the parts."""
        self.freeze()
        with ExitStack() as exits, torch.no_grad():
            for part in self.parts:
                exits.enter_context(part.evaluating(mode))
            yield

    @contextmanager
    def only(self, slot: int) -> Iterator[None]:
        """Run rows of one slot alone: :meth:`hidden` then takes the rows of this slot."""
        for part in self.parts:
            part.only = slot
        try:
            yield
        finally:
            for part in self.parts:
                part.only = None

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Let the model be the base model for a while; what is on it keeps its weights."""
        self.uncompile()
        with ExitStack() as exits:
            for part in self.parts:
                if part is not self.lora:
                    exits.enter_context(part.absent())
            exits.enter_context(lent(self.model))  # which puts our layers back in their places
            self.lora.detach()
            yield

    def strip(self) -> None:
        """Take everything off but the adapters."""
        for part in self.parts:
            if part is not self.lora:
                part.detach()

    def remove(self) -> None:
        """Take everything off; the model is again what it was, bit for bit."""
        self.strip()
        self.uncompile()
        if self.attached:
            self.lora.detach()
            self._unfreeze()
            self.attached = False

    @property
    def _first_block(self) -> int:
        """The first block whose output a part changes by itself."""
        return min(part.first_block for part in self.parts if part.first_block is not None)

    @torch.no_grad()
    def _check(self) -> None:
        """Refuse layers that not every token goes through, and blocks that cannot be left out."""
        if self.lora.layers:
            device = self.model.device
            check_calls(
                self.lora.layers,
                self.hidden,
                num_slots=self.num_slots,
                device=device,
                found=self.lora.found,
            )
        if any(part.first_block is not None for part in self.parts):
            self._check_trunk()

    def _check_trunk(self) -> None:
        """Refuse a model whose blocks cannot be left out.

        Raises:
            InputError: the states below the first part do not lead to the same final states.
        """
        tokens = torch.arange(1, 5, device=self.model.device).expand(self.num_slots, 1, -1)
        expected = self.hidden(tokens)
        try:
            with asking():
                states = self.trunk(tokens.flatten(0, 1))
                found = self.hidden(tokens, states=states)
                same = torch.allclose(found, expected, rtol=TRUNK_TOLERANCE, atol=TRUNK_TOLERANCE)
                # Gemma 3n's blocks pass several states of every token.
                same = same and states.dim() == tokens.dim()
        except RefusalError:
            same = False
        if not same:
            names = ", ".join(part.name for part in self.parts if part.first_block is not None)
            raise InputError(
                f"the blocks of {type(self.model).__name__} cannot be run from the first {names} "
                f"on: allowed for a method with a {names} are models whose blocks pass hidden "
                "states alone, use one, or the arm lora"
            )

    def _returning(self, states: Tensor | None = None) -> Callable[[nn.Module], Forward]:
        """What to give blocks that are to return ``states``, or their input, as they stand."""
        return lambda block: returning(states, length=self._tuples.get(block))

    def _run(self, tokens: Tensor) -> Tensor:
        rows = tokens.flatten(0, 1)
        self.lora.dropout.width = rows.shape[1]
        with self._attention():
            output: Tensor = self.model.base_model(
                input_ids=rows, use_cache=False
            ).last_hidden_state
        return output

    def _attention(self) -> AbstractContextManager[None]:
        """Attention made for short rows, where it is faster than the library's."""
        if self.model.device.type == "cuda" or self.model.dtype == torch.bfloat16:
            return short_attention(self.model)
        return nullcontext()


def maps_of(others: Mapping[str, object]) -> Maps:
    """Return a run's B's over one A, told among the settings of its parts."""
    found = others.get(MAPS, ONE_MAP)
    assert isinstance(found, Maps)
    return found


def rank_of(others: Mapping[str, object], lora: LoraSettings) -> int:
    """Return the rank with which a run begins."""
    found = others.get(RANK, lora.r)
    assert isinstance(found, int)
    return found


def slices_of(others: Mapping[str, object]) -> int:
    """Return how many slices a run's ranks have, of which a step moves one a layer."""
    found = others.get(SLICES, 1)
    assert isinstance(found, int)
    return found


def _requiring_grad(_embedding: nn.Module, _args: object, output: Tensor) -> Tensor:
    """Let the first block's input look like the other blocks', so that it needs no own code."""
    return output.requires_grad_() if torch.is_grad_enabled() else output
