"""LoRA on a CSV file of questions and answers: python examples/own_csv.py MODEL ANSWERS.csv OUT."""

import csv
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import schemabank as sb

name, file, out = sys.argv[1:] if len(sys.argv) == 4 else sys.exit(__doc__)
model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
with Path(file).open(encoding="utf-8", newline="") as rows:
    found = [(f"Q: {row['question']}\nA: ", row["answer"]) for row in csv.DictReader(rows)]
tuner = sb.Tuner(model, tokenizer, sb.RunConfig(arm="lora"))
tuner.train(found)
tuner.save_pretrained(out)
