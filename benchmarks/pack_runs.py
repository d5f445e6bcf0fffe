"""Pack a suite's runs into one small file: all that a report computes with, and no weights.

    python benchmarks/pack_runs.py runs/SUITE results/suites/SUITE.tar.xz

Logs and completions stay behind; every item's score is kept. The same runs give the same bytes.
``tar xf`` unpacks the file, and ``schemabank report`` reads what was packed.
"""

import argparse
import io
import json
import lzma
import tarfile
from pathlib import Path

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
    files = [arguments.runs / SUITE, *kept_files(arguments.runs)]
    packed = _tar(arguments.runs, files, device=arguments.device)
    arguments.file.parent.mkdir(parents=True, exist_ok=True)
    arguments.file.write_bytes(lzma.compress(packed, preset=9))


def kept_files(runs: Path) -> list[Path]:
    """Return the files of finished and failed runs that are kept, in their order."""
    return sorted(
        file
        for name in KEPT
        for file in runs.glob(f"*/{name}")
        if not file.parent.name.startswith(".")
    )


def _tar(runs: Path, files: list[Path], *, device: str | None) -> bytes:
    """An archive of files under the name of the runs' folder, without times and owners."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for file in files:
            entry = tarfile.TarInfo(f"{runs.name}/{file.relative_to(runs)}")
            content = file.read_bytes()
            if file.name == COST and device is not None:
                content = json.dumps({"device": device, **json.loads(content)}, indent=2).encode()
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


if __name__ == "__main__":
    main()
