"""Keys written by hand: what is checked when they are made, and that no two lists of values meet in one text."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fnmatch
import fractions
import functools
import pathlib
import re
import sys
import threading
import types
import uuid
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import msgspec
import pytest
import wrapt
from hypothesis import example, given, settings
from hypothesis import strategies as st

from memo.errors import OptionError, UnkeyableError
from memo.keys.template import Template

HERE = __name__


class Color(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


class Name(str, enum.Enum):
    ANN = "ann"


class Perm(enum.Flag):
    READ = 1
    WRITE = 2


class Shown(enum.Enum):
    ONE = 1

    def __str__(self) -> str:
        return "one!"


class Styled(str, enum.Enum):
    ONE = "1"

    def __format__(self, spec: str) -> str:
        return "styled" + spec


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = 0


class Pair(NamedTuple):
    left: Any
    right: Any


class Record(msgspec.Struct):
    x: int


class Plain:
    id = 7


class Slug:
    def __str__(self) -> str:
        return "a slug"


class Price:
    def __format__(self, spec: str) -> str:
        return f"price{spec}"


class Careless:
    def __str__(self) -> str:
        return f"<careless {object.__repr__(Plain())}>"


class UserId(int):
    pass


class Word(str):
    def __str__(self) -> str:
        return "word"


class Raw(bytes):
    pass


def render(text: str, **values: Any) -> str:
    return Template(text, values, "app.f").render(values)


# Parsing.


def test_fields_are_the_parameters_that_count():
    template = Template("user:{b.name}:{a}:{b.id}", ["a", "b", "c"], "app.f")
    assert template.fields == ("b", "a")
    assert repr(template) == "Template('user:{b.name}:{a}:{b.id}', ['b', 'a'], 'app.f')"


def test_a_template_without_fields_is_one_key_for_the_function():
    assert Template("all users * {{x}}", [], "app.f").render({}) == "all users * {x}"
    assert Template("all", [], "app.f").fields == ()


def test_attributes_and_constant_keys():
    user = SimpleNamespace(id=7, team=SimpleNamespace(name="red"), rows=[{"id": 1, "0": "zero"}])
    assert render("{u.id}:{u.team.name}:{u.rows[0][id]}", u=user) == "7:red:1"


def test_attribute_and_key_errors_propagate():
    with pytest.raises(AttributeError):
        render("{u.id}", u=object())
    with pytest.raises(KeyError):
        render("{u[id]}", u={})


def test_literal_text_stays_as_it_is():
    assert render("{{*}} %|é {a}/", a=1) == "{*} %|é 1/"


BAD = {
    "": "not empty",
    "{": "written twice",
    "}": "written twice",
    "{a": "written twice",
    "{a}}": "written twice",
    "{}": "by position",
    "{0}": "by position",
    "{.x}": "by position",
    "{c}": r"{c} is not a parameter: allowed are user_id, account, a, b",
    "{user}": "did you mean {user_id}",
    "{acount.id}": "did you mean {account}",
    "{ a }": "is not a parameter",
    "{a b}": "is not a parameter",
    "{a.}": "is not a parameter",
    "{a.1}": "attributes and constant keys",
    "{a.b c}": "attributes and constant keys",
    "{a[]}": "is not a parameter|Empty attribute",
    "{a]}": "is not a parameter",
    "{a!r}": "conversions are not allowed",
    "{a!s}": "conversions are not allowed",
    "{a!x}": "conversions are not allowed",
    "{a!}": "written twice",
    "{a:{b}}": "a format spec is constant",
    "{a}{b}": r"put a separator such as ':' between {a} and {b}",
    "{a}x{b}": "put a separator",
    "{a}1:{b}": "put a separator",
    "{a}%{b}": "put a separator",
    "{a}:{b}{account.id}": r"between {b} and {account.id}",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_template_is_refused_with_the_name_of_the_function(text):
    with pytest.raises(OptionError, match=BAD[text]) as caught:
        Template(text, ["user_id", "account", "a", "b"], "app.users.get_user")
    assert str(caught.value).startswith(f"app.users.get_user: key={text!r}: ")


def test_a_template_is_text():
    with pytest.raises(OptionError, match=r"app.f: key=b'x': a template is a str, not bytes"):
        Template(b"x", [], "app.f")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="none, the function has no parameters"):
        Template("{a}", [], "app.f")


@pytest.mark.parametrize(
    "text", ["{a}", "{a}{{{b}", "{a}é{b}", "{a}_{b}", "{a} {b}", "{a}\n{b}", "{a}.{b}", "x{a}:x{b}y"]
)
def test_good_separators(text):
    assert Template(text, "ab", "app.f").fields


# Rendering: the text of a value.

RENDERED: list[tuple[Any, str]] = [
    (None, "%None"),
    ("None", "None"),
    ("", ""),
    ("%None", "%25None"),
    (7, "7"),
    ("7", "7"),
    (-7, "-7"),
    (2**300, hex(2**300)),
    (True, "True"),
    (1.5, "1.5"),
    (-0.0, "-0.0"),
    (1e300, "1e%2B300"),
    (float("nan"), "nan"),
    (decimal.Decimal("1.50"), "1.50"),
    (decimal.Decimal("1E+9"), "1E%2B9"),
    (fractions.Fraction(1, 2), "1%2F2"),
    (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (dt.date(2024, 1, 2), "2024-01-02"),
    (dt.datetime(2024, 1, 2, 3, tzinfo=dt.timezone.utc), "2024-01-02%2003%3A00%3A00%2B00%3A00"),
    (dt.timedelta(1), "1%20day%2C%200%3A00%3A00"),
    (dt.time(1), "01%3A00%3A00"),
    (pathlib.PurePosixPath("a/b.txt"), "a%2Fb.txt"),
    (Color.RED, "Color.RED"),
    (Level.LOW, "1"),
    (Name.ANN, "ann"),
    (Perm.READ, "Perm.READ"),
    (Perm.READ | Perm.WRITE, "Perm.3"),
    (Shown.ONE, "one%21"),
    (Styled.ONE, "styled"),
    (Slug(), "a%20slug"),
    (Price(), "price"),
    (UserId(7), "7"),
    (Word("x"), "word"),
    ("é", "%C3%A9"),
    ("\ud800", "%ED%A0%80"),
    ("\U0001f600", "%F0%9F%98%80"),
    ("\ud83d\ude00", "%ED%A0%BD%ED%B8%80"),
    ("a_b.c-d~e", "a_b.c-d~e"),
    (b"a", "b%27a%27"),
    ([1, "a"], "%5B1%2C%27a%27%5D"),
    ({2, 1}, "%7B1%2C2%7D"),
    ({}, "%7B%7D"),
    (Point(1), f"{HERE}.Point%28x%3D1%2Cy%3D0%29"),
    (Pair(1, 2), f"{HERE}.Pair%28left%3D1%2Cright%3D2%29"),
    (Record(1), f"{HERE}.Record%28x%3D1%29"),
    (Raw(b"a"), f"{HERE}.Raw%28b%27a%27%29"),
    (Plain, f"{HERE}.Plain"),
    (len, "len"),
    (collections.deque([1]), "collections.deque%28%5B1%5D%29"),
]


@pytest.mark.parametrize(("value", "text"), RENDERED, ids=lambda item: ascii(item)[:30])
def test_values_render_as(value, text):
    assert render("{v}", v=value) == text
    assert render("u:{v}:", v=value) == f"u:{text}:"


@pytest.mark.parametrize("char", "*?[]^\\!{}%@#'\"(), :;/|\n\r\t\0\x1b\x7f\x85\xa0é漢\u2028\ud800$&+<>=`")
def test_what_means_something_elsewhere_is_escaped(char):
    text = render("{v}", v=f"a{char}b")
    assert re.fullmatch(r"a(%[0-9A-F]{2})+b", text)


def test_characters_of_the_template_are_escaped_in_values():
    assert render("{a}-{b}", a="x-y", b="z_.~") == "x%2Dy-z_.~"
    assert render("{a}_.{b}~", a="x-y", b="z_.~") == "x-y_.z%5F%2E%7E~"


def test_format_specs():
    assert render("{a:.2f}:{b:%Y-%m}:{c:>3}", a=1.234, b=dt.date(2024, 1, 2), c="a") == "1.23:2024-01:%20%20a"
    assert render("{a:x}:{b:X}", a=255, b=Price()) == "ff:priceX"
    assert render("{a:>4}:{b:>10}", a=Name.ANN, b=Color.RED) == "%20ann:%20Color.RED"
    assert render("{a:.1f}", a=decimal.Decimal("1.25")) == "1.2"
    assert render("{a:>5}", a=None) == "%None"
    with pytest.raises(ValueError, match="Unknown format code"):
        render("{a:d}", a="x")
    with pytest.raises(UnkeyableError, match=r"{a:>5} is an instance of list, which takes no format spec"):
        render("{a:>5}", a=[1])


@pytest.mark.parametrize(
    "value",
    [
        object(), Plain(), lambda: None, threading.Lock(), iter([]), [Plain()], Point(Plain()), mock.Mock(),
        SimpleNamespace(a=Plain()), wrapt.ObjectProxy({1}), functools.partial(lambda: None), memoryview(b""),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_values_with_nothing_but_a_default_repr_are_refused(value):
    """Two of them would share an entry as soon as one takes the address of the other."""
    with pytest.raises(UnkeyableError, match=r"^{user}: .*use an attribute of it, such as {user.id}"):
        render("u:{user}", user=value)


@pytest.mark.parametrize(
    "value", [Careless(), mock.MagicMock(), ValueError(Plain())], ids=lambda value: type(value).__name__
)
def test_text_that_holds_an_address_is_refused(value):
    with pytest.raises(UnkeyableError, match=r"{user.it} renders as .* holds an address"):
        render("u:{user.it}", user=SimpleNamespace(it=value))


def test_the_context_of_decimals_is_of_no_effect():
    with decimal.localcontext() as context:
        context.capitals = 0
        assert render("{a}", a=decimal.Decimal("1E+9")) == "1E%2B9"


def test_classes_of_libraries_that_print_only_a_part_are_encoded(monkeypatch):
    """numpy arrays and pandas frames print "..." for what is in the middle; tensors of other libraries do as well."""

    class Tensor:
        def __array__(self) -> None: ...

        def __str__(self) -> str:
            return "[0 ... 9]"

    with pytest.raises(UnkeyableError, match="use an attribute"):
        render("{a}", a=Tensor())
    for name in ("numpy", "pydantic"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    assert render("{a}", a=Slug()) == "a%20slug"


# Injectivity: the text of the values is all that counts, and no two lists of texts meet.

texts = (
    st.none()
    | st.text(st.sampled_from("ab:-|.%_~N2A*\ud800é"))
    | st.text()
    | st.sampled_from(["None", "%None", "%25", ""])
)


@pytest.mark.parametrize(
    "template", ["{a}:{b}", "{a}-{b}", "{a}|{b}", "{a}.{b}", "x{a}~y{b}z", "{a}_{b}_", "{a}é{b}", "{a}\n{b}"]
)
@given(one=st.tuples(texts, texts), other=st.tuples(texts, texts))
@example(one=("x:y", "z"), other=("x", "y:z"))
@example(one=("x-y", "z"), other=("x", "y-z"))
@example(one=("", ":"), other=(":", ""))
@example(one=(None, ""), other=("%None", ""))
@settings(deadline=None)
def test_two_fields_never_run_together(template, one, other):
    made = Template(template, "ab", "app.f")
    first, second = (made.render(dict(zip("ab", values, strict=True))) for values in (one, other))
    assert (first == second) is (one == other)


@given(st.tuples(texts, texts, texts), st.tuples(texts, texts, texts))
@settings(deadline=None)
def test_three_fields_with_attributes(one, other):
    made = Template("k.{a.b}:-{c}.{d[0]}", "acd", "app.f")

    def key(values: tuple[Any, ...]) -> str:
        return made.render({"a": SimpleNamespace(b=values[0]), "c": values[1], "d": [values[2]]})

    assert (key(one) == key(other)) is (one == other)


@given(texts, texts)
@example("*", "anything")
@example("[a-z]", "b")
@example("?", "x")
@settings(deadline=None)
def test_a_value_is_no_pattern(one, other):
    """As in `invalidate("user:*")` built from user input: a value matches itself and nothing else."""
    made = Template("user:{a}:", "a", "app.f")
    pattern = made.render({"a": one})
    assert fnmatch.fnmatchcase(made.render({"a": other}), pattern) is (one == other)


def test_every_surrogate_renders_differently():
    assert len({render("{a}", a=chr(code)) for code in range(0xD800, 0xE000)}) == 0x800
