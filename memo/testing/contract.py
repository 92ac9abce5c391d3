"""What every store promises, as tests for a subclass to run; this module never looks inside a store.

::

    class TestMyStore(StoreContract):
        def make_store(self, clock, default_ttl=None):
            return MyStore(clock=clock, default_ttl=default_ttl)

Each test runs twice, through the plain methods and through those with an `a` in front.
"""

# ruff: noqa: D102 - the names of the tests say what is promised

from __future__ import annotations

from typing import Any

import pytest

from ..entry import MISSING
from ..errors import OptionError
from .clock import ManualClock
from .plain import PlainContract
from .sides import Blocking, Loader

__all__ = ["StoreContract"]


class StoreContract(PlainContract):
    """The tests, after those of plain keys, which it inherits; a subclass says how to make a store.

    Attributes:
        values: what the store must return as it was given; a store of JSON has fewer.
        precision: by how many seconds `ttl` may be off.
    """

    # -- decorated functions -----------------------------------------------------------------------------------------

    def test_a_decorated_function_loads_once(self, side: Blocking) -> None:
        load = Loader(side, "contract.once")
        assert load(1) == load(1) == "1 of load 1"
        assert load("1") == "'1' of load 2"
        assert load(1) == "1 of load 1"

    def test_a_functions_entries_go_by_their_key(self, side: Blocking, clock: ManualClock) -> None:
        load = Loader(side, "contract.by_key", ttl=10)
        for x in range(5):
            load(x)
        assert sorted(side.keys()) == sorted(side.keys("contract.by_key(*")) == [load.key(x) for x in range(5)]
        assert side.exists(load.key(0)) is True
        assert side.get(load.key(0)) == "0 of load 1"
        assert side.get_many([load.key(0), load.key(9)]) == {load.key(0): "0 of load 1"}
        assert side.ttl(load.key(0)) == pytest.approx(10, abs=self.precision)
        assert side.expire(load.key(0), 20) is True
        assert load.ttl_left(0) == pytest.approx(20, abs=self.precision)
        assert side.delete(load.key(1)) is True
        assert load.peek(1) is MISSING
        assert side.delete_pattern("*(2)") == 1
        assert load.peek(2) is MISSING
        assert side.delete_many([load.key(3), load.key(1)]) == 1
        assert load.peek(3) is MISSING
        self.advance(clock, 10)
        assert side.keys() == [load.key(0)]

    def test_arguments_cannot_become_a_pattern(self, side: Blocking) -> None:
        """A value that reaches a glob unescaped wipes everyone's entries."""
        load = Loader(side, "contract", key="user:{x}")
        for x in ["*", "?", "[a]", "a", "b"]:
            load(x)
        assert load.invalidate("*") is True
        assert load.invalidate("?") is True
        assert load.invalidate("[a]") is True
        assert sorted(side.keys()) == ["contract:user:a", "contract:user:b"]
        assert side.delete_pattern("contract:user:*") == 2

    def test_tags_remove_what_bears_them_and_nothing_else(self, side: Blocking) -> None:
        one = Loader(side, "contract.one", tags=("all", "x:{x}"))
        two = Loader(side, "contract.two", tags=("two", "x:{x}"))
        for x in 1, 2:
            one(x)
            two(x)
        side.set("plain", 1)
        side.invalidate_tags("x:1")
        assert sorted(side.keys()) == sorted([one.key(2), two.key(2), "plain"])
        side.invalidate_tags("nobody has this", "two")
        assert sorted(side.keys()) == sorted([one.key(2), "plain"])
        side.invalidate_tags()
        side.invalidate_tags("all", "all", "two")
        assert side.keys() == ["plain"]
        assert one(1) == "1 of load 3"

    def test_a_new_ttl_leaves_the_tags(self, side: Blocking) -> None:
        load = Loader(side, "contract.tag", tags=("a",))
        load(1)
        assert side.expire(load.key(1), 10) is True
        side.invalidate_tags("a")
        assert load.peek(1) is MISSING

    @pytest.mark.parametrize("tag", [None, "", 1, b"a", ["a"]])
    def test_a_tag_that_is_no_text_is_refused(self, side: Blocking, tag: Any) -> None:
        load = Loader(side, "contract.tag", tags=("a",))
        load(1)
        with pytest.raises(OptionError, match="tag"):
            side.invalidate_tags("a", tag)
        assert load.peek(1) == "1 of load 1"

    @pytest.mark.parametrize(
        "during",
        [
            ("delete", "contract.lease(7)"),
            ("delete_many", ["x", "contract.lease(7)"]),
            ("delete_pattern", "*(7)"),
            ("invalidate_tags", "b"),
            ("clear",),
            ("fn.invalidate", 7),
            ("fn.invalidate_all",),
        ],
        ids=lambda step: step[0],
    )
    def test_no_load_that_began_before_an_invalidation_is_stored(self, side: Blocking, during: tuple[Any, ...]) -> None:
        load = Loader(side, "contract.lease", tags=("a", "b"))
        load.during = during
        assert load(7) == "7 of load 1"
        assert load.peek(7) is MISSING
        assert side.keys() == []
        assert load(7) == load(7) == "7 of load 2"

    @pytest.mark.parametrize("during", [("fn.set", "newer", 7), ("fn.refresh", 7)], ids=["set", "refresh"])
    def test_no_load_overwrites_what_was_written_meanwhile(self, side: Blocking, during: tuple[Any, ...]) -> None:
        load = Loader(side, "contract.newer", single_flight=None)
        load.during = during
        load(7)
        assert load(7) == ("newer" if during[0] == "fn.set" else "7 of load 2")

    def test_a_result_that_is_not_kept_takes_away_what_it_would_have_replaced(self, side: Blocking) -> None:
        load = Loader(side, "contract.not_kept", result=lambda x, number: None if number == 2 else number, tags=("a",))
        assert load(7) == 1
        assert load.refresh(7) is None
        assert load.peek(7) is MISSING
        assert side.keys() == []
        assert load(7) == load(7) == 3

    def test_invalidate_all_leaves_others_alone(self, side: Blocking) -> None:
        one, two = Loader(side, "contract.one"), Loader(side, "contract.two")
        for load in one, two:
            load(1)
            load(2)
        side.set("plain", 1)
        one.invalidate_all()
        assert sorted(side.keys()) == sorted([two.key(1), two.key(2), "plain"])
        assert one(1) == "1 of load 3"

    def test_what_is_kept_for_an_error_is_read_by_nobody_else(self, side: Blocking, clock: ManualClock) -> None:
        """With stale windows an entry stays when its ttl is over, and reads as absent all the same."""
        down: list[bool] = []

        def result(x: Any, number: int) -> str:
            if down:
                raise OSError("down")
            return f"{x} of load {number}"

        load = Loader(side, "contract.kept", result=result, ttl=10, stale_if_error=10, tags=("a",))
        load(7)
        load(8)
        down.append(True)
        self.advance(clock, 10)
        assert load.peek(7) is MISSING
        assert side.get(load.key(7)) is None
        assert side.exists(load.key(7)) is False
        assert side.ttl(load.key(7)) is None
        assert side.keys() == []
        assert load(7) == "7 of load 1"
        assert load.fn.stats().hits == 0, "it was served without a load"
        assert load.invalidate(7) is False
        with pytest.raises(OSError, match="down"):
            load(7)
        side.invalidate_tags("a")
        with pytest.raises(OSError, match="down"):
            load(8)
        down.clear()
        load(7)
        down.append(True)
        self.advance(clock, 20)
        with pytest.raises(OSError, match="down"):
            load(7)

    def test_what_touches_other_keys_lets_a_load_be_stored(self, side: Blocking) -> None:
        load = Loader(side, "contract.others", tags=("a",))
        for during in ("delete", load.key(8)), ("delete_pattern", "*(8)"), ("invalidate_tags", "b"), ("set", "x", 1):
            load.during = during
            load(7)
            assert load.peek(7) is not MISSING
            load.invalidate(7)

    # -- statistics --------------------------------------------------------------------------------------------------

    def test_hits_and_misses_are_the_reads(self, side: Blocking) -> None:
        load = Loader(side, "contract.counted")
        side.set("a", None)
        side.get("a")
        side.get("b")
        side.get_many(["a", "b", "c"])
        load(1)
        load(1)
        load.peek(1)
        side.exists("a")
        side.ttl("a")
        side.keys()
        counted = side.stats()
        assert (counted.hits, counted.misses) == (3, 4)
        assert counted.hit_ratio == 3 / 7
        assert side.stats() == counted
        assert (load.fn.stats().hits, load.fn.stats().misses) == (1, 1)
