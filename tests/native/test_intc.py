# SPDX-License-Identifier: GPL-2.0-only
"""The controllers together: register by register as QEMU answers, and through the lines of the board."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmi.errors import UsageError
from vmi.native.clock import Clock
from vmi.native.devices.apic_bus import ApicBus
from vmi.native.devices.ioapic import IoApic
from vmi.native.devices.lapic import Lapic
from vmi.native.devices.pic import PicPair
from vmi.native.intc import InterruptLogic

LAPIC, IO_APIC = 0xFEE00000, 0xFEC00000
# Vectors 40h-4Fh, and all lines masked.
PIC_SETUP = (
    (0x20, 0x11), (0x21, 0x40), (0x21, 4), (0x21, 1), (0xA0, 0x11), (0xA1, 0x48), (0xA1, 2), (0xA1, 1),
    (0x21, 0xFF), (0xA1, 0xFF),
)  # fmt: skip

# What to do, and what qemu-system-i386 7.2 -M pc answered to a guest that did it. All numbers are hex.
#   Woff=value, Roff  write and read a local APIC register
#   Inn=value, Jnn    write and read an I/O APIC register
#   Evector           write the I/O APIC's EOI register
#   Pport=value       write a port
#   L3+ L4-           drive an ISA line (in the guest: by a serial port's transmit interrupt)
#   T                 open a window for interrupts: the vectors come in parentheses
AS_QEMU = {
    "priority": (
        "W300=40051 W300=40032 W300=400a1 T R110 R150 R0a0 W300=400b0 T R0a0 W0b0=0 R0a0 T W0b0=0 R0a0 "
        "W0b0=0 T R0a0 W0b0=0 W0b0=0 T R0a0 R150 R110",
        "(a1) 0 2 a0 (b0) b0 a0 () 0 (51) 50 (32) 30 0 40000",
    ),
    "same class waits": (
        "W300=40055 T W300=40058 T R0a0 R220 W0b0=0 T W0b0=0 R0a0",
        "(55) () 50 1000000 (58) 0",
    ),
    "task priority": (
        "W080=55 R080 R0a0 W300=40058 W300=4004f T R220 W080=4f T R0a0 W0b0=0 W080=3f T W0b0=0 R0a0 "
        "W080=123 R080",
        "55 55 () 1008000 (58) 50 (4f) 3f 23",
    ),
    "twice is once": (
        "W300=40061 W300=40061 T W300=40061 T R230 W0b0=0 T W0b0=0 T R230",
        "(61) () 2 (61) () 0",
    ),
    "level input": (
        "I18=8071 L4+ J18 T J18 T W0b0=0 J18 T L4- W0b0=0 J18 T L4+ L4- T J18 W0b0=0 J18",
        "c071 (71) c071 () c071 (71) 8071 () (71) c071 8071",
    ),
    "level registers": (
        "I18=8071 L4+ R230 R1b0 T R230 R130 R1b0 W0b0=0 R230 R1b0 L4- T W0b0=0 W300=40071 R1b0 T R1b0 W0b0=0",
        "20000 20000 (71) 0 20000 20000 20000 20000 (71) 0 (71) 0",
    ),
    "edge input": (
        "I18=10071 L4+ I18=71 T L4- L4+ T L4+ T W0b0=0 T L4- T L4+ T J18 W0b0=0",
        "() (71) () () () (71) 71",
    ),
    "edge forgets remote": (
        "I18=8071 L4+ T J18 I18=18071 J18 I18=10071 J18 I18=18071 J18 W0b0=0 I18=8071 J18 T W0b0=0 L4- J18",
        "(71) c071 1c071 10071 18071 c071 (71) c071",
    ),
    "EOI register": (
        "I18=8071 I16=8071 L4+ L3+ T J18 J16 E70 J18 E71 J18 J16 T W0b0=0 L3- J16 T W0b0=0 L4- W0b0=0 J18 "
        "J16",
        "(71) c071 c071 c071 c071 c071 () c071 (71) c071 8071",
    ),
    "masked level": (
        "I18=18071 L4+ T J18 I18=8071 T W0b0=0 I18=18071 J18 T W0b0=0 L4- J18",
        "() 18071 (71) 1c071 (71) 18071",
    ),
    "destination": (
        "I18=8071 I19=01000000 L4+ T J18 I18=10071 I19=ff000000 I18=8071 T W0b0=0 L4- J19 W020=01000000 "
        "R020 I19=0 L4+ T L4- L4+ I19=01000000 T J18 E71 T J18 W0b0=0 L4- W020=0",
        "() c071 (71) ff000000 1000000 (71) () c071 () c071",
    ),
    "flat": (
        "R0e0 W0d0=02000000 R0d0 I19=01000000 I18=858 L4+ T L4- I19=06000000 L4+ T W0b0=0 L4- "
        "I19=ff000000 L4+ T W0b0=0 W0d0=0 L4- L4+ T",
        "ffffffff 2000000 () (58) (58) ()",
    ),
    "clusters": (
        "W0e0=0fffffff R0e0 W0d0=21000000 I19=21000000 I18=958 L4+ T W0b0=0 L4- I19=22000000 L4+ T L4- "
        "I19=31000000 L4+ T L4- I19=23000000 L4+ T W0b0=0 L4- I19=ff000000 L4+ T W0e0=ffffffff R0e0",
        "fffffff (58) () () (58) () ffffffff",
    ),
    "messages to oneself": (
        "W310=0 W300=41 T W0b0=0 W310=01000000 W300=42 T W310=ff000000 W300=43 T W0b0=0 R310 "
        "W0d0=04000000 W310=04000000 W300=844 T W0b0=0 W300=80045 T W0b0=0 W300=c0046 T W300=147 T R300 "
        "W310=0 W300=148 T W0b0=0 R300",
        "(41) () (43) ff000000 (44) (45) () () 147 (48) 148",
    ),
    "NMI": (
        "I18=4ff L4+ L4- W300=40400 W310=01000000 W300=400 T",
        "NMI NMI ()",
    ),
    "external first": (
        "I18=10000 W300=400f0 P21=ef L4+ R270 T R170 P20=20 W0b0=0 L4- T W080=ff P21=ff P21=ef L4+ T "
        "P20=20 L4- W080=0 P21=ff T",
        "10000 (44 f0) 10000 () (44) ()",
    ),
    "LINT0 masked": (
        "P21=ef W350=18700 L4+ T R350 W350=8700 T P20=20 L4- P21=ff",
        "() 18700 (44)",
    ),
    "off holds": (
        "W300=40061 W0f0=ff T R0f0 R230 W300=40062 R230 W0f0=1ff T W0b0=0 R0f0",
        "() ff 2 6 (62) 1ff",
    ),
    "no end without begin": (
        "W0b0=0 W0b0=0 R100 R170 T W300=40061 T W0b0=0 W0b0=0 R130",
        "0 0 () (61) 0",
    ),
    "low half only": (
        "I18=ffffffff J18 J19 I19=ffffffff J19 I18=10000 I19=0 J18 J3e J3f J40 J0 J1 J2 I0=ffffffff J0 J2 "
        "I0=0 I1=ffffffff J1",
        "ffffafff 0 ffffffff 10000 10000 0 0 0 170020 0 f000000 f000000 170020",
    ),
    "read-only": (
        "W030=ffffffff R030 W090=ff R090 W0a0=ff R0a0 W100=ff R100 W180=ff R180 W200=ff R200 W390=ff R390",
        "50014 0 0 0 0 0 0",
    ),
    "kept": (
        "W020=ff000000 R020 W020=0 W0f0=ffffffff R0f0 W0f0=1ff W3e0=ff R3e0 W3e0=b W310=ffffffff R310 "
        "W310=0 W380=ffffffff R380 W380=0 R390 R280",
        "ff000000 1ff b ffffffff ffffffff 0 0",
    ),
}


class Bench:
    """The three controllers, and what the processor sees of them."""

    def __init__(self):
        self.clock = Clock()
        self.pic = PicPair()
        self.lapic = Lapic(self.clock)
        self.io_apic = IoApic(ApicBus([self.lapic]).deliver)
        self.logic = InterruptLogic(self.pic, self.lapic, self.io_apic)
        self.log = []
        self.lapic.on_nmi = lambda: self.log.append("NMI")
        self.lapic.virtual_wire()
        for port, value in PIC_SETUP:
            self.pic.write(port, 1, value)

    def take(self):
        """Let the processor take all that is pending; the vectors."""
        vectors = []
        while self.logic.pending():
            vectors.append(self.logic.acknowledge())
        return vectors

    def io_apic_write(self, register, value):
        self.io_apic.memory_write(IO_APIC, 4, register)
        self.io_apic.memory_write(IO_APIC + 0x10, 4, value)

    def io_apic_read(self, register):
        self.io_apic.memory_write(IO_APIC, 4, register)
        return self.io_apic.memory_read(IO_APIC + 0x10, 4)

    def play(self, script):
        """Run a script of AS_QEMU; give the answers in its notation."""
        for step in script.split():
            kind = step[0]
            at, _, text = step[1:].partition("=")
            value = int(text or "0", 16)
            if kind == "T":
                self.log.append(f"({' '.join(f'{vector:x}' for vector in self.take())})")
            elif kind == "L":
                self.logic.line(int(at[0])).set(at[1] == "+")
            elif kind == "W":
                self.lapic.memory_write(LAPIC + int(at, 16), 4, value)
            elif kind == "R":
                self.log.append(f"{self.lapic.memory_read(LAPIC + int(at, 16), 4):x}")
            elif kind == "I":
                self.io_apic_write(int(at, 16), value)
            elif kind == "J":
                self.log.append(f"{self.io_apic_read(int(at, 16)):x}")
            elif kind == "E":
                self.io_apic.memory_write(IO_APIC + 0x40, 4, int(at, 16))
            else:
                self.pic.write(int(at, 16), 1, value)
        return " ".join(self.log)


@pytest.fixture
def bench():
    return Bench()


@pytest.mark.parametrize("name", AS_QEMU)
def test_registers_and_vectors_are_those_of_qemu(bench, name):
    script, answers = AS_QEMU[name]
    assert bench.play(script) == answers


# --- wiring ---


def test_without_apics_there_is_just_the_pair():
    pic = PicPair()
    logic, told = InterruptLogic(pic), []
    logic.on_change = lambda: told.append(logic.pending())
    for port, value in PIC_SETUP[:-2]:
        pic.write(port, 1, value)
    logic.line(4).set(True)
    assert told == [True]
    assert logic.acknowledge() == 0x44
    assert (logic.save(), logic.stats()) == ({}, {})
    logic.reset()
    logic.load({})
    assert repr(logic) == "<InterruptLogic <PicPair pic ports 20-21,a0-a1,4d0-4d1>>"


@pytest.mark.parametrize(("irq", "register"), [(0, 0x14), (1, 0x12), (4, 0x18), (9, 0x22), (15, 0x2E)])
def test_isa_lines_reach_both_controllers(bench, irq, register):
    bench.io_apic_write(register, 0x61)
    bench.pic.write(0x21, 1, 0)
    bench.pic.write(0xA1, 1, 0)
    bench.logic.line(irq).set(True)
    assert bench.take() == [0x40 + irq, 0x61]
    bench.logic.line(irq).set(False)
    assert bench.io_apic.lines == 0


@pytest.mark.parametrize("irq", [-1, 2, 16])
def test_no_line_for_the_cascade(bench, irq):
    sentence = f"a device interrupt line must be 0, 1 or 3 to 15, but {irq} was asked for"
    with pytest.raises(UsageError, match=re.escape(sentence)):
        bench.logic.line(irq)


@pytest.mark.parametrize("lone", ["lapic", "io_apic"])
def test_one_apic_needs_the_other(bench, lone):
    with pytest.raises(
        UsageError, match=r"^a board must have both a local and an I/O APIC or none, but one was given$"
    ):
        InterruptLogic(bench.pic, **{lone: getattr(bench, lone)})


def test_on_change_tells_of_either_source(bench):
    told = []
    bench.logic.on_change = lambda: told.append(bench.logic.pending())
    bench.play("L4+ P21=ef")
    assert (told, bench.take()) == ([True], [0x44])
    bench.play("I16=61 L3+")
    assert (told, bench.take()) == ([True, True], [0x61])
    bench.play("L3- L3+")
    assert told == [True, True]  # the same vector is still in service
    bench.play("W0b0=0")
    assert told == [True, True, True]


def test_level_that_stays_asks_after_each_end(bench):
    bench.play("I18=8071 L4+")
    for _ in range(3):
        assert bench.take() == [0x71]
        assert bench.take() == []
        bench.play("W0b0=0")
    bench.play("L4-")
    assert bench.take() == [0x71]  # the last message was sent before the line fell
    bench.play("W0b0=0")
    assert bench.take() == []
    assert bench.logic.stats()["ioapic"] == {"input4": 4}


def test_level_that_waits_is_served_when_the_entry_becomes_a_level(bench):
    bench.play("L4+ I18=8071")
    assert bench.take() == [0x71]


def test_extint_entry_runs_an_acknowledge_cycle_of_the_pair(bench):
    bench.play("W350=10000 P21=ef I18=700 L4+")
    assert bench.take() == [0x44]


def test_disabled_apic_leaves_the_processor_to_the_pair(bench):
    bench.play("W350=10000 P21=ef I18=71 L4+")
    assert bench.take() == [0x71]
    bench.lapic.set_apic_base(0)
    assert bench.take() == [0x44]
    bench.play("L4- L4+")
    assert bench.take() == []


def test_timer_line_of_a_kernel_that_tries_lint0_as_a_vector(bench):
    bench.play("P21=fe W350=31")
    bench.logic.line(0).set(True)
    assert bench.take() == [0x31]
    assert bench.pic.pending()  # nobody has acknowledged at the pair


def test_reset_masks_everything_and_keeps_the_wires(bench):
    bench.play("I18=8071 L4+ W300=40061")
    bench.pic.reset()
    bench.logic.reset()
    assert not bench.logic.pending()
    assert bench.io_apic_read(0x18) == 0x10000
    bench.lapic.virtual_wire()
    bench.play("I18=8072")
    assert bench.take() == [0x72]


def test_state_of_another_board_is_refused(bench):
    sentence = "the saved state must be of the APICs lapic, ioapic, but it is of none"
    with pytest.raises(UsageError, match=f"^{sentence}$"):
        bench.logic.load({})
    with pytest.raises(
        UsageError, match=r"^the saved state must be of the APICs none, but it is of lapic, ioapic$"
    ):
        InterruptLogic(PicPair()).load(bench.logic.save())


def test_repr_names_the_parts(bench):
    assert repr(bench.logic) == (
        "<InterruptLogic <PicPair pic ports 20-21,a0-a1,4d0-4d1>, <Lapic 0x0 on, priority 0x0>, "
        "<IoApic 0x0 with 0 of 24 inputs open>>"
    )


# --- any sequence ---

VECTORS = st.sampled_from([0, 0x0F, 0x31, 0x41, 0x61, 0x62, 0x71, 0xFF])
ENTRIES = st.builds(
    lambda vector, mode, flags: f"{vector | mode << 8 | flags:x}",
    VECTORS,
    st.sampled_from([0, 0, 0, 1, 2, 4, 7]),
    st.sampled_from([0, 0x800, 0x8000, 0x8800, 0x10000, 0x18000]),
)
STEPS = st.one_of(
    st.sampled_from(["T", "W0b0=0", "L4+", "L4-", "L3+", "L3-", "P21=0", "P21=ff", "P20=20", "W080=0"]),
    st.sampled_from(["W080=50", "W0d0=1000000", "W0e0=0", "W0f0=1ff", "W0f0=ff", "W350=8700", "W350=62"]),
    st.sampled_from(["J18", "J16", "R0a0", "R170", "R270", "I19=1000000", "I19=0", "I17=ff000000"]),
    st.builds("I18={}".format, ENTRIES),
    st.builds("I16={}".format, ENTRIES),
    st.builds("W300=40{:03x}".format, VECTORS),
    st.builds("E{:x}".format, VECTORS),
)
SCRIPTS = st.lists(STEPS, max_size=40).map(" ".join)


@settings(max_examples=200, deadline=None)
@given(SCRIPTS, SCRIPTS)
def test_saved_controllers_continue_identically(before, after):
    original, copy = Bench(), Bench()
    original.play(before)
    copy.play(after)
    state = json.loads(json.dumps([original.pic.save(), original.logic.save()]))
    copy.pic.load(state[0])
    copy.logic.load(state[1])
    original.log.clear()
    copy.log.clear()
    assert copy.play(after) == original.play(after)
    assert [copy.pic.save(), copy.logic.save()] == [original.pic.save(), original.logic.save()]


@settings(max_examples=200, deadline=None)
@given(SCRIPTS)
def test_intr_of_the_pair_is_the_level_of_lint0(script):
    bench = Bench()
    bench.play(script)
    assert bench.lapic.lint0 == bench.pic.pending()
