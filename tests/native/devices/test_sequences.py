# SPDX-License-Identifier: GPL-2.0-only
"""Any sequence of accesses: no device raises, answers fit, and a saved board goes on identically."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

PORTS = (
    *(0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x60, 0x64, 0x70, 0x71),
    *range(0x3F8, 0x400),
    *(0x2F8, 0x2F9, 0x80, 0x92, 0xCF8, 0xCF9, 0xE9, 0xF4, 0x300),
)
# Bytes that mean something to some device come up more often than chance would have them.
BYTES = st.one_of(
    st.sampled_from([0x00, 0x01, 0x02, 0x03, 0x0A, 0x0B, 0x0C, 0x10, 0x11, 0x14, 0x20, 0x30, 0x34, 0x36]),
    st.sampled_from([0x42, 0x60, 0x68, 0x80, 0x83, 0xA0, 0xB0, 0xC1, 0xC2, 0xD1, 0xE0, 0xED, 0xF4, 0xFF]),
    st.integers(0, 255),
)
STEPS = st.one_of(
    st.tuples(st.just("write"), st.sampled_from(PORTS), st.sampled_from([1, 1, 1, 2, 4]), BYTES),
    st.tuples(st.just("write"), st.sampled_from(PORTS), st.just(1), BYTES),
    st.tuples(st.just("read"), st.sampled_from(PORTS), st.sampled_from([1, 1, 1, 2, 4])),
    st.tuples(st.just("wait"), st.one_of(st.integers(0, 2000), st.integers(0, 300_000))),
    st.tuples(st.just("cmos"), st.integers(0, 0x3F), BYTES),
    st.tuples(st.just("serial"), st.binary(max_size=20)),
    st.tuples(st.just("keys"), st.binary(max_size=5)),
    st.tuples(st.just("acknowledge")),
    st.tuples(st.just("reset")),
)


def play(board, steps):
    """Run steps; give all that can be seen of them."""
    seen = []
    for name, *args in steps:
        if name == "write":
            port, size, value = args
            board.bus.write(port, size, value)
        elif name == "read":
            value = board.bus.read(*args)
            assert 0 <= value < 1 << 8 * args[1]
            seen.append(value)
        elif name == "wait":
            board.clock.advance_to(board.clock.now() + args[0])
        elif name == "cmos":
            board.bus.write(0x70, 1, args[0])
            board.bus.write(0x71, 1, args[1])
        elif name == "serial":
            board.com1.receive(args[0])
        elif name == "keys":
            board.i8042.press(args[0])
        elif name == "acknowledge":
            seen.append((board.pic.pending(), board.pic.acknowledge()))
        else:
            board.bus.reset()
        seen.append((board.pic.pending(), board.clock.next_deadline()))
    return seen


@settings(max_examples=300, deadline=None)
@given(st.lists(STEPS, max_size=40), st.lists(STEPS, max_size=40))
def test_saved_board_continues_identically(new_board, before, after):
    original, copy = new_board(), new_board()
    play(original, before)
    state = json.loads(json.dumps([original.clock.save(), original.bus.save()]))
    play(copy, after)  # whatever it was doing is replaced
    copy.clock.load(state[0])
    copy.bus.load(state[1])
    assert [copy.clock.save(), copy.bus.save()] == state
    original.log.clear()
    copy.log.clear()
    assert play(copy, after) == play(original, after)
    assert copy.log == original.log
    assert [copy.clock.save(), copy.bus.save()] == [original.clock.save(), original.bus.save()]


@settings(max_examples=100, deadline=None)
@given(st.lists(STEPS, max_size=60))
def test_intr_is_asserted_exactly_while_a_request_can_be_acknowledged(new_board, steps):
    board = new_board()
    play(board, steps)
    spurious = board.pic.stats()["spurious"]
    pending = board.pic.pending()
    assert pending == (board.pic.master.requested() >= 0)
    board.pic.acknowledge()
    assert board.pic.stats()["spurious"] == spurious + (not pending)
