"""An adapter that SchemaBank trained, in stock PEFT: load it, complete a prompt, merge it.

    python examples/use_adapter.py MODEL ADAPTER PROMPT MERGED

SchemaBank need not be installed where an adapter is used.
"""

import sys

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(name: str, adapter: str, prompt: str, merged: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(name), adapter)
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    completion = output[0, inputs["input_ids"].shape[1] :]
    sys.stdout.write(tokenizer.decode(completion, skip_special_tokens=True) + "\n")
    model.merge_and_unload().save_pretrained(merged)  # a plain model, as fast as the base model
    tokenizer.save_pretrained(merged)


if __name__ == "__main__":
    main(*sys.argv[1:])
