import pytest

from optuna_robustloss.training import scoring


@pytest.fixture
def runs(monkeypatch):
    """The number of losses and of epochs of each training."""
    seen = []

    def counted(task, criteria, *, epochs, **options):
        seen.append((len(criteria), epochs))
        return train(task, criteria, epochs=epochs, **options)

    train = scoring.train
    monkeypatch.setattr(scoring, "train", counted)
    return seen
