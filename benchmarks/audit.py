"""Ask a source of advisories whether faults are known in the packages of constraints.txt.

    python benchmarks/audit.py
    python benchmarks/audit.py --service osv --ignore GHSA-xxxx-xxxx-xxxx

`make audit`, which gives it an environment of its own with pip-audit. It ends with 0 if nothing is
known, with 1 if something is, and with 2 if not all could be asked. Some mirrors of PyPI answer,
but have no advisories. pip-audit takes that for good news, so a version with old, well-known faults
is asked about first.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PINS = Path(__file__).parents[1] / "constraints.txt"
FAULTY = "pyyaml==5.3"  # CVE-2020-1747 and CVE-2020-14343: it ran code that was in a file
WHERE = {"pypi": "https://pypi.org", "osv": "https://api.osv.dev"}
FOUND, NOT_ASKED = 1, 2


class NotAskedError(Exception):
    """The source gave no answer that can be believed."""


def main() -> None:
    """Ask, say what is known, and end with what that means."""
    arguments = _arguments()
    try:
        check_source(arguments.service)
        answers = asked(arguments.pins, arguments.service, ignore=arguments.ignore)
    except NotAskedError as error:
        _say(
            f"not audited: {error}. Run it where {WHERE[arguments.service]} can be reached, or "
            f"choose --service: allowed are {', '.join(WHERE)}"
        )
        sys.exit(0 if arguments.if_reachable else NOT_ASKED)
    faults, unknown = known_faults(answers), not_asked(answers)
    _say(*faults, *unknown)
    _say(f"{len(answers)} packages: {len(faults)} known faults, {len(unknown)} not audited")
    sys.exit(FOUND if faults else NOT_ASKED if unknown else 0)


def check_source(service: str) -> None:
    """Find out whether a source has advisories at all.

    Raises:
        NotAskedError: it cannot be reached, or has none.
    """
    with tempfile.TemporaryDirectory() as scratch:
        faulty = Path(scratch, "faulty.txt")
        faulty.write_text(f"{FAULTY}\n", encoding="utf-8")
        answers = asked(faulty, service)
    if not known_faults(answers):
        raise NotAskedError(f"{service!r} has no advisories, it knows no fault of {FAULTY}")


def asked(pins: Path, service: str, *, ignore: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return what a source says of every pinned package.

    Raises:
        NotAskedError: pip-audit ended without an answer.
    """
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(pins), "--no-deps"]
    command += ["--disable-pip", "--format=json", "--progress-spinner=off"]
    command += ["--vulnerability-service", service, *(f"--ignore-vuln={name}" for name in ignore)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        answers: list[dict[str, Any]] = json.loads(ended.stdout)["dependencies"]
    except ValueError as error:
        said = ended.stderr.strip().rpartition("\n")[2]
        raise NotAskedError(f"{service!r} gave no answer ({said})") from error
    return answers


def known_faults(answers: Sequence[dict[str, Any]]) -> list[str]:
    """One line for every advisory: the package, the advisory's names, and where it is mended."""
    return [
        f"{one['name']} {one['version']}: {', '.join([fault['id'], *fault.get('aliases', ())])}, "
        f"mended in {', '.join(fault['fix_versions']) or 'no version yet'}"
        for one in answers
        for fault in one.get("vulns", ())
    ]


def not_asked(answers: Sequence[dict[str, Any]]) -> list[str]:
    """One line for every package about which the source says nothing."""
    return [
        f"{one['name']}: not audited, {one['skip_reason']}"
        for one in answers
        if "skip_reason" in one
    ]


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--service", choices=WHERE, default="pypi", help="source of advisories")
    parser.add_argument("--ignore", action="append", default=[], metavar="ID", help="an advisory")
    parser.add_argument("--pins", type=Path, default=PINS, help="file of pinned versions")
    parser.add_argument(
        "--if-reachable",
        action="store_true",
        help="end with 0 where the source has no answer, and say that nothing was audited",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
