"""A fair comparison of two arms on your own data, from Python.

    python examples/compare.py MODEL ROWS.jsonl OUT

writes a suite file, has `schemabank suite` train it and `schemabank report` judge it. ROWS.jsonl
has the columns `question` and `answer`. Give real comparisons at least six seeds, and learning
rates by `tune`: docs/suites.md.
"""

import json
import subprocess
import sys
from pathlib import Path

import yaml


def main(name: str, rows: str, out: str) -> None:
    folder = Path(out)
    folder.mkdir(parents=True)
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
            "eval": {"split": "test", "max_new_tokens": 8},
        },
        "arms": {"untouched": {"arm": "base"}, "lora": {}, "schemabank": {}},
        "seeds": [1, 2],
        "contrast": {"treatment": "schemabank", "control": "lora"},
    }
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite, sort_keys=False), encoding="utf-8")
    runs = str(folder / "runs")
    schemabank("suite", str(folder / "suite.yaml"), "--out", runs)
    found = json.loads(schemabank("report", runs, "--json"))
    means = {own["arm"]: own["summary"]["mean"] for own in found["arms"]}
    for arm, mean in means.items():
        sys.stdout.write(f"{arm}: {100 * mean:.1f} %\n")
    sys.stdout.write(f"schemabank against lora: {found['primary']['verdict']['outcome']}\n")


def schemabank(*arguments: str) -> str:
    """Call the command line; an error ends this program with its sentence."""
    done = subprocess.run(
        ["schemabank", *arguments], check=False, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


if __name__ == "__main__":
    main(*sys.argv[1:])
