"""Tags that depend on a call's arguments, ``"user:{user_id}"``: checked once, then rendered; this drops nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .errors import OptionError, UnkeyableError
from .keys import Template
from .stores.base import checked_tags

__all__ = ["Tags"]


class Tags:
    """The tags of one function's calls.

    Args:
        tags: names, or templates over the parameters.
        parameters: the names that templates may use.
        function: what errors call it.

    Raises:
        OptionError: they are not a tuple or list of texts, or a template is not one.

    >>> Tags(("users", "user:{user_id}"), ["user_id"], "app.get_user").of({"user_id": "a b"})
    ('users', 'user:a b')
    """

    __slots__ = ("_function", "_templates")

    def __init__(self, tags: Any, parameters: Iterable[str], function: str) -> None:
        self._function = function
        if isinstance(tags, str) or not isinstance(tags, (tuple, list)):
            raise OptionError(f"{function}: tags={tags!r}: allowed is a tuple of texts, as in ('users', 'user:{{id}}')")
        try:
            names = checked_tags(tags)
        except OptionError as error:
            raise OptionError(f"{function}: {error}") from None
        try:
            self._templates = tuple((tag, Template(tag, parameters, function)) for tag in names)
        except OptionError as error:
            raise OptionError(str(error).replace(": key=", ": tags=", 1)) from None

    def __bool__(self) -> bool:
        return bool(self._templates)

    def of(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the tags of a call. They are matched whole, so their values are not escaped as those of keys are.

        Raises:
            UnkeyableError: a value has no text of its own.
        """
        try:
            for _, template in self._templates:
                template.render(values)  # refuses what has no text of its own
        except UnkeyableError as error:
            raise UnkeyableError(f"{self._function}: tags: {error}") from None
        return tuple(dict.fromkeys(tag.format_map(values) for tag, _ in self._templates))
