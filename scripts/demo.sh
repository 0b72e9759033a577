#!/usr/bin/env bash
# The whole story on this machine, in minutes, with no download but the dependencies. Arguments go to `lsp demo`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
exec .venv/bin/lsp demo "$@"
