# SPDX-License-Identifier: GPL-2.0-only
"""The auxiliary port and the mouse on it, as drivers use them; bytes are those of QEMU."""

from __future__ import annotations

import pytest

from tests.native.devices.kbc import Controller


@pytest.fixture
def kbc(clock):
    return Controller(clock)


def mouse(kbc, *values):
    read = []
    for value in values:
        kbc.command(0xD4, value)
        while kbc.status & 1:
            assert kbc.status & 0x20
            read.append(kbc.chip.read(0x60, 1))
    return bytes(read).hex(" ")


def test_the_loop_that_drivers_look_for_the_port_with(kbc):
    kbc.command(0x60, 0x47)
    kbc.command(0xD3, 0x5A)
    assert kbc.status & 0x21 == 0x21
    assert (kbc.irq12.level, kbc.irq1.level) == (True, False)
    assert kbc.drain() == [0x5A]
    kbc.command(0xD2, 0xA5)
    assert (kbc.irq12.level, kbc.irq1.level) == (False, True)
    assert kbc.drain() == [0xA5]


def test_mouse_bytes_have_their_own_interrupt_and_port_bit(kbc):
    kbc.command(0x60, 0x47)
    kbc.command(0xD4, 0xF2)
    assert (kbc.irq12.level, kbc.irq1.level) == (True, False)
    assert kbc.drain() == [0xFA, 0x00]
    assert kbc.irq12.rises == 2
    kbc.command(0xD4, 0xF2)
    kbc.chip.read(0x60, 1)
    kbc.chip.read(0x60, 1)
    kbc.command(0xA7)
    kbc.command(0x20)
    assert kbc.drain() == [0x67]


def test_keyboard_and_mouse_take_turns(kbc):
    kbc.command(0xD4, 0xE9)
    kbc.chip.press(b"\x1c\x1b")
    assert kbc.drain() == [0xFA, 0x1E, 0x00, 0x1F, 0x02, 0x64]


def test_mouse_answers(kbc):
    assert mouse(kbc, 0xFF) == "fa aa 00"
    assert mouse(kbc, 0xE9) == "fa 00 02 64"
    assert mouse(kbc, 0xF4, 0xE7, 0xF0, 0xE9) == "fa fa fa fa 70 02 64"
    assert mouse(kbc, 0xEA, 0xE6, 0xF5, 0xE9) == "fa fa fa fa 00 02 64"
    assert mouse(kbc, 0xE8, 3, 0xF3, 40, 0xE9) == "fa fa fa fa fa 00 03 28"
    assert mouse(kbc, 0xEB) == "fa 08 00 00"
    assert mouse(kbc, 0xF6, 0xE9) == "fa fa 00 02 64"
    assert mouse(kbc, 0xE1, 0xEC, 0xFE) == ""
    assert mouse(kbc, 0xEE, 0x12, 0xEE, 0xEC, 0xE6) == "fa 12 ee fa fa"
    assert mouse(kbc, 0xEE, 0xFF, 0xE6) == "fa fa aa 00 fa"


def test_a_driver_that_knocks_finds_wheel_and_buttons(kbc):
    assert mouse(kbc, 0xF3, 200, 0xF3, 100, 0xF3, 80, 0xF2) == "fa fa fa fa fa fa fa 03"
    assert mouse(kbc, 0xEB) == "fa 08 00 00 00"
    assert mouse(kbc, 0xF3, 200, 0xF3, 200, 0xF3, 80, 0xF2) == "fa fa fa fa fa fa fa 04"
    assert mouse(kbc, 0xF6, 0xF2) == "fa fa 04"
    assert mouse(kbc, 0xFF, 0xF2) == "fa aa 00 fa 00"
    assert mouse(kbc, 0xF3, 200, 0xF3, 80, 0xF3, 80, 0xF2) == "fa fa fa fa fa fa fa 00"


def test_a_mouse_that_nobody_reads_keeps_16_bytes(kbc):
    for _ in range(10):
        kbc.command(0xD4, 0xE9)
    assert len(kbc.drain()) == 16
    assert kbc.chip.stats() == {"keys": 0, "commands": 10, "dropped": 24}
