"""The `memo` command: what people see, what programs read, and how it ends."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap

import pytest

import memo
from memo import __main__, cli, demo
from memo.stores.inspection import inspect_file

SOURCES = {
    "alpha.py": """
        class A:
            def plain(self):
                return 1
    """,
    "package/beta.py": """
        async def tangled(xs, flag):
            if flag and xs or not xs:
                return [x for x in xs if x]
            for x in xs:
                while x:
                    x = x - 1 if x > 1 else 0
            try:
                assert xs
            except AssertionError:
                pass
            match flag:
                case True:
                    return 1
            return 2
    """,
    "gamma.py": "",
    "test/test_alpha.py": "def test(): pass",
    "site-packages/other.py": "def other(): pass",
}


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A standard library of three files, beside tests and an installed package."""
    folder = tmp_path / "library"
    for name, source in SOURCES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source), encoding="utf-8")
    monkeypatch.setattr(cli.sysconfig, "get_path", lambda name: str(folder) if name == "stdlib" else None)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return folder


# What is measured.


def test_a_file_is_measured_by_its_functions_classes_and_the_decisions_of_the_hardest(library):
    assert demo.measure(str(library / "alpha.py")) == demo.Measure(4, 1, 1, 1, "plain")
    # 1, if, and, or, comprehension with its if, for, while, conditional, except, assert, case
    assert demo.measure(str(library / "package" / "beta.py")) == demo.Measure(15, 1, 0, 11, "tangled")


@pytest.mark.parametrize("source", ["def broken(:\n", "x = 1\0\n", "# coding: no-such-coding\n"])
def test_a_file_that_cannot_be_parsed_has_lines_and_nothing_else(tmp_path, source):
    path = tmp_path / "broken.py"
    path.write_bytes(source.encode())
    assert demo.measure(str(path)) == demo.Measure(1, 0, 0, 0, "")


def test_the_files_are_the_library_without_tests_and_packages_in_a_fixed_order(library):
    found = [path.relative_to(library).as_posix() for path in demo.sources(library)]
    assert found == ["alpha.py", "gamma.py", "package/beta.py"]


# The demo.


def numbers(capsys, *options):
    assert cli.main(["demo", "--json", *options]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


def test_a_cold_pass_misses_every_file_and_a_warm_one_hits_every_file(library, capsys):
    cold, warm, _ = numbers(capsys)["passes"]
    assert cold.pop("seconds") > 0
    assert cold.pop("process") == warm.pop("process") == os.getpid()
    assert cold == {
        "pass": "cold",
        "files": 3,
        "hits": 0,
        "misses": 3,
        "hit_ratio": 0,
        "seconds_saved": 0,
        "entries": 3,
    }
    assert warm.pop("seconds") > 0
    assert warm.pop("seconds_saved") > 0
    assert warm == {"pass": "warm", "files": 3, "hits": 3, "misses": 0, "hit_ratio": 1, "entries": 3}


def test_a_second_process_over_the_same_file_is_warm_from_its_first_call(library, capsys):
    result = numbers(capsys)
    restart = result["passes"][2]
    assert restart.pop("process") != os.getpid()
    assert restart.pop("seconds") > 0
    assert restart.pop("seconds_saved") == pytest.approx(result["passes"][1]["seconds_saved"])
    assert restart == {"pass": "restart", "files": 3, "hits": 3, "misses": 0, "hit_ratio": 1, "entries": 3}
    assert result["file_size"] > 0


def test_every_run_begins_with_an_empty_store(library, capsys):
    assert [numbers(capsys)["passes"][0]["misses"] for _ in range(2)] == [3, 3]


def test_a_file_of_the_users_keeps_the_results_for_the_next_run(library, capsys, tmp_path):
    file = tmp_path / "demo.memo"
    first = numbers(capsys, "--file", str(file), "--limit", "2")
    assert [each["pass"] for each in first["passes"]] == ["cold", "warm", "restart"]
    second = numbers(capsys, "--file", str(file))
    assert [(each["pass"], each["hits"], each["misses"]) for each in second["passes"]] == [
        ("kept", 2, 1),
        ("warm", 3, 0),
        ("restart", 3, 0),
    ]
    third = numbers(capsys, "--file", str(file))
    assert [each["misses"] for each in third["passes"]] == [0, 0, 0]
    assert len(inspect_file(file).entries) == 3


def test_a_file_that_the_demo_must_not_use_is_left_as_it_is(library, capsys, tmp_path):
    letters = tmp_path / "letters"
    letters.write_bytes(b"dear")
    for path, message in (letters, "was not written by PickleFileStore"), (tmp_path / "no" / "file", "make it first"):
        assert cli.main(["demo", "--file", str(path)]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert message in captured.err
    assert letters.read_bytes() == b"dear"


def test_the_second_process_finds_what_this_one_finds_whatever_lies_in_the_current_folder(
    library, capsys, tmp_path, monkeypatch
):
    for name in ("memo", "json", "ast", "pickle"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    assert numbers(capsys)["passes"][2]["hits"] == 3


def test_the_second_process_looks_for_modules_where_this_one_does(library, capsys, monkeypatch):
    monkeypatch.syspath_prepend("somewhere")
    monkeypatch.setattr(demo, "_AGAIN", "import sys; sys.exit('|'.join(sys.argv[1:]))")
    assert cli.main(["demo"]) == 1
    assert capsys.readouterr().err == f"Error: the second process failed: {'|'.join(sys.path)}\n"


def test_the_file_is_closed_in_the_end(library, capsys, monkeypatch):
    closed = []
    monkeypatch.setattr(memo.PickleFileStore, "close", lambda store: closed.append(store.path))
    numbers(capsys)
    assert len(closed) == 1
    assert not os.path.exists(closed[0])


def test_a_second_process_that_fails_is_an_error_with_its_last_line(library, capsys, monkeypatch):
    monkeypatch.setattr(demo, "_AGAIN", "raise ValueError('no more')")
    assert cli.main(["demo"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "Error: the second process failed: ValueError: no more\n"


def test_on_a_system_without_file_locks_there_is_no_second_process(library, capsys, monkeypatch):
    monkeypatch.setattr(demo, "LOCKS", False)
    result = numbers(capsys)
    assert [each["hits"] for each in result["passes"]] == [0, 3]
    assert result["file_size"] is None
    assert not any("restart" in line for line in printed(result))


def test_the_demo_says_what_it_found(library, capsys):
    result = numbers(capsys)
    hardest = {"file": "package/beta.py", "function": "tangled", "complexity": 11}
    assert result["found"] == {"files": 3, "lines": 19, "functions": 2, "classes": 1, "hardest": hardest}
    assert result["memo"] == memo.__version__


def test_an_edit_is_seen_after_the_invalidation_and_not_before(library, capsys):
    assert numbers(capsys)["edit"] == {
        "file": "beta.py",
        "functions_before": 1,
        "functions_after_edit": 1,
        "invalidated": True,
        "functions_after_invalidation": 2,
    }


def test_the_edited_file_is_a_copy_that_is_gone_afterwards(library, capsys):
    before = {path: path.read_bytes() for path in library.rglob("*.py")}
    numbers(capsys)
    assert {path: path.read_bytes() for path in library.rglob("*.py")} == before
    assert os.listdir(tempfile.gettempdir()) == []


def test_a_stampede_of_eight_threads_makes_one_load(library, capsys):
    assert numbers(capsys)["stampede"] == {"threads": 8, "loads": 1, "distinct_answers": 1}


def test_a_result_past_its_ttl_is_served_while_a_new_one_is_loaded(library, capsys):
    stale = numbers(capsys)["stale"]
    assert stale.pop("load_seconds") >= demo.SLOW
    assert stale.pop("serve_seconds") > 0
    assert stale.pop("next_seconds") > 0
    assert stale == {"loaded": 1, "served_when_stale": 1, "refreshes": 1, "served_next": 2}


def test_a_limit_reads_the_first_files_only(library, capsys):
    result = numbers(capsys, "--limit", "2")
    assert [each["files"] for each in result["passes"]] == [2, 2, 2]
    assert result["found"]["hardest"]["file"] == "alpha.py"
    assert numbers(capsys, "--limit", "99")["found"]["files"] == 3


def test_a_person_reads_a_table_and_sentences(library, capsys):
    assert cli.main(["demo"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[2].split() == ["pass", "files", "time", "hits", "misses", "hit", "ratio", "saved", "entries"]
    assert lines[3].split()[:2] == ["cold", "3"]
    assert lines[4].split()[:2] == ["warm", "3"]
    assert lines[5].split()[:2] == ["restart", "3"]
    assert "100.0%" in lines[4]
    assert "100.0%" in lines[5]
    assert any(line.startswith("restart: a second Python process over the same file (") for line in lines)
    assert "most complex: tangled() in package/beta.py (complexity 11)" in lines
    assert ["loads", "1"] in [line.split() for line in lines]
    assert lines[-1].split()[:3] == ["the", "next", "call"]
    assert lines[-1].endswith("edition 2")
    assert captured.err == ""


def printed(result, width=cli.WIDTH):
    file = io.StringIO()
    screen = cli.console(file)
    screen.width = width
    cli.present(result, screen)
    return file.getvalue().splitlines()


def test_no_line_is_longer_than_80_columns_or_needs_more_than_ascii(library, capsys):
    result = numbers(capsys)
    result["python"] = "3.15.0a1+"
    for each in result["passes"]:
        each.update(files=99_999, hits=99_999, misses=99_999, entries=99_999, seconds=9_999.0, seconds_saved=99_999.0)
    result["file_size"] = 10**12
    result["found"].update(lines=9_999_999, functions=9_999_999, classes=9_999_999)
    result["found"]["hardest"] = {"file": "f" * 200, "function": "g" * 200, "complexity": 9_999}
    result["edit"].update(file="f" * 200, functions_before=9_999, functions_after_edit=9_999)
    result["stale"].update(load_seconds=99_999.0, serve_seconds=99_999.0, loaded=99_999, refreshes=99_999)
    lines = printed(result)
    assert max(map(len, lines)) <= 80
    assert lines == printed(result, width=500)  # nothing was folded to make it so
    assert "".join(lines).isascii()


# The progress.


def test_the_progress_of_a_pipe_is_shown_on_the_terminal_that_is_left(library, capsys, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert cli.main(["demo", "--json"]) == 0
    assert "3/3" in sys.stderr.getvalue()
    assert json.loads(capsys.readouterr().out)["found"]["files"] == 3


# How it ends.


def failure(capsys, *arguments):
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


@pytest.mark.parametrize("limit", ["0", "-1", "1.5", "many", ""])
def test_a_limit_that_is_not_allowed_says_what_is(capsys, limit):
    message = failure(capsys, "demo", f"--limit={limit}")
    assert "'--limit'" in message
    assert "x>=1" in message or "not a valid integer" in message


def test_unknown_commands_and_options_are_errors_that_suggest_what_was_meant(capsys):
    assert "'demmo'. Did you mean 'demo'?" in failure(capsys, "demmo")
    assert "'--limti'. Did you mean '--limit'?" in failure(capsys, "demo", "--limti=3")
    assert "--colour" in failure(capsys, "demo", "--colour")


def test_without_a_command_there_is_help(capsys):
    assert "memo demo --limit 50" in failure(capsys)


def test_a_python_without_sources_is_said_to_be_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli.sysconfig, "get_path", lambda name: str(tmp_path))
    assert cli.main(["demo"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no source files" in captured.err


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["demo", "--help"], ["demo", "-h"]])
def test_help_teaches_with_examples(capsys, arguments):
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert "memo demo --limit 50" in text
    assert max(map(len, text.splitlines())) <= 80


def test_help_tells_the_story(capsys):
    cli.main(["--help"])
    text = capsys.readouterr().out
    assert "  @cache_aside(ttl=600)\n  def measure(path): " in textwrap.dedent(text).replace("    ", "  ")
    assert "demo" in text.partition("Commands:")[2]
    cli.main(["demo", "--help"])
    text = capsys.readouterr().out
    for part in ("passes", "edit", "stampede", "stale", "--limit N", "--file PATH", "--json"):
        assert re.search(rf"^ +{part} ", text, re.MULTILINE), part


def test_the_version_is_the_packages(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"memo {memo.__version__}\n"


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_the_command_says_what_to_install(missing):
    code = f"""if True:
        import sys
        from importlib.abc import MetaPathFinder

        class Absent(MetaPathFinder):
            def find_spec(self, name, path, target=None):
                if name.partition(".")[0] == {missing!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

        sys.meta_path.insert(0, Absent())
        from memo.__main__ import main

        sys.exit(main())"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stdout == ""
    assert 'python -m pip install "memo-cache[cli]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_another_missing_module_is_not_taken_for_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "memo.cli")
    monkeypatch.delattr(memo, "cli")
    monkeypatch.setitem(sys.modules, "memo.demo", None)
    monkeypatch.delattr(memo, "demo")
    with pytest.raises(ImportError, match=r"memo\.demo|demo"):
        __main__.main()


def test_the_library_does_not_need_the_extra():
    code = "import sys, memo; sys.exit(any(name in sys.modules for name in ('click', 'rich', 'memo.cli', 'memo.demo')))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_python_m_memo_is_the_same_command():
    done = subprocess.run([sys.executable, "-m", "memo", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"memo {memo.__version__}\n"


def test_the_exit_code_of_the_process_is_the_commands():
    done = subprocess.run([sys.executable, "-m", "memo", "demo", "--limit=0"], capture_output=True, check=False)
    assert done.returncode == 2


@pytest.mark.parametrize("arguments", [["demo", "--limit=2"], ["demo", "--limit=2", "--json"], ["--help"]])
def test_a_reader_that_goes_away_ends_the_command_quietly(arguments):
    """As `memo demo | head -0` does."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = [sys.executable, "-m", "memo", *arguments]
        buffered = {**os.environ, "PYTHONUNBUFFERED": ""}  # so that there is something left to flush at exit
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False, timeout=60, env=buffered)
    finally:
        os.close(writing)
    assert done.stderr == b""
    assert done.returncode == 141


def test_ctrl_c_ends_the_command_quietly(capsys, monkeypatch, library):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "measure", interrupted)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr() == ("", "")
