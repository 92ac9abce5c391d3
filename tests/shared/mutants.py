"""Code that is broken on purpose, and calls that are to fail because of it; tests say which code, and who watches."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from siblings import module

Patch = Callable[[pytest.MonkeyPatch], None]
Watch = Callable[[], object]


def machine(path: str, name: str, examples: int) -> Watch:
    """Return a call that runs a state machine of a test module for a while."""

    def watch() -> None:
        few = settings(
            max_examples=examples,
            stateful_step_count=40,
            derandomize=True,
            database=None,
            deadline=None,
            print_blob=False,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],  # the first failure will do: nobody reads it
        )
        run_state_machine_as_test(getattr(module(path), name), settings=few)

    return watch


def replaced(owner: Any, name: str, function: Any) -> Patch:
    """Return a patch that puts another function in the place of one."""
    return lambda patch: patch.setattr(owner, name, function)


def rewritten(function: Any, old: str, new: str) -> Any:
    """Return `function` with one piece of its source replaced."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{function.__qualname__} no longer reads {old!r} once: bring the mutant up to date"
    namespace: dict[str, Any] = dict(inspect.unwrap(function).__globals__)
    exec(compile(source.replace(old, new), f"<mutant of {function.__qualname__}>", "exec"), namespace)
    return namespace[function.__name__]


def source_of(owner: Any, name: str, old: str, new: str) -> Patch:
    """Return a patch that replaces one piece of a function's source."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        function = owner.__dict__[name] if isinstance(owner, type) else getattr(owner, name)
        monkeypatch.setattr(owner, name, rewritten(function, old, new))

    return patch


def catch(watch: Watch, patch: Patch) -> None:
    """Break the code, and let it fail who watches: with an assertion, or whatever the broken code runs into."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        patch(monkeypatch)
        with pytest.raises(Exception):  # noqa: B017
            watch()
