"""The LoRA adapters of all slots on a model: what every run trains, whatever its method adds."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from schemabank.common.errors import InputError
from schemabank.config.settings import LoraSettings
from schemabank.config.targets import is_open
from schemabank.engine.dropout import SlotDropout, hashed
from schemabank.engine.flat import FlatGroup, seeded_generator
from schemabank.engine.joined import join_linears, put_back
from schemabank.engine.lora import ONE_MAP, Maps, StackedLora, install_lora, remove_lora
from schemabank.engine.part import Field, Part, StepInput
from schemabank.engine.reduction import nearest
from schemabank.engine.slices import RankSlices, rank_slices
from schemabank.engine.targets import PLAIN, blocks_of, layout_of, resolved

LORA = "lora"
MIX = "adapter_mix"  # of a step, by layer: how much of each of its maps a row uses
NEXT_MIX = "adapter_next_mix"  # the same in a step's second pass
ROUTED = "adapter_routed"  # of a step: what the routers' shares of the maps are multiplied by
NEXT_PASS = 0x5BD1E995  # any number; with it a step's keys become those of its second pass
STRENGTH = "adapter_strength"  # of a step, by block with adapters: 0 leaves its adapters out
JOINED_UP_TO = 4  # slots; beyond, cutting the products' results apart costs more than it saves
CONTIGUOUS = torch.contiguous_format


class LoraLayers(Part):
    """LoRA adapters of all slots.

    Args:
        model: the base model; its targeted layers are replaced until :meth:`detach`.
        settings: of each slot; all with the same target modules on the same blocks.
        adapters: whether there are any; the untouched base model has none.
        maps: room for any run's B's over one A.
        passes: the most that a step takes over its batch.

    Attributes:
        layers: by the path of the layer that each stands for.
        asked: the targets as they were given, ``all-linear`` and patterns among them.
        settings: of each slot now, with the names of the model's layers as targets.
        dropout: the layers' common source of masks.
        layout: what an adapter's configuration says beside its LoRA settings.
        num_blocks: decoder blocks with adapters; layers outside of all count as one more.
        room: for B's over one A.
        maps: those that each slot's run has; its adapter's B is their mean.
        ranks: of each slot while its run trains; an adapter ends with its settings' own.
        widest: the largest rank that a slot has room for.

    Raises:
        InputError: targets or blocks that the model does not have.
    """

    name = LORA

    def __init__(
        self,
        model: PreTrainedModel,
        settings: Sequence[LoraSettings],
        *,
        adapters: bool,
        maps: Maps = ONE_MAP,
        passes: int = 1,
    ) -> None:
        self._model = model
        self.asked = settings[0].target_modules
        if adapters:
            settings = [resolved(model, each) for each in settings]
        self.settings = list(settings)
        self.room, self.maps = maps, [ONE_MAP] * len(self.settings)
        self.ranks = [each.r for each in self.settings]
        self.widest = max(self.ranks)
        self.passes = passes
        self.dropout = SlotDropout([s.lora_dropout for s in settings], device=model.device)
        self.layout = layout_of(model, settings[0]) if adapters else PLAIN
        with ExitStack() as undo:
            self._joined = join_linears(model) if _joins(model, len(settings)) else {}
            undo.callback(put_back, model, self._joined)
            self.layers: dict[str, StackedLora] = (
                install_lora(model, settings, dropout=self.dropout, maps=maps) if adapters else {}
            )
            undo.callback(remove_lora, model, self.layers)
            self.num_blocks = len(set(blocks_of(model, self.layers).values()))
            self.fields = self._new_fields()
            self.groups = self._new_groups()
            undo.pop_all()

    @property
    def found(self) -> tuple[str, ...]:
        """The targets' names, if it was for the model to say which they are."""
        names = self.settings[0].target_modules
        return () if names == self.asked else names

    @property
    def only(self) -> int | None:
        """The one slot whose rows are run; ``None``: all."""
        return self.dropout.only

    @only.setter
    def only(self, slot: int | None) -> None:
        self.dropout.only = slot

    def configure(self, slot: int, settings: LoraSettings | None) -> None:
        """Give a slot another run's settings; its rank is at most the stack's largest."""
        assert settings is not None
        before = self.settings[slot]
        # The names of what only the model knows were found when all layers were free.
        if is_open(settings.target_modules):
            settings = settings.model_copy(update={"target_modules": before.target_modules})
        assert settings.target_modules == before.target_modules
        assert settings.layers_to_transform == before.layers_to_transform
        self.settings[slot] = settings
        self.dropout.set_rate(slot, settings.lora_dropout)
        self.use_maps(slot, ONE_MAP)
        self.use_rank(slot, settings.r)

    def use_maps(self, slot: int, maps: Maps) -> None:
        """Give a slot its B's over one A."""
        assert self.room.routed or not maps.routed
        self.maps[slot] = maps
        for layer in self.layers.values():
            layer.configure(slot, self.settings[slot], num_maps=maps.count)

    def use_rank(self, slot: int, rank: int) -> None:
        """Give a slot the rank with which its run begins, at the scale of its settings."""
        assert rank <= self.widest
        self.ranks[slot] = rank

    @torch.no_grad()
    def reduce(self, slot: int) -> None:
        """Replace a slot's adapters by the nearest ones of the rank that its settings state."""
        rank, weights = self.settings[slot].r, self.groups[LORA].weights
        weights[slot].copy_(self.reduced(weights[slot], rank))
        self.ranks[slot] = rank
        self._publish()

    def reduced(self, row: Tensor, rank: int) -> Tensor:
        """Return a slot's weights, ``(size,)``, as the nearest adapters of a rank.

        Those that have no higher rank stay as they are, bit for bit.
        """
        found = row.clone()
        views = self.groups[LORA].views(found)
        for path in self.layers:
            a = views[f"{path}.A"]
            b = views[f"{path}.B"].unflatten(0, (self.room.count, -1))[0]
            if a[:, rank:].any():
                low_a, low_b = nearest(a, b, rank)
                a.zero_()[:, :rank] = low_a
                b.zero_()[:rank] = low_b
        return found

    def back_at(self, slot: int, origin: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """Put a slot's weights back to others, by group on the CPU; return these.

        Without any they stay, and are what is returned.
        """
        if origin is None:
            return {n: g.weights[slot].to("cpu", copy=True) for n, g in self.groups.items()}
        for name, row in origin.items():
            self.groups[name].weights[slot].copy_(row)
        self._publish()
        return origin

    def initialise(self, slot: int, seed: int) -> None:
        """Draw a slot's weights from a run's seed, the same whatever else its method trains."""
        generator = seeded_generator(seed, LORA)
        for path, layer in self.layers.items():
            self._master(path, "A")[slot].copy_(layer.initial_a(self.ranks[slot], generator))
            self._master(path, "B")[slot].zero_()
        if self.room.routed:
            self._initialise_routers(slot, seed)
        self._publish()

    def num_weights(self, group: str, settings: LoraSettings | None) -> int:
        """Weights of a slot with these settings, without what pads their rank."""
        assert group == LORA
        assert settings is not None
        layers = self.layers.values()
        return sum(settings.r * (layer.in_features + layer.out_features) for layer in layers)

    def folded(self, row: Tensor, num_maps: int) -> Tensor:
        """Return a slot's weights, ``(size,)``, with the mean of its maps as its only one.

        Routers, which chose among the maps, have nothing left to choose and become zero.
        """
        if num_maps == 1:
            return row
        folded = row.clone()
        for name, own in self.groups[LORA].views(folded).items():
            if name.endswith(".B"):
                maps = own.view(self.room.count, -1, own.shape[1])
                mean = maps[:num_maps].mean(0)
                maps.zero_()[0] = mean
            elif name.endswith(".router"):
                own.zero_()
        return folded

    def rescaled(self, weights: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
        """Return a slot's weights, ``(size,)`` by group, with every B multiplied by a factor."""
        row = weights[LORA].clone()
        for name, own in self.groups[LORA].views(row).items():
            if name.endswith(".B"):
                own.mul_(factor)
        return {**weights, LORA: row}

    def first_weights(self, settings: LoraSettings, seed: int) -> Tensor:
        """Return the weights that a run of these settings starts from, ``(size,)``, on the CPU."""
        first = torch.zeros(self.groups[LORA].size)
        generator = seeded_generator(seed, LORA)
        views = self.groups[LORA].views(first)
        for path, layer in self.layers.items():
            views[f"{path}.A"].copy_(layer.initial_a(settings.r, generator))
        return first

    def num_more_maps(self, settings: LoraSettings, maps: Maps) -> int:
        """Weights of all B's but the first, and of the routers."""
        layers = self.layers.values()
        of_maps = settings.r * sum(layer.out_features for layer in layers) * (maps.count - 1)
        of_routers = maps.count * sum(layer.in_features for layer in layers) if maps.routed else 0
        return of_maps + of_routers

    def new_slices(self, most: int) -> RankSlices:
        """Return what divides every layer's ranks into slices, at most so many in a slot."""
        group = self.groups[LORA]
        size, device = group.size, group.weights.device
        places = group.views(torch.arange(size, dtype=torch.int32, device=device))
        layers = [
            (places[f"{path}.A"], places[f"{path}.B"].unflatten(0, (self.room.count, -1)))
            for path in self.layers
        ]
        return rank_slices(layers, size=size, num_slots=len(self.settings), most=most)

    def begin_step(self, given: StepInput) -> None:
        """Draw new dropout masks."""
        keys = given["dropout_keys"]
        # On CUDA always: a captured step would not notice that a later run wants dropout, and the
        # kernel that draws masks sums in another order than a plain product does.
        drawn = keys.is_cuda or any(self.dropout.rates)
        self.dropout.begin_step(keys if drawn else None)
        self.dropout.strengths = given[STRENGTH] if self.layers else None
        self.dropout.mixes = given[MIX] if MIX in self.fields else None
        self.dropout.routed = given[ROUTED] if ROUTED in self.fields else None

    def next_pass(self, given: StepInput) -> None:
        """Draw other masks, and take the maps of the second pass."""
        if self.dropout.keys is not None:
            self.dropout.keys = hashed(self.dropout.keys ^ NEXT_PASS)
        if NEXT_MIX in self.fields:
            self.dropout.mixes = given[NEXT_MIX]

    def rest(self) -> None:
        """Drop nothing any more, and let all adapters act."""
        self.dropout.begin_step(None)
        self.dropout.strengths = self.dropout.mixes = self.dropout.routed = None

    @contextmanager
    def evaluating(self, mode: str) -> Iterator[None]:
        """Drop nothing; an adapter acts in all modes."""
        del mode
        self.rest()
        yield

    @contextmanager
    def absent(self) -> Iterator[None]:
        """Let the base model's layers act alone for a while."""
        self.dropout.adapters = False
        try:
            yield
        finally:
            self.dropout.adapters = True

    def tensors(self, slot: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Return a slot's ``A: (rank, in)`` and ``B: (out, rank)`` by the path of their layer.

        Of a rank that is yet to be reduced, it is the nearest adapter of the settings' rank.
        """
        rank, row = self.settings[slot].r, self.groups[LORA].weights[slot]
        if self.ranks[slot] > rank:
            row = self.reduced(row, rank)
        views, found = self.groups[LORA].views(row), {}
        for path in self.layers:
            maps = views[f"{path}.B"].unflatten(0, (self.room.count, -1))[: self.maps[slot].count]
            found[path] = (
                views[f"{path}.A"][:, :rank].T.clone(memory_format=CONTIGUOUS),
                maps.mean(0)[:rank].T.clone(memory_format=CONTIGUOUS),
            )
        return found

    def _maps(self, path: str, slot: int) -> Tensor:
        """A slot's B's of a layer, ``(map, rank, out)``."""
        return self._all_maps(path, slot)[: self.maps[slot].count]

    def _all_maps(self, path: str, slot: int) -> Tensor:
        own: Tensor = self._master(path, "B")[slot]
        return own.view(self.layers[path].num_maps, -1, own.shape[1])

    def load(
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
        missing = [path for path in self.layers if path not in tensors and path not in without]
        if tensors and missing:
            raise InputError(
                f"the adapter has no weights for {missing[0]!r}, which its targets name in this "
                "model: allowed is the base model that it was trained on, name that"
            )
        for path in self.layers:
            own_a, own_b = self._master(path, "A")[slot], self._master(path, "B")[slot]
            own_a.zero_()
            own_b.zero_()
            if path in tensors:
                a, b = tensors[path]
                own_a[:, : a.shape[0]].copy_(a.T)
                self._maps(path, slot)[:, : b.shape[1]].copy_(b.T)
        self._publish()

    def detach(self) -> None:
        """Put the model's own layers back; it is then what it was, bit for bit."""
        remove_lora(self._model, self.layers)
        put_back(self._model, self._joined)

    def _new_fields(self) -> dict[str, Field]:
        """What a step tells: blocks' strengths, and, of several maps, which of them act."""
        found = {STRENGTH: Field((self.num_blocks,), default=1)} if self.num_blocks else {}
        count = self.room.count
        if count > 1:
            first = (1.0, *(0.0,) * (count - 1))
            mix_of_rows = Field((len(self.layers), count), by_row=True, default=first)
            found |= dict.fromkeys((MIX, NEXT_MIX)[: self.passes], mix_of_rows)
        if self.room.routed:
            found[ROUTED] = Field()
        return found

    def _initialise_routers(self, slot: int, seed: int) -> None:
        """Draw a slot's routers, from numbers of their own; zero where its run has none."""
        generator, maps = seeded_generator(seed, "lora_router"), self.maps[slot]
        for path, layer in self.layers.items():
            own = self._master(path, "router")[slot].zero_()
            if maps.routed:
                own.copy_(layer.initial_router(maps.count, generator))

    def _new_groups(self) -> dict[str, FlatGroup]:
        parameters = {
            f"{path}.{name}": layer.get_parameter(name)
            for path, layer in self.layers.items()
            for name in ("A", "B", *(("router",) if self.room.routed else ()))
        }
        if not parameters:
            return {}
        num_slots, dtype = len(self.settings), self._model.dtype
        of_b = [name for name in parameters if name.endswith(".B")]
        return {LORA: FlatGroup(parameters, num_slots=num_slots, dtype=dtype, own_rate=of_b)}

    def _publish(self) -> None:
        for group in self.groups.values():
            group.publish()

    def _master(self, path: str, name: str) -> Tensor:
        return self.groups[LORA].master[f"{path}.{name}"]

    def _check_fits(self, path: str, a: Tensor, b: Tensor) -> None:
        layer = self.layers.get(path)
        size = None if layer is None else (layer.in_features, layer.out_features)
        if size != (a.shape[1], b.shape[0]):
            found = "no such layer" if size is None else f"{size[0]} to {size[1]} there"
            raise InputError(
                f"the adapter has weights for {path!r}, {a.shape[1]} to {b.shape[0]}, but the "
                f"model has {found}: allowed is the base model that it was trained on, name that"
            )


def _joins(model: PreTrainedModel, num_slots: int) -> bool:
    """Whether linear layers with a common input are computed as one product."""
    return model.device.type == "cuda" and num_slots <= JOINED_UP_TO
