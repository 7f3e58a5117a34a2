# SPDX-License-Identifier: GPL-2.0-only
"""The console of a run, interactive, in pipes, in files and on a pty, with a guest made of Python."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, surroundings
from tests.cli.shouter import MS, Shouter
from tests.cli.terminals import PATIENCE, Terminal, raw, read_until
from tests.patcher.elfs import Piece, Plan, make
from vmi.cli.console import HINT, ConsoleSession
from vmi.cli.values import Serial
from vmi.rom.assemble import assemble


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.close()


# --- a session on a terminal ---


def test_on_a_terminal_keys_reach_the_guest_and_its_bytes_the_terminal(terminal: Terminal) -> None:
    terminal.start("stdio", "colour")
    assert read_until(terminal.fd, b"> ") == b"\x1b[31m> "
    assert raw(terminal.other)
    os.write(terminal.fd, b"hi\x03\x1a\r")
    assert read_until(terminal.fd, b"\r") == b"HI\x03\x1a\r"
    os.write(terminal.fd, b"\x01a")
    assert read_until(terminal.fd, b"\x01") == b"\x01"
    os.write(terminal.fd, b"\x01h")
    assert read_until(terminal.fd, b"a Ctrl-A\r\n").decode().split("\r\n") == [
        *("", "Ctrl-A x  end the run", "Ctrl-A t  show the time", "Ctrl-A h  show this help"),
        *("Ctrl-A a  type a Ctrl-A", ""),
    ]
    os.write(terminal.fd, b"\x01t")
    assert read_until(terminal.fd, b"]") == b"[time]"
    os.write(terminal.fd, b"bye\x01x")
    status, said = terminal.finish()
    assert status == 0
    lines = said.splitlines()
    assert lines[0] == f"vmi: {HINT}"
    assert re.fullmatch(r"stopped by the user at \d+ ms", lines[1])
    # what is still held back when the user ends the run may be lost; colours and modes are undone
    left = read_until(terminal.fd, b"\x1b>\r\n")
    assert re.fullmatch(rb"(BYE|BY|B)?(\x1b\[(0m|\?25h|\?\d+l))+\x1b>\r\n", left)
    assert termios.tcgetattr(terminal.other) == terminal.before


def test_a_guest_without_control_sequences_leaves_none_behind(terminal: Terminal) -> None:
    terminal.start("stdio", "quiet")
    read_until(terminal.fd, b"> ")
    os.write(terminal.fd, b"q")
    assert re.fullmatch(r"ended by itself at \d+ ms\n", terminal.finish()[1])
    assert read_until(terminal.fd, b"\n") == b"Q\r\n"


def test_nothing_is_lost_of_a_long_paste(terminal: Terminal) -> None:
    terminal.start("stdio")
    read_until(terminal.fd, b"> ")
    paste = b"".join(b"%05d " % number for number in range(1500))
    os.write(terminal.fd, paste[:4000])
    got = read_until(terminal.fd, paste[3990:4000])
    os.write(terminal.fd, paste[4000:7000])
    got += read_until(terminal.fd, paste[6990:7000])
    assert got == paste[:7000]


def test_a_guest_that_nothing_else_wakes_waits_for_keys(terminal: Terminal) -> None:
    terminal.start("stdio", "no-tick")
    read_until(terminal.fd, b"> ")
    os.write(terminal.fd, b"a")
    assert read_until(terminal.fd, b"A") == b"A"
    os.write(terminal.fd, b"\x01x")
    assert terminal.finish()[0] == 0


def test_a_terminal_without_a_keyboard_shows_control_sequences(terminal: Terminal) -> None:
    terminal.start("stdio", "colour", stdin=subprocess.DEVNULL)
    assert read_until(terminal.fd, b"\n") == b"^[[31m> \r\n"
    status, said = terminal.finish()
    assert (status, said) == (0, "out of time at 60010 ms\n")


def test_keys_are_not_for_the_guest_whose_console_is_in_a_pipe(terminal: Terminal) -> None:
    os.write(terminal.fd, b"q\r")
    terminal.start("stdio", stdout=subprocess.PIPE)
    assert terminal.process is not None
    said, errors = terminal.process.communicate(timeout=PATIENCE)
    assert (said, errors) == (b"> ", b"out of time at 60010 ms\n")
    assert termios.tcgetattr(terminal.other) == terminal.before


# --- the command ---

# Shows a prompt and echoes keys; a dot ends it.
ECHO = """
        mov dx, 0x3f8
        mov al, 0x3e
        out dx, al
wait:   mov dx, 0x3fd
        in al, dx
        test al, 1
        je wait
        mov dx, 0x3f8
        in al, dx
        out dx, al
        cmp al, 0x2e
        jne wait
        out 0xf4, al
"""


def echo_kernel() -> bytes:
    header = b"".join(number.to_bytes(4, "little") for number in (0x1BADB002, 0, -0x1BADB002 & 0xFFFFFFFF))
    code = assemble(ECHO, 0x10000C).code
    return make(Plan([Piece(0x100000, header + code, paddr=0x100000)], entry=0x10000C))


def test_vmi_run_is_interactive(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "echo").write_bytes(echo_kernel())
    terminal.start("run", str(tmp_path / "echo"), "--timeout", "none", module="vmi")
    read_until(terminal.fd, b">")
    assert raw(terminal.other)
    os.write(terminal.fd, b"hi\x03")
    assert read_until(terminal.fd, b"\x03") == b"hi\x03"
    os.write(terminal.fd, b".")
    status, said = terminal.finish()
    assert status == ord(".") << 1 | 1
    assert said.splitlines()[0] == f"vmi: {HINT}"
    assert said.splitlines()[1].startswith("vmi: native: the guest ended itself with debug-exit value 0x2e (")
    assert termios.tcgetattr(terminal.other) == terminal.before


def test_the_user_ends_vmi_run(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "echo").write_bytes(echo_kernel())
    terminal.start("run", str(tmp_path / "echo"), "--timeout", "none", "--quiet", module="vmi")
    read_until(terminal.fd, b">")
    os.write(terminal.fd, b"\x01x")
    assert terminal.finish() == (0, "")
    assert termios.tcgetattr(terminal.other) == terminal.before


# --- a session on pipes and files ---


def shout(where: str, *options: str, **streams: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "tests.cli.shouter", where, *options]
    keywords = {"capture_output": True, "timeout": PATIENCE, "cwd": ROOT, "env": surroundings()} | streams
    return subprocess.run(command, check=False, **keywords)  # type: ignore[call-overload,no-any-return]


def started(where: str, stdin: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.cli.shouter", where]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=stdin, stdout=pipe, stderr=pipe, cwd=ROOT, env=surroundings())


@pytest.mark.parametrize("options", [(), ("no-tick",)])
def test_a_pipe_is_typed_and_its_end_is_no_key(options: tuple[str, ...]) -> None:
    words = b"".join(b"word %d\x01x\n" % number for number in range(1000))
    done = shout("stdio", *options, input=words)
    assert done.stdout == b"> " + words.upper()
    end = b"halted for ever" if options else b"out of time"
    assert (done.returncode, done.stderr.split(b" at ")[0]) == (0, end)


def test_a_file_is_typed_the_same_in_every_run(tmp_path: Path) -> None:
    (tmp_path / "script").write_bytes(b"some words\n" * 2000 + b"q")

    def run() -> tuple[bytes, bytes]:
        with open(tmp_path / "script", "rb") as script:
            done = shout("stdio", stdin=script)
        return done.stdout, done.stderr

    first = run()
    assert first == (b"> " + b"SOME WORDS\n" * 2000 + b"Q", b"ended by itself at 22001 ms\n")
    assert run() == first


def test_a_program_talks_through_pipes() -> None:
    with started("stdio", stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert read_until(child.stdout.fileno(), b"> ") == b"> "
        for word in (b"one\n", b"two\n"):
            child.stdin.write(word)
            child.stdin.flush()
            assert read_until(child.stdout.fileno(), b"\n") == word.upper()
        assert child.communicate(b"q", timeout=PATIENCE)[0] == b"Q"


def test_no_console_reads_nothing() -> None:
    done = shout("none", input=b"q")
    assert (done.stdout, done.stderr) == (b"", b"out of time at 60010 ms\n")


def test_without_standard_input() -> None:
    done = shout("stdio", stdin=None, preexec_fn=lambda: os.close(0))
    assert (done.stdout, done.stderr) == (b"> ", b"out of time at 60010 ms\n")


def test_own_pty_is_announced_and_works() -> None:
    with started("pty", stdin=subprocess.DEVNULL) as child:
        assert child.stderr is not None
        match = re.fullmatch(rb"vmi: the serial console is (/dev/pts/\d+)\n", child.stderr.readline())
        assert match
        fd = os.open(match[1], os.O_RDWR | os.O_NOCTTY)
        assert read_until(fd, b"> ") == b"> "
        os.write(fd, b"over there q")
        assert read_until(fd, b"Q") == b"OVER THERE Q"
        os.close(fd)
        out, err = child.communicate(timeout=PATIENCE)
        assert out == b""
        assert re.fullmatch(rb"ended by itself at \d+ ms\n", err)


def test_file_is_written_at_the_end(tmp_path: Path) -> None:
    done = shout(f"file:{tmp_path / 'console'}", stdin=subprocess.DEVNULL)
    assert (done.stdout, (tmp_path / "console").read_bytes()) == (b"", b"> ")


# --- time, inside this process ---


@pytest.fixture
def stdin_pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Standard input is a pipe; gives its other end."""
    reader, writer = os.pipe()
    with open(reader, encoding="ascii") as file:
        monkeypatch.setattr(sys, "stdin", file)
        yield writer
    os.close(writer)


def timed(action: Callable[[], object]) -> tuple[object, int]:
    began = time.monotonic_ns()
    result = action()
    return result, time.monotonic_ns() - began


def attached(serial: Serial, realtime: bool = False) -> tuple[ConsoleSession, Shouter]:
    session, guest = ConsoleSession(serial, realtime=realtime), Shouter()
    session.attach(guest, lambda: guest.ns, guest.stop)
    return session, guest


def test_idling_takes_its_time_while_keys_may_come(stdin_pipe: int) -> None:
    session, guest = attached(Serial(terminal=True))
    assert timed(lambda: session.on_idle(30 * MS)) >= (30 * MS, 30 * MS)
    os.write(stdin_pipe, b"k")
    passed, _ = timed(lambda: session.on_idle(10**15))  # far more than the test's own limit
    assert isinstance(passed, int)
    assert 0 <= passed < 10**15
    assert (session.on_idle(10**15), bytes(guest.input)) == (0, b"k")
    session.close()


def test_idling_keeps_to_the_host_s_time_while_nobody_has_the_pty_open() -> None:
    session, _ = attached(Serial(terminal=False, pty=True))
    passed, took = timed(lambda: session.on_idle(10**15))
    assert isinstance(passed, int)
    assert 0 < passed <= took
    session.close()


def test_idling_takes_none_when_no_keys_can_come() -> None:
    session, _ = attached(Serial(terminal=False))
    assert session.on_idle(10**15) == 10**15
    assert session.on_idle(None) is None
    session.on_slice()
    session.close()


def test_realtime_idles_without_keys_and_waits_between_slices() -> None:
    session, guest = attached(Serial(terminal=False), realtime=True)
    passed, took = timed(lambda: session.on_idle(30 * MS))
    assert passed == 30 * MS
    assert took >= 29 * MS
    guest.ns += 60 * MS
    assert timed(session.on_slice)[1] >= 25 * MS
    assert session.on_idle(None) is None
    session.close()


def test_a_pipe_is_read_no_faster_than_the_guest_takes_it(stdin_pipe: int) -> None:
    session, guest = attached(Serial(terminal=True))
    os.write(stdin_pipe, b"." * 20_000)
    for _ in range(20):
        session.on_idle(0)
    assert guest.most == len(guest.input) < 10_000
    assert session.on_idle(10**15) == 10**15  # no use in waiting for more
    taken = 0
    while taken < 20_000:
        taken += len(guest.input)
        guest.input.clear()
        session.on_idle(0)
    assert guest.most < 10_000
    session.close()


def test_closing_twice_does_nothing(tmp_path: Path) -> None:
    session, guest = attached(Serial(terminal=False, file=tmp_path / "console"))
    guest.show(b"x")
    session.close()
    (tmp_path / "console").unlink()
    session.close()
    assert not (tmp_path / "console").exists()
