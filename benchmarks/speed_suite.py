"""Candidates per core-hour of a suite, beside the loop of ``plain.py``; and the matrix peak."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from time import perf_counter

import optuna
import torch
from rich.table import Table
from torch.utils.data import DataLoader

from benchmarks import plain
from benchmarks.quartiles import Quartiles
from optuna_robustloss.losses import TaylorLoss
from optuna_robustloss.losses.taylor.polynomial import MAE_THETA
from optuna_robustloss.tasks.models import build_model
from optuna_robustloss.tasks.prepare import Task, prepare_task
from optuna_robustloss.tasks.spec import TaskSpec
from optuna_robustloss.training.networks import default_device
from optuna_robustloss.training.population.backend import fastest_backend
from optuna_robustloss.training.train import train

ARCHITECTURES = ("mlp2", "mlp3", "cnn4")
#: The shipped studies' training: so many images and epochs.
IMAGES, EPOCHS = 2000, 28
POPSIZE = 12
#: Epochs of one timing; evaluated once at their end, as often as a search does.
TIMED_EPOCHS = 3


def task_of(
    architecture: str, root: Path | None, *, precision: str = "float32", seed: int = 0
) -> Task:
    recipe = {"epochs": EPOCHS, "precision": precision}
    text = f"mnist,{architecture},symmetric:0.8"
    spec = TaskSpec.parse(text, train=IMAGES, validation=1000, recipe=recipe)
    return prepare_task(spec, seed=seed, root=root)


def losses(count: int) -> list[TaylorLoss]:
    """MAE and others around it, as in a first generation."""
    generator = torch.Generator().manual_seed(0)
    thetas = torch.tensor(MAE_THETA) + 0.5 * torch.randn(count, 12, generator=generator)
    thetas[0] = torch.tensor(MAE_THETA)
    return [TaylorLoss(theta, 10, eta=10) for theta in thetas]


def as_printed(loss: TaylorLoss) -> plain.Eq4Loss:
    """Return the same loss for the plain loop: Eq. 4 times η over its range."""
    raw = TaylorLoss(loss.theta, 10, eta=None)
    scale = float(loss.coefficients[1:].abs().sum() / raw.coefficients[1:].abs().sum())
    return plain.Eq4Loss(loss.theta, scale)


def plain_loaders(task: Task) -> tuple[DataLoader, DataLoader]:  # type: ignore[type-arg]
    pixels = task.train.images._pixels  # type: ignore[attr-defined]
    train, validation = task.train, task.validation
    return (
        plain.loader(pixels, train.labels, train.index, train=True),
        plain.loader(pixels, validation.labels, validation.index, train=False),
    )


@dataclass(frozen=True)
class SuiteRow:
    """One network: seconds per candidate, its whole training with evaluations."""

    architecture: str
    contender: str
    backend: str
    seconds: Quartiles
    ratio: Quartiles
    """The plain loop's time over this one's, round by round."""


def suite_rows(root: Path | None, rounds: int) -> Iterator[SuiteRow]:
    """Time the plain loop and ours in turns, on the same task; last, the whole suite."""
    contenders = {"ours, float32": "float32", "ours, bfloat16": "bfloat16"}
    seconds: dict[tuple[str, str], list[float]] = {}
    backends: dict[tuple[str, str], str] = {}
    device = default_device()
    population = losses(POPSIZE)
    tasks = {
        (a, name): task_of(a, root, precision=precision)
        for a in ARCHITECTURES
        for name, precision in contenders.items()
    }
    for (architecture, name), task in tasks.items():
        model = build_model(architecture, num_classes=10, image_shape=task.image_shape)
        backends[architecture, name] = fastest_backend(model, task, POPSIZE, device)
    times = EPOCHS / TIMED_EPOCHS
    for _ in range(rounds):
        for architecture in ARCHITECTURES:
            task = tasks[architecture, "ours, float32"]
            loaders = plain_loaders(task)
            study = optuna.create_study(direction="maximize")

            def objective(_: optuna.Trial, architecture=architecture, loaders=loaders) -> float:  # type: ignore[no-untyped-def]
                network = plain.NETWORKS[architecture]()
                return plain.train(network, as_printed(population[0]), *loaders, TIMED_EPOCHS)

            start = perf_counter()
            study.optimize(objective, n_trials=1)
            taken = times * (perf_counter() - start)
            seconds.setdefault((architecture, "plain loop"), []).append(taken)
            for name in contenders:
                start = perf_counter()
                train(
                    tasks[architecture, name],
                    population,
                    seed=0,
                    evaluate_on=task.validation,
                    epochs=TIMED_EPOCHS,
                ).finish()
                taken = times * (perf_counter() - start) / POPSIZE
                seconds.setdefault((architecture, name), []).append(taken)
    names = ["plain loop", *contenders]
    for name in names:
        per_network = [seconds[a, name] for a in ARCHITECTURES]
        seconds["all three", name] = [sum(one) for one in zip(*per_network, strict=True)]
    for architecture in (*ARCHITECTURES, "all three"):
        for name in names:
            pairs = zip(
                seconds[architecture, "plain loop"], seconds[architecture, name], strict=True
            )
            yield SuiteRow(
                architecture,
                name,
                backends.get((architecture, name), ""),
                Quartiles.of(seconds[architecture, name]),
                Quartiles.of([theirs / ours for theirs, ours in pairs]),
            )


def suite_table(rows: Sequence[SuiteRow]) -> Table:
    title = f"one candidate, {IMAGES} images × {EPOCHS} epochs, on {default_device()}, one thread"
    table = Table(
        "network", "", "backend", "seconds", "candidates per core-hour", "ratio", title=title
    )
    for row in rows:
        s, r = row.seconds, row.ratio
        table.add_row(
            row.architecture,
            row.contender,
            row.backend,
            f"{s.median:.2f} ({s.low:.2f}…{s.high:.2f})",
            f"{3600 / s.median:.0f}",
            f"{r.median:.1f} ({r.low:.1f}…{r.high:.1f})",
        )
    return table


# Equal fitness


@dataclass(frozen=True)
class FitnessRow:
    """Accuracies at the end of the whole training, for the same losses on the same noisy labels."""

    architecture: str
    theirs: list[float]
    ours: list[float]
    half: list[float]


def fitness_rows(root: Path | None, candidates: int) -> Iterator[FitnessRow]:
    population = losses(candidates)
    for architecture in ARCHITECTURES:
        task = task_of(architecture, root)
        loaders = plain_loaders(task)
        theirs = []
        for seed, loss in enumerate(population):
            torch.manual_seed(seed)
            network = plain.NETWORKS[architecture]()
            theirs.append(plain.train(network, as_printed(loss), *loaders, EPOCHS))
        both = []
        for precision in ("float32", "bfloat16"):
            runs = train(
                task_of(architecture, root, precision=precision),
                population,
                seed=0,
                evaluate_on=task.validation,
            ).finish()
            both.append([run.curve[-1].accuracy for run in runs])
        yield FitnessRow(architecture, theirs, *both)


def fitness_table(rows: Sequence[FitnessRow]) -> Table:
    table = Table("network", "", "mean", "each", title="fitness of the same losses")
    for row in rows:
        sides = {"plain loop": row.theirs, "ours, float32": row.ours, "ours, bfloat16": row.half}
        for name, values in sides.items():
            each = " ".join(f"{value:.3f}" for value in values)
            table.add_row(row.architecture, name, f"{mean(values):.3f}", each)
    return table


# Matrix peak


@dataclass(frozen=True)
class PeakRow:
    """Multiplications and additions per second, in units of 10⁹."""

    what: str
    rate: Quartiles
    share: Quartiles
    """Of the best matrix product measured in the same round."""


def peak_rows(rounds: int) -> Iterator[PeakRow]:
    """Training steps of MLP populations at batch 128 as a share of the measured matrix peak."""
    from optuna_robustloss.training.population.backend import build

    device = default_device()
    images = torch.randn(128, 1, 28, 28, device=device)
    steps = {}
    for name, hidden in (("mlp2", 1), ("mlp3", 2)):
        model = build_model(name, num_classes=10, image_shape=(1, 28, 28)).to(device)
        for count in (1, 8, 16):
            backend = "separate" if count == 1 else "batch"
            population = build(backend, [model] * count)
            optimizer = torch.optim.SGD(
                population.parameters(), lr=1e-6, momentum=0.9, foreach=True
            )
            gradient = torch.randn(count, 128, 10, device=device)
            # Forward, gradient of the weights, and of the inputs but for the first layer's.
            of_rest = 256 * 256 * (hidden - 1) + 256 * 10
            work = 2 * 128 * count * (2 * 784 * 256 + 3 * of_rest)
            steps[f"{name}, K = {count}"] = (_step(population, optimizer, images, gradient), work)
    products = [_product(n, device) for n in (512, 1024, 2048)]
    rates: dict[str, list[float]] = {name: [] for name in steps}
    peaks = []
    for _ in range(rounds):
        peaks.append(max(work / _seconds(run, 3) for run, work in products))
        for name, (run, work) in steps.items():
            rates[name].append(work / _seconds(run, 20))
    yield PeakRow("matrix product, best size", _giga(peaks), Quartiles.of([1.0] * len(peaks)))
    for name, values in rates.items():
        shares = [value / peak for value, peak in zip(values, peaks, strict=True)]
        yield PeakRow(name, _giga(values), Quartiles.of(shares))


def _giga(values: Sequence[float]) -> Quartiles:
    q = Quartiles.of(values)
    return replace(q, median=q.median / 1e9, low=q.low / 1e9, high=q.high / 1e9)


def _step(population, optimizer, images, gradient):  # type: ignore[no-untyped-def]
    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(population(images), gradient)
        optimizer.step()

    return run


def _product(size: int, device: torch.device):  # type: ignore[no-untyped-def]
    """The faster of the two libraries that PyTorch multiplies with on a CPU."""
    a, b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    native = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if native is None or device.type != "cpu":
        return (lambda: torch.mm(a, b)), 2 * size**3
    runs = [lambda: torch.mm(a, b), lambda: native(a, b, None, "none", [], "")]
    return min(runs, key=lambda run: _seconds(run, 3)), 2 * size**3


def _seconds(run, repeats: int) -> float:  # type: ignore[no-untyped-def]
    """The fastest of some calls: others on the machine only make it slower."""
    best = float("inf")
    for _ in range(repeats):
        start = perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, perf_counter() - start)
    return best


def peak_table(rows: Sequence[PeakRow]) -> Table:
    table = Table("", "GFLOP/s", "share of the peak", title="training steps, float32, batch 128")
    for row in rows:
        rate, share = row.rate, row.share
        table.add_row(
            row.what,
            f"{rate.median:.0f} ({rate.low:.0f}…{rate.high:.0f})",
            f"{share.median:.2f} ({share.low:.2f}…{share.high:.2f})",
        )
    return table
