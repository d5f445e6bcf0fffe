"""What a folder of runs must look like after a fault: old or new, and whole."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from faults.world import RUNS, Undisturbed, contents, sha256

MOST_KEPT = 2  # checkpoints of a run
TRAINED = -1  # in place of a number of steps
UNTIL_FINISHED = (
    "trained",
    "checkpoints",
    "answers",
)  # folders that the next call removes at the latest


@dataclass(frozen=True)
class Looks:
    """Looks at a folder of runs.

    Attributes:
        place: the watched folder.
        target: what the program writes in it.
        whole: what it comes to undisturbed.
    """

    place: Path
    target: str
    whole: Undisturbed

    def half_written(self) -> Iterator[str]:
        """Say what has its name and is not whole, or is another: runs and checkpoints."""
        yield from self.runs_half_written()
        for folder in self._folders():
            for step in _to_be_whole(folder):
                digest = sha256(folder / "checkpoints" / f"step-{step}" / "weights.safetensors")
                if digest != self.whole.saves.get((run_name(folder), step)):
                    yield f"{folder.name}: the tensors of step {step} are others"

    def runs_half_written(self) -> Iterator[str]:
        """Say which runs have their names and are not whole, or are others."""
        now, then = self._files_by_run(contents(self.place)), self._files_by_run(self.whole.files)
        for folder in self._folders():
            own = {
                name: digest
                for name, digest in now.get(folder.name, {}).items()
                if not {*Path(name).parts} & {*UNTIL_FINISHED}
            }
            if not folder.name.startswith(".") and own != then.get(folder.name):
                yield f"{folder.name} has its name and is not whole"

    def _files_by_run(self, files: Mapping[str, str]) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = {}
        for name, digest in files.items():
            top, _, path = name.removeprefix(f"{self.target}/").partition("/")
            found.setdefault(top, {})[path] = digest
        return found

    def kept(self) -> dict[str, int]:
        """After how many steps each run goes on, or :data:`TRAINED`."""
        return {
            run_name(folder): TRAINED
            if not folder.name.startswith(".") or (folder / "trained").is_dir()
            else max(checkpoints_in(folder), default=0)
            for folder in self._folders()
        }

    def differences(self) -> Iterator[str]:
        """Say in what it is another than undisturbed."""
        now = contents(self.place)
        for name in sorted(now.keys() | self.whole.files.keys()):
            if name not in self.whole.files:
                yield f"{name} is left over"
            elif now.get(name) != self.whole.files[name]:
                yield f"{name} {'differs' if name in now else 'is missing'}"

    def _folders(self) -> list[Path]:
        """The folders of runs, without those that were put aside."""
        top = self.place / RUNS
        found = [path for path in sorted(top.iterdir()) if path.is_dir()] if top.is_dir() else []
        return [path for path in found if ".unfinished-" not in path.name]


def checkpoints_in(folder: Path) -> list[int]:
    """The steps of a run's checkpoints that have their names."""
    top = folder / "checkpoints"
    names = [path.name for path in top.iterdir()] if top.is_dir() else []
    return [int(name.removeprefix("step-")) for name in names if name.startswith("step-")]


def _to_be_whole(folder: Path) -> list[int]:
    """The steps of the checkpoints that the next call may need; the others may be half removed."""
    is_over = not folder.name.startswith(".") or (folder / "trained").is_dir()
    return [] if is_over else sorted(checkpoints_in(folder))[-MOST_KEPT:]


def run_name(folder: Path) -> str:
    """The run's name by the folder in which it trains, or that it ends as."""
    return folder.name.removeprefix(".").removesuffix(".partial")
