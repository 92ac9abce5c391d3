"""Writers that invalidate: after success, before they return, and so that nothing older is stored afterwards."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from memo import (
    MISSING,
    CustomStore,
    InvalidationError,
    MemoryStore,
    OptionError,
    StoreError,
    cache_aside,
    cache_aside_many,
    disabled,
    invalidates,
    override,
)

PATIENCE = 20.0


class DictStore(CustomStore):
    """A store that blocks, and that fails while it is down."""

    shared = False

    def __init__(self):
        super().__init__()
        self.records, self.down, self.threads = {}, False, set()

    def _up(self):
        self.threads.add(threading.current_thread())
        if self.down:
            raise OSError("down")

    def load_record(self, key):
        self._up()
        return self.records.get(key)

    def save_record(self, key, record):
        self._up()
        self.records[key] = record

    def remove_record(self, key):
        self._up()
        self.records.pop(key, None)

    def record_keys(self):
        self._up()
        return list(self.records)


@pytest.fixture(params=["memory", "custom"])
def store(request):
    return MemoryStore(cleanup_interval=None) if request.param == "memory" else DictStore()


@pytest.fixture
def names():
    return {7: "Ada", 8: "Bea"}


@pytest.fixture
def get_name(store, names):
    @cache_aside(store=store, tags=("name:{user_id}",))
    def get_name(user_id, lang="en"):
        return names[user_id]

    return get_name


@pytest.fixture
def aget_name(store, names):
    @cache_aside(store=store)
    async def aget_name(user_id, lang="en"):
        return names[user_id]

    return aget_name


class User:
    def __init__(self, id, name):
        self.id, self.name = id, name


# -- what is invalidated -----------------------------------------------------------------------------------------------


def test_the_arguments_of_the_same_names_are_the_targets(get_name, names):
    @invalidates(get_name)
    def rename(name, user_id):
        names[user_id] = name
        return "done"

    get_name(7), get_name(8), get_name(7, "no")
    assert rename("Eve", user_id=7) == "done"
    assert get_name.peek(7) is MISSING
    assert get_name(7) == "Eve"
    assert get_name.peek(7, "no") == "Ada"  # the target's default was meant
    assert get_name.peek(8) == "Bea"


def test_call_gives_positional_arguments_keyword_arguments_or_nothing(get_name):
    made = []

    @invalidates(get_name, call=lambda user, **_: made[-1](user))
    def save(user, *, note=None):
        pass

    for each in (lambda user: (user.id, "no"), lambda user: {"lang": "no", "user_id": user.id}):
        get_name(7), get_name(7, "no")
        made.append(each)
        save(User(7, "x"), note=1)
        assert get_name.peek(7, "no") is MISSING
        assert get_name.peek(7) == "Ada"
    get_name(7, "no")
    made.append(lambda user: None)
    save(User(7, "x"))
    assert get_name.peek(7, "no") == "Ada"


def test_several_targets_and_several_decorators(get_name, aget_name, names):
    @cache_aside_many(store=get_name.store)
    def get_names(ids):
        return {each: names[each] for each in ids}

    @invalidates(get_names, call=lambda user_id, name: ([user_id, 9],))
    @invalidates(get_name, aget_name)
    def rename(user_id, name):
        names[user_id] = name

    get_name(7), asyncio.run(aget_name(7)), get_names([7, 8])
    rename(7, "Eve")
    assert get_name.peek(7) is MISSING
    assert asyncio.run(aget_name.peek(7)) is MISSING
    assert get_names.peek(7) is MISSING
    assert get_names.peek(8) == "Bea"


async def test_an_async_writer_has_targets_of_both_kinds(get_name, aget_name, names):
    @cache_aside_many(store=get_name.store)
    async def get_names(ids):
        return {each: names[each] for each in ids}

    @invalidates(get_name, aget_name)
    @invalidates(get_names, call=lambda user_id, name: {"ids": (user_id,)})
    async def rename(user_id, name):
        await asyncio.sleep(0)
        names[user_id] = name
        return "done"

    get_name(7), await aget_name(7), await get_names([7, 8])
    assert await rename(7, "Eve") == "done"
    assert get_name.peek(7) is MISSING
    assert await aget_name.peek(7) is MISSING
    assert await get_names([7, 8]) == {7: "Eve", 8: "Bea"}


async def test_an_async_writer_awaits_a_store_that_blocks(names):
    store = DictStore()

    @cache_aside(store=store)
    async def get_name(user_id):
        return names[user_id]

    @invalidates(get_name, tags=("x",), store=store)
    async def rename(user_id):
        pass

    await get_name(7)
    await rename(7)
    assert await get_name.peek(7) is MISSING
    assert store.threads
    assert threading.main_thread() not in store.threads


def test_a_function_of_many_ids_by_name(names):
    @cache_aside_many
    def get_names(ids, lang="en"):
        return {each: names[each] for each in ids}

    @invalidates(get_names)
    def forget(ids):
        for each in ids:
            names[each] = None

    get_names([7, 8])
    forget([7])
    assert get_names.peek(7) is MISSING
    assert get_names.peek(8) == "Bea"


def test_tags_are_templates_over_the_writers_parameters(get_name, store):
    @invalidates(tags=("name:{user.id}", "others"), store=store)
    def save(user):
        pass

    get_name(7), get_name(7, "no"), get_name(8)
    save(User(7, "x"))
    assert get_name.peek(7) is MISSING
    assert get_name.peek(7, "no") is MISSING
    assert get_name.peek(8) == "Bea"


async def test_tags_in_a_store_by_its_name_awaited():
    @cache_aside(tags=("numbers",), store="memory://?max_size=78")
    async def number(x):
        return x

    @invalidates(tags=["numbers"], store="memory://?max_size=78")
    async def change():
        pass

    await number(1)
    await change()
    assert await number.peek(1) is MISSING


def test_parameters_that_are_no_part_of_the_key_are_not_needed(store):
    @cache_aside(store=store, ignore=("conn",))
    def one(conn, user_id):
        return 1

    @cache_aside(store=store, key="two:{user_id}")
    def two(conn, user_id):
        return 2

    @cache_aside(store=store)
    def three(user_id, *rest, flag=True, **options):
        return 3

    @invalidates(one, two, three)
    def write(user_id, rest=None):
        pass

    @invalidates(three)
    def write_all(user_id, *rest, **options):
        pass

    one(None, 7), two(None, 7), three(7), three(7, 1, x=2)
    write(7)
    assert [one.peek(0, 7), two.peek(0, 7), three.peek(7)] == [MISSING] * 3
    assert three.peek(7, 1, x=2) == 3
    write_all(7, 1, x=2)
    assert three.peek(7, 1, x=2) is MISSING


def test_a_target_below_another_decorator(store):
    def loud(function):
        @functools.wraps(function)
        def inner(*args):
            return function(*args)

        return inner

    @loud
    @cache_aside(store=store)
    def get(x):
        return x

    @invalidates(get)
    def put(x):
        pass

    get(1)
    put(1)
    assert get.__wrapped__.peek(1) is MISSING


# -- methods -----------------------------------------------------------------------------------------------------------


class Repo:
    def __init__(self):
        self.value = 0

    @cache_aside
    def get(self, key):
        return self.value

    @cache_aside
    async def aget(self, key):
        return self.value

    @cache_aside
    @classmethod
    def outer(cls, key):
        return cls.__name__

    @classmethod
    @cache_aside
    def inner(cls, key):
        return cls.__name__

    @staticmethod
    @cache_aside
    def static(key):
        return key

    @cache_aside_many
    def many(self, keys):
        return dict.fromkeys(keys, self.value)

    @cache_aside(ignore=("self",))
    def shared(self, key):
        return key

    @invalidates(get, aget, outer, inner, static, shared)
    @invalidates(many, call=lambda self, key: (self, [key]))
    def put(self, key):
        self.value += 1

    @invalidates(get, aget, outer, inner, static)
    async def aput(self, key):
        self.value += 1

    @invalidates(outer, inner, static)
    @classmethod
    def cput(cls, key):
        return cls

    @classmethod
    @invalidates(outer, inner, static)
    def cput_inner(cls, key):
        return cls

    @staticmethod
    @invalidates(static)
    def sput(key):
        return key

    @invalidates(static)
    @staticmethod
    def sput_outer(key):
        return key


class Child(Repo):
    @invalidates(Repo.get)
    def replace(self, key):
        pass


async def looked(repo):
    cls = type(repo)
    return [
        repo.get.peek(1),
        await repo.aget.peek(1),
        cls.outer.peek(1),
        cls.inner.peek(cls, 1),
        repo.static.peek(1),
    ]


async def fill(repo):
    return [repo.get(1), await repo.aget(1), repo.outer(1), repo.inner(1), repo.static(1)]


async def test_methods_invalidate_those_of_their_instance_and_class():
    repo, other = Repo(), Repo()
    for write in (repo.put, repo.aput):
        filled = await fill(repo)
        await fill(other)
        repo.many([1, 2])
        repo.shared(1)
        result = write(1)
        if inspect.isawaitable(result):
            await result
        else:
            assert repo.many.peek(1) is MISSING
            assert repo.many.peek(2) is not MISSING
            assert other.shared.peek(1) is MISSING
        assert await looked(repo) == [MISSING] * 5
        assert other.get.peek(1) == 0
        assert filled[2:] == ["Repo", "Repo", 1]


def test_classmethods_and_staticmethods_are_writers_too():
    for cls in (Repo, Child):
        for write in (cls.cput, cls.cput_inner):
            Repo.outer(1), Repo.inner(1), Repo.static(1), Child.outer(1)
            assert write(1) is cls
            assert cls.outer.peek(1) is MISSING
            assert Repo.static.peek(1) is MISSING
        assert Repo.outer.peek(1) == ("Repo" if cls is Child else MISSING)
    for write in (Repo.sput, Repo().sput, Repo.sput_outer):
        Repo.static(1)
        assert write(1) == 1
        assert Repo.static.peek(1) is MISSING


def test_a_subclass_invalidates_what_it_inherits():
    child = Child()
    child.get(1)
    child.replace(1)
    assert child.get.peek(1) is MISSING


def test_a_bound_method_is_a_target():
    repo, other = Repo(), Repo()

    @invalidates(repo.get, Child.outer, Child.inner)
    def change(key):
        pass

    repo.get(1), other.get(1), Child.outer(1), Child.inner(1), Repo.outer(1)
    change(1)
    assert repo.get.peek(1) is MISSING
    assert Child.outer.peek(1) is MISSING
    assert Child.inner.peek(Child, 1) is MISSING
    assert other.get.peek(1) == 0
    assert Repo.outer.peek(1) == "Repo"

    @invalidates(repo.get, call=lambda: (1,))
    def change_one():
        pass

    repo.get(1)
    change_one()
    assert repo.get.peek(1) is MISSING


def test_the_self_of_another_class_is_refused_before_anything_is_written():
    written = []

    class Service:
        @invalidates(Repo.get)
        def put(self, key):
            written.append(key)

        @invalidates(Repo.get, call=lambda self, key: (self.repo, key))
        def put_by_call(self, key):
            written.append(key)

        @invalidates(Repo.shared)
        def put_shared(self, key):
            pass

    with pytest.raises(OptionError, match=r"Repo\.get, a method of another class than .*Service.*call="):
        Service().put(1)
    assert written == []
    service = Service()
    service.repo = Repo()
    service.repo.get(1)
    service.put_by_call(1)
    assert service.repo.get.peek(1) is MISSING
    service.repo.shared(1)
    service.put_shared(1)  # whose `self` counts for nothing
    assert service.repo.shared.peek(1) is MISSING


# -- when --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [LookupError, KeyboardInterrupt])
def test_a_writer_that_raises_invalidates_nothing(get_name, store, error):
    @invalidates(get_name, tags=("name:{user_id}",), store=store)
    def rename(user_id):
        raise error

    get_name(7)
    with pytest.raises(error):
        rename(7)
    assert get_name.peek(7) == "Ada"


async def test_an_async_writer_that_raises_or_is_cancelled_invalidates_nothing(get_name, store):
    @invalidates(get_name, tags=("name:{user_id}",), store=store)
    async def rename(user_id, event=None):
        if event is None:
            raise LookupError
        await event.wait()

    get_name(7)
    with pytest.raises(LookupError):
        await rename(7)
    task = asyncio.create_task(rename(7, asyncio.Event()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert get_name.peek(7) == "Ada"


def test_the_old_result_is_there_while_the_write_goes_on_and_gone_when_it_returns(get_name, names):
    seen = []

    @invalidates(get_name)
    def rename(user_id, name):
        seen.append(get_name(user_id))
        names[user_id] = name
        seen.append(get_name(user_id))

    get_name(7)
    rename(7, "Eve")
    assert seen == ["Ada", "Ada"]
    assert get_name(7) == "Eve"


class Gate:
    def __init__(self):
        self.entered, self.opened = threading.Event(), threading.Event()

    def hold(self):
        self.entered.set()
        assert self.opened.wait(PATIENCE)


def test_a_load_that_began_during_the_write_is_not_stored_after_it(store):
    """1. the write begins   2. a load reads the old value   3. the write ends   4. the load ends."""
    source, gate, writing = {7: "old"}, Gate(), Gate()
    held = threading.Event()

    @cache_aside(store=store)
    def get(key):
        value = source[key]
        if not held.is_set():
            held.set()
            gate.hold()
        return value

    @invalidates(get)
    def put(key, value):
        writing.hold()
        source[key] = value

    with ThreadPoolExecutor(2) as pool:
        try:
            writer = pool.submit(put, 7, "new")
            assert writing.entered.wait(PATIENCE)
            reader = pool.submit(get, 7)
            assert gate.entered.wait(PATIENCE)
            writing.opened.set()
            writer.result(PATIENCE)
            assert get(7) == "new"  # it does not join the old load either
            gate.opened.set()
            assert reader.result(PATIENCE) == "old"
        finally:
            writing.opened.set()
            gate.opened.set()
    assert get(7) == "new"


async def test_a_load_that_began_during_the_write_is_not_stored_after_it_async(store):
    source, gate, loading = {7: "old"}, asyncio.Event(), asyncio.Event()

    @cache_aside(store=store)
    async def get(key):
        value = source[key]
        if not loading.is_set():
            loading.set()
            await gate.wait()
        return value

    @invalidates(get)
    async def put(key, value):
        reader = asyncio.create_task(get(key))
        await loading.wait()
        source[key] = value
        return reader

    reader = await put(7, "new")
    assert await get(7) == "new"
    gate.set()
    assert await reader == "old"
    assert await get(7) == "new"


def test_what_is_invalidated_is_found_before_the_write(get_name, store):
    """A mistake in `call` stops it, and what it does to its arguments does not matter."""
    written = []

    @invalidates(get_name, call=lambda user: (user.nobody,))
    def save(user):
        written.append(user)

    with pytest.raises(AttributeError):
        save(User(7, "x"))

    @invalidates(get_name, call=lambda user: [user.id])
    def save_list(user):
        written.append(user)

    with pytest.raises(OptionError, match=r"call= returned a list.*tuple"):
        save_list(User(7, "x"))

    @invalidates(get_name, call=lambda user: ())
    def save_nothing(user):
        written.append(user)

    with pytest.raises(TypeError, match="user_id"):
        save_nothing(User(7, "x"))

    @invalidates(tags=("user:{user.nobody}",), store=store)
    def save_tag(user):
        written.append(user)

    with pytest.raises(AttributeError):
        save_tag(User(7, "x"))
    assert written == []


@pytest.mark.parametrize("left", [3, object()])
def test_what_a_write_does_to_its_arguments_changes_nothing(store, left):
    @cache_aside(store=store)
    def get(key):
        return len(key)

    @invalidates(get)
    def clear(key):
        key.clear()
        key.append(left)  # another key, or none at all

    get([1, 2])
    clear([1, 2])
    assert get.peek([1, 2]) is MISSING


def test_a_space_that_was_replaced_during_the_write_is_not_missed():
    """1. the write begins   2. `invalidate_all` gives the instance a new table   3. a call fills it."""

    class Repository:
        value = "old"

        @cache_aside(store=MemoryStore(cleanup_interval=None))
        def get(self, key):
            return self.value

        @invalidates(get)
        def put(self, key, value):
            Repository.get.invalidate_all()
            self.get(key)
            self.value = value

    repo = Repository()
    repo.get(1)
    repo.put(1, "new")
    assert repo.get(1) == "new"


# -- failures ----------------------------------------------------------------------------------------------------------


def test_an_invalidation_that_fails_says_that_the_write_succeeded(names):
    broken, sound = DictStore(), MemoryStore(cleanup_interval=None)

    @cache_aside(store=broken)
    def first(x):
        return x

    @cache_aside(store=sound, tags=("t",))
    def second(x):
        return x

    @invalidates(first, second, first, tags=("t",), store=broken)
    def write(x):
        broken.down = True
        return "written"

    first(1), second(1)
    with pytest.raises(InvalidationError, match=r"write: the write succeeded.*`result`.*until it expires") as caught:
        write(1)
    assert caught.value.result == "written"
    assert len(caught.value.errors) == 3
    assert caught.value.__cause__ is caught.value.errors[0]
    assert isinstance(caught.value, StoreError)
    assert second.peek(1) is MISSING
    copy = pickle.loads(pickle.dumps(InvalidationError("m", 1, (ValueError("x"),))))
    assert (str(copy), copy.result) == ("m", 1)


async def test_an_invalidation_that_fails_says_that_the_write_succeeded_async():
    broken, sound = DictStore(), MemoryStore(cleanup_interval=None)

    @cache_aside(store=broken)
    async def first(x):
        return x

    @cache_aside(store=sound)
    async def second(x):
        return x

    @invalidates(first, second, tags=("t",), store=broken)
    async def write(x):
        broken.down = True
        return "written"

    await first(1), await second(1)
    with pytest.raises(InvalidationError) as caught:
        await write(1)
    assert caught.value.result == "written"
    assert len(caught.value.errors) == 2
    assert await second.peek(1) is MISSING


class Slow(DictStore):
    """Removes a record only when it is let go, once it has been asked."""

    def __init__(self):
        super().__init__()
        self.gate = Gate()

    def remove_record(self, key):
        self.gate.hold()
        super().remove_record(key)


@pytest.mark.parametrize("fails", [False, True])
async def test_a_writer_that_is_cancelled_after_it_has_written_still_invalidates(fails, caplog):
    store = Slow()

    @cache_aside(store=store)
    async def get(x):
        return x

    @invalidates(get)
    async def put(x):
        pass

    await get(1)
    task = asyncio.create_task(put(1))
    assert await asyncio.to_thread(store.gate.entered.wait, PATIENCE)
    task.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
    store.down = fails
    store.gate.opened.set()
    with caplog.at_level(logging.ERROR, "memo"), pytest.raises(asyncio.CancelledError):
        await task
    store.down = False
    assert await get.peek(1) is (1 if fails else MISSING)
    assert ("was cancelled; 1 invalidations failed" in caplog.text) is fails


@pytest.mark.parametrize("make", [lambda: _later(), lambda: _future()])
def test_a_plain_function_that_returns_an_awaitable_has_not_written_yet(get_name, make):
    @invalidates(get_name)
    def rename(user_id):
        return make()

    get_name(7)
    with pytest.raises(TypeError, match=r"rename returned a \w+, so it has not written yet.*async def"):
        rename(7)
    assert get_name.peek(7) == "Ada"


async def _later():
    raise AssertionError


def _future():
    loop = asyncio.new_event_loop()
    try:
        return loop.create_future()
    finally:
        loop.close()


# -- what it looks like, and what is refused ---------------------------------------------------------------------------


@cache_aside
def looked_up(x):
    return x


@invalidates(looked_up)
def documented(x: int, *, y: str = "a") -> str:
    """Write it."""
    return y


@invalidates(looked_up)
async def adocumented(x):
    pass


def test_the_writer_looks_like_itself_and_pickles_by_reference():
    assert inspect.signature(documented) == inspect.signature(documented.__wrapped__)
    assert (documented.__doc__, documented.__name__) == ("Write it.", "documented")
    assert inspect.iscoroutinefunction(adocumented)
    assert not inspect.iscoroutinefunction(documented)
    assert pickle.loads(pickle.dumps(documented)) is documented
    assert pickle.loads(pickle.dumps(Repo.put)) is Repo.put


def test_wrong_arguments_are_pythons_own_error():
    with pytest.raises(TypeError, match=r"documented\(\) missing 1 required positional argument: 'x'"):
        documented()


def test_a_partial_and_a_callable_object_may_write():
    written = []

    class Writer:
        def __call__(self, x):
            written.append(x)

    for writer in (functools.partial(lambda y, x: written.append(x), 0), Writer()):
        looked_up(5)
        invalidates(looked_up)(writer)(x=5)
        assert looked_up.peek(5) is MISSING
    assert written == [5, 5]


@pytest.mark.parametrize(
    ("decorate", "message"),
    [
        (lambda: invalidates(), "name what to invalidate"),
        (lambda: invalidates(lambda x: x), "invalidates: .*decorated with cache_aside.*lambda"),
        (lambda: invalidates("looked_up"), "is none"),
        (lambda: invalidates(looked_up)(7), "decorates functions and methods, not 7"),
        (lambda: invalidates(looked_up)(int), "decorates functions and methods"),
        (lambda: invalidates(looked_up)(lambda y: y), r"looked_up, whose parameter 'x'.*call=lambda y: \(\.\.\.,\)"),
        (lambda: invalidates(looked_up)(lambda *x: x), "whose parameter 'x'"),
        (lambda: invalidates(Repo.get)(lambda key: key), "whose parameter 'self'"),
        (lambda: invalidates(looked_up)(lambda x: (yield)), "generator function cannot be a writer"),
        (lambda: invalidates(looked_up, call=7)(lambda x: x), "call=7"),
        (lambda: invalidates(looked_up, call=_later)(lambda x: x), "call="),
        (lambda: invalidates(tags=("a",), call=lambda: ())(lambda x: x), "call= says which call"),
        (lambda: invalidates(tags="a")(lambda x: x), "tags='a'"),
        (lambda: invalidates(tags=("t:{y}",))(lambda x: x), "tags=.*{y} is not a parameter"),
        (lambda: invalidates(tags=("a",), store=7)(lambda x: x), "store="),
        (lambda: invalidates(looked_up)(min), "signature cannot be read"),
    ],
)
def test_what_is_not_allowed_is_an_error_at_decoration(decorate, message):
    with pytest.raises(OptionError, match=message):
        decorate()


async def _agen():
    yield


def test_an_async_generator_is_refused():
    with pytest.raises(OptionError, match="generator function cannot be a writer"):
        invalidates(looked_up, call=lambda: ())(_agen)


def test_a_writer_invalidates_while_calls_pass_the_cache_by(get_name):
    @invalidates(get_name)
    def rename(user_id):
        pass

    get_name(7)
    with disabled():
        rename(7)
    assert get_name.peek(7) is MISSING


def test_a_writer_during_which_stores_were_exchanged_invalidates_in_the_new_one():
    """1. the write begins   2. another store takes the place   3. a call loads the old value there   4. it ends."""
    source = {7: "old"}
    other = MemoryStore(cleanup_interval=None)

    @cache_aside
    def get(key):
        return source[key]

    @invalidates(get)
    def put(key, value):
        change.__enter__()
        get(key)
        source[key] = value

    change = override(other)
    get(7)
    try:
        put(7, "new")
        assert get(7) == "new"
    finally:
        change.__exit__(None, None, None)
