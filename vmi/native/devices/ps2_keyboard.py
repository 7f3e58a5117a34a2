# SPDX-License-Identifier: GPL-2.0-only
"""A PS/2 keyboard: its commands, the three sets of scan codes, and a typist who waits for the guest.

Answers to commands are there at once, so a driver that polls in a short loop finds them. Keys that are
typed come one event (a key going down or up) per millisecond at most, and the next only when the guest
has taken the one before and wants keys at all: so nothing is lost of a long text, and the same text
arrives at the same time in every run. A key that is held down does not repeat.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from vmi.errors import UsageError
from vmi.native.bus import State
from vmi.native.clock import Clock, Event
from vmi.native.devices.ps2 import ACK, RESEND, SELF_TEST_PASSED, Ps2Device
from vmi.native.keyboard import KEYS, KeyEvent, event

KEY_NS = 1_000_000  # between two events of the typist
TYPED_LIMIT = 1 << 17  # events that wait: texts of some 50,000 characters

ECHO = 0xEE
KEYBOARD_ID = (0xAB, 0x83)
BREAK = 0xF0

#: The controller's translation of set 2 into set 1; bytes from 85h pass unchanged.
TRANSLATION = bytes.fromhex(
    "FF 43 41 3F 3D 3B 3C 58 64 44 42 40 3E 0F 29 59  65 38 2A 70 1D 10 02 5A 66 71 2C 1F 1E 11 03 5B"
    "67 2E 2D 20 12 05 04 5C 68 39 2F 21 14 13 06 5D  69 31 30 23 22 15 07 5E 6A 72 32 24 16 08 09 5F"
    "6B 33 25 17 18 0B 0A 60 6C 34 35 26 27 19 0C 61  6D 73 28 74 1A 0D 62 6E 3A 36 1C 1B 75 2B 63 76"
    "55 56 77 78 79 7A 0E 7B 7C 4F 7D 4B 47 7E 7F 6F  52 53 50 4C 4D 48 01 45 57 4E 51 4A 37 49 46 54"
    "80 81 82 41 54"
) + bytes(range(0x85, 0x100))

_WITH_OPERAND = frozenset({0xED, 0xF0, 0xF3, 0xFC})
_MODIFIERS = frozenset(KEYS[name] for name in ("Shift", "RightShift", "Ctrl", "RightCtrl", "Alt", "RightAlt"))
_CTRL = frozenset({KEYS["Ctrl"], KEYS["RightCtrl"]})
_ALT = frozenset({KEYS["Alt"], KEYS["RightAlt"]})
_PRINT, _PAUSE = KEYS["Print"], KEYS["Pause"]

_FIELDS = ("scanning", "scancode_set", "lamps", "typematic", "command", "translate", "broken")


class Keyboard(Ps2Device):
    """A keyboard with the keys of :mod:`vmi.native.keyboard`.

    ``on_data`` is called when it has something to say by itself.
    """

    def __init__(self, clock: Clock, on_data: Callable[[], None]) -> None:
        super().__init__()
        self._clock = clock
        self._on_data = on_data
        self._typed: deque[KeyEvent] = deque()
        self._next: Event | None = None
        self._free_at = 0  # when the typist may press the next key, ns
        self._held: set[str] = set()  # modifiers that are down, by name
        self.lamps = 0
        self.typematic = 0x2B
        self.command = 0  # one that waits for its operand
        self.translate = True  # the controller's part of the work: set 2 becomes set 1
        self.broken = False  # it has swallowed the F0h that begins a break code
        self.keys = 0
        self._set_defaults()

    def _set_defaults(self) -> None:
        self.scanning = True
        self.scancode_set = 2
        self._stream.clear()

    # --- keys ---

    @property
    def typing(self) -> int:
        """Events that still wait for the guest."""
        return len(self._typed)

    def type(self, events: Iterable[KeyEvent]) -> None:
        """Have somebody type this. UsageError if more than :data:`TYPED_LIMIT` events would wait."""
        more = list(events)
        if len(self._typed) + len(more) > TYPED_LIMIT:
            raise UsageError(
                f"the keyboard keeps {TYPED_LIMIT} key events for the guest, but {len(self._typed)} wait "
                f"already and {len(more)} are typed now"
            )
        self._typed.extend(more)
        self._resume()

    def press(self, codes: bytes) -> None:
        """Send these bytes at once, as if keys had them: lost without scanning or in a full buffer."""
        if self.scanning:
            self.keys += len(codes)
            self._say(*self._through_controller(codes))
            self._on_data()

    def _through_controller(self, data: Iterable[int]) -> bytes:
        """What becomes of the keyboard's bytes on the way to the guest."""
        if not self.translate:
            return bytes(data)
        passed, self.broken = translate(data, self.broken)
        return passed

    def _resume(self) -> None:
        """Make sure that the typist goes on, if the guest is ready for it."""
        if self._typed and self._next is None and self.scanning and not self._stream:
            self._next = self._clock.schedule(max(self._clock.now(), self._free_at), self._stroke)

    def _stroke(self, due: int) -> None:
        self._next = None
        if self._typed and self.scanning and not self._stream:
            self._free_at = due + KEY_NS
            stroke = self._typed.popleft()
            codes = self.codes(stroke)
            if stroke.key in _MODIFIERS:
                (self._held.add if stroke.down else self._held.discard)(stroke.key.name)
            self.press(codes)
            self._resume()  # at once only if this event has no bytes

    def codes(self, stroke: KeyEvent) -> bytes:
        """The bytes of an event in the set that is in force."""
        if self.scancode_set == 3:
            code = bytes([stroke.key.set3]) if stroke.key.set3 else b""
            return code if stroke.down or not code else bytes([BREAK]) + code
        codes = self._set_2(stroke)
        return codes if self.scancode_set == 2 else translate(codes)[0]

    def _set_2(self, stroke: KeyEvent) -> bytes:
        held = {KEYS[name] for name in self._held}
        code = stroke.key.code
        if stroke.key is _PAUSE:  # says all when it goes down
            whole = "E0 7E E0 F0 7E" if held & _CTRL else "E1 14 77 E1 F0 14 F0 77"
            return bytes.fromhex(whole) if stroke.down else b""
        if stroke.key is _PRINT and held & _ALT:
            code = 0x84
        elif stroke.key is _PRINT and not held:  # wrapped in a left Shift of its own
            return bytes.fromhex("E0 12 E0 7C" if stroke.down else "E0 F0 7C E0 F0 12")
        prefix = b"\xe0" if code > 0xFF else b""
        return prefix + (b"" if stroke.down else bytes([BREAK])) + bytes([code & 0xFF])

    def take(self) -> int:
        """The next byte; when it was a key's last, the typist goes on."""
        byte = super().take()
        self._resume()
        return byte

    # --- commands ---

    def write(self, value: int) -> None:
        """Take a command, or the operand of one; what was not read of the last answer is gone."""
        self._answers.clear()
        if self.command:
            command, self.command = self.command, 0
            self._operand(command, value)
        else:
            self._execute(value)
        self._resume()

    def _execute(self, value: int) -> None:
        if value in _WITH_OPERAND:
            self.command = value
            self._answer(ACK)
        elif value == ECHO:
            self._answer(ECHO)
        elif value == 0xF2:
            self._answer(ACK, *self._through_controller(KEYBOARD_ID))
        elif value in (0xF5, 0xF6, 0xFF):
            self._set_defaults()
            self.scanning = value != 0xF5
            self._answer(*((ACK, SELF_TEST_PASSED) if value == 0xFF else (ACK,)))
        elif value in (0x00, 0xF4, 0xFA):
            self.scanning |= value == 0xF4
            self._answer(ACK)
        else:
            self._answer(RESEND)

    def _operand(self, command: int, value: int) -> None:
        if command == 0xF0 and value > 3:
            self._answer(RESEND)
            return
        self._answer(ACK)
        if command == 0xED:
            self.lamps = value
        elif command == 0xF3:
            self.typematic = value
        elif command == 0xF0 and value == 0:
            self._answer(*self._through_controller([self.scancode_set]))
        elif command == 0xF0:
            self.scancode_set = value

    # --- state ---

    def reset(self) -> None:
        """Power on again; what somebody types goes on."""
        super().reset()
        self._set_defaults()
        self.lamps, self.typematic, self.command = 0, 0x2B, 0
        self._resume()

    def save(self) -> State:
        """Give settings, bytes and keys that wait, and the typist's next stroke."""
        state = super().save() | {name: getattr(self, name) for name in _FIELDS}
        state["typed"] = [str(one) for one in self._typed]
        state["held"] = sorted(self._held)
        state["free_at"] = self._free_at
        state["next"] = None if self._next is None else self._next.save()
        return state

    def load(self, state: State) -> None:
        """Take over what ``save`` gave."""
        super().load(state)
        for name in _FIELDS:
            setattr(self, name, state[name])
        self._typed = deque(map(event, state["typed"]))
        self._held = set(state["held"])
        self._free_at = state["free_at"]
        if self._next is not None:
            self._next.cancel()
        saved = state["next"]
        self._next = None if saved is None else self._clock.restore(saved, self._stroke)


def translate(codes: Iterable[int], broken: bool = False) -> tuple[bytes, bool]:
    """Set 2 into set 1: F0h turns into bit 7 of the byte after it.

    ``broken`` goes in and comes out: an F0h was the last byte.
    """
    translated = bytearray()
    for byte in codes:
        if byte == BREAK:
            broken = True
        else:
            translated.append(TRANSLATION[byte] | 0x80 * broken)
            broken = False
    return bytes(translated), broken
