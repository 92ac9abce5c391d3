"""The `memo` command where a person sees it, on a real terminal of 80 columns, and where a program does, in a pipe."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading

import pyte
import pytest

fcntl, pty, termios = (
    pytest.importorskip(name, reason="no such terminals here") for name in ("fcntl", "pty", "termios")
)

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
STYLE = re.compile(r"\x1b\[[0-9;]*m")
SETTINGS = {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "COLORTERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}


def environment(**settings):
    """As a plain terminal has it, whatever the one that runs the tests is like; None: without that variable."""
    kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    wanted = {**kept, "TERM": "xterm-256color", **settings}
    return {name: value for name, value in wanted.items() if value is not None}


class Shown:
    """What a process wrote to a terminal: `text`, and `screens`, what a person saw after each piece of it."""

    def __init__(self, *command, columns=80, interrupted_at=None, **settings):
        self.text, self.screens = "", []
        terminal, its_side = pty.openpty()
        fcntl.ioctl(its_side, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        screen = pyte.Screen(columns, 50)
        stream = pyte.ByteStream(screen)
        sides = dict.fromkeys(("stdin", "stdout", "stderr"), its_side)
        process = subprocess.Popen(command, **sides, env=environment(**settings), start_new_session=True)
        os.close(its_side)
        safety = threading.Timer(60, process.kill)
        safety.start()
        pieces = []
        try:
            while piece := self._read(terminal):
                pieces.append(piece)
                stream.feed(piece)
                self.screens.append([line.rstrip() for line in screen.display])
                if interrupted_at is not None and any(interrupted_at in line for line in self.screens[-1]):
                    process.send_signal(signal.SIGINT)
                    interrupted_at = None
            self.code = process.wait()
        finally:
            safety.cancel()
            process.kill()
            process.wait()
            os.close(terminal)
        self.text = b"".join(pieces).decode()
        self.cursor_hidden = screen.cursor.hidden

    @staticmethod
    def _read(terminal):
        try:
            return os.read(terminal, 65_536)
        except OSError:  # how Linux says that the other side is closed
            return b""

    @property
    def left(self):
        """What a person sees in the end."""
        return self.screens[-1]

    def seen(self, text):
        return any(text in line for screen in self.screens for line in screen)


DEMO = [sys.executable, "-m", "memo", "demo", "--limit=12"]


@pytest.fixture(scope="module")
def shown():
    return Shown(*DEMO)


def test_on_a_terminal_a_progress_bar_is_shown_and_is_gone_in_the_end(shown):
    assert shown.code == 0
    assert shown.seen("reading")
    assert shown.seen("/12 files")
    assert shown.left[0].startswith("memo ")  # where it was
    assert not any("/12" in line for line in shown.left)
    assert not shown.cursor_hidden


def test_no_line_on_a_terminal_of_80_columns_is_longer(shown):
    pieces = re.split(r"[\r\n]+", ESCAPE.sub("", shown.text))
    assert max(map(len, pieces)) <= 80
    assert any(len(piece) > 60 for piece in pieces)


def test_a_wide_terminal_shows_the_same_lines(shown):
    def without_times(lines):
        return [re.sub(r"[\d.]+ +(us|ms|s)\b", "", line).split() for line in lines]

    assert without_times(Shown(*DEMO, columns=200).left) == without_times(shown.left)


def test_a_terminal_has_styles_unless_no_color_is_set(shown):
    assert STYLE.search(shown.text)
    plain = Shown(*DEMO, NO_COLOR="1")
    assert plain.code == 0
    assert plain.seen("reading")
    assert not STYLE.search(plain.text)


# A process that was started in the background of a shell ignores Ctrl-C, and so would all that it starts.
HEEDING = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); import memo.__main__ as m; "


def test_ctrl_c_on_a_terminal_leaves_it_clean():
    # Without what measures coverage: an interruption of that leaves its own lock held, for ever.
    command = [sys.executable, "-c", f"{HEEDING} sys.argv[1:] = ['demo']; sys.exit(m.main())"]
    shown = Shown(*command, interrupted_at="reading", COVERAGE_PROCESS_START=None)
    assert shown.code == 130
    assert shown.seen("reading")
    assert [line for line in shown.left if line] == []
    assert not shown.cursor_hidden


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_pipe_gets_no_escape_codes_and_no_progress(options):
    done = subprocess.run([*DEMO, *options], capture_output=True, check=True, env=environment(COLUMNS="40"), timeout=60)
    assert done.stderr == b""
    assert done.stdout.isascii()
    assert b"\x1b" not in done.stdout
    assert b"\r" not in done.stdout
    lines = done.stdout.decode().splitlines()
    assert max(map(len, lines)) <= 80
    assert all(line == line.rstrip() for line in lines)
    if options:
        assert json.loads(done.stdout)["found"]["files"] == 12
