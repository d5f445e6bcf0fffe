"""Answer a run's prompts with llama.cpp, and count which completions are those of the run.

    python benchmarks/llamacpp.py RUN --source DIR --program FILE --base DIR --gguf FILE
    python benchmarks/llamacpp.py --show results/llama_cpp.json

It does what docs/howto/llama-cpp.md says: it merges and converts the model, and converts the
adapter for a folder and a GGUF file of the base model. Every prompt of the run's predictions is
then completed, greedily. RUN must have been trained without a chat template, and evaluated with
temperature 0; ``--answers`` names another evaluation of it. ``--write`` keeps a record.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from schemabank.common.tables import markdown_table
from schemabank.common.writing import write_json

END = " [end of text]"  # llama.cpp's own words behind a completion that ended by itself
Weights = Mapping[str, Sequence[str]]


def main() -> None:
    """Convert, complete, count, and say it."""
    arguments = _arguments()
    if arguments.show:
        _say("\n".join(table(json.loads(arguments.show.read_text(encoding="utf-8")))))
        return
    answers = read_answers(arguments.answers or arguments.run)
    with tempfile.TemporaryDirectory() as scratch:
        rows = [
            {"weights": name, "same": same(arguments.program, options, answers)}
            for name, options in converted(arguments, Path(scratch)).items()
        ]
    record = {"program": arguments.name, "items": len(answers), "rows": rows}
    _say("\n".join(table(record)))
    if arguments.write:
        write_json(arguments.write, record)


def table(record: Mapping[str, Any]) -> list[str]:
    """The record as lines of Markdown."""
    of = record["items"]
    rows = [[row["weights"], f"{row['same']} of {of}"] for row in record["rows"]]
    return markdown_table(["weights", "same completions"], rows)


def read_answers(folder: Path) -> dict[str, str]:
    """Return what a run completed, by the prompt.

    Raises:
        SystemExit: its completions were sampled, so that no other program can repeat them.
    """
    settings = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    if settings["temperature"]:
        sys.exit(f"{folder}: eval.temperature is {settings['temperature']}: evaluate it with 0")
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["prompt"]: row["completion"] for row in map(json.loads, lines)}


def converted(arguments: argparse.Namespace, place: Path) -> Weights:
    """Return what llama.cpp is told to load, by what it is."""
    merged = place / "merged"
    schemabank = [sys.executable, "-m", "schemabank", "export", str(arguments.run)]
    _run([*schemabank, "--out", str(merged), "--merge"])

    def convert(script: str, source: Path, name: str, *options: str) -> str:
        made = str(place / f"{name}.gguf")
        program = [sys.executable, str(arguments.source / f"convert_{script}_to_gguf.py")]
        _run([*program, str(source), "--outfile", made, *options])
        return made

    adapter = convert("lora", arguments.run / "adapter", "adapter", "--base", str(arguments.base))
    base = convert("hf", arguments.base, "base", "--outtype", "f32")
    return {
        "merged, 32 bits": ["-m", convert("hf", merged, "merged32", "--outtype", "f32")],
        "merged, 16 bits": ["-m", convert("hf", merged, "merged16")],
        "base model, 32 bits, and adapter": ["-m", base, "--lora", adapter],
        f"{arguments.gguf.name} and adapter": ["-m", str(arguments.gguf), "--lora", adapter],
        "base model, 32 bits, alone": ["-m", base],
    }


def same(program: Path, weights: Sequence[str], answers: Mapping[str, str]) -> int:
    """Count the prompts that llama.cpp completes as the run did."""
    longest = str(max(map(len, answers.values())))  # no fewer characters than tokens
    options = ["-no-cnv", "--no-escape", "--no-display-prompt", "--temp", "0", "-n", longest]
    options += ["--threads", "1"]  # more of them wait for each other where cores are shared
    found = 0
    for prompt, completion in answers.items():
        said = _run([str(program), *weights, *options, "-p", prompt])
        found += said.rstrip("\n").removesuffix(END) == completion
    return found


def _run(command: Sequence[str]) -> str:
    """Run a program and return what it printed."""
    ended = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        sys.exit(f"{command[0]} ended with {ended.returncode}: {ended.stderr}")
    return ended.stdout


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, nargs="?", help="folder of a finished run")
    parser.add_argument("--answers", type=Path, metavar="FOLDER", help="of another evaluation")
    parser.add_argument("--source", type=Path, help="llama.cpp's source tree")
    parser.add_argument("--program", type=Path, help="llama-completion")
    parser.add_argument("--base", type=Path, help="folder of the base model that was trained on")
    parser.add_argument("--gguf", type=Path, help="the base model as a GGUF file")
    parser.add_argument("--name", default="llama.cpp", help="which llama.cpp it is, for the record")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the record")
    parser.add_argument("--show", type=Path, metavar="FILE", help="only print a record's table")
    return parser.parse_args()


if __name__ == "__main__":
    main()
