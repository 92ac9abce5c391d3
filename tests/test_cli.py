"""The `memo` command: what people see, what programs read, and how it ends."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import textwrap

import pytest

import memo
from memo import cli

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


class Terminal(io.StringIO):
    def isatty(self):
        return True


# What is measured.


def test_a_file_is_measured_by_its_functions_classes_and_the_decisions_of_the_hardest(library):
    assert cli.measure(str(library / "alpha.py")) == cli.Measure(4, 1, 1, 1, "plain")
    # 1, if, and, or, comprehension with its if, for, while, conditional, except, assert, case
    assert cli.measure(str(library / "package" / "beta.py")) == cli.Measure(15, 1, 0, 11, "tangled")


@pytest.mark.parametrize("source", ["def broken(:\n", "x = 1\0\n", "# coding: no-such-coding\n"])
def test_a_file_that_cannot_be_parsed_has_lines_and_nothing_else(tmp_path, source):
    path = tmp_path / "broken.py"
    path.write_bytes(source.encode())
    assert cli.measure(str(path)) == cli.Measure(1, 0, 0, 0, "")


def test_the_files_are_the_library_without_tests_and_packages_in_a_fixed_order(library):
    found = [path.relative_to(library).as_posix() for path in cli.sources(library)]
    assert found == ["alpha.py", "gamma.py", "package/beta.py"]


# The demo.


def numbers(capsys, *options):
    assert cli.main(["demo", "--json", *options]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


def test_a_cold_pass_misses_every_file_and_a_warm_one_hits_every_file(library, capsys):
    cold, warm = numbers(capsys)["passes"]
    assert cold.pop("seconds") > 0
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


def test_every_run_begins_with_an_empty_store(library, capsys):
    assert [numbers(capsys)["passes"][0]["misses"] for _ in range(2)] == [3, 3]


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


def test_a_limit_reads_the_first_files_only(library, capsys):
    result = numbers(capsys, "--limit", "2")
    assert [each["files"] for each in result["passes"]] == [2, 2]
    assert result["found"]["hardest"]["file"] == "alpha.py"
    assert numbers(capsys, "--limit", "99")["found"]["files"] == 3


def test_a_person_reads_a_table_and_sentences(library, capsys):
    assert cli.main(["demo"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[2].split() == ["pass", "files", "time", "hits", "misses", "hit", "ratio", "saved", "entries"]
    assert lines[3].split()[:2] == ["cold", "3"]
    assert lines[4].split()[:2] == ["warm", "3"]
    assert "100.0%" in lines[4]
    assert "most complex: tangled() in package/beta.py (complexity 11)" in lines
    assert lines[-2].split() == ["loads", "1"]
    assert captured.err == ""


def test_no_line_is_longer_than_80_columns_or_needs_more_than_ascii(library, capsys):
    result = numbers(capsys)
    result["python"] = "3.15.0a1+"
    for each in result["passes"]:
        each.update(files=99_999, hits=99_999, misses=99_999, entries=99_999, seconds=9_999.0, seconds_saved=99_999.0)
    result["found"].update(lines=9_999_999, functions=9_999_999, classes=9_999_999)
    result["found"]["hardest"] = {"file": "f" * 200, "function": "g" * 200, "complexity": 9_999}
    result["edit"].update(file="f" * 200, functions_before=9_999, functions_after_edit=9_999)
    lines = list(cli.report(result))
    assert max(map(len, lines)) <= 80
    assert "".join(lines).isascii()


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
    ],
)
def test_durations_have_the_unit_that_fits(seconds, text):
    assert cli._duration(seconds) == text


# The progress line.


def test_a_terminal_is_shown_the_progress_and_left_clean(library, capsys, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert cli.main(["demo"]) == 0
    shown = terminal.getvalue()
    assert "\rcold: file 1 of 3 " in shown
    assert "\rwarm: file 1 of 3 " in shown
    assert shown.endswith(f"\r{'':40}\r")
    assert "\r" not in capsys.readouterr().out


def test_an_interruption_leaves_the_terminal_clean(library, monkeypatch, capsys):
    def interrupted(path):
        raise KeyboardInterrupt

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(cli, "measure", interrupted)
    assert cli.main(["demo"]) == 130
    assert terminal.getvalue().endswith("\r")
    assert capsys.readouterr().out == ""


# How it ends.


def failure(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


@pytest.mark.parametrize("limit", ["0", "-1", "1.5", "many", ""])
def test_a_limit_that_is_not_allowed_says_what_is(capsys, limit):
    message = failure(capsys, "demo", f"--limit={limit}")
    assert f"--limit: {limit!r} is not allowed: a whole number of at least 1" in message


def test_unknown_and_missing_commands_and_options_are_errors(capsys):
    assert "command" in failure(capsys)
    assert "'demmo'" in failure(capsys, "demmo")
    assert "--colour" in failure(capsys, "demo", "--colour")


def test_a_python_without_sources_is_said_to_be_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli.sysconfig, "get_path", lambda name: str(tmp_path))
    assert cli.main(["demo"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no source files" in captured.err


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"]])
def test_help_teaches_with_an_example(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "memo demo --limit 50" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"memo {memo.__version__}\n"


def test_python_m_memo_is_the_same_command():
    done = subprocess.run([sys.executable, "-m", "memo", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"memo {memo.__version__}\n"


def test_the_exit_code_of_the_process_is_the_commands():
    done = subprocess.run([sys.executable, "-m", "memo", "demo", "--limit=0"], capture_output=True, check=False)
    assert done.returncode == 2


def test_a_reader_that_goes_away_ends_the_command_quietly():
    """As `memo demo | head -0` does."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = [sys.executable, "-m", "memo", "demo", "--limit=2", "--json"]
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False, timeout=60)
    finally:
        os.close(writing)
    assert done.stderr == b""
    assert done.returncode == 141


def test_ctrl_c_ends_the_command_quietly(capsys, monkeypatch, library):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "demo", interrupted)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr() == ("", "")
