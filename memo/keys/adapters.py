"""How values of the standard library and of other libraries are written; it never imports numpy, pandas or any other.

A *rule* turns a value into its encoding; it is given the value and ``walk``, which encodes the parts. A rule reads
through the methods of the class that it knows, so that a subclass cannot change what is read. Large content is
digested straight from memory, not written out. What another library defines is looked for only in the modules that
are loaded already: a value of a library that nobody imported cannot exist.
"""

from __future__ import annotations

import datetime as dt
import decimal
import fractions
import hashlib
import ipaddress
import pathlib
import re
import sys
import types
import uuid
import zoneinfo
from collections.abc import Callable, Iterable
from typing import Any

from memo.errors import UnkeyableError

__all__ = [
    "HIDDEN",
    "STDLIB",
    "Rule",
    "Walk",
    "class_name",
    "fields",
    "foreign_rule",
    "is_frozen",
    "lookup",
    "name_of",
    "owner",
    "redefines_eq",
    "refuse",
    "vouched_name",
]

Walk = Callable[[object], str]
Rule = Callable[[Any, Walk], str]

ABSENT = object()

# The characters that a string or a name may show as they are, beyond ASCII. It is a fixed list, not str.isprintable,
# because that one changes with the Unicode tables of each Python version.
HIDDEN = r"\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_WORD = rf"(?!\d)(?:\w|[^\x00-\xa0{HIDDEN}])+"
_DOTTED = re.compile(rf"{_WORD}(?:\.{_WORD})*", re.ASCII)
_NESTED = re.compile(rf"{_WORD}(?:\.(?:{_WORD}|<locals>))*", re.ASCII)


# Names: a thing is written by its name only if the name leads back to that very thing.


def lookup(module: str, qualname: str) -> object:
    """Return what a qualified name leads to in the modules that are loaded, or a marker that equals nothing."""
    found: object = sys.modules.get(module, ABSENT)
    for part in qualname.split("."):
        found = getattr(found, part, ABSENT)
    return found


def name_of(thing: Any) -> str | None:
    """Return the dotted name that leads to this class or function and to nothing else, or None if there is none."""
    if type(thing) is type and thing in _CANONICAL:
        return _CANONICAL[thing]
    module = getattr(thing, "__module__", None)
    qualname = getattr(thing, "__qualname__", None) or getattr(thing, "__name__", None)
    if not isinstance(module, str) or not isinstance(qualname, str) or not _DOTTED.fullmatch(f"{module}.{qualname}"):
        return None
    if not _is(lookup(module, qualname), thing):
        return None
    if module == "builtins":
        return qualname
    # With the package `a` holding a class `b` beside its module `a.b`, the one name a.b.C could mean two classes. Only
    # the one that is found through the shorter module keeps it: that module is loaded wherever the other is.
    parts = module.split(".")
    for size in range(1, len(parts)):
        other = lookup(".".join(parts[:size]), ".".join([*parts[size:], qualname]))
        if other is not ABSENT and not _is(other, thing):
            return None
    return f"{module}.{qualname}"


def _is(found: object, thing: object) -> bool:
    # What stands in a class as a classmethod comes out bound; the function inside is the thing.
    return found is thing or getattr(found, "__func__", ABSENT) is thing


def class_name(cls: type) -> str:
    """Return the dotted name of a class; a class that its name does not lead back to is refused."""
    name = name_of(cls)
    if name is None:
        raise UnkeyableError(
            f"{_told(cls)} is a class that its name does not lead back to (it is defined inside a function, or the "
            f"name was given to something else): define it at module level, {ways_out(cls)}"
        )
    return name


def vouched_name(cls: type) -> str:
    """Return a name for a class whose author tells what identifies its instances; it need not lead back to it."""
    name = name_of(cls)
    if name is not None:
        return name
    name = f"{cls.__module__}.{cls.__qualname__}"
    if not _NESTED.fullmatch(name):
        raise UnkeyableError(f"a class is named {name!r}, which is not a dotted name: rename it")
    # Never the bare name: that one belongs to the class it leads to.
    return name if "<locals>" in name else f"<shadowed>{name}"


def ways_out(cls: type) -> str:
    """Return the advice that fits a class: what its users can do so that its instances can be told apart."""
    if cls is object:
        return "pass what identifies it instead"
    teach = f"memo.register_key_type({cls.__name__}, ...)"
    if cls.__module__.partition(".")[0] in sys.stdlib_module_names:
        return f"pass what identifies it instead, or teach memo with {teach}"
    return f"give it a __cache_key__() method, or teach memo with {teach}"


def refuse(value: object, why: str) -> UnkeyableError:
    """Return the error for a value that cannot be encoded: its kind, the reason and the ways out."""
    cls = type(value)
    return UnkeyableError(f"an instance of {_told(cls)} {why}: {ways_out(cls)}")


def owner(cls: type, attribute: str) -> type | None:
    """Return the class, of this one and its ancestors, in whose own body an attribute stands."""
    return next((base for base in cls.__mro__ if attribute in vars(base)), None)


def redefines_eq(cls: type, base: type) -> bool:
    """Tell whether a class changes what equality means between itself and the ancestor whose equality is known."""
    return any("__eq__" in vars(ancestor) for ancestor in cls.__mro__[: cls.__mro__.index(base)])


def fields(value: object, names: Iterable[str], walk: Walk, more: str = "") -> str:
    """Return the encoding of an instance that is its class and the values of its named fields."""
    parts = []
    for name in names:
        part = getattr(value, name, ABSENT)
        if part is ABSENT:
            raise refuse(value, f"has no value for its field {name!r}")
        parts.append(f"{name}={walk(part)}")
    if more:
        parts.append(more)
    return f"{class_name(type(value))}({','.join(parts)})"


def _told(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


# The standard library.


def _by_text(name: str, text: Callable[[Any], str]) -> Rule:
    return lambda value, walk: f"{name}({walk(text(value))})"


def _decimal(value: decimal.Decimal, walk: Walk) -> str:
    # The case of the exponent is a setting of the thread's decimal context.
    return f"decimal.Decimal({walk(decimal.Decimal.__str__(value).replace('e', 'E'))})"


def _moment(name: str, text: Callable[[Any], str]) -> Rule:
    # The text holds the offset from UTC, the zone says where it comes from: equal moments in two zones differ.
    def rule(value: Any, walk: Walk) -> str:
        fold = ",fold=1" if value.fold else ""
        zone = f",{walk(value.tzinfo)}" if value.tzinfo is not None else ""
        return f"{name}({walk(text(value))}{fold}{zone})"

    return rule


def _timezone(value: dt.timezone, walk: Walk) -> str:
    return f"datetime.timezone({walk(value.utcoffset(None))},{walk(value.tzname(None))})"


def _zone(value: zoneinfo.ZoneInfo, walk: Walk) -> str:
    if value.key is None:
        raise refuse(value, "made from a file has no key to go by")
    return f"zoneinfo.ZoneInfo({walk(value.key)})"


def _fraction(value: fractions.Fraction, walk: Walk) -> str:
    return f"fractions.Fraction({walk(value.numerator)},{walk(value.denominator)})"


def _stdlib() -> dict[type, Rule]:
    rules: dict[type, Rule] = {
        dt.datetime: _moment("datetime.datetime", dt.datetime.isoformat),
        dt.date: _by_text("datetime.date", dt.date.isoformat),
        dt.time: _moment("datetime.time", dt.time.isoformat),
        dt.timedelta: lambda value, walk: f"datetime.timedelta({value.days},{value.seconds},{value.microseconds})",
        dt.timezone: _timezone,
        zoneinfo.ZoneInfo: _zone,
        decimal.Decimal: _decimal,
        fractions.Fraction: _fraction,
        re.Pattern: lambda value, walk: f"re.compile({walk(value.pattern)},{int(value.flags)})",
    }
    # No value is a bare PurePath or Path, but since Python 3.12 their subclasses are not one of the other four.
    for kind in ("PurePath", "Path", "PurePosixPath", "PureWindowsPath", "PosixPath", "WindowsPath"):
        cls: type = getattr(pathlib, kind)
        rules[cls] = _by_text(f"pathlib.{kind}", pathlib.PurePath.__str__)
    for kind in ("IPv4Address", "IPv6Address", "IPv4Network", "IPv6Network", "IPv4Interface", "IPv6Interface"):
        address: Any = getattr(ipaddress, kind)
        rules[address] = _by_text(f"ipaddress.{kind}", address.__str__)
    rules[uuid.UUID] = _by_text("uuid.UUID", uuid.UUID.__str__)
    return rules


STDLIB: dict[type, Rule] = _stdlib()

# Classes whose own module is not where people find them, or moves from one Python version to the next, or is patched by
# libraries that stop the clock.
_CANONICAL: dict[type, str] = {
    type(None): "types.NoneType",
    type(...): "types.EllipsisType",
    type(NotImplemented): "types.NotImplementedType",
    types.MappingProxyType: "types.MappingProxyType",
    types.FunctionType: "types.FunctionType",
    types.BuiltinFunctionType: "types.BuiltinFunctionType",
    types.MethodType: "types.MethodType",
    types.ModuleType: "types.ModuleType",
    dt.tzinfo: "datetime.tzinfo",
    **{cls: f"{cls.__module__.partition('.')[0]}.{cls.__name__}" for cls in STDLIB},
}


# numpy: scalars by value, arrays by dtype, shape and content, whatever their layout in memory.


def _digest(chunks: Iterable[Any]) -> str:
    # 160 bits: no two contents are ever expected to meet.
    digest = hashlib.blake2b(digest_size=20)
    for chunk in chunks:
        digest.update(chunk)
    return f"'{digest.hexdigest()}'"


def _digest_texts(texts: Iterable[str]) -> str:
    # No encoding holds a line end as it is, so it can part them.
    return _digest(f"{text}\n".encode() for text in texts)


def _dtype(dtype: Any, walk: Walk) -> str:
    if dtype.names is not None:
        parts = [(name, *dtype.fields[name]) for name in dtype.names]
        return f"numpy.dtype({walk(parts)},{dtype.itemsize})"
    if dtype.subdtype is not None:
        return f"numpy.dtype({walk(dtype.subdtype)})"
    if dtype.kind not in "biufcmMOSUV" or not dtype.type.__module__.startswith("numpy"):
        raise UnkeyableError(f"the numpy dtype {dtype} is not one that memo knows: convert the array with astype(...)")
    return f"numpy.dtype({walk(dtype.str)})"


def _items(array: Any, walk: Walk) -> str:
    numpy: Any = sys.modules["numpy"]
    dtype = array.dtype
    if dtype.names is not None:
        # Field by field: the gaps between the fields hold whatever was there before.
        return f"({','.join(_items(array[name], walk) for name in dtype.names)})"
    if dtype.kind == "O":
        return _digest_texts(map(walk, array.ravel().tolist()))
    if dtype.char in "gG":
        raise UnkeyableError("a numpy longdouble holds bytes of no meaning: convert the array with astype(float)")
    plain = numpy.ascontiguousarray(array)
    if dtype.kind in "fc":
        plain = plain.view(plain.real.dtype)
        odd = numpy.isnan(plain)
        if odd.any():
            plain = plain.copy()
            plain[odd] = numpy.nan
    return _digest([plain.reshape(-1).view("u1")] if plain.nbytes else [])


def _array(value: Any, walk: Walk) -> str:
    return f"numpy.ndarray({_dtype(value.dtype, walk)},{walk(value.shape)},{_items(value, walk)})"


def _scalar(value: Any, walk: Walk) -> str:
    numpy: Any = sys.modules["numpy"]
    # numpy 2 renamed bool_ and str_ to bool and str.
    name = f"numpy.{type(value).__name__.rstrip('_')}"
    dtype = value.dtype
    if dtype.kind in "mM":
        return f"{name}({int(value.view('i8'))},{walk(dtype.str)})"
    if dtype.kind == "V" or dtype.char in "gG":
        return f"{name}({_array(numpy.asarray(value), walk)})"
    return f"{name}({walk(value.item())})"


# pandas: index, columns, names, dtypes and values, as one digest beside the shape.


def _pandas_dtype(dtype: Any, walk: Walk) -> str:
    if issubclass(type(dtype), sys.modules["numpy"].dtype):
        return _dtype(dtype, walk)
    name = f"pandas.{type(dtype).__name__}"
    if name == "pandas.CategoricalDtype":
        categories = None if dtype.categories is None else _labels(dtype.categories, walk)
        return f"{name}({categories},{dtype.ordered})"
    return f"{name}({walk(str(dtype))})"


def _column(column: Any, walk: Walk) -> str:
    """Encode the dtype and the items of a series, an index or an extension array."""
    numpy: Any = sys.modules["numpy"]
    dtype = column.dtype
    kind = type(dtype).__name__
    if issubclass(type(dtype), numpy.dtype):
        items = _items(numpy.asarray(column), walk)
    elif kind == "CategoricalDtype":
        items = _items(numpy.asarray(getattr(column, "array", column).codes), walk)
    elif kind == "DatetimeTZDtype":
        naive = getattr(column, "array", column).tz_convert(None)
        items = f"{walk(dtype.tz)},{_items(numpy.asarray(naive), walk)}"
    else:
        # Masked, text, period, interval and Arrow columns: what stands under a mask is of no meaning, so by item.
        items = _digest_texts(map(walk, numpy.asarray(column, dtype=object).tolist()))
    return f"{_pandas_dtype(dtype, walk)},{items}"


def _labels(index: Any, walk: Walk) -> str:
    name = type(index).__name__
    if name == "MultiIndex":
        # Levels and codes can say one thing in many ways; the labels themselves cannot.
        content = ",".join(_labels(index.get_level_values(level), walk) for level in range(index.nlevels))
    elif name == "RangeIndex":
        content = f"{index.start},{index.stop},{index.step}"
    else:
        content = _column(index, walk)
    return f"{name}({walk(list(index.names))},{walk(getattr(index, 'freqstr', None))},{content})"


def _index(value: Any, walk: Walk) -> str:
    return f"pandas.{type(value).__name__}({len(value)},{_digest_texts([_labels(value, walk)])})"


def _series(value: Any, walk: Walk) -> str:
    parts = [_labels(value.index, walk), walk(value.name), walk(value.attrs), _column(value, walk)]
    return f"pandas.Series({len(value)},{_digest_texts(parts)})"


def _frame(value: Any, walk: Walk) -> str:
    parts = [_labels(value.columns, walk), _labels(value.index, walk), walk(value.attrs)]
    parts += [_column(value.iloc[:, place], walk) for place in range(value.shape[1])]
    return f"pandas.DataFrame({walk(value.shape)},{_digest_texts(parts)})"


def _timestamp(value: Any, walk: Walk) -> str:
    # Releases before 2.0 know no unit but this one.
    unit = getattr(value, "unit", "ns")
    return f"{_moment('pandas.Timestamp', type(value).isoformat)(value, walk)[:-1]},{walk(unit)})"


def _pandas_timedelta(value: Any, walk: Walk) -> str:
    return f"pandas.Timedelta({int(value.asm8.view('i8'))},{walk(value.asm8.dtype.str)})"


def _interval(value: Any, walk: Walk) -> str:
    return f"pandas.Interval({walk(value.left)},{walk(value.right)},{walk(value.closed)})"


# Classes with fields, made by attrs, msgspec and pydantic.


def _attrs(value: Any, walk: Walk) -> str:
    cls = type(value)
    made: Any = owner(cls, "__attrs_attrs__")
    if "__eq__" not in vars(made):
        raise refuse(value, "is made by attrs with eq=False, so that nothing says which fields matter")
    if redefines_eq(cls, made):
        raise refuse(value, "redefines __eq__, so that its fields do not say when two are equal")
    return fields(value, (field.name for field in cls.__attrs_attrs__ if field.eq), walk)


def _struct(value: Any, walk: Walk) -> str:
    cls = type(value)
    if not cls.__struct_config__.eq:
        raise refuse(value, "is a Struct with eq=False, so that nothing says which fields matter")
    if redefines_eq(cls, sys.modules["msgspec"].Struct):
        raise refuse(value, "redefines __eq__, so that its fields do not say when two are equal")
    return fields(value, cls.__struct_fields__, walk)


def _model(value: Any, walk: Walk) -> str:
    cls = type(value)
    made: Any = owner(cls, "__eq__")
    if made.__module__.partition(".")[0] != "pydantic":
        raise refuse(value, "redefines __eq__, so that its fields do not say when two are equal")
    # Two models are equal if these three are; to pydantic none at all and an empty dict are the same.
    more = [
        f"{name}={walk(held)}"
        for name in ("__pydantic_extra__", "__pydantic_private__")
        if (held := getattr(value, name, None))
    ]
    return fields(value, cls.model_fields, walk, ",".join(more))


# (module, class, whether the library's own subclasses count too, rule). A user's subclass of one of these is refused:
# it may hold anything beside the content.
_CLOSED: tuple[tuple[str, str, bool, Rule], ...] = (
    ("numpy", "ndarray", False, _array),
    ("numpy", "generic", True, _scalar),
    ("numpy", "dtype", True, _dtype),
    ("pandas._libs.tslibs.nattype", "NaTType", False, lambda value, walk: "pandas.NaT"),
    ("pandas._libs.missing", "NAType", False, lambda value, walk: "pandas.NA"),
    ("pandas", "Timestamp", False, _timestamp),
    ("pandas", "Timedelta", False, _pandas_timedelta),
    ("pandas", "Period", False, lambda value, walk: f"pandas.Period({value.ordinal},{walk(value.freqstr)})"),
    ("pandas", "Interval", False, _interval),
    ("pandas", "Series", False, _series),
    ("pandas", "DataFrame", False, _frame),
    ("pandas", "Index", True, _index),
    ("pandas.api.extensions", "ExtensionArray", True, lambda value, walk: f"pandas.array({_column(value, walk)})"),
    ("pandas.api.extensions", "ExtensionDtype", True, _pandas_dtype),
)
_OPEN: tuple[tuple[str, str, Rule], ...] = (("msgspec", "Struct", _struct), ("pydantic", "BaseModel", _model))


def foreign_rule(cls: type) -> Rule | None:
    """Return the rule for a class that another library made or defines, or None if none of them knows it."""
    if owner(cls, "__attrs_attrs__") is not None:
        return _attrs
    ancestry = cls.__mro__
    for module, name, rule in _OPEN:
        if getattr(sys.modules.get(module), name, ABSENT) in ancestry:
            return rule
    for module, name, family, rule in _CLOSED:
        known = getattr(sys.modules.get(module), name, ABSENT)
        if known is cls:
            return rule
        if known in ancestry:
            if family and cls.__module__.partition(".")[0] == module.partition(".")[0]:
                return rule
            raise UnkeyableError(
                f"{_told(cls)} is a subclass of {module}.{name}, and may hold more than its content: convert it to "
                f"{name}, {ways_out(cls)}"
            )
    return None


def is_frozen(cls: Any) -> bool:
    """Tell whether attrs, msgspec or pydantic made this class so that no field of an instance can be set."""
    if "__attrs_attrs__" in vars(cls):
        return "__eq__" in vars(cls) and cls.__setattr__.__name__ == "_frozen_setattrs"
    if hasattr(cls, "__struct_config__"):
        return bool(cls.__struct_config__.frozen and cls.__struct_config__.eq)
    if getattr(sys.modules.get("pydantic"), "BaseModel", ABSENT) in cls.__mro__:
        return bool(cls.model_config.get("frozen"))
    return False
