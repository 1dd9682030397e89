"""How fast a generation trains: beside a plain loop, as a share of the matrix peak, as it grows.

python benchmarks/speed.py [--part PART ...] [--quick] [--json FILE]

Both sides of each comparison take turns in one run; figures are medians with quartiles. MNIST is
downloaded by torchvision, or read from $OPTUNA_ROBUSTLOSS_DATA or --root.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path

import optuna
import torch
from rich.console import Console

sys.path.append(str(Path(__file__).parents[1]))
from benchmarks import speed_growth, speed_loss, speed_suite

PARTS = ("suite", "fitness", "peak", "loss", "growth", "generations")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--part", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--quick", action="store_true", help="fewer cases and repetitions")
    parser.add_argument("--rounds", type=int, help="of every comparison")
    parser.add_argument("--studies", nargs="+", default=["ar_sym80"], help="for generations")
    parser.add_argument("--generations", type=int, default=2)
    parser.add_argument("--root", type=Path, default=os.environ.get("OPTUNA_ROBUSTLOSS_DATA"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    console = Console(width=None if sys.stdout.isatty() else 140)
    figures: dict[str, object] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu, one thread",
    }

    def keep(name: str, rows: list, table: object) -> None:  # type: ignore[type-arg]
        console.print(table)
        figures[name] = [asdict(row) for row in rows]
        if options.json:
            options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")

    rounds = options.rounds or (2 if options.quick else 7)
    if "suite" in options.part:
        suite = list(speed_suite.suite_rows(options.root, rounds))
        keep("suite", suite, speed_suite.suite_table(suite))
    if "fitness" in options.part:
        fitness = list(speed_suite.fitness_rows(options.root, 1 if options.quick else 4))
        keep("fitness", fitness, speed_suite.fitness_table(fitness))
    if "peak" in options.part:
        peak = list(speed_suite.peak_rows(3 * rounds))
        keep("peak", peak, speed_suite.peak_table(peak))
    if "loss" in options.part:
        loss = list(speed_loss.rows(options.quick))
        keep("loss", loss, speed_loss.table(loss))
    if "growth" in options.part:
        growth = speed_growth.growth_rows(options.quick, 3 * rounds)
        keep("growth", growth, speed_growth.growth_table(growth))
        if not options.quick:
            estimates = speed_growth.estimates(growth)
            keep("estimates", estimates, speed_growth.estimate_table(estimates))
    if "generations" in options.part:
        generations = list(
            speed_growth.generation_rows(options.studies, options.root, options.generations)
        )
        keep("generations", generations, speed_growth.generation_table(generations))


if __name__ == "__main__":
    main()
