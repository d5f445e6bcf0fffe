"""Adapters and banks of all slots on one frozen model: built, seeded, loaded, run and removed."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from schemabank.common.errors import InputError
from schemabank.config.settings import BankSettings, LoraSettings
from schemabank.engine.blocks import Forward, noting, probed, replaced, returning
from schemabank.engine.dropout import SlotDropout
from schemabank.engine.execute import compiled
from schemabank.engine.flat import FlatGroup
from schemabank.engine.joined import join_linears, put_back
from schemabank.engine.kernels.attention import short_attention
from schemabank.engine.lora import install_lora, remove_lora
from schemabank.engine.targets import PLAIN, check_calls, layout_of
from schemabank.engine.weights import named_groups, new_banks, seeded_generator
from schemabank.methods.attach import AttachedBanks, attach_banks
from schemabank.methods.bank import Routing
from schemabank.methods.curriculum import Group
from schemabank.models.architecture import decoder_blocks, hidden_size
from schemabank.models.frozen import kept_state
from schemabank.models.refusals import RefusalError, asking

JOINED_UP_TO = 4  # slots; beyond, cutting the products' results apart costs more than it saves
CONTIGUOUS = torch.contiguous_format
TRUNK_TOLERANCE = 1e-2


class AdapterStack:
    """LoRA adapters and banks of ``num_slots`` runs on one frozen model.

    Args:
        model: the base model; it is changed in place until :meth:`remove`.
        lora: LoRA settings of each slot; all with the same target modules on the same blocks.
        bank: the banks' settings, or ``None`` for no banks.
        adapters: whether there are LoRA adapters at all; the arm base has none.

    Attributes:
        layout: what an adapter's configuration says beside its LoRA settings.

    Raises:
        InputError: targets or layers that the model does not have, blocks that return no states,
            or an output layer that is more than a linear map with an optional soft cap.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        lora: Sequence[LoraSettings],
        bank: BankSettings | None,
        adapters: bool = True,
    ) -> None:
        self.num_slots, self.lora_settings, self.bank_settings = len(lora), list(lora), bank
        self.slot_banks: list[BankSettings | None] = [bank] * len(lora)
        self._hooks: list[RemovableHandle] = []
        self._uncompiled: list[tuple[nn.Module, Forward | None]] = []
        self._unfreeze = kept_state(model)
        with ExitStack() as undo:  # settings may not fit, and memory may run out at any point
            undo.callback(self._unfreeze)
            self.model = model.requires_grad_(False).eval()
            self.blocks = decoder_blocks(model)
            self.head, self._in_tuples = probed(model, self.blocks)
            banks = new_banks(model, self.blocks, bank, self.num_slots)
            self.dropout = SlotDropout([s.lora_dropout for s in lora], device=model.device)
            self.layout = layout_of(model, lora[0]) if adapters else PLAIN
            self.joined = join_linears(model) if _joins(model, self.num_slots) else {}
            undo.callback(put_back, model, self.joined)
            self.lora = install_lora(model, lora, dropout=self.dropout) if adapters else {}
            undo.callback(remove_lora, model, self.lora)
            self.banks: AttachedBanks = attach_banks(self.blocks, banks, num_slots=self.num_slots)
            undo.callback(self.banks.detach)
            self.groups: dict[Group, FlatGroup] = {
                name: FlatGroup(
                    parameters,
                    num_slots=self.num_slots,
                    dtype=model.dtype if name == "lora" else torch.float32,
                )
                for name, parameters in named_groups(self.lora, banks).items()
                if parameters
            }
            self.freeze()
            if self.lora:
                check_calls(self.lora, self.hidden, num_slots=self.num_slots, device=model.device)
            if banks:
                self._check_trunk()
            undo.pop_all()
        self.attached = True

    def initialise(self, slot: int, seed: int) -> None:
        """Draw a slot's weights from a run's seed: LoRA's the same with and without banks."""
        generator = seeded_generator(seed, "lora")
        for path, layer in self.lora.items():
            self._master(path, "A")[slot].copy_(layer.initial_a(slot, generator))
            self._master(path, "B")[slot].zero_()
        if self.lora:
            self.groups["lora"].publish()
        settings = self.slot_banks[slot] or self.bank_settings
        if settings is not None:
            generator = seeded_generator(seed, "bank")
            for _, bank in sorted(self.banks.banks.items()):
                bank.initialise(slot, generator, init_std=settings.init_std)

    @property
    def banked(self) -> list[bool]:
        """Which slots' runs use the banks."""
        return [settings is not None for settings in self.slot_banks]

    def configure(self, slot: int, lora: LoraSettings, bank: BankSettings | None) -> None:
        """Give a slot another run's settings; ranks and top k are at most the stack's largest."""
        before = self.lora_settings[slot]
        assert lora.target_modules == before.target_modules
        assert lora.layers_to_transform == before.layers_to_transform
        self.lora_settings[slot], self.slot_banks[slot] = lora, bank
        for layer in self.lora.values():
            layer.configure(slot, lora)
        settings = bank or self.bank_settings
        if settings is not None:
            for schemas in self.banks.banks.values():
                schemas.configure(slot, rank=settings.rank, top_k=settings.top_k)
        self.dropout.set_rate(slot, lora.lora_dropout)

    def compile(self) -> None:
        """Compile blocks and banks, once for all widths; blocks of one shape share their code."""
        if not self._hooks:
            for module in (*self.blocks, *self.banks.banks.values()):
                self._uncompiled.append((module, vars(module).get("forward")))
                module.forward = compiled(module.forward)
            embeddings = self.model.get_input_embeddings()
            self._hooks.append(embeddings.register_forward_hook(_requiring_grad))

    def uncompile(self) -> None:
        """Let blocks and banks run as they are written again; adapters and banks stay."""
        for module, forward in self._uncompiled:
            del module.forward
            if forward is not None:  # not the class's own
                module.forward = forward
        self._uncompiled.clear()
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def num_weights(self, name: Group, lora: LoraSettings, bank: BankSettings | None) -> int:
        """Weights of a group in a slot with these settings; without what pads their ranks."""
        if name == "lora":
            layers = self.lora.values()
            return sum(lora.r * (layer.in_features + layer.out_features) for layer in layers)
        group = self.groups[name]
        if name == "router" or bank is None or self.bank_settings is None:
            return group.size
        padding = self.bank_settings.num_schemas * (self.bank_settings.rank - bank.rank)
        return group.size - 2 * padding * hidden_size(self.model) * len(self.banks.banks)

    def is_whole(self) -> bool:
        """Whether the layers on the model still share their weights with the groups."""
        return all(group.is_whole() for group in self.groups.values())

    def freeze(self) -> None:
        """Train nothing: the state in which a stack is evaluated."""
        for group in self.groups.values():
            group.require_grad(False)

    def begin_step(self, dropout_keys: Tensor, bank_scale: Tensor) -> None:
        """Prepare a training step: new dropout masks, banks routed at their scales.

        Args:
            dropout_keys: ``(slot,)``, from :func:`dropout_keys`.
            bank_scale: ``(slot,)``; 0 leaves a slot without its bank.
        """
        # On CUDA always: a captured step would not notice that a later run wants dropout, and the
        # kernel that draws masks sums in another order than a plain product does.
        drawn = dropout_keys.is_cuda or any(self.dropout.rates)
        self.dropout.begin_step(dropout_keys if drawn else None)
        self.banks.scale = bank_scale
        self.banks.routing = "on" if self.banks.banks else "off"

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
        first = min(self.banks.banks) + 1
        with replaced(self.blocks[:first], self._returning(states)):
            return self._run(tokens)

    @torch.no_grad()
    def trunk(self, tokens: Tensor) -> Tensor:
        """Return the base model's states below the first bank, which no adapter acts on.

        Args:
            tokens: ``(row, token)``, right-padded.

        Returns:
            ``(row, token, hidden)``, what :meth:`hidden` takes as ``states``.
        """
        first = min(self.banks.banks)
        found: list[Tensor] = []
        routing, self.banks.routing, self.dropout.adapters = self.banks.routing, "off", False
        try:
            with (
                replaced([self.blocks[first]], lambda block: noting(block.forward, found)),
                replaced(self.blocks[first + 1 :], self._returning()),
            ):
                self._run(tokens[None])
        finally:
            self.banks.routing, self.dropout.adapters = routing, True
        return found[0]

    @torch.no_grad()
    def _check_trunk(self) -> None:
        """Refuse a model whose blocks cannot be left out.

        Raises:
            InputError: the states below the first bank do not lead to the same final states.
        """
        tokens = torch.arange(1, 5, device=self.model.device).expand(self.num_slots, 1, -1)
        expected = self.hidden(tokens)
        try:
            with asking():
                found = self.hidden(tokens, states=self.trunk(tokens.flatten(0, 1)))
                same = torch.allclose(found, expected, rtol=TRUNK_TOLERANCE, atol=TRUNK_TOLERANCE)
        except RefusalError:
            same = False
        if not same:
            raise InputError(
                f"the blocks of {type(self.model).__name__} cannot be run from the first bank on: "
                "allowed for the arm schemabank are models whose blocks pass hidden states alone, "
                "use one, or the arm lora"
            )

    def _returning(self, states: Tensor | None = None) -> Callable[[nn.Module], Forward]:
        """What to give blocks that are to return ``states``, or their input, as they stand."""
        return lambda block: returning(states, in_tuple=block in self._in_tuples)

    def _run(self, tokens: Tensor) -> Tensor:
        rows = tokens.flatten(0, 1)
        self.dropout.width = rows.shape[1]
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

    @contextmanager
    def evaluating(self, routing: Routing) -> Iterator[None]:
        """Freeze everything, switch dropout off and set the banks to ``routing`` at full scale."""
        before = self.banks.routing
        self.freeze()
        self.dropout.begin_step(None)
        self.banks.routing = routing
        self.banks.scale = torch.tensor(self.banked, device=self.model.device).float()
        try:
            with torch.no_grad():
                yield
        finally:
            self.banks.routing = before

    @contextmanager
    def only(self, slot: int) -> Iterator[None]:
        """Run rows of one slot alone; what :meth:`hidden` takes has the rows of all."""
        self.dropout.only = self.banks.only = slot
        try:
            yield
        finally:
            self.dropout.only = self.banks.only = None

    def lora_tensors(self, slot: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Return a slot's ``A: (rank, in)`` and ``B: (out, rank)`` by the path of their layer."""
        rank = self.lora_settings[slot].r
        return {
            path: (
                self._master(path, "A")[slot, :, :rank].T.clone(memory_format=CONTIGUOUS),
                self._master(path, "B")[slot, :rank].T.clone(memory_format=CONTIGUOUS),
            )
            for path in self.lora
        }

    def load_lora(
        self,
        slot: int,
        tensors: Mapping[str, tuple[Tensor, Tensor]],
        *,
        without: Collection[str] = (),
    ) -> None:
        """Set a slot's adapters; no tensors at all leave every layer untouched by an adapter.

        Args:
            slot: number of the slot.
            tensors: ``A: (rank, in)`` and ``B: (out, rank)`` by the path of their layer.
            without: paths of layers that stay untouched.

        Raises:
            InputError: weights of a layer that the model does not have, or has in another size, or
                none of a layer that the settings name.
        """
        for path, (a, b) in tensors.items():
            self._check_fits(path, a, b)
        missing = [path for path in self.lora if path not in tensors and path not in without]
        if tensors and missing:
            raise InputError(
                f"the adapter has no weights for {missing[0]!r}, which its targets name in this "
                "model: allowed is the base model that it was trained on, name that"
            )
        for path in self.lora:
            own_a, own_b = self._master(path, "A")[slot], self._master(path, "B")[slot]
            own_a.zero_()
            own_b.zero_()
            if path in tensors:
                a, b = tensors[path]
                own_a[:, : a.shape[0]].copy_(a.T)
                own_b[: b.shape[1]].copy_(b.T)
        if self.lora:
            self.groups["lora"].publish()

    def bank_tensors(self, slot: int) -> dict[str, Tensor]:
        """Return a slot's bank weights by ``layers.INDEX.NAME``."""
        return {
            f"layers.{index}.{name}": tensor
            for index, bank in sorted(self.banks.banks.items())
            for name, tensor in bank.tensors(slot).items()
        }

    def load_bank(self, slot: int, tensors: Mapping[str, Tensor]) -> None:
        """Set a slot's bank weights from :meth:`bank_tensors`.

        Raises:
            InputError: the weights are those of other bank settings.
        """
        own = self.bank_tensors(slot)
        if {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in own.items()}:
            raise InputError(
                f"the saved bank, {_sizes(tensors)}, does not fit the settings in bank, which give "
                f"{_sizes(own)}: allowed are those of the training, leave bank settings out"
            )
        for index, bank in self.banks.banks.items():
            prefix = f"layers.{index}."
            own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            bank.load(slot, own)

    def detach_banks(self) -> None:
        """Take the banks off; the adapters stay."""
        self.banks.detach()

    def remove(self) -> None:
        """Take banks and adapters off; the model is again what it was, bit for bit."""
        self.banks.detach()
        self.uncompile()
        if self.attached:
            remove_lora(self.model, self.lora)
            put_back(self.model, self.joined)
            self._unfreeze()
            self.attached = False

    def _master(self, path: str, name: str) -> Tensor:
        return self.groups["lora"].master[f"{path}.{name}"]

    def _check_fits(self, path: str, a: Tensor, b: Tensor) -> None:
        layer = self.lora.get(path)
        size = None if layer is None else (layer.in_features, layer.out_features)
        if size != (a.shape[1], b.shape[0]):
            found = "no such layer" if size is None else f"{size[0]} to {size[1]} there"
            raise InputError(
                f"the adapter has weights for {path!r}, {a.shape[1]} to {b.shape[0]}, but the "
                f"model has {found}: allowed is the base model that it was trained on, name that"
            )


def _requiring_grad(_embedding: nn.Module, _args: object, output: Tensor) -> Tensor:
    """Let the first block's input look like the other blocks', so that it needs no own code."""
    return output.requires_grad_() if torch.is_grad_enabled() else output


def _joins(model: PreTrainedModel, num_slots: int) -> bool:
    """Whether linear layers with a common input are computed as one product."""
    return model.device.type == "cuda" and num_slots <= JOINED_UP_TO


def _sizes(bank: Mapping[str, Tensor]) -> str:
    return ", ".join(
        f"{n} {list(t.shape)}" for n, t in bank.items() if n.endswith((".U", "router"))
    )
