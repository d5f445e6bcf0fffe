"""A run's score of every item as one small file, so that thousands of runs are read in seconds.

What a model wrote stands in ``predictions.jsonl``; this file holds only what statistics need.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from schemabank.common.errors import InputError
from schemabank.common.files import check_regular, json_lines, parse_json
from schemabank.common.writing import writing_tensors
from schemabank.runs.folder import PREDICTIONS

SCORES = "scores.safetensors"
DAMAGED = (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError)


@dataclass(frozen=True)
class ItemScores:
    """The primary score of every item, in the order of the evaluation.

    Attributes:
        digest: of the items' ids, groups and clusters in their order; equal for equal items.
        groups: names of the parts of the split.
        group: (num_items) index of each item's group.
        cluster: (num_items) number of what each item was drawn with, from 0; items that were drawn
            alone have one of their own.
        scores: (num_items) mean over the item's completions, in [0, 1].
    """

    digest: str
    groups: tuple[str, ...]
    group: npt.NDArray[np.int32]
    cluster: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]], score: str) -> "ItemScores":
        """Collect the score of that name from rows of ``predictions.jsonl``."""
        own: dict[str, list[float]] = {}
        places: dict[str, tuple[str, str]] = {}
        for row in rows:
            own.setdefault(row["id"], []).append(row["scores"][score])
            places.setdefault(row["id"], (row["group"], row["cluster"] or row["id"]))
        groups = list(dict.fromkeys(group for group, _ in places.values()))
        clusters = {name: n for n, name in enumerate(dict.fromkeys(c for _, c in places.values()))}
        said = json.dumps([[name, *place] for name, place in places.items()])
        return cls(
            digest=hashlib.sha256(said.encode()).hexdigest(),
            groups=tuple(groups),
            group=np.array([groups.index(g) for g, _ in places.values()], np.int32),
            cluster=np.array([clusters[c] for _, c in places.values()], np.int32),
            scores=np.array([sum(found) / len(found) for found in own.values()], np.float32),
        )

    def within(self, group: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        """Return the scores and clusters of one group's items."""
        chosen = self.group == self.groups.index(group)
        return self.scores[chosen], self.cluster[chosen]


def save_item_scores(folder: Path, rows: Sequence[Mapping[str, Any]], score: str) -> None:
    """Write a run's scores beside its predictions."""
    found = ItemScores.of(rows, score)
    arrays = {"group": found.group, "cluster": found.cluster, "scores": found.scores}
    # One entry: several come in any order, and the file shall have the same bytes every time.
    about = {"digest": found.digest, "groups": found.groups, "score": score}
    with writing_tensors(folder / SCORES) as path:
        save_file(arrays, path, metadata={"about": json.dumps(about)})


def load_item_scores(folder: Path, score: str) -> ItemScores:
    """Read a run's scores; those of a run without the file come from its predictions.

    Raises:
        InputError: neither file can be read, or they hold another score.
    """
    try:
        held, found = _read_scores(folder, score)
    except InputError:  # a ValueError, which says what to do already
        raise
    except (*DAMAGED, OSError) as error:
        raise InputError(
            f"cannot read the items' scores in {str(folder)!r} ({error!r}): restore the run, or "
            "move its folder away"
        ) from error
    if held != score:
        raise InputError(
            f"{str(folder / SCORES)!r} holds the score {held!r}, but {score!r} is compared: report "
            "runs of one metric"
        )
    return found


def digest_without_clusters(folder: Path, score: str) -> str | None:
    """Return the digest that a run's items would have if each had been drawn alone.

    It is ``None`` where no predictions tell it: a packed run has none.
    """
    try:
        rows = ({**row, "cluster": ""} for _, row in json_lines(folder / PREDICTIONS))
        return ItemScores.of(rows, score).digest
    except (*DAMAGED, OSError):
        return None


def _read_scores(folder: Path, score: str) -> tuple[str, ItemScores]:
    """The scores of a run, and the name of the score that they are."""
    if not (folder / SCORES).exists():
        if not (folder / PREDICTIONS).exists():
            raise InputError(
                f"{folder / PREDICTIONS} does not exist, nor does {SCORES}, so the scores of its "
                "items are not known: restore one of the files, or move the run's folder away"
            )
        found = ItemScores.of((row for _, row in json_lines(folder / PREDICTIONS)), score)
        _check_arrays(found)
        return score, found
    check_regular(folder / SCORES)
    with safe_open(folder / SCORES, "np") as file:
        about: Any = parse_json((file.metadata() or {})["about"], str(folder / SCORES))
        found = ItemScores(
            digest=about["digest"],
            groups=tuple(about["groups"]),
            group=file.get_tensor("group"),
            cluster=file.get_tensor("cluster"),
            scores=file.get_tensor("scores"),
        )
    _check_arrays(found)
    return str(about["score"]), found


def _check_arrays(found: ItemScores) -> None:
    """Refuse arrays that are not one score, one group and one cluster an item."""
    shapes = {array.shape for array in (found.group, found.cluster, found.scores)}
    kinds = [array.dtype.kind for array in (found.group, found.cluster, found.scores)]
    if len(shapes) != 1 or found.scores.ndim != 1 or kinds != ["i", "i", "f"]:
        raise ValueError(f"arrays of shapes {shapes} and kinds {kinds}")
    if not all(isinstance(name, str) for name in (found.digest, *found.groups)):
        raise ValueError("names that are no text")
    if not len(found.scores) or not np.isfinite(found.scores).all():
        raise ValueError("scores that are missing or not finite")
    if found.group.min() < 0 or found.group.max() >= len(found.groups):
        raise ValueError("an item of a group that is not there")
