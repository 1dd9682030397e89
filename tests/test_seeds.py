import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optuna_robustloss.seeds import derive_seed, permutation, uniform

SEEDS = st.integers(0, 2**63 - 1)


def test_golden_seeds_are_the_same_on_every_host():
    for arguments, expected in [
        ((0,), 7896617691693857887),
        ((0, "noise"), 8372154264372198063),
        ((42, "split", 3), 4255604493503345904),
        ((2**63 - 1, "init"), 7307716491623887108),
    ]:
        assert derive_seed(*arguments) == expected


def test_golden_numbers_are_the_same_on_every_host():
    assert uniform(42, 3).tolist() == [0.7739560485559633, 0.4388784397520523, 0.8585979199113825]
    assert permutation(42, 10).tolist() == [4, 8, 1, 9, 3, 6, 0, 7, 2, 5]


@settings(deadline=None)
@given(seed=SEEDS, name=st.text(max_size=8), number=st.integers(0, 2**40))
def test_a_seed_is_good_for_a_torch_generator_and_for_another_derivation(seed, name, number):
    derived = derive_seed(seed, name, number)
    assert 0 <= derived < 2**63
    torch.Generator().manual_seed(derived)
    assert derive_seed(derived, name) != derived


def test_each_use_and_each_seed_has_a_seed_of_its_own():
    uses = ["noise", "label noise", "split", "validation", "init", "order", "augment", "dropout"]
    numbered = [(use, k) for use in ("test", "tuning", "generation") for k in range(50)]
    paths = [*((use,) for use in uses), *numbered]
    seeds = {derive_seed(seed, *path) for seed in range(20) for path in paths}
    assert len(seeds) == 20 * len(paths)


def test_the_order_of_a_path_matters():
    assert derive_seed(0, "a", "b") != derive_seed(0, "b", "a")


@settings(deadline=None)
@given(
    seed=SEEDS,
    purpose=st.sampled_from(["noise", "generation", "candidate", 0, 7]),
    numbers=st.lists(st.integers(0, 3), max_size=3),
    zeros=st.integers(1, 5),
)
def test_zeros_behind_a_path_make_another_seed(seed, purpose, numbers, zeros):
    path = [purpose, *numbers]
    assert derive_seed(seed) != derive_seed(seed, *[0] * zeros)
    assert derive_seed(seed, *path) != derive_seed(seed, *path, *[0] * zeros)


def test_seeds_of_earlier_results_stay_the_same():
    """Those that end in zero are numbers of a generation, a finalist, a benchmark or a slot."""
    for path in (
        ("noise",),
        ("label noise",),
        ("order",),
        ("test",),
        ("study", "digits"),
        ("worker", "host", 17),
        *((purpose, k) for purpose in ("generation", "finalist", "benchmark") for k in range(3)),
        *(("candidate", k, slot) for k in range(3) for slot in range(3)),
        ("candidate", 0, 0, "theta_0"),
        ("independent", 0, 0, "theta_0"),
    ):
        for seed in (0, 3, 2**40):
            words = [zlib.crc32(p.encode()) if isinstance(p, str) else p for p in path]
            state = np.random.SeedSequence([seed, *words]).generate_state(1, np.uint64)
            assert derive_seed(seed, *path) == int(state[0]) >> 1, path


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="non-negative"):
        derive_seed(-1, "noise")


@settings(deadline=None)
@given(seed=SEEDS, count=st.integers(0, 300))
def test_a_permutation_has_each_index_once(seed, count):
    order = permutation(seed, count)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(count))


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, count=st.integers(1, 50), more=st.integers(1, 50))
def test_more_numbers_from_the_same_seed_begin_alike(seed, count, more):
    assert np.array_equal(uniform(seed, count + more)[:count], uniform(seed, count))


def test_numbers_are_uniform_in_the_unit_interval():
    numbers = uniform(1, 50_000)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts, _ = np.histogram(numbers, bins=20, range=(0, 1))
    assert abs(counts - 2500).max() < 6 * np.sqrt(2500)


def test_each_index_comes_first_equally_often():
    counts = np.bincount([int(permutation(seed, 5)[0]) for seed in range(2000)], minlength=5)
    assert abs(counts - 400).max() < 6 * np.sqrt(400)
