# SPDX-License-Identifier: GPL-2.0-only
"""Small devices of the board: POST codes, debug console, the A20 gate's fast path, reset control."""

from __future__ import annotations

from collections.abc import Callable

from vmi.native.bus import Device, State


class A20Gate:
    """Address line 20: whether it passes, and who wants to know. Passes after start-up.

    Port 92h and the keyboard controller both drive it; the last one to write wins.
    """

    def __init__(self, on_change: Callable[[bool], None] | None = None) -> None:
        self.enabled = True
        self.on_change = on_change

    def set(self, enabled: bool) -> None:
        """Open or close the gate; ``on_change`` hears of it if that is news."""
        if enabled != self.enabled:
            self.enabled = enabled
            if self.on_change is not None:
                self.on_change(enabled)


class PostPort(Device):
    """Port 80h: keeps the last diagnostic code for the reports. Guests use writes to it as a delay."""

    name = "post"
    ports = (range(0x80, 0x81),)

    def __init__(self) -> None:
        self.code = 0
        self._writes = 0

    def read(self, port: int, size: int) -> int:
        """Write-only: all ones."""
        return 0xFF

    def write(self, port: int, size: int, value: int) -> None:
        """Keep the code."""
        self.code = value
        self._writes += 1

    def reset(self) -> None:
        """Forget the code."""
        self.code = 0

    def save(self) -> State:
        """Give the code."""
        return {"code": self.code}

    def load(self, state: State) -> None:
        """Take over the code."""
        self.code = state["code"]

    def stats(self) -> dict[str, int]:
        """Count the writes."""
        return {"writes": self._writes}


class DebugConsole(Device):
    """Port E9h: every byte written goes out; reading gives E9h, by which a guest finds it."""

    name = "debugcon"
    ports = (range(0xE9, 0xEA),)

    def __init__(self, on_transmit: Callable[[int], None]) -> None:
        self._on_transmit = on_transmit
        self._writes = 0

    def read(self, port: int, size: int) -> int:
        """Give the signature."""
        return 0xE9

    def write(self, port: int, size: int, value: int) -> None:
        """Send the byte out."""
        self._writes += 1
        self._on_transmit(value)

    def reset(self) -> None:
        """Nothing to reset."""

    def save(self) -> State:
        """No state."""
        return {}

    def load(self, state: State) -> None:
        """No state."""

    def stats(self) -> dict[str, int]:
        """Count the bytes."""
        return {"tx_bytes": self._writes}


class SystemControlA(Device):
    """Port 92h: bit 1 is the A20 gate, a rising bit 0 resets the machine."""

    name = "port92"
    ports = (range(0x92, 0x93),)

    def __init__(self, a20: A20Gate, on_reset: Callable[[], None]) -> None:
        self._a20 = a20
        self._on_reset = on_reset
        self._value = 0

    def read(self, port: int, size: int) -> int:
        """Give what was written last, with the gate as it is now."""
        return self._value & ~0x02 | (0x02 if self._a20.enabled else 0)

    def write(self, port: int, size: int, value: int) -> None:
        """Move the gate, then reset if bit 0 rises."""
        rising = value & 1 and not self._value & 1
        self._value = value
        self._a20.set(bool(value & 2))
        if rising:
            self._on_reset()

    def reset(self) -> None:
        """Clear the register; start-up code leaves the gate open."""
        self._value = 0
        self._a20.set(True)

    def save(self) -> State:
        """Give the register and the gate."""
        return {"value": self._value, "a20": self._a20.enabled}

    def load(self, state: State) -> None:
        """Take over the register and the gate."""
        self._value = state["value"]
        self._a20.set(state["a20"])


class ResetControl(Device):
    """Port CF9h: raising bit 2 resets the machine. Answers byte accesses to itself alone."""

    name = "reset_control"
    ports = (range(0xCF9, 0xCFA),)
    wide = True  # so that a split access to CF8h never reaches it

    def __init__(self, on_reset: Callable[[], None]) -> None:
        self._on_reset = on_reset
        self._value = 0

    def read(self, port: int, size: int) -> int:
        """Give the register (the trigger bit reads as zero); a wider access finds nobody."""
        return self._value if size == 1 else (1 << 8 * size) - 1

    def write(self, port: int, size: int, value: int) -> None:
        """Keep bit 1 (hard or soft) and reset if bit 2 is set."""
        if size != 1:
            return
        self._value = value & 0x02
        if value & 0x04:
            self._on_reset()

    def reset(self) -> None:
        """Clear the register."""
        self._value = 0

    def save(self) -> State:
        """Give the register."""
        return {"value": self._value}

    def load(self, state: State) -> None:
        """Take over the register."""
        self._value = state["value"]
