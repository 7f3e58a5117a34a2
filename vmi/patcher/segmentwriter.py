# SPDX-License-Identifier: GPL-2.0-only
"""Have LIEF put a segment into an ELF file, in a process of its own that is ready when it is needed.

Loading LIEF takes longer than all the rest of patching a small kernel, and holds the interpreter's lock. But
a plan takes its time as well. So a second interpreter loads it meanwhile, with nothing else: it runs this
file, reads one request and writes one answer. Where that can't be, or is not worth it, LIEF is loaded here.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

RWX = 7
PAGE = 0x1000
_PATIENCE = 60.0  # seconds for an answer that takes a tenth of one
_REQUEST = struct.Struct("<6I")


@dataclass(frozen=True, slots=True)
class Request:
    """``content`` is to be a segment at ``vaddr``, loaded at ``paddr``; ``entry`` is the new entry point.

    Its program header takes the place of that with the ``number``.
    """

    data: bytes = field(repr=False)
    number: int
    content: bytes = field(repr=False)
    vaddr: int
    paddr: int
    entry: int

    def written(self) -> bytes | None:
        """The file with the segment; None when LIEF can't read it or write it."""
        import lief  # here, because it takes longer to load than all the rest, and not every file needs it

        lief.logging.disable()
        binary = lief.ELF.parse(self.data)
        if binary is None:
            return None
        new = lief.ELF.Segment()
        new.type = lief.ELF.Segment.TYPE.LOAD
        new.flags = lief.ELF.Segment.FLAGS(RWX)
        new.alignment = PAGE
        new.content = list(self.content)
        new.virtual_address = self.vaddr
        added = binary.replace(new, binary.segments[self.number])
        if added is None:
            return None
        # What was set before is ignored.
        added.virtual_address = self.vaddr
        added.physical_address = self.paddr
        added.virtual_size = len(self.content)
        binary.header.entrypoint = self.entry
        return bytes(binary.write_to_bytes())

    def pack(self) -> bytes:
        sizes = len(self.data), len(self.content)
        return (
            _REQUEST.pack(*sizes, self.number, self.vaddr, self.paddr, self.entry) + self.data + self.content
        )


def _unpack(raw: bytes) -> Request:
    size, more, number, vaddr, paddr, entry = _REQUEST.unpack_from(raw)
    data, content = raw[_REQUEST.size : _REQUEST.size + size], raw[_REQUEST.size + size :]
    if len(content) != more:
        raise ValueError("the request is cut off")
    return Request(data, number, content, vaddr, paddr, entry)


class Writer:
    """Answers a request, by the other process if there is one."""

    def __init__(self, process: subprocess.Popen[bytes] | None = None) -> None:
        self._process = process

    def __repr__(self) -> str:
        return f"Writer({'beside' if self._process is not None else 'here'})"

    def write(self, request: Request) -> bytes | None:
        """The file with the segment; None when LIEF can't read it or write it."""
        process, self._process = self._process, None
        if process is not None:
            try:
                answer, _ = process.communicate(request.pack(), _PATIENCE)
            except (OSError, subprocess.SubprocessError):
                answer = b""
            finally:
                _end(process)
            if process.returncode == 0 and answer:
                return answer
        return request.written()  # and if that fails too, it fails for its own reasons

    def close(self) -> None:
        if self._process is not None:
            _end(self._process)


@contextmanager
def writer(soon: bool) -> Iterator[Writer]:
    """A writer for the time of a patch; ``soon``: it will be used, if all goes well."""
    made = Writer(_start() if soon and "lief" not in sys.modules and (os.cpu_count() or 1) > 1 else None)
    try:
        yield made
    finally:
        made.close()


def _start() -> subprocess.Popen[bytes] | None:
    if not sys.executable or not os.path.isfile(__file__):
        return None
    # -P: the folder of this file has modules with names of the standard library's.
    command = [sys.executable, "-P", __file__]
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    try:
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nothing)
    except OSError:
        return None


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None and not pipe.closed:
            pipe.close()
    process.wait()


def main() -> None:
    """Load LIEF, then answer the request that comes."""
    import lief  # noqa: F401

    answer = _unpack(sys.stdin.buffer.read()).written()
    if answer is not None:
        sys.stdout.buffer.write(answer)


if __name__ == "__main__":
    main()
