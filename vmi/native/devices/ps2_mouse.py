# SPDX-License-Identifier: GPL-2.0-only
"""A PS/2 mouse that nobody moves: drivers find it, set it up and wait.

It is one with a wheel and five buttons: like those, it tells so only after three certain sample rates.
"""

from __future__ import annotations

from vmi.native.bus import State
from vmi.native.devices.ps2 import ACK, SELF_TEST_PASSED, Ps2Device

STATUS_SCALED, STATUS_ENABLED, STATUS_REMOTE = 0x10, 0x20, 0x40
PLAIN, WHEEL, BUTTONS = 0, 3, 4  # identification
_ALWAYS = 0x08  # set in the first byte of every movement
_RATE, _RESOLUTION = 0xF3, 0xE8
_KNOCKS: dict[tuple[int, ...], int] = {(200, 100, 80): WHEEL, (200, 200, 80): BUTTONS}

_FIELDS = ("status", "resolution", "rate", "kind", "wrap", "command")
_STATUS_COMMANDS = {
    0xE6: (STATUS_SCALED, 0),
    0xE7: (0, STATUS_SCALED),
    0xEA: (STATUS_REMOTE, 0),
    0xF0: (0, STATUS_REMOTE),
    0xF4: (0, STATUS_ENABLED),
    0xF5: (STATUS_ENABLED, 0),
}  # bits that a command clears and sets


class Mouse(Ps2Device):
    """Standard, wheel (ID 3) and five-button (ID 4) protocols; there is never any movement to report.

    A command it does not know gets no answer.
    """

    def __init__(self) -> None:
        super().__init__()
        self._power_on()

    def _power_on(self) -> None:
        self._set_defaults()
        self.kind = PLAIN
        self.wrap = False
        self.command = 0  # one that waits for its operand
        self._rates: tuple[int, ...] = ()

    def _set_defaults(self) -> None:
        self.status = 0
        self.resolution = 2
        self.rate = 100

    def write(self, value: int) -> None:
        """Take a command, or the operand of one."""
        if self.wrap and value not in (0xEC, 0xFF):
            self._answer(value)
        elif self.command:
            self._operand(value)
        else:
            self._execute(value)

    def _execute(self, value: int) -> None:
        if value in _STATUS_COMMANDS:
            clear, on = _STATUS_COMMANDS[value]
            self.status = self.status & ~clear | on
            self._answer(ACK)
        elif value in (_RATE, _RESOLUTION):
            self.command = value
            self._answer(ACK)
        elif value == 0xE9:
            self._answer(ACK, self.status, self.resolution, self.rate)
        elif value == 0xEB:
            self._answer(ACK, _ALWAYS, *bytes(2 if self.kind == PLAIN else 3))
        elif value == 0xEE or (value == 0xEC and self.wrap):
            self.wrap = value == 0xEE
            self._answer(ACK)
        elif value == 0xF2:
            self._answer(ACK, self.kind)
        elif value == 0xF6:
            self._set_defaults()
            self._answer(ACK)
        elif value == 0xFF:
            self.reset()
            self._answer(ACK, SELF_TEST_PASSED, PLAIN)

    def _operand(self, value: int) -> None:
        if self.command == _RATE:
            self.rate = value
            self._rates = (*self._rates, value)[-3:]
            self.kind = _KNOCKS.get(self._rates, self.kind)
        else:
            self.resolution = value
        self.command = 0
        self._answer(ACK)

    def reset(self) -> None:
        """Power on again."""
        super().reset()
        self._power_on()

    def save(self) -> State:
        """Give settings and the bytes that wait."""
        return super().save() | {name: getattr(self, name) for name in _FIELDS} | {"rates": [*self._rates]}

    def load(self, state: State) -> None:
        """Take over settings and the bytes that wait."""
        super().load(state)
        for name in _FIELDS:
            setattr(self, name, state[name])
        self._rates = tuple(state["rates"])
