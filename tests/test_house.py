"""The rules that the code is built by: who may import whom, and what every module says of itself."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import sys
from pathlib import Path

import pytest

import memo

ROOT = Path(memo.__file__).parent

# From the ground up; a package is one entry, whose modules may import each other. A module that stands nowhere here has
# to be given its place before it can be merged.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "entry", "forks", "cached"),
    ("clock",),
    ("keys", "policy", "flight", "stats"),
    ("background", "serializers"),
    ("aside", "stores", "report", "desks"),
    ("aside_many", "tags"),
    ("drivers", "integrations", "places", "urls"),
    ("drivers_many",),
    ("config", "memoized", "classic"),
    ("decorator", "switching", "managers", "functions"),
    ("invalidating", "many"),
    ("memo",),  # the package itself only re-exports
    ("demo",),
    ("cli",),
    ("__main__",),
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
LONGEST = 500
THIRD_PARTY = {
    "wrapt": {"decorator.py"},
    "redis": {"managers.py", "wire.py", "awire.py"},
    "hiredis": {"answers.py"},
    "click": {"cli.py"},
    "rich": {"cli.py"},
    "prometheus_client": {"prometheus.py"},
    "opentelemetry": {"opentelemetry.py"},
}

PATHS = sorted(path for path in ROOT.rglob("*.py") if "__pycache__" not in path.parts)
IDS = [str(path.relative_to(ROOT)) for path in PATHS]
BUILT = [path for path in PATHS if path.relative_to(ROOT).parts[0] != "testing"]
every_module = pytest.mark.parametrize("path", PATHS, ids=IDS)
every_built_module = pytest.mark.parametrize("path", BUILT, ids=[str(path.relative_to(ROOT)) for path in BUILT])


def place(path: Path) -> str:
    """The entry of `FLOORS` that a file belongs to."""
    first = path.relative_to(ROOT).parts[0]
    return "memo" if first == "__init__.py" else first.removesuffix(".py")


def imports(path: Path) -> set[str]:
    """The absolute names of all that a file imports, wherever in it that stands."""
    package = ["memo", *path.relative_to(ROOT).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == "memo":  # `from . import x` may mean a module or a name
                found |= {f"memo.{alias.name}" if alias.name in FLOOR else "memo" for alias in node.names}
            else:
                found.add(module)
    return found


def ours(path: Path) -> set[str]:
    """The entries of `FLOORS` that a file imports from."""
    names = [name.split(".") for name in imports(path)]
    return {name[1] if len(name) > 1 else "memo" for name in names if name[0] == "memo"}


@every_built_module
def test_a_module_imports_only_from_lower_floors(path: Path) -> None:
    here = place(path)
    assert here in FLOOR, f"{here} stands on no floor: give it one in FLOORS"
    for there in ours(path):
        if there == here and path.parent != ROOT:
            continue  # within a package
        assert there in FLOOR, f"{there} stands on no floor"
        assert FLOOR[there] < FLOOR[here], f"{path.name} imports {there}, which is not below it"


def test_every_floor_is_lived_on() -> None:
    assert {place(path) for path in BUILT} == set(FLOOR)


@every_built_module
def test_nothing_imports_what_is_for_tests(path: Path) -> None:
    assert "testing" not in ours(path)
    assert not {"pytest", "hypothesis", "unittest"} & {name.partition(".")[0] for name in imports(path)}


@every_built_module
def test_heavy_and_foreign_imports_have_one_home(path: Path) -> None:
    for name in imports(path):
        top = name.partition(".")[0]
        if top in THIRD_PARTY:
            assert path.name in THIRD_PARTY[top], f"{path.name} imports {top}"
        else:
            own = {"memo", "__future__", "msgspec"}
            assert top in own or top in sys.stdlib_module_names, f"{path.name} imports {top}"


def test_the_package_only_re_exports() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text())
    for node in tree.body:
        assert isinstance(node, (ast.Expr, ast.ImportFrom, ast.Assign)), ast.unparse(node)
        if isinstance(node, ast.Assign):
            assert ast.unparse(node.targets[0]) in {"__all__", "__version__"}


@every_module
def test_a_module_says_in_one_sentence_what_it_is(path: Path) -> None:
    documented = ast.get_docstring(ast.parse(path.read_text()))
    assert documented, "no docstring"
    first = " ".join(documented.partition("\n\n")[0].split())
    assert first[-1] in ".:", first
    assert not re.search(r"[.!?] [A-Z]", first), f"more than one sentence: {first}"
    assert len(first) > 30


@every_module
def test_a_module_has_one_idea(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST


@every_module
def test_names_say_what_is_in_a_module(path: Path) -> None:
    assert not {"utils", "util", "core", "common", "helpers", "misc"} & set(
        path.relative_to(ROOT).with_suffix("").parts
    )


@every_module
def test_lists_of_public_names_are_sorted_and_true(path: Path) -> None:
    if path.name == "__main__.py":
        return
    module = importlib.import_module(_name(path))
    listed = getattr(module, "__all__", [])
    assert list(listed) == sorted(listed, key=_as_ruff_sorts)
    assert len(set(listed)) == len(listed)
    for name in listed:
        assert hasattr(module, name), name


def _as_ruff_sorts(name: str) -> tuple[int, str]:
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def _name(path: Path) -> str:
    parts = ["memo", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("name", memo.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    thing = getattr(memo, name)
    if inspect.isclass(thing) or inspect.isroutine(thing):
        documented = inspect.getdoc(thing)
        assert documented
        assert documented != inspect.getdoc(object)
        assert thing.__module__.startswith("memo.")


@every_built_module
def test_every_public_function_class_and_method_is_documented(path: Path) -> None:
    missing = []

    def look(node: ast.AST, name: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                overloaded = any("overload" in ast.unparse(each) for each in child.decorator_list)
                if not child.name.startswith("_") and not overloaded:
                    if not ast.get_docstring(child):
                        missing.append(f"{name}.{child.name}")
                    if isinstance(child, ast.ClassDef):
                        look(child, f"{name}.{child.name}")

    look(ast.parse(path.read_text()), path.stem)
    assert missing == []


def test_the_typing_marker_is_there() -> None:
    assert (ROOT / "py.typed").is_file()


def test_all_modules_can_be_imported_and_their_doctests_pass() -> None:
    attempted = 0
    for found in pkgutil.walk_packages([str(ROOT)], "memo."):
        if not found.name.endswith("__main__"):
            results = doctest.testmod(importlib.import_module(found.name))
            assert results.failed == 0, found.name
            attempted += results.attempted
    assert attempted > 20


def test_no_lock_is_made_outside_of_forks() -> None:
    """A lock that the child of a fork could find locked must be one that `forks` knows."""
    for path in BUILT:
        # A waiter's own wake-up is no shared lock.
        if path.name in {"forks.py", "drivers.py", "drivers_many.py", "cli.py"}:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in {"Lock", "RLock", "Semaphore"}:
                raise AssertionError(f"{path.name}:{node.lineno} makes a lock: use fork_safe_lock()")
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Condition"):
                assert node.args, f"{path.name}:{node.lineno}: a condition has a lock of its own: give it ours"


def test_the_rules_are_enforced() -> None:
    """The reading of imports itself: every spelling is seen."""
    text = (
        "import wrapt\nimport memo.cli\nfrom . import drivers, __version__\nfrom .stores.base import Space\n"
        "def f():\n from memo.decorator import cache_aside\n"
    )
    assert _imports_of(text, "aside.py") == {"memo", "cli", "drivers", "stores", "decorator"}
    assert _imports_of("from ..errors import OptionError\nfrom .base import Space", "stores/null.py") == {
        "errors",
        "stores",
    }


def _imports_of(text: str, where: str) -> set[str]:
    class Written(type(ROOT)):  # type: ignore[misc]
        def read_text(self, *args: object, **kwargs: object) -> str:
            return text

    return ours(Written(ROOT / where))
