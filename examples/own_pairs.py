"""LoRA on your own model and pairs, with the curriculum and without it.

    python examples/own_pairs.py MODEL PAIRS.jsonl OUT

PAIRS.jsonl has the columns `prompt` and `completion`. OUT/lora and OUT/schemabank each get an
adapter for peft.PeftModel.from_pretrained; examples/use_adapter.py shows how to use it.
"""

import json
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import schemabank as sb


def main(name: str, pairs: str, out: str) -> None:
    """Train both arms at once, on the same model."""
    Path(out).mkdir(parents=True)  # if it exists, fail now and not after training
    lines = Path(pairs).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    model = AutoModelForCausalLM.from_pretrained(name)
    tokenizer = AutoTokenizer.from_pretrained(name)
    runs = {
        arm: sb.RunConfig(arm=arm, seed=1, train=sb.TrainSettings(num_train_epochs=2))
        for arm in ("lora", "schemabank")
    }
    for arm, result in sb.train_cohort(model, tokenizer, runs, rows, slots=2).items():
        if result.failure is not None:
            sys.exit(f"{arm}: {result.failure}")
        result.save_pretrained(Path(out) / arm)
        steps = result.steps
        sys.stdout.write(f"{arm}: {len(steps)} steps, last loss {steps[-1].loss:.3f}\n")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
