"""`python -m memo`: the `memo` command; nothing else is here."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
