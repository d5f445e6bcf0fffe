"""Train a few steps on a file that is larger than memory, and measure what that takes.

    python benchmarks/large_data.py --out results/large_data.json
    python benchmarks/large_data.py --show --out results/large_data.json

A tiny Llama, whose tokens are whole words, trains 20 steps on JSON lines of about four kilobytes,
by the command line and by `Tuner` with a ``datasets.Dataset``, each in a process of its own. The
same is done on a file of 5 MB: what that takes is the program's, the rest is the data's. The rows
have the process's largest resident size, the part of it that is no mapped file, the largest size of
its files without a name in the folder for temporary files, and what it left in the cache of
datasets. Reading takes most of the time. This needs disk for five times the size of the file.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from bench import Row, read_rows
from sourcecode import source_digest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from schemabank.common.cores import given_cores
from schemabank.common.tables import markdown_table
from schemabank.common.writing import write_json

STEPS = 20
SMALL_BYTES = 5 * 10**6
NUM_WORDS = 500, 80  # of a question and an answer: about four kilobytes
MAX_LENGTH = 1024  # tokens
END, OTHER = "<end>", "<other>"
ROWS_AT_ONCE = 1000
SAMPLED_EVERY_S = 0.5
RECORDED_VERSIONS = ("datasets", "numpy", "pyarrow", "schemabank", "torch", "transformers")
COLUMNS = ("question", "answer")
CONFIG = {
    "arm": "lora",
    "model": {"dtype": "float32"},
    "task": {"name": "records", "prompt": "{question}\n", "max_length": MAX_LENGTH},
    "train": {"max_steps": STEPS},
    "eval": {"limit": 8, "max_new_tokens": 8},
}
PROGRAM = f"""
import sys
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
import schemabank as sb

name, file, out = sys.argv[1:]
model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
rows = Dataset.from_json(file).rename_columns({{"question": "prompt", "answer": "completion"}})
settings = {{"train": {{"max_steps": {STEPS}}}, "task": {{"max_length": {MAX_LENGTH}}}}}
tuner = sb.Tuner(model, tokenizer, sb.RunConfig(arm="lora", **settings))
tuner.train(rows)
tuner.save_pretrained(out)
"""
COMMAND = "from schemabank.cli import main; main()"


def main() -> None:
    """Measure, print a table and write the rows."""
    arguments = _arguments()
    if not arguments.show:
        old = read_rows(arguments.out) if Path(arguments.out).exists() else []
        rows: list[Row] = [row for row in old if row["by"] not in arguments.by]
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            for row in measured(Path(folder), int(arguments.gb * 1e9), arguments.by):
                rows.append(row)
                write_json(Path(arguments.out), rows)
    print("\n".join(table(read_rows(arguments.out))))  # noqa: T201 -- this is a script


def measured(folder: Path, num_bytes: int, ways: Sequence[str]) -> Iterator[Row]:
    """Train on a small and a large file, in a folder for everything that is written."""
    _write_model(folder / "model")
    for size in (SMALL_BYTES, num_bytes):
        file = folder / "rows.jsonl"
        num_rows = write_rows(file, size)
        for by in ways:
            yield {
                "by": by,
                "rows": num_rows,
                "file_gb": round(file.stat().st_size / 1e9, 3),
                **_taken(folder, by, file),
                "steps": STEPS,
                "cores": given_cores(),
                "versions": {name: version(name) for name in RECORDED_VERSIONS},
                "date": datetime.now(UTC).date().isoformat(),
                "source": source_digest(),
            }


def write_rows(path: Path, num_bytes: int) -> int:
    """Write rows of random words until the file has a size, and return how many there are."""
    rng = np.random.default_rng(0)
    words = _words()
    written = 0
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < num_bytes:
            drawn = words[rng.integers(len(words), size=(ROWS_AT_ONCE, sum(NUM_WORDS)))]
            for index, row in enumerate(drawn.tolist(), written):
                texts = f"{index} {' '.join(row[: NUM_WORDS[0]])}", " ".join(row[NUM_WORDS[0] :])
                file.write(json.dumps(dict(zip(COLUMNS, texts, strict=True))) + "\n")
            written += ROWS_AT_ONCE
    return written


def table(rows: Sequence[Row]) -> list[str]:
    """Rows as lines of Markdown."""
    head = ["by", "file", "rows", "memory", "no mapped file", "temporary files", "cache", "time"]
    return markdown_table(
        head,
        [
            [
                str(row["by"]),
                f"{row['file_gb']:g} GB",
                f"{row['rows']:,}",
                *(
                    f"{row[name]:.2f} GiB"
                    for name in ("memory_gib", "unmapped_gib", "temporary_gib", "cache_gib")
                ),
                _duration(float(row["wall_s"])),
            ]
            for row in rows
        ],
    )


def _duration(seconds: float) -> str:
    """In minutes where there are two or more."""
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def _words() -> np.ndarray:
    """The words of our own pages, which a tokenizer cuts as it does other English."""
    pages = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
    found = {word for page in pages for word in page.read_text(encoding="utf-8").split()}
    return np.array(sorted(word for word in found if word.isalpha()), dtype=object)


def _write_model(folder: Path) -> None:
    words = [*_words(), *map(str, range(10))]
    known = [END, OTHER, "\n", " ", *words, *(f" {word}" for word in words)]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token=OTHER))
    # A blank belongs to the word behind it, so that texts come back as they were.
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[0-9]| ?[^\s0-9]+|\s"), "isolated")
    made.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, unk_token=OTHER)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    size |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = LlamaConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **size)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _taken(folder: Path, by: str, file: Path) -> Row:
    """What one process takes; what it leaves is deleted."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        place = Path(scratch)
        command = _command(place, by, folder / "model", file)
        (place / "tmp").mkdir()
        environment = {"TMPDIR": str(place / "tmp"), "HF_HOME": str(place / "cache")}
        taken = _timed(command, {**os.environ, **environment, "HF_HUB_OFFLINE": "1"})
        return {**taken, "cache_gib": round(_on_disk(place / "cache") / 2**30, 2)}


def _command(place: Path, by: str, model: Path, file: Path) -> list[str]:
    if by == "Tuner":
        return ["-c", PROGRAM, str(model), str(file), str(place / "adapter")]
    settings = {**CONFIG, "model": {**CONFIG["model"], "name": str(model)}}
    settings["task"] = {**CONFIG["task"], "records": {"path": str(file)}}
    (place / "config.yaml").write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    return ["-c", COMMAND, "train", str(place / "config.yaml"), "--out", str(place / "runs")]


def _timed(command: Sequence[str], environment: Mapping[str, str]) -> Row:
    """Run Python and watch it; sizes in GiB."""
    began = time.perf_counter()
    process = os.posix_spawn(sys.executable, [sys.executable, *command], environment)
    resident = anonymous = temporary = 0
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            break
        # What `wait4` tells begins with the size of the process that started this one.
        resident = max(resident, _status(process, "VmHWM"))
        anonymous = max(anonymous, _status(process, "RssAnon"))
        temporary = max(temporary, _without_name(process))
        time.sleep(SAMPLED_EVERY_S)
    if status:
        sys.exit(f"python {' '.join(command)}: status {os.waitstatus_to_exitcode(status)}")
    return {
        "memory_gib": round(resident / 2**30, 2),
        "unmapped_gib": round(anonymous / 2**30, 2),
        "temporary_gib": round(temporary / 2**30, 2),
        "wall_s": round(time.perf_counter() - began),
    }


def _status(process: int, name: str) -> int:
    """Bytes as Linux tells them of a process.

    ``VmHWM`` is the most that was resident so far. ``RssAnon`` is resident and no mapped file's, so
    that the system cannot take it back.
    """
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _without_name(process: int) -> int:
    """Bytes on disk of the files that a process has open, and that have no name any more."""
    found = 0
    for handle in Path(f"/proc/{process}/fd").iterdir():
        try:
            if str(handle.readlink()).endswith("(deleted)"):
                found += handle.stat().st_blocks * 512
        except FileNotFoundError:  # closed meanwhile
            continue
    return found


def _on_disk(folder: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    ways = ["schemabank train", "Tuner"]
    parser.add_argument("--by", nargs="*", default=ways, choices=ways)
    parser.add_argument("--gb", type=float, default=5.0, help="size of the large file")
    parser.add_argument("--folder", help="on a disk with room; the usual one for temporary files")
    parser.add_argument("--show", action="store_true", help="only print --out as a table")
    parser.add_argument("--out", required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
