"""How the time per candidate grows, what a generation costs, and what the full setting would."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import optuna
import torch
from rich.table import Table

from benchmarks.quartiles import Quartiles
from optuna_robustloss import NoisyLabelObjective, StudySpec
from optuna_robustloss.search.samplers import make_sampler
from optuna_robustloss.tasks.models import build_model
from optuna_robustloss.training.networks import default_device
from optuna_robustloss.training.population.backend import build

STUDIES = Path(__file__).parents[1] / "studies"
BATCH = 128


@dataclass(frozen=True)
class GrowthRow:
    """Milliseconds of one training step per candidate."""

    network: str
    image_shape: tuple[int, int, int]
    classes: int
    population: int
    backend: str
    precision: str
    milliseconds: Quartiles


def _cases(quick: bool) -> Iterator[tuple[str, tuple[int, int, int], int, int, str, str]]:
    """Yield network, images, classes, K, backend and precision."""
    gray, color = (1, 28, 28), (3, 32, 32)
    for count in (1, 8) if quick else (1, 2, 4, 8, 16, 32, 64):
        for network in ("mlp2", "mlp3"):
            yield network, gray, 10, count, "separate" if count == 1 else "batch", "float32"
    for classes in (100,) if quick else (100, 1000):
        yield "mlp2", gray, classes, 8, "batch", "float32"
    for precision in ("float32", "bfloat16"):
        yield "cnn4", gray, 10, 1, "separate", precision
        yield "cnn4", color, 10, 1, "separate", precision
    if not quick:
        for backend in ("channels", "batch", "vmap"):
            yield "cnn4", gray, 10, 4, backend, "bfloat16"
        yield "jocor", gray, 10, 1, "separate", "bfloat16"
        yield "resnet18", color, 10, 1, "separate", "bfloat16"


def growth_rows(quick: bool, rounds: int) -> list[GrowthRow]:
    """Time steps of all cases in turns."""
    device = default_device()
    cases = list(_cases(quick))
    runs = [_step(*case, device) for case in cases]
    seconds: list[list[float]] = [[] for _ in cases]
    for _ in range(rounds):
        for values, run in zip(seconds, runs, strict=True):
            start = perf_counter()
            run()
            values.append(perf_counter() - start)
    rows = []
    for case, values in zip(cases, seconds, strict=True):
        per_candidate = [1000 * value / case[3] for value in values]
        rows.append(GrowthRow(*case, Quartiles.of(per_candidate)))
    return rows


def _step(network, image_shape, classes, count, backend, precision, device):  # type: ignore[no-untyped-def]
    model = build_model(network, num_classes=classes, image_shape=image_shape).to(device)
    if network not in ("mlp2", "mlp3"):
        model = model.to(memory_format=torch.channels_last)
    population = build(backend, [model] * count)
    optimizer = torch.optim.SGD(population.parameters(), lr=1e-6, momentum=0.9, foreach=True)
    images = torch.randn(BATCH, *image_shape, device=device)
    gradient = torch.randn(count, BATCH, classes, device=device)

    def run() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            logits = population(images)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(logits, gradient.to(logits.dtype))
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    run()
    return run


def growth_table(rows: Sequence[GrowthRow]) -> Table:
    table = Table(
        "network", "images", "classes", "K", "backend", "precision", "ms per step and candidate",
        title=f"one training step at batch {BATCH}, {default_device()}, one thread",
    )  # fmt: skip
    for row in rows:
        ms = row.milliseconds
        table.add_row(
            row.network,
            "×".join(map(str, row.image_shape)),
            str(row.classes),
            str(row.population),
            row.backend,
            row.precision,
            f"{ms.median:.2f} ({ms.low:.2f}…{ms.high:.2f})",
        )
    return table


# Whole generations


@dataclass(frozen=True)
class GenerationRow:
    """Wall seconds of one generation that is trained in this process."""

    study: str
    generation: int
    stopping: bool
    seconds: float
    complete: int
    pruned: int
    best: float


def generation_rows(
    names: Sequence[str], root: Path | None, generations: int
) -> Iterator[GenerationRow]:
    """Search the first generations, with the spec's early stopping and without any, in turns."""
    for name in names:
        spec = StudySpec.from_yaml(STUDIES / f"{name}.yaml")
        for stopping in (False, True):
            yield from _generations(name, spec, root, generations, stopping)


def _generations(
    name: str, spec: StudySpec, root: Path | None, generations: int, stopping: bool
) -> Iterator[GenerationRow]:
    if not stopping:
        spec = spec.model_copy(update={"stop_at_chance_after": None, "prune_at": ()})
    objective = NoisyLabelObjective(spec, root=root)
    study = optuna.create_study(direction="maximize")
    study.sampler = make_sampler(spec, study._storage)
    for generation in range(generations):
        trials = [study.ask() for _ in range(spec.popsize)]
        start = perf_counter()
        outcomes = objective.evaluate(trials)
        taken = perf_counter() - start
        pruned = 0
        for trial, outcome in zip(trials, outcomes, strict=True):
            if isinstance(outcome, optuna.TrialPruned):
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                pruned += 1
            elif isinstance(outcome, Exception):
                raise outcome
            else:
                study.tell(trial, outcome)
        values = [outcome for outcome in outcomes if isinstance(outcome, float)]
        yield GenerationRow(
            name, generation, stopping, taken, len(values), pruned, max(values, default=0.0)
        )


def generation_table(rows: Sequence[GenerationRow]) -> Table:
    table = Table(
        "study", "generation", "early stopping", "seconds", "complete", "pruned", "best fitness",
        title=f"one generation in one process on {default_device()}",
    )  # fmt: skip
    for row in rows:
        table.add_row(
            row.study, str(row.generation), "as shipped" if row.stopping else "none",
            f"{row.seconds:.0f}", str(row.complete), str(row.pruned), f"{row.best:.3f}",
        )  # fmt: skip
    return table


# The full setting, estimated


@dataclass(frozen=True)
class EstimateRow:
    """Hours of a whole search on cores like this one, from the measured steps."""

    what: str
    core_hours: float


def estimates(growth: Sequence[GrowthRow]) -> list[EstimateRow]:
    """Estimate whole searches of 30 generations of 12, nothing stopped early, evaluations left out.

    "Full" is every image of the data set but 1 000 for 100 epochs, which the paper's networks
    get in this package's recipes; the paper states neither epochs nor generations.
    """
    best: dict[tuple[str, tuple[int, int, int]], float] = {}
    for row in growth:
        key = row.network, row.image_shape
        best[key] = min(best.get(key, float("inf")), row.milliseconds.median)
    gray, color = (1, 28, 28), (3, 32, 32)
    suites = {
        "architectures (mlp2, mlp3, cnn4 on MNIST)": [(n, gray) for n in ("mlp2", "mlp3", "cnn4")],
        "data sets (cnn4 on MNIST, KMNIST, CIFAR-10)": [("cnn4", s) for s in (gray, gray, color)],
    }
    rows = []
    for name, networks in suites.items():
        for setting, full in (("2 000 images × 28 epochs", False), ("full", True)):
            milliseconds = 0.0
            for network, shape in networks:
                images = (49_000 if shape == color else 59_000) if full else 2000
                steps = -(-images // BATCH) * (100 if full else 28)
                milliseconds += steps * best[network, shape]
            rows.append(EstimateRow(f"{name}, {setting}", 360 * milliseconds / 3.6e6))
    return rows


def estimate_table(rows: Sequence[EstimateRow]) -> Table:
    table = Table(
        "search of 360 candidates", "core-hours", "2 cores", "12 cores (popsize 12)",
        title="estimated from the steps above; nothing stopped early",
    )  # fmt: skip
    for row in rows:
        table.add_row(
            row.what,
            f"{row.core_hours:.1f}",
            f"{row.core_hours / 2:.1f} h",
            f"{row.core_hours / 12:.2f} h",
        )
    return table
