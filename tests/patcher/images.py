# SPDX-License-Identifier: GPL-2.0-only
"""Small synthetic kernels for planner tests: a text segment from assembly, perhaps data words after it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vmi.patcher.model import Access, Image, Section, Segment, Symbol, SymbolKind
from vmi.rom.assemble import Assembled, assemble

BASE = 0xC0100000
OFFSET = 0xC0000000
DATA = BASE + 0x10000


def code_image(
    code: bytes,
    *,
    data: bytes = b"",
    entry: int = BASE,
    base: int = BASE,
    offset: int = OFFSET,
    symbols: Iterable[Symbol] = (),
    sections: Sequence[Section] = (),
) -> Image:
    """An image whose text is ``code`` at ``base`` and whose data is at DATA."""
    segments = [Segment(base, base - offset, code, len(code), Access.R | Access.X, 0x1000)]
    if data:
        segments.append(Segment(DATA, DATA - offset, data, len(data), Access.R | Access.W, 0x11000))
    named = list(sections) or [Section(".text", base, len(code), True, False)]
    if data and not sections:
        named.append(Section(".data", DATA, len(data), False, True))
    return Image(b"", tuple(segments), entry, tuple(named), tuple(symbols))


def source_image(source: str, *, words: Sequence[str | int] = (), **more: object) -> tuple[Image, Assembled]:
    """Assemble ``source`` at BASE; ``words`` (numbers or labels) become the data segment."""
    made = assemble(source, BASE)
    values = [made.labels[word] if isinstance(word, str) else word for word in words]
    data = b"".join(value.to_bytes(4, "little") for value in values)
    return code_image(made.code, data=data, **more), made  # type: ignore[arg-type]


def function(name: str, address: int) -> Symbol:
    return Symbol(name, address, 0, SymbolKind.FUNCTION)
