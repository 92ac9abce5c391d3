"""The contract and the state machine as a third party uses them: one planted defect in a store, and they fail."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = (Path(__file__).parent / "plain_store.py").read_text(encoding="utf-8")
TESTS = """
from hypothesis import HealthCheck, Phase, settings

from memo.testing import StoreContract, StoreMachine
from {module} import PlainStore


class TestContract(StoreContract):
    def make_store(self, clock, default_ttl=None):
        return PlainStore(clock, default_ttl)


class Machine(StoreMachine):
    def make_store(self, clock):
        return PlainStore(clock, self.DEFAULT_TTL)


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=150, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck),
    phases=[Phase.generate], report_multiple_bugs=False,
)
"""


class Defect(NamedTuple):
    """A piece of the source, what it becomes, who must see it: a test of the contract, the state machine."""

    old: str
    new: str
    test: str | None
    machine: bool = True


LEASE = "test_no_load_that_began_before_an_invalidation_is_stored"
BOUNDARY = "test_a_value_is_there_until_its_time_is_over"
KEPT = "test_what_is_kept_for_an_error_is_read_by_nobody_else"
NEWER = "test_no_load_overwrites_what_was_written_meanwhile"
NOT_KEPT = "test_a_result_that_is_not_kept_takes_away_what_it_would_have_replaced"
READS = "test_hits_and_misses_are_the_reads"
DEFECTS = {
    "the end of a ttl": Defect("self.now() + life.ttl", "self.now() + life.ttl + 0.01", BOUNDARY),
    "expired keys are listed": Defect(
        "if matches(key) and self.find(key) is not MISSING]", "if matches(key)]", BOUNDARY
    ),
    "no default ttl": Defect(
        "return self.default_ttl if ttl is DEFAULT", "return None if ttl is DEFAULT", "test_the_default_ttl"
    ),
    "a delete leaves the lease": Defect("            space.leases.pop(key, None)", "            pass", LEASE),
    "a tag leaves the lease": Defect("if not dropped & {*lease[1]}}", "}", LEASE),
    "a pattern leaves the lease": Defect("if not matches(key)}", "}", LEASE),
    "a clear leaves the lease": Defect("                space.leases.clear()", "                pass", LEASE),
    "a function leaves the lease": Defect("            self.leases.clear()", "            pass", LEASE),
    "a fill asks for no lease": Defect("[0] is not lease:", "[0] is lease is None:", NEWER),
    "a function removes all": Defect("if entry.space is self]", "]", "test_invalidate_all_leaves_others_alone"),
    "an increment begins a new ttl": Defect(
        "_replace(value=number + amount)",
        "_replace(value=number + amount, end=math.inf)",
        "test_increment_keeps_the_ttl",
    ),
    "what is not there gets a ttl": Defect(
        "                return False\n            end",
        "                return True\n            end",
        "test_expire_gives_a_new_ttl_from_now",
    ),
    "many are read and not counted": Defect("(key, self.get(key, MISSING)) for", "(key, self.find(key)) for", READS),
    "a look counts": Defect(
        "        with self.lock:\n            return self.find(key) is not MISSING\n\n    def increment",
        "        return self.get(key, MISSING) is not MISSING\n\n    def increment",
        READS,
    ),
    "a pattern matches a beginning": Defect(
        "if matches(key) and",
        "if key.startswith(pattern.rstrip('*')) and",
        "test_patterns_are_globs_over_whole_keys",
    ),
    "a value is text": Defect(
        "        self.write(key, value, ttl, (), None)",
        "        self.write(key, str(value), ttl, (), None)",
        "test_a_value_comes_back_as_it_was_stored",
    ),
    # What only the machine sees.
    "a clock that runs backwards is not seen": Defect("        if now < self.latest:\n", "        if False:\n", None),
    # What only the contract sees: real threads, what is refused, windows, and values and orders that are rare.
    "a renewal looks at what is there": Defect(
        "and not reading.due and not renew", "and not reading.due", NOT_KEPT, machine=False
    ),
    "tags are forgotten": Defect(
        "Entry(value, end, tags, space, life)",
        "Entry(value, end, (), space, life)",
        "test_tags_remove_what_bears_them_and_nothing_else",
        machine=False,
    ),
    "an increment is two steps": Defect(
        "        with self.lock:\n            number = self.find(key)\n",
        "        if True:\n            number = self.find(key)\n            __import__('time').sleep(0.0001)\n",
        "test_increment_is_atomic",
        machine=False,
    ),
    "half of many are stored": Defect(
        "        for key in values:\n            checked_key(key)\n",
        "",
        "test_one_bad_key_among_many_stores_nothing",
        machine=False,
    ),
    "the end of a window": Defect("entry.end + entry.life.kept else", "entry.end else", KEPT, machine=False),
    "a stale result is served as fresh": Defect(
        "if now < entry.end + entry.life.stale", "if True", KEPT, machine=False
    ),
    "None is nothing": Defect(
        "default if value is MISSING",
        "default if value in (MISSING, None)",
        "test_a_value_replaces_another",
        machine=False,
    ),
    "a release removes nothing": Defect(
        "                    self.store.drop(key)\n\n", "                    pass\n\n", NOT_KEPT, machine=False
    ),
    "a bool is a number": Defect(
        "type(number) not in (int, float)",
        "not isinstance(number, (int, float))",
        "test_increment_of_what_is_no_number_is_an_error",
        machine=False,
    ),
    "a new ttl takes the tags": Defect(
        "_replace(end=end)", "_replace(end=end, tags=())", "test_a_new_ttl_leaves_the_tags", machine=False
    ),
}
NUMBERS = {name: number for number, name in enumerate(DEFECTS)}


def run(folder: Path, *arguments: str) -> str:
    """Return what pytest prints, for what an author of a store has: memo, pytest and hypothesis."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def write(folder: Path, number: int, source: str, tests: str = TESTS) -> None:
    (folder / f"store_{number}.py").write_text(source)
    (folder / f"test_{number}.py").write_text(tests.format(module=f"store_{number}"))


@pytest.fixture(scope="module")
def failures(tmp_path_factory) -> dict[str, set[str]]:
    """The tests that fail, by defect: one run of pytest, of those that must."""
    folder = tmp_path_factory.mktemp("defects")
    chosen = []
    for name, defect in DEFECTS.items():
        assert SOURCE.count(defect.old) == 1, (
            f"{name}: plain_store.py reads {defect.old!r} {SOURCE.count(defect.old)} times"
        )
        write(folder, NUMBERS[name], SOURCE.replace(defect.old, defect.new))
        chosen += [f"test_{NUMBERS[name]}.py::TestContract::{defect.test}"] if defect.test else []
        chosen += [f"test_{NUMBERS[name]}.py::TestMachine"] if defect.machine else []
    printed = run(folder, "-rf", "--tb=no", *chosen)
    found: dict[str, set[str]] = {name: set() for name in DEFECTS}
    names = list(DEFECTS)
    for number, test in re.findall(r"^FAILED .*?test_(\d+)\.py::\w+::(\w+)", printed, re.MULTILINE):
        found[names[int(number)]].add(test)
    return found


def test_without_a_defect_all_pass(tmp_path):
    write(tmp_path, 0, SOURCE, TESTS.replace("max_examples=150", "max_examples=30"))
    assert re.search(r"^\d+ passed", run(tmp_path), re.MULTILINE)


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_seen_by_the_test_that_names_it_and_by_the_machine(failures, name):
    _, _, test, machine = DEFECTS[name]
    assert failures[name] == ({test} if test else set()) | ({"runTest"} if machine else set())


def test_a_failure_of_the_contract_is_a_sentence_and_shows_both_sides(tmp_path):
    old, new, test, _ = DEFECTS["tags are forgotten"]
    write(tmp_path, 0, SOURCE.replace(old, new))
    printed = run(tmp_path, "-k", f"{test} and sync and not async")
    assert "FAILED test_0.py::TestContract::test_tags_remove_what_bears_them_and_nothing_else[sync]" in printed
    assert "At index 0 diff: 'contract.one(1)' != 'contract.one(2)'" in printed


def test_a_failure_of_the_machine_ends_with_the_steps_that_led_to_it(tmp_path):
    old, new, _, _ = DEFECTS["a clock that runs backwards is not seen"]
    tests = TESTS.replace("Phase.generate", "Phase.generate, Phase.shrink")
    write(tmp_path, 0, SOURCE.replace(old, new), tests)
    printed = run(tmp_path, "-k", "Machine")
    rules = set(re.findall(r"^E? *state\.(\w+)\(", printed, re.MULTILINE))
    assert "turn_the_clock_back" in rules
    assert len(rules - {"agrees_on_what_is_there", "counts_every_read", "teardown"}) <= 3, printed
