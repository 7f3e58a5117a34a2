# SPDX-License-Identifier: GPL-2.0-only
"""Guests that do one thing many times, to see what it costs: multiboot images, made for a number of times.

They end through the debug-exit port with 10h; the others, clients of the interface, with 11h if something is
not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vmi import abi
from vmi.rom.assemble import assemble

BASE = 0x100000
_MAGIC, _FLAGS = 0x1BADB002, 0x00010000
TABLE, _DIRECTORY, _IDT, _STACK, _ROM = 0x180000, 0x181000, 0x200000, 0x170000, 0xC0000

_HEAD = """
header: .long {magic}, {flags}, {checksum}, header, header, 0, 0, start
gdt: .long 0, 0, 0xffff, 0x00cf9b00, 0xffff, 0x00cf9300
gdt_pointer: .word 23
 .long gdt
idt_pointer: .word 0x7ff
 .long {idt}
start:
 mov esp, {stack}
 lgdt [{{gdt_pointer}}]
 mov ax, 0x10
 mov ds, ax
 mov es, ax
 mov ss, ax
 mov fs, ax
 mov gs, ax
"""
_GATE = """
 mov eax, {{handler}}
 mov [{gate}], ax
 mov word ptr [{gate2}], 8
 mov word ptr [{gate4}], 0x8e00
 shr eax, 16
 mov [{gate6}], ax
 lidt [{{idt_pointer}}]
"""
# the first 4 MiB one to one, and a table with nothing in it behind them
_PAGING = """
 mov dword ptr [{directory}], 0x83
 mov dword ptr [{directory4}], {table7}
 mov eax, cr4
 or eax, 0x10
 mov cr4, eax
 mov eax, {directory}
 mov cr3, eax
 mov eax, cr0
 or eax, 0x80010000
 mov cr0, eax
"""
_TAIL = """
 mov al, 0x10
 out 0xf4, al
failed:
 mov al, 0x11
 out 0xf4, al
hang: jmp hang
"""


@dataclass(frozen=True)
class Loop:
    """One kind of work.

    :ivar source: what is done ECX times.
    :ivar quick: times in a unit where it is fast, :ivar slow: and a number that takes a moment anywhere.
    :ivar vector: the exception or interrupt that ``handler`` is for.
    """

    name: str
    source: str
    quick: int
    slow: int
    vector: int | None = None


_WINDOW = "and edi, 0x38ffff"  # the 64 KiB that loads and stores stay in
LOOPS = (
    Loop("register arithmetic", "again: add eax, ecx\n xor ebx, eax\n rol ebx, 3\n dec ecx\n jnz again",
         20_000_000, 2_000_000),
    Loop("loads", f"mov edi, 0x380000\nagain: mov eax, [edi]\n add edi, 4\n {_WINDOW}\n dec ecx\n jnz again",
         8_000_000, 1_000_000),
    Loop("stores", f"mov edi, 0x380000\nagain: mov [edi], eax\n add edi, 4\n {_WINDOW}\n dec ecx\n jnz again",
         8_000_000, 1_000_000),
    Loop("calls and returns", "jmp again\nsub: ret\nagain: call sub\n dec ecx\n jnz again",
         6_000_000, 1_000_000),
    Loop("INT and IRET", "jmp again\nhandler: iretd\nagain: int 0x40\n dec ecx\n jnz again",
         200_000, 4_000, 0x40),
    Loop("page fault and IRET",
         "jmp again\nhandler: add esp, 4\n add dword ptr [esp], 5\n iretd\n"
         "again: mov eax, [0x500000]\n dec ecx\n jnz again",
         60_000, 4_000, 14),
    Loop("load of CR3", "mov eax, cr3\nagain: mov cr3, eax\n dec ecx\n jnz again", 200_000, 10_000),
    Loop("port writes", "again: out 0x80, al\n dec ecx\n jnz again", 200_000, 10_000),
    Loop("port reads", "again: in al, 0x61\n dec ecx\n jnz again", 200_000, 10_000),
)  # fmt: skip

#: Calls that go to the hypervisor and change nothing when made twice: arguments in EAX, EDX and ECX.
CALL_OUTS = {
    "SetCR3": (_DIRECTORY,),
    "SetCR2": (1,),
    "SetLDT": (0,),
    "InvalPage": (0x400000,),
    "GetDR": (0,),
    "GetWallclockTime": (),
}


def loop(which: Loop, times: int) -> bytes:
    """The image of a loop."""
    gate = "" if which.vector is None else _GATE.format(**_gate(which.vector))
    # the handler stands in front of the loop, and the jump over it needs a line of its own
    return _image(f"{_HEAD}{gate}{_PAGING} mov ecx, {times}\n{which.source}\n{_TAIL}")


def call_out(name: str, times: int) -> bytes:
    """A client of the interface that makes one of the :data:`CALL_OUTS` many times."""
    arguments = zip(("eax", "edx", "ecx"), CALL_OUTS[name], strict=False)
    loads = "".join(f" mov {register}, {value}\n" for register, value in arguments)
    made = f"again:\n{loads} call dword ptr [{{{name}}}]\n dec ebp\n jnz again\n"
    return client((name,), f" mov ebp, {times}\n{made}")


def client(calls: Sequence[str], source: str) -> bytes:
    """A client of the interface: the entry of each of ``calls`` is in a word of the call's name."""
    words = "".join(f"{call}: .long 0\n" for call in calls)
    asked = "".join(
        f" mov eax, {abi.BY_NAME[call].number}\n mov ecx, {_ROM + abi.GET_RELOC_OFFSET}\n call ecx\n"
        f" mov [{{{call}}}], eax\n"
        for call in calls
    )
    begun = f" mov eax, {_ROM + abi.INIT_OFFSET}\n call eax\n test eax, eax\n jnz failed\n"
    return _image(f"{words}{_HEAD}{_PAGING}{begun}{asked}{source}{_TAIL}")


def _gate(vector: int) -> dict[str, int]:
    at = _IDT + 8 * vector
    return {"gate": at, "gate2": at + 2, "gate4": at + 4, "gate6": at + 6}


def _image(source: str) -> bytes:
    values = {
        "{magic}": _MAGIC, "{flags}": _FLAGS, "{checksum}": -(_MAGIC + _FLAGS) & 0xFFFFFFFF, "{idt}": _IDT,
        "{stack}": _STACK, "{directory}": _DIRECTORY, "{directory4}": _DIRECTORY + 4, "{table7}": TABLE + 7,
    }  # fmt: skip
    for name, value in values.items():
        source = source.replace(name, str(value))
    return assemble(source.replace("{{", "{").replace("}}", "}"), BASE).code
