#!/usr/bin/env bash
# Everything CI checks. Arguments go to pytest: bash scripts/test.sh tests/test_cli.py
# Left out are the tests marked slow, of lost processes, moved runs and a search: bash scripts/test.sh -m slow
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh --dev
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# A file's tests share what is costly to make, so they stay together on one of the two. Files come in the order of their
# names: by the number of their tests, one long test would come last, with nothing left for the other.
exec .venv/bin/python -m pytest -m 'not slow' -n 2 --dist loadfile --no-loadscope-reorder "$@"
