# SPDX-License-Identifier: GPL-2.0-only
"""Renders the table of sensitive instructions as the page docs/instructions.md.

Effect, call and saved registers come from the patcher's own tables and adaptors; only the reasons are
written here. A test compares the file with the output, and another one holds the table against the decoder:
``python -m vmi.patcher.instruction_docs > docs/instructions.md`` brings the page up to date.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vmi.patcher.adaptors import JUMP_OK, NOP_OK, choose, saves
from vmi.patcher.disassembly import disassemble
from vmi.patcher.forms import ALL_FORMS, PAGE_TABLE_FORMS, Effect, Form
from vmi.patcher.model import Site

_INTRODUCTION = """\
# Sensitive instructions

Generated from `vmi/patcher/forms.py` and the adaptors by `python -m vmi.patcher.instruction_docs`; edit
those, not this page.

A kernel that expects to run at privilege level 0 is run at level 1 (or 3) with I/O privilege level 0. An
instruction is *sensitive* if it then does something else than the kernel expects. It **traps** if it raises
an exception, so that a hypervisor can do it; it is **silent** if it executes with a wrong result. Trapping
ones may be left alone, and cost an exit; silent ones must become a call, or be trapped by a breakpoint that
the hypervisor plants. The patcher's name for an instruction and its kinds of operands is its *form*.

## With a call

The slot of such an instruction calls an adaptor, and that the entry of the ROM for the call. *Direct* means
that no adaptor is needed where the arithmetic flags are dead: the slot calls the entry itself.

What an adaptor owes the kernel is everything that the instruction itself leaves alone: all registers, the
arithmetic flags, the direction flag and all memory above the stack pointer. It saves what the call may
spoil, if the kernel may still look at it: the registers under *saves*, each unless it is overwritten
before it is read; the arithmetic flags, if something after the instruction may read them; the direction
flag, if the instruction may run with it set, which is only the case behind an STD. An operand relative to
the stack pointer is reached as the kernel meant it. Registers of any number, memory operands of any shape
and 16-bit addresses are served, with these exceptions, where the instruction stays as it is:

* a result that goes to ESP;
* an operand below the stack pointer, where the adaptor's own stack is;
* an address through FS or GS, if the call takes the address and not the value;
* INS and OUTS where the direction flag may be set, since the calls go upwards.

A *NOP* answer of the ROM removes the instruction only where the column says so."""

_INLINE = """\
## With an adaptor and no call

Reading CS or SS shows the level in the selector's two lowest bits. The adaptor gives the selector with
level 1 shown as 0, and any other level as it is. It changes no flag and no other register, so it is the same
wherever the flags are live. Such slots are connected whenever a ROM is active, whatever it offers."""

_STORES = """\
## Stores to page-table entries

No opcode tells them from other stores; annotations, symbols or a profile of the kernel do. Left alone they
need no care: a hypervisor that must know of them write-protects the tables. The flags argument of the call
names a page table (PT), which is a hint that holds for entries of any level; it promises neither the active
address space nor that the effect may wait.

Refused are stores of more than one entry (REP STOS, or an operand that is larger than an entry), operands
through FS or GS, bit instructions with the bit's number in a register, stores of the stack pointer's value
other than by MOV, and POP."""

_OTHERS = """\
## Without a call

They are left where they are: those that trap are emulated, the silent ones get a breakpoint."""

_ORDINARY = """\
## Not sensitive

| instruction | why |
| --- | --- |
| MOV, POP, LDS, LES, LFS, LGS to DS, ES, FS, GS | a selector of level 0 is accepted for a \
segment of level 1, and reading the register gives back what was loaded |
| INT, INT3, INTO, BOUND | they go through the table of the guest, which the hypervisor reads |
| SYSENTER, SYSCALL | user code's way in, through registers that the hypervisor has; a kernel doesn't \
execute them |
| XGETBV, RDPKRU, WRPKRU, CLFLUSH, FXSAVE, XSAVE and the like | the same at every level |
| VMCALL | a call to whoever is below, by intention |"""

_REASONS = {
    "rdtscp": "RDTSC gives the time, but the number of the processor that was read with it has no call, and "
    "two calls would not be one step.",
    "rdpid r": "No call gives the number of the processor.",
    "wrmsrns": "WRMSR could stand for it; no i386 kernel has it.",
    "lgdtw m": "It loads 24 bits of the base; the call loads all 32.",
    "lidtw m": "It loads 24 bits of the base; the call loads all 32.",
    "sgdtw m": "What it stores above bit 23 of the base differs between processors.",
    "sidtw m": "What it stores above bit 23 of the base differs between processors.",
    "lmsw rm": "It changes four bits of CR0: that would be two calls, and not one step.",
    "verr rm": "It compares with the level of the segment, and a hypervisor that raises the one raises the "
    "other.",
    "verw rm": "As VERR. Kernels use it for its effect on processor buffers, too.",
    "arpl rm,r": "It compares two numbers.",
    "lar r,rm": "It shows a raised level, and hides system segments of level 0: right only with a look at "
    "the guest's descriptor, which no call gives.",
    "lsl r,rm": "It hides system segments of level 0: right only with a look at the guest's descriptor, "
    "which no call gives.",
    "invd": "WBINVD is not the same, and throwing caches away is nobody's business on a shared machine.",
    "hlt": "The call Halt switches interrupts on. HLT alone doesn't, and with interrupts off it stops for "
    "good; the exit costs nothing where one waits anyway.",
    "iretw": "The frame of the call IRET has words of 32 bits.",
    "sysret": "The call is for SYSEXIT, with other registers.",
    "invpcid r,m": "The interface is older than process-context identifiers.",
    "xsetbv": "The interface is older than extended state.",
    "xsaves m": "The interface is older than extended state.",
    "xrstors m": "The interface is older than extended state.",
    "monitor": "The wait that follows it can't be a call.",
    "mwait": "Halt switches interrupts on and watches no memory.",
    "clac": "The interface is older than supervisor access prevention.",
    "stac": "The interface is older than supervisor access prevention.",
    "call far": "It pushes the real level, but it may lead through a gate or to a task, which nothing short "
    "of the instruction does alike.",
    "jmp far": "The level of the new CS is the one that the kernel runs at, whatever the selector says.",
    "retf": "It traps, because the level of the selector on the stack is lower than the real one; where it "
    "is not, it does what it should.",
    "pop ss": "The next instruction runs before any interrupt, and a call would end that.",
    "mov ss,r": "The next instruction runs before any interrupt, and a call would end that.",
    "lss r,m": "It loads the stack that an adaptor would stand on.",
    "insb a16": "It counts and wraps at 16 bits, and the call doesn't.",
    "insw a16": "It counts and wraps at 16 bits, and the call doesn't.",
    "insd a16": "It counts and wraps at 16 bits, and the call doesn't.",
    "outsb a16": "It counts and wraps at 16 bits, and the call doesn't.",
    "outsw a16": "It counts and wraps at 16 bits, and the call doesn't.",
    "outsd a16": "It counts and wraps at 16 bits, and the call doesn't.",
    "vmx": "A hypervisor's own instructions.",
    "svm": "A hypervisor's own instructions.",
    "sgx": "Enclaves are nothing that the interface knows.",
    "shadow stack": "The interface is older than shadow stacks.",
    "tdcall": "A call to whoever is below, by intention.",
    "pconfig": "Memory encryption is nothing that the interface knows.",
    "enqcmds": "Work queues of devices are nothing that the interface knows.",
    "loadiwkey": "Wrapped keys are nothing that the interface knows.",
    "hreset": "The history of the branch predictor is nothing that the interface knows.",
    "rsm": "It belongs to system management mode.",
}
"""Why a form has no call."""

_EXAMPLES = {
    "cpuid": "0fa2", "wrmsr": "0f30", "rdmsr": "0f32", "rdpmc": "0f33", "rdtsc": "0f31",
    "lgdt m": "0f0110", "lidt m": "0f0118", "lldt rm": "0f00d0", "ltr rm": "0f00d8",
    "sgdt m": "0f0100", "sidt m": "0f0108", "sldt rm": "0f00c1", "str rm": "0f00c9", "smsw rm": "0f01e1",
    "mov cr0,r": "0f22c1", "mov cr2,r": "0f22d1", "mov cr3,r": "0f22d9", "mov cr4,r": "0f22e1",
    "mov r,cr0": "0f20c1", "mov r,cr2": "0f20d1", "mov r,cr3": "0f20d9", "mov r,cr4": "0f20e1",
    "mov dr,r": "0f23f9", "mov r,dr": "0f21f1", "wbinvd": "0f09", "wbnoinvd": "f30f09", "clts": "0f06",
    "cli": "fa", "sti": "fb", "sti;hlt": "fbf4", "pushf": "9c", "popf": "9d", "pushfw": "669c",
    "popfw": "669d", "iret": "cf", "sysexit": "0f35", "invlpg m": "0f0138",
    "in al": "ec", "in ax": "66ed", "in eax": "ed", "out al": "ee", "out ax": "66ef", "out eax": "ef",
    "insb": "f36c", "insw": "f3666d", "insd": "f36d", "outsb": "f36e", "outsw": "f3666f", "outsd": "f36f",
    "mov r,cs": "8cc8", "mov r,ss": "8cd0", "push cs": "0e", "push ss": "16",
    "set pte": "8911", "update pte": "f00fba3006", "update pte long": "f00fc70e",
}  # fmt: skip
"""One encoding for each form with a call or an inline adaptor."""


def _site(form: Form) -> Site:
    raw = bytes.fromhex(_EXAMPLES[form.name])
    return Site(0, raw, form.name, form.call, True, False, flags_live=False, inline=form.inline)


def _text(site: Site) -> str:
    return "`" + "; ".join(row.text for row in disassemble(site.raw, 0)) + "`"


def _called(forms: Iterable[Form]) -> Iterable[Sequence[str]]:
    """Rows for forms with a call, in order of the call."""
    for form in sorted(forms, key=lambda form: (form.call.number if form.call else 0, form.name)):
        site, call = _site(form), form.call
        assert call is not None
        direct = "direct" if choose(site) is None else "adaptor"
        if form.name in JUMP_OK:
            direct = "direct, never comes back"
        saved = " ".join(register.upper() for register in saves(site)) or "-"
        nop = "yes" if form.name in NOP_OK else "no"
        name = f"[{call.name}](abi.md#{call.number}-{call.name.lower()})"
        yield (f"`{form.name}`", _text(site), form.effect.value, name, direct, saved, nop)


def _without(forms: Iterable[Form]) -> Iterable[Sequence[str]]:
    for form in forms:
        yield (f"`{form.name}`", form.effect.value, _REASONS[form.name])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [head, ["---"] * len(head), *rows]
    return ["", *("| " + " | ".join(row) + " |" for row in cells), ""]


def render() -> str:
    """Return the whole page, Markdown, ending in one newline; the same text every time."""
    forms = sorted(ALL_FORMS.values(), key=lambda form: (form.effect is not Effect.SILENT, form.name))
    called = ("form", "for example", "at level 1", "call", "slot", "saves", "NOP")
    lines = [_INTRODUCTION, *_table(called, _called(form for form in forms if form.call))]
    inline = ((f"`{form.name}`", form.effect.value) for form in forms if form.inline)
    lines += [_INLINE, *_table(("form", "at level 1"), inline)]
    lines += [_STORES, *_table(called, _called(PAGE_TABLE_FORMS.values()))]
    others = (form for form in forms if not form.call and not form.inline)
    lines += [_OTHERS, *_table(("form", "at level 1", "why there is no call"), _without(others)), _ORDINARY]
    return "\n".join(lines).rstrip("\n") + "\n"


if __name__ == "__main__":
    print(render(), end="")
