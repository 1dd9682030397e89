r"""How early, how cheaply and how coarsely may a loss be judged? Ranks candidates, and compares.

python benchmarks/ranking.py studies/ar_sym80.yaml --study ar --storage sqlite:///ar.db \
    --generations 0 3 8 15 --variants "" precision=float32 train=8000,epochs=50

Trains the candidates of some generations of a finished search (without one: losses drawn as its
first generation is) to the end, with nothing stopped early, and once for each variant of the
recipe. Within each generation all share noise, split and initial weights. It prints, as means over
the generations:

- the rank correlation of early signals, the accuracy along the way first of all, with the accuracy
  at the end, for every network and for the mean over the networks ("prune_at" of a spec);
- how many candidates would be stopped as near chance at each moment, and how many of them would
  have ended in the better half ("stop_at_chance_after" of a spec);
- the rank correlation of the fitness under each variant with that under the first.

It goes on where it was stopped: what is in the file --out is not trained again.
"""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import cast

import numpy as np
import optuna
import torch
from ranking_tables import print_tables  # the file beside this one

from optuna_robustloss import StudySpec
from optuna_robustloss.attributes import START
from optuna_robustloss.distributed.storage import open_storage
from optuna_robustloss.search.objective import generation_of
from optuna_robustloss.search.parameters import LossParameters
from optuna_robustloss.seeds import derive_seed
from optuna_robustloss.tasks.prepare import Task, prepare_task
from optuna_robustloss.training.population.backend import Backend
from optuna_robustloss.training.train import steps_per_epoch, train

Candidates = dict[str, LossParameters]
Curve = dict[str, list[float]]
#: Evaluations of a run.
MOMENTS = 28


def from_study(spec: StudySpec, study: optuna.Study, generations: list[int]) -> list[Candidates]:
    """Candidates of each generation by their trial's number."""
    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    first = [t for t in complete if START.read(t) is None]
    return [
        {
            str(t.number): spec.space.at(t.params)
            for t in first
            if generation_of(t, spec.popsize) == generation
        }
        for generation in generations
    ]


def drawn(spec: StudySpec, generations: list[int]) -> list[Candidates]:
    """Candidates drawn like a first generation: normal around the start, within the bounds."""
    return [
        {
            f"{generation}.{k}": spec.space.at(_draw(spec, np.random.default_rng((generation, k))))
            for k in range(spec.popsize)
        }
        for generation in generations
    ]


def _draw(spec: StudySpec, rng: np.random.Generator) -> dict[str, float]:
    point = {}
    for name, distribution in spec.space.distributions.items():
        low, high = distribution.low, distribution.high
        if distribution.log:
            low, high = math.log(low), math.log(high)
        value = rng.normal((low + high) / 2, spec.sigma0 * (high - low) / (2 * spec.half_width))
        value = min(max(value, low), high)
        point[name] = math.exp(value) if distribution.log else value
    return point


def variant_of(spec: StudySpec, text: str) -> tuple[StudySpec, Backend | None]:
    """Apply ``train=8000,epochs=50,cnn4.precision=bfloat16,backend=batch``, and return the backend.

    ``train`` and ``validation`` are of the spec, the others of the recipe, or of one network's.
    """
    changes = dict(item.split("=", 1) for item in text.split(",") if item)
    backend = cast(Backend | None, changes.pop("backend", None))
    sizes = {k: int(changes.pop(k)) for k in ("train", "validation") if k in changes}
    values = spec.model_dump(mode="json") | sizes
    for key, value in changes.items():
        architecture, _, setting = key.rpartition(".")
        of = values["recipes"].setdefault(architecture, {}) if architecture else values["recipe"]
        of[setting] = _number(value)
    return StudySpec.model_validate(values), backend


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def curves(
    task: Task, losses: list[LossParameters], seed: int, backend: Backend | None = None
) -> list[Curve]:
    """Train to the end, and watch the validation images and the noisy training labels."""
    per_epoch, epochs = steps_per_epoch(task), task.spec.recipe.epochs
    count = min(MOMENTS, epochs)
    runs = train(
        task,
        [loss.build(task.num_classes) for loss in losses],
        seed=seed,
        evaluate_on=task.validation,
        evaluate_also_on=[replace(task.train, index=task.train.index[: len(task.validation)])],
        evaluate_at=[round(epochs * (i + 1) / count) * per_epoch for i in range(count)],
        backend=backend,
    ).finish()
    padded = [[*run.curve, *[run.curve[-1]] * (count - len(run.curve))] for run in runs]
    return [
        {
            "validation": [point.accuracy for point in points],
            "noisy": [point.also[0] for point in points],
        }
        for points in padded  # a diverged run stays where it ended
    ]


def main() -> None:
    """Train what is missing, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("spec", type=Path)
    parser.add_argument("--study", help="a finished search whose candidates are taken")
    parser.add_argument("--storage", help="its database")
    parser.add_argument("--generations", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--variants", nargs="+", default=[""], help="the first is the yardstick")
    parser.add_argument("--tasks", nargs="+", help="labels of the tasks; all by default")
    parser.add_argument("--out", type=Path, default=Path("ranking.json"))
    parser.add_argument("--root", help="folder of the data")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    spec = StudySpec.from_yaml(arguments.spec)
    if arguments.study:
        storage = open_storage(arguments.storage)
        study = optuna.load_study(study_name=arguments.study, storage=storage)
        generations = from_study(spec, study, arguments.generations)
    else:
        generations = drawn(spec, arguments.generations)
    done = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
    known = {(r["variant"], r["task"], r["generation"]) for r in done}
    for number, candidates in zip(arguments.generations, generations, strict=True):
        for variant in arguments.variants:
            seed = derive_seed(spec.seed, "generation", number)
            changed, backend = variant_of(spec, variant)
            for task_spec in changed.tasks:
                label = task_spec.label
                if (variant, label, number) in known or label not in (arguments.tasks or [label]):
                    continue
                task = prepare_task(task_spec, seed=seed, root=arguments.root)
                start = perf_counter()
                found = curves(task, list(candidates.values()), seed, backend)
                record = {
                    "variant": variant,
                    "task": label,
                    "generation": number,
                    "candidates": list(candidates),
                    "classes": task.num_classes,
                    "seconds": perf_counter() - start,
                    "curves": found,
                }
                done.append(record)
                print(label, variant or "as it is", f"generation {number}", flush=True)
                arguments.out.write_text(json.dumps(done))
    print_tables(done, arguments.variants)


if __name__ == "__main__":
    main()
