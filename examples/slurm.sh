#!/bin/bash
# Sixteen workers on one study as a SLURM array job; each element is one process on one core.
#
#   export OPTUNA_STORAGE=postgresql+psycopg://user:password@dbhost/optuna
#   optuna-robustloss init studies/ar_sym80.yaml --study-name ar
#   sbatch examples/slurm.sh ar
#
# Without a database server: OPTUNA_STORAGE=journal:/shared/ar.log, a file on the shared file system.
# A job that is cancelled, pre-empted or out of time loses nothing but its running candidates; submit
# the script again to go on. Workers end by themselves when the study is complete.
#SBATCH --job-name=robustloss
#SBATCH --array=0-15
#SBATCH --cpus-per-task=1
#SBATCH --mem=3G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@60

set -euo pipefail
study=${1:?usage: sbatch examples/slurm.sh STUDY}
: "${OPTUNA_STORAGE:?set it to the URL of the storage; sbatch passes it on}"
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK

srun optuna-robustloss work --study-name "$study" --threads "$SLURM_CPUS_PER_TASK"
