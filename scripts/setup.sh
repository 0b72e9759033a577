#!/usr/bin/env bash
# Makes .venv with lsp and its locked dependencies. Running it again is instant.
#   bash scripts/setup.sh              what a user needs
#   bash scripts/setup.sh onnx plots   and these extras; those that are there stay
#   bash scripts/setup.sh --dev        and what the tests need
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

known="$(sed -n '/^\[project.optional-dependencies\]/,/^\[project.scripts\]/s/^\([a-z]*\) = .*/\1/p' pyproject.toml)"
asked=""
for word in "$@"; do
    extra="${word#--}"
    if [[ "$word" == --* && "$word" != --dev ]] || ! grep -qx -- "$extra" <<< "$known"; then
        echo "usage: bash scripts/setup.sh [--dev] [EXTRA]…   extras: ${known//$'\n'/ }" >&2
        exit 2
    fi
    asked+="$extra"$'\n'
done

# The stamp names what was installed, and the extras below it; it lies inside .venv, so that it goes when .venv goes.
stamp=.venv/lsp.stamp
wanted="$PWD $(cat uv.lock pyproject.toml | cksum)"
installed="$(sed -n 1p "$stamp" 2>/dev/null || true)"
there="$(sed 1d "$stamp" 2>/dev/null || true)"
extras="$(printf '%s\n%s' "$there" "$asked" | sed '/^$/d' | sort -u)"
[[ -x .venv/bin/lsp && "$installed" == "$wanted" ]] || installed=""
if [[ -n "$installed" && "$extras" == "$there" ]]; then
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
    flags="$(sed 's/^/--extra /' <<< "$extras")"
    # shellcheck disable=SC2086  # words of flags
    uv sync --locked --quiet --no-default-groups ${extras:+$flags} ${python:+--python "$python"} >&2
elif [[ -n "$python" || -n "$installed" ]]; then
    echo "setup: installing the locked dependencies into .venv with ${python:-its Python} and pip (a few minutes the first time)" >&2
    [[ -n "$installed" ]] || "$python" -m venv --clear .venv
    .venv/bin/python scripts/constraints.py > .venv/constraints.txt
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint .venv/constraints.txt \
        --editable ".${extras:+[${extras//$'\n'/,}]}" >&2
else
    echo "error: no Python 3.11 to 3.14 with venv was found." >&2
    echo "fix: install one (Debian and Ubuntu: apt install python3 python3-venv), or name it: PYTHON=/path/to/python3 bash scripts/setup.sh" >&2
    exit 5
fi
printf '%s\n' "$wanted" ${extras:+"$extras"} > "$stamp"
echo "setup: done; run .venv/bin/lsp, or once in a shell: export PATH=\"\$PWD/.venv/bin:\$PATH\"" >&2
