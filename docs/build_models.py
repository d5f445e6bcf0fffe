"""Try every architecture and write the table of docs/models.md: python docs/build_models.py."""

import sys
import tempfile
import warnings
from pathlib import Path

TESTS = Path(__file__).parent.parent / "tests"


def main() -> None:
    """Try all, which takes two minutes, and write the page."""
    sys.path.insert(0, str(TESTS))
    from architectures import NAMES  # noqa: PLC0415 -- the tests' own models
    from trials import END, PAGE, START, table, tried  # noqa: PLC0415

    # PEFT 0.21 asks transformers 5.23 for a property by its deprecated name.
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
    trials = []
    for name in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            trials.append(tried(name, Path(folder)))
        sys.stdout.write(" | ".join(trials[-1].cells) + "\n")
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(START)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{START}\n{table(trials)}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
