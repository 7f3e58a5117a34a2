# SPDX-License-Identifier: GPL-2.0-only
"""Any sequence of accesses: a channel never raises, and a saved one goes on identically."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.native.devices.ide_host import (
    BASE,
    COMMAND,
    CONTROL,
    COUNT,
    HIGH,
    LOW,
    SELECT,
    Host,
    contents,
    new_host,
)
from vmi.errors import UsageError
from vmi.native.clock import Clock
from vmi.native.devices.ide import BUSY_NS, primary
from vmi.native.disk import Disk


@pytest.fixture
def host(wire, clock):
    return new_host(wire, clock)


CODES = (
    0x10, 0x20, 0x24, 0x29, 0x30, 0x34, 0x39, 0x40, 0x42, 0x90, 0x91, 0xA1, 0xC4, 0xC5, 0xC6, 0xE5, 0xE7,
    0xEC, 0xEF, 0xF8, 0x27,
)  # fmt: skip
PORTS = (*range(BASE, BASE + 8), CONTROL)
SIZES = st.sampled_from([1, 1, 2, 4])
SELECTS = st.sampled_from([0xA0, 0xB0, 0xE0, 0xF0])
STEPS = st.one_of(
    st.tuples(st.just("write"), st.sampled_from(PORTS), SIZES, st.integers(0, 2**32 - 1)),
    st.tuples(st.just("write"), st.just(BASE + SELECT), st.just(1), SELECTS),
    st.tuples(st.just("write"), st.just(CONTROL), st.just(1), st.sampled_from([0, 0, 2, 4, 0x80])),
    st.tuples(st.just("write"), st.sampled_from([BASE + LOW, BASE + HIGH]), st.just(1), st.just(0)),
    st.tuples(st.just("write"), st.just(BASE + COUNT), st.just(1), st.integers(0, 4)),
    st.tuples(st.just("write"), st.just(BASE + COMMAND), st.just(1), st.sampled_from(CODES)),
    st.tuples(st.just("command"), st.sampled_from(CODES), st.integers(0, 110), st.integers(1, 20)),
    st.tuples(st.just("read"), st.sampled_from(PORTS), SIZES),
    st.tuples(st.just("in"), st.sampled_from([2, 4]), st.sampled_from([1, 64, 256, 1000])),
    st.tuples(st.just("out"), st.sampled_from([2, 4]), st.sampled_from([1, 64, 256, 1000])),
    st.tuples(st.just("wait"), st.sampled_from([1, BUSY_NS, 5 * BUSY_NS])),
    st.tuples(st.just("reset")),
)  # fmt: skip


def play(host, steps):
    """Run steps; give all that can be seen of them."""
    seen, ide = [], host.ide
    for name, *args in steps:
        if name == "write":
            port, size, value = args
            ide.write(port, size, value & (1 << 8 * size) - 1)
        elif name == "command":
            code, sector, count = args
            host.lba(sector, count)
            seen.append(host.do(code))
        elif name == "read":
            value = ide.read(*args)
            assert 0 <= value < 1 << 8 * args[1]
            seen.append(value)
        elif name == "in":
            seen += [ide.read(BASE, args[0]) for _ in range(args[1])]
        elif name == "out":
            for n in range(args[1]):
                ide.write(BASE, args[0], n * 40503 & (1 << 8 * args[0]) - 1)
        elif name == "wait":
            host.clock.advance_to(host.clock.now() + args[0])
        else:
            ide.reset()
        seen.append((host.wire.level, host.clock.next_deadline()))
    return seen


class Level:
    """An interrupt line's level."""

    level = False

    def set(self, level):
        self.level = level


@settings(max_examples=200, deadline=None)
@given(st.lists(STEPS, max_size=25), st.lists(STEPS, max_size=25), st.booleans())
def test_saved_channel_continues_identically(before, after, slave):
    def new():
        disks = [Disk.from_bytes(contents(n, key=n)) for n in (100, 60)]
        return Host(Level(), Clock(), disks[0], disks[1] if slave else None)

    original, copy = new(), new()
    play(original, before)
    state = json.loads(json.dumps([original.clock.save(), original.ide.save(), original.wire.level]))
    play(copy, after)  # whatever it was doing is replaced
    copy.clock.load(state[0])
    copy.ide.load(state[1])
    copy.wire.level = state[2]
    for mine, theirs in ((copy.master, original.master), (copy.slave, original.slave)):
        if mine is not None:
            mine.load_overlay(theirs.overlay())
    assert copy.ide.save() == state[1]
    assert play(copy, after) == play(original, after)
    assert copy.ide.save() == original.ide.save()
    assert copy.master.overlay() == original.master.overlay()
    assert original.clock.next_deadline() is None or original.status & 0x80


def test_state_of_other_drives_is_refused(host, wire, clock):
    other = primary(wire, clock, Disk.from_bytes(contents(7)))
    with pytest.raises(UsageError) as caught:
        other.load(host.ide.save())
    assert str(caught.value) == "the saved state is of a drive with 4000 sectors, but drive 0 of ide0 has 7"
