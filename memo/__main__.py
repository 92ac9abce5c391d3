"""The way to the `memo` command, as `memo` and as `python -m memo`: it only says what to install if that is missing."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    """Run the command of `cli`; return the exit code, 1 if the extra `cli` is not installed."""
    try:
        from .cli import main as command
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("click", "rich"):
            raise
        print(
            "memo: the command needs click and rich, which the library does without:\n"
            '    python -m pip install "memo-cache[cli]"',
            file=sys.stderr,
        )
        return 1
    return command()


if __name__ == "__main__":
    sys.exit(main())
