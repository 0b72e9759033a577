#!/usr/bin/env bash
# One process on each of two nodes; saves and queues itself again two minutes before the time is up.
#   sbatch --nodes 2 --time 4:00:00 scripts/launch/slurm.sh --data DATA --recipe recipes/pretrain/base.toml --out RUN
#SBATCH --job-name=lsp
#SBATCH --ntasks-per-node=1
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail
srun --kill-on-bad-exit=1 "${LSP:-.venv/bin/lsp}" pretrain "$@"
code=$?
if [[ $code == 75 ]]; then # stopped early with everything saved
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
