"""What a tiny model of an architecture does, from its targets to its completions in stock PEFT.

The table of docs/models.md shows it, which ``python docs/build_models.py`` makes anew. Messages are
taken at their word: where targets are refused, what a message says to write is tried instead.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel

from architectures import GROUPS, tiny_architecture
from cohorts import BANK, bank_run, data, lora_run, train, with_banks
from schemabank.adapters.export import check_with_peft, probe
from schemabank.adapters.files import save_adapter
from schemabank.adapters.peftlayers import check_peft_layers
from schemabank.common.errors import InputError
from schemabank.common.tables import markdown_table
from schemabank.config.settings import LoraSettings
from schemabank.config.targets import ALL_LINEAR
from schemabank.engine.cohort import Cohort
from schemabank.engine.decoding.choice import check_generates, why_by_slot
from schemabank.engine.decoding.completion import Completion
from schemabank.engine.decoding.decode import generate
from schemabank.engine.decoding.slotwise import generate_by_slot
from schemabank.engine.stack import AdapterStack
from schemabank.engine.targets import resolved
from schemabank.models.basemodel import BaseModel
from tiny import END_TOKEN_ID, tiny_tokenizer

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
START, END = (
    "<!-- architectures: made by docs/build_models.py -->\n",
    "<!-- end of architectures -->",
)
HEADERS = (
    *("`model_type`", "default targets", "`all-linear`", "trains", "in PEFT", "decodes"),
    "refused, and what to do",
)
BOUND = HEADERS.index("in PEFT")
MARGIN = 10  # between the difference that was seen and the power of ten that the page shows

TOKENIZER = tiny_tokenizer()
PROMPTS = [
    list(TOKENIZER(text)["input_ids"])
    for text in ("How many clips did Natalia sell", "One", "The capital", "Two")
]
AT_ONCE, ONE_BY_ONE, NOT = "all runs at once", "one run at a time", "no"
# What the page says of architectures of which something is refused whatever the targets.
REMARKS = {
    "gemma3n_text": "banks, since its blocks pass several states of a token: the arm `lora`",
    "llama4_text": "all, since its text model does not name its blocks: another model",
    "rwkv": "decoding, since `generate` mixes up rows of a batch: the task `perplexity`",
    "zamba2": "decoding in float32, since `generate` is off by a thousandth: "
    "`model.dtype: bfloat16`, or the task `perplexity`",
}


@dataclass(frozen=True)
class Trial:
    """What an architecture does.

    Attributes:
        name: of the architecture.
        default: ``yes`` where the default targets are layers, else those in their place.
        everything: the same of ``all-linear``.
        arms: the arms that were trained.
        difference: the largest of an exported adapter's logits in stock PEFT, relative.
        decodes: in which way.
    """

    name: str
    default: str = NOT
    everything: str = NOT
    arms: str = NOT
    difference: float | None = None
    decodes: str = NOT

    @property
    def cells(self) -> tuple[str, ...]:
        """The architecture's row of the table."""
        bound = "" if self.difference is None else f"{next_power(MARGIN * self.difference):.0e}"
        remark = REMARKS.get(self.name, "")
        return (
            f"`{self.name}`",
            *(self.default, self.everything, self.arms),
            bound and f"< {bound}",
            *(self.decodes, remark),
        )


def tried(name: str, folder: Path) -> Trial:
    """Try everything with an architecture, and save its adapters in a folder.

    Raises:
        AssertionError: an adapter is another one in stock PEFT, or completes other texts there.
    """
    model = tiny_architecture(name)
    try:
        default, everything = followed(model, None), followed(model, ALL_LINEAR)
    except InputError:
        return Trial(name)
    banked = has_banks(model)
    decodes = way_of_decoding(model)
    stack, _ = trained(tiny_architecture(name), everything.target_modules, banked=banked)
    found = None if decodes == NOT else completed(stack, by_slot=decodes == ONE_BY_ONE)
    return Trial(
        name,
        default=as_written(resolved(model, default).target_modules, default.target_modules),
        everything=as_written(everything.target_modules, (ALL_LINEAR,)),
        arms="lora, schemabank" if banked else "lora",
        difference=exported(stack, folder, found),
        decodes=decodes,
    )


def followed(model: PreTrainedModel, targets: str | Sequence[str] | None) -> LoraSettings:
    """The settings that a model takes: those asked for, or those that messages say to write.

    Raises:
        InputError: a message that names no other targets.
    """
    asked: dict[str, object] = {} if targets is None else {"target_modules": targets}
    while True:
        settings = LoraSettings.model_validate({"r": 2, "lora_dropout": 0.1, **asked})
        try:
            check_peft_layers(model, settings)
            AdapterStack(model, lora=[settings]).remove()
        except InputError as error:
            named = targets_in(str(error))
            if named is None or {"target_modules": named} == asked:
                raise
            asked = {"target_modules": named}
        else:
            return settings


def targets_in(message: str) -> str | list[str] | None:
    """What a message says to write as targets."""
    lists: list[str] = re.findall(r"\[([\w., ]+)\]", message)
    if lists:
        return lists[-1].split(", ")
    return ALL_LINEAR if f"write {ALL_LINEAR}" in message else None


def as_written(targets: Sequence[str], asked: Sequence[str]) -> str:
    """A cell of the table: whether targets are those asked for, or else what they are."""
    return "yes" if tuple(targets) == tuple(asked) else f"`[{', '.join(targets)}]`"


def has_banks(model: PreTrainedModel) -> bool:
    """Whether the arm ``schemabank`` can be trained."""
    try:
        AdapterStack(model, lora=[LoraSettings()], attach=with_banks(BANK), adapters=False).remove()
    except InputError as error:
        assert "cannot be run from the first bank on" in str(error)  # noqa: PT017 -- some cannot
        return False
    return True


def way_of_decoding(model: PreTrainedModel) -> str:
    """How a model's texts are completed, if they can be."""
    if why_by_slot(model) is None:
        return AT_ONCE
    try:
        check_generates(model)
    except InputError:
        return NOT
    return ONE_BY_ONE


def trained(
    model: PreTrainedModel, targets: Collection[str], *, banked: bool
) -> tuple[AdapterStack, list[float]]:
    """The stack after two runs, and the loss of every step.

    One run is under the curriculum with its cached first stage, if there can be banks; the other is
    plain LoRA.
    """
    settings = {"r": 2, "lora_dropout": 0.1, "target_modules": tuple(targets)}
    lora = LoraSettings.model_validate(settings)
    first = bank_run(1, max_steps=6) if banked else lora_run(1, max_steps=6)
    runs = [replace(run, lora=lora) for run in (first, lora_run(2, max_steps=6))]
    stack = AdapterStack(model, lora=[lora] * 2, attach=with_banks(BANK if banked else None))
    cohort = Cohort(stack, runs, data(), explain=lambda _: None)
    steps = train(cohort)
    assert [slot.failure for slot in cohort.slots] == [None, None]
    tensors = [stack.lora.tensors(slot) for slot in range(2)]
    assert all(b.abs().max() > 0 for own in tensors for _, b in own.values())
    return stack, [step.loss for both in steps for step in both]


def exported(
    stack: AdapterStack, folder: Path, completions: Sequence[Sequence[Completion]] | None
) -> float:
    """Save both adapters, take the stack off, and compare each with its run in stock PEFT.

    The first is compared with the other's run too, from which it must differ.

    Args:
        stack: with two runs' adapters.
        folder: where they are saved.
        completions: of each slot, which stock PEFT has to write, too; ``None``: nothing decodes.

    Returns:
        The largest relative difference of logits.
    """
    base = BaseModel("tiny", None, stack.model, TOKENIZER, (END_TOKEN_ID,), "made here")
    probes = probe(stack, base)
    tensors = [stack.lora.tensors(slot) for slot in range(2)]
    settings, layout = stack.lora.settings, stack.lora.layout
    stack.remove()
    worst = 0.0
    for slot, own in enumerate(tensors):
        place = folder / str(slot)
        save_adapter(place, own, settings[slot], base_name="tiny", card="", layout=layout)
        check = check_with_peft(place, base, probes[slot])
        assert check.agrees, check.said
        assert check.difference is not None
        worst = max(worst, check.difference)
        if completions is not None:
            assert completions[slot] == completed_by_peft(stack.model, place)
    other = check_with_peft(folder / "0", base, probes[1])
    assert not other.agrees, other.said
    return worst


def completed(stack: AdapterStack, *, by_slot: bool, limit: int = 6) -> list[list[Completion]]:
    """What every slot completes."""
    decode = generate_by_slot if by_slot else generate
    with stack.evaluating("off"):
        return decode(
            stack, PROMPTS, max_new_tokens=limit, end_token_ids=[END_TOKEN_ID], batch_size=3
        )


def completed_by_peft(model: PreTrainedModel, folder: Path) -> list[Completion]:
    """What stock PEFT's ``generate`` completes, one prompt at a time."""
    tuned = PeftModel.from_pretrained(model, str(folder))
    plain = GenerationConfig(max_new_tokens=6, eos_token_id=END_TOKEN_ID, pad_token_id=END_TOKEN_ID)
    completions = []
    for prompt in PROMPTS:
        tokens = torch.tensor([prompt])
        mask = torch.ones_like(tokens)
        written = tuned.generate(input_ids=tokens, attention_mask=mask, generation_config=plain)
        row = written[0, len(prompt) :].tolist()
        ended = END_TOKEN_ID in row
        kept = row[: row.index(END_TOKEN_ID)] if ended else row
        completions.append(Completion(kept, "end_token" if ended else "length"))
    tuned.unload()
    return completions


def next_power(value: float) -> float:
    """The power of ten at or above a number."""
    power = 1.0
    while power / 10 >= value:
        power /= 10
    return power


def table(trials: Sequence[Trial]) -> str:
    """All groups of the page."""
    by_name = {trial.name: trial for trial in trials}
    parts = []
    for title, names in GROUPS.items():
        rows = [by_name[name].cells for name in sorted(names)]
        parts += [f"### {title}", "", *markdown_table(HEADERS, rows), ""]
    return "\n".join(parts)


def page_rows() -> dict[str, list[str]]:
    """The rows of the page, by the architecture."""
    made = PAGE.read_text(encoding="utf-8").partition(START)[2].partition(END)[0]
    lines = [line for line in made.splitlines() if line.startswith("| `")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): row for row in rows if row[0] != HEADERS[0]}


def check_row(name: str, folder: Path) -> None:
    """Hold an architecture to what the page says of it."""
    found, shown = tried(name, folder), page_rows()[name]
    cells = list(found.cells)
    mend = "python docs/build_models.py makes the table again"
    assert cells[:BOUND] == shown[:BOUND], mend
    assert cells[BOUND + 1 :] == shown[BOUND + 1 :], mend
    assert (found.difference is None) == (shown[BOUND] == "")
    if found.difference is not None:
        assert found.difference < float(shown[BOUND].removeprefix("< ")), mend
