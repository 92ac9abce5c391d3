"""Globs over keys, those of decorated functions too; no value can act as a pattern."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memo import MISSING, MemoryStore, OptionError, cache_aside, escape_pattern
from memo.stores.patterns import compile_pattern

KEYS = ["user:1", "user:2", "user:10", "users:1", "ns[1]:a", "ns1:a", "a*b", "axb", "a\nb", "", "Ä"]

glob_text = st.text(alphabet="ab*?[]!-^\\\n", max_size=6)


@pytest.fixture
def store():
    store = MemoryStore()
    store.set_many(dict.fromkeys(KEYS, 1))
    return store


@pytest.mark.parametrize(
    ("pattern", "matching"),
    [
        ("*", KEYS),
        ("user:*", ["user:1", "user:2", "user:10"]),
        ("user:?", ["user:1", "user:2"]),
        ("user:[12]", ["user:1", "user:2"]),
        ("user:[!1]", ["user:2"]),
        ("user:[0-1]*", ["user:1", "user:10"]),
        ("*:1", ["user:1", "users:1"]),
        ("a?b", ["a*b", "axb", "a\nb"]),
        ("a[*]b", ["a*b"]),
        ("USER:*", []),
        ("user:", []),
        ("ser:1", []),
        ("", [""]),
        ("?", ["Ä"]),
        ("[", []),
        ("[]", []),
    ],
)
def test_a_pattern_matches_whole_keys(store, pattern, matching):
    assert sorted(store.keys(pattern)) == sorted(matching)
    assert store.delete_pattern(pattern) == len(matching)
    assert sorted(store.keys()) == sorted(key for key in KEYS if key not in matching)


def test_brackets_in_a_namespace_are_not_taken_literally_unless_escaped(store):
    """`ns[1]:*` matches the keys of `ns1:` and not its own: the trap that `escape_pattern` is for."""
    assert store.keys("ns[1]:*") == ["ns1:a"]
    assert store.keys(escape_pattern("ns[1]:") + "*") == ["ns[1]:a"]


@pytest.mark.parametrize("key", KEYS)
def test_an_escaped_key_matches_itself_alone(store, key):
    assert store.keys(escape_pattern(key)) == [key]
    assert store.delete_pattern(escape_pattern(key)) == 1
    assert sorted(store.keys()) == sorted(each for each in KEYS if each != key)


@given(text=glob_text, other=glob_text)
def test_escaping_makes_a_literal(text, other):
    assert (compile_pattern(escape_pattern(text)).match(other) is not None) is (text == other)
    assert compile_pattern(escape_pattern(text)).match(text)


@given(pattern=glob_text)
def test_no_pattern_is_an_error(pattern):
    assert compile_pattern("*").match(pattern)
    assert isinstance(compile_pattern(pattern), re.Pattern)


@pytest.mark.parametrize("pattern", [None, 1, b"*", ["*"], re.compile("a")])
def test_a_pattern_that_is_no_text_is_refused(store, pattern):
    for method in store.keys, store.delete_pattern:
        with pytest.raises(OptionError, match="pattern"):
            method(pattern)
    assert len(store) == len(KEYS)


def test_the_keys_of_decorated_functions_match_like_others():
    store = MemoryStore()
    get = cache_aside(store=store, namespace="app.get")(lambda x, flag=False: x)
    keyed = cache_aside(store=store, namespace="app", key="user:{x}")(lambda x: x)
    for x in 1, "a*", (1, 2):
        get(x)
        keyed(str(x))
    assert sorted(store.keys("app.get(*")) == ["app.get('a*',False)", "app.get((1,2),False)", "app.get(1,False)"]
    assert store.keys(escape_pattern(get.key_for("a*"))) == [get.key_for("a*")]
    assert len(store.keys("app:user:*")) == 3
    assert store.delete_pattern("app.get(1,*") == 1
    assert get.peek(1) is MISSING
    assert store.delete_pattern(escape_pattern(keyed.key_for("a*"))) == 1
    assert keyed.peek("a*") is MISSING
    assert len(store) == 4


def test_the_keys_of_instances_match_like_others():
    store = MemoryStore()

    class Thing:
        @cache_aside(store=store)
        def get(self, x):
            return x

    thing, other = Thing(), Thing()
    thing.get(1)
    other.get(1)
    thing.get("a")
    assert sorted(store.keys()) == sorted([thing.get.key_for(1), other.get.key_for(1), thing.get.key_for("a")])
    assert store.delete_pattern("*,1)") == 2
    assert store.keys() == [thing.get.key_for("a")]
    assert store.delete(thing.get.key_for("a"))
    assert thing.get.peek("a") is MISSING


@pytest.mark.parametrize("value", ["*", "?", "[a-z]", "user:*", "[", "]", "\\*", "{x}"])
def test_a_value_with_glob_characters_invalidates_itself_alone(value):
    """A peer wiped every user's entry when one was called "*"."""
    store = MemoryStore()
    templated = cache_aside(store=store, namespace="t", key="user:{name}")(lambda name: name)
    default = cache_aside(store=store, namespace="d")(lambda name: name)
    for function in templated, default:
        for name in "a", "b", value:
            function(name)
        assert function.invalidate(value) is True
        assert function.peek("a") == "a"
        assert function.peek("b") == "b"
    assert len(store) == 4


def test_a_pattern_voids_the_loads_whose_keys_match():
    store = MemoryStore()
    during = []
    load = cache_aside(store=store, namespace="load")(lambda x: during.pop()() if during else x)
    during.append(lambda: store.delete_pattern("load(1)"))
    load(1)
    assert load.peek(1) is MISSING
    during.append(lambda: store.delete_pattern("load(2)"))
    load(1)
    assert load.peek(1) == 0
