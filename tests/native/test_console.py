# SPDX-License-Identifier: GPL-2.0-only
"""The console: bytes out, input in, and scripts that talk to a guest."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.native.guest import EOI, PIC, Guest
from vmi.errors import ExitCode, UsageError
from vmi.native.console import LONGEST_MATCH, Console, ConsoleEnded, ConsoleTimeout
from vmi.native.machine import Outcome


def test_collects_and_tells_listeners():
    console, heard = Console(), []
    console.transmit(ord("a"))
    console.add_listener(heard.append)
    for byte in b"b\r\n\xff":
        console.transmit(byte)
    assert console.data == b"ab\r\n\xff"
    assert console.text() == "ab\n\\xff"
    assert bytes(heard) == b"b\r\n\xff"
    assert len(console) == 5
    assert console.find(b"\r\n") == 2
    assert console.find(b"a", 1) == -1


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (b"a\r\nb\r\n\r\nc", "a\nb\n\nc"),
        (b"a\n\rb\n\r\n\rc", "a\nb\n\nc"),
        (b"a\nb\n\nc", "a\nb\n\nc"),
        (b"a\rb\r\rc", "a\nb\n\nc"),
        (b"a\n\rb\r\nc\nd\re", "a\nb\nc\nd\ne"),
    ],
)
def test_every_kind_of_line_end_is_one(shown, text):
    assert told(shown).text() == text


def test_last_line():
    assert told(b"one\r\ntwo\xff\r\n  \r\n").last_line() == "two\\xff"
    assert Console().last_line() == ""


def test_input_waits_for_a_device():
    console, got = Console(), []
    console.send(b"ro")
    console.feed(b"ot")
    assert console.queued == 4
    console.connect(got.append, lambda: 7)
    console.send(b"\n")
    assert got == [b"root", b"\n"]
    assert console.queued == 7


# --- expect, with a machine that says what it is told to ---


@dataclass
class End:
    outcome: str
    reason: str = "the guest stopped"


class Talker:
    """A machine that transmits its text byte by byte while it runs, 1 ms for each."""

    def __init__(self, says, end="halted"):
        self.console = Console()
        self.left = list(says)
        self.end = end
        self.stopped = False
        self.console.connect_runner(self.run, self.stop)

    def stop(self):
        self.stopped = True

    def run(self, timeout_ns):
        self.stopped = False
        for _ in range(timeout_ns // 10**6):
            if not self.left:
                return End(self.end)
            self.console.transmit(self.left.pop(0))
            if self.stopped:
                return End("console")
        return End("timeout")


def told(shown):
    console = Console()
    for byte in shown:
        console.transmit(byte)
    return console


def test_expect_gives_what_came_up_to_the_match_and_goes_on_behind_it():
    talker = Talker(b"boot ok\r\nlogin: password: # ")
    expect = talker.console.expect
    assert expect(b"login: ") == b"boot ok\r\nlogin: "
    assert bytes(talker.left) == b"password: # "
    assert expect(b"pass") == b"pass"
    assert expect(b"# ") == b"word: # "


def test_expect_sees_what_was_shown_before_it_was_asked():
    console = told(b"one two two")
    assert console.expect(b"two") == b"one two"
    assert console.expect(b"two") == b" two"


def test_expect_does_not_match_across_the_last_match():
    talker = Talker(b"xaab")
    assert talker.console.expect(b"xa") == b"xa"
    with pytest.raises(ConsoleEnded):
        talker.console.expect(b"aa")


def test_expect_a_regular_expression():
    talker = Talker(b"pid 417 ready\r\n$ ")
    match = talker.console.expect(re.compile(rb"pid (\d+)\s"))
    assert (match[1], match.string) == (b"417", b"pid 417 ")
    match = talker.console.expect(re.compile(rb"^\$ |never", re.MULTILINE))
    assert match.string[: match.start()] == b"ready\r\n"
    assert talker.left == []


def test_expect_takes_the_shortest_time():
    talker = Talker(b"417 ")
    assert talker.console.expect(re.compile(rb"\d+"))[0] == b"4"
    assert bytes(talker.left) == b"17 "


def test_a_match_in_old_output_may_be_anywhere_and_a_new_one_has_a_longest_length():
    filler = b"." * LONGEST_MATCH
    pattern = re.compile(rb"<.*>", re.DOTALL)
    assert told(b"<" + filler + b">").expect(pattern)[0] == b"<" + filler + b">"
    with pytest.raises(ConsoleEnded):
        Talker(b"<" + filler + b">").console.expect(pattern, 60)
    assert Talker(b"<" + filler[2:] + b">").console.expect(pattern, 60).end() == LONGEST_MATCH


@given(
    st.lists(st.sampled_from([b"a", b"b", b"ab", b"\n"]), max_size=12), st.sampled_from([b"ab", b"b", b"aba"])
)
def test_bytes_and_the_same_regular_expression_agree(pieces, pattern):
    text = b"".join(pieces)
    plain, regular = Talker(text), Talker(text)
    for _ in range(text.count(pattern)):
        assert plain.console.expect(pattern) == regular.console.expect(re.compile(pattern)).string
        assert plain.left == regular.left
    for talker in (plain, regular):
        with pytest.raises(ConsoleEnded):
            talker.console.expect(pattern)


def test_timeout_is_one_sentence():
    talker = Talker(b"starting\r\nstill busy\r\n" + b"." * 100)
    with pytest.raises(ConsoleTimeout) as caught:
        talker.console.expect(b"login: ", 0.022)
    assert str(caught.value) == (
        "the console did not show b'login: ' within 0.022 s of guest time; its last line is 'still busy'"
    )
    assert caught.value.exit_code is ExitCode.TIMEOUT
    with pytest.raises(ConsoleTimeout) as caught:
        Talker(b"x").console.expect(re.compile(b"a|b"), 0)
    assert str(caught.value) == (
        "the console did not show b'a|b' within 0 s of guest time; it showed nothing"
    )


def test_the_guest_s_end_is_one_sentence():
    with pytest.raises(ConsoleEnded) as caught:
        Talker(b"panic: " + b"x" * 200).console.expect(b"login: ")
    assert str(caught.value) == (
        f"the console did not show b'login: ' before the guest stopped; its last line is '{'x' * 100}'"
    )
    assert caught.value.exit_code is ExitCode.GUEST_CRASH


def test_expect_after_a_miss_finds_what_was_shown_meanwhile():
    talker = Talker(b"one two three")
    with pytest.raises(ConsoleTimeout):
        talker.console.expect(b"three", 0.008)
    assert talker.console.expect(b"two") == b"one two"
    assert talker.console.expect(b"three") == b" three"


@pytest.mark.parametrize("pattern", [b"", re.compile(b"")])
def test_nothing_can_t_be_expected(pattern):
    with pytest.raises(UsageError) as caught:
        Talker(b"x").console.expect(pattern)
    assert str(caught.value) == "the pattern to wait for must not be empty"


def test_expect_needs_a_machine():
    with pytest.raises(UsageError) as caught:
        Console().expect(b"x")
    assert str(caught.value) == ("the console belongs to no machine that could be run to wait for something")


def test_expect_inside_expect():
    talker = Talker(b"xyz")
    talker.console.add_listener(lambda byte: talker.console.expect(b"z"))
    with pytest.raises(UsageError) as caught:
        talker.console.expect(b"y")
    assert str(caught.value) == "a console can't wait for two patterns at once"
    talker.console._listeners.clear()
    assert talker.console.expect(b"y") == b"xy"


# --- with a guest ---

# Echoes what it receives by interrupt and ends itself at a dot.
ECHO = f"""
    {PIC} | mov al, 0xef | out 0x21, al
    mov dx, 0x3fb | mov al, 0x80 | out dx, al
    mov dx, 0x3f8 | mov al, 1 | out dx, al
    mov dx, 0x3fb | mov al, 3 | out dx, al
    mov dx, 0x3fa | mov al, FIFO | out dx, al
    mov dx, 0x3f9 | mov al, 1 | out dx, al
    mov dx, 0x3f8 | mov al, 0x3e | out dx, al
    sti
idle: hlt | jmp idle
h:  mov dx, 0x3fd | in al, dx | test al, 1 | je done
    mov dx, 0x3f8 | in al, dx | out dx, al
    cmp al, 0x2e | jne h
    out 0xf4, al
done: {EOI} | iretd
"""


def echo(fifo):
    guest = Guest(ECHO.replace("FIFO", str(fifo)), {0x24: "h"})
    machine = guest.machine
    machine.console.connect_runner(machine.run, lambda: machine.finish(Outcome.CONSOLE, "it was shown"))
    return machine


@pytest.mark.parametrize("fifo", [0x00, 0x07, 0xC7], ids=["no FIFO", "trigger 1", "trigger 14"])
def test_long_input_arrives_whole(fifo):
    machine = echo(fifo)
    console = machine.console
    console.expect(b">")
    script = b"".join(b"line %d of a script\r" % number for number in range(500))
    assert len(script) > 10_000
    console.send(script + b"!")
    assert console.expect(b"!") == script + b"!"
    console.send(b".")
    with pytest.raises(ConsoleEnded) as caught:
        console.expect(b"more")
    assert str(caught.value) == (
        "the console did not show b'more' before the guest ended itself with debug-exit value 0x2e; "
        "its last line is '!.'"
    )


def test_a_dialogue_is_the_same_every_time():
    def talk():
        machine = echo(0xC7)
        said = [machine.console.expect(b">")]
        for word in (b"alpha\r", b"beta\r"):
            machine.console.send(word)
            said.append(machine.console.expect(word[2:4]))
        with pytest.raises(ConsoleTimeout):
            machine.console.expect(b"never", 0.5)
        return said, machine.clock.now(), machine.instructions

    first = talk()
    assert first[0] == [b">", b"alph", b"a\rbeta"]
    assert talk() == first


def test_a_halted_guest_takes_what_is_typed_while_it_idles():
    machine, words = echo(0x07), [b"a", b"bc", b"."]

    def idle(ns):
        if ns is None and words:
            machine.console.send(words.pop(0))
            return 0
        return ns

    end = machine.run(None, None, idle)
    assert (end.outcome, end.value) == (Outcome.DEBUG_EXIT, ord("."))
    assert machine.console.data == b">abc."
    assert machine.console.queued == 0
