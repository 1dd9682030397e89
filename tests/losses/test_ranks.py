"""Losses with state under ``DistributedDataParallel``: two processes, gloo, one shared result."""

from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing, nn

from losses.reference import random_labels, random_logits
from optuna_robustloss.losses import ELRLoss, MAELoss, PhasedLoss, SCELoss
from optuna_robustloss.losses.ranks import gather_rows

pytestmark = pytest.mark.slow

RANKS, CLASSES, SAMPLES = 2, 4, 12
#: Indices of the training set, by step and rank; the last step is a short batch of one rank.
SHARDS = [([0, 3, 5], [1, 7, 8]), ([1, 0, 4], [3, 5, 11]), ([2, 8, 9], [0])]
OF_RANKS = [slice(0, 5), slice(5, SAMPLES)]


class WithLoss(nn.Module):
    """A network and its loss as one module, whose buffers DDP broadcasts."""

    def __init__(self, loss):
        super().__init__()
        self.net = nn.Linear(6, CLASSES)
        self.loss = loss

    def forward(self, features, *rest):
        return self.loss(self.net(features), *rest)


def features():
    return random_logits(0, SAMPLES, 6).float()


def labels():
    return random_labels(1, CLASSES, SAMPLES)


def with_loss(loss):
    torch.manual_seed(0)
    return WithLoss(loss)


def counting(rank):
    model = nn.parallel.DistributedDataParallel(
        with_loss(PhasedLoss(SCELoss(), MAELoss(), switch=0.5, width=0, total_steps=4))
    )
    own = slice(rank, None, RANKS)
    return [model(features()[own], labels()[own]).item() for _ in range(4)], model.module.loss.steps


def remembering(rank):
    model = nn.parallel.DistributedDataParallel(with_loss(ELRLoss(SAMPLES, CLASSES)))
    for shards in SHARDS:
        index = torch.tensor(shards[rank])
        model(features()[index], labels()[index], index).backward()
    return model.module.loss.average


def adaptive():
    return PhasedLoss(SCELoss(), MAELoss(), switch="adaptive", averaging=0.5, guard=0.1)


def reading(rank):
    """Batches of unequal sizes, the second rank's with labels of the other half."""
    criterion = nn.parallel.DistributedDataParallel(with_loss(adaptive()))
    for _ in range(8):
        criterion(features()[OF_RANKS[rank]], labels()[OF_RANKS[rank]])
    return criterion.module.loss.state_dict()


def run_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=RANKS
    )
    try:
        found = {
            "counting": counting(rank),
            "remembering": remembering(rank),
            "reading": reading(rank),
        }
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(run_rank, (str(folder),), nprocs=RANKS)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(RANKS)]


def test_each_rank_counts_and_changes_at_the_same_step(ranks):
    net = with_loss(SCELoss()).net
    for rank, found in enumerate(ranks):
        own = slice(rank, None, RANKS)
        logits = net(features()[own])
        expected = [loss(logits, labels()[own]).item() for loss in (SCELoss(), MAELoss())]
        values, steps = found["counting"]
        assert values == pytest.approx([expected[0]] * 2 + [expected[1]] * 2)
        assert int(steps) == 4


def test_each_rank_remembers_the_samples_of_all(ranks):
    """As one process does that sees the batches of both; the weights here never change."""
    net, alone = with_loss(ELRLoss(SAMPLES, CLASSES)).net, ELRLoss(SAMPLES, CLASSES)
    for shards in SHARDS:
        index = torch.tensor([*shards[0], *shards[1]])
        alone(net(features()[index]), labels()[index], index)
    for found in ranks:
        torch.testing.assert_close(found["remembering"], alone.average)
    assert torch.equal(ranks[0]["remembering"], ranks[1]["remembering"])
    assert alone.average.any(1).tolist() == [i not in (6, 10) for i in range(SAMPLES)]


def test_an_adaptive_switch_reads_the_batches_of_all_ranks_as_one(ranks):
    net, alone = with_loss(adaptive()).net, adaptive()
    for _ in range(8):
        alone(net(features()), labels())
    for found in ranks:
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(found["reading"][name], value)
    assert alone.state.averages.all()


def test_without_a_process_group_rows_stay_as_they_are():
    index, rows = torch.tensor([3, 1]), torch.ones(2, 4)
    found = gather_rows(index, rows)
    assert found[0] is index
    assert found[1] is rows
