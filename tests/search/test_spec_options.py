"""Options of a study that depend on each other."""

import warnings

import pytest

from search.test_spec import spec

# --- Noisy validation labels ---


@pytest.mark.parametrize(
    ("noise", "validation", "warning"),
    [
        ("asymmetric:0.4", 5000, "asymmetric 40 %.*200 clean labels"),
        (["symmetric:0.4", "pair-flip:0.4"], 5000, "under pair-flip 40 %"),
        ("symmetric:0.4", 1999, "validates on 1999 noisy labels.*2 000"),
    ],
)
def test_noisy_labels_that_rank_losses_unreliably_raise_a_warning(noise, validation, warning):
    with pytest.warns(UserWarning, match=warning):
        spec(noise=noise, validation=validation, validation_labels="noisy")


@pytest.mark.parametrize(
    "changes",
    [
        {"noise": "asymmetric:0.4", "validation": 100},
        {"noise": "symmetric:0.4", "validation": 2000, "validation_labels": "noisy"},
    ],
)
def test_labels_that_rank_losses_raise_no_warning(changes):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spec(**changes)


@pytest.mark.parametrize("moments", [[0], [1], [-0.5, 0.5], [2.5]])
def test_pruning_moments_are_counted_in_networks(moments):
    with pytest.raises(ValueError, match="trains 1 for a candidate: each must lie"):
        spec(prune_at=moments)
    assert spec(prune_at=0.75).prune_at == (0.75,)
    assert spec(prune_at=[1, 1.5], architectures=["mlp2", "mlp3"]).prune_at == (1, 1.5)


def test_stop_at_chance_after_is_a_share():
    for share in (0, 1, -0.1, 7):
        with pytest.raises(ValueError, match="stop_at_chance_after"):
            spec(stop_at_chance_after=share)


def test_recipes_change_single_architectures():
    changed = spec(
        architectures=["mlp2", "mlp3"],
        recipe={"epochs": 5, "lr": 0.2},
        recipes={"mlp3": {"lr": 0.3, "precision": "bfloat16"}},
    )
    found = [(t.recipe.epochs, t.recipe.lr, t.recipe.precision) for t in changed.tasks]
    assert found == [(5, 0.2, "float32"), (5, 0.3, "bfloat16")]
    with pytest.raises(ValueError, match="recipes names 'cnn4', which is none"):
        spec(recipes={"cnn4": {"lr": 0.1}})
    with pytest.raises(ValueError, match="unknown key 'rate'"):
        spec(recipes={"mlp2": {"rate": 0.1}})
