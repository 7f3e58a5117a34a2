# SPDX-License-Identifier: GPL-2.0-only
"""The keyboard controller at 60h and 64h, with a PS/2 keyboard that acknowledges what it is told.

Systems use it for the A20 gate and for resetting the machine at least as much as for keys. There
is no mouse: the auxiliary port exists, but nothing answers on it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeVar

from vmi.native.bus import Device, IrqLine, State
from vmi.native.devices.misc import A20Gate

_DATA, _COMMAND = 0x60, 0x64

STATUS_OBF, STATUS_SYSTEM, STATUS_COMMAND, STATUS_UNLOCKED = 0x01, 0x04, 0x08, 0x10
STATUS_AUX_OBF, STATUS_TIMEOUT = 0x20, 0x40
CONFIG_IRQ1, CONFIG_SYSTEM, CONFIG_DISABLE_KEYBOARD = 0x01, 0x04, 0x10
CONFIG_DISABLE_AUX, CONFIG_TRANSLATE = 0x20, 0x40
OUTPUT_RESET, OUTPUT_A20 = 0x01, 0x02
_OUTPUT_ONES = 0xCC  # keyboard clock and data high, and two unused bits
_INPUT_PORT = 0x80  # keyboard not locked

_ACK, _RESEND, _SELF_TEST_PASSED, _ECHO = 0xFA, 0xFE, 0xAA, 0xEE
_KEYBOARD_ID = (0xAB, 0x83)
_QUEUE_LIMIT = 256  # bytes; a real keyboard keeps 16, a script may type faster

# Commands to the controller whose operand follows at port 60h.
_WITH_OPERAND = frozenset({0x60, 0xD1, 0xD2, 0xD3, 0xD4})
_KEYBOARD_WITH_OPERAND = frozenset({0xED, 0xF0, 0xF3})

_T = TypeVar("_T")

_FIELDS = (
    "config", "last_data", "full", "from_aux", "timed_out", "command", "was_command", "keyboard_command",
    "scanning", "scancode_set",
)  # fmt: skip


class I8042(Device):
    """Keyboard controller and keyboard.

    ``on_reset`` is called when the guest pulls the CPU's reset line (command FEh, or output port bit 0).
    Start-up leaves the keyboard enabled, translated, with its interrupt on.
    """

    name = "i8042"
    ports = (range(_DATA, _DATA + 1), range(_COMMAND, _COMMAND + 1))

    def __init__(self, irq: IrqLine, a20: A20Gate, on_reset: Callable[[], None]) -> None:
        self._irq = irq
        self._a20 = a20
        self._on_reset = on_reset
        self._replies: deque[tuple[int, bool, bool]] = deque()  # byte, from the aux port, timed out
        self._keyboard: deque[int] = deque()  # what the keyboard has to say; waits while it is disabled
        self._keys = self._dropped = self._commands = 0
        self._set_defaults()

    def _set_defaults(self) -> None:
        self.config = CONFIG_IRQ1 | CONFIG_SYSTEM | CONFIG_DISABLE_AUX | CONFIG_TRANSLATE
        self.last_data = 0
        self.full = False
        self.from_aux = False
        self.timed_out = False
        self.command = 0  # a controller command that waits for its operand
        self.was_command = True
        self.keyboard_command = 0  # a keyboard command that waits for its operand
        self.scanning = True
        self.scancode_set = 2
        self._replies.clear()
        self._keyboard.clear()

    # --- output buffer ---

    def _reply(self, byte: int, *, aux: bool = False, timed_out: bool = False) -> None:
        """Queue a byte of the controller's own; it goes before those of the keyboard."""
        self._enqueue(self._replies, (byte, aux, timed_out))

    def _say(self, byte: int) -> None:
        """Queue a byte of the keyboard's."""
        self._enqueue(self._keyboard, byte)

    def _enqueue(self, queue: deque[_T], entry: _T) -> None:
        if len(queue) < _QUEUE_LIMIT:
            queue.append(entry)
            self._fill()
        else:
            self._dropped += 1

    def _fill(self) -> None:
        """Move the next byte into the output buffer if that is empty, and drive the line."""
        if not self.full:
            if self._replies:
                self.last_data, self.from_aux, self.timed_out = self._replies.popleft()
                self.full = True
            elif self._keyboard and not self.config & CONFIG_DISABLE_KEYBOARD:
                self.last_data, self.from_aux, self.timed_out = self._keyboard.popleft(), False, False
                self.full = True
        self._update()

    def _update(self) -> None:
        self._irq.set(self.full and not self.from_aux and bool(self.config & CONFIG_IRQ1))

    def press(self, scancodes: bytes) -> None:
        """Deliver scan codes as the guest is to read them (set 1, translated); lost if not scanning."""
        if self.scanning:
            for code in scancodes:
                self._keys += 1
                self._say(code)

    # --- registers ---

    def read(self, port: int, size: int) -> int:
        """Read the output buffer (60h) or the status (64h)."""
        if port == _COMMAND:
            return (
                STATUS_UNLOCKED
                | self.full
                | self.config & CONFIG_SYSTEM
                | (STATUS_COMMAND if self.was_command else 0)
                | (STATUS_AUX_OBF if self.full and self.from_aux else 0)
                | (STATUS_TIMEOUT if self.full and self.timed_out else 0)
            )
        byte = self.last_data
        if self.full:
            self.full = False
            self._update()  # the line drops between two bytes: each gives an edge
            self._fill()
        return byte

    def write(self, port: int, size: int, value: int) -> None:
        """Give the controller a command (64h) or data (60h)."""
        self.was_command = port == _COMMAND
        if port == _COMMAND:
            self._commands += 1
            self.command = value if value in _WITH_OPERAND else 0
            if not self.command:
                self._execute(value)
        elif self.command:
            command, self.command = self.command, 0
            self._operand(command, value)
        else:
            self._to_keyboard(value)

    def _execute(self, value: int) -> None:
        if value == 0x20:
            self._reply(self.config)
        elif value in (0xA7, 0xA8):
            self._configure(CONFIG_DISABLE_AUX, value == 0xA7)
        elif value == 0xA9:
            self._reply(0x00)
        elif value == 0xAA:
            self.config |= CONFIG_SYSTEM
            self._reply(0x55)
        elif value == 0xAB:
            self._reply(0x00)
        elif value in (0xAD, 0xAE):
            self._configure(CONFIG_DISABLE_KEYBOARD, value == 0xAD)
        elif value == 0xC0:
            self._reply(_INPUT_PORT)
        elif value == 0xD0:
            self._reply(self._output_port())
        elif value in (0xDD, 0xDF):
            self._a20.set(value == 0xDF)
        elif value >= 0xF0 and not value & OUTPUT_RESET:
            self._on_reset()  # F0h-FFh pulse the output lines whose bit is 0

    def _configure(self, bit: int, on: bool) -> None:
        self.config = self.config | bit if on else self.config & ~bit
        self._fill()

    def _operand(self, command: int, value: int) -> None:
        if command == 0x60:
            self.config = value
            self._fill()
        elif command == 0xD1:
            self._a20.set(bool(value & OUTPUT_A20))
            if not value & OUTPUT_RESET:
                self._on_reset()
        elif command == 0xD2:
            self._reply(value)
        elif command == 0xD3:
            self._reply(value, aux=True)
        else:
            self._reply(_RESEND, aux=True, timed_out=True)  # nobody on the auxiliary port

    def _output_port(self) -> int:
        return _OUTPUT_ONES | OUTPUT_RESET | (OUTPUT_A20 if self._a20.enabled else 0) | self.full << 4

    # --- keyboard ---

    def _to_keyboard(self, value: int) -> None:
        """A byte for the keyboard; sending one enables its port again."""
        self._configure(CONFIG_DISABLE_KEYBOARD, False)
        if self.keyboard_command:
            command, self.keyboard_command = self.keyboard_command, 0
            self._keyboard_operand(command, value)
        elif value == 0xEE:
            self._say(_ECHO)
        elif value in _KEYBOARD_WITH_OPERAND:
            self.keyboard_command = value
            self._say(_ACK)
        elif value == 0xF2:
            self._say(_ACK)
            for byte in _KEYBOARD_ID:
                # Translation applies to this answer as well: AB 41 is what most systems see.
                self._say(0x41 if byte == 0x83 and self.config & CONFIG_TRANSLATE else byte)
        elif value in (0xF4, 0xF5, 0xF6):
            self._keyboard.clear()
            self.scanning = value != 0xF5
            if value != 0xF4:
                self.scancode_set = 2
            self._say(_ACK)
        elif 0xF7 <= value <= 0xFA:
            self._say(_ACK)  # which keys repeat: of no consequence without keys held down
        elif value == 0xFF:
            self._keyboard.clear()
            self.scanning = True
            self.scancode_set = 2
            self._say(_ACK)
            self._say(_SELF_TEST_PASSED)
        else:
            self._say(_RESEND)

    def _keyboard_operand(self, command: int, value: int) -> None:
        if command == 0xF0:
            if value > 3:
                self._say(_RESEND)
                return
            self._say(_ACK)
            if value == 0:
                self._say(self.scancode_set)
            else:
                self.scancode_set = value
        else:
            self._say(_ACK)  # lamps and repeat rate

    # --- state ---

    def reset(self) -> None:
        """Empty everything and return to the start-up settings."""
        self._set_defaults()
        self._update()

    def save(self) -> State:
        """Give registers and the bytes on their way to the guest."""
        state: State = {name: getattr(self, name) for name in _FIELDS}
        state["replies"] = [list(entry) for entry in self._replies]
        state["keyboard"] = list(self._keyboard)
        return state

    def load(self, state: State) -> None:
        """Take over registers and the bytes on their way to the guest."""
        for name in _FIELDS:
            setattr(self, name, state[name])
        self._replies = deque((byte, aux, late) for byte, aux, late in state["replies"])
        self._keyboard = deque(state["keyboard"])

    def stats(self) -> dict[str, int]:
        """Count key bytes, controller commands and bytes dropped because nobody read them."""
        return {"keys": self._keys, "commands": self._commands, "dropped": self._dropped}
