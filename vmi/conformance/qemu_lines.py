# SPDX-License-Identifier: GPL-2.0-only
"""A QEMU process and the two lines into it: gdb's protocol for the processor, QEMU's own for the board.

gdb's stops, steps and knows registers, and takes commands of QEMU's monitor. The other one, made for tests of
devices, reads and writes memory and moves interrupt lines; it is several times as quick. Both are pairs of
sockets that the process inherits, so nothing listens anywhere and nothing is left in the file system. What is
only said, not asked, is collected and goes out with the next question.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from typing import NoReturn

from vmi.errors import EngineError

PATIENCE = 30.0  # seconds of this computer's time for an answer to anything but a guest
_PIECE = 1 << 16
_MOST_TEXT = 300  # characters of what QEMU says of its end
_DEATH_SIGNAL = 1  # prctl: the signal that a process gets when its parent ends


def _dies_with_us() -> Callable[[], None] | None:
    """What a new process does first, so that it ends even when this one is killed; None where it can't."""
    if sys.platform != "linux":
        return None
    control = ctypes.CDLL(None).prctl
    return lambda: control(_DEATH_SIGNAL, signal.SIGKILL)


def _end(process: subprocess.Popen[bytes], sockets: Sequence[socket.socket]) -> None:
    process.kill()
    process.wait()
    for each in sockets:
        each.close()
    if process.stderr is not None:
        process.stderr.close()


def complaint(said: str) -> str:
    """What QEMU complains of, without what it was asked to tell."""
    lines = [line for line in said.splitlines() if line.lower().startswith(("qemu", "kvm", "error"))]
    return " ".join(lines)[:_MOST_TEXT] or "it says nothing"


class Lines:
    """A QEMU that is stopped before its first instruction.

    :raises EngineError: it can't be started, or ends. So do all methods if it does, or doesn't answer.

    :param command: program and options; those for the lines are added.
    :param port: writes of the guest to this port are what :meth:`written` tells of.
    """

    def __init__(self, command: Sequence[str], port: int) -> None:
        pairs = [socket.socketpair() for _ in range(3)]
        self._gdb, self._board, self._port = (ours for ours, _ in pairs)
        whole = [*command]
        for name, (_, theirs) in zip(("gdb", "qtest", "port"), pairs, strict=True):
            whole += ["-chardev", f"socket,id={name},fd={theirs.fileno()}"]
        whole += ["-gdb", "chardev:gdb", "-qtest", "chardev:qtest", "-qtest-log", "none"]
        whole += ["-device", f"isa-debugcon,iobase={port:#x},chardev=port", "-d", "cpu_reset", "-S"]
        self._packets = self._text = b""
        self._written = False
        self._waiting: list[bytes] = []
        try:
            self._process = subprocess.Popen(
                whole,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno() for _, theirs in pairs],
                preexec_fn=_dies_with_us(),  # noqa: PLW1509
            )
        except OSError as error:
            for pair in pairs:
                for each in pair:
                    each.close()
            raise EngineError(f"{command[0]} can't be started: {error.strerror}") from None
        self._close = weakref.finalize(self, _end, self._process, (self._gdb, self._board, self._port))
        for ours, theirs in pairs:
            theirs.close()
            ours.setblocking(False)
        assert self._process.stderr is not None
        os.set_blocking(self._process.stderr.fileno(), False)
        found = re.search(r"<architecture>(.*?)<", self.ask("qXfer:features:read:target.xml:0,ffb"))
        if found is None or found[1] != "i386":
            self.close()
            shown = found[1] if found else "unknown"
            raise EngineError(f"QEMU must be one for 32-bit guests, but this one's architecture is {shown}")

    def __repr__(self) -> str:
        return f"<Lines to process {self._process.pid}>"

    @property
    def closed(self) -> bool:
        """The process has ended."""
        return not self._close.alive

    def close(self) -> None:
        """End the process."""
        self._close()

    def listen(self) -> str:
        """What it has written to its standard error since the last time."""
        said = b""
        assert self._process.stderr is not None
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self._process.stderr.fileno(), _PIECE):
                said += piece
        return said.decode("utf-8", "replace")

    def written(self) -> bool:
        """The guest has written to the port since this was asked the last time."""
        self._drain()
        found, self._written = self._written, False
        return found

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._port.recv(_PIECE):
                self._written = True

    # -- the processor: gdb's protocol -------------------------------------------------------

    def say(self, *packets: str) -> None:
        """Send packets, whose answers :meth:`answer` gives one by one."""
        data = b"".join(b"$%s#%02x" % (raw, sum(raw) & 0xFF) for raw in map(str.encode, packets))
        self._send(self._gdb, data)

    def interrupt(self) -> None:
        """Stop the guest; the answer is as to what let it go."""
        self._send(self._gdb, b"\x03")

    def answer(self, seconds: float | None = None, *, writes: bool = False) -> str | None:
        """The next packet; None if there is none for so long, by default :data:`PATIENCE`.

        :param writes: it also comes back with None once the guest has written to the port.
        """
        until = time.monotonic() + (PATIENCE if seconds is None else seconds)
        while True:
            end = self._packets.find(b"#")
            if 0 <= end < len(self._packets) - 2:
                packet, self._packets = self._packets[:end], self._packets[end + 3 :]
                return packet.lstrip(b"+$").decode("ascii", "replace")
            left = max(0.0, until - time.monotonic())
            ready = select.select([self._gdb, self._port], [], [], left)[0]
            if self._port in ready:  # or QEMU waits for room and does nothing else
                self._drain()
            if self._gdb in ready:
                self._packets += self._receive(self._gdb)
            elif not ready or (writes and self._written):
                return None

    def ask(self, packet: str) -> str:
        """The answer to a packet."""
        self.say(packet)
        return self.must(self.answer())

    def must(self, answer: str | None) -> str:
        """An answer that there has to be."""
        if answer is None:
            self.close()
            raise EngineError(f"QEMU has not answered for {PATIENCE:g} seconds")
        return answer

    def monitor(self, command: str) -> str:
        """What QEMU's monitor answers to a command."""
        answer, text = self.ask(f"qRcmd,{command.encode().hex()}"), ""
        while answer.startswith("O") and answer != "OK":
            text += bytes.fromhex(answer[1:]).decode("utf-8", "replace")
            answer = self.must(self.answer())
        return text

    # -- the board: memory and interrupt lines -----------------------------------------------

    def read(self, address: int, size: int) -> bytes:
        """Guest-physical memory."""
        return base64.b64decode(self._board_answer(f"b64read {address:#x} {size:#x}"))

    def write(self, address: int, data: bytes) -> None:
        """Store into guest-physical memory, with the next question at the latest."""
        self.board(f"b64write {address:#x} {len(data):#x} {base64.b64encode(data).decode()}")

    def board(self, command: str) -> None:
        """Give a command to the board, with the next question at the latest."""
        self._waiting.append(command.encode() + b"\n")

    def settle(self) -> None:
        """See that the board has done all that was said."""
        if self._waiting:
            self._board_answer("endianness")

    def _board_answer(self, question: str) -> str:
        lines = [*self._waiting, question.encode() + b"\n"]
        self._waiting = []
        sent = b"".join(lines)
        wanted = len(lines)
        while sent or self._text.count(b"\n") < wanted:
            able = select.select([self._board], [self._board] if sent else [], [], PATIENCE)
            if not able[0] and not able[1]:
                self.must(None)
            if able[0]:
                self._text += self._receive(self._board)
            if able[1]:
                sent = sent[self._some(self._board, sent) :]
        *answers, self._text = self._text.split(b"\n", wanted)
        wrong = [answer for answer in answers if not answer.startswith(b"OK")]
        if wrong:
            raise EngineError(f"QEMU must do what it is told, but it answers {wrong[0].decode('ascii')!r}")
        return answers[-1][3:].decode("ascii")

    # -- sockets -----------------------------------------------------------------------------

    def _send(self, line: socket.socket, data: bytes) -> None:
        while data:
            if not select.select([], [line], [], PATIENCE)[1]:
                self.must(None)
            data = data[self._some(line, data) :]

    def _some(self, line: socket.socket, data: bytes) -> int:
        try:
            return line.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self._ended()

    def _receive(self, line: socket.socket) -> bytes:
        try:
            data = line.recv(_PIECE)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        if not data:
            self._ended()
        return data

    def _ended(self) -> NoReturn:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)
        status = self._process.poll()
        said = complaint(self.listen())
        self.close()
        raise EngineError(f"QEMU has ended with status {status}: {said}")
