# SPDX-License-Identifier: GPL-2.0-only
"""What a guest prints, made safe for the user's terminal.

A terminal obeys escape sequences: text from a guest could recolour it, rename its window, or make it
type answers. On a terminal only printable text and ``\\n \\r \\t \\b`` pass; everything else is shown
instead of obeyed. A file or pipe gets the guest's bytes as they are, because whoever reads those wants
exactly them.
"""

from __future__ import annotations

import codecs

_PASS = frozenset("\n\r\t\b")


class TerminalFilter:
    """Turns the guest's byte stream into text a terminal can be given, piece by piece.

    Control characters appear as ``^G`` (``^[`` is Escape), bytes that aren't UTF-8 and characters that
    aren't printable (among them those that reverse the reading direction) as ``\\x9b`` or ``\\u202e``.
    """

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("backslashreplace").decode

    def feed(self, data: bytes) -> str:
        """The safe text for these bytes; the start of an unfinished character waits for the next call."""
        return "".join(map(_visible, self._decode(data)))

    def finish(self) -> str:
        """What an unfinished character at the end of the stream looks like."""
        return "".join(map(_visible, self._decode(b"", True)))


def visible(text: str) -> str:
    """Foreign text of several lines with nothing a terminal would obey."""
    return "".join(map(_visible, text))


def safe(text: str) -> str:
    """One line of foreign text (a file name, a string out of a ROM) with nothing a terminal would obey."""
    return "".join(_visible(char) if char not in _PASS else repr(char)[1:-1] for char in text)


def _visible(char: str) -> str:
    if char in _PASS or char.isprintable():
        return char
    code = ord(char)
    if code < 0x20 or code == 0x7F:
        return "^" + chr(code ^ 0x40)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
