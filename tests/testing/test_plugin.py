"""The pytest plugin, in runs of pytest of its own: what it empties, what its fixtures do, and where it stays out."""

from __future__ import annotations

import re
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

SHOP = """
import asyncio
import memo

store = memo.MemoryStore(cleanup_interval=None)
plain = memo.MemoryStore(cleanup_interval=None)
loads = []


@memo.cache_aside(ttl=60, store=store)
def price(item):
    loads.append(item)
    return len(loads)


@memo.cache_aside(ttl=60)
async def stock(item):
    loads.append(item)
    return len(loads)


class Shop:
    @memo.cache_aside(ttl=60, store="memory://")
    def total(self, item):
        loads.append(item)
        return len(loads)


shop = Shop()


class DictStore(memo.CustomStore):
    def __init__(self):
        super().__init__()
        self.records = {}

    def load_record(self, key):
        return self.records.get(key)

    def save_record(self, key, record):
        self.records[key] = record

    def remove_record(self, key):
        self.records.pop(key, None)

    def record_keys(self):
        return self.records


shared = DictStore()
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """Return a function that runs a test file beside `shop.py`, with the plugin as pytest finds it by itself."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    pytester.makepyfile(shop=SHOP)

    def start(tests, *arguments, settings=""):
        pytester.makeini(f"[pytest]\nfilterwarnings = error\n{settings}")
        pytester.makepyfile(test_shop=tests)
        # Without what else pytest finds, and imports, by itself.
        without = [f"-pno:{name}" for name in ("asyncio", "cacheprovider", "hypothesispytest", "anyio", "pytest_cov")]
        return pytester.runpytest_subprocess(*without, *arguments, timeout=120)

    return start


def test_pytest_finds_it_where_memo_is_installed():
    """If this fails alone, the package was installed before it had a plugin: install it again."""
    (found,) = [entry for entry in entry_points(group="pytest11") if entry.name == "memo"]
    assert found.value == "memo.testing.plugin"
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert '[project.entry-points.pytest11]\nmemo = "memo.testing.plugin"\n' in text


EMPTIED = """
import asyncio
import unittest
import pytest
from shop import loads, plain, price, shared, shop, stock, store


def use():
    assert price.peek("a") is not None
    results = price("a"), asyncio.run(stock("a")), shop.total("a")
    assert results == (price("a"), asyncio.run(stock("a")), shop.total("a"))
    plain.set("a", 1)
    shared.set("a", 1)
    return results


@pytest.mark.parametrize("number", [0, 1, 2])
def test_loads_again(number):
    assert plain.get("a") is None
    assert use() == (3 * number + 1, 3 * number + 2, 3 * number + 3)
    assert shared.stats().sets == number + 1


@pytest.fixture
def filled():
    # A fixture of the test is part of it: what it stores is there.
    plain.set("b", 2)


def test_what_fixtures_store_is_there(filled):
    assert plain.get("b") == 2
    assert plain.get("a") is None


class TestOfUnittest(unittest.TestCase):
    def test_one(self):
        assert plain.get("b") is None
        plain.set("c", 3)

    def test_two(self):
        assert plain.get("c") is None


def test_what_others_share_is_not_touched():
    assert shared.get("a") == 1
"""


def test_every_test_starts_with_empty_stores(run):
    run(EMPTIED).assert_outcomes(passed=7)


def test_stores_that_others_share_are_emptied_if_the_settings_say_so(run):
    result = run(EMPTIED, settings="memo_clear_shared = true")
    result.assert_outcomes(passed=6, failed=1)
    result.stdout.fnmatch_lines(["FAILED *::test_what_others_share_is_not_touched*"])


def test_it_can_be_left_out(run):
    result = run(EMPTIED, "-p", "no:memo")
    assert result.parseoutcomes()["passed"] == 3  # the first, the one of the fixture's value, and what others share
    assert "memo_disabled" not in run("", "-p", "no:memo", "--fixtures").stdout.str()


def test_the_example_in_the_documentation_passes(run, pytester):
    page = Path(__file__).parents[2] / "docs" / "howto.md"
    blocks = re.findall(
        r"^```python\n(# (\w+\.py)\n.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    files = {name: source for source, name in blocks}
    (pytester.path / "prices.py").write_text(files["prices.py"])
    run(files["test_prices.py"]).assert_outcomes(passed=3)


def test_its_fixtures_say_what_they_do(run):
    result = run("", "--fixtures")
    result.stdout.fnmatch_lines(
        ["memo_disabled -- *", "*straight through*", "memo_clock -- *", "*memory store*", "memo_stats -- *"]
    )


def test_a_store_that_cannot_be_emptied_fails_the_test_before_it_starts(run):
    """Else it would see what another test has left, and nobody would know."""
    result = run(
        """
        from shop import DictStore

        class Stubborn(DictStore):
            shared = False

            def record_keys(self):
                raise OSError("down")

        def test_makes_it():
            global store
            store = Stubborn()

        def test_suffers():
            assert False, "it ran"

        """
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        ["*memo could not empty a Stubborn before the test: StoreError: Stubborn.record_keys failed: OSError*"]
    )


def test_a_store_that_fails_on_demand_is_emptied_where_it_has_its_entries(run):
    run(
        """
        from memo.testing import FaultyStore
        from shop import plain

        faulty = FaultyStore(plain)

        def test_fails():
            faulty.set("a", 1)
            faulty.fail()

        def test_starts_all_the_same():
            assert plain.get("a") is None
        """
    ).assert_outcomes(passed=2)


def test_the_fixture_that_switches_caching_off(run):
    run(
        """
        import asyncio
        from shop import loads, price, shop, stock, store

        def test_disabled(memo_disabled):
            assert [price("a"), price("a")] == [1, 2]
            assert [asyncio.run(stock("a")), asyncio.run(stock("a"))] == [3, 4]
            assert [shop.total("a"), shop.total("a")] == [5, 6]
            assert store.keys() == []

        def test_enabled_again():
            assert price("a") == price("a") == 7
        """
    ).assert_outcomes(passed=2)


def test_the_fixture_that_moves_time(run):
    run(
        """
        import asyncio
        import memo
        import pytest
        from shop import loads, price, shop, stock, store

        def test_frozen(memo_clock):
            price("a"), asyncio.run(stock("a")), shop.total("a")
            assert len(loads) == 3
            memo_clock.advance(59.9)
            price("a"), asyncio.run(stock("a")), shop.total("a")
            assert len(loads) == 3
            assert price.ttl_left("a") == pytest.approx(0.1)
            memo_clock.advance(0.1)
            price("a"), asyncio.run(stock("a")), shop.total("a")
            assert len(loads) == 6
            assert price.store is stock.store is Shop.total.store
            assert store.keys() == []

        def test_frozen_again(memo_clock):
            # A store of its own for each test, and a clock that begins anew.
            assert memo_clock.now == 0
            assert price.peek("a") is memo.MISSING

        def test_as_ever():
            assert price.store is store
            assert price("a") == price("a") == 7

        from shop import Shop
        """
    ).assert_outcomes(passed=3)


def test_the_fixture_that_counts(run):
    run(
        """
        import memo
        import pytest
        from shop import price, shop, stock

        @pytest.fixture
        def warm():
            price("warm")

        def test_before():
            for item in "aab":
                price(item)
            assert price.stats().hits == 1

        def test_counts_from_the_beginning_of_the_test(warm, memo_stats):
            price("a"), price("a")
            counted = memo_stats(price)
            assert (counted.hits, counted.misses, counted.loads) == (1, 2, 2)
            assert counted.hit_ratio == 1 / 3
            assert counted.load_seconds < price.stats().load_seconds
            assert counted.errors == counted.uncached_by == {}
            assert memo_stats(price) == counted
            assert memo_stats(stock).misses == 0

        def test_counts_of_methods(memo_stats):
            shop.total("a"), shop.total("a")
            assert memo_stats(type(shop).total).hits == memo_stats(shop.total).hits == 1

        @memo.cache_aside(ttl=lambda value: 1 / 0)
        def failing(x):
            return None if x == "none" else x

        def test_counts_by_kind():
            failing("a"), failing("none")

        def test_counts_by_kind_again(memo_stats):
            failing("a"), failing("a")
            assert memo_stats(failing).errors == {"policy": 2}
            assert memo_stats(failing).uncached_by == {"error": 2}
            assert failing.stats().uncached_by == {"error": 3, "none": 1}

        def test_counts_what_is_decorated_in_the_test(memo_stats):
            @memo.cache_aside
            def local(x):
                return x

            local(1), local(1)
            assert (memo_stats(local).hits, memo_stats(local).misses) == (1, 1)

        def test_counts_of_many(memo_stats):
            @memo.cache_aside_many
            def users(ids):
                return {each: each for each in ids}

            users([1, 2]), users([1])
            assert memo_stats(users) == users.stats()

        def test_asks_by_name(request):
            price("a")
            memo_stats = request.getfixturevalue("memo_stats")
            price("a")
            assert (memo_stats(price).hits, memo_stats(price).misses) == (1, 0)

        def test_counts_on_another_store(memo_stats, memo_clock):
            price("a"), price("a")
            assert (memo_stats(price).hits, memo_stats(price).misses) == (1, 1)

        def test_what_is_not_decorated(memo_stats):
            with pytest.raises(memo.OptionError, match="allowed is a function that memo has decorated"):
                memo_stats(len)
        """
    ).assert_outcomes(passed=10)


def test_it_runs_under_xdist(run):
    """Each worker is a process of its own, with stores of its own."""
    result = run(
        """
        import pytest
        from shop import plain, price

        @pytest.mark.parametrize("number", range(20))
        def test_loads_again(number, memo_clock, memo_stats):
            assert plain.get("a") is None
            plain.set("a", number)
            price("a"), price("a")
            assert (memo_stats(price).hits, memo_stats(price).misses) == (1, 1)
        """,
        *("-n", "2"),
    )
    result.assert_outcomes(passed=20)


def test_it_adds_nothing_to_tests_that_do_not_use_it(run):
    """No fixture of its own for every test, and no store, thread or decorated function where nobody makes one."""
    result = run(
        """
        import threading
        from memo.stats import functions
        from memo.stores.base import stores

        def test_nothing(request):
            assert request.fixturenames == ["request"]
            assert stores() == []
            assert functions() == []
            assert threading.active_count() == 1
        """
    )
    result.assert_outcomes(passed=1)


def test_the_heavy_parts_of_the_test_kit_are_not_imported_with_it(run):
    result = run(
        """
        import sys

        def test_light():
            assert "memo.testing.plugin" in sys.modules
            heavy = {f"memo.testing.{name}" for name in ("plain", "contract", "machines", "lru")}
            assert not {*heavy, "hypothesis"} & set(sys.modules)
        """
    )
    result.assert_outcomes(passed=1)


def test_doctests_start_with_empty_stores_too(run):
    result = run(
        '''
        from shop import plain

        def one():
            """
            >>> plain.get("a")
            >>> plain.set("a", 1)
            """

        def two():
            """
            >>> plain.get("a")
            >>> plain.set("a", 1)
            """
        ''',
        "--doctest-modules",
        "test_shop.py",
    )
    result.assert_outcomes(passed=2)


def test_it_is_left_out_of_memos_own_suite(pytestconfig):
    """Nothing is to empty a store behind the back of a test of stores."""
    assert not pytestconfig.pluginmanager.hasplugin("memo")
    assert pytestconfig.pluginmanager.is_blocked("memo")
    assert sys.modules.get("memo.testing.plugin") is None or not pytestconfig.pluginmanager.is_registered(
        sys.modules["memo.testing.plugin"]
    )
