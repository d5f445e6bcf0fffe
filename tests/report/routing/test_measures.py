from itertools import combinations, permutations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax
from scipy.stats import entropy as scipy_entropy

from schemabank.methods.schemabank.bank import Routed
from schemabank.methods.schemabank.penalties import load_balance, router_entropy
from schemabank.report.routing.measures import (
    Drawn,
    Layer,
    by_value,
    changed,
    information,
    layer_measures,
    profiles,
    reuse,
    tag_agreement,
    typical,
)

NUM_SCHEMAS = 5
Floats = npt.NDArray[np.float64]


def drawn_apart(num_examples: int) -> Drawn:
    """Every example by itself, all of one kind."""
    return Drawn([str(i) for i in range(num_examples)], [""] * num_examples)


def measured(log_probs: Floats, shares: Floats) -> Layer:
    probs = np.exp(log_probs)
    return layer_measures(shares, probs.mean(0), -(probs * log_probs).sum(1).mean())


def routed(seed: int, num_tokens: int, *, top_k: int = 2) -> tuple[Floats, Floats]:
    """Random log-probabilities and the shares of their top k."""
    rng = np.random.default_rng(seed)
    log_probs = log_softmax(rng.normal(size=(num_tokens, NUM_SCHEMAS)), axis=1)
    chosen = np.argsort(-log_probs, axis=1)[:, :top_k]
    shares = np.zeros_like(log_probs)
    np.put_along_axis(shares, chosen, 1 / top_k, axis=1)
    return log_probs, shares


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, NUM_SCHEMAS))
def test_a_layer_is_measured_as_the_training_measures_it(
    seed: int, num_tokens: int, top_k: int
) -> None:
    log_probs, shares = routed(seed, num_tokens, top_k=top_k)
    found = measured(log_probs, shares)
    state = Routed(torch.tensor(log_probs)[None, None], torch.tensor(shares)[None, None])
    mask = torch.ones(1, 1, num_tokens, dtype=torch.float64)
    assert found.entropy == pytest.approx(router_entropy(state, mask).item())
    assert found.load_balance == pytest.approx(load_balance(state, mask).item())
    assert found.usage.sum() == pytest.approx(1)
    assert found.effective_schemas == pytest.approx(np.exp(scipy_entropy(found.usage)))
    assert found.probability == pytest.approx(np.exp(log_probs).mean(0))


def test_collapse_and_equal_use_are_told_apart() -> None:
    equal = np.full((10, NUM_SCHEMAS), 1 / NUM_SCHEMAS)
    even = measured(np.log(equal), np.tile(np.eye(NUM_SCHEMAS), (2, 1)))
    assert even.effective_schemas == pytest.approx(NUM_SCHEMAS)
    assert even.load_balance == pytest.approx(1)
    assert not even.dead.size
    shares = np.zeros((10, NUM_SCHEMAS))
    shares[:, 3] = 1
    certain = measured(np.log(0.01 + 0.95 * shares), shares)
    assert certain.effective_schemas == 1
    assert certain.dead.tolist() == [0, 1, 2, 4]


def test_a_schema_is_dead_below_a_tenth_of_an_equal_share() -> None:
    shares = np.zeros((1000, NUM_SCHEMAS))
    shares[:19, 1] = shares[19:40, 2] = shares[40:, 0] = 1
    found = measured(np.log(np.full((1000, NUM_SCHEMAS), 0.2)), shares)
    assert found.dead.tolist() == [1, 3, 4]  # 1.9 % and none, where 2 % is a tenth; 2.1 % is not


@given(st.integers(0, 10**6), st.integers(2, 5))
def test_chance_agreement_is_the_mean_over_all_ways_to_deal_the_tags(
    seed: int, num_examples: int
) -> None:
    rng = np.random.default_rng(seed)
    example_of = np.sort(rng.integers(0, num_examples, size=20))
    tagged = np.zeros((num_examples, NUM_SCHEMAS))
    for row in tagged:
        row[rng.choice(NUM_SCHEMAS, size=2, replace=False)] = 1
    _, shares = routed(seed, 20)
    observed, chance = tag_agreement(shares, example_of, tagged)
    by_hand = [
        sum(shares[t, s] for s in np.flatnonzero(tagged[e])) for t, e in enumerate(example_of)
    ]
    assert observed == pytest.approx(np.mean(by_hand))
    dealt = [
        tag_agreement(shares, example_of, tagged[list(order)])[0]
        for order in permutations(range(num_examples))
    ]
    assert chance == pytest.approx(np.mean(dealt))


def test_profiles_are_means_over_an_examples_tokens() -> None:
    shares = np.array([[1.0, 0], [0, 1], [0, 1], [0.5, 0.5]])
    found = profiles(shares, np.array([0, 0, 1, 1]), 2)
    assert found.tolist() == [[0.5, 0.5], [0.25, 0.75]]


@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(1, 4))
def test_information_is_its_definition(seed: int, num_examples: int, num_values: int) -> None:
    rng = np.random.default_rng(seed)
    profile = rng.dirichlet(np.ones(NUM_SCHEMAS), size=num_examples)
    values = [str(v) for v in rng.integers(0, num_values, size=num_examples)]
    found = information(profile, values, drawn_apart(num_examples), num_shuffles=5)
    joint = {
        v: sum(profile[i] for i, own in enumerate(values) if own == v) / num_examples
        for v in set(values)
    }
    marginal = profile.mean(0)
    defined = sum(
        p * np.log(p / (row.sum() * marginal[s]))
        for row in joint.values()
        for s, p in enumerate(row)
    )
    assert found.value == pytest.approx(max(0, defined), abs=1e-12)
    assert found.value <= found.field_entropy + 1e-12
    counts = [values.count(v) for v in set(values)]
    assert found.field_entropy == pytest.approx(scipy_entropy(counts))


def test_a_schema_for_every_value_tells_all_and_chance_tells_its_bias() -> None:
    values = [str(i % 4) for i in range(80)]
    profile = np.eye(NUM_SCHEMAS)[[i % 4 for i in range(80)]]
    found = information(profile, values, drawn_apart(80))
    assert found.value == pytest.approx(np.log(4))
    assert found.value == pytest.approx(found.field_entropy)
    assert found.p_value == pytest.approx(1 / 1001)
    assert 0 < found.shuffled_mean < found.shuffled_95 < 0.2


def test_unrelated_values_reach_a_small_p_value_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    p_values = []
    for seed in range(200):
        profile = rng.dirichlet(np.ones(NUM_SCHEMAS), size=30)
        values = [str(v) for v in rng.integers(0, 3, size=30)]
        drawn = drawn_apart(30)
        p_values.append(information(profile, values, drawn, seed=seed, num_shuffles=99).p_value)
    assert sum(p <= 0.1 for p in p_values) in range(8, 35)  # 20 expected, sd 4.2


@pytest.mark.parametrize("constant", [True, False])
def test_clusters_that_choose_alike_do_not_pass_for_knowledge(constant: bool) -> None:
    """Documents have schemas of their own; the field knows nothing, of documents or examples."""
    rng = np.random.default_rng(1)
    p_values = []
    for seed in range(100):
        documents = np.repeat(np.arange(8), 12)
        profile = rng.dirichlet(np.ones(NUM_SCHEMAS), size=8)[documents]
        drawn = Drawn([str(d) for d in documents], [""] * 96)
        of_documents = rng.permutation(np.arange(8) % 3)
        values = of_documents[documents] if constant else rng.integers(0, 3, size=96)
        found = information(profile, [str(v) for v in values], drawn, seed=seed, num_shuffles=49)
        p_values.append(found.p_value)
    assert sum(p <= 0.1 for p in p_values) <= 19, "10 expected; without clusters, all 100"


def test_a_group_that_chooses_apart_does_not_pass_for_knowledge() -> None:
    rng = np.random.default_rng(2)
    groups = np.arange(60) % 2
    values = [str(v) for v in np.where(groups == 0, 0, rng.integers(1, 3, size=60))]
    profile = np.eye(NUM_SCHEMAS)[groups]
    found = information(
        profile, values, Drawn([str(i) for i in range(60)], [str(g) for g in groups])
    )
    assert found.value > 0.5, "the field tells the group, and so does the schema"
    assert found.p_value > 0.05, "within a group nothing is known"


def test_dealing_keeps_what_must_stay() -> None:
    rng = np.random.default_rng(3)
    strata = ["a"] * 4 + ["b"] * 4
    codes = np.array([0, 0, 1, 2, 5, 5, 6, 7])
    deal = Drawn([str(i) for i in range(8)], strata).dealer(codes)
    dealt = np.stack([deal(rng) for _ in range(200)])
    assert (np.sort(dealt[:, :4], axis=1) == [0, 0, 1, 2]).all()
    assert (np.sort(dealt[:, 4:], axis=1) == [5, 5, 6, 7]).all()
    assert len(np.unique(dealt, axis=0)) > 50
    clusters = ["x", "x", "y", "y", "z", "z", "w", "w"]
    whole = Drawn(clusters, [""] * 8).dealer(np.array([1, 1, 2, 2, 2, 2, 4, 4]))
    dealt = np.stack([whole(rng) for _ in range(200)])
    assert (dealt[:, ::2] == dealt[:, 1::2]).all()
    assert (np.sort(dealt[:, ::2], axis=1) == [1, 2, 2, 4]).all()


@pytest.mark.parametrize("known", [True, False])
def test_a_field_that_names_the_cluster_is_shuffled_among_examples(known: bool) -> None:
    """Dealt to whole clusters, names would only be others: every p-value would be 1."""
    rng = np.random.default_rng(5)
    names = [str(n) for n in np.repeat(np.arange(8), 12)]
    profile = rng.dirichlet(np.ones(NUM_SCHEMAS), size=8 if known else 96)
    drawn = Drawn(names, [""] * 96)
    found = information(np.repeat(profile, 12 if known else 1, axis=0), names, drawn)
    assert (found.p_value < 0.01) == known


@pytest.mark.parametrize("known", [True, False])
def test_reuse_of_whole_clusters_that_are_said_in_several_wordings(known: bool) -> None:
    """Words of two kinds in three wordings each; choices follow the kind, or the word alone."""
    rng = np.random.default_rng(6)
    words = np.repeat(np.arange(24), 3)
    meanings, wordings = [str(w % 2) for w in words], [str(n) for n in np.arange(72) % 3]
    chosen = words % 2 if known else rng.integers(0, NUM_SCHEMAS, size=24)[words]
    drawn = Drawn([str(w) for w in words], [""] * 72)
    found = reuse(np.eye(NUM_SCHEMAS)[chosen], meanings, wordings, drawn)
    assert found is not None
    assert (found.p_value < 0.01) == known


def test_wordings_that_choose_apart_do_not_pass_for_reuse() -> None:
    """Meanings prefer wordings, and choices follow the wording alone."""
    rng = np.random.default_rng(4)
    p_values = []
    for seed in range(60):
        wordings = rng.integers(0, 4, size=60)
        meanings = (wordings // 2 + (rng.random(60) < 0.2)) % 2
        base = rng.dirichlet(np.ones(NUM_SCHEMAS), size=2)[wordings // 2]
        said = [[str(v) for v in column] for column in (meanings, wordings)]
        found = reuse(base, *said, drawn_apart(60), seed=seed, num_shuffles=49)
        assert found is not None
        p_values.append(found.p_value)
    assert sum(p <= 0.1 for p in p_values) <= 14, "6 expected; across wordings, nearly all"


def test_a_column_of_one_value_tells_nothing() -> None:
    drawn = drawn_apart(NUM_SCHEMAS)
    found = information(np.eye(NUM_SCHEMAS), ["same"] * NUM_SCHEMAS, drawn, num_shuffles=9)
    assert (found.value, found.field_entropy, found.p_value) == (0, 0, 1)


def test_by_value_averages_examples() -> None:
    names, usage = by_value(np.array([[1.0, 0], [0, 1], [0, 1]]), ["b", "a", "b"])
    assert names == ["a", "b"]
    assert usage.tolist() == [[0, 1], [0.5, 0.5]]


@given(st.integers(0, 10**6), st.integers(4, 9), st.booleans())
def test_reuse_compares_pairs_one_by_one(seed: int, num_examples: int, worded: bool) -> None:
    rng = np.random.default_rng(seed)
    profile = rng.dirichlet(np.ones(NUM_SCHEMAS), size=num_examples)
    meanings = [str(v) for v in rng.integers(0, 2, size=num_examples)]
    wordings = [str(v) for v in rng.integers(0, 3, size=num_examples)] if worded else None
    same, other = [], []
    for i, j in combinations(range(num_examples), 2):
        if wordings is None or wordings[i] != wordings[j]:
            pairs = same if meanings[i] == meanings[j] else other
            pairs.append(np.minimum(profile[i], profile[j]).sum())
    found = reuse(profile, meanings, wordings, drawn_apart(num_examples), num_shuffles=5)
    if not same or not other:
        assert found is None
        return
    assert found is not None
    assert found.same == pytest.approx(np.mean(same))
    assert found.other == pytest.approx(np.mean(other))
    assert found.num_pairs == len(same)


def test_meanings_that_choose_alike_stand_out() -> None:
    meanings = [str(i % 3) for i in range(30)]
    profile = np.eye(NUM_SCHEMAS)[[i % 3 for i in range(30)]]
    found = reuse(profile, meanings, None, drawn_apart(30), num_shuffles=99)
    assert found is not None
    assert (found.same, found.other, found.p_value) == (1, 0, pytest.approx(0.01))


def test_changed_counts_choices_that_are_others() -> None:
    before = np.array([[0.5, 0.5, 0], [0.5, 0.5, 0]])
    after = np.array([[0.5, 0.5, 0], [0.5, 0, 0.5]])
    assert changed(before, after) == pytest.approx(0.25)
    assert changed(before, before) == 0


def test_typical_tokens_are_common_and_distinctive() -> None:
    kinds = np.array([7] * 6 + [8] * 6 + [9] * 8)
    shares = np.zeros((20, 2))
    shares[:12, 0] = 1  # 7 and 8
    shares[12:, 1] = 1  # 9
    shares[5, :] = [0, 1]  # one of the 7s
    first, second = typical(shares, kinds, count=2)
    assert [kind for kind, _ in first] == [8, 7]
    assert first[0][1] == pytest.approx((6 / 11) / (6 / 20))
    assert second == [(9, pytest.approx((8 / 9) / (8 / 20)))], "7 is rarer there than elsewhere"


def test_an_unused_schema_has_no_typical_tokens() -> None:
    shares = np.zeros((4, 2))
    shares[:, 0] = 1
    assert typical(shares, np.array([1, 2, 3, 4]), count=3) == [[], []]
