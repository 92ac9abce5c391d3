"""Generated binding binds as Python does; one call has one key, and two calls have two."""

from __future__ import annotations

import inspect
import itertools
import random
from typing import Any

import pytest

from memo import OptionError, cache_aside
from memo.keys import Binding, CallKeys, is_plain

_EMPTY = inspect.Parameter.empty
_KINDS = inspect._ParameterKind

# Names that generated code, the wrapper or a careless library could want for itself.
# fmt: off
NAMES = (
    "self", "cls", "wrapped", "args", "kwargs", "type", "id", "time", "entry", "value", "function", "key", "_m", "_m_",
    "_m_table", "_mdefaults", "_mentry", "_mbound", "instance", "make", "defaults", "memo", "store", "tuple", "map",
    "next", "None_", "print", "match", "case", "é", "x", "y",
)
# fmt: on


class Unequal:
    """A default that must never be compared, hashed or printed."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise AssertionError("compared")

    def __repr__(self) -> str:
        return "unprintable\n)('\""


SENTINEL = object()
DEFAULTS: tuple[Any, ...] = (None, 0, 1.5, "d'\"\\\n", b"", (), [1, [2]], {"a": {}}, {1}, SENTINEL, Unequal(), len, int)


def signatures(count: int) -> list[inspect.Signature]:
    """All mixtures of kinds first, then random ones; the same in every run."""
    made = []
    choose = random.Random(7)
    shapes = list(itertools.product(range(3), range(3), (False, True), range(3), (False, True)))
    while len(made) < count:
        only, either, extra, named, keywords = shapes[len(made) % len(shapes)]
        names = choose.sample(NAMES, only + either + extra + named + keywords)
        parameters = []
        defaulted = False
        for place in range(only + either):
            defaulted = defaulted or choose.random() < 0.3
            kind = _KINDS.POSITIONAL_ONLY if place < only else _KINDS.POSITIONAL_OR_KEYWORD
            default = choose.choice(DEFAULTS) if defaulted else _EMPTY
            parameters.append(inspect.Parameter(names.pop(), kind, default=default))
        if extra:
            parameters.append(inspect.Parameter(names.pop(), _KINDS.VAR_POSITIONAL))
        for _ in range(named):
            default = choose.choice((_EMPTY, choose.choice(DEFAULTS)))
            parameters.append(inspect.Parameter(names.pop(), _KINDS.KEYWORD_ONLY, default=default))
        if keywords:
            parameters.append(inspect.Parameter(names.pop(), _KINDS.VAR_KEYWORD))
        made.append(inspect.Signature(parameters))
    return made


SIGNATURES = signatures(216)


def calls(signature: inspect.Signature, choose: random.Random) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Call forms, right and wrong: more and fewer arguments, by position and by name, known and unknown names."""
    names = [
        name for name, p in signature.parameters.items() if p.kind not in (_KINDS.VAR_POSITIONAL, _KINDS.VAR_KEYWORD)
    ]
    forms: list[tuple[tuple[Any, ...], dict[str, Any]]] = [((), {})]
    for count in range(len(names) + 2):
        given = tuple(choose.choice((count, str(count), (count,))) for _ in range(count))
        rest = names[count:]
        forms.append((given, {}))
        forms.append((given, {name: name.upper() for name in rest}))
        choose.shuffle(rest)
        forms.append((given, {name: name.upper() for name in rest}))
        forms.append((given, dict.fromkeys(rest[:1], 1) | {"unknown": 2, "_mbound": 3, "not a name": 4}))
        forms.append((given, dict.fromkeys(choose.sample(names, len(names) // 2), 1)))
    return forms


def python_of(signature: inspect.Signature) -> Any:
    """A function with this signature, bound by the interpreter, that returns memo's canonical form of its arguments."""
    defaults = {name: p.default for name, p in signature.parameters.items()}

    class Written:
        def __init__(self, name: str) -> None:
            self.name = name

        def __repr__(self) -> str:
            return f"_d[{self.name!r}]"

    written = [p if p.default is _EMPTY else p.replace(default=Written(p.name)) for p in signature.parameters.values()]
    namespace: dict[str, Any] = {"_d": defaults}
    exec(f"def fn{signature.replace(parameters=written)}:\n return locals()", namespace)

    def canonical(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any] | None]:
        bound = namespace["fn"](*args, **kwargs)
        positional, named = [], {}
        for name, parameter in signature.parameters.items():
            if parameter.kind is _KINDS.VAR_POSITIONAL:
                positional.extend(bound[name])
            elif parameter.kind is _KINDS.VAR_KEYWORD:
                named.update(bound[name])
            elif parameter.kind is _KINDS.KEYWORD_ONLY:
                named[name] = bound[name]
            else:
                positional.append(bound[name])
        kinds = {p.kind for p in signature.parameters.values()}
        return tuple(positional), named if kinds & {_KINDS.KEYWORD_ONLY, _KINDS.VAR_KEYWORD} else None

    return canonical


def same(one: Any, other: Any) -> bool:
    """Equal by identity of the parts: no default's `__eq__` may run."""
    if isinstance(one, tuple):
        return isinstance(other, tuple) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    return one is other or (type(one) is type(other) and isinstance(one, (int, str)) and one == other)


@pytest.mark.parametrize("number", range(0, len(SIGNATURES), 12))
def test_every_call_form_is_bound_as_python_and_signature_bind_do(number: int) -> None:
    for signature in SIGNATURES[number : number + 12]:
        bind, python = Binding(signature, (), "module.fn").bind(), python_of(signature)
        right = 0
        for args, kwargs in calls(signature, random.Random(number)):
            try:
                expected = python(*args, **kwargs)
            except TypeError:
                with pytest.raises(TypeError, match=r"^fn\(\) "):
                    bind(*args, **kwargs)
            else:
                right += 1
                assert same(bind(*args, **kwargs), expected), (str(signature), args, kwargs)
                if not {n for n, p in signature.parameters.items() if p.kind is _KINDS.POSITIONAL_ONLY} & kwargs.keys():
                    # Before Python 3.12 it refuses such names, which the interpreter puts among the extra ones.
                    bound = signature.bind(*args, **kwargs)
                    bound.apply_defaults()
                    assert same((bound.args, bound.kwargs), (expected[0], expected[1] or {}))
        assert right


class Holder:
    pass


def decorated(signature: inspect.Signature, bound: bool, asynchronous: bool, holder: Holder) -> Any:
    """A cached function that returns what it was called with, in canonical form, and is called every time."""
    python = python_of(signature)

    def function(*args: Any, **kwargs: Any) -> Any:
        return python(*args, **kwargs)

    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        return python(*args, **kwargs)

    chosen: Any = coroutine if asynchronous else function
    chosen.__signature__ = signature
    chosen.__name__ = chosen.__qualname__ = "fn"
    ignore = list(signature.parameters)[1 if bound else 0 :]
    cached: Any = cache_aside(cache_if=lambda result: False, ignore=ignore)(chosen)
    return cached.__get__(holder, Holder) if bound else cached


@pytest.mark.parametrize("bound", [False, True])
def test_a_call_of_the_wrapper_reaches_the_function_as_python_binds_it(bound: bool) -> None:
    holder = Holder()
    for number, signature in enumerate(SIGNATURES):
        if not bound or Binding(signature, (), "fn").positional:
            fn, python = decorated(signature, bound, False, holder), python_of(signature)
            for args, kwargs in calls(signature, random.Random(number)):
                try:
                    expected = python(*((holder, *args) if bound else args), **kwargs)
                except TypeError:
                    for call in fn, fn.key_for, fn.peek:
                        with pytest.raises(TypeError, match=r"^fn\(\) "):
                            call(*args, **kwargs)
                else:
                    assert same(fn(*args, **kwargs), expected), (str(signature), args, kwargs)
                    assert same(fn(*args, **kwargs), expected)  # the second call takes generated code


@pytest.mark.parametrize("bound", [False, True])
async def test_a_call_of_an_async_wrapper_likewise(bound: bool) -> None:
    holder = Holder()
    for number, signature in enumerate(SIGNATURES[::3]):
        if not bound or Binding(signature, (), "fn").positional:
            fn, python = decorated(signature, bound, True, holder), python_of(signature)
            for args, kwargs in calls(signature, random.Random(number))[::2]:
                try:
                    expected = python(*((holder, *args) if bound else args), **kwargs)
                except TypeError:
                    with pytest.raises(TypeError, match=r"^fn\(\) "):
                        await fn(*args, **kwargs)
                else:
                    assert same(await fn(*args, **kwargs), expected), (str(signature), args, kwargs)


@pytest.mark.parametrize(
    ("source", "args", "kwargs"),
    [
        ("a, b", (), {}),
        ("a, b", (1,), {}),
        ("a, b", (1, 2, 3), {}),
        ("a, b=2", (1, 2, 3), {}),
        ("a, b", (1,), {"a": 2}),
        ("a, b", (1,), {"c": 2}),
        ("a, /, b", (), {"a": 1, "b": 2}),
        ("a, *, b", (1,), {}),
        ("a, *, b, c", (1,), {}),
        ("a, *, b", (1, 2), {}),
        ("*, b", (1,), {"b": 2}),
        ("", (1,), {}),
        ("", (), {"a": 1}),
        ("a, *args, b", (1, 2), {}),
    ],
)
def test_the_error_of_a_wrong_call_is_pythons_own(source: str, args: Any, kwargs: Any) -> None:
    namespace: dict[str, Any] = {}
    exec(f"def fn({source}): ...", namespace)
    with pytest.raises(TypeError) as python:
        namespace["fn"](*args, **kwargs)
    bind = Binding(inspect.signature(namespace["fn"]), (), "module.fn").bind()
    with pytest.raises(TypeError) as ours:
        bind(*args, **kwargs)
    assert str(ours.value) == str(python.value)


def test_a_default_is_the_very_object() -> None:
    for default in DEFAULTS:
        parameter = inspect.Parameter("x", _KINDS.POSITIONAL_OR_KEYWORD, default=default)
        args, _ = Binding(inspect.Signature([parameter]), (), "m.f").bind()()
        assert args[0] is default


@pytest.mark.parametrize("name", ["class", "None", "lambda"])
def test_a_parameter_whose_name_cannot_be_written_is_refused(name: str) -> None:
    class Named(inspect.Parameter):
        @property
        def name(self) -> str:
            return name

    with pytest.raises(OptionError, match=r"^m\.f: .*cannot be bound"):
        Binding(inspect.Signature([Named("x", _KINDS.POSITIONAL_OR_KEYWORD)]), (), "m.f")


# -- the raw key -------------------------------------------------------------------------------------------------------

VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2**100,
    1.0,
    0.5,
    float("inf"),
    float("-inf"),
    "",
    "1",
    "a,b",
    "b=1",
    "')",
    "\ud800",
    b"",
    b"1",
    0.0,
    -0.0,
    float("nan"),
    (),
    (1,),
    (1.0,),
    [1],
    {"a": 1},
    "<default>",
    "k" * 250,
)


@pytest.mark.parametrize("value", VALUES, ids=lambda v: ascii(v)[:20])
def test_only_scalars_that_equal_nothing_else_are_plain(value: Any) -> None:
    expected = type(value) in (type(None), bool, int, str, bytes) or value in (0.5, 1.0) or value in (1e999, -1e999)
    assert is_plain(value) is (expected and value not in ((), [1], {"a": 1}))


def test_what_lies_about_its_class_is_not_plain() -> None:
    class Liar:
        __class__ = int  # type: ignore[assignment]

    class Number(int):
        pass

    assert not is_plain(Liar())
    assert not is_plain(Number(1))


def fn_a(a: Any, b: Any = "default") -> None: ...
def fn_b(a: Any, /, *args: Any, k: Any = None) -> None: ...
def fn_c(*args: Any, **kwargs: Any) -> None: ...
def fn_d(a: Any = 1, *, k: Any, b: Any = 1, **more: Any) -> None: ...


def keys_of(function: Any, ignore: tuple[str, ...] = ()) -> CallKeys:
    return CallKeys(function, key=None, ignore=ignore, namespace="ns", version=None, name=function.__name__)


def every_call() -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    found: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
    for one in VALUES:
        found += [(fn_a, (one,), {}), (fn_a, (1, one), {}), (fn_b, (one,), {}), (fn_b, (1,), {"k": one})]
        found += [(fn_b, (1, one), {}), (fn_b, (one, 1), {"k": 1}), (fn_b, (1, 1, one), {})]
        found += [(fn_c, (one,), {}), (fn_c, (), {"a": one}), (fn_c, (1,), {"a": one}), (fn_c, (), {"a b": one})]
        found += [(fn_d, (), {"k": one}), (fn_d, (one,), {"k": 1}), (fn_d, (), {"k": 1, "b": one})]
        found += [(fn_d, (), {"k": 1, "x": one}), (fn_d, (), {"k": one, "a": 1, "b": 1})]
    return [*found, (fn_c, (), {}), (fn_b, (1, 2, 3), {"k": 4})]


def identity(value: Any) -> Any:
    """Equal for two values exactly if they are equal and of the same types, all the way down."""
    if isinstance(value, (tuple, list)):
        return type(value).__name__, tuple(map(identity, value))
    if isinstance(value, dict):
        return "dict", tuple(sorted((key, identity(held)) for key, held in value.items()))
    return type(value).__name__, repr(value)


@pytest.mark.parametrize("function", [fn_a, fn_b, fn_c, fn_d])
def test_calls_have_one_key_exactly_if_their_bound_arguments_are_equal_and_of_equal_types(function: Any) -> None:
    """For the text, for the raw key where there is one, and so for the two together."""
    keys = keys_of(function)
    raw_of = keys.binding.raw(skip_first=False)
    shape = keys.shape()
    by_text: dict[str, Any] = {}
    by_raw: dict[Any, Any] = {}
    texts: dict[Any, str] = {}
    for which, args, kwargs in every_call():
        if which is not function:
            continue
        canonical_args, named = keys.bind(*args, **kwargs)
        what = identity(canonical_args), identity(named or {})
        text = keys.text(canonical_args, named)
        assert by_text.setdefault(text, what) == what
        assert texts.setdefault(what, text) == text
        raw = raw_of(*canonical_args, **(named or {}))
        if raw is None:
            assert shape.key(text) == text
            continue
        assert by_raw.setdefault(raw, what) == what
        assert shape.text(raw) == text
        if not text.startswith("ns(#"):
            assert shape.key(text) == raw
            assert list(map(type, shape.key(text))) == list(map(type, raw))
    assert len(set(texts.values())) == len(texts)
    assert by_raw or function is fn_c


@pytest.mark.parametrize("function", [fn_a, fn_b, fn_d])
def test_ignored_parameters_are_in_neither_key(function: Any) -> None:
    keys = keys_of(function, ignore=("a",))
    raw_of = keys.binding.raw(skip_first=False)
    needed = {"k": 1} if function is fn_d else {}
    one, other = keys.bind([], **needed), keys.bind(object(), **needed)
    assert keys.text(*one) == keys.text(*other)
    assert raw_of(*one[0], **(one[1] or {})) == raw_of(*other[0], **(other[1] or {})) is not None


@pytest.mark.parametrize(("function", "name"), [(fn_c, "args"), (fn_c, "kwargs"), (fn_d, "more")])
def test_extra_arguments_can_be_ignored_too(function: Any, name: str) -> None:
    keys = keys_of(function, ignore=(name,))
    needed = {"k": 1} if function is fn_d else {}
    extra: Any = [keys.bind(object(), **needed)] if name == "args" else [keys.bind(x=object(), **needed)]
    assert keys.text(*extra[0]) == keys.text(*keys.bind(**needed)) or name == "args"
    if name == "args":
        assert keys.text(*extra[0]) == "ns()"


def test_the_raw_key_of_a_method_leaves_the_instance_out() -> None:
    keys = keys_of(fn_a)
    assert keys.binding.raw(skip_first=True)("x") == (str, "x")
    assert keys.shape().rest().text((str, "x")) == "ns('x')"


def test_types_stand_before_values_so_that_no_eq_of_the_users_runs() -> None:
    class Hostile:
        def __hash__(self) -> int:
            return hash(1)

        def __eq__(self, other: object) -> bool:
            raise AssertionError("compared")

    stored = {(int, 1): "entry"}
    assert stored.get((Hostile, Hostile())) is None


def test_many_parameters() -> None:
    parameters = [inspect.Parameter(f"p{n}", _KINDS.POSITIONAL_OR_KEYWORD) for n in range(300)]
    args, kwargs = Binding(inspect.Signature(parameters), (), "m.f").bind()(*range(300))
    assert args == tuple(range(300))
    assert kwargs is None
