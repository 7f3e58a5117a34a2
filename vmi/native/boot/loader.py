# SPDX-License-Identifier: GPL-2.0-only
"""Load a kernel by whichever boot protocol it speaks.

Each protocol is a row of ``PROTOCOLS``; the order of the rows is the order in which ``qemu-system-i386
-kernel`` tries them. A protocol is added by writing its file and its row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vmi.errors import BadInput, UsageError
from vmi.memory import PhysicalMemory
from vmi.native.boot import linux, multiboot, plain, pvh
from vmi.native.boot.state import BootState, Module, Plan, Request
from vmi.native.boot.unpack import unpack

__all__ = ["PROTOCOLS", "BootState", "Module", "Protocol", "identify", "load"]


@dataclass(frozen=True)
class Protocol:
    """One way to boot: whether an image is made for it, and what to load for a request.

    ``plan`` gets the request and the bytes of RAM. ``raw`` protocols take the file as it is, even if it
    looks compressed, and take an address.
    """

    name: str
    title: str
    recognise: Callable[[bytes], bool]
    plan: Callable[[Request, int], Plan]
    raw: bool = False


_ROWS = (
    Protocol("linux", "Linux bzImage", linux.recognise, linux.plan),
    Protocol("multiboot", "multiboot, version 1", multiboot.recognise, multiboot.plan),
    Protocol("pvh", "Xen's PVH", pvh.recognise, pvh.plan),
    Protocol("elf", "plain ELF file", plain.recognise, plain.plan_elf),
    Protocol("flat", "flat binary", plain.never, plain.plan_flat, raw=True),
)
PROTOCOLS = {row.name: row for row in _ROWS}


def identify(image: bytes) -> str:
    """The name of the protocol that an image is made for; it may be gzip-compressed.

    :raises BadInput: for none. Flat binaries are never recognised.
    """
    return _identify(unpack(image)).name


def _identify(image: bytes) -> Protocol:
    for row in _ROWS:
        if row.recognise(image):
            return row
    sentence = "the kernel has no Linux or multiboot header and is no ELF file"
    if multiboot.is_version_2(image):
        sentence += " (it has a header of multiboot version 2, which can't be loaded)"
    raise BadInput(f"{sentence}: if it is a flat binary, ask for protocol 'flat'")


def load(
    image: bytes,
    memory: PhysicalMemory,
    *,
    name: str = "kernel",
    append: str = "",
    protocol: str | None = None,
    modules: Sequence[Module] = (),
    address: int | None = None,
) -> BootState:
    """Load a kernel and give the state to start it in; nothing is written if it is refused.

    :param image: the file's bytes, gzip-compressed or not.
    :param name: what multiboot command lines begin with; other protocols have no place for it.
    :param append: the kernel's options.
    :param protocol: a name from ``PROTOCOLS``, None to look at the image.
    :param modules: boot modules; Linux takes one, its initrd.
    :param address: where a flat image goes, 1 MiB if None; other images know it themselves.
    :raises BadInput: the kernel is damaged, or does not fit into memory.
    :raises UsageError: the protocol is unknown, or can't do what is asked for.
    """
    if protocol is not None and protocol not in PROTOCOLS:
        raise UsageError(f"boot protocol {protocol!r} is not one of {', '.join(PROTOCOLS)}")
    row = None if protocol is None else PROTOCOLS[protocol]
    if row is None or not row.raw:
        image = unpack(image)
    row = row or _identify(image)
    if address is not None and not row.raw:
        raise UsageError(f"only a flat binary takes a load address, but the kernel's protocol is {row.name}")
    return row.plan(Request(image, name, append, tuple(modules), address), memory.size).store(memory)
