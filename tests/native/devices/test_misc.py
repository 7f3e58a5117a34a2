# SPDX-License-Identifier: GPL-2.0-only
"""The small devices of the board."""

from __future__ import annotations


def test_post_code_is_kept(board):
    board.bus.write(0x80, 1, 0x5A)
    assert board.bus.device("post").code == 0x5A
    assert board.bus.read(0x80, 1) == 0xFF
    assert board.bus.stats()["post"] == {"writes": 1}


def test_debug_console(board):
    assert board.bus.read(0xE9, 1) == 0xE9
    for byte in b"ok":
        board.bus.write(0xE9, 1, byte)
    assert board.log == [("debug", ord("o")), ("debug", ord("k"))]


def test_debug_exit_gives_the_value_whole_at_each_of_its_ports(board):
    board.bus.write(0xF4, 4, 0x12345678)
    board.bus.write(0xF7, 1, 0x10)
    assert board.log == [("exit", 0x12345678), ("exit", 0x10)]
    assert board.bus.read(0xF4, 1) == 0


def test_port_92_moves_a20_and_resets_on_a_rising_bit(board):
    assert board.bus.read(0x92, 1) == 0x02
    board.bus.write(0x92, 1, 0x00)
    board.bus.write(0x92, 1, 0x02)
    board.bus.write(0x92, 1, 0x03)
    board.bus.write(0x92, 1, 0x03)
    assert board.log == [("a20", False), ("a20", True), "fast reset"]


def test_a20_is_one_gate_for_both_its_drivers(board):
    board.bus.write(0x64, 1, 0xDD)
    assert board.bus.read(0x92, 1) == 0x00
    board.bus.write(0x92, 1, 0x02)
    board.bus.write(0x64, 1, 0xD0)
    assert board.bus.read(0x60, 1) & 0x02


def test_reset_control_answers_its_byte_alone(board):
    board.bus.write(0xCF8, 4, 0x80000600)  # a PCI probe
    board.bus.write(0xCF9, 2, 0x0606)
    assert board.log == []
    assert board.bus.read(0xCF9, 2) == 0xFFFF
    board.bus.write(0xCF9, 1, 0x02)
    assert board.bus.read(0xCF9, 1) == 0x02
    board.bus.write(0xCF9, 1, 0x06)
    assert board.log == ["cf9 reset"]


def test_reset_opens_a20(board):
    board.bus.write(0x92, 1, 0x00)
    board.bus.write(0x80, 1, 0x5A)
    board.bus.write(0xCF9, 1, 0x02)
    board.bus.reset()
    assert board.a20.enabled
    assert board.bus.device("post").code == 0
    assert board.bus.read(0xCF9, 1) == 0
