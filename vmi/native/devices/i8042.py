# SPDX-License-Identifier: GPL-2.0-only
"""The keyboard controller at 60h and 64h, with a PS/2 keyboard and a PS/2 mouse.

Systems use it for the A20 gate and for resetting the machine at least as much as for keys. It answers
at once, as QEMU's does, and like there the status register's "last write was a command" is always set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from vmi.native.bus import Device, IrqLine, State
from vmi.native.clock import Clock
from vmi.native.devices.misc import A20Gate
from vmi.native.devices.ps2_keyboard import Keyboard
from vmi.native.devices.ps2_mouse import Mouse
from vmi.native.keyboard import KeyEvent

_DATA, _COMMAND = 0x60, 0x64

STATUS_OBF, STATUS_SYSTEM, STATUS_COMMAND, STATUS_UNLOCKED, STATUS_AUX_OBF = 0x01, 0x04, 0x08, 0x10, 0x20
CONFIG_IRQ1, CONFIG_IRQ12, CONFIG_DISABLE_KEYBOARD = 0x01, 0x02, 0x10
CONFIG_DISABLE_AUX, CONFIG_TRANSLATE = 0x20, 0x40
OUTPUT_RESET, OUTPUT_A20, OUTPUT_OBF, OUTPUT_AUX_OBF = 0x01, 0x02, 0x10, 0x20
_OUTPUT_ONES = 0xCC  # keyboard clock and data high, and two unused bits
_OUTPUT_WIRES = OUTPUT_RESET | OUTPUT_A20 | OUTPUT_OBF | OUTPUT_AUX_OBF
_INPUT_PORT = 0x80  # keyboard not locked

# Commands to the controller whose operand follows at port 60h.
_WITH_OPERAND = frozenset({0x60, 0xD1, 0xD2, 0xD3, 0xD4})

_FIELDS = ("config", "tested", "last_data", "source", "reply", "reply_aux", "output", "command")


class I8042(Device):
    """Keyboard controller, keyboard and mouse.

    ``irq`` is line 1, ``aux_irq`` line 12, ``clock`` paces what is typed. ``on_reset`` is called when the
    guest pulls the CPU's reset line (command FEh, or output port bit 0). Start-up leaves the controller
    tested, the keyboard enabled and translated with its interrupt on, the mouse's port disabled.
    """

    name = "i8042"
    ports = (range(_DATA, _DATA + 1), range(_COMMAND, _COMMAND + 1))

    def __init__(
        self,
        irq: IrqLine,
        a20: A20Gate,
        on_reset: Callable[[], None],
        clock: Clock,
        aux_irq: IrqLine,
    ) -> None:
        self._irq = irq
        self._aux_irq = aux_irq
        self._a20 = a20
        self._on_reset = on_reset
        self.keyboard = Keyboard(clock, self._fill)
        self.mouse = Mouse()
        self._commands = 0
        self._set_defaults()

    def _set_defaults(self) -> None:
        self.config = CONFIG_IRQ1 | CONFIG_DISABLE_AUX | CONFIG_TRANSLATE
        self.tested = True
        self.last_data = 0
        self.source: str | None = None  # whose byte the output buffer offers
        self.reply = 0  # the controller's own byte
        self.reply_aux: bool | None = None  # whether that is to look like the mouse's; None without one
        self.output = _OUTPUT_ONES  # output port, without the bits that are wires
        self.command = 0  # a controller command that waits for its operand

    # --- what is typed ---

    def type(self, events: Iterable[KeyEvent]) -> None:
        """Have somebody type this, as fast as the guest takes it (:mod:`vmi.native.keyboard` makes events).

        :raises UsageError: too much waits for the guest already.
        """
        self.keyboard.type(events)

    def press(self, codes: bytes) -> None:
        """Put bytes of a set 2 keyboard on the wire at once; see :meth:`Keyboard.press`."""
        self.keyboard.press(codes)

    # --- output buffer ---

    def _reply(self, byte: int, *, aux: bool = False) -> None:
        """Give a byte of the controller's own: there is room for one, and a newer one replaces it."""
        self.reply, self.reply_aux = byte, aux
        self._fill()

    def _fill(self, mouse_first: bool = False) -> None:
        """Offer a byte if none is offered, and drive the lines.

        What is offered is the source: its byte is taken when the guest reads it. So an answer that a new
        command makes obsolete is never seen.
        """
        if self.source is None:
            if self.reply_aux is not None:
                self.source = "aux reply" if self.reply_aux else "reply"
            else:
                keyboard = self.keyboard.waits and not self.config & CONFIG_DISABLE_KEYBOARD
                mouse = self.mouse.waits and not self.config & CONFIG_DISABLE_AUX
                if mouse and (mouse_first or not keyboard):
                    self.source = "mouse"
                elif keyboard:
                    self.source = "keyboard"
            self._update()

    @property
    def _from_aux(self) -> bool:
        return self.source in ("aux reply", "mouse")

    def _update(self) -> None:
        keyboard = CONFIG_IRQ1 if not self.config & CONFIG_DISABLE_KEYBOARD else 0
        offered, aux = self.source is not None, self._from_aux
        self._irq.set(offered and not aux and bool(self.config & keyboard))
        self._aux_irq.set(offered and aux and bool(self.config & CONFIG_IRQ12))

    # --- registers ---

    def read(self, port: int, size: int) -> int:
        """Read the output buffer (60h) or the status (64h)."""
        if port == _COMMAND:
            return (
                STATUS_UNLOCKED
                | STATUS_COMMAND
                | (STATUS_SYSTEM if self.tested else 0)
                | (STATUS_OBF if self.source is not None else 0)
                | (STATUS_AUX_OBF if self._from_aux else 0)
            )
        source, self.source = self.source, None
        self._update()  # the line drops between two bytes: each gives an edge
        if source in ("reply", "aux reply"):
            self.last_data, self.reply_aux = self.reply, None
        elif source is not None:
            device = self.keyboard if source == "keyboard" else self.mouse
            self.last_data = device.take() if device.waits else self.last_data
        self._fill(mouse_first=source == "keyboard")  # so that neither waits for ever
        return self.last_data

    def write(self, port: int, size: int, value: int) -> None:
        """Give the controller a command (64h) or data (60h)."""
        if port == _COMMAND:
            self._commands += 1
            if value in _WITH_OPERAND:
                self.command = value
            else:
                self._execute(value)
        else:
            command, self.command = self.command, 0
            self._take(command, value)

    def _execute(self, value: int) -> None:
        if value == 0x20:
            self._reply(self.config)
        elif value in (0xA7, 0xA8):
            self._configure(CONFIG_DISABLE_AUX, value == 0xA7)
        elif value == 0xAA:
            self.tested = True
            self._reply(0x55)
        elif value in (0xA9, 0xAB):
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

    def _take(self, command: int, value: int) -> None:
        """A byte at port 60h: the operand of a command, or for the keyboard."""
        if command == 0x60:
            self.config = value
            self.keyboard.translate = bool(value & CONFIG_TRANSLATE)
            self._update()
            self._fill()
        elif command == 0xD1:
            self.output = value & ~_OUTPUT_WIRES
            self._a20.set(bool(value & OUTPUT_A20))
            if not value & OUTPUT_RESET:
                self._on_reset()
        elif command in (0xD2, 0xD3):
            self._reply(value, aux=command == 0xD3)
        elif command == 0xD4:
            self.mouse.write(value)
            self._configure(CONFIG_DISABLE_AUX, False)
        else:
            self.keyboard.write(value)
            self._configure(CONFIG_DISABLE_KEYBOARD, False)  # sending a byte enables its port again

    def _output_port(self) -> int:
        return (
            self.output
            | OUTPUT_RESET
            | (OUTPUT_A20 if self._a20.enabled else 0)
            | (OUTPUT_OBF if self.source is not None else 0)
            | (OUTPUT_AUX_OBF if self._from_aux else 0)
        )

    # --- state ---

    def reset(self) -> None:
        """Return to the start-up settings; what somebody types goes on."""
        self._set_defaults()
        self.keyboard.reset()
        self.keyboard.translate, self.keyboard.broken = True, False
        self.mouse.reset()
        self._fill()

    def save(self) -> State:
        """Give registers and the bytes on their way to the guest."""
        state: State = {name: getattr(self, name) for name in _FIELDS}
        return state | {"keyboard": self.keyboard.save(), "mouse": self.mouse.save()}

    def load(self, state: State) -> None:
        """Take over registers and the bytes on their way to the guest."""
        for name in _FIELDS:
            setattr(self, name, state[name])
        self.keyboard.load(state["keyboard"])
        self.mouse.load(state["mouse"])

    def stats(self) -> dict[str, int]:
        """Count key bytes, controller commands and bytes dropped because nobody read them."""
        dropped = self.keyboard.dropped + self.mouse.dropped
        return {"keys": self.keyboard.keys, "commands": self._commands, "dropped": dropped}
