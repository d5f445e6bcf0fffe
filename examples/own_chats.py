"""LoRA on your own chats: python examples/own_chats.py MODEL CHATS.jsonl OUT."""

import sys

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

import schemabank as sb

if len(sys.argv) != 4:
    sys.exit(__doc__)
name, chats, out = sys.argv[1:]
model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
tuner = sb.Tuner(model, tokenizer, sb.RunConfig(arm="lora"))
tuner.train(Dataset.from_json(chats))
tuner.save_pretrained(out)
