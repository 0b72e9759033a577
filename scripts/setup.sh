#!/usr/bin/env bash
# Makes .venv with lsp and its locked dependencies. Running it again is instant.
#   bash scripts/setup.sh          what a user needs
#   bash scripts/setup.sh --dev    and what the tests need
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-}" in
    "") extra="" ;;
    --dev) extra=dev ;;
    *) echo "usage: bash scripts/setup.sh [--dev]" >&2; exit 2 ;;
esac

# The stamp names what was installed; it lies inside .venv, so that it goes when .venv goes.
stamp=.venv/lsp.stamp
wanted="$PWD $(cat uv.lock pyproject.toml | cksum)"
installed="$(cat "$stamp" 2>/dev/null || true)"
if [[ -x .venv/bin/lsp && ( "$installed" == "$wanted" && -z "$extra" || "$installed" == "$wanted dev" ) ]]; then
    exit 0
fi

# The first interpreter that runs and is one of ours; a name on PATH may be a shim that does not.
python=""
for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.14 python3.11; do
    if [[ -n "$candidate" ]] && "$candidate" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; then
        python="$(command -v "$candidate")"
        break
    fi
done

if command -v uv >/dev/null; then
    echo "setup: installing the locked dependencies into .venv with uv" >&2
    uv sync --locked --quiet --no-default-groups ${extra:+--extra "$extra"} ${python:+--python "$python"} >&2
elif [[ -n "$python" ]]; then
    echo "setup: installing the locked dependencies into .venv with $python and pip (a few minutes the first time)" >&2
    "$python" -m venv --clear .venv
    .venv/bin/python scripts/constraints.py > .venv/constraints.txt
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint .venv/constraints.txt \
        --editable ".${extra:+[$extra]}" >&2
else
    echo "error: no Python 3.11 to 3.14 with venv was found." >&2
    echo "fix: install one (Debian and Ubuntu: apt install python3 python3-venv), or name it: PYTHON=/path/to/python3 bash scripts/setup.sh" >&2
    exit 5
fi
printf '%s' "$wanted${extra:+ $extra}" > "$stamp"
echo "setup: done; run .venv/bin/lsp" >&2
