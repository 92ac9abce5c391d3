"""A serializer is asked for by name or as an object; what is none is refused, and the error says what is allowed."""

from __future__ import annotations

import json
import pickle
import threading
from typing import Any

import pytest

from memo import (
    CompressedSerializer,
    CustomStore,
    JSONSerializer,
    MemoryStore,
    MessagePackSerializer,
    OptionError,
    PickleSerializer,
    Record,
    SerializationError,
    cache_aside,
)
from memo.serializers import NAMES, Serializer, checked_serializer, network_serializer


class DictStore(CustomStore):
    shared = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.records: dict[str, Record] = {}

    def load_record(self, key: str) -> Record | None:
        return self.records.get(key)

    def save_record(self, key: str, record: Record) -> None:
        self.records[key] = record

    def remove_record(self, key: str) -> None:
        self.records.pop(key, None)

    def record_keys(self) -> Any:
        return self.records


STORES = [MemoryStore, DictStore]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("json", "JSONSerializer()"),
        ("msgpack", "MessagePackSerializer()"),
        ("pickle", "PickleSerializer()"),
        ("json+gzip", "CompressedSerializer(JSONSerializer(), 'gzip')"),
        ("json+zlib", "CompressedSerializer(JSONSerializer(), 'zlib')"),
        ("msgpack+gzip", "CompressedSerializer(MessagePackSerializer(), 'gzip')"),
        ("msgpack+zlib", "CompressedSerializer(MessagePackSerializer(), 'zlib')"),
        ("pickle+gzip", "CompressedSerializer(PickleSerializer(), 'gzip')"),
        ("pickle+zlib", "CompressedSerializer(PickleSerializer(), 'zlib')"),
    ],
)
def test_each_name_stands_for_an_object(name: str, shown: str) -> None:
    assert name in NAMES
    assert repr(checked_serializer(name)) == shown


def test_there_are_no_other_names() -> None:
    assert len(NAMES) == 9


@pytest.mark.parametrize(
    "make", [checked_serializer, network_serializer, *(lambda s, c=c: c(serializer=s) for c in STORES)]
)
@pytest.mark.parametrize(
    "given", ["xml", "", "JSON", "json+", "+gzip", "json+gzip+zlib", "gzip", 1, object(), len, b"json"]
)
def test_what_is_no_serializer_is_refused_with_what_is_allowed(make: Any, given: Any) -> None:
    with pytest.raises(OptionError, match=r"serializer=.*'json', 'msgpack', .*, 'json.gzip'.*with dumps and loads"):
        make(given)


@pytest.mark.parametrize("kind", [JSONSerializer, PickleSerializer, CompressedSerializer])
def test_a_class_in_the_place_of_an_object_is_refused(kind: Any) -> None:
    with pytest.raises(OptionError, match=rf"allowed is an object of it: {kind.__name__}\(\)"):
        checked_serializer(kind)


def test_any_object_with_dumps_and_loads_is_one() -> None:
    assert checked_serializer(pickle) is pickle
    assert checked_serializer(json) is json
    mine = JSONSerializer()
    assert checked_serializer(mine) is mine is network_serializer(mine)


def test_a_serializer_of_the_users_own_writes_text_or_bytes() -> None:
    adapted = network_serializer(json)
    assert adapted.dumps({"a": "é"}) == b'{"a": "\\u00e9"}'
    assert adapted.loads(memoryview(b"[1]")) == [1]
    assert repr(adapted) == "json"
    assert adapted.for_function(len) is adapted

    class Mine:
        verify = False
        loads = staticmethod(json.loads)

        def dumps(self, value: Any) -> Any:
            return memoryview(json.dumps(value).encode()) if value != "count" else 5

    assert repr(network_serializer(Mine())) == "Mine"
    assert network_serializer(Mine()).dumps((1, 2)) == b"[1, 2]"  # unchecked, as it asks
    assert CompressedSerializer(Mine()).loads(CompressedSerializer(Mine()).dumps((1, 2))) == [1, 2]
    with pytest.raises(SerializationError, match="Mine cannot keep a str"):
        network_serializer(Mine()).dumps("count")


@pytest.mark.parametrize("make", [JSONSerializer, MessagePackSerializer, PickleSerializer])
@pytest.mark.parametrize("options", [{"verify": 1}, {"verify": None}, {"verify": "no"}], ids=repr)
def test_verify_is_true_or_false(make: Any, options: Any) -> None:
    with pytest.raises(OptionError, match=r"verify=.*allowed are True and False"):
        make(**options)


@pytest.mark.parametrize(
    "make", [JSONSerializer, MessagePackSerializer, PickleSerializer, lambda **o: CompressedSerializer("json", **o)]
)
@pytest.mark.parametrize("max_size", [0, -1, 1.5, "1", None, True])
def test_max_size_is_a_number_of_bytes(make: Any, max_size: Any) -> None:
    with pytest.raises(OptionError, match=r"max_size=.*at least 1, in bytes"):
        make(max_size=max_size)


@pytest.mark.parametrize("make", STORES)
@pytest.mark.parametrize("name", NAMES)
def test_stores_take_names(make: Any, name: str) -> None:
    store = make(serializer=name)
    value = {"a": [1, None]}
    store.set("k", value)
    assert store.get("k") == value
    assert store.get("k") is not value
    assert store.increment("n") == 1
    assert store.increment("n", 2) == 3


@pytest.mark.parametrize("make", STORES)
def test_a_result_that_would_come_back_different_is_returned_and_not_kept(make: Any) -> None:
    @cache_aside(store=make(serializer="json"), key="k:{x}")
    def pair(x: int) -> Any:
        return (x, x)

    assert [pair(1), pair(1)] == [(1, 1)] * 2
    assert pair.stats().loads == 2
    assert pair.stats().errors == {"fill": 2}


@pytest.mark.parametrize("make", STORES)
def test_a_plain_value_that_would_come_back_different_is_an_error(make: Any) -> None:
    store = make(serializer="json")
    with pytest.raises(SerializationError, match="a set would come back as a list"):
        store.set("k", {1})
    assert store.get("k") is None


def test_one_serializer_serves_many_threads() -> None:
    serializers: list[Serializer] = [checked_serializer(name) for name in NAMES]
    gate, wrong = threading.Barrier(8), []

    def work(number: int) -> None:
        gate.wait(30)
        for turn in range(50):
            value = {"a": [number, turn] * 10}
            for serializer in serializers:
                if serializer.loads(serializer.dumps(value)) != value:
                    wrong.append(value)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
