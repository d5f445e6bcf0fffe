"""A small comparison of two arms on your own data, from Python.

    python examples/compare.py MODEL ROWS.jsonl OUT

This program writes a suite file, trains it with `schemabank suite` and judges it with `schemabank
report`. Called again, it goes on where it stopped. ROWS.jsonl has the columns `question` and
`answer`; an answer has at most 16 tokens. Two seeds and untuned learning rates are too little for a
verdict, as the warnings say. docs/suites.md shows suites with more seeds and tuned rates.
"""

import json
import subprocess
import sys
from pathlib import Path

import yaml

COMMAND = Path(sys.executable).with_name("schemabank")
SOME_FAILED = 3  # exit code: some runs failed or are in doubt; the report names them


def main(name: str, rows: str, out: str) -> None:
    """Train, judge, and print the scores, the verdict and the warnings."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    suite = {
        "defaults": {
            "model": {"name": name},
            "task": {
                "name": "records",
                "prompt": "{question}\n",
                "metric": "exact_match",
                "records": {"path": rows, "target": "{answer}"},
            },
            "train": {"num_train_epochs": 1},
            "eval": {"split": "test", "max_new_tokens": 16},
        },
        "arms": {"untouched": {"arm": "base"}, "lora": {}, "schemabank": {}},
        "seeds": [1, 2],
        "contrast": {"treatment": "schemabank", "control": "lora"},
    }
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite, sort_keys=False), encoding="utf-8")
    runs = str(folder / "runs")
    schemabank("suite", str(folder / "suite.yaml"), "--out", runs)
    found = json.loads(schemabank("report", runs, "--json"))
    scores = {own["arm"]: own["score"] for own in found["references"]}
    scores |= {own["arm"]: own["summary"]["mean"] for own in found["arms"]}
    for arm, score in scores.items():
        sys.stdout.write(f"{arm}: {100 * score:.1f} %\n")
    sys.stdout.write(f"schemabank against lora: {found['primary']['verdict']['outcome']}\n")
    for warning in found["warnings"]:
        sys.stdout.write(f"- {warning['sentence']}\n")


def schemabank(*arguments: str) -> str:
    """Call the command line; an error ends this program with its message."""
    done = subprocess.run([COMMAND, *arguments], check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, SOME_FAILED):
        sys.exit(done.returncode)
    return done.stdout


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
