"""Taggers, which tell the router early in training which schemas an example belongs to.

A tagger maps an example to distinct schema ids, the best one first. All taggers but the random one
depend on the example alone. They hash with hashlib, because Python's own ``hash()`` changes from
process to process. For hashed routing as a control see Hash Layers (arXiv 2106.04426).
"""

import hashlib
import itertools
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.cluster.vq import kmeans2

from schemabank.common.errors import InputError, did_you_mean
from schemabank.tasks.base import Example

# The words that name each operation: whole words, in upper or lower case. A percent sign is read as
# "percent".
OPERATION_KEYWORDS: Mapping[str, str] = {
    "addition": r"total|altogether|in all|sum|combined|together|plus|add|adds|added|more",
    "subtraction": r"left|remain|remains|remaining|fewer|less|minus|difference|lost|gave|spent",
    "multiplication": r"each|every|per|times|twice|double|doubled|triple|tripled",
    "division": r"split|splits|divide|divides|divided|share|shares|shared|evenly|equally|average",
    "fraction": r"half|halves|third|thirds|quarter|quarters|fraction|\d+/\d+",
    "percentage": r"percent|percentage",
}
NO_OPERATION = "none"

NUM_RESTARTS = 3  # starts of k-means, of which the best result counts
NUM_ITERATIONS = 25

Floats = npt.NDArray[np.float64]


class Tagger(Protocol):
    """Maps an example to distinct schema ids."""

    def __call__(self, example: Example, *, rng: np.random.Generator) -> tuple[int, ...]:
        """Return the example's tags; only a random tagger draws from ``rng``."""
        ...


def hash_tagger(*, num_schemas: int, num_tags: int) -> Tagger:
    """Tag by a hash of the question's text: equal questions have equal tags."""
    _check_numbers(num_schemas, num_tags)
    return _first_distinct(lambda e: _hashed_schemas(e.question, num_schemas), num_tags)


def content_tagger(*, num_schemas: int, num_tags: int) -> Tagger:
    """Tag by the operations that the question names, in the order of their first mention.

    `OPERATION_KEYWORDS` has the words that name an operation. A question without any of them counts
    as one that names a further operation, ``none``. The first schema of the i-th operation in the
    table is schema i, modulo their number; its next ones are hashed from its name. The tags are the
    first schemas of all operations that a question names, then their second ones, and so on until
    there are ``num_tags``.
    """
    _check_numbers(num_schemas, num_tags)
    return _first_distinct(
        lambda e: _operation_schemas(named_operations(e.question), num_schemas), num_tags
    )


def field_tagger(*, field: str, num_schemas: int, num_tags: int) -> Tagger:
    """Tag by a hash of a field of the data, for tasks whose structure is known."""
    _check_numbers(num_schemas, num_tags)

    def schemas(example: Example) -> Iterator[int]:
        if field not in example.fields:
            known = ", ".join(sorted(example.fields)) or "no fields at all"
            raise InputError(
                f"example {example.id!r} has no field {field!r} to take tags from"
                f"{did_you_mean(field, example.fields)}: it has {known}, name one of the task's "
                "fields or use another tagger"
            )
        return _hashed_schemas(f"{field}={example.fields[field]}", num_schemas)

    return _first_distinct(schemas, num_tags)


def random_tagger(*, num_schemas: int, num_tags: int) -> Tagger:
    """Tag at random, anew each time an example is shown: a control without any information."""
    _check_numbers(num_schemas, num_tags)

    def tagger(example: Example, *, rng: np.random.Generator) -> tuple[int, ...]:
        del example
        return tuple(int(i) for i in rng.choice(num_schemas, size=num_tags, replace=False))

    return tagger


def cluster_tagger(
    embeddings: Mapping[str, npt.NDArray[np.floating]],
    *,
    num_schemas: int,
    num_tags: int,
    seed: int,
) -> Tagger:
    """Tag by the nearest of ``num_schemas`` k-means centroids, nearest first.

    Args:
        embeddings: the base model's mean-pooled states by example id, each of shape (hidden,).
        num_schemas: clusters, one for each schema.
        num_tags: tags of an example.
        seed: seed of the clustering, whose result does not depend on the mapping's order.
    """
    _check_numbers(num_schemas, num_tags)
    ids = sorted(embeddings)
    points = _stack_embeddings(ids, embeddings, num_schemas)
    centroids = _kmeans(points, num_schemas, np.random.default_rng(seed))
    nearest = np.argsort(_squared_distances(points, centroids), axis=1, kind="stable")
    tags_by_id = {
        id_: tuple(int(i) for i in row[:num_tags]) for id_, row in zip(ids, nearest, strict=True)
    }

    def tags(example: Example) -> tuple[int, ...]:
        if example.id not in tags_by_id:
            raise InputError(
                f"example {example.id!r} is not among the {len(ids)} embedded examples: embed "
                f"every example that is to be tagged"
            )
        return tags_by_id[example.id]

    return _without_randomness(tags)


def prefix_text(tags: tuple[int, ...]) -> str:
    """Return the tags as a text prefix, ``[Schema: 5,12] ``, empty for no tags."""
    return f"[Schema: {','.join(map(str, tags))}] " if tags else ""


def keep_probability(schedule: Sequence[float], progress: float) -> float:
    """Return the probability that a step keeps its tags.

    Args:
        schedule: probabilities in equal parts of a stage; none means that tags are never kept.
        progress: share of the stage that is done, in [0, 1].
    """
    assert 0 <= progress <= 1
    if not schedule:
        return 0.0
    # By rounding, progress * parts may be a little less than the whole number that it stands for.
    part = math.floor(progress * len(schedule) + 1e-9)
    return schedule[min(part, len(schedule) - 1)]


def named_operations(question: str) -> list[str]:
    """Return the operations that a question names, in the order of their first mention."""
    text = question.replace("%", " percent ")
    found = {
        name: match.start()
        for name, words in OPERATION_KEYWORDS.items()
        if (match := re.search(rf"(?<!\w)(?:{words})(?!\w)", text, re.IGNORECASE))
    }
    return sorted(found, key=found.__getitem__) or [NO_OPERATION]


def _first_distinct(schemas: Callable[[Example], Iterator[int]], num_tags: int) -> Tagger:
    """Make a tagger that takes the first distinct ids that a function yields for an example."""

    def tags(example: Example) -> tuple[int, ...]:
        ids, distinct = schemas(example), dict[int, None]()
        while len(distinct) < num_tags:
            distinct[next(ids)] = None
        return tuple(distinct)

    return _without_randomness(tags)


def _without_randomness(tags: Callable[[Example], tuple[int, ...]]) -> Tagger:
    """Make a tagger of a function that needs no randomness."""

    def tagger(example: Example, *, rng: np.random.Generator) -> tuple[int, ...]:
        del rng
        return tags(example)

    return tagger


def _check_numbers(num_schemas: int, num_tags: int) -> None:
    if not 1 <= num_tags <= num_schemas:
        raise InputError(
            f"num_tags {num_tags} with num_schemas {num_schemas}: an example needs at least one "
            f"tag and at most one for each schema"
        )


def _hashed_schemas(key: str, num_schemas: int) -> Iterator[int]:
    """Yield schema ids hashed from a key, without end and with repetitions."""
    for draw in itertools.count():
        digest = hashlib.sha256(f"{draw}/{key}".encode()).digest()
        yield int.from_bytes(digest[:8], "big") % num_schemas


def _operation_schemas(operations: Sequence[str], num_schemas: int) -> Iterator[int]:
    """Yield the schema ids of operations in turn: the first of each, then the second of each."""
    names = [*OPERATION_KEYWORDS, NO_OPERATION]
    for name in operations:
        yield names.index(name) % num_schemas
    for ids in zip(*(_hashed_schemas(name, num_schemas) for name in operations), strict=True):
        yield from ids


def _stack_embeddings(
    ids: Sequence[str], embeddings: Mapping[str, npt.NDArray[np.floating]], num_schemas: int
) -> Floats:
    """Return the embeddings of these examples, (point, hidden), after checking them."""
    shapes = {embeddings[id_].shape for id_ in ids}
    if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
        raise InputError(
            f"embeddings have the shapes {sorted(shapes)}, but all must share one shape (hidden,): "
            f"pool over tokens first"
        )
    points = np.array([embeddings[id_] for id_ in ids], dtype=np.float64)
    if not np.isfinite(points).all():
        raise InputError("embeddings hold values that are not finite: embed in float32")
    num_distinct = len(np.unique(points, axis=0)) if ids else 0
    if num_distinct < num_schemas:
        raise InputError(
            f"{num_distinct} distinct embeddings cannot form {num_schemas} clusters: embed more "
            f"examples or lower num_schemas"
        )
    return points


def _kmeans(points: Floats, num_clusters: int, rng: np.random.Generator) -> Floats:
    """Return the centroids, (cluster, hidden), of the best of several k-means++ starts."""
    with warnings.catch_warnings():
        # A cluster that loses its last point keeps its centroid, which is good enough for tags.
        warnings.filterwarnings("ignore", message="One of the clusters is empty")
        runs = [
            kmeans2(points, num_clusters, iter=NUM_ITERATIONS, minit="++", rng=rng)[0]
            for _ in range(NUM_RESTARTS)
        ]
    return min(runs, key=lambda centroids: _squared_distances(points, centroids).min(1).sum())


def _squared_distances(points: Floats, centroids: Floats) -> Floats:
    """Return squared distances, (point, cluster)."""
    # Rounding may make the difference of nearly equal numbers negative.
    squares = np.square(points).sum(1)[:, None] + np.square(centroids).sum(1)
    distances: Floats = np.maximum(squares - 2 * points @ centroids.T, 0.0)
    return distances
