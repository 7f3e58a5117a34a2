# SPDX-License-Identifier: GPL-2.0-only
"""The console: bytes out, input in."""

from __future__ import annotations

from vmi.native.console import Console


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


def test_input_waits_for_a_device():
    console, got = Console(), []
    console.feed(b"ro")
    console.feed(b"ot")
    console.connect(got.append)
    console.feed(b"\n")
    assert got == [b"root", b"\n"]
