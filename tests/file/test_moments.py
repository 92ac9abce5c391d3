"""A signal handler, a finalizer, a log handler or Ctrl-C at any moment of an operation: no deadlock, no wrong state."""

from __future__ import annotations

import dis
import faulthandler
import fcntl
import functools
import gc
import inspect
import logging
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from memo import PickleFileStore, StoreError, cache_aside

NIGHTLY = os.environ.get("MEMO_PROFILE") == "nightly"
PATIENCE = 20
HERE = os.sep + os.path.join("memo", "stores") + os.sep


@pytest.fixture(autouse=True)
def _no_hang():
    faulthandler.dump_traceback_later(240, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def _no_strangers_in_collections():
    """Hypothesis times collections with a callback, and what strikes in there is lost: Python reports and drops it."""
    before = gc.callbacks[:]
    gc.callbacks.clear()
    yield
    gc.callbacks[:] = before


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch):
    """Nothing here is about what a crash of the machine leaves."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class World:
    """A store, and another one on the same file that says what is really in it."""

    def __init__(self, path):
        self.path = path
        self.store = PickleFileStore(path, timeout=0.001)
        self.other = PickleFileStore(path, timeout=PATIENCE)
        self.f = cache_aside(store=self.store, namespace="f", tags=("t",))(lambda x: ["loaded", x])
        self.n = 0

    def begin(self):
        if self.path.stat().st_size > 2_000:  # or each reopening would take more steps than the one before
            self.close()
            self.path.unlink()
        self.store.set_many({"text": "old", "more": [1]})
        self.other.set("of another", 1)
        self.n = self.other.increment("n")
        self.f(1)

    def check(self):
        """Assert that all locks are free, and that the store says what is in the file, or nothing."""
        store = self.store
        assert not store._lock._is_owned()
        assert not store._inside.locked()
        with open(self.path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # or it is an error
        for key in "text", "more", "of another", "n", "f(1)":
            assert store.get(key) in (None, self.other.get(key)), key
        assert set(store.keys()) <= set(self.other.keys())
        assert self.f(1) == ["loaded", 1]
        for each in store, self.other:
            assert (each.stats().torn, each.stats().damaged, each.stats().corrupt) == (0, 0, 0)
        assert store._leases._standing.keys() <= {"f(1)", "f(2)"}

    def close(self):
        self.store.close()
        self.other.close()


@pytest.fixture
def world(path):
    world = World(path)
    yield world
    world.close()


OPERATIONS = {
    "get": lambda w: w.store.get("text"),
    "get of another's": lambda w: [w.other.set("of another", 2), w.store.get("of another")],
    "set": lambda w: w.store.set("text", "new"),
    "set_many": lambda w: w.store.set_many({"text": "new", "more": [2]}),
    "delete": lambda w: w.store.delete("text"),
    "increment": lambda w: w.store.increment("n"),
    "expire": lambda w: w.store.expire("text", 60),
    "keys": lambda w: w.store.keys(),
    "stats": lambda w: w.store.stats(),
    "delete_pattern": lambda w: w.store.delete_pattern("te*"),
    "invalidate_tags": lambda w: w.store.invalidate_tags("t"),
    "clear": lambda w: w.store.clear(),
    "hit": lambda w: w.f(1),
    "miss": lambda w: w.f(2),
    "invalidate": lambda w: w.f.invalidate(1),
    "close": lambda w: w.store.close(),
    "reopening": lambda w: [w.store.close(), w.store.get("text")],
    "compact": lambda w: w.store.compact(),
}


def known(world, operation, interrupted):
    """Assert that an operation was done, or if it was interrupted perhaps not."""
    there = world.other.get_many(["text", "n"])
    done = {"set": {"text": "new"}, "set_many": {"text": "new"}, "increment": {"n": world.n + 1}}.get(operation, {})
    gone = {"delete": ["text"], "delete_pattern": ["text"], "clear": ["text", "n"]}.get(operation, [])
    before = {"text": "old", "n": world.n}
    after = {key: value for key, value in {**before, **done}.items() if key not in gone}
    assert there == after or (interrupted and there == before), (there, before, after)


# -- Ctrl-C -----------------------------------------------------------------------------------------------------------


def is_no_moment(frame, event, arg):
    """Whether the interpreter does not look for signals there, or it is in code that is not ours."""
    return (
        HERE not in frame.f_code.co_filename
        or (event == "c_call" and getattr(arg, "__name__", "") in ("__exit__", "set"))
        or (event in ("call", "return") and frame.f_code.co_flags & inspect.CO_GENERATOR)
        # What strikes in a finalizer is lost: Python reports and drops it.
        or "__del__" in (frame.f_code.co_name, frame.f_back.f_code.co_name)
    )


def at_event(number, action, operation, world):
    """Perform an operation, and `action` at its event of that number; return how many there were."""
    seen = 0

    def watch(frame, event, arg):
        nonlocal seen
        if not is_no_moment(frame, event, arg):
            seen += 1
            if seen == number:
                action(world)

    sys.setprofile(watch)
    try:
        operation(world)
    finally:
        sys.setprofile(None)
    return seen


@functools.cache
def leaving(code):
    """The places of the instructions that enter or leave a `with`: for a signal they are one step; and of no-ops."""
    found, row = set(), list(dis.get_instructions(code))
    for index, each in enumerate(row):
        if each.opname in ("PUSH_EXC_INFO", "WITH_EXCEPT_START", "SETUP_WITH", "BEFORE_WITH", "NOP"):
            found.add(each.offset)
        if each.opname == "LOAD_CONST" and each.argval is None:
            rest = [one.opname for one in row[index : index + 6]]
            end = next((n for n, name in enumerate(rest) if name.startswith("CALL")), None)
            if (
                end
                and end >= 3
                and all(
                    name in ("LOAD_CONST", "DUP_TOP", "PRECALL", "CALL", "CALL_FUNCTION") for name in rest[: end + 1]
                )
            ):
                found |= {one.offset for one in row[index : index + end + 1]}
    return found


def at_opcode(number, operation, world):
    """Perform an operation with a KeyboardInterrupt at its opcode of that number; return how many there were."""
    seen = 0

    def trace(frame, event, arg):
        nonlocal seen
        if HERE not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_lasti not in leaving(frame.f_code):
            seen += 1
            if seen == number:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        operation(world)
    finally:
        sys.settrace(None)
    return seen


def interrupt(world):
    sys.setprofile(None)
    raise KeyboardInterrupt


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.usefixtures("untraced")
def test_ctrl_c_at_any_moment_leaves_every_lock_free_and_the_state_right(world, operation):
    number, left = 0, 1
    while left:
        number += 1
        world.begin()
        interrupted = False
        try:
            left = at_event(number, interrupt, OPERATIONS[operation], world) >= number
        except KeyboardInterrupt:
            interrupted = True
        known(world, operation, interrupted)
        world.check()
    assert number > 5
    assert world.store.stats().errors == {}


@pytest.mark.parametrize("operation", ["get", "set", "delete", "increment"])
@pytest.mark.usefixtures("untraced")
def test_ctrl_c_at_every_opcode_leaves_every_lock_free_and_the_state_right(world, operation):
    """More often than the interpreter ever looks: but for the few steps in which it leaves a `with`."""
    number, left, struck = 1, 1, 0
    while left:
        world.begin()
        interrupted = False
        try:
            left = at_opcode(number, OPERATIONS[operation], world) >= number
        except KeyboardInterrupt:
            interrupted = True
            struck += 1
        known(world, operation, interrupted)
        world.check()
        number += 1 if NIGHTLY else 3
    assert struck > 30
    assert world.store.stats().errors == {}


@pytest.mark.usefixtures("untraced")
def test_ctrl_c_at_any_moment_of_opening_leaves_nothing_locked(tmp_path):
    number, struck, left = 0, 0, 1
    while left:
        number += 1
        path = tmp_path / str(number)
        try:
            left = at_event(number, interrupt, lambda _, path=path: PickleFileStore(path), None) >= number
        except KeyboardInterrupt:
            struck += 1
        store = PickleFileStore(path, timeout=0.001)
        store.set("a", 1)
        assert store.get("a") == 1
        assert store.stats().errors == {}
        store.close()
    assert struck > 10


@pytest.mark.usefixtures("untraced")
def test_real_ctrl_c(world, monkeypatch):
    """As it comes, hundreds of times, whatever is going on."""
    lost = []
    monkeypatch.setattr(sys, "unraisablehook", lost.append)  # in a finalizer
    state = {"armed": False, "struck": 0}

    def handler(*_):
        if state["armed"]:
            state["armed"] = False
            state["struck"] += 1
            raise KeyboardInterrupt

    world.begin()
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0007, 0.0007)
    names = sorted(OPERATIONS)
    try:
        turn = 0
        while state["struck"] < (5_000 if NIGHTLY else 300):
            turn += 1
            count = state["struck"]
            try:
                state["armed"] = True
                for step in range(20):
                    OPERATIONS[names[(turn * 7 + step) % len(names)]](world)
                state["armed"] = False
            except KeyboardInterrupt:
                pass
            state["armed"] = False
            if state["struck"] > count:
                world.check()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert {each.exc_type for each in lost} <= {KeyboardInterrupt}
    world.begin()
    world.check()


# -- who uses the store in the middle of an operation of it -----------------------------------------------------------


class Once:
    """Does something inside of an operation, as a signal handler would; never from within itself."""

    def __init__(self, act):
        self.act, self.errors = act, []

    def __call__(self, world):
        watch = sys.getprofile()
        sys.setprofile(None)
        for act in self.act:
            try:
                act(world)
            except StoreError:
                pass  # loud, as it is to be
            except BaseException as error:
                self.errors.append(error)
        sys.setprofile(watch)


HANDLERS = {
    "read": [
        lambda w: w.store.get("text"), lambda w: w.store.keys(), lambda w: w.store.exists("n"),
        lambda w: w.store.ttl("n"), lambda w: w.f(1), lambda w: w.f(3), lambda w: w.store.stats(),
        lambda w: w.store.cleanup(),
    ],
    "write": [
        lambda w: w.store.set("text", "of a handler"), lambda w: w.f.set(["loaded", 1], 1), lambda w: w.f.refresh(1),
        lambda w: w.store.delete("more"), lambda w: w.store.invalidate_tags("t"),
    ],
    "clear": [lambda w: w.store.clear(), lambda w: w.f.invalidate_all()],
    "close": [lambda w: w.store.close(), lambda w: w.store.compact()],
}  # fmt: skip


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.usefixtures("untraced")
def test_a_signal_handler_at_any_moment_may_use_the_store(world, operation, handler):
    number, left = 0, 1
    while left:
        number += 1 if NIGHTLY or number < 3 else 4 if operation != "compact" else 15
        world.begin()
        act = Once(HANDLERS[handler])
        try:
            left = at_event(number, act, OPERATIONS[operation], world) >= number
        except StoreError:
            # What the handler has closed or replaced under an invalidation's hands is an error: it may not be done.
            assert handler == "close"
            assert operation not in ("get", "get of another's", "set", "set_many", "keys", "stats", "hit", "miss")
        assert act.errors == []
        world.check()


def test_a_set_that_a_handler_could_not_do_leaves_nothing_older(world, monkeypatch):
    world.begin()
    real = os.writev

    def writev(descriptor, pieces):
        monkeypatch.setattr(os, "writev", real)
        world.store.set("text", "of a handler")
        assert world.store.get("text") is None
        return real(descriptor, pieces)

    monkeypatch.setattr(os, "writev", writev)
    world.store.set("more", 1)
    assert world.store.get("text") is None  # though it is in the file
    assert world.other.get("text") == "old"
    assert world.store.stats().errors == {"set": 1, "get": 1}
    world.check()


def test_an_invalidation_that_a_handler_could_not_do_is_an_error(world, monkeypatch):
    world.begin()
    real, errors = os.writev, []

    def writev(descriptor, pieces):
        monkeypatch.setattr(os, "writev", real)
        for loud in world.store.clear, world.f.invalidate_all, lambda: world.store.increment("n"), world.store.close:
            try:
                loud()
            except StoreError as error:
                errors.append(str(error))
        return real(descriptor, pieces)

    monkeypatch.setattr(os, "writev", writev)
    world.store.set("more", 1)
    assert len(errors) == 4
    assert all("in use by this very thread, in the middle of another operation" in error for error in errors)
    assert world.other.get("more") == 1
    world.check()


@pytest.mark.usefixtures("untraced")
def test_real_signals_may_use_the_store(world):
    handled = []

    def handle(number, frame):
        handled.append(number)
        world.store.get("text")
        world.store.set("of a handler", len(handled))
        world.f(len(handled) % 3 + 10)
        if len(handled) % 7 == 0:
            try:
                world.store.invalidate_tags("t")
            except StoreError:
                pass
        signal.setitimer(signal.ITIMER_REAL, 0.001)

    world.begin()
    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.001)
    try:
        while len(handled) < (3_000 if NIGHTLY else 150):
            for operation in OPERATIONS:
                OPERATIONS[operation](world)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    world.begin()
    for key in "text", "of a handler", "n":
        assert world.store.get(key) in (None, world.other.get(key))


@pytest.mark.usefixtures("untraced")
def test_finalizers_may_use_the_store(world):
    """Which the collector runs at any allocation, whatever the store is about to do."""
    freed, depth = [], 0

    class Value:
        def __init__(self):
            self.cycle = self

        def __del__(self):
            nonlocal depth
            freed.append(1)
            if depth < 3:
                depth += 1
                try:
                    world.store.get("text")
                    world.store.set(f"freed {len(freed) % 10}", 1)
                    world.store.get("f(1)")  # no call: CPython 3.11 may crash when a finalizer sets a context variable
                    if len(freed) % 20 == 0:
                        world.store.invalidate_tags("t")
                except StoreError:
                    pass
                finally:
                    depth -= 1

    before = gc.get_threshold()
    try:
        for number in range(150):
            world.begin()
            gc.set_threshold(1 + number % 9)
            for operation in OPERATIONS:
                Value()
                try:
                    OPERATIONS[operation](world)
                except StoreError:
                    assert operation in ("close", "reopening", "compact")
            gc.set_threshold(*before)
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert len(freed) > 1_000
    world.begin()
    world.check()


# -- log handlers -----------------------------------------------------------------------------------------------------


class Handler(logging.Handler):
    def __init__(self, act):
        super().__init__()
        self.act, self.lines = act, []

    def emit(self, record):
        self.lines.append(record.getMessage())
        self.act()


@pytest.fixture
def handling():
    """Adds a log handler that does something."""
    logger, added = logging.getLogger("memo"), []

    def add(act):
        added.append(Handler(act))
        logger.addHandler(added[-1])
        return added[-1]

    yield add
    for handler in added:
        logger.removeHandler(handler)


def damage(world):
    data = bytearray(world.path.read_bytes())
    data[-40:-20] = bytes(20)
    world.path.write_bytes(data + b"more of it")


def spoil(world):
    """Turn a bit of a value."""
    data = bytearray(world.path.read_bytes())
    data[data.rindex(b"old")] ^= 1
    world.path.write_bytes(data)


def hide(world):
    os.rename(world.path, world.path.with_name("away"))
    world.path.mkdir()


@pytest.mark.parametrize("mischief", [damage, spoil, hide], ids=lambda each: each.__name__)
def test_a_log_handler_may_use_the_store_and_so_may_others_that_it_waits_for(world, handling, mischief):
    """Whose locks a handler has, and who else waits for them, nobody knows: ours are free."""
    with ThreadPoolExecutor(1) as pool:

        def act():
            world.store.get("text"), world.store.keys(), world.f(1)
            world.store.set("by the handler", 1)
            pool.submit(lambda: (world.store.get("n"), world.store.set("by another", 1))).result(PATIENCE)

        world.begin()
        mischief(world)
        handler = handling(act)
        for _ in range(3):
            world.store.get("text"), world.store.exists("text"), world.store.keys(), world.store.set("a", 1)
    assert handler.lines
    assert len(handler.lines) == len(set(handler.lines))


def test_a_log_handler_that_raises_is_no_callers_error(world, handling):
    world.begin()
    hide(world)
    handling(lambda: 1 // 0)
    assert world.store.get("text") is None
    world.store.set("a", 1)
    assert world.store.stats().errors == {"get": 1, "set": 1, "logging": 2}


def test_a_log_line_within_an_operation_is_written_when_that_is_over(world, handling, monkeypatch):
    world.begin()
    real, seen = os.writev, []

    def writev(descriptor, pieces):
        monkeypatch.setattr(os, "writev", real)
        world.store.get("text")
        seen.append(len(handler.lines))
        return real(descriptor, pieces)

    handler = handling(lambda: seen.append(world.store._lock._is_owned()))
    monkeypatch.setattr(os, "writev", writev)
    world.store.set("more", 1)
    assert seen == [0, False]
    assert "in the middle of another operation" in handler.lines[0]


def test_counts_of_failures_are_exact_under_threads(world):
    hide(world)
    before, threads = sys.getswitchinterval(), []
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=lambda: [world.store.get("a") for _ in range(200)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    finally:
        sys.setswitchinterval(before)
    assert world.store.stats().errors == {"get": 800}
    assert world.store.stats().misses == 800
