#!/usr/bin/env bash
# One process on each host of a list, which has one name a line.
#   bash scripts/launch/openmpi.sh hosts.txt --data DATA --recipe recipes/pretrain/base.toml --out RUN
set -euo pipefail
if [[ $# -lt 2 || ! -s "$1" ]]; then
    echo "usage: openmpi.sh HOSTS OPTIONS_OF_LSP_PRETRAIN..." >&2
    exit 2
fi
hosts="$1"
shift
first="$(awk 'NF { print $1; exit }' "$hosts")"
exec mpirun --hostfile "$hosts" --map-by ppr:1:node \
    "${LSP:-$PWD/.venv/bin/lsp}" pretrain --coordinator "$first:${PORT:-12345}" "$@"
