# SPDX-License-Identifier: GPL-2.0-only
"""A keyboard controller with what hangs on it, and the ways a driver talks to it."""

from __future__ import annotations

from vmi.native.devices.i8042 import I8042
from vmi.native.devices.misc import A20Gate
from vmi.native.devices.ps2_keyboard import KEY_NS


class Line:
    def __init__(self):
        self.level, self.rises = False, 0

    def set(self, level, /):
        self.rises += level and not self.level
        self.level = level


class Controller:
    def __init__(self, clock):
        self.resets = 0
        self.a20 = A20Gate()
        self.clock = clock
        self.irq1, self.irq12 = Line(), Line()
        self.chip = I8042(self.irq1, self.a20, self.on_reset, clock, self.irq12)

    def on_reset(self):
        self.resets += 1

    @property
    def status(self):
        return self.chip.read(0x64, 1)

    def command(self, *values):
        self.chip.write(0x64, 1, values[0])
        for value in values[1:]:
            self.chip.write(0x60, 1, value)

    def data(self, value):
        self.chip.write(0x60, 1, value)

    def drain(self):
        answer = []
        while self.status & 1:
            answer.append(self.chip.read(0x60, 1))
        return answer

    def typed(self, events):
        """What a guest reads that looks once a millisecond."""
        self.chip.type(events)
        return self.watch(4 * len(events))

    def watch(self, milliseconds):
        read = []
        for _ in range(milliseconds):
            read += self.drain()
            self.clock.advance_to(self.clock.now() + KEY_NS)
        return bytes(read + self.drain()).hex(" ")
