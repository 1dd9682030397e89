"""A worker for a study in a shared database: start as many as there are cores, on any host.

export OPTUNA_STORAGE=URL
optuna create-study --study-name NAME --direction maximize
python studies/worker.py NAME --spec studies/ar_sym80.yaml
"""

import argparse
import os

import optuna
import torch

from optuna_robustloss import (
    NoisyLabelObjective,
    StudySpec,
    open_storage,
    open_study,
    run_worker,
)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study_name")
    parser.add_argument(
        "--storage",
        default=os.environ.get("OPTUNA_STORAGE"),
        help="URL of the database, by default $OPTUNA_STORAGE, which other users cannot see",
    )
    parser.add_argument("--spec", help="YAML file, for a study that has no spec yet")
    parser.add_argument("--root", help="folder of the data")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of this worker")
    arguments = parser.parse_args()
    if arguments.storage is None:
        parser.error("give --storage, or set OPTUNA_STORAGE")

    optuna.logging.set_verbosity(optuna.logging.INFO)
    torch.set_num_threads(arguments.threads)
    given = StudySpec.from_yaml(arguments.spec) if arguments.spec else None
    study = open_study(open_storage(arguments.storage, wait=True), arguments.study_name, given)
    run_worker(study, NoisyLabelObjective.from_study(study, root=arguments.root))
