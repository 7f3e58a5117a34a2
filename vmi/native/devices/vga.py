# SPDX-License-Identifier: GPL-2.0-only
"""The VGA's registers, for its text modes: what is shown, where from, and where the cursor is.

Text memory is plain RAM of the board at B8000 (B0000 in monochrome); the registers only say which part
of it is on the screen, which :mod:`vmi.native.screen` turns into a picture. Planes and write modes do
nothing, so a font that a guest loads goes to plain RAM at A0000, and graphics modes have no picture.

Registers answer as those of QEMU's ``-vga std`` do, with four exceptions, where the hardware is followed:
the colour mask 3C6 works, colours have six bits, the CRT controller has no registers beyond 18h, and the
retrace bits follow time. There is no Bochs display interface at 1CE: a video BIOS that finds no answer
there is content with the VGA.
"""

from __future__ import annotations

from dataclasses import dataclass

from vmi.native.bus import Device, State
from vmi.native.clock import NS_PER_S, Clock

CRTC_SIZE, ATTRIBUTE_SIZE, DAC_ENTRIES = 25, 21, 256
WINDOW_CELLS = 0x4000  # characters in the 32 KiB of text memory

_COLOUR_ONLY, _MONO_ONLY = range(0x3D0, 0x3E0), range(0x3B0, 0x3C0)
_ATTRIBUTE, _ATTRIBUTE_READ, _MISC_WRITE = 0x3C0, 0x3C1, 0x3C2  # 3C2 reads as input status 0
_SEQUENCER_INDEX, _SEQUENCER = 0x3C4, 0x3C5
_PEL_MASK, _DAC_READ_INDEX, _DAC_INDEX, _DAC_DATA = 0x3C6, 0x3C7, 0x3C8, 0x3C9
_FEATURE_READ, _MISC_READ = 0x3CA, 0x3CC
_GRAPHICS_INDEX, _GRAPHICS = 0x3CE, 0x3CF
# The CRT controller's are given by their colour addresses.
_CRTC_INDEX, _CRTC, _STATUS = 0x3D4, 0x3D5, 0x3DA

_MISC_COLOUR, _MISC_MASK = 0x01, 0xEF
_SEQUENCER_MASKS = bytes.fromhex("033d0f3f0e0000ff")
_GRAPHICS_MASKS = bytes.fromhex("0f0f0f1f037b0f0fff") + bytes(7)
_ATTRIBUTE_MASKS = b"\x3f" * 16 + bytes.fromhex("efff3f0f0f")
_FEATURE_MASK = 0x10
_DAC_MASK = 0x3F
_DAC_WRITING, _DAC_READING = 0, 3  # what 3C7 reads
_ATTRIBUTE_SHOW = 0x20  # in the attribute index: the palette belongs to the display, not to the CPU

_CRTC_PROTECT = 0x11
_CRTC_OVERFLOW = 0x07
_LINE_COMPARE_8 = 0x10  # the one bit of the overflow register that is never protected

_STATUS_RETRACE, _STATUS_BLANK = 0x08, 0x01
_CLOCKS_HZ = (25_175_000, 28_322_000)
# A read of the status register is a cycle on the ISA bus. A guest that polls it would otherwise see a
# retrace only after hundreds of thousands of reads, since instructions here take no longer for a port.
_POLL_NS = 1_000

# Mode 3, 80x25 in 16 colours, as SeaVGABIOS leaves it.
_MODE_3_MISC = 0x67
_MODE_3_SEQUENCER = bytes.fromhex("0300030002000000")
_MODE_3_CRTC = bytes.fromhex("5f4f50825581bf1f004f0d0e000000009c8e8f281f96b9a3ff")
_MODE_3_GRAPHICS = bytes.fromhex("0000000000100e0fff") + bytes(7)
_MODE_3_ATTRIBUTE = bytes.fromhex("000102030405140738393a3b3c3d3e3f0c000f0800")

_FIELDS = (
    "misc", "feature", "sequencer_index", "graphics_index", "crtc_index", "attribute_index", "data_next",
    "pel_mask", "dac_state", "dac_read_index", "dac_write_index", "dac_component", "polls",
)  # fmt: skip
_ARRAYS = ("sequencer", "graphics", "crtc", "attribute", "dac", "dac_latch")


@dataclass(frozen=True)
class Geometry:
    """A text mode's layout: ``columns``, lines of the picture and of a cell, dots of a cell's width.

    ``repeat`` is how many times wide each dot is. ``start`` is the cell at the
    top left, ``pitch`` the cells from one row to the next; the rows that begin below line ``split`` are taken
    from cell 0 on.
    """

    columns: int
    lines: int
    cell_lines: int
    cell_dots: int
    repeat: int
    start: int
    pitch: int
    split: int

    @property
    def rows(self) -> int:
        """Rows of text, at least 1."""
        return max(1, self.lines // self.cell_lines)


class Vga(Device):
    """A VGA's registers. ``clock`` moves the beam that the status register tells of.

    At reset nothing is programmed and the screen is blank; :meth:`set_text_mode` does what a video BIOS
    would do for a system that is started without one.
    """

    name = "vga"
    ports = (
        range(0x3B4, 0x3B6), range(0x3BA, 0x3BB), range(0x3C0, 0x3D0), range(0x3D4, 0x3D6),
        range(0x3DA, 0x3DB),
    )  # fmt: skip

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._reads = self._writes = 0
        self._clear()

    def _clear(self) -> None:
        self.misc = 0
        self.feature = 0
        self.sequencer_index = self.graphics_index = self.crtc_index = self.attribute_index = 0
        self.data_next = False  # the next write to 3C0 is data
        self.pel_mask = 0xFF
        self.dac_state = _DAC_WRITING
        self.dac_read_index = self.dac_write_index = self.dac_component = 0
        self.polls = 0
        self.sequencer = bytearray(len(_SEQUENCER_MASKS))
        self.graphics = bytearray(len(_GRAPHICS_MASKS))
        self.crtc = bytearray(CRTC_SIZE)
        self.attribute = bytearray(ATTRIBUTE_SIZE)
        self.dac = bytearray(3 * DAC_ENTRIES)
        self.dac_latch = bytearray(3)  # red, green and blue take effect together

    def reset(self) -> None:
        """Forget all registers: the screen is blank until it is programmed."""
        self._clear()

    def set_text_mode(self) -> None:
        """Set mode 3, 80x25 in colour, with cursor and palette as a video BIOS leaves them.

        Text memory is not touched; a video BIOS fills it with blanks of attribute 7.
        """
        self._clear()
        self.misc = _MODE_3_MISC
        self.sequencer[:] = _MODE_3_SEQUENCER
        self.graphics[:] = _MODE_3_GRAPHICS
        self.crtc[:] = _MODE_3_CRTC
        self.attribute[:] = _MODE_3_ATTRIBUTE
        self.attribute_index = _ATTRIBUTE_SHOW
        for entry in range(64):  # bits of an entry: secondary r g b, primary r g b
            for n in range(3):
                primary, secondary = entry >> 2 - n & 1, entry >> 5 - n & 1
                self.dac[3 * entry + n] = 0x2A * primary + 0x15 * secondary

    # --- registers ---

    def read(self, port: int, size: int) -> int:
        """Read a register; the addresses of the kind that is switched off read as all ones."""
        self._reads += 1
        address = self._canonical(port)
        if address == _STATUS:
            self.data_next = False
            return self._status()
        if address == _CRTC_INDEX:
            return self.crtc_index
        if address == _CRTC:
            return self.crtc[self.crtc_index] if self.crtc_index < CRTC_SIZE else 0
        if address == _ATTRIBUTE:
            return 0 if self.data_next else self.attribute_index
        if address == _ATTRIBUTE_READ:
            index = self.attribute_index & 0x1F
            return self.attribute[index] if index < ATTRIBUTE_SIZE else 0
        if address == _SEQUENCER_INDEX:
            return self.sequencer_index
        if address == _SEQUENCER:
            return self.sequencer[self.sequencer_index]
        if address == _GRAPHICS_INDEX:
            return self.graphics_index
        if address == _GRAPHICS:
            return self.graphics[self.graphics_index]
        if _PEL_MASK <= address <= _DAC_DATA:
            return self._read_dac(address)
        if address == _FEATURE_READ:
            return self.feature
        if address == _MISC_READ:
            return self.misc
        return 0xFF if address == 0 else 0

    def write(self, port: int, size: int, value: int) -> None:
        """Write a register; those of the kind that is switched off ignore it."""
        self._writes += 1
        address = self._canonical(port)
        if address == _CRTC_INDEX:
            self.crtc_index = value
        elif address == _CRTC:
            self._write_crtc(self.crtc_index, value)
        elif address == _STATUS:
            self.feature = value & _FEATURE_MASK
        elif address == _ATTRIBUTE:
            self._write_attribute(value)
        elif address == _MISC_WRITE:
            self.misc = value & _MISC_MASK
        elif address == _SEQUENCER_INDEX:
            self.sequencer_index = value & 7
        elif address == _SEQUENCER:
            self.sequencer[self.sequencer_index] = value & _SEQUENCER_MASKS[self.sequencer_index]
        elif address == _GRAPHICS_INDEX:
            self.graphics_index = value & 15
        elif address == _GRAPHICS:
            self.graphics[self.graphics_index] = value & _GRAPHICS_MASKS[self.graphics_index]
        elif _PEL_MASK <= address <= _DAC_DATA:
            self._write_dac(address, value)

    def _canonical(self, port: int) -> int:
        """The port's colour address, or 0 if the miscellaneous register has switched it off."""
        if self.misc & _MISC_COLOUR:
            return 0 if port in _MONO_ONLY else port
        return 0 if port in _COLOUR_ONLY else port + 0x20 if port in _MONO_ONLY else port

    def _write_crtc(self, index: int, value: int) -> None:
        if index >= CRTC_SIZE:
            return
        if self.crtc[_CRTC_PROTECT] & 0x80 and index <= _CRTC_OVERFLOW:
            if index < _CRTC_OVERFLOW:
                return
            value = self.crtc[index] & ~_LINE_COMPARE_8 | value & _LINE_COMPARE_8
        self.crtc[index] = value

    def _write_attribute(self, value: int) -> None:
        if self.data_next:
            index = self.attribute_index & 0x1F
            if index < ATTRIBUTE_SIZE:
                self.attribute[index] = value & _ATTRIBUTE_MASKS[index]
        else:
            self.attribute_index = value & 0x3F
        self.data_next = not self.data_next

    def _read_dac(self, address: int) -> int:
        if address == _PEL_MASK:
            return self.pel_mask
        if address == _DAC_READ_INDEX:
            return self.dac_state
        if address == _DAC_INDEX:
            return self.dac_write_index
        value = self.dac[3 * self.dac_read_index + self.dac_component]
        if self._next_component():
            self.dac_read_index = (self.dac_read_index + 1) % DAC_ENTRIES
        return value

    def _write_dac(self, address: int, value: int) -> None:
        if address == _PEL_MASK:
            self.pel_mask = value
        elif address == _DAC_READ_INDEX:
            self.dac_read_index, self.dac_component, self.dac_state = value, 0, _DAC_READING
        elif address == _DAC_INDEX:
            self.dac_write_index, self.dac_component, self.dac_state = value, 0, _DAC_WRITING
        else:
            self.dac_latch[self.dac_component] = value & _DAC_MASK
            if self._next_component():
                at = 3 * self.dac_write_index
                self.dac[at : at + 3] = self.dac_latch
                self.dac_write_index = (self.dac_write_index + 1) % DAC_ENTRIES

    def _next_component(self) -> bool:
        """Go on to the next of red, green and blue; True after the last one."""
        self.dac_component = (self.dac_component + 1) % 3
        return self.dac_component == 0

    # --- the beam ---

    def _vertical(self, index: int, *overflow: int) -> int:
        """A vertical register with its high bits, which are bits of the overflow register."""
        value = self.crtc[index]
        for n, bit in enumerate(overflow):
            value |= (self.crtc[_CRTC_OVERFLOW] >> bit & 1) << 8 + n
        return value

    def _dots(self) -> int:
        """Dots of the width of a character."""
        return 8 if self.sequencer[1] & 1 else 9

    def _repeat(self) -> int:
        """Cycles of the dot clock that a dot takes: 2 in modes of 40 columns."""
        return 2 if self.sequencer[1] & 8 else 1

    def _status(self) -> int:
        """Where the beam is. Both bits change within a frame, whatever is programmed."""
        self.polls += 1
        crtc = self.crtc
        width = crtc[0] + 5
        height = self._vertical(0x06, 0, 5) + 2
        char = self._dots() * self._repeat()
        hertz = _CLOCKS_HZ[self.misc >> 2 & 1]
        chars = (self._clock.now() + self.polls * _POLL_NS) * hertz // (NS_PER_S * char)
        line, column = divmod(chars % (width * height), width)
        start = max(1, min(self._vertical(0x10, 2, 7), height - 1))
        length = crtc[_CRTC_PROTECT] - start & 15 or 16  # the end is given by its low four bits
        retrace = start <= line < start + length
        shown = line < self._vertical(0x12, 1, 6) + 1 and column < min(crtc[1] + 1, width - 1)
        return (_STATUS_RETRACE if retrace else 0) | (0 if shown and not retrace else _STATUS_BLANK)

    # --- what the screen shows ---

    @property
    def graphics_mode(self) -> bool:
        """Whether the memory holds pixels instead of characters."""
        return bool(self.graphics[6] & 1)

    @property
    def blank(self) -> bool:
        """Whether the display is off: not set up, or switched off by the sequencer."""
        return not self.attribute_index & _ATTRIBUTE_SHOW or bool(self.sequencer[1] & 0x20)

    @property
    def text_base(self) -> int:
        """Guest-physical address of the text memory, B8000h or B0000h."""
        window = self.graphics[6] >> 2 & 3
        # The two other windows are switched in for a moment while a font is loaded.
        colour = window == 3 if window >= 2 else self.misc & _MISC_COLOUR
        return 0xB8000 if colour else 0xB0000

    @property
    def geometry(self) -> Geometry:
        """The layout that the registers describe."""
        crtc = self.crtc
        split = self._vertical(0x18, 4) | (crtc[9] >> 6 & 1) << 9
        return Geometry(
            columns=crtc[1] + 1,
            lines=self._vertical(0x12, 1, 6) + 1,
            cell_lines=(crtc[9] & 0x1F) + 1,
            cell_dots=self._dots(),
            repeat=self._repeat(),
            start=crtc[0x0C] << 8 | crtc[0x0D],
            pitch=2 * crtc[0x13],
            split=split,
        )

    @property
    def cursor_cell(self) -> int:
        """The cell of text memory that the cursor is in."""
        return self.crtc[0x0E] << 8 | self.crtc[0x0F]

    @property
    def cursor_lines(self) -> range:
        """The lines of a cell that the cursor covers; empty while it is off."""
        start, end = self.crtc[0x0A], self.crtc[0x0B] & 0x1F
        return range(0) if start & 0x20 else range(start & 0x1F, end + 1)

    @property
    def blinking(self) -> bool:
        """Whether bit 7 of an attribute makes the character blink instead of brightening its background."""
        return bool(self.attribute[0x10] & 8)

    @property
    def line_graphics(self) -> bool:
        """Whether line-drawing characters go on into the ninth dot of their cell."""
        return bool(self.attribute[0x10] & 4)

    @property
    def underline(self) -> int | None:
        """The line of a cell on which characters of colour 1 are underlined; None in colour modes."""
        return self.crtc[0x14] & 0x1F if self.attribute[0x10] & 2 else None

    def colours(self) -> tuple[tuple[int, int, int], ...]:
        """Red, green and blue, 0-255 each, of the 16 colours of text."""
        mode, select = self.attribute[0x10], self.attribute[0x14]
        found = []
        for colour in range(16):
            entry = self.attribute[colour & self.attribute[0x12]]
            if mode & 0x80:
                entry = select << 4 | entry & 0x0F
            else:
                entry |= select << 4 & 0xC0
            at = 3 * (entry & self.pel_mask)
            # six bits to eight: the last bit fills up, so that full intensity is 255
            red, green, blue = (value << 2 | 3 * (value & 1) for value in self.dac[at : at + 3])
            found.append((red, green, blue))
        return tuple(found)

    # --- state ---

    def save(self) -> State:
        """Give all registers; arrays as hexadecimal text."""
        state: State = {name: getattr(self, name) for name in _FIELDS}
        return state | {name: getattr(self, name).hex() for name in _ARRAYS}

    def load(self, state: State) -> None:
        """Take over all registers."""
        for name in _FIELDS:
            setattr(self, name, state[name])
        for name in _ARRAYS:
            setattr(self, name, bytearray.fromhex(state[name]))

    def stats(self) -> dict[str, int]:
        """Count the accesses."""
        return {"reads": self._reads, "writes": self._writes}
