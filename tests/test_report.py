"""`memo.report`: what a person reads of all functions, what programs read, and what neither ever gets to see."""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import memo
from memo import MemoryStore, NullStore, cache_aside, stats
from memo.report import added, by_name, duration
from memo.stats import FunctionCounters, FunctionStats
from memo.testing import ManualClock

SECRET = "hunter2-canary"


def counted(hits=0, misses=0, loads=0, load_seconds=0.0, waits=0, refused_fills=0, **more) -> FunctionStats:
    return FunctionStats(hits, misses, loads, load_seconds, waits, refused_fills, **more)


@pytest.fixture
def alone(monkeypatch):
    """No function is decorated but those of the test."""
    monkeypatch.setattr(stats, "_functions", {})


def advice(**numbers) -> list[str]:
    return memo.Report({"app.f": counted(**numbers)}).advice


# What is in it.


def test_every_decorated_function_has_a_row_with_what_its_own_stats_say(alone):
    @cache_aside
    def used(x):
        return x

    @cache_aside
    def unused(): ...

    @cache_aside
    async def awaited(): ...

    used(1), used(1), used(2)
    rows = memo.report().rows
    assert set(rows) == {f"{__name__}.{each.__wrapped__.__qualname__}" for each in (used, unused, awaited)}
    assert rows[f"{__name__}.{used.__wrapped__.__qualname__}"] == used.stats()
    assert used.stats().hits == 1


def test_functions_of_one_name_are_added_up(alone):
    def make(answer):
        @cache_aside(cache_if=lambda result: result is not None)
        def product(x):
            return answer

        return product

    products = [make(1), make(None), make(2)]
    for product in products:
        product(1), product(1)
    (row,) = memo.report().rows.values()
    assert (row.hits, row.misses, row.loads, row.uncached_by) == (2, 4, 4, {"none": 2})


def test_a_function_that_is_gone_has_no_row(alone):
    @cache_aside
    def short_lived(): ...

    assert len(memo.report().rows) == 1
    del short_lived
    gc.collect()
    assert memo.report().rows == {}


def test_reading_changes_nothing(alone):
    @cache_aside
    def function(x):
        return x

    function(1), function(1)
    before = function.stats()
    assert str(memo.report()) == str(memo.report())
    assert function.stats() == before


def test_the_order_is_by_time_saved_then_by_what_costs_most_then_by_name(alone, monkeypatch):
    rows = {
        "b.nothing": counted(),
        "a.nothing": counted(),
        "dear": counted(misses=2, loads=2, load_seconds=9.0),
        "cheap": counted(misses=2, loads=2, load_seconds=1.0),
        "saves some": counted(hits=1, misses=1, loads=1, load_seconds=1.0),
        "saves most": counted(hits=4, misses=1, loads=1, load_seconds=1.0),
    }

    class Counters:
        def __init__(self, name):
            self.name, self.snapshot = name, lambda: rows[name]

    monkeypatch.setattr(stats, "functions", lambda: [Counters(name) for name in rows])
    assert list(memo.report().rows) == ["saves most", "saves some", "dear", "cheap", "a.nothing", "b.nothing"]


def test_a_report_stands_still(alone):
    @cache_aside
    def function(x):
        return x

    function(1)
    report = memo.report()
    function(1)
    assert next(iter(report.rows.values())).hits == 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.rows = {}


NUMBERS = st.integers(0, 9)
COUNTED = st.builds(
    FunctionStats,
    *[NUMBERS] * 6,
    uncached_by=st.dictionaries(st.sampled_from("abc"), NUMBERS),
    stale_hits=NUMBERS,
    refreshes=NUMBERS,
    errors=st.dictionaries(st.sampled_from("abc"), NUMBERS),
)


@given(COUNTED, COUNTED)
def test_a_sum_has_the_sum_of_every_field(one, other):
    both = added(one, other)
    for field in dataclasses.fields(FunctionStats):
        first, second, sums = (getattr(each, field.name) for each in (one, other, both))
        if isinstance(sums, dict):
            assert sums.keys() == first.keys() | second.keys()
            assert all(sums[key] == first.get(key, 0) + second.get(key, 0) for key in sums)
        else:
            assert sums == first + second
    assert by_name([("f", one), ("g", one), ("f", other)]) == {"f": both, "g": one}


# What a person reads.


def test_the_table_shows_calls_ratio_load_time_and_time_saved():
    report = memo.Report(
        {
            "app.users.get_user": counted(hits=1_100, misses=100, loads=100, load_seconds=1.23),
            "app.total": counted(misses=3, loads=0),
        }
    )
    assert str(report).splitlines() == [
        "function                                 calls  hit ratio  mean load  time saved",
        "app.users.get_user                       1,200      91.7%    12.3 ms     13.53 s",
        "app.total                                    3       0.0%          -      0.00 s",
    ]


def test_refused_fills_uncached_results_and_errors_stand_below_with_their_reasons():
    row = counted(misses=5, loads=5, refused_fills=2, uncached_by={"ttl": 1, "none": 1_000}, errors={"read": 3})
    line = str(memo.Report({"app.f": row})).splitlines()[2]
    assert line == "    refused fills 2; not kept: none 1,000, ttl 1; errors: read 3"


def test_a_report_of_nothing_says_what_to_do(alone):
    text = str(memo.report())
    assert "@cache_aside" in text
    assert max(map(len, text.splitlines())) <= 80


NAMES = st.text("abc._<>é", min_size=1, max_size=120)
LARGE = st.integers(0, 10**9)
HUGE = st.builds(
    FunctionStats,
    LARGE,
    LARGE,
    LARGE,
    st.floats(0, 10**6),
    LARGE,
    LARGE,
    uncached_by=st.dictionaries(st.sampled_from(["none", "cache_if", "ttl", "error", "a new one"]), LARGE),
    errors=st.dictionaries(st.sampled_from(["policy", "read", "refresh", "logging", "a new one"]), LARGE),
)


@given(st.dictionaries(NAMES, HUGE, max_size=4))
def test_no_line_is_ever_longer_than_80_columns(rows):
    lines = str(memo.Report(rows)).splitlines()
    assert max(map(len, lines)) <= 80
    for name in rows:
        if len(name) < 16:
            assert any(line.startswith(f"{name} ") for line in lines)


def test_a_long_name_keeps_its_end_in_the_table_and_all_of_it_in_the_advice():
    name = "a_package.of_many.parts_with.quite.long_names.Class.method"
    text = str(memo.Report({name: counted(misses=1, loads=1, uncached_by={"none": 1})}))
    assert re.search(r"^\.\.\.[\w.]+\.Class\.method +1 ", text, re.MULTILINE)
    assert f"- {name}: 1 of 1 results were None" in text.replace("\n ", "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.00 s"),
        (0.0000004, "0 us"),
        (0.00079, "790 us"),
        (0.0012, "1.2 ms"),
        (0.0123, "12.3 ms"),
        (0.9994, "999.4 ms"),
        (3.48, "3.48 s"),
        (3_599.0, "3599.00 s"),
        (3_600.0, "1.0 h"),
        (36_000_000.0, "10,000.0 h"),
    ],
)
def test_durations_have_the_unit_that_fits(seconds, text):
    assert duration(seconds) == text


# What it advises.


def test_where_all_is_well_there_is_no_advice():
    report = memo.Report({"app.f": counted(hits=900, misses=100, loads=100, load_seconds=1.0)})
    assert report.advice == []
    assert str(report).count("\n") == 1


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"uncached_by": {"none": 40}}, "app.f: 40 of 100 results were None and not kept: cache_none=True keeps them"),
        ({"uncached_by": {"cache_if": 40}}, "app.f: 40 of 100 results were not kept because of cache_if"),
        ({"uncached_by": {"ttl": 40}}, "app.f: 40 of 100 results were not kept because ttl= gave 0 or less"),
        ({"uncached_by": {"left_out": 40}}, "app.f: 40 of 100 ids were not in what the function returned"),
        ({"refused_fills": 12}, "app.f: 12 of 100 fills were refused: it is invalidated while it loads"),
        ({"errors": {"policy": 1}}, "app.f: 1 policy error: a function given as option raised"),
        ({"errors": {"read": 2}}, "app.f: 2 read errors: a lookup in the store failed"),
        ({"errors": {"take": 2}}, "app.f: 2 take errors: a lookup in the store failed"),
        ({"errors": {"fill": 2}}, "app.f: 2 fill errors: a result was not kept because the store or its serializer"),
        ({"errors": {"release": 2}}, "app.f: 2 release errors: the store failed to give up a lease"),
        ({"errors": {"load": 2}}, "app.f: 2 load errors: the function raised, and an older result was served"),
        ({"errors": {"refresh": 2}}, "app.f: 2 refresh errors: a refresh in the background failed"),
        ({"errors": {"logging": 2}}, "app.f: 2 logging errors: a handler of the logger 'memo' raised"),
        ({"errors": {"new": 2000}}, "app.f: 2,000 new errors: the logger 'memo' says more"),
    ],
)
def test_what_is_actionable_is_said_once_with_its_number_and_what_to_do(numbers, said):
    (sentence,) = advice(hits=9_900, misses=100, loads=100, **numbers)
    assert sentence.startswith(said)


@pytest.mark.parametrize("numbers", [{"uncached_by": {"none": 9}}, {"uncached_by": {"ttl": 9}}, {"refused_fills": 9}])
def test_less_than_a_tenth_of_the_loads_is_not_worth_a_word(numbers):
    assert advice(hits=900, misses=100, loads=100, **numbers) == []


def test_results_that_an_option_that_raised_kept_out_are_spoken_of_once():
    (sentence,) = advice(misses=9, loads=9, uncached_by={"error": 9}, errors={"policy": 9})
    assert "given as option raised" in sentence


def test_calls_that_are_hardly_ever_hits_are_spoken_of():
    (sentence,) = advice(hits=9, misses=91, loads=91)
    assert sentence.startswith("app.f: 9 of 100 calls were hits: ")
    assert advice(hits=10, misses=90, loads=90) == []
    assert advice(hits=0, misses=99, loads=99) == []
    assert "calls were hits" not in " ".join(advice(misses=500, loads=500, uncached_by={"none": 400}))
    assert "calls were hits" not in " ".join(advice(misses=500, loads=500, refused_fills=400))
    assert "calls were hits" not in " ".join(advice(misses=500, loads=500, errors={"read": 400}))


def test_the_advice_stands_below_the_table():
    text = str(memo.Report({"app.f": counted(misses=1, loads=1, uncached_by={"none": 1}), "app.g": counted()}))
    table, _, below = text.partition("\n\n")
    assert table.startswith("function ")
    assert below == "What to look at:\n- app.f: 1 of 1 results were None and not kept: cache_none=True keeps them"


def fails(*arguments):
    raise RuntimeError(SECRET)


def test_every_reason_and_kind_that_memo_counts_has_its_own_advice(alone, caplog):
    """Found by making each of them happen, except those of the store, which are written down where they are counted."""
    clock = ManualClock()

    @cache_aside
    def none():
        return None

    @cache_aside(cache_if=lambda result: False)
    def refused():
        return 1

    @cache_aside(ttl=lambda result: 0)
    def no_time():
        return 1

    @cache_aside(ttl=fails)
    def broken_option():
        return 1

    answers = [1]

    @cache_aside(ttl=1, stale_if_error=10, store=MemoryStore(clock=clock))
    def broken_later():
        return answers.pop()

    for function in (none, refused, no_time, broken_option, broken_later):
        function()
    clock.advance(2)
    broken_later()
    report = memo.report()
    kinds = {kind for row in report.rows.values() for kind in (*row.uncached_by, *row.errors)}
    assert kinds == {"none", "cache_if", "ttl", "error", "policy", "load"}
    assert len(report.advice) == 5
    assert not any("says more" in sentence for sentence in report.advice)


def test_the_kinds_of_errors_that_are_counted_all_have_advice():
    """Kinds are literals where they are counted."""
    source = "".join(path.read_text() for path in Path(memo.__file__).parent.rglob("*.py"))
    kinds = set(re.findall(r'counters\.error\("(\w+)"', source)) | {"read", "take", "fill", "release", "logging"}
    assert {"policy", "load", "refresh"} <= kinds
    for kind in kinds:
        assert "says more" not in advice(errors={kind: 1})[0], kind


def test_the_reasons_why_results_are_not_kept_all_have_advice():
    source = "".join(path.read_text() for path in Path(memo.__file__).parent.rglob("*.py"))
    reasons = set(re.findall(r'NotKept\("(\w+)"\)', source))
    assert {"none", "cache_if", "ttl", "error"} <= reasons
    for reason in reasons - {"error"}:  # counted as an error of the kind "policy" too
        assert advice(loads=1, uncached_by={reason: 1}), reason


# What programs read.


def test_a_dict_for_programs_has_all_numbers_and_the_advice():
    row = counted(hits=3, misses=2, loads=1, load_seconds=0.5, waits=1, uncached_by={"none": 1}, errors={"read": 1})
    read = json.loads(json.dumps(memo.Report({"app.f": row, "app.g": counted()}).to_dict()))
    assert read["functions"]["app.f"] == {
        "calls": 5,
        "hits": 3,
        "misses": 2,
        "hit_ratio": 0.6,
        "loads": 1,
        "load_seconds": 0.5,
        "mean_load_seconds": 0.5,
        "time_saved": 1.5,
        "waits": 1,
        "stale_hits": 0,
        "refreshes": 0,
        "refused_fills": 0,
        "uncached": 1,
        "uncached_by": {"none": 1},
        "errors": {"read": 1},
    }
    assert read["functions"]["app.g"]["mean_load_seconds"] is None
    assert [sentence.partition(":")[0] for sentence in read["advice"]] == ["app.f", "app.f"]


# What it never shows.


def test_no_argument_key_value_or_error_text_gets_into_a_report(alone, caplog):
    @cache_aside(ttl=fails, tags=("{x}",), key="k:{x}")
    def function(x):
        return x + SECRET

    @cache_aside(store=NullStore())
    def other(x):
        raise RuntimeError(x)

    caplog.set_level(logging.CRITICAL)
    function(SECRET)
    with pytest.raises(RuntimeError):
        other(SECRET)
    report = memo.report()
    assert len(report.rows) == 2
    for text in (str(report), repr(report), json.dumps(report.to_dict())):
        assert SECRET not in text


# The documentation.


def test_the_how_to_shows_the_table_that_a_report_prints():
    page = (Path(memo.__file__).parent.parent / "docs" / "howto.md").read_text(encoding="utf-8")
    report = memo.Report(
        {
            "shop.prices.price": counted(hits=11_240, misses=760, loads=760, load_seconds=38.76),
            "shop.users.get_user": counted(1_320, 480, 480, 5.904, 0, 3, uncached_by={"none": 312}),
        }
    )
    assert f"```text\n{report}\n```" in page


def test_counters_of_a_name_are_those_that_are_listed(alone):
    counters = FunctionCounters("app.f")
    counters.hits.tick()
    assert memo.report().rows == {"app.f": counters.snapshot()}
