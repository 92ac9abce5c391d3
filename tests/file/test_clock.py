"""Time in a file: expiry goes by the wall clock across restarts, and no step of it lets an entry live longer."""

from __future__ import annotations

import pytest

from memo import MISSING, PickleFileStore, cache_aside

DAY = 86_400.0


class Clocks:
    """The wall's clock, which can be set, and the monotonic one, which cannot; processes of one machine share both."""

    def __init__(self) -> None:
        self.wall, self.steady = 1_700_000_000.0, 5_000.0

    def time(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.steady

    def pass_(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds

    def step(self, seconds: float) -> None:
        self.wall += seconds


@pytest.fixture
def clock():
    return Clocks()


@pytest.mark.parametrize("step", [DAY, -DAY, 3_600, -3_600, 1, -1])
@pytest.mark.parametrize("seen", [True, False])
def test_no_entry_outlives_its_ttl_by_more_than_a_second_whatever_the_wall_clock_does(make, clock, step, seen):
    """Stepped in the middle of a run, with a look in between or not; a second process reads along."""
    store, another = make(), make()
    for ttl in (5, 10, 20):
        store.set(f"{ttl}", ttl, ttl)
        another.set(f"their {ttl}", ttl, ttl)
    begun = clock.steady
    clock.pass_(4)
    clock.step(step)
    if seen:
        store.get("5")
    for _ in range(20):
        clock.pass_(1)
        for each in store, another, make():
            for key in each.keys("*"):
                assert clock.steady - begun < float(key.removeprefix("their ")) + 1


@pytest.mark.parametrize("step", [0.4, -0.4, 0.1, -0.1])
def test_small_steps_empty_nothing(make, clock, step):
    """A clock that is kept right by the network is set back by fractions of a second now and then."""
    store, another = make(), make()
    store.set("a", 1, 100)
    clock.step(step)
    assert store.get("a") == another.get("a") == make().get("a") == 1
    clock.pass_(101)
    assert store.get("a") is another.get("a") is None


def test_many_small_steps_backwards_are_noticed_when_they_come_to_more_than_half_a_second(make, clock):
    store = make()
    store.set("a", 1, 100)
    for _ in range(20):
        clock.pass_(0.1)
        clock.step(-0.2)
        store.exists("b")
    assert store.get("a") is None


def test_what_was_made_in_the_future_is_not_there(make, clock):
    """Of two processes one has a clock that runs a day ahead, or the clock was set back before the next run."""
    ahead = make()
    clock.step(DAY)
    ahead.set("a", "later", 60)
    ahead.set("for ever", "later")
    clock.step(-DAY)
    fresh = make()
    assert fresh.keys() == []
    assert fresh.get("for ever") is None
    fresh.set("a", "now", 60)
    assert make().get("a") == "now"


def test_a_clock_that_runs_backwards_empties_the_store_for_all_processes(make, clock):
    store, another = make(), make()
    store.set_many({"a": 1, "b": 2}, 100)
    f = cache_aside(store=another, namespace="f", ttl=100)(lambda x: x)
    f(1)
    clock.step(-10)
    assert store.keys() == []
    assert another.keys() == []
    assert f.peek(1) is MISSING
    assert make().keys() == [], "it is written in the file"
    store.set("c", 3, 100)
    assert store.get("c") == 3


def test_a_process_that_slept_through_it_empties_it_too_and_then_no_more(make, clock):
    """It cannot tell whether what others have written since stands on the clock from before or after."""
    store, asleep = make(), make()
    store.set("a", 1, 100)
    clock.step(-10)
    store.set("b", 2, 100)
    clock.pass_(1)
    asleep.get("b")
    asleep.set("c", 3, 100)
    for each in store, asleep, make():
        assert each.keys() == ["c"]
    clock.pass_(1)
    assert store.get("c") == 3


def test_a_load_that_was_under_way_when_the_clock_ran_backwards_is_not_stored(make, clock):
    store = make()
    f = cache_aside(store=store, namespace="f", ttl=100)(lambda x: clock.step(-10) or x)
    assert f(1) == 1
    assert f.stats().refused_fills == 1
    assert f.peek(1) is MISSING


def test_a_jump_forward_and_back_leaves_nothing_that_lives_too_long(make, clock):
    store = make()
    store.set("before", 1, 100)
    clock.step(DAY)
    assert store.get("before") is None
    store.set("meanwhile", 2, 100)
    assert store.get("meanwhile") == 2
    clock.step(-DAY)
    assert store.keys() == make().keys() == []
    clock.pass_(DAY + 50)
    assert store.keys() == make().keys() == [], "nor when that time has come"


def test_what_a_gone_process_made_in_the_future_does_not_live_when_its_time_has_come(make, clock):
    """Nobody has seen the clock run backwards; who meets the record says for good that it is not there."""
    clock.step(DAY)
    gone = make()
    gone.set("a", "old", 100)
    gone.close()
    clock.step(-DAY)
    assert make().get("a") is None
    clock.pass_(DAY + 50)
    assert make().get("a") is None


def test_while_it_can_not_be_written_in_the_file_it_is_still_owed(make, clock):
    store, another = make(timeout=1e-6), make()
    store.set("a", 1)
    holder = make()
    assert holder._look_locked() is not None
    clock.step(-10)
    assert store.get("a") is None
    assert store._owes
    holder._view.log.unlock()
    assert store.get("a") is None
    assert not store._owes
    assert another.get("a") is None
    assert make().keys() == []


def test_equal_timestamps_are_told_apart_by_their_order(make, clock):
    """The clock stands still: the latest word is that which stands last in the file."""
    store, another = make(), make()
    f = cache_aside(store=another, namespace="f", ttl=10, tags=("t",))(lambda x: next(numbers))
    numbers = iter(range(100))
    for turn in range(5):
        store.set("a", turn, 10)
        another.delete("a") if turn % 2 else another.set("a", -turn, 10)
        assert store.get("a", "gone") == ("gone" if turn % 2 else -turn)
        assert f(1) == turn
        store.invalidate_tags("t")
    assert make().keys() == ["a"]


def test_expiry_goes_on_across_restarts(make, clock):
    """By the wall: the monotonic clock begins anew with the machine."""
    store = make()
    store.set("short", 1, 10)
    store.set("long", 2, 100)
    f = cache_aside(store=store, namespace="f", ttl=10, stale_if_error=20)(lambda x: x)
    f(1)
    store.close()
    clock.pass_(9)
    clock.steady = 1.0
    store = make()
    assert (store.get("short"), store.ttl("short"), store.ttl("long")) == (1, 1, 91)
    store.close()
    clock.pass_(1)
    store = make()
    assert (store.get("short"), store.get("long")) == (None, 2)

    def fails(x):
        raise LookupError

    f = cache_aside(store=store, namespace="f", ttl=10, stale_if_error=20)(fails)
    assert f(1) == 1, "its window goes on, too"
    clock.pass_(20)
    with pytest.raises(LookupError):
        f(1)


def test_an_expired_entry_is_gone_at_the_boundary_itself(make, clock):
    store = make()
    store.set("a", 1, 10)
    clock.pass_(9.75)
    assert store.get("a") == 1
    clock.pass_(0.25)
    assert store.get("a") is None
    assert store.stats().expirations == 1
    assert make().get("a") is None


def test_the_default_clock_is_read_through_its_module(path):
    freezegun = pytest.importorskip("freezegun")
    with freezegun.freeze_time("2024-01-01") as frozen:
        store = PickleFileStore(path)
        store.set("a", 1, 10)
        frozen.tick(9)
        assert store.get("a") == 1
        frozen.tick(1)
        assert store.get("a") is None
        store.close()
