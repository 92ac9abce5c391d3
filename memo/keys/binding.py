"""From a signature to code: functions that bind a call as Python itself would; this module never calls the user's.

`inspect.Signature.bind` takes microseconds. A generated function with the same parameters lets the interpreter bind,
as `dataclasses` does for `__init__`: it costs nothing beyond the call, and its TypeErrors are the user's own.

A bound call is written as `(args, kwargs)` in one canonical form: every parameter that can be passed by position is,
defaults filled in, then the extra positional arguments; keyword-only and extra keyword arguments are in `kwargs`,
which is None where the signature has neither. `f(*args, **kwargs)` is then the call.
"""

from __future__ import annotations

import functools
import inspect
import keyword
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import OptionError
from .encode import SCALARS

__all__ = ["Binding", "is_plain"]

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def is_plain(value: object) -> bool:
    """Whether `value` may stand in a raw key: an exact scalar that equals only itself.

    0.0 equals -0.0 and NaN does not equal itself, so those go through the encoding, which knows better.
    """
    kind = type(value)
    return kind in SCALARS or (kind is float and value == value and value != 0.0)


def all_plain(values: Iterable[object]) -> bool:
    """Whether all of `values` may stand in a raw key."""
    return all(map(is_plain, values))


class Binding:
    """The generated functions for one signature.

    Args:
        signature: of the function to be called.
        ignored: parameters that are not part of a key.
        function: what errors call it.
    """

    def __init__(self, signature: inspect.Signature, ignored: Iterable[str], function: str) -> None:
        self.function = function
        self.parameters = tuple(signature.parameters.values())
        self.ignored = frozenset(ignored)
        for parameter in self.parameters:
            if not parameter.name.isidentifier() or keyword.iskeyword(parameter.name):
                raise OptionError(f"{function}: a parameter named {parameter.name!r} cannot be bound: decorate a def")
        self.positional = tuple(p.name for p in self.parameters if p.kind in _POSITIONAL)
        self.keyword_only = tuple(p.name for p in self.parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)
        self.var_positional = self._named(inspect.Parameter.VAR_POSITIONAL)
        self.var_keyword = self._named(inspect.Parameter.VAR_KEYWORD)
        self.defaults = {p.name: p.default for p in self.parameters if p.default is not inspect.Parameter.empty}
        self.names = frozenset(p.name for p in self.parameters)
        # Names of ours in generated code begin with this, which no parameter does, whatever they are called.
        prefix = "_m"
        while any(name.startswith(prefix) for name in self.names):
            prefix += "_"
        self._prefix = prefix

    def _named(self, kind: inspect._ParameterKind) -> str | None:
        return next((p.name for p in self.parameters if p.kind is kind), None)

    # -- pieces of source ----------------------------------------------------------------------------------------

    def _header(self, defaults: bool, skip_first: bool) -> str:
        pieces = []
        parameters = self.parameters[1:] if skip_first else self.parameters
        for index, parameter in enumerate(parameters):
            name, kind = parameter.name, parameter.kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                pieces.append(f"*{name}")
            elif kind is inspect.Parameter.VAR_KEYWORD:
                pieces.append(f"**{name}")
            else:
                if kind is inspect.Parameter.KEYWORD_ONLY and not any(p.startswith("*") for p in pieces):
                    pieces.append("*")
                default = f"={self._prefix}defaults[{name!r}]" if defaults and name in self.defaults else ""
                pieces.append(name + default)
            following = parameters[index + 1].kind if index + 1 < len(parameters) else None
            if kind is inspect.Parameter.POSITIONAL_ONLY and following is not inspect.Parameter.POSITIONAL_ONLY:
                pieces.append("/")
        return ", ".join(pieces)

    def _canonical(self, first: str | None = None) -> str:
        """Return the source of the canonical `(args, kwargs)`; `first` stands in the place of the first parameter."""
        names = list(self.positional)
        if first is not None:
            names[0] = first
        if self.var_positional:
            names.append(f"*{self.var_positional}")
        args = f"({', '.join(names)}{',' if len(names) == 1 else ''})"
        if not self.keyword_only and not self.var_keyword:
            return f"{args}, None"
        pairs = [f"{name!r}: {name}" for name in self.keyword_only]
        if self.var_keyword:
            pairs.append(f"**{self.var_keyword}")
        return f"{args}, {{{', '.join(pairs)}}}"

    def _raw(self, skip_first: bool) -> tuple[str, str, str]:
        """Return the source of the raw key, of the condition under which it may be stored, and of one to look it up.

        The type stands before the value: a lookup compares types first, so that no `__eq__` of the user's runs against
        a stored scalar. One int alone is its own key: nothing else in the table equals it, and most keys are ids.
        """
        p, key, plain, empty = self._prefix, [], [], []
        for parameter in self.parameters[1:] if skip_first else self.parameters:
            name = parameter.name
            if name in self.ignored:
                continue
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                key += [f"{p}tuple({p}map({p}type, {name}))", name]
                plain.append(f"{p}all_plain({name})")
            elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
                empty.append(f"not {name}")
            else:
                key += [f"{p}type({name})", name]
                plain.append(f"({p}type({name}) in {p}SCALARS or {p}is_plain({name}))")
        source = f"({', '.join(key)}{',' if len(key) == 1 else ''})"
        if len(key) == 2 and key[0] == f"{p}type({key[1]})":
            source = f"({key[1]} if {p}type({key[1]}) is {p}int else {source})"
        return source, " and ".join(empty + plain) or "True", " and ".join(empty)

    # -- functions -----------------------------------------------------------------------------------------------

    def bind(self) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any] | None]]:
        """Return a function that takes the call's arguments and returns them in the canonical form."""
        return self._make(f"def __call__({self._header(True, False)}):\n return {self._canonical()}\n", {})

    def raw(self, skip_first: bool) -> Callable[..., Any]:
        """Return a function from canonical arguments to the raw key, or None if one of them is no plain scalar."""
        key, plain, _ = self._raw(skip_first)
        return self._make(f"def __call__({self._header(False, skip_first)}):\n return {key} if {plain} else None\n", {})

    def call(
        self, parts: dict[str, Any], *, fast: bool, windows: bool, locked: bool, bound: bool, coroutine: bool
    ) -> Callable[..., Any]:
        """Return the wrapper's `__call__`.

        Args:
            parts: `miss(bound, args, kwargs, key)`, which does the rest; for a fast one also `find` (or, for a
                bound one, `tables` by id of the instance), `state`, `time`, `touch`, `hits` and `lock`.
            fast: look up the raw key in memory first.
            windows: an entry may be due before its time is over, or served after it: `miss` has to look again.
            locked: take the lock for it: without a GIL the recency order is not safe to touch.
            bound: the first parameter is an instance or a class, whose table is looked up by id.
            coroutine: an `async def`.
        """
        p = self._prefix
        raw, plain, condition = self._raw(bound)
        key, instance = f"{p}key", f"{p}instance"
        header = self._header(True, skip_first=bound)
        if bound:
            # By position only: a keyword argument of the user's may have any name.
            header = f"{instance}, {'' if '/' in header else '/, '}{header}"
        lines = [f"{'async ' if coroutine else ''}def __call__({header}):"]
        if fast:
            end = "due" if windows else "fresh_until"
            find = f"{p}tables[{p}id({instance})].get" if bound else f"{p}find"
            # A KeyError says that the instance is new or, from touch, that the entry was just evicted; a TypeError that
            # an argument cannot be hashed; anything else is raised again by what comes after.
            lines += [
                f" {key} = {raw}",
                f" {'if ' + condition if condition else 'if True'}:",
                "  try:",
                f"   {f'with {p}lock' if locked else 'if True'}:",
                f"    {p}entry = {find}({key})",
                f"    if {p}entry is not None and {p}state.latest <= {p}time.monotonic() < {p}entry.{end}:",
                f"     {p}touch({p}entry)",
                f"     {p}next({p}hits)",
                f"     return {p}entry.value",
                f"  except {p}Exception:",
                "   pass",
            ]
        known = f"{key} if {plain} else None" if fast and not bound and not windows else "None"
        canonical = self._canonical(instance if bound else None)
        lines.append(f" return {'await ' if coroutine else ''}{p}miss({bound}, {canonical}, {known})\n")
        return self._make("\n".join(lines), parts)

    def _make(self, source: str, parts: dict[str, Any]) -> Callable[..., Any]:
        p = self._prefix
        builtins = (type, id, int, tuple, map, next, Exception)
        given = {"defaults": self.defaults, "SCALARS": SCALARS, "all_plain": all_plain, "is_plain": is_plain, **parts}
        given.update({each.__name__: each for each in builtins})
        head = f"def make({', '.join(p + name for name in given)}):\n"
        body = "".join(f" {line}\n" for line in source.splitlines())
        namespace: dict[str, Any] = {}
        exec(_compiled(f"{head}{body} return __call__\n"), namespace)  # noqa: S102 - made of checked identifiers only
        function: Callable[..., Any] = namespace["make"](*given.values())
        # Errors of binding ("missing 1 required positional argument") name the function by this.
        function.__qualname__ = function.__name__ = self.function.rpartition(".")[2]
        return function


@functools.lru_cache(maxsize=512)
def _compiled(source: str) -> Any:
    return compile(source, "<memo: bind the call>", "exec")
