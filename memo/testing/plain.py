"""What every store promises of plain keys, as tests; what it promises of decorated functions is in `contract`."""

# ruff: noqa: D102 - the names of the tests say what is promised

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from ..clock import MAX_SECONDS
from ..entry import DEFAULT, MISSING
from ..errors import OptionError
from ..stores import Store, escape_pattern
from .clock import ManualClock
from .sides import Awaiting, Blocking, Loader

__all__ = ["BAD_DURATIONS", "GOOD_DURATIONS", "PlainContract"]

GOOD_DURATIONS: tuple[Any, ...] = (
    1,
    0.5,
    5e-324,
    True + 1,
    timedelta(seconds=90),
    timedelta(microseconds=1),
    MAX_SECONDS,
)
"""Durations that every method and option takes."""

BAD_DURATIONS: tuple[Any, ...] = (
    0,
    0.0,
    -0.0,
    -1,
    -1e-9,
    math.nan,
    math.inf,
    -math.inf,
    True,
    False,
    "60",
    b"60",
    "",
    "1h",
    timedelta(0),
    timedelta(seconds=-1),
    timedelta.max,
    MAX_SECONDS + 1,
    2**62,
    10**400,
    Decimal(60),
    1j,
    [60],
    (60,),
    ...,
)
"""Durations that every method and option refuses."""


class PlainContract:
    """The tests of plain keys, and what a subclass says of its store, for these and for all of `StoreContract`."""

    values: tuple[Any, ...] = (
        None,
        False,
        True,
        0,
        -1,
        2**70,
        0.5,
        math.inf,
        "",
        "text",
        "\udc80 é \U0001f9ff \x00\n",
        b"",
        b"\x00\xff",
        (),
        (1, "2"),
        [],
        [1, [2, {"a": None}]],
        {},
        {"a": {"b": [1.5]}},
        {1, 2},
        Decimal("1.10"),
        timedelta(1),
    )
    precision: float = 0.0

    def make_store(self, clock: ManualClock, default_ttl: Any = None) -> Store:
        """Return an empty store on that clock."""
        raise NotImplementedError  # whoever tests a store says which one

    def advance(self, clock: ManualClock, seconds: float) -> None:
        """Let time pass for the store."""
        clock.advance(seconds)

    @pytest.fixture
    def clock(self) -> ManualClock:
        """Return the clock that the test moves."""
        return ManualClock(1_000.0)

    @pytest.fixture(params=["sync", "async"])
    def side(self, request: pytest.FixtureRequest, clock: ManualClock) -> Iterator[Blocking]:
        """Return the store, through one of its sides."""
        side = (Awaiting if request.param == "async" else Blocking)(self.make_store(clock))
        yield side
        side.close()
        side.shut()

    @pytest.fixture
    def short(self, side: Blocking, clock: ManualClock) -> Blocking:
        """Return a store whose values live for 10 seconds unless told otherwise, through the same side."""
        side.store = self.make_store(clock, default_ttl=10)
        return side

    # -- values ------------------------------------------------------------------------------------------------------

    def test_a_value_comes_back_as_it_was_stored(self, side: Blocking) -> None:
        for number, value in enumerate(self.values):
            side.set(f"key{number}", value)
        for number, value in enumerate(self.values):
            found = side.get(f"key{number}", MISSING)
            assert found == value
            assert type(found) is type(value)

    def test_what_is_not_there_is_the_default(self, side: Blocking) -> None:
        assert side.get("a") is None
        assert side.get("a", "default") == "default"
        assert side.get("a", MISSING) is MISSING

    def test_every_text_is_a_key_of_its_own(self, side: Blocking) -> None:
        keys = [
            "",
            " ",
            "a",
            "A",
            "a ",
            "a\n",
            "a\x00",
            "*",
            "?",
            "[a]",
            "{a}",
            "a:b",
            "a/b",
            "..",
            "%",
            "é",
            "e\u0301",
            "\udc80",
            "k" * 10_000,
        ]
        for number, key in enumerate(keys):
            side.set(key, number)
        assert [side.get(key) for key in keys] == list(range(len(keys)))
        assert sorted(side.keys()) == sorted(keys)

    def test_a_value_replaces_another(self, side: Blocking) -> None:
        side.set("a", 1)
        side.set("a", None)
        assert side.get("a", "default") is None
        assert side.keys() == ["a"]

    def test_delete_says_whether_there_was_a_value(self, side: Blocking) -> None:
        side.set("a", None)
        assert side.delete("a") is True
        assert side.delete("a") is False
        assert side.get("a", "default") == "default"

    def test_exists(self, side: Blocking) -> None:
        side.set("a", None)
        assert side.exists("a") is True
        assert side.exists("b") is False

    def test_many(self, side: Blocking) -> None:
        side.set_many({"a": 1, "b": None, "c": 3})
        assert side.get_many(["a", "b", "x"]) == {"a": 1, "b": None}
        assert side.get_many(iter(["c"])) == {"c": 3}
        assert side.delete_many(["a", "x", "b", "a"]) == 2
        assert side.keys() == ["c"]
        side.set_many({})
        assert side.get_many([]) == {}
        assert side.delete_many([]) == 0

    def test_many_have_the_ttl_that_was_given(self, side: Blocking, clock: ManualClock) -> None:
        side.set_many({"a": 1, "b": 2}, 10)
        side.set("c", 3)
        self.advance(clock, 10)
        assert side.get_many(["a", "b", "c"]) == {"c": 3}

    def test_clear_removes_everything(self, side: Blocking) -> None:
        side.set_many({"a": 1, "b": 2})
        load = Loader(side, "contract.clear")
        load(1)
        side.clear()
        assert side.keys() == []
        assert load.peek(1) is MISSING

    def test_a_closed_store_may_be_used_again(self, side: Blocking) -> None:
        side.close()
        side.set("a", 1)
        assert side.get("a") == 1
        side.close()

    @pytest.mark.parametrize("key", [None, 1, b"a", ("a",), ["a"], object()])
    def test_a_key_that_is_no_text_is_refused(self, side: Blocking, key: Any) -> None:
        calls: list[Callable[[], object]] = [
            lambda: side.get(key),
            lambda: side.set(key, 1),
            lambda: side.delete(key),
            lambda: side.exists(key),
            lambda: side.increment(key),
            lambda: side.ttl(key),
            lambda: side.expire(key, 1),
            lambda: side.get_many([key]),
            lambda: side.delete_many([key]),
        ]
        for call in calls:
            with pytest.raises(OptionError, match="text"):
                call()
        assert side.keys() == []

    def test_one_bad_key_among_many_stores_nothing(self, side: Blocking) -> None:
        with pytest.raises(OptionError):
            side.set_many({"a": 1, 2: 2})
        with pytest.raises(OptionError):
            side.set_many({"a": 1, "b": 2}, -1)
        assert side.keys() == []

    # -- time --------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("ttl", [10, 10.0, timedelta(seconds=10)])
    def test_a_value_is_there_until_its_time_is_over(self, side: Blocking, clock: ManualClock, ttl: Any) -> None:
        side.set("a", 1, ttl)
        self.advance(clock, 9.875)
        assert side.get("a") == 1
        assert side.exists("a")
        assert side.keys() == ["a"]
        self.advance(clock, 0.125)
        assert side.get("a") is None
        assert not side.exists("a")
        assert side.keys() == []
        assert side.ttl("a") is None
        assert not side.expire("a", 10)
        assert not side.delete("a")

    def test_each_value_has_its_own_ttl(self, side: Blocking, clock: ManualClock) -> None:
        side.set("a", 1, 1)
        side.set("b", 2, 2)
        side.set("c", 3, None)
        side.set("d", 4)
        for there in ["b", "c", "d"], ["c", "d"], ["c", "d"]:
            self.advance(clock, 1)
            assert sorted(side.keys()) == there

    def test_a_value_that_replaces_another_has_its_own_ttl(self, side: Blocking, clock: ManualClock) -> None:
        side.set("a", 1, 2)
        side.set("a", 2)
        side.set("b", 1)
        side.set("b", 2, 2)
        self.advance(clock, 2)
        assert side.keys() == ["a"]

    def test_the_default_ttl(self, short: Blocking, clock: ManualClock) -> None:
        short.set("a", 1)
        short.set("b", 1, DEFAULT)
        short.set("c", 1, None)
        short.set("d", 1, 20)
        short.set_many({"e": 1})
        short.increment("f")
        self.advance(clock, 10)
        assert sorted(short.keys()) == ["c", "d"]

    def test_ttl_is_what_is_left(self, side: Blocking, clock: ManualClock) -> None:
        side.set("a", 1, 10)
        side.set("b", 1)
        assert side.ttl("a") == pytest.approx(10, abs=self.precision)
        self.advance(clock, 2.5)
        assert side.ttl("a") == pytest.approx(7.5, abs=self.precision)
        assert side.ttl("b") == math.inf
        assert side.ttl("c") is None

    def test_expire_gives_a_new_ttl_from_now(self, short: Blocking, clock: ManualClock) -> None:
        for key in "abcd":
            short.set(key, 1, 5)
        self.advance(clock, 4)
        assert short.expire("a", timedelta(seconds=3)) is True
        assert short.expire("b", None) is True
        assert short.expire("c", DEFAULT) is True
        assert short.expire("x", 3) is False
        assert [short.ttl(key) for key in "abcdx"] == [
            pytest.approx(3, abs=self.precision),
            math.inf,
            pytest.approx(10, abs=self.precision),
            pytest.approx(1, abs=self.precision),
            None,
        ]

    @pytest.mark.parametrize("ttl", GOOD_DURATIONS, ids=repr)
    def test_durations_that_are_allowed(self, side: Blocking, ttl: Any) -> None:
        side.set("a", 1, ttl)
        side.set_many({"b": 1}, ttl)
        side.set("c", 1)
        assert side.expire("c", ttl) is True

    @pytest.mark.parametrize("ttl", BAD_DURATIONS, ids=repr)
    def test_durations_that_are_refused(self, side: Blocking, clock: ManualClock, ttl: Any) -> None:
        side.set("a", "old")
        calls: list[Callable[[], object]] = [
            lambda: side.set("a", 1, ttl),
            lambda: side.set_many({"a": 1}, ttl),
            lambda: side.expire("a", ttl),
            lambda: self.make_store(clock, default_ttl=ttl),
            lambda: Loader(side, "contract.bad", ttl=ttl),
        ]
        for call in calls:
            with pytest.raises(OptionError, match="ttl"):
                call()
        assert side.get("a") == "old"
        assert side.ttl("a") == math.inf

    # -- numbers -----------------------------------------------------------------------------------------------------

    def test_increment_starts_at_the_amount(self, side: Blocking) -> None:
        assert side.increment("a") == 1
        assert side.increment("a") == 2
        assert side.increment("a", 5) == 7
        assert side.increment("a", -10) == -3
        assert side.increment("b", 0.5) == 0.5
        assert side.get_many(["a", "b"]) == {"a": -3, "b": 0.5}

    def test_increment_of_a_number_that_was_set(self, side: Blocking) -> None:
        side.set("a", 40)
        assert side.increment("a", 2) == 42

    def test_increment_keeps_the_ttl(self, side: Blocking, clock: ManualClock) -> None:
        side.set("a", 1, 10)
        self.advance(clock, 4)
        side.increment("a")
        assert side.ttl("a") == pytest.approx(6, abs=self.precision)
        self.advance(clock, 6)
        assert side.increment("a", 5) == 5
        assert side.ttl("a") == math.inf

    @pytest.mark.parametrize("value", [None, True, False, "1", [1], {}])
    def test_increment_of_what_is_no_number_is_an_error(self, side: Blocking, value: Any) -> None:
        side.set("a", value)
        with pytest.raises(ValueError, match="not a number"):
            side.increment("a")
        found = side.get("a")
        assert found == value
        assert type(found) is type(value)

    @pytest.mark.parametrize("amount", [None, True, False, "1", 1j, Decimal(1), [1]])
    def test_an_amount_that_is_no_number_is_refused(self, side: Blocking, amount: Any) -> None:
        side.set("a", 1)
        for key in "ab":
            with pytest.raises(OptionError, match="amount"):
                side.increment(key, amount)
        assert side.get("a") == 1
        assert side.keys() == ["a"]

    def test_increment_is_atomic(self) -> None:
        class Yielding(ManualClock):
            """Gives other threads their turn at each reading, which is often between the two steps of two."""

            def monotonic(self) -> float:
                time.sleep(1e-6)  # not 0: on a machine with much to do that often gives it to nobody
                return super().monotonic()

            time = monotonic

        store = self.make_store(Yielding(1_000.0))
        rounds, gate = 50, threading.Barrier(4)
        results: dict[str, list[Any]] = {key: [] for key in ["all", *map(str, range(rounds))]}

        def work() -> None:
            try:
                for number in range(rounds):
                    gate.wait(60)
                    for key in "all", str(number):  # one that is there, and one that nobody has begun
                        results[key].append(store.increment(key))
            except BaseException:
                gate.abort()  # so that nobody waits for this one
                raise

        threads = [threading.Thread(target=work) for _ in range(4)]
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)  # so that two steps are never one by luck
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
        finally:
            sys.setswitchinterval(interval)
        for key, sums in results.items():
            count = 4 * rounds if key == "all" else 4
            assert sorted(sums) == list(range(1, count + 1)), "two threads were given the same sum"
            assert store.get(key) == count
        store.close()

    # -- patterns ----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("pattern", "matching"),
        [
            ("*", ["", "A", "a", "ab", "abc", "b\n", "b*", "x:1", "x:2"]),
            ("", [""]),
            ("a", ["a"]),
            ("a*", ["a", "ab", "abc"]),
            ("a?", ["ab"]),
            ("?", ["A", "a"]),
            ("??", ["ab", "b\n", "b*"]),
            ("[aA]", ["A", "a"]),
            ("x:[!1]", ["x:2"]),
            ("x:[0-1]", ["x:1"]),
            ("b[*]", ["b*"]),
            ("*c", ["abc"]),
            ("nothing", []),
        ],
    )
    def test_patterns_are_globs_over_whole_keys(self, side: Blocking, pattern: str, matching: list[str]) -> None:
        everything = ["", "A", "a", "ab", "abc", "b\n", "b*", "x:1", "x:2"]
        side.set_many(dict.fromkeys(everything, 1))
        assert sorted(side.keys(pattern)) == matching
        assert side.delete_pattern(pattern) == len(matching)
        assert sorted(side.keys()) == [key for key in everything if key not in matching]
        assert side.delete_pattern(pattern) == 0

    def test_an_escaped_pattern_matches_only_itself(self, side: Blocking) -> None:
        keys = ["*", "?", "[a]", "a", "ns[1]:x", "ns1:x", "[*]", "]", "[", "[!a]", "\\*", "b"]
        side.set_many(dict.fromkeys(keys, 1))
        for key in keys:
            assert side.keys(escape_pattern(key)) == [key]
        assert side.keys(escape_pattern("ns[1]:") + "*") == ["ns[1]:x"]
        for key in keys:
            assert side.delete_pattern(escape_pattern(key)) == 1

    @pytest.mark.parametrize("pattern", [None, 1, b"*", ["*"]])
    def test_a_pattern_that_is_no_text_is_refused(self, side: Blocking, pattern: Any) -> None:
        side.set("a", 1)
        with pytest.raises(OptionError, match="pattern"):
            side.keys(pattern)
        with pytest.raises(OptionError, match="pattern"):
            side.delete_pattern(pattern)
        assert side.keys() == ["a"]
