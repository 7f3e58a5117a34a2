# SPDX-License-Identifier: GPL-2.0-only
"""The serial port as 16550A drivers probe and use it."""

from __future__ import annotations

import pytest

from vmi.native.devices.uart import Uart, com1, com2

RBR = THR = 0
IER, IIR, FCR, LCR, MCR, LSR, MSR, SCR = 1, 2, 2, 3, 4, 5, 6, 7


class Port:
    """Register access by number."""

    def __init__(self, wire, clock):
        self.sent = bytearray()
        self.uart = Uart("com1", 0x3F8, wire, clock, self.sent.append)
        self.wire = wire
        self.clock = clock

    def __getitem__(self, register):
        return self.uart.read(0x3F8 + register, 1)

    def __setitem__(self, register, value):
        self.uart.write(0x3F8 + register, 1, value)

    def chars(self, n):
        """Let n character times pass."""
        self.clock.advance_to(self.clock.now() + n * self.uart.char_time)


@pytest.fixture
def port(wire, clock):
    return Port(wire, clock)


def test_state_after_reset(port):
    assert [port[n] for n in range(8)] == [0, 0, 0x01, 0, 0x08, 0x60, 0xB0, 0]


def test_transmits_at_once_and_is_empty_again(port):
    for byte in b"hi":
        port[THR] = byte
        assert port[LSR] == 0x60
    assert port.sent == b"hi"
    assert port.uart.stats() == {"tx_bytes": 2, "rx_bytes": 0, "interrupts": 0}


def test_divisor_latch_hides_data_and_ier(port):
    port[IER] = 0x05
    port[LCR] = 0x83
    port[0], port[1] = 0x34, 0x12
    assert (port[0], port[1], port.uart.divisor) == (0x34, 0x12, 0x1234)
    port[LCR] = 0x03
    assert port[IER] == 0x05
    assert port.sent == b""


def test_is_recognised_as_16550a(port):
    # The order in which drivers tell 8250, 16450, 16550, 16550A, 16650 and 16750 apart.
    for value in (0x5A, 0xA5):
        port[SCR] = value
        assert port[SCR] == value
    port[IER] = 0xFF
    assert port[IER] == 0x0F  # no sleep or low-power bits of later chips
    port[IER] = 0
    port[FCR] = 0x01
    assert port[IIR] >> 6 == 3
    port[FCR] = 0x21
    assert port[IIR] & 0x20 == 0  # no 64-byte FIFO
    port[LCR] = 0xBF
    assert port[2] != 0  # no enhanced feature register behind the divisor latch
    port[LCR] = 0
    port[FCR] = 0
    assert port[IIR] >> 6 == 0


def test_loopback_modem_lines(port):
    port[MCR] = 0x1A
    assert port[MSR] & 0xF0 == 0x90
    port[MCR] = 0x15
    assert port[MSR] & 0xF0 == 0x60
    port[MCR] = 0xE0
    assert (port[MCR], port[MSR]) == (0x00, 0xB0)


def test_loopback_data_comes_back_and_does_not_go_out(port):
    port[MCR] = 0x10
    port[THR] = 0xA7
    assert port[LSR] & 1
    assert port[RBR] == 0xA7
    assert port[LSR] & 1 == 0
    assert port.sent == b""


def test_loopback_overrun(port):
    port[MCR] = 0x10
    port[IER] = 0x04
    port[THR] = 1
    port[THR] = 2
    assert port.wire.level
    assert port[IIR] == 0x06
    assert port[LSR] & 0x03 == 0x03
    assert not port.wire.level
    assert port[LSR] & 0x02 == 0
    port[FCR] = 0x01
    for byte in range(17):
        port[THR] = byte
    assert port[LSR] & 0x02
    assert [port[RBR] for _ in range(16)] == list(range(16))


def test_input_waits_outside_during_loopback(port):
    port[MCR] = 0x10
    port.uart.receive(b"x")
    port.chars(5)
    assert port[LSR] & 1 == 0
    port[MCR] = 0x00
    port.chars(1)
    assert port[RBR] == ord("x")


def test_enabling_thre_interrupt_requests_it_and_iir_clears_it(port):
    port[IER] = 0x02
    assert port.wire.level
    assert port[IIR] == 0x02
    assert not port.wire.level
    assert port[IIR] == 0x01
    port[IER] = 0x02  # no change, no request
    assert not port.wire.level
    port[IER] = 0x00
    port[IER] = 0x02
    assert port.wire.level


def test_each_byte_sent_gives_a_new_edge(port):
    port[IER] = 0x02
    for byte in b"abc":
        port[THR] = byte
    assert len(port.wire.rises) == 4
    port[IIR]
    assert not port.wire.level


def test_received_byte_interrupts_until_it_is_read(port):
    port[IER] = 0x01
    port.uart.receive(b"ab")
    assert port[LSR] & 1 == 0
    port.chars(1)
    assert port.wire.level
    assert port[IIR] == 0x04
    port.chars(10)
    assert port.uart.waiting == 1  # the next one waits for the holding register
    assert port[RBR] == ord("a")
    assert not port.wire.level
    port.chars(1)
    assert (port[RBR], port.uart.waiting) == (ord("b"), 0)


def test_fifo_interrupts_at_its_trigger_level(port):
    port[FCR] = 0x81  # 8 bytes
    port[IER] = 0x01
    port.uart.receive(bytes(range(20)))
    port.chars(7)
    assert not port.wire.level
    port.chars(1)
    assert port[IIR] == 0xC4
    port.chars(20)
    assert port.uart.waiting == 12
    assert [port[RBR] for _ in range(8)] == list(range(8))
    assert not port.wire.level


def test_fifo_below_its_trigger_times_out_after_four_characters(port):
    port[FCR] = 0xC1
    port[IER] = 0x01
    port.uart.receive(b"xy")
    port.chars(2 + 3)
    assert not port.wire.level
    port.chars(1)
    assert port[IIR] == 0xCC
    assert port[RBR] == ord("x")
    assert not port.wire.level
    port.chars(4)
    assert port[IIR] == 0xCC
    assert port[RBR] == ord("y")
    port.chars(10)
    assert port[IIR] == 0xC1


def test_turning_the_fifo_on_or_off_empties_it(port):
    port[FCR] = 0x01
    port.uart.receive(b"x")
    port.chars(1)
    assert port[LSR] & 1
    port[FCR] = 0x00
    assert port[LSR] & 1 == 0
    port[FCR] = 0x01
    port.uart.receive(b"y")
    port.chars(1)
    port[FCR] = 0x03
    assert (port[LSR] & 1, port[RBR]) == (0, 0)


def test_character_time_follows_rate_and_frame(port):
    assert port.uart.char_time == 7 * 12 * 10**9 // 115200  # 5 bits, no parity, 1 stop bit
    port[LCR] = 0x83
    port[0], port[1] = 1, 0
    assert port.uart.char_time == 10 * 10**9 // 115200
    port[LCR] = 0x1F
    assert port.uart.char_time == 12 * 10**9 // 115200


def test_receive_comes_before_transmit_in_priority(port):
    port[IER] = 0x03
    port.uart.receive(b"x")
    port.chars(1)
    assert port[IIR] == 0x04
    port[RBR]
    assert port[IIR] == 0x02
    assert port[IIR] == 0x01


def test_modem_status_interrupt_has_the_lowest_priority(port):
    port.uart.msr |= 0x01
    port[IER] = 0x08
    assert port[IIR] == 0x00
    assert port[MSR] == 0xB1
    assert (port[IIR], port[MSR]) == (0x01, 0xB0)


def test_status_registers_are_read_only(port):
    port[LSR] = port[MSR] = 0xFF
    assert (port[LSR], port[MSR]) == (0x60, 0xB0)


def test_reset_keeps_input_that_has_not_arrived(port):
    port[IER] = 0x01
    port.uart.receive(b"ab")
    port.chars(1)
    port.uart.reset()
    assert not port.wire.level
    port.chars(1)
    assert port[RBR] == ord("b")


def test_the_two_ports_of_a_pc(wire, clock):
    assert [u.ports for u in (com1(wire, clock, print), com2(wire, clock, print))] == [
        (range(0x3F8, 0x400),),
        (range(0x2F8, 0x300),),
    ]
