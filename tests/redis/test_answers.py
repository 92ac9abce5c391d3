"""Commands as bytes and bytes as answers: the same with hiredis and without, and no answer is another's."""

from __future__ import annotations

import random

import pytest
import redis
from redis.exceptions import ResponseError

from memo.stores.redis import answers as answers_module
from memo.stores.redis.answers import Answers, answers_of, pack
from memo.stores.redis.commands import WrongAnswer
from memo.stores.redis.protocol import FILL

with_hiredis = pytest.mark.skipif(answers_module.hiredis is None, reason="hiredis reads the answers")

COMMANDS = [
    ("GET", b"k"),
    ("SET", "k\u00e9".encode(), b"a\r\nb\x00", "NX", "PX", 600_000),
    FILL(b"k", b"", b"value", 0),
    ("SCAN", 0, "MATCH", b"*", "COUNT", 1000),
]


@with_hiredis
def test_hiredis_packs_as_memo_does_without_it():
    assert pack(COMMANDS) == b"".join(map(answers_module._pack_command, COMMANDS))
    assert pack([("GET", b"")]) == b"*2\r\n$3\r\nGET\r\n$0\r\n\r\n"


@with_hiredis
def test_answers_may_come_in_any_pieces():
    data = b"+OK\r\n$5\r\na\r\nb\x00\r\n$-1\r\n:7\r\n-WRONGTYPE of it\r\n*2\r\n$1\r\nk\r\n*-1\r\n_\r\n"
    for seed in range(20):
        choice = random.Random(seed)
        answers, replies, rest = Answers(ResponseError), [], data
        while rest:
            assert not answers.take(replies, 7)
            size = choice.randrange(1, 9)
            answers.feed(rest[:size])
            rest = rest[size:]
        assert answers.take(replies, 7)
        assert isinstance(replies.pop(4), ResponseError)
        assert replies == [b"OK", b"a\r\nb\x00", None, 7, [b"k", None], None]


@with_hiredis
def test_what_was_not_asked_for_is_no_answer():
    answers, replies = Answers(ResponseError), []
    answers.feed(b">2\r\n+invalidate\r\n*1\r\n$1\r\nk\r\n+OK\r\n")
    assert answers.take(replies, 1)
    assert replies == [b"OK"]


@with_hiredis
@pytest.mark.parametrize("data", [b"+OK\r\n+OK\r\n", b"garbage\r\n"], ids=["one too many", "none"])
def test_what_cannot_be_the_answers_is_an_error(data):
    answers = Answers(ResponseError)
    answers.feed(data)
    with pytest.raises(WrongAnswer):
        answers.take([], 1)


def test_without_hiredis_the_client_library_reads():
    connection = redis.Connection()
    assert (answers_of(connection) is None) == (answers_module.hiredis is None)
    connection._parser = object()
    assert answers_of(connection) is None
