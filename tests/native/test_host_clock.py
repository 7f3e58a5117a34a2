# SPDX-License-Identifier: GPL-2.0-only
"""The host's clock decides nothing, not even inside the emulator library."""

from __future__ import annotations

import time

from tests.native.guest import MS, Guest


def test_what_is_cached_does_not_depend_on_the_hosts_clock():
    """A guest with few pages for long, then with ten that share a place in a small cache.

    It changes them without telling the processor, so that it sees which translations are cached.
    """
    few = "mov ecx,1000 | {0}: mov eax,cr3 | mov cr3,eax | mov eax,[0x5000] | loop {0}"
    each = "xor ecx,ecx | mov ebx,{1} | {0}: {2} | add ebx,{3} | inc ecx | cmp ecx,10 | jb {0}"
    source = " | ".join(
        (
            few.format("a"),
            few.format("b"),
            each.format("c", 0x1000000, "mov eax,[ebx]", 0x40000),
            each.format("d", 0x25000, "mov dword ptr [ebx],0x6007", 0x100),
            "xor edx,edx",
            each.format("e", 0x1000000, "mov eax,[ebx] | add edx,eax", 0x40000),
            "mov [0x50000],edx | hlt",
        )
    )
    found = []
    for pause in (0, 0.15):
        guest = Guest(source, ram=32 << 20)
        guest.page(size=32 << 20)
        guest.memory.put_u32(0x6000, 1)
        guest.machine.run(30_000)
        time.sleep(pause)
        guest.machine.run(MS)
        found.append(guest.u32(0x50000))
    assert found == [0, 0]
