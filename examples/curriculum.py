"""SchemaBank's curriculum by hand: PyTorch, transformers and stock PEFT, one run, no engine.

    python examples/curriculum.py MODEL OUT

This program trains LoRA on sums and saves a plain PEFT adapter. It has the document's three stages
and the learning rates of the preset `sound`. MODEL is a folder or a name on the hub; its blocks
must be `model.layers`, as in Llama or Qwen. docs/method.md explains the method.
tests/test_examples.py checks that the engine comes to the same weights as this file.
"""

import math
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

NUM_STEPS, BATCH_SIZE, NUM_SCHEMAS, NUM_TAGS = 60, 4, 32, 2
TAG_WEIGHT, ORTHONORMALITY_WEIGHT, WARMUP_RATIO = 1.0, 0.01, 0.05


class SchemaBank(nn.Module):
    """A router that adds, to every token's state, a mixture of the best ``top_k`` low-rank maps."""

    def __init__(self, hidden: int, schemas: int, rank: int, *, top_k: int, attributes: int):
        super().__init__()
        self.top_k = top_k  # above 1: a single schema's gate would always be 1
        self.router = nn.Parameter(torch.randn(schemas, hidden) * 0.02)
        self.U = nn.Parameter(torch.randn(schemas, hidden, rank) * 0.02)
        rows = torch.linalg.qr(torch.randn(schemas, hidden, rank)).Q.transpose(1, 2)
        self.V = nn.Parameter(rows.contiguous())  # not zero: the router needs a gradient
        self.attributes = nn.Parameter(torch.randn(schemas, attributes))
        self.query = nn.Parameter(torch.randn(attributes) * 0.02)

    def forward(self, states: Tensor) -> Tensor:
        """Move states ``(row, token, hidden)``: equation 5 of the paper."""
        self.log_probs = (states.float() @ self.router.T).log_softmax(-1)  # (row, token, schema)
        top = self.log_probs.topk(self.top_k)
        gates = torch.zeros_like(self.log_probs).scatter(-1, top.indices, top.values.softmax(-1))
        scale = 0.9 + 0.2 * gates @ (self.attributes @ self.query).sigmoid()
        low = torch.einsum("bth,shr->btsr", states.float(), self.U) * gates[..., None]
        mixture = torch.einsum("btsr,srh->bth", low, self.V) * scale[..., None]
        return states + mixture.to(states.dtype)

    def tag_loss(self, rows: "Sequence[Row]") -> Tensor:
        """Equation 8, averaged over the tokens of all rows: fewer rows with tags count less."""
        surprise = torch.zeros(())
        for log_probs, row in zip(self.log_probs, rows, strict=True):
            if row.tags:
                surprise -= log_probs[: len(row.tokens)][:, list(row.tags)].mean(1).sum()
        return surprise / sum(len(row.tokens) for row in rows)

    def orthonormality(self) -> Tensor:
        """How far the rows of every V are from orthonormal."""
        off = self.V @ self.V.mT - torch.eye(self.V.shape[1])
        # Adam would turn the gradient of mere rounding into steps of random sign.
        return torch.where(off.abs() < 1e-5, 0.0, off).square().sum((1, 2)).mean()


class Stage(NamedTuple):
    """A part of the run, and what trains in it."""

    ratio: float  # share of all steps
    groups: tuple[str, ...]  # the groups that train; all others are frozen
    learning_rate: float
    tag_keep: tuple[float, ...] = (0.0,)  # probability of showing tags, in equal parts


class Row(NamedTuple):
    """One example of a batch."""

    tokens: list[int]
    num_prompt: int  # tokens without a loss
    tags: tuple[int, ...] = ()  # schemas that the router should choose; empty if no tags are shown


STAGES = (
    Stage(0.3, ("router",), 1e-3, tag_keep=(1.0, 0.75, 0.5, 0.25)),
    Stage(0.3, ("schemas", "lora"), 1e-3),
    Stage(0.4, ("router", "schemas", "lora"), 5e-4),
)


def losses_of(model, banks: Sequence[SchemaBank], rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """The mean loss of the batch's labels, alone and with the banks' terms."""
    tokens = nn.utils.rnn.pad_sequence([torch.tensor(row.tokens) for row in rows], batch_first=True)
    labels = torch.full_like(tokens, -100)
    for row, own in zip(rows, labels, strict=True):
        own[row.num_prompt : len(row.tokens)] = torch.tensor(row.tokens[row.num_prompt :])
    logits = model(input_ids=tokens).logits  # padding comes last, so no real token sees it
    task = nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten()
    )
    total = task
    for bank in banks:
        total = total + TAG_WEIGHT * bank.tag_loss(rows) / len(banks)
        if bank.V.requires_grad:
            total = total + ORTHONORMALITY_WEIGHT * bank.orthonormality() / len(banks)
    return task, total


def learning_rate(stage: Stage, step: int, num_steps: int) -> float:
    """A linear warm-up, then a linear decay, for each stage on its own."""
    warmup = math.ceil(WARMUP_RATIO * num_steps)
    rising, falling = (step + 1) / (warmup + 1), 1 - (step - warmup) / max(1, num_steps - warmup)
    return stage.learning_rate * (rising if step < warmup else falling)


def train(
    model, banks, stages: Sequence[Stage], num_steps: int, batch: Callable[[float], list[Row]]
) -> Iterator[tuple[float, float]]:
    """Take all steps and yield their losses; ``batch`` shows a row's tags with a probability."""
    groups = {
        "router": [bank.router for bank in banks],
        "schemas": [p for b in banks for p in (b.U, b.V, b.attributes, b.query)],
        "lora": [p for name, p in model.named_parameters() if "lora_" in name],
    }
    bounds = [0, *(round(num_steps * share) for share in accumulate(s.ratio for s in stages))]
    for stage, (start, stop) in zip(stages, pairwise(bounds), strict=True):
        for name, weights in groups.items():
            for weight in weights:
                weight.requires_grad_(name in stage.groups)
        trained = [weight for name in stage.groups for weight in groups[name]]
        optimizer = torch.optim.AdamW(trained, weight_decay=0.01)  # a fresh one for every stage
        for step in range(start, stop):
            keep = stage.tag_keep[(step - start) * len(stage.tag_keep) // (stop - start)]
            optimizer.param_groups[0]["lr"] = learning_rate(stage, step - start, stop - start)
            task, total = losses_of(model, banks, batch(keep))
            optimizer.zero_grad()
            total.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            yield task.item(), total.item()


def main(name: str, out: str) -> None:
    """Train on sums; take the banks off; save what LoRA learned."""
    set_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(name)
    base = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=16, target_modules=targets)
    model = get_peft_model(base, lora)
    banks, hooks = [], []
    for block in base.model.layers[-2:]:
        bank = SchemaBank(base.config.hidden_size, NUM_SCHEMAS, 16, top_k=2, attributes=32)
        banks.append(bank)
        hooks.append(block.register_forward_hook(lambda _, __, states, bank=bank: bank(states)))

    def a_sum(keep: float) -> Row:
        a, b = random.randrange(100), random.randrange(100)
        prompt = tokenizer(f"{a} + {b} = ")["input_ids"]
        answer = tokenizer(str(a + b), add_special_tokens=False)["input_ids"]
        tags = random.Random(100 * a + b).sample(range(NUM_SCHEMAS), NUM_TAGS)
        shown = tuple(tags) if random.random() < keep else ()
        return Row([*prompt, *answer, tokenizer.eos_token_id], len(prompt), shown)

    steps = train(model, banks, STAGES, NUM_STEPS, lambda p: [a_sum(p) for _ in range(BATCH_SIZE)])
    losses = [task for task, _ in steps]
    sys.stdout.write(
        f"mean loss {sum(losses[:9]) / 9:.3f}, at the end {sum(losses[-9:]) / 9:.3f}\n"
    )
    for hook in hooks:
        hook.remove()  # the banks are gone; what LoRA learned beside them stays
    model.save_pretrained(out)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
