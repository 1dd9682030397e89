"""Adaptive phases against a fixed switch and scaled static losses, blind, at one length.

Accuracy on the clean validation images after the last step, one fixed setting for all networks and
noises. Writes one JSON line a training condition, so that a stopped run keeps what it has.

    python -m benchmarks.adaptive --out adaptive.jsonl                        # 4 000 images x 50
    python -m benchmarks.adaptive --train 2000 --epochs 28 --out short.jsonl
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from optuna_robustloss.losses import CONFIRM_THETA, PhasedLoss, SCELoss, TaylorLoss, make_loss
from optuna_robustloss.tasks.prepare import prepare_task
from optuna_robustloss.tasks.spec import TaskSpec
from optuna_robustloss.training.train import steps_per_epoch, train

NOISES = ("symmetric:0.8", "symmetric:0.4", "asymmetric:0.4", "pair:0.4", "none")


def adaptive(num_classes: int, **options: Any) -> PhasedLoss:
    """Return SCE into −½ ŷ_t² with an adaptive switch."""
    late = TaylorLoss(CONFIRM_THETA, num_classes, eta=0.5)
    return PhasedLoss(SCELoss(), late, switch="adaptive", **options)


def build_losses(num_classes: int, lr: float, total_steps: int) -> dict[str, nn.Module]:
    """Return the rows of the table."""
    late = TaylorLoss(CONFIRM_THETA, num_classes, eta=0.5)
    fixed = {"switch": 2.5, "width": 1.25, "lr": lr, "total_steps": total_steps}
    static = ("sce", "sce*0.1", "sce*0.2", "gce", "gce*0.2", "ce", "ce*0.1")
    return {
        "adaptive, after 2, guard .02": make_loss("adaptive-sce-confirm", num_classes),
        "adaptive, after 2, guard .03": adaptive(num_classes, after=2.0, guard=0.03),
        "adaptive, after 2.5, guard .015": adaptive(num_classes, after=2.5, guard=0.015),
        "adaptive without the learning rate": adaptive(num_classes),
        "fixed switch at 2.5": PhasedLoss.at_cumulative_lr(SCELoss(), late, **fixed),
    } | {name: make_loss(name, num_classes) for name in static}


def run(arguments: argparse.Namespace) -> None:
    """Train every condition, and print the means."""
    totals: dict[str, list[float]] = {}
    for seed in arguments.seeds:
        for network in arguments.networks:
            for noise in arguments.noises:
                spec = TaskSpec.parse(
                    f"{arguments.dataset},{network},{noise}",
                    train=arguments.train,
                    validation=arguments.validation,
                    recipe={"epochs": arguments.epochs},
                )
                task = prepare_task(spec, seed=seed, root=arguments.data)
                steps = steps_per_epoch(task) * arguments.epochs
                losses = build_losses(task.num_classes, spec.recipe.lr, steps)
                training = train(task, [*losses.values()], seed=seed, evaluate_on=task.validation)
                pairs = zip(losses, training.finish(), strict=True)
                row = {name: result.curve[-1].accuracy for name, result in pairs}
                line = json.dumps({"task": spec.label, "seed": seed, "accuracy": row})
                with arguments.out.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
                print(line, flush=True)
                for name, accuracy in row.items():
                    totals.setdefault(name, []).append(accuracy)
    for name, values in sorted(totals.items(), key=lambda pair: -sum(pair[1])):
        print(f"{name:36} {100 * sum(values) / len(values):5.1f}   n = {len(values)}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--networks", nargs="+", default=["mlp2", "mlp3"])
    parser.add_argument("--noises", nargs="+", default=list(NOISES))
    parser.add_argument("--train", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--validation", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data", type=Path, help="folder of the data")
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines")
    torch.set_num_threads(1)
    run(parser.parse_args())


if __name__ == "__main__":
    main()
