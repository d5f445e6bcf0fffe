"""Taggers: distinct ids in range, stable over processes, and each one's own promise."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemabank.common.errors import InputError
from schemabank.methods.schemabank import tags
from schemabank.methods.schemabank.tags import (
    Tagger,
    cluster_tagger,
    content_tagger,
    field_tagger,
    hash_tagger,
    keep_probability,
    named_operations,
    prefix_text,
    random_tagger,
)
from schemabank.tasks import Example

SRC = Path(tags.__file__).parents[2]


def ask(question: str, *, id_: str = "task/train/0", template: str = "11") -> Example:
    return Example(
        id=id_, question=question, solution="#### 1", answer="1", fields={"template": template}
    )


def make_tagger(kind: str, *, num_schemas: int, num_tags: int) -> Tagger:
    makers = {"hash": hash_tagger, "content": content_tagger, "random": random_tagger}
    if kind == "field":
        return field_tagger(field="template", num_schemas=num_schemas, num_tags=num_tags)
    return makers[kind](num_schemas=num_schemas, num_tags=num_tags)


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int]:
    num_schemas = draw(st.integers(1, 40))
    return num_schemas, draw(st.integers(1, num_schemas))


@pytest.mark.parametrize("kind", ["hash", "content", "field", "random"])
@given(size=sizes(), question=st.text(), value=st.text())
def test_tags_are_distinct_and_in_range(
    kind: str, size: tuple[int, int], question: str, value: str
) -> None:
    num_schemas, num_tags = size
    tagger = make_tagger(kind, num_schemas=num_schemas, num_tags=num_tags)
    ids = tagger(ask(question, template=value), rng=np.random.default_rng(0))
    assert len(ids) == len(set(ids)) == num_tags
    assert all(type(i) is int and 0 <= i < num_schemas for i in ids)


@pytest.mark.parametrize("kind", ["hash", "content", "field", "random"])
@pytest.mark.parametrize(("num_schemas", "num_tags"), [(4, 5), (4, 0), (4, -1), (0, 0)])
def test_impossible_numbers_of_tags_are_refused(kind: str, num_schemas: int, num_tags: int) -> None:
    with pytest.raises(InputError, match=f"num_tags {num_tags} with num_schemas {num_schemas}"):
        make_tagger(kind, num_schemas=num_schemas, num_tags=num_tags)


@pytest.mark.parametrize("kind", ["hash", "content", "field"])
def test_tags_are_equal_in_two_processes(kind: str) -> None:
    column = "field='template', " if kind == "field" else ""
    program = (
        "import numpy as np; from schemabank.methods.schemabank.tags import *; "
        "from schemabank.tasks import Example; "
        f"t = {kind}_tagger({column}num_schemas=32, num_tags=3); rng = np.random.default_rng(0); "
        "print([t(Example('i', f'Add {i} % of half', '', '', {'template': str(i)}), rng=rng)"
        " for i in range(20)])"
    )
    printed = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(SRC)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    tagger = make_tagger(kind, num_schemas=32, num_tags=3)
    rng = np.random.default_rng(9)
    own = [tagger(ask(f"Add {i} % of half", template=str(i)), rng=rng) for i in range(20)]
    assert printed[0] == printed[1] == f"{own}\n"


def test_hash_tags_depend_on_the_question_alone() -> None:
    tagger = hash_tagger(num_schemas=32, num_tags=2)
    one = tagger(ask("How?", id_="a", template="1"), rng=np.random.default_rng(0))
    same = tagger(ask("How?", id_="b", template="2"), rng=np.random.default_rng(1))
    assert one == same
    assert len({tagger(ask(f"How {i}?"), rng=np.random.default_rng(0)) for i in range(50)}) > 40


def test_hash_tags_use_every_schema_about_equally() -> None:
    tagger = hash_tagger(num_schemas=8, num_tags=2)
    rng = np.random.default_rng(0)
    usage = Counter(i for n in range(2000) for i in tagger(ask(f"Question {n}"), rng=rng))
    assert all(400 < usage[i] < 600 for i in range(8))


def test_fewer_tags_are_the_beginning_of_more() -> None:
    rng = np.random.default_rng(0)
    for kind in ("hash", "content", "field"):
        few = make_tagger(kind, num_schemas=32, num_tags=2)(ask("Half of it each"), rng=rng)
        many = make_tagger(kind, num_schemas=32, num_tags=5)(ask("Half of it each"), rng=rng)
        assert many[:2] == few


@pytest.mark.parametrize(
    ("question", "operations"),
    [
        ("How many are left?", ["subtraction"]),
        ("Each costs 5, how much in total?", ["multiplication", "addition"]),
        ("TOTAL of 20% off", ["addition", "percentage"]),
        ("He eats 1/2 of it and shares the rest", ["fraction", "division"]),
        ("%", ["percentage"]),
        ("They split it into halves", ["division", "fraction"]),
        ("The leftover summary of Perth", ["none"]),
        ("", ["none"]),
    ],
)
def test_operations_are_named_by_whole_words(question: str, operations: list[str]) -> None:
    assert named_operations(question) == operations


def test_content_tags_start_with_the_schemas_the_operations_own() -> None:
    tagger = content_tagger(num_schemas=32, num_tags=2)
    rng = np.random.default_rng(0)
    left = tagger(ask("How many are left?"), rng=rng)
    both = tagger(ask("How many are left in total?"), rng=rng)
    assert left[0] == 1
    assert both == (1, 0)
    assert tagger(ask("How many remain of 7?"), rng=rng) == left
    assert tagger(ask("How?"), rng=rng)[0] == 6


def test_field_tags_depend_on_the_column_alone() -> None:
    tagger = field_tagger(field="template", num_schemas=32, num_tags=2)
    rng = np.random.default_rng(0)
    assert tagger(ask("a", id_="x"), rng=rng) == tagger(ask("b", id_="y"), rng=rng)
    assert len({tagger(ask("a", template=str(i)), rng=rng) for i in range(85)}) > 70


def test_missing_field_names_the_fields_there_are() -> None:
    tagger = field_tagger(field="topic", num_schemas=32, num_tags=2)
    with pytest.raises(InputError, match=r"no field 'topic'.* it has template"):
        tagger(ask("How?"), rng=np.random.default_rng(0))


def test_random_tags_depend_on_the_generator_only() -> None:
    tagger = random_tagger(num_schemas=32, num_tags=2)
    first, second = np.random.default_rng(3), np.random.default_rng(3)
    draws = [tagger(ask("a"), rng=first) for _ in range(20)]
    assert draws == [tagger(ask(f"b{i}", id_=str(i)), rng=second) for i in range(20)]
    assert len(set(draws)) > 10


def test_random_tags_are_uniform() -> None:
    tagger = random_tagger(num_schemas=8, num_tags=2)
    rng = np.random.default_rng(0)
    usage = Counter(i for _ in range(4000) for i in tagger(ask("a"), rng=rng))
    assert all(880 < usage[i] < 1120 for i in range(8))  # 1000 expected, deviation 27


def planted(num_clusters: int, per_cluster: int) -> tuple[dict[str, np.ndarray], list[int]]:
    rng = np.random.default_rng(5)
    centers = rng.normal(size=(num_clusters, 16)) * 10
    labels = [i % num_clusters for i in range(num_clusters * per_cluster)]
    noise = rng.normal(size=(len(labels), 16))
    return {f"e{i}": centers[label] + noise[i] for i, label in enumerate(labels)}, labels


def test_cluster_tags_recover_planted_clusters() -> None:
    embeddings, labels = planted(6, 20)
    tagger = cluster_tagger(embeddings, num_schemas=6, num_tags=2, seed=0)
    rng = np.random.default_rng(0)
    first = [tagger(ask("a", id_=f"e{i}"), rng=rng)[0] for i in range(len(labels))]
    assert len(set(zip(labels, first, strict=True))) == len(set(labels)) == len(set(first)) == 6


def test_cluster_tags_are_the_nearest_centroids_in_order() -> None:
    embeddings = {
        f"e{i}": np.array([x], dtype=np.float32)
        for i, x in enumerate([0, 1, 10, 11, 30, 31, 100, 101])
    }
    tagger = cluster_tagger(embeddings, num_schemas=4, num_tags=4, seed=0)
    rng = np.random.default_rng(0)
    a, b, c, d = (tagger(ask("q", id_=f"e{i}"), rng=rng)[0] for i in (0, 2, 4, 6))
    assert tagger(ask("q", id_="e5"), rng=rng) == (c, b, a, d)
    assert sorted((a, b, c, d)) == [0, 1, 2, 3]


def test_cluster_tags_do_not_depend_on_the_order_of_the_mapping() -> None:
    embeddings, labels = planted(5, 7)
    turned = dict(reversed(embeddings.items()))
    rng = np.random.default_rng(0)
    one = cluster_tagger(embeddings, num_schemas=8, num_tags=3, seed=1)
    two = cluster_tagger(turned, num_schemas=8, num_tags=3, seed=1)
    for i in range(len(labels)):
        example = ask("q", id_=f"e{i}")
        assert one(example, rng=rng) == two(example, rng=rng)
        assert len(set(one(example, rng=rng))) == 3


def test_every_cluster_has_an_example_even_when_points_coincide() -> None:
    values = [0.0] * 50 + [1.0, 2.0, 3.0]
    embeddings = {f"e{i}": np.array([v, v]) for i, v in enumerate(values)}
    tagger = cluster_tagger(embeddings, num_schemas=4, num_tags=1, seed=0)
    rng = np.random.default_rng(0)
    assert {tagger(ask("q", id_=f"e{i}"), rng=rng) for i in range(53)} == {(0,), (1,), (2,), (3,)}


def test_fewer_distinct_embeddings_than_schemas_are_refused() -> None:
    embeddings = {f"e{i}": np.array([float(i % 3)]) for i in range(10)}
    with pytest.raises(InputError, match="3 distinct embeddings cannot form 4 clusters"):
        cluster_tagger(embeddings, num_schemas=4, num_tags=1, seed=0)
    with pytest.raises(InputError, match="0 distinct embeddings"):
        cluster_tagger({}, num_schemas=4, num_tags=1, seed=0)


def test_unusable_embeddings_are_refused() -> None:
    with pytest.raises(InputError, match="shapes"):
        cluster_tagger({"a": np.zeros(2), "b": np.zeros(3)}, num_schemas=1, num_tags=1, seed=0)
    with pytest.raises(InputError, match="not finite"):
        cluster_tagger({"a": np.array([np.nan])}, num_schemas=1, num_tags=1, seed=0)


def test_unseen_example_has_no_cluster() -> None:
    embeddings, _ = planted(3, 4)
    tagger = cluster_tagger(embeddings, num_schemas=3, num_tags=1, seed=0)
    with pytest.raises(InputError, match="'other' is not among the 12 embedded examples"):
        tagger(ask("q", id_="other"), rng=np.random.default_rng(0))


@pytest.mark.parametrize("kind", ["hash", "content", "field", "cluster"])
def test_only_the_random_tagger_draws(kind: str) -> None:
    embeddings, _ = planted(3, 4)
    tagger = {
        "cluster": lambda: cluster_tagger(embeddings, num_schemas=3, num_tags=1, seed=0),
    }.get(kind, lambda: make_tagger(kind, num_schemas=8, num_tags=2))()
    rng = np.random.default_rng(0)
    tagger(ask("q", id_="e0"), rng=rng)
    assert rng.bit_generator.state == np.random.default_rng(0).bit_generator.state


def test_prefix_text() -> None:
    assert prefix_text((5, 12)) == "[Schema: 5,12] "
    assert prefix_text((7,)) == "[Schema: 7] "
    assert prefix_text(()) == ""


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0, 1), (0.24, 1), (0.25, 0.75), (0.5, 0.5), (0.74, 0.5), (0.75, 0.25), (1, 0.25)],
)
def test_keep_probability_is_constant_in_each_quarter(progress: float, expected: float) -> None:
    assert keep_probability([1, 0.75, 0.5, 0.25], progress) == expected


@given(num_parts=st.integers(1, 50), steps_per_part=st.integers(1, 50))
def test_each_part_has_equally_many_steps(num_parts: int, steps_per_part: int) -> None:
    schedule = [part / num_parts for part in range(num_parts)]
    num_steps = num_parts * steps_per_part
    kept = Counter(keep_probability(schedule, step / num_steps) for step in range(num_steps))
    assert kept == dict.fromkeys(schedule, steps_per_part)


def test_no_schedule_keeps_nothing() -> None:
    assert keep_probability((), 0.5) == 0.0
