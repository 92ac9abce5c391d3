"""From a bound call to its key; this module never looks at a store and never calls the decorated function.

A call has one identity with two spellings. The *text* is what people and shared stores see: `app.get_user(7,'eu')`, or
what `key=` renders. The *raw* key is a tuple of types and values that memory uses for calls of plain scalars; `Shape`
translates between the two, so that the text need not be stored.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ..errors import OptionError, UnkeyableError
from .binding import Binding, is_plain
from .encode import encode
from .template import Template

__all__ = ["CallKeys", "Shape", "describe"]

LONGEST: Final = 200
"""Bytes of text beyond which the arguments become a digest: below the 250 of memcached, and still readable."""

_LABEL = re.compile(r"[^\s()\[\]{}*?^\\'\"@#%,=\x00-\x1f\x7f]+")

_ESCAPES = re.compile(r"\\[\\'\"abfnrtvxuUN0-7]")


def describe(function: Any) -> str:
    """Return module and qualified name of what is decorated, as errors and default keys name it.

    >>> describe(functools.partial(len))
    'builtins.len'
    """
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", None)
    if not isinstance(name, str):
        function, name = type(function), type(function).__qualname__
    module = getattr(function, "__module__", None)
    return f"{module}.{name}" if isinstance(module, str) else name


def anonymity(function: Any) -> str | None:
    """Return why the name of `function` does not tell it apart from all others, or None if it does."""
    if isinstance(function, functools.partial):
        return "a functools.partial has the name of the function within"
    if not hasattr(function, "__qualname__"):
        return "an object has the name of its class"
    if "<lambda>" in function.__qualname__:
        return "all lambdas have one name"
    if getattr(inspect.unwrap(function), "__closure__", None):
        return "it closes over variables, so that several functions may have its name"
    return None


@dataclass(frozen=True)
class Shape:
    """How the raw keys of one function are laid out; enough to write a key's text and to find a key by its text.

    Attributes:
        label: what stands before the parenthesis.
        parts: for each part of a raw key "" (by position), "*" (the extra positional ones) or the keyword's name.
    """

    label: str
    parts: tuple[str, ...]

    def rest(self) -> Shape:
        """Return the layout without the first part, in the place of which there is an instance."""
        return Shape(self.label, self.parts[1:])

    def fits(self, key: Any) -> bool:
        """Return whether a raw key has this layout."""
        if type(key) is int:
            return len(self.parts) == 1 and self.parts != ("*",)
        return type(key) is tuple and len(key) == 2 * len(self.parts)

    def text(self, key: Any, instance: str | None = None) -> str:
        """Return the text of a key as memory has it; a key that is text already is its own."""
        if isinstance(key, str):
            return key
        if type(key) is int:  # one int alone is its own key
            key = (int, key)
        pieces = [] if instance is None else [instance]
        for index, part in enumerate(self.parts):
            value = key[2 * index + 1]
            if part == "*":
                pieces.extend(encode(each) for each in value)
            else:
                pieces.append(encode(value) if part == "" else f"{part}={encode(value)}")
        return called(self.label, pieces)

    def key(self, text: str) -> Any:
        """Return the raw key that `text` stands for, or `text` if it stands for none.

        What was read is written again and compared, so a text is never taken for a call that it does not name.
        """
        raw: list[Any] = []
        if "\\" in _ESCAPES.sub("", text):
            return text  # `encode` writes no such escape, and the parser would warn of it
        try:
            call = ast.parse(f"f({text[len(self.label) + 1 : -1]})", mode="eval").body
            if not isinstance(call, ast.Call):
                return text
            values = [_literal(node) for node in call.args]
            named = {node.arg: _literal(node.value) for node in call.keywords}
            for part in self.parts:
                if part == "*":
                    raw += [tuple(map(type, values)), tuple(values)]
                else:
                    value = values.pop(0) if part == "" else named[part]
                    raw += [type(value), value]
            single = [raw[2 * index + 1] for index, part in enumerate(self.parts) if part != "*"]
            plain = all(map(is_plain, [*single, *values]))
            key = raw[1] if len(raw) == 2 and raw[0] is int else tuple(raw)
            return key if plain and self.text(key) == text else text
        except (SyntaxError, ValueError, TypeError, LookupError, MemoryError, RecursionError):
            return text


def _literal(node: ast.AST) -> Any:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_literal(node.operand)
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name) and node.id == "inf":
        return math.inf
    raise ValueError(node)


def called(label: str, pieces: Iterable[str]) -> str:
    """Return the text of a call; arguments that would make it long are replaced by their digest."""
    text = f"{label}({','.join(pieces)})"
    if len(text) <= LONGEST // 4 or len(text.encode("utf-8", "surrogatepass")) <= LONGEST:
        return text
    arguments = text[len(label) + 1 : -1].encode("utf-8", "surrogatepass")
    # "#" begins no encoded value, so a digest is never the text of other arguments.
    return f"{label}(#{hashlib.blake2b(arguments, digest_size=20).hexdigest()})"


class CallKeys:
    """Makes the keys of one decorated function; every helper uses the same one.

    Args:
        function: what is decorated, after classmethod and staticmethod are taken off.
        key: a template, a callable, or None.
        ignore: names of parameters that are left out.
        namespace: in the place of module and qualified name.
        version: told apart from other versions.
        name: what errors call the function.

    Raises:
        OptionError: one of these is not allowed.
    """

    def __init__(self, function: Any, *, key: Any, ignore: Any, namespace: str | None, version: Any, name: str) -> None:
        self.name = name
        self.function = function
        self.fleet = False  # whether one load is made for all processes that share a store
        self.many = False  # whether what the function returns are mappings, of which each value has a key
        self.serializer: Any = None  # its own, by name or as an object; None: the store's
        try:
            signature = inspect.signature(function)
        except (ValueError, TypeError) as error:
            raise OptionError(
                f"{name}: its signature cannot be read ({error}), so a call cannot become a key: wrap it in a def"
            ) from None
        names = tuple(signature.parameters)
        ignored = self._ignored(ignore, names)
        self.binding = Binding(signature, ignored, name)
        self.bind = self.binding.bind()
        suffix = "" if version is None else f"@{self._label(str(version), 'version')}"
        self.label = f"{describe(function) if namespace is None else self._label(namespace, 'namespace')}{suffix}"
        self.anonymous = anonymity(function) if namespace is None and key is None else None
        self.template: Template | None = None
        self._callable: Callable[..., Any] | None = None
        self._prefix = "" if namespace is None else f"{namespace}:"
        self._suffix = suffix
        if isinstance(key, str):
            self.template = Template(key, names, name)
            unused = ignored & set(self.template.fields)
            if unused:
                raise OptionError(f"{name}: key={key!r} uses {sorted(unused)}, which ignore= leaves out")
        elif callable(key) and not inspect.iscoroutinefunction(key):
            self._callable = key
        elif key is not None:
            raise OptionError(f"{name}: key={key!r}: allowed are a template ('user:{{user_id}}') and a plain function")
        if key is not None and ignored:
            raise OptionError(f"{name}: ignore= has no meaning beside key=, which names all that counts")
        self.explicit = key is not None

    def _ignored(self, ignore: Any, names: tuple[str, ...]) -> frozenset[str]:
        if isinstance(ignore, str) or not isinstance(ignore, Iterable):
            raise OptionError(f"{self.name}: ignore={ignore!r}: allowed is a tuple of parameter names, as in ('conn',)")
        ignored = tuple(ignore)
        for each in ignored:
            if each not in names:
                raise OptionError(f"{self.name}: ignore={ignored!r}: it has no parameter {each!r}, only {names!r}")
        return frozenset(ignored)

    def _label(self, text: Any, option: str) -> str:
        if not isinstance(text, str) or not _LABEL.fullmatch(text):
            raise OptionError(
                f"{self.name}: {option}={text!r}: allowed is text without spaces, quotes, brackets and *?^\\@#%,="
            )
        return text

    def shape(self) -> Shape:
        """Return the layout of the raw keys."""
        binding, parts = self.binding, []
        for parameter in binding.parameters:
            if parameter.name in binding.ignored or parameter.kind is inspect.Parameter.VAR_KEYWORD:
                continue
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                parts.append("*")
            else:
                parts.append(parameter.name if parameter.kind is inspect.Parameter.KEYWORD_ONLY else "")
        return Shape(self.label, tuple(parts))

    def text(self, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None, instance: str | None = None) -> str:
        """Return the text of a bound call.

        Args:
            args: canonical positional arguments.
            kwargs: canonical keyword arguments or None.
            instance: what stands for the first argument, where that is an instance that counts by identity.

        Raises:
            UnkeyableError: an argument cannot be told apart safely from others.
        """
        if self.template is not None:
            try:
                rendered = self.template.render(self.values(args, kwargs))
            except UnkeyableError as error:
                raise UnkeyableError(f"{self.name}: {error}") from None
            return f"{self._prefix}{rendered}{self._suffix}"
        if self._callable is not None:
            made = self._callable(*args, **(kwargs or {}))
            if not isinstance(made, str):
                raise UnkeyableError(f"{self.name}: key= returned {made!r}: a key is a str")
            return f"{self._prefix}{made}{self._suffix}"
        binding = self.binding
        pieces = [] if instance is None else [instance]
        skip = 0 if instance is None else 1
        named = len(binding.positional)
        for name, value in zip(binding.positional[skip:], args[skip:named], strict=True):
            if name not in binding.ignored:
                pieces.append(self._encoded(name, value))
        if binding.var_positional and binding.var_positional not in binding.ignored:
            pieces.extend(self._encoded(binding.var_positional, value) for value in args[named:])
        if kwargs:
            named_only = [name for name in binding.keyword_only if name not in binding.ignored]
            pieces.extend(f"{name}={self._encoded(name, kwargs[name])}" for name in named_only)
            if binding.var_keyword and binding.var_keyword not in binding.ignored:
                for name in sorted(kwargs.keys() - set(binding.keyword_only)):
                    written = name if name.isidentifier() and name.isascii() else encode(name)
                    pieces.append(f"{written}={self._encoded(name, kwargs[name])}")
        return called(self.label, pieces)

    def texts(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None, name: str, values: Iterable[Any]
    ) -> dict[Any, str]:
        """Return, by value, the texts that a template makes of a bound call with each in the place of an argument.

        Args:
            args: canonical positional arguments.
            kwargs: canonical keyword arguments or None.
            name: of the parameter.
            values: of that parameter.

        Raises:
            UnkeyableError: an argument cannot be told apart safely from others.
        """
        assert self.template is not None
        bound, render, made = self.values(args, kwargs), self.template.render, {}
        try:
            for each in values:
                bound[name] = each
                made[each] = f"{self._prefix}{render(bound)}{self._suffix}"
        except UnkeyableError as error:
            raise UnkeyableError(f"{self.name}: {error}") from None
        return made

    def values(self, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the bound values by parameter, as templates see them."""
        binding = self.binding
        named = len(binding.positional)
        values: dict[str, Any] = dict(zip(binding.positional, args, strict=False))
        if binding.var_positional:
            values[binding.var_positional] = args[named:]
        if kwargs is not None:
            values.update({name: kwargs[name] for name in binding.keyword_only})
        if binding.var_keyword:
            values[binding.var_keyword] = {
                name: value for name, value in (kwargs or {}).items() if name not in binding.keyword_only
            }
        return values

    def _encoded(self, name: str, value: Any) -> str:
        try:
            return encode(value)
        except UnkeyableError as error:
            if value is self.binding.defaults.get(name, _NOTHING):
                # `x=_MISSING`: a private sentinel equals only itself, and here it is the parameter's own.
                return "<default>"
            raise UnkeyableError(
                f"{self.name}: the argument {name!r} cannot be part of a key: {error}. "
                f'If the result does not depend on it, leave it out with ignore=("{name}",); else say with '
                f"key= what counts"
            ) from None

    def refuse_identity(self, instance: object) -> UnkeyableError:
        """Return the error for an instance that counts by identity where that means nothing: on a shared store."""
        kind = type(instance)
        return UnkeyableError(
            f"{self.name}: {kind.__module__}.{kind.__qualname__} counts by identity, which another process cannot "
            f"know: give the class __cache_key__(), make it a frozen dataclass, or say with key= what counts, "
            f'or with ignore=("{self.binding.positional[0]}",) that all instances share their results'
        )


_NOTHING = object()
