# SPDX-License-Identifier: GPL-2.0-only
"""Words of the command line: what they mean and which are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmi.cli import values
from vmi.errors import UsageError
from vmi.native import keyboard


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64", 64 << 20),
        ("64M", 64 << 20),
        ("1m", 1 << 20),
        ("1024K", 1 << 20),
        ("65540k", (64 << 20) + 4096),
        ("3G", 3 << 30),
        ("3584", 3584 << 20),
        (" 16M ", 16 << 20),
    ],
)
def test_memory_size(text: str, size: int) -> None:
    assert values.memory_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "M", "-1", "1.5M", "64MB", "4G", "3585", "1023K", "1025K", "٣"])
def test_refused_memory_size(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        values.memory_size(text)
    assert str(caught.value) == (
        f"memory size {text!r} is not understood: expected a number of MiB or one with K, M or G, "
        "from 1M to 3584M, in whole pages of 4K"
    )


@given(st.text())
def test_any_memory_size_is_a_size_or_a_sentence(text: str) -> None:
    try:
        size = values.memory_size(text)
    except UsageError:
        return
    assert 1 << 20 <= size <= 3584 << 20
    assert size % 4096 == 0


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("60s", 60 * 10**9),
        ("60", 60 * 10**9),
        ("0.1s", 10**8),
        ("1.5m", 90 * 10**9),
        ("2h", 7200 * 10**9),
        ("200ms", 2 * 10**8),
        ("0.001us", 1),
        ("7NS", 7),
        ("none", None),
    ],
)
def test_duration(text: str, nanoseconds: int | None) -> None:
    assert values.duration(text) == nanoseconds


@pytest.mark.parametrize("text", ["", "0", "0.1ns", "-1s", "1 s", "1e3", ".5s", "1.s", "forever", "٣s"])
def test_refused_duration(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        values.duration(text)
    assert str(caught.value) == (
        f"time {text!r} is not understood: expected 'none', or a number above 0 in ns, us, ms, s, m or h"
    )


@given(st.integers(1, 10**9))
def test_duration_is_exact(nanoseconds: int) -> None:
    assert values.duration(f"{nanoseconds}ns") == nanoseconds
    assert values.duration(f"0.{nanoseconds:09}s" if nanoseconds < 10**9 else "1") == nanoseconds


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("ls\\n", [(0, "ls\n")]),
        ("<2s>", [(0, ""), (2 * 10**9, "")]),
        ("a<1.5ms>b<3us>\\n", [(0, "a"), (1_500_000, "b"), (3000, "\n")]),
        ("<2>1 < 2s", [(0, "<2>1 < 2s")]),
    ],
)
def test_typed(text: str, typed: list[tuple[int, str]]) -> None:
    assert values.typed(text) == [(pause, keyboard.text(keys)) for pause, keys in typed]


def test_typed_keys_by_name() -> None:
    assert values.typed("<1s><Esc>") == [(0, []), (10**9, keyboard.text("\x1b"))]


@pytest.mark.parametrize("text", ["<0s>", "<1.2.3s>", "<.5s>"])
def test_refused_pause(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        values.typed(text)
    assert str(caught.value) == (
        f"time {text[1:-1]!r} is not understood: "
        "expected 'none', or a number above 0 in ns, us, ms, s, m or h"
    )


@pytest.mark.parametrize("text", ["c0100000", "0xc0100000", "0XC0100000", " C0100000"])
def test_address(text: str) -> None:
    assert values.address(text) == 0xC0100000


@pytest.mark.parametrize("text", ["", "0x", "123456789", "-1", "main", "0x0x1"])
def test_refused_address(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        values.address(text)
    assert str(caught.value) == (
        f"address {text!r} is not understood: expected up to 8 hexadecimal digits, like c0100000"
    )


@pytest.mark.parametrize(
    ("text", "serial"),
    [
        ("stdio", values.Serial(terminal=True)),
        ("none", values.Serial(terminal=False)),
        ("pty", values.Serial(terminal=False, pty=True)),
        ("file:a:b", values.Serial(terminal=False, file=Path("a:b"))),
    ],
)
def test_serial(text: str, serial: values.Serial) -> None:
    assert values.serial(text) == serial


@pytest.mark.parametrize("text", ["", "file", "file:", "stdio:x", "pty:1", "tcp:1"])
def test_refused_serial(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        values.serial(text)
    assert str(caught.value) == (
        f"serial port {text!r} is not understood: expected stdio, pty, file:PATH or none"
    )


def test_kernel_repr_is_short() -> None:
    assert repr(values.Kernel("k", b"12345")) == "Kernel(k, 5 bytes)"
