"""An adapter that SchemaBank trained, in stock PEFT: load it, complete a prompt, merge it.

    python examples/use_adapter.py MODEL ADAPTER PROMPT MERGED

SchemaBank need not be installed to use an adapter. `schemabank export RUN --merge` merges an
adapter too, and checks what it wrote.
"""

import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(name: str, adapter: str, prompt: str, merged: str) -> None:
    """Print a completion, and save a model that needs no PEFT."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    # In bfloat16, merging would round the adapter's small changes away.
    base = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter)
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    completion = output[0, inputs["input_ids"].shape[1] :]
    sys.stdout.write(tokenizer.decode(completion, skip_special_tokens=True) + "\n")
    model.merge_and_unload().save_pretrained(merged)
    tokenizer.save_pretrained(merged)


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
