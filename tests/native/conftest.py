# SPDX-License-Identifier: GPL-2.0-only
"""What the device tests share: a recorded interrupt wire, a clock, a board with every device."""

from __future__ import annotations

import pytest

from tests.native.bare import Recorder, new_cpu
from vmi.native import accelerator
from vmi.native.bus import PortBus
from vmi.native.clock import Clock
from vmi.native.cpu import Cpu
from vmi.native.devices.debug_exit import DebugExit
from vmi.native.devices.i8042 import I8042
from vmi.native.devices.misc import A20Gate, DebugConsole, PostPort, ResetControl, SystemControlA
from vmi.native.devices.pic import PicPair
from vmi.native.devices.pit import Pit
from vmi.native.devices.rtc import Rtc
from vmi.native.devices.uart import com1, com2


class Wire:
    """An interrupt line that remembers its level and when it rose."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.level = False
        self.rises: list[int] = []

    def set(self, level: bool, /) -> None:
        if level and not self.level:
            self.rises.append(self._clock.now())
        self.level = level


class Board:
    """Every device, wired as on a PC; ``log`` collects what goes out."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.log: list[object] = []
        self.a20 = A20Gate(lambda on: self.log.append(("a20", on)))
        self.pic = PicPair(lambda: self.log.append(("intr", self.pic.pending())))
        self.pit = Pit(self.pic.line(0), self.clock)
        self.com1 = com1(self.pic.line(4), self.clock, lambda byte: self.log.append(("com1", byte)))
        self.com2 = com2(self.pic.line(3), self.clock, lambda byte: self.log.append(("com2", byte)))
        self.rtc = Rtc(self.pic.line(8), self.clock, 64 << 20)
        self.i8042 = I8042(
            self.pic.line(1), self.a20, lambda: self.log.append("kbd reset"), self.clock, self.pic.line(12)
        )
        self.bus = PortBus()
        self.bus.attach(
            self.pic, self.pit, self.com1, self.com2, self.rtc, self.i8042,
            SystemControlA(self.a20, lambda: self.log.append("fast reset")),
            ResetControl(lambda: self.log.append("cf9 reset")),
            PostPort(),
            DebugConsole(lambda byte: self.log.append(("debug", byte))),
            DebugExit(lambda value: self.log.append(("exit", value))),
        )  # fmt: skip


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def wire(clock: Clock) -> Wire:
    return Wire(clock)


@pytest.fixture
def board() -> Board:
    return Board()


@pytest.fixture(scope="session")
def new_board() -> type[Board]:
    """The class, for tests that need several boards."""
    return Board


@pytest.fixture
def bus() -> Recorder:
    """What the CPU of the test reports to."""
    return Recorder()


@pytest.fixture
def cpu(bus: Recorder) -> Cpu:
    """A CPU alone, see :func:`new_cpu`."""
    return new_cpu(bus)


@pytest.fixture
def plain_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPUs are made without the accelerator."""
    state = accelerator._State()
    state.looked = True
    monkeypatch.setattr(accelerator, "_state", state)
