"""For the site's API reference: shows the doctests of docstrings as code; it changes nothing else of them."""

from __future__ import annotations

import re
from typing import Any

import griffe

_DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)


def fenced(text: str) -> str:
    """Return a docstring with each of its doctests, which end at an empty line, as a block of code.

    >>> fenced("Add.\\n\\n>>> 1 + 1\\n2\\n")
    'Add.\\n\\n```pycon\\n>>> 1 + 1\\n2\\n```\\n'
    """
    return _DOCTEST.sub(lambda doctest: f"```pycon\n{doctest[0]}\n```", text)


class Doctests(griffe.Extension):
    """Markdown would take the prompts of a doctest for quotations in quotations."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of one object, as soon as it is read."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
