"""Runs of a second or less on scikit-learn's digits."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from optuna_robustloss.losses import MAE_THETA, MSE_THETA, MAELoss, ScaledLoss, TaylorLoss
from optuna_robustloss.tasks.prepare import prepare_task
from optuna_robustloss.tasks.spec import TaskSpec
from optuna_robustloss.training import networks
from optuna_robustloss.training.evaluation import accuracies
from optuna_robustloss.training.population.population import Single
from optuna_robustloss.training.train import train

CPU = torch.device("cpu")
SGD = {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9}
ADAM = {"optimizer": "adam", "lr": 0.003, "momentum": 0}


def digits(text="digits,mlp2", *, train=100, validation_labels="clean", **recipe):
    """Four steps an epoch: 100 images in batches of 32."""
    spec = TaskSpec.parse(
        text,
        train=train,
        validation=150,
        validation_labels=validation_labels,
        recipe={"epochs": 3, "batch_size": 32} | recipe,
    )
    return prepare_task(spec, seed=0)


def together(task, criteria, *, stop=None, **options):
    """Train candidates together; ``stop`` maps steps to the candidates that are stopped there."""
    stop = stop or {}
    defaults = {
        "seed": 5,
        "evaluate_on": task.validation,
        "device": CPU,
        "backend": "batch",
        "keep_models": True,
    }
    options["evaluate_at"] = [*options.get("evaluate_at", ()), *stop]
    training = train(task, criteria, **defaults | options)
    for _ in training:
        training.stop(stop.get(training.step, ()))
    return training.finish()


def options(task, **more):
    """Arguments of a method that trains."""
    return {
        "seed": 5,
        "evaluate_on": task.test,
        "evaluate_at": (),
        "device": CPU,
        "keep_models": True,
    } | more


def alone(task, criteria, **options):
    return [together(task, [criterion], **options)[0] for criterion in criteria]


def trained(task, criterion=None, **options):
    """Train one network."""
    return together(task, [criterion or nn.CrossEntropyLoss()], backend=None, **options)[0]


def taylor(theta=MAE_THETA, eta=10.0, **options):
    return TaylorLoss(theta, 10, eta=eta, **options)


def closed():
    """Losses with a closed form."""
    return [taylor(), taylor(MSE_THETA), ScaledLoss(taylor(cross_entropy_weight=0.1), 0.5)]


def others():
    return [nn.CrossEntropyLoss(), MAELoss(), taylor()]


def with_network(monkeypatch, make):
    """Have every training build ``make()`` instead of its recipe's network."""
    monkeypatch.setattr(networks, "build_model", lambda *_, **__: make())


def dropping_out():
    return nn.Sequential(
        *(nn.Dropout(0.2), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5)),
        nn.Linear(32, 10),
    )


class Normalised(nn.Module):
    """Convolution, statistics, dropout, and a weight that gets no gradient."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(3, 3)
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()),
            *(nn.Dropout(0.3), nn.Linear(4 * 36, 10)),
        )

    def forward(self, images):
        return self.layers(images)


def evaluate(model, part):
    """The accuracy of one network, and whether its logits are finite."""
    values, finite = accuracies(Single(model).train(model.training), part, CPU)
    return values[0], bool(finite)


def alike(first, second, tolerance=1e-4):
    for a, b in zip(weights(first), weights(second), strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def bitwise(first, second):
    return first.curve == second.curve and same(weights(first), weights(second))


def weights(run):
    return list(run.model.state_dict().values())


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


class Loss(nn.Module):
    """A loss made of a function, which keeps what it was called with."""

    def __init__(self, function=F.cross_entropy):
        super().__init__()
        self.function = function
        self.logits, self.labels = [], []

    def forward(self, logits, labels):
        self.logits.append(logits.detach().clone())
        self.labels.append(labels.tolist())
        return self.function(logits, labels)


def never_the_label(logits, labels):
    """The mean absolute error, negated: bounded, and its minimum is never to give the label."""
    return logits.softmax(-1).gather(1, labels[:, None]).mean()


def diverging(kind="nan"):
    """Losses that are not finite, for different reasons."""
    return {
        "nan": Loss(lambda z, y: z.sum() * math.nan),
        "overflow": Loss(lambda z, y: z.square().sum() * 1e38),
        "infinite": Loss(lambda z, y: F.cross_entropy(z, y) + math.inf),  # finite gradients
    }[kind]
