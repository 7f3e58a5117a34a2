# SPDX-License-Identifier: GPL-2.0-only
"""What all devices on a PS/2 cable have in common: bytes that wait for the controller to take them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque

from vmi.native.bus import State
from vmi.native.stamped import Stamped

ACK, RESEND, SELF_TEST_PASSED = 0xFA, 0xFE, 0xAA
BUFFER_SIZE = 16  # bytes, as in a real keyboard


class Ps2Device(Stamped, ABC):
    """One device. What it answers goes before what it has to say by itself."""

    def __init__(self) -> None:
        self._answers: deque[int] = deque()
        self._stream: deque[int] = deque()
        self.dropped = 0

    @abstractmethod
    def write(self, value: int) -> None:
        """Take a byte from the controller: a command, or the operand of one."""

    @property
    def waits(self) -> bool:
        """Whether the device has a byte for the controller."""
        return bool(self._answers or self._stream)

    def take(self) -> int:
        """The next byte of a device that :attr:`waits`."""
        return self._answers.popleft() if self._answers else self._stream.popleft()

    def _answer(self, *data: int) -> None:
        self._queue(self._answers, data)

    def _say(self, *data: int) -> None:
        self._queue(self._stream, data)

    def _queue(self, queue: deque[int], data: tuple[int, ...]) -> None:
        taken = data[: BUFFER_SIZE - len(queue)]
        queue.extend(taken)
        self.dropped += len(data) - len(taken)

    def reset(self) -> None:
        """Power on again; says nothing about it, since firmware has heard that already."""
        self._answers.clear()
        self._stream.clear()

    def save(self) -> State:
        """Give the bytes that wait."""
        return {"answers": list(self._answers), "stream": list(self._stream)}

    def load(self, state: State) -> None:
        """Take over the bytes that wait."""
        self._answers = deque(state["answers"])
        self._stream = deque(state["stream"])
