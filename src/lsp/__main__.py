"""`python -m lsp`."""

from lsp.cli import run

run()
