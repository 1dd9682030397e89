"""Compare ``GenerationalCmaEsSampler`` with Optuna's: evaluations used, and time per trial.

python benchmarks/sampler.py --quick
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import warnings
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning
from rich.console import Console

sys.path.extend(str(Path(__file__).parents[1] / folder) for folder in ("", "tests"))
from benchmarks import overhead, simulation

PARTS = ("simulation", "overhead")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--part", choices=PARTS, help="both by default")
    parser.add_argument("--quick", action="store_true", help="fewer cases and repetitions")
    parser.add_argument("--seeds", type=int, default=2, help="searches per simulated case")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument(
        "--postgresql",
        metavar="URL",
        help="a server where databases may be created; by default one is started, if installed",
    )
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", ExperimentalWarning)
    console = Console(width=None if sys.stdout.isatty() else 140)
    figures = {"python": platform.python_version(), "optuna": optuna.__version__}
    if options.part in (None, "simulation"):
        with console.status("simulating …"):
            runs = list(simulation.runs(options.quick, options.seeds))
        summary = simulation.summary(runs)
        console.print(simulation.table(summary))
        figures["simulation"] = summary
        figures["runs"] = list(map(simulation.as_json, runs))
    if options.part in (None, "overhead"):
        with console.status("measuring …"):
            rows = list(overhead.rows(options.quick, options.postgresql))
        console.print(overhead.table(rows))
        figures["overhead"] = list(map(overhead.as_json, rows))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
