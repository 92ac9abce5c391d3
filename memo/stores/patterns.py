"""Globs over keys: `*`, `?`, `[...]`; this module never touches a store."""

from __future__ import annotations

import fnmatch
import functools
import re

from ..errors import OptionError

__all__ = ["compile_pattern", "escape_pattern"]


def escape_pattern(text: str) -> str:
    """Return a pattern that matches exactly `text`.

    >>> escape_pattern("user:*")
    'user:[*]'
    """
    return re.sub(r"([*?\[])", r"[\1]", text)


@functools.lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern))


def compile_pattern(pattern: object) -> re.Pattern[str]:
    """Return the compiled form of a glob, which matches whole keys, case and line breaks included.

    Raises:
        OptionError: it is no text.
    """
    if not isinstance(pattern, str):
        raise OptionError(f"pattern={pattern!r}: allowed is text with *, ? and [...]")
    return _compiled(pattern)
