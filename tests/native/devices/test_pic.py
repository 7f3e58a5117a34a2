# SPDX-License-Identifier: GPL-2.0-only
"""The interrupt controller pair against the 8259A data sheet."""

from __future__ import annotations

import re

import pytest

from vmi.errors import UsageError
from vmi.native.devices.pic import PicPair

EOI, ROTATE_EOI, SPECIFIC_EOI = 0x20, 0xA0, 0x60


def initialised(master_icw4=0x01, slave_icw4=0x01, icw1=0x11):
    pic = PicPair()
    for port, base, wiring, icw4 in ((0x20, 0x20, 0x04, master_icw4), (0xA0, 0x28, 0x02, slave_icw4)):
        pic.write(port, 1, icw1)
        for value in (base, wiring, icw4):
            pic.write(port + 1, 1, value)
    return pic


def raise_lines(pic, *numbers):
    for n in numbers:
        pic.line(n).set(True)


def isr(pic, port=0x20):
    pic.write(port, 1, 0x0B)
    return pic.read(port, 1)


def irr(pic, port=0x20):
    pic.write(port, 1, 0x0A)
    return pic.read(port, 1)


def test_edge_gives_one_interrupt_and_needs_another_edge():
    pic = initialised()
    raise_lines(pic, 3)
    assert pic.pending()
    assert irr(pic) == 0x08
    assert pic.acknowledge() == 0x23
    assert (irr(pic), isr(pic)) == (0, 0x08)
    pic.write(0x20, 1, EOI)
    assert isr(pic) == 0
    raise_lines(pic, 3)
    assert not pic.pending()
    pic.line(3).set(False)
    raise_lines(pic, 3)
    assert pic.pending()


def test_request_withdrawn_before_acknowledge_is_spurious():
    pic = initialised()
    raise_lines(pic, 3)
    pic.line(3).set(False)
    assert not pic.pending()
    assert pic.acknowledge() == 0x27
    assert isr(pic) == 0
    assert pic.stats() == {"spurious": 1}


def test_slave_request_withdrawn_between_the_chips_is_its_input_7():
    pic = initialised()
    raise_lines(pic, 10)
    pic.slave.irr = 0  # gone after the master has passed the request on
    assert pic.acknowledge() == 0x2F
    assert isr(pic, 0xA0) == 0
    assert isr(pic) == 0x04  # the master does not know
    assert pic.stats() == {"spurious": 1}


def test_lower_priority_waits_for_eoi_and_higher_interrupts():
    pic = initialised()
    raise_lines(pic, 4)
    assert pic.acknowledge() == 0x24
    raise_lines(pic, 6)
    assert not pic.pending()
    raise_lines(pic, 1)
    assert pic.acknowledge() == 0x21
    assert isr(pic) == 0x12
    pic.write(0x20, 1, EOI)
    assert isr(pic) == 0x10
    pic.write(0x20, 1, EOI)
    assert pic.acknowledge() == 0x26


def test_slave_goes_through_the_cascade_and_both_need_eoi():
    pic = initialised()
    raise_lines(pic, 14, 8)
    assert irr(pic) == 0x04
    assert pic.acknowledge() == 0x28
    assert (isr(pic), isr(pic, 0xA0)) == (0x04, 0x01)
    pic.write(0xA0, 1, EOI)
    assert not pic.pending()  # the master still serves its input 2
    pic.write(0x20, 1, EOI)
    assert pic.acknowledge() == 0x2E
    assert pic.stats() == {"irq8": 1, "irq14": 1, "spurious": 0}


def test_mask_holds_back_and_remembers():
    pic = initialised()
    pic.write(0x21, 1, 0x08)
    assert pic.read(0x21, 1) == 0x08
    raise_lines(pic, 3)
    assert not pic.pending()
    assert irr(pic) == 0x08
    pic.write(0x21, 1, 0x00)
    assert pic.acknowledge() == 0x23


def test_masked_cascade_holds_back_the_slave():
    pic = initialised()
    pic.write(0x21, 1, 0x04)
    raise_lines(pic, 12)
    assert not pic.pending()
    pic.write(0x21, 1, 0x00)
    assert pic.acknowledge() == 0x2C


def test_specific_eoi_ends_just_that_level():
    pic = initialised()
    raise_lines(pic, 5)
    pic.acknowledge()
    raise_lines(pic, 1)
    pic.acknowledge()
    pic.write(0x20, 1, SPECIFIC_EOI | 5)
    assert isr(pic) == 0x02


def test_rotation_on_eoi_makes_the_served_level_lowest():
    pic = initialised()
    raise_lines(pic, 3)
    pic.acknowledge()
    pic.write(0x20, 1, ROTATE_EOI)
    raise_lines(pic, 1, 6)
    assert pic.acknowledge() == 0x26  # order is now 4 5 6 7 0 1 2 3


def test_specific_rotation_and_set_priority():
    pic = initialised()
    raise_lines(pic, 5)
    pic.acknowledge()
    pic.write(0x20, 1, 0xE0 | 5)  # rotate on specific EOI
    assert isr(pic) == 0
    raise_lines(pic, 0, 6)
    assert pic.acknowledge() == 0x26
    pic.write(0x20, 1, EOI)
    pic.write(0x20, 1, 0xC0 | 7)  # set priority: the default order again
    raise_lines(pic, 7)
    assert pic.acknowledge() == 0x20


def test_auto_eoi_leaves_nothing_in_service():
    pic = initialised(master_icw4=0x03)
    raise_lines(pic, 4)
    assert pic.acknowledge() == 0x24
    assert isr(pic) == 0
    raise_lines(pic, 6)
    assert pic.acknowledge() == 0x26


def test_rotation_in_auto_eoi_mode_set_and_cleared():
    pic = initialised(master_icw4=0x03)
    pic.write(0x20, 1, 0x80)
    raise_lines(pic, 1)
    pic.acknowledge()
    raise_lines(pic, 0, 3)
    assert pic.acknowledge() == 0x23
    pic.write(0x20, 1, 0x00)
    assert pic.acknowledge() == 0x20
    assert pic.master.lowest == 3


def test_next_request_of_an_auto_eoi_slave_is_not_lost():
    pic = initialised(master_icw4=0x03, slave_icw4=0x03)
    raise_lines(pic, 9, 12)
    assert [pic.acknowledge(), pic.acknowledge()] == [0x29, 0x2C]
    assert not pic.pending()


def test_special_mask_mode_lets_lower_levels_through():
    pic = initialised()
    raise_lines(pic, 2 + 1)
    pic.acknowledge()
    raise_lines(pic, 6)
    assert not pic.pending()
    pic.write(0x21, 1, 0x08)
    pic.write(0x20, 1, 0x68)  # set special mask mode
    assert pic.acknowledge() == 0x26
    pic.write(0x20, 1, EOI)
    assert isr(pic) == 0x08  # the masked level is not the one that ended
    pic.write(0x20, 1, 0x48)  # reset special mask mode
    pic.write(0x20, 1, EOI)
    assert isr(pic) == 0


def test_special_fully_nested_master_lets_the_slave_interrupt_itself():
    plain, nested = initialised(), initialised(master_icw4=0x11)
    for pic in (plain, nested):
        raise_lines(pic, 12)
        pic.acknowledge()
        raise_lines(pic, 9)
    assert not plain.pending()
    assert nested.acknowledge() == 0x29
    raise_lines(nested, 5)
    assert not nested.pending()  # but nothing below the cascade


def test_poll_acknowledges_by_reading():
    pic = initialised()
    pic.write(0x20, 1, 0x0C)
    assert pic.read(0x20, 1) == 0
    raise_lines(pic, 6)
    pic.write(0x20, 1, 0x0C)
    assert pic.read(0x20, 1) == 0x86
    assert isr(pic) == 0x40
    assert not pic.pending()


def test_poll_of_the_slave():
    pic = initialised()
    raise_lines(pic, 11)
    pic.write(0xA0, 1, 0x0C)
    assert pic.read(0xA0, 1) == 0x83
    assert not pic.pending()


def test_level_triggered_input_asks_again_after_eoi_while_high():
    pic = initialised()
    pic.write(0x4D0, 1, 0xFF)
    pic.write(0x4D1, 1, 0xFF)
    assert (pic.read(0x4D0, 1), pic.read(0x4D1, 1)) == (0xF8, 0xDE)
    raise_lines(pic, 11)
    assert pic.acknowledge() == 0x2B
    assert irr(pic, 0xA0) == 0x08
    pic.write(0xA0, 1, EOI)
    pic.write(0x20, 1, EOI)
    assert pic.acknowledge() == 0x2B
    pic.line(11).set(False)
    pic.write(0xA0, 1, EOI)
    pic.write(0x20, 1, EOI)
    assert not pic.pending()


def test_icw1_level_bit_makes_all_inputs_level_triggered():
    pic = initialised(icw1=0x19)
    raise_lines(pic, 0)
    pic.acknowledge()
    pic.write(0x20, 1, EOI)
    assert pic.pending()


def test_icw1_clears_mask_and_service_and_wants_a_new_edge():
    pic = initialised()
    raise_lines(pic, 3, 4)
    pic.acknowledge()
    pic.write(0x21, 1, 0xF0)
    pic.write(0x20, 1, 0x11)
    for value in (0x40, 0x04, 0x01):
        pic.write(0x21, 1, value)
    assert (irr(pic), isr(pic), pic.read(0x21, 1)) == (0, 0, 0)
    pic.line(4).set(False)
    raise_lines(pic, 4)
    assert pic.acknowledge() == 0x44


def test_initialisation_without_icw4_and_without_cascade():
    pic = PicPair()
    pic.write(0x20, 1, 0x12)  # single, no ICW4
    pic.write(0x21, 1, 0x35)
    pic.write(0x21, 1, 0xAA)  # already the mask
    assert (pic.master.vector_base, pic.master.imr) == (0x30, 0xAA)


def test_on_change_tells_each_change_of_intr():
    seen = []
    pic = initialised()
    pic.on_change = lambda: seen.append(pic.pending())
    raise_lines(pic, 5, 6)
    pic.acknowledge()
    pic.write(0x20, 1, EOI)
    pic.acknowledge()
    assert seen == [True, False, True, False]


@pytest.mark.parametrize("n", [-1, 2, 16])
def test_no_device_line_for_the_cascade(n):
    sentence = f"a device interrupt line must be 0, 1 or 3 to 15, but {n} was asked for"
    with pytest.raises(UsageError, match=re.escape(sentence)):
        PicPair().line(n)


def test_reset_forgets_everything_but_the_wires():
    pic = initialised()
    pic.write(0x4D0, 1, 0xF8)
    raise_lines(pic, 5)
    pic.reset()
    assert not pic.pending()
    assert pic.read(0x4D0, 1) == 0
    assert pic.master.lines == 0x20
