"""Pack a suite's runs into one small file: all that a report computes with, and no weights.

    python benchmarks/pack_runs.py runs/SUITE results/suites/SUITE.tar.xz

Logs and completions stay behind; every item's score is kept, and what their teachers cost. The same
runs give the same bytes.
``tar xf`` unpacks the file, and ``schemabank report`` reads what was packed.
"""

import argparse
import io
import json
import lzma
import tarfile
from pathlib import Path

from schemabank.runs.distill import TEACHERS
from schemabank.runs.folder import CONFIG, COST, FAILURE, RESULT, SUITE
from schemabank.runs.itemscores import SCORES

KEPT = (CONFIG, RESULT, COST, SCORES, FAILURE)


def main() -> None:
    """Pack the runs named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path, help="folder of a suite's runs")
    parser.add_argument("file", type=Path, help="file to write")
    parser.add_argument("--device", help="of costs that do not name theirs, as before 2026-11-26")
    arguments = parser.parse_args()
    arguments.file.parent.mkdir(parents=True, exist_ok=True)
    content = packed(arguments.runs, device=arguments.device)
    arguments.file.write_bytes(lzma.compress(content, preset=9))


def _kept_files(runs: Path) -> list[Path]:
    """Return the suite's own file, and those of finished and failed runs, in their order."""
    places = (runs, runs / TEACHERS)
    found = (file for place in places for name in KEPT for file in place.glob(f"*/{name}"))
    return [runs / SUITE, *sorted(file for file in found if not file.parent.name.startswith("."))]


def packed(runs: Path, *, device: str | None = None) -> bytes:
    """Return an archive of what is kept, under the name of the runs' folder.

    Args:
        runs: folder of a suite's runs.
        device: what costs name that do not name theirs.
    """
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for file in _kept_files(runs):
            # Without times and owners, so that the same runs give the same bytes.
            entry = tarfile.TarInfo(f"{runs.name}/{file.relative_to(runs)}")
            content = file.read_bytes()
            if file.name == COST and device is not None:
                content = json.dumps({"device": device, **json.loads(content)}, indent=2).encode()
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return written.getvalue()


if __name__ == "__main__":
    main()
