# SPDX-License-Identifier: GPL-2.0-only
"""Escape keys, raw mode, ptys and pace: the parts of the interactive console. Terminals are real ptys."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cli.shouter import MS
from tests.cli.terminals import PATIENCE, Terminal, raw, read_until
from vmi.cli.tty import EscapeKeys, Input, Pacer, Pty, RawMode


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.close()


# --- keys ---


def escape_keys() -> tuple[EscapeKeys, list[str]]:
    done: list[str] = []
    return EscapeKeys({"x": lambda: done.append("x"), "h": lambda: done.append("h")}), done


def test_escape_keys() -> None:
    keys, done = escape_keys()
    assert keys.feed(b"ls\r\x03\x1b[A\xff") == b"ls\r\x03\x1b[A\xff"
    assert keys.feed(b"a\x01") == b"a"
    assert keys.feed(b"xb") == b"b"
    assert keys.feed(b"\x01a|\x01\x01|\x01z|\x01h") == b"\x01|\x01||"
    assert done == ["x", "h"]


@given(st.lists(st.binary(max_size=6)))
def test_doubled_escape_keys_give_every_text(pieces: list[bytes]) -> None:
    keys, done = escape_keys()
    assert b"".join(keys.feed(piece.replace(b"\x01", b"\x01\x01")) for piece in pieces) == b"".join(pieces)
    assert not done


# --- raw mode ---


def test_raw_mode_ends_with_its_block(terminal: Terminal) -> None:
    with pytest.raises(KeyError), RawMode(terminal.other):
        assert raw(terminal.other)
        assert termios.tcgetattr(terminal.other)[1] & termios.OPOST
        os.write(terminal.fd, b"a\x03\r")
        assert os.read(terminal.other, 10) == b"a\x03\r"
        raise KeyError
    assert termios.tcgetattr(terminal.other) == terminal.before


def test_raw_mode_leaves_signal_handlers_as_they_were(terminal: Terminal) -> None:
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP, signal.SIGCONT)
    before = [signal.getsignal(number) for number in numbers]
    with RawMode(terminal.other):
        assert [signal.getsignal(number) for number in numbers] != before
    assert [signal.getsignal(number) for number in numbers] == before


WAIT_RAW = """
import sys, time
from vmi.cli.tty import RawMode
with RawMode(0):
    print("raw", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_that_ends_the_process_restores_the_terminal(terminal: Terminal, number: int) -> None:
    terminal.start(code=WAIT_RAW)
    read_until(terminal.fd, b"raw")
    assert raw(terminal.other)
    assert terminal.process is not None
    terminal.process.send_signal(number)
    assert terminal.finish() == (-number, "")
    assert termios.tcgetattr(terminal.other) == terminal.before


STOP = """
import os, signal, sys, termios
from vmi.cli.tty import RawMode
def canonical():
    return bool(termios.tcgetattr(0)[3] & termios.ICANON)
os.setsid()
child = os.fork()
if child == 0:
    os.setpgid(0, 0)  # a job of its own, as a shell makes them; an orphan could not be stopped
    with RawMode(0):
        first = canonical()
        os.kill(os.getpid(), signal.SIGTSTP)
        os._exit(2 * first + canonical())
status = os.waitpid(child, os.WUNTRACED)[1]
print(os.WIFSTOPPED(status), canonical(), flush=True)
os.kill(child, signal.SIGCONT)
print(os.waitpid(child, 0)[1], flush=True)
"""


def test_a_stopped_process_gives_the_terminal_back_until_it_goes_on(terminal: Terminal) -> None:
    terminal.start(code=STOP, stdout=subprocess.PIPE)
    assert terminal.process is not None
    said, errors = terminal.process.communicate(timeout=PATIENCE)
    assert (said, errors) == (b"True True\n0\n", b"")


# --- input ---


def test_input_from_a_pipe() -> None:
    reader, writer = os.pipe()
    source = Input(reader)
    assert (source.read(), source.open, source.steady) == (b"", True, False)
    assert source.read(1) == b""
    os.write(writer, b"abc")
    assert source.read(None) == b"abc"
    os.close(writer)
    assert (source.read(None), source.open) == (b"", False)
    os.close(reader)


def test_input_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "script").write_bytes(b"x" * 5000)
    with open(tmp_path / "script", "rb") as file:
        source = Input(file.fileno())
        assert source.steady
        assert [len(source.read()) for _ in range(3)] == [4096, 904, 0]
        assert not source.open


def test_input_from_a_terminal_that_hangs_up(terminal: Terminal) -> None:
    controller, other = pty.openpty()
    os.close(controller)
    source = Input(other)
    assert (source.read(None), source.open) == (b"", False)
    os.close(other)


# --- a pty of our own ---


@pytest.fixture
def own_pty() -> Iterator[Pty]:
    made = Pty()
    yield made
    made.close()


def test_pty_takes_and_gives_every_byte(own_pty: Pty) -> None:
    fd = os.open(own_pty.name, os.O_RDWR | os.O_NOCTTY)
    every = bytes(range(256))
    own_pty.write(every)
    assert read_until(fd, b"\xff") == every
    os.write(fd, every)
    got = b""
    while len(got) < 256:
        got += own_pty.read(None)
    assert got == every
    os.close(fd)


def test_pty_keeps_what_is_said_while_nobody_is_there(own_pty: Pty) -> None:
    assert not own_pty.connected()
    own_pty.write(b"lost" + b"." * Pty.BACKLOG)
    own_pty.write(b"end")
    assert own_pty.read() == b""
    fd = os.open(own_pty.name, os.O_RDWR | os.O_NOCTTY)
    got = b""
    while not got.endswith(b"end"):
        own_pty.read()
        if select.select([fd], [], [], 0)[0]:
            got += os.read(fd, 1 << 20)
    assert got == b"." * (Pty.BACKLOG - 3) + b"end"
    os.close(fd)


def test_pty_outlives_who_is_there(own_pty: Pty) -> None:
    for word in (b"one", b"two"):
        fd = os.open(own_pty.name, os.O_RDWR | os.O_NOCTTY)
        assert own_pty.connected()
        os.write(fd, word)
        assert own_pty.read(None) == word
        own_pty.write(word)
        assert read_until(fd, word) == word
        os.close(fd)
        assert not own_pty.connected()
        assert own_pty.read(1) == b""
        assert own_pty.open


# --- pace ---


class Times:
    """The guest's clock and the host's, both moved by the test."""

    def __init__(self, realtime: bool) -> None:
        self.guest, self.host = 5 * MS, 70_000 * MS
        self.pacer = Pacer(lambda: self.guest, realtime, lambda: self.host)

    def pass_(self, guest_ms: int = 0, host_ms: int = 0) -> None:
        self.guest += guest_ms * MS
        self.host += host_ms * MS


def test_realtime_waits_for_the_host() -> None:
    times = Times(realtime=True)
    due = times.pacer.due
    assert due() == 0
    times.pass_(guest_ms=30)
    assert due() == 30 * MS
    times.pass_(host_ms=29)
    assert due() == 0  # within the slack
    assert due(4 * MS) == 5 * MS
    times.pass_(host_ms=101)
    assert (due(), due(100 * MS), due(103 * MS)) == (0, 0, 3 * MS)


def test_realtime_forgives_a_host_that_was_stopped() -> None:
    times = Times(realtime=True)
    times.pass_(guest_ms=1, host_ms=100_000)
    assert times.pacer.due() == 0
    times.pass_(guest_ms=250)
    assert times.pacer.due() == 50 * MS


def test_without_realtime_only_idling_takes_time() -> None:
    times = Times(realtime=False)
    pacer = times.pacer
    times.pass_(guest_ms=1000)
    assert pacer.due() == 0
    assert pacer.due(10 * MS) == 10 * MS
    pacer.idled(10 * MS, 13 * MS)
    assert pacer.due(10 * MS) == 7 * MS
    pacer.idled(10 * MS, 7 * MS)
    # many idle moments too short to wait for are waited for together
    waits = []
    for _ in range(25):
        waits.append(pacer.due(MS // 10))
        pacer.idled(MS // 10, waits[-1])
    assert [wait for wait in waits if wait] == [11 * MS // 10] * 2
    pacer.idled(0, 100_000 * MS)
    assert pacer.due(201 * MS) == 0
    assert pacer.due(203 * MS) == 3 * MS
