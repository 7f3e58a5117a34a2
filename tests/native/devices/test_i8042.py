# SPDX-License-Identifier: GPL-2.0-only
"""The keyboard controller and keyboard as start-up code and drivers use them; bytes are those of QEMU."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.native.devices.kbc import Controller
from vmi.errors import UsageError
from vmi.native.clock import Clock
from vmi.native.devices.ps2_keyboard import KEY_NS, TYPED_LIMIT, translate
from vmi.native.keyboard import KEYS, KeyEvent, keys, text


@pytest.fixture
def kbc(clock):
    return Controller(clock)


def test_state_firmware_leaves(kbc):
    assert kbc.status == 0x1C
    kbc.command(0x20)
    assert kbc.drain() == [0x61]


@pytest.mark.parametrize(("command", "answer"), [(0xAA, 0x55), (0xAB, 0x00), (0xA9, 0x00), (0xC0, 0x80)])
def test_one_byte_answers(kbc, command, answer):
    kbc.command(command)
    assert kbc.irq1.level
    assert kbc.drain() == [answer]
    assert not kbc.irq1.level


def test_commands_that_do_not_exist_answer_nothing(kbc):
    for value in set(range(0xF0)) - {0x20, 0xA9, 0xAA, 0xAB, 0xC0, 0xD0}:
        kbc.command(value)
        assert kbc.drain() == []


def test_config_byte_is_written_and_read(kbc):
    kbc.command(0x60, 0x34)
    kbc.command(0xA8)
    kbc.command(0xAE)
    kbc.command(0x20)
    assert kbc.drain() == [0x04]
    kbc.command(0xA7)
    kbc.command(0xAD)
    kbc.command(0x20)
    assert kbc.drain() == [0x34]


def test_a_command_without_operand_leaves_a_waiting_one_alone(kbc):
    kbc.command(0x60)
    kbc.command(0x00)
    kbc.data(0x65)
    kbc.command(0x20)
    assert kbc.drain() == [0x65]


def test_a_newer_answer_replaces_an_unread_one(kbc):
    kbc.command(0xAA)
    kbc.command(0x20)
    assert kbc.drain() == [0x61]


def test_a20_by_output_port_and_by_command(kbc):
    kbc.command(0xD0)
    assert kbc.drain() == [0xCF]
    kbc.command(0xD1, 0xCD)
    assert not kbc.a20.enabled
    kbc.command(0xD0)
    assert kbc.drain() == [0xCD]
    kbc.command(0xDF)
    assert kbc.a20.enabled
    kbc.command(0xDD)
    assert not kbc.a20.enabled


def test_output_port_shows_what_is_offered(kbc):
    kbc.data(0xEE)
    kbc.command(0xD0)
    assert kbc.drain() == [0xEE, 0xDF]
    kbc.command(0xD4, 0xE6)
    kbc.command(0xD0)
    assert kbc.drain() == [0xFA, 0xFF]


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
        ([0xFF], "fa aa"),
        ([0xED, 0x07], "fa fa"),
        ([0xED, 0xF4], "fa fa"),
        ([0xF3, 0x20], "fa fa"),
        ([0xF0, 0x02], "fa fa"),
        ([0xF0, 0x00], "fa fa 41"),
        ([0xF0, 0x01, 0xF0, 0x00], "fa fa fa fa 43"),
        ([0xF0, 0x03, 0xF0, 0x00], "fa fa fa fa 3f"),
        ([0xF0, 0x04, 0xEE], "fa fe ee"),
        ([0xFC, 0x1C], "fa fa"),
        ([0xF2], "fa ab 41"),
        ([0xF4], "fa"),
        ([0xF5], "fa"),
        ([0xF6], "fa"),
        ([0xFA], "fa"),
        ([0x00], "fa"),
        ([0xEE], "ee"),
        ([0x01], "fe"),
        ([0xF7], "fe"),
        ([0xFB], "fe"),
        ([0xFE], "fe"),
    ],
)
def test_keyboard_commands(kbc, sent, answer):
    got = []
    for value in sent:
        kbc.data(value)
        got += kbc.drain()
    assert bytes(got).hex(" ") == answer


def test_a_new_command_makes_the_last_answer_obsolete(kbc):
    kbc.data(0xF2)
    kbc.data(0xEE)
    assert kbc.drain() == [0xEE]


def test_nothing_is_translated_when_translation_is_off(kbc):
    kbc.command(0x60, 0x25)
    kbc.data(0xF2)
    assert kbc.drain() == [0xFA, 0xAB, 0x83]
    kbc.data(0xF0)
    kbc.drain()
    kbc.data(0)
    assert kbc.drain() == [0xFA, 0x02]
    assert kbc.typed(keys("a<Up>")) == "1c f0 1c e0 75 e0 f0 75"


# --- keys ---


@pytest.mark.parametrize(
    ("key", "translated", "set_2", "set_3"),
    [
        ("a", "1e 9e", "1c f0 1c", "1c f0 1c"),
        ("Enter", "1c 9c", "5a f0 5a", "5a f0 5a"),
        ("F7", "41 c1", "83 f0 83", "37 f0 37"),
        ("Ctrl", "1d 9d", "14 f0 14", "11 f0 11"),
        ("Up", "e0 48 e0 c8", "e0 75 e0 f0 75", "63 f0 63"),
        ("KeypadEnter", "e0 1c e0 9c", "e0 5a e0 f0 5a", "79 f0 79"),
        ("Print", "e0 2a e0 37 e0 b7 e0 aa", "e0 12 e0 7c e0 f0 7c e0 f0 12", "57 f0 57"),
        ("Pause", "e1 1d 45 e1 9d c5", "e1 14 77 e1 f0 14 f0 77", "62 f0 62"),
        ("Ctrl-Pause", "1d e0 46 e0 c6 9d", "14 e0 7e e0 f0 7e f0 14", "11 62 f0 62 f0 11"),
        ("Shift-Print", "2a e0 37 e0 b7 aa", "12 e0 7c e0 f0 7c f0 12", "12 57 f0 57 f0 12"),
        ("Alt-Print", "38 54 d4 b8", "11 84 f0 84 f0 11", "19 57 f0 57 f0 19"),
    ],
)
def test_a_key_in_every_set(kbc, key, translated, set_2, set_3):
    events = keys(key if len(key) == 1 else f"<{key}>")
    assert kbc.typed(events) == translated
    kbc.command(0x60, 0x25)
    assert kbc.typed(events) == set_2
    kbc.data(0xF0)
    kbc.data(1)
    assert kbc.drain() == [0xFA]
    assert kbc.typed(events) == translated
    kbc.data(0xF0)
    kbc.data(3)
    assert kbc.drain() == [0xFA]
    assert kbc.typed(events) == set_3


def test_a_guest_that_leaves_keys_in_the_buffer_gets_them_all(kbc):
    written = "Hello, world!\n" * 100
    kbc.chip.type(text(written))
    one_by_one = []
    for _ in range(40 * len(written)):
        kbc.clock.advance_to(kbc.clock.now() + 300_000)
        if kbc.status & 1:
            one_by_one.append(kbc.chip.read(0x60, 1))
    assert kbc.chip.keyboard.typing == 0
    codes = [KeyEvent(one.key, one.down) for one in text(written)]
    assert bytes(one_by_one) == b"".join(translate(kbc.chip.keyboard.codes(one))[0] for one in codes)
    assert kbc.chip.stats()["dropped"] == 0


def test_keys_come_a_millisecond_apart_each_with_its_edge(kbc):
    kbc.chip.type(text("ab"))
    seen = []
    for _ in range(60):
        kbc.clock.advance_to(kbc.clock.now() + KEY_NS // 10)
        if kbc.irq1.level:
            seen.append((kbc.clock.now(), kbc.chip.read(0x60, 1)))
    # the typist is ready for the first at once, and for each next a millisecond after the one before
    first = KEY_NS // 10
    assert seen == [
        (first, 0x1E),
        (first + 900_000, 0x9E),
        (first + 1_900_000, 0x30),
        (first + 2_900_000, 0xB0),
    ]
    assert kbc.irq1.rises == 4
    assert kbc.clock.next_deadline() is None


def test_typed_keys_wait_while_the_guest_wants_none(kbc):
    kbc.data(0xF5)
    assert kbc.drain() == [0xFA]
    assert kbc.typed(text("a")) == ""
    assert kbc.clock.next_deadline() is None
    kbc.data(0xF4)
    assert kbc.watch(5) == "fa 1e 9e"


def test_typed_keys_wait_while_the_port_is_disabled(kbc):
    kbc.command(0xAD)
    assert kbc.typed(text("a")) == ""
    kbc.command(0xAE)
    assert kbc.watch(5) == "1e 9e"


def test_typing_goes_on_after_a_reset(kbc):
    kbc.chip.type(text("ab"))
    kbc.clock.advance_to(KEY_NS)
    kbc.chip.reset()
    assert kbc.watch(10) == "9e 30 b0"  # the key in the buffer is lost, as in a real one


def test_more_than_the_keyboard_keeps_is_refused(kbc):
    kbc.chip.type([KeyEvent(KEYS["a"], True)] * TYPED_LIMIT)
    with pytest.raises(UsageError) as caught:
        kbc.chip.type(text("b"))
    assert str(caught.value) == (
        "the keyboard keeps 131072 key events for the guest, but 131072 wait already and 2 are typed now"
    )


def test_pressed_bytes_come_at_once_and_a_full_buffer_loses_them(kbc):
    kbc.chip.press(b"\x1c\xf0\x1c" * 20)
    assert (kbc.irq1.level, kbc.irq1.rises) == (True, 1)
    assert kbc.drain() == [0x1E, 0x9E] * 8
    assert kbc.irq1.rises == 16
    assert kbc.chip.read(0x60, 1) == 0x9E  # the buffer keeps its byte
    assert kbc.chip.stats() == {"keys": 60, "commands": 0, "dropped": 24}


def test_pressed_bytes_are_lost_without_scanning(kbc):
    kbc.data(0xF5)
    kbc.chip.press(b"\x1c")
    kbc.data(0xF4)
    kbc.chip.press(b"\x32")
    assert kbc.drain() == [0xFA, 0x30]


def test_no_interrupt_when_it_is_off(kbc):
    kbc.command(0x60, 0x44)
    kbc.chip.press(b"\x1c")
    assert not kbc.irq1.level
    assert kbc.status & 0x21 == 0x01
    kbc.command(0x60, 0x45)
    assert kbc.irq1.level


def test_answers_go_before_keys_and_the_controller_s_before_both(kbc):
    kbc.command(0xAD)
    kbc.chip.press(b"\x1c")
    assert kbc.drain() == []
    kbc.data(0xEE)
    kbc.command(0xC0)
    assert kbc.drain() == [0xEE, 0x80, 0x1E]


def test_reset_empties_everything(kbc):
    kbc.chip.press(b"\x1c\x1b")
    kbc.command(0xD4, 0xE9)
    kbc.command(0x60)
    kbc.chip.reset()
    assert (kbc.irq1.level, kbc.irq12.level) == (False, False)
    assert kbc.drain() == []
    kbc.data(0xEE)
    assert kbc.drain() == [0xEE]
    assert kbc.typed(text("a")) == "1e 9e"


def test_saved_in_mid_text(kbc, clock):
    kbc.command(0x60, 0x47)
    kbc.chip.type(text("A quick brown fox"))
    begun = kbc.watch(7)
    state, reached = kbc.chip.save(), clock.save()
    rest = kbc.watch(100)
    assert len(begun) > 6
    clock.load(reached)
    kbc.chip.load(state)
    assert kbc.watch(100) == rest


# --- any sequence ---

STEPS = st.one_of(
    st.tuples(st.just("command"), st.integers(0, 255)),
    st.tuples(st.just("command"), st.sampled_from([0x20, 0x60, 0xA8, 0xAD, 0xAE, 0xD2, 0xD3, 0xD4])),
    st.tuples(st.just("data"), st.integers(0, 255)),
    st.tuples(st.just("data"), st.sampled_from([0xFF, 0xF0, 0xF2, 0xF4, 0xF5, 0xEE, 0xE9, 1, 3, 0x47, 0x25])),
    st.tuples(st.just("read"), st.sampled_from([0x60, 0x60, 0x64])),
    st.tuples(st.just("type"), st.sampled_from(["a", "A", "<Up>", "<Pause>", "<Alt-Print>"])),
    st.tuples(st.just("press"), st.binary(max_size=4)),
    st.tuples(st.just("wait"), st.integers(0, 5 * KEY_NS)),
    st.tuples(st.just("reset"), st.none()),
)


def play(kbc, steps):
    seen = []
    for name, value in steps:
        if name == "command":
            kbc.chip.write(0x64, 1, value)
        elif name == "data":
            kbc.chip.write(0x60, 1, value)
        elif name == "read":
            seen.append(kbc.chip.read(value, 1))
            assert 0 <= seen[-1] <= 255
        elif name == "type":
            kbc.chip.type(keys(value))
        elif name == "press":
            kbc.chip.press(value)
        elif name == "wait":
            kbc.clock.advance_to(kbc.clock.now() + value)
        else:
            kbc.chip.reset()
        seen.append((kbc.irq1.level, kbc.irq12.level, kbc.a20.enabled, kbc.clock.next_deadline()))
        assert not (kbc.irq1.level and kbc.irq12.level)
    return seen


@settings(max_examples=200, deadline=None)
@given(st.lists(STEPS, max_size=40), st.lists(STEPS, max_size=40))
def test_saved_in_any_state_goes_on_identically(before, after):
    original, copy = Controller(Clock()), Controller(Clock())
    play(original, before)
    state = json.loads(json.dumps([original.clock.save(), original.chip.save()]))
    play(copy, after)  # whatever it was doing is replaced
    copy.clock.load(state[0])
    copy.chip.load(state[1])
    assert [copy.clock.save(), copy.chip.save()] == state
    copy.a20.enabled = original.a20.enabled
    copy.irq1.level, copy.irq12.level = original.irq1.level, original.irq12.level
    assert play(copy, after) == play(original, after)
    assert [copy.clock.save(), copy.chip.save()] == [original.clock.save(), original.chip.save()]


@settings(max_examples=100, deadline=None)
@given(st.lists(STEPS, max_size=60), st.text(alphabet="abcXYZ123\n", max_size=20))
def test_whatever_happened_a_reset_guest_gets_the_text(steps, typed):
    kbc = Controller(Clock())
    play(kbc, steps)
    kbc.watch(20 * (1 + kbc.chip.keyboard.typing))
    kbc.chip.reset()
    kbc.watch(4 * kbc.chip.keyboard.typing)
    wanted = b"".join(translate(kbc.chip.keyboard.codes(one))[0] for one in text(typed))
    assert kbc.typed(text(typed)) == wanted.hex(" ")
