# SPDX-License-Identifier: GPL-2.0-only
"""What the guest says on a character device, and the way to type something into it."""

from __future__ import annotations

from collections.abc import Callable


class Console:
    """Collects the bytes a guest transmits and hands input to it.

    Give ``transmit`` to a device as its output, and the device's input function to ``connect``.
    """

    def __init__(self) -> None:
        self._data = bytearray()
        self._listeners: list[Callable[[int], None]] = []
        self._sink: Callable[[bytes], None] | None = None
        self._unsent = bytearray()

    def __len__(self) -> int:
        return len(self._data)

    def __repr__(self) -> str:
        return f"<Console {len(self._data)} bytes>"

    @property
    def data(self) -> bytes:
        """Everything transmitted so far."""
        return bytes(self._data)

    def text(self) -> str:
        """Everything transmitted so far as text: line ends are ``\\n``, undecodable bytes are escaped."""
        return self._data.decode("utf-8", "backslashreplace").replace("\r\n", "\n").replace("\r", "\n")

    def find(self, pattern: bytes, start: int = 0) -> int:
        """Offset of the first ``pattern`` at or after ``start``, or -1."""
        return self._data.find(pattern, start)

    def transmit(self, byte: int) -> None:
        """Take one byte (0-255) from the device."""
        self._data.append(byte)
        for listener in self._listeners:
            listener(byte)

    def add_listener(self, listener: Callable[[int], None]) -> None:
        """Call ``listener`` with every byte transmitted from now on."""
        self._listeners.append(listener)

    def connect(self, sink: Callable[[bytes], None]) -> None:
        """Send input to ``sink``, first what has been fed before there was one."""
        self._sink = sink
        if self._unsent:
            waiting, self._unsent = bytes(self._unsent), bytearray()
            sink(waiting)

    def feed(self, data: bytes) -> None:
        """Type ``data`` into the guest's device."""
        if self._sink is None:
            self._unsent += data
        else:
            self._sink(data)
