"""LoRA on a Parquet file of pairs: python examples/own_parquet.py MODEL PAIRS.parquet OUT."""

import sys

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

import schemabank as sb

if len(sys.argv) != 4:
    sys.exit(__doc__)
name, pairs, out = sys.argv[1:]
model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
tuner = sb.Tuner(model, tokenizer, sb.RunConfig(arm="lora"))
tuner.train(Dataset.from_parquet(pairs))  # its columns are prompt and completion, as TRL has them
tuner.save_pretrained(out)
