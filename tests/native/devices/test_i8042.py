# SPDX-License-Identifier: GPL-2.0-only
"""The keyboard controller and keyboard as start-up code and drivers use them."""

from __future__ import annotations

import pytest

from vmi.native.devices.i8042 import I8042
from vmi.native.devices.misc import A20Gate


class Controller:
    def __init__(self, wire):
        self.resets = 0
        self.a20 = A20Gate()
        self.chip = I8042(wire, self.a20, self.on_reset)

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


@pytest.fixture
def kbc(wire):
    return Controller(wire)


def test_state_firmware_leaves(kbc):
    assert kbc.status == 0x1C
    kbc.command(0x20)
    assert kbc.drain() == [0x65]


@pytest.mark.parametrize(("command", "answer"), [(0xAA, 0x55), (0xAB, 0x00), (0xA9, 0x00), (0xC0, 0x80)])
def test_one_byte_answers(kbc, command, answer):
    kbc.command(command)
    assert kbc.drain() == [answer]


def test_config_byte_is_written_and_read(kbc):
    kbc.command(0x60, 0x30)
    assert kbc.status & 0x04 == 0
    kbc.command(0xA8)
    kbc.command(0xAE)
    kbc.command(0x20)
    assert kbc.drain() == [0x00]
    kbc.command(0xA7)
    kbc.command(0xAD)
    kbc.command(0x20)
    assert kbc.drain() == [0x30]


def test_a20_by_output_port_and_by_command(kbc):
    kbc.command(0xD0)
    assert kbc.drain() == [0xCF]
    kbc.command(0xD1, 0xDD)
    assert not kbc.a20.enabled
    kbc.command(0xD0)
    assert kbc.drain() == [0xCD]
    kbc.command(0xDF)
    assert kbc.a20.enabled
    kbc.command(0xDD)
    assert not kbc.a20.enabled


def test_reset_by_pulse_and_by_output_port(kbc):
    kbc.command(0xFF)
    kbc.command(0xFD)
    assert kbc.resets == 0
    kbc.command(0xFE)
    assert kbc.resets == 1
    kbc.command(0xD1, 0x02)
    assert kbc.resets == 2


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        ([0xFF], [0xFA, 0xAA]),
        ([0xED, 0x07], [0xFA, 0xFA]),
        ([0xF3, 0x20], [0xFA, 0xFA]),
        ([0xF0, 0x02], [0xFA, 0xFA]),
        ([0xF0, 0x00], [0xFA, 0xFA, 0x02]),
        ([0xF0, 0x09], [0xFA, 0xFE]),
        ([0xF2], [0xFA, 0xAB, 0x41]),
        ([0xF4], [0xFA]),
        ([0xF5], [0xFA]),
        ([0xF6], [0xFA]),
        ([0xF7], [0xFA]),
        ([0xFA], [0xFA]),
        ([0xFB], [0xFE]),
        ([0xF0, 0x03], [0xFA, 0xFA]),
        ([0xF0, 0x04], [0xFA, 0xFE]),
        ([0xEE], [0xEE]),
        ([0x01], [0xFE]),
    ],
)
def test_keyboard_commands(kbc, sent, answer):
    got = []
    for value in sent:
        kbc.data(value)
        got += kbc.drain()
    assert got == answer


def test_identification_is_not_translated_when_translation_is_off(kbc):
    kbc.command(0x60, 0x05)
    kbc.data(0xF2)
    assert kbc.drain() == [0xFA, 0xAB, 0x83]


def test_each_key_byte_gives_an_edge(kbc, wire):
    kbc.chip.press(b"\x1e\x9e")
    assert (wire.level, len(wire.rises)) == (True, 1)
    assert kbc.chip.read(0x60, 1) == 0x1E
    assert (wire.level, len(wire.rises)) == (True, 2)
    assert kbc.chip.read(0x60, 1) == 0x9E
    assert not wire.level
    assert kbc.chip.read(0x60, 1) == 0x9E  # the buffer keeps its byte
    assert kbc.chip.stats() == {"keys": 2, "commands": 0, "dropped": 0}


def test_no_interrupt_when_it_is_off(kbc, wire):
    kbc.command(0x60, 0x44)
    kbc.chip.press(b"\x1e")
    assert not wire.level
    assert kbc.status & 0x21 == 0x01


def test_keys_wait_while_the_keyboard_is_disabled_and_replies_go_first(kbc):
    kbc.command(0xAD)
    kbc.chip.press(b"\x1e\x1f")
    assert kbc.drain() == []
    kbc.command(0xAA)
    assert kbc.drain() == [0x55]
    kbc.command(0xAE)
    kbc.command(0x20)
    assert kbc.drain() == [0x1E, 0x65, 0x1F]


def test_disabled_scanning_loses_keys_and_sending_enables_the_port(kbc):
    kbc.data(0xF5)
    kbc.chip.press(b"\x1e")
    assert kbc.drain() == [0xFA]
    kbc.command(0xAD)
    kbc.data(0xF4)
    kbc.chip.press(b"\x1e")
    assert kbc.drain() == [0xFA, 0x1E]


def test_unread_keys_are_dropped_in_the_end(kbc):
    kbc.chip.press(bytes(300))
    assert len(kbc.drain()) == 257  # one in the buffer, 256 behind it
    assert kbc.chip.stats()["dropped"] == 43


def test_nothing_on_the_auxiliary_port(kbc, wire):
    kbc.command(0xD4, 0xFF)
    assert kbc.status & 0x61 == 0x61
    assert not wire.level
    assert kbc.drain() == [0xFE]
    assert kbc.status & 0x60 == 0
    kbc.command(0xD3, 0x5A)
    assert kbc.status & 0x21 == 0x21
    assert kbc.drain() == [0x5A]
    kbc.command(0xD2, 0xA5)
    assert wire.level
    assert kbc.drain() == [0xA5]


def test_status_tells_command_from_data(kbc):
    kbc.data(0xF4)
    assert kbc.status & 0x08 == 0
    kbc.command(0xAE)
    assert kbc.status & 0x08


def test_reset_empties_everything(kbc, wire):
    kbc.chip.press(b"\x1e\x1f")
    kbc.command(0x60)
    kbc.chip.reset()
    assert not wire.level
    assert kbc.drain() == []
    kbc.data(0xEE)
    assert kbc.drain() == [0xEE]
