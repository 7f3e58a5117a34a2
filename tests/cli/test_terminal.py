# SPDX-License-Identifier: GPL-2.0-only
"""A guest can't command the user's terminal, and a pipe gets what the guest printed."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmi.cli.terminal import TerminalFilter, safe


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"plain\r\n\tx\b", "plain\r\n\tx\b"),
        (b"\x1b[2J\x1b]0;title\x07", "^[[2J^[]0;title^G"),
        (b"\x00\x7f\x0c", "^@^?^L"),
        ("grün →".encode(), "grün →"),
        (b"\x9b31m\xff", "\\x9b31m\\xff"),
        ("\u009b31m".encode(), "\\x9b31m"),
        ("\u202egnp\ufeff".encode(), "\\u202egnp\\ufeff"),
        ("\U000e0041".encode(), "\\U000e0041"),
        (b"\xe2\x86", "\\xe2\\x86"),
    ],
)
def test_filter(data: bytes, text: str) -> None:
    whole = TerminalFilter()
    assert whole.feed(data) + whole.finish() == text
    piecewise = TerminalFilter()
    assert "".join(piecewise.feed(bytes([byte])) for byte in data) + piecewise.finish() == text


@given(st.lists(st.binary(max_size=8)))
def test_nothing_a_terminal_obeys_passes(pieces: list[bytes]) -> None:
    one = TerminalFilter()
    text = "".join(map(one.feed, pieces)) + one.finish()
    assert all(char.isprintable() or char in "\n\r\t\b" for char in text)


@given(st.text())
def test_safe_is_one_printable_line(text: str) -> None:
    assert safe(text).isprintable()


def test_safe_keeps_what_is_harmless() -> None:
    assert safe("kernel 'ä b'\n\t\x1b[0m\udc80") == "kernel 'ä b'\\n\\t^[[0m\\udc80"


SESSION = """
import sys
from vmi.cli.console import ConsoleSession
from vmi.cli.values import Serial
session = ConsoleSession(Serial(terminal=True))
session.write(b"\\x1b[31mred\\xe2")
session.write(b"\\x86\\x92 end")
session.close()
print("after")
"""


def test_on_a_terminal_escape_sequences_are_shown() -> None:
    controller, terminal = pty.openpty()
    try:
        child = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(SESSION)],
            stdin=subprocess.DEVNULL,
            stdout=terminal,
            stderr=subprocess.PIPE,
            timeout=60,
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
            check=False,
        )
        assert (child.returncode, child.stderr) == (0, b"")
        assert os.read(controller, 1000) == "^[[31mred→ end\r\nafter\r\n".encode()
    finally:
        os.close(controller)
        os.close(terminal)


def test_in_a_pipe_bytes_are_unchanged() -> None:
    child = subprocess.run([sys.executable, "-c", SESSION], capture_output=True, timeout=60, check=True)
    assert child.stdout == b"\x1b[31mred\xe2\x86\x92 endafter\n"


def test_reader_that_left_is_reported_after_the_run() -> None:
    code = SESSION.replace('print("after")', "").replace(
        "session.close()",
        "session.write(b'x' * 100000)\ntry:\n    session.close()\nexcept BrokenPipeError:\n    sys.exit(7)",
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    child.stdout.close()
    assert child.wait(60) in (7, 120)  # 120: the interpreter's own last flush failed too
