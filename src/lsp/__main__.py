"""`python -m lsp` is `lsp`."""

import sys

from lsp.cli import main

sys.exit(main())
