"""`invalidates`: functions that write, and forget what they have made untrue; it never calls what it invalidates."""

from __future__ import annotations

import asyncio
import functools
import inspect
import types
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

from .config import check_store, resolve_store
from .decorator import _Bound, _Cached, _parts
from .errors import InvalidationError, OptionError
from .keys import CallKeys, describe
from .memoized import Memoized, check_function
from .stats import logger
from .stores import Store
from .tags import Tags

__all__ = ["invalidates"]

F = TypeVar("F", bound=Callable[..., Any])

_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class _Place(NamedTuple):
    """What one write invalidates of one target; found before the write, so that what cannot be found stops it."""

    memoized: Memoized
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    bound: bool
    space: Any
    keys: list[Any]

    def now(self) -> tuple[Any, list[Any]]:
        """Return the space and the keys as they are after the write.

        The keys are those of before, whatever the write has done to its arguments. But the space may be another:

        1. a write begins   2. `configure` or, for an instance, `invalidate_all` gives the target a new space
        3. a call loads the old value into that one   4. the write ends, and must not look in the space of before
        """
        try:
            space, keys = self.memoized.places(self.args, self.kwargs, self.bound)
        except Exception:  # noqa: BLE001 - the write has made its arguments unfit for a key: it is where it was
            return self.space, self.keys
        return (space, self.keys) if space is self.space else (space, keys)


class _Target:
    """One cached function that a writer invalidates.

    Args:
        target: as it was given.
        writer: the keys of the writer, for the names of its parameters; None: `call` says what to invalidate.
        name: what errors call the writer.
    """

    def __init__(self, target: Any, writer: CallKeys | None, name: str) -> None:
        self.memoized, self.given, self.bound = _found(target, name)
        self.name = name
        self.taken: list[str] = []  # parameters whose arguments are the writer's
        self.of_self = False  # its class is that of the writer's self
        if writer is not None:
            self._match({each.name: each for each in writer.binding.parameters})

    def _match(self, theirs: dict[str, inspect.Parameter]) -> None:
        keys = self.memoized.keys
        own = keys.binding.parameters[len(self.given) :]
        needed = {each.name for each in own} - keys.binding.ignored
        if keys.template is not None:
            needed &= {*keys.template.fields}
        for each in own:
            like, variable = theirs.get(each.name), each.kind in _VARIABLE
            if like is not None and (like.kind is each.kind or not (variable or like.kind in _VARIABLE)):
                self.taken.append(each.name)
            elif each is own[0] and each.name == "cls" and "self" in theirs:
                self.of_self = True
            elif each.name in needed and each.name not in keys.binding.defaults and not variable:
                raise OptionError(
                    f"{self.name}: it invalidates {self.memoized.name}, whose parameter {each.name!r} it does not "
                    f"have: say with call= which call that is, as in call=lambda {', '.join(theirs)}: (...,)"
                )

    def from_names(self, values: dict[str, Any]) -> _Place:
        """Return the place of the call that has the writer's arguments, by their names."""
        binding = self.memoized.keys.binding
        known = {**dict.fromkeys(binding.names), **binding.defaults}
        known.update(zip(binding.positional, self.given, strict=False))
        known.update({name: values[name] for name in self.taken})
        if self.of_self:
            known["cls"] = type(values["self"])
        args = tuple(known[name] for name in binding.positional)
        kwargs = {name: known[name] for name in binding.keyword_only}
        if binding.var_positional is not None:
            args += known[binding.var_positional] or ()
        if binding.var_keyword is not None:
            kwargs |= known[binding.var_keyword] or {}
        if self.memoized.method and not self.given:
            self._check_class(args[0])
        return self._place(args, kwargs)

    def _check_class(self, instance: Any) -> None:
        """Raise OptionError if `instance` counts and is not of the target's class, of whose calls it is in none."""
        keys, function = self.memoized.keys, self.memoized.plan.function
        if keys.explicit or self.memoized.first in keys.binding.ignored or not self.memoized.in_class:
            return
        owner = (function.__module__, function.__qualname__.rpartition(".")[0])
        cls = instance if isinstance(instance, type) else type(instance)
        if owner not in [(each.__module__, each.__qualname__) for each in cls.__mro__]:
            raise OptionError(
                f"{self.name}: it invalidates {self.memoized.name}, a method of another class than {cls.__qualname__}: "
                f"say with call= which call that is, the instance first"
            )

    def from_call(self, made: Any) -> _Place | None:
        """Return the place of the call that `call=` has returned."""
        if made is None:
            return None
        if not isinstance(made, (tuple, dict)):
            raise OptionError(
                f"{self.name}: call= returned a {type(made).__name__}: allowed are a tuple of the positional arguments "
                f"of {self.memoized.name}, such as (7,), a dict of its keyword arguments, and None for nothing"
            )
        args, kwargs = ((), made) if isinstance(made, dict) else (made, {})
        canonical, named = self.memoized.keys.bind(*self.given, *args, **kwargs)
        return self._place(canonical, named or {})

    def _place(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Place:
        return _Place(self.memoized, args, kwargs, self.bound, *self.memoized.places(args, kwargs, self.bound))


def _found(target: Any, name: str) -> tuple[Memoized, tuple[Any, ...], bool]:
    """Return a target, the arguments that it has already and whether these are an instance or a class."""
    inner = target.__func__ if isinstance(target, (classmethod, staticmethod)) else target  # in the body of its class
    while not issubclass(type(inner), (_Cached, _Bound)):
        if type(inner) is types.MethodType and issubclass(type(inner.__func__), _Cached):  # @classmethod above
            return _parts(inner.__func__, ())[0], (inner.__self__,), False
        if not hasattr(inner, "__wrapped__"):
            raise OptionError(
                f"{name}: what it invalidates are functions decorated with cache_aside or cache_aside_many, and "
                f"{target!r} is none"
            )
        inner = inner.__wrapped__
    return _parts(inner, ())


class _Writes:
    """What one writer invalidates, and when: found before the write, done after it."""

    def __init__(self, function: Any, targets: tuple[Any, ...], call: Any, tags: Any, store: Store | str) -> None:
        self.name = name = describe(function)
        self.is_async = check_function(
            function, name, "a writer: it has not ended when it returns. Decorate what runs through it"
        )
        check_store(store, name)
        if call is not None and (not callable(call) or inspect.iscoroutinefunction(call)):
            raise OptionError(f"{name}: call={call!r}: allowed is a plain function of the writer's arguments")
        if call is not None and not targets:
            raise OptionError(f"{name}: call= says which call of a cached function to invalidate, and none is given")
        self.call = call
        self.keys = CallKeys(function, key=None, ignore=(), namespace=None, version=None, name=name)
        self.targets = [_Target(each, self.keys if call is None else None, name) for each in targets]
        self.tags = Tags(tags, self.keys.binding.names, name)
        self.store = store

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[_Place], tuple[str, ...]]:
        """Return what is to be invalidated, by the arguments as they are before the write."""
        canonical, named = self.keys.bind(*args, **kwargs)
        values = self.keys.values(canonical, named)
        if self.call is None:
            found = [target.from_names(values) for target in self.targets]
        else:
            made = self.call(*args, **kwargs)
            found = [place for target in self.targets if (place := target.from_call(made)) is not None]
        return found, self.tags.of(values)

    def after(self, found: tuple[list[_Place], tuple[str, ...]], result: Any) -> None:
        """Invalidate, blocking; try everything before the first failure is raised.

        Raises:
            InvalidationError: something could not be invalidated.
        """
        places, tags = found
        errors: list[Exception] = []
        for place in places:
            space, keys = place.now()
            _try(errors, space.remove_many, keys)
        if tags:
            _try(errors, lambda: resolve_store(self.store).invalidate_tags(*tags))
        self._report(errors, result)

    async def aafter(self, found: tuple[list[_Place], tuple[str, ...]], result: Any) -> None:
        """Do what `after` does, awaiting stores that block; a cancellation comes when it is done."""
        places, tags = found
        errors: list[Exception] = []
        distant: list[Callable[[], Awaitable[Any]]] = []
        for place in places:
            space, keys = place.now()
            if space.local:
                _try(errors, space.remove_many, keys)
            else:
                distant.append(functools.partial(space.aremove_many, keys))
        if tags:
            distant.append(lambda: resolve_store(self.store).ainvalidate_tags(*tags))
        if distant:
            # The write has happened, so its caller may be cancelled, but not what follows from it.
            task = asyncio.ensure_future(_try_all(errors, distant))
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                await asyncio.wait([task])
                if errors:
                    logger.error("%s succeeded, and was cancelled; %d invalidations failed", self.name, len(errors))
                raise
        self._report(errors, result)

    def _report(self, errors: list[Exception], result: Any) -> None:
        if errors:
            raise InvalidationError(
                f"{self.name}: the write succeeded (its result is this error's `result`), but not everything could be "
                f"invalidated: what it has made untrue may be served until it expires",
                result,
                tuple(errors),
            ) from errors[0]


def _try(errors: list[Exception], remove: Callable[..., Any], *args: Any) -> None:
    try:
        remove(*args)
    except Exception as error:  # noqa: BLE001 - reported when all have been tried
        errors.append(error)


async def _try_all(errors: list[Exception], removals: list[Callable[[], Awaitable[Any]]]) -> None:
    for remove in removals:
        try:
            await remove()
        except Exception as error:  # noqa: BLE001, PERF203 - as in _try
            errors.append(error)


def invalidates(
    *targets: Any,
    call: Callable[..., tuple[Any, ...] | dict[str, Any] | None] | None = None,
    tags: tuple[str, ...] | list[str] = (),
    store: Store | str = "default",
) -> Callable[[F], F]:
    """Invalidate results of cached functions after each call of a writer that succeeds, before it returns.

    For `def` and `async def`, functions, methods, classmethods and staticmethods. A writer that raises invalidates
    nothing. What is to be invalidated is found before the write, by the arguments as they are then, so that an error
    in finding it stops the write.

    Args:
        targets: functions decorated with `cache_aside` or `cache_aside_many`. Without `call` the arguments of the
            writer are theirs, by name; others have their defaults.
        call: a function of the writer's arguments that returns those of the targets: a tuple of positional ones, a dict
            of keyword ones, or None, when nothing is to be invalidated.
        tags: names, or templates over the writer's parameters, of tags to invalidate.
        store: in which store the tags are: a store, or the name or URL of one.

    Raises:
        OptionError: an option is not allowed, or a parameter of a target has no counterpart.
        InvalidationError: at a call that has written: something could not be invalidated.

    >>> from memo import cache_aside
    >>> names = {7: "Ada"}
    >>> @cache_aside
    ... def get_name(user_id):
    ...     return names[user_id]
    >>> @invalidates(get_name)
    ... def rename(user_id, name):
    ...     names[user_id] = name
    >>> before = get_name(7); rename(7, "Grace"); before, get_name(7)
    ('Ada', 'Grace')
    """
    if not targets and not tags:
        raise OptionError(
            "invalidates: name what to invalidate, as in @invalidates(get_user) or @invalidates(tags=...)"
        )
    for target in targets:
        _found(target, "invalidates")

    def decorate(function: Any) -> Any:
        inner = function.__func__ if isinstance(function, (classmethod, staticmethod)) else function
        if isinstance(inner, type) or not callable(inner):
            raise OptionError(f"invalidates decorates functions and methods, not {inner!r}")
        writes = _Writes(inner, targets, call, tags, store)

        @functools.wraps(inner)
        def write(*args: Any, **kwargs: Any) -> Any:
            found = writes.before(args, kwargs)
            result = inner(*args, **kwargs)
            if isinstance(result, Awaitable):
                if isinstance(result, types.CoroutineType):
                    result.close()  # else Python warns, beside the error, that it was never awaited
                raise TypeError(
                    f"{writes.name} returned a {type(result).__name__}, so it has not written yet: decorate "
                    f"an `async def`"
                )
            writes.after(found, result)
            return result

        @functools.wraps(inner)
        async def awrite(*args: Any, **kwargs: Any) -> Any:
            found = writes.before(args, kwargs)
            result = await inner(*args, **kwargs)
            await writes.aafter(found, result)
            return result

        wrapper: Any = awrite if writes.is_async else write
        return type(function)(wrapper) if inner is not function else wrapper

    return decorate
