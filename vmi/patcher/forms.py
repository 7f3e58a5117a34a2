# SPDX-License-Identifier: GPL-2.0-only
"""Sensitive i386 instructions: from a decoded instruction to its normal form and its effect at CPL 1.

A normal form is a short lower-case string (``"mov cr3,r"``). Those that the ABI table names are spelled as
there; a few more have a call that does what they do, or an adaptor that needs none; the rest are only ever
reported. The effect is what a kernel at CPL 1 with IOPL 0 sees when the instruction is executed as it is:
nothing wrong, a #GP/#UD that the hypervisor can emulate, or a wrong result without any trap.

``docs/instructions.md`` shows the whole table with the reasons.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from iced_x86 import Code, Instruction, InstructionInfoFactory, OpAccess, OpKind, Register

from vmi import abi

Codes = tuple[int, ...]


class Effect(StrEnum):
    """What native execution at CPL 1, IOPL 0, does."""

    HARMLESS = "harmless"
    """The right thing, as long as the guest's own descriptor tables are the real ones."""
    TRAPS = "traps"
    """Raises an exception by itself, so it can always be left where it is."""
    SILENT = "silent"
    """Executes, with a wrong result: must become a slot or a planted breakpoint."""


@dataclass(frozen=True, slots=True)
class Form:
    """A normal form. ``shadow``: the next instruction runs before any interrupt is taken.

    ``inline``: an adaptor without any call does what the instruction should. ``by`` names the call that
    stands for a form that the ABI table doesn't name.
    """

    name: str
    effect: Effect
    shadow: bool = False
    inline: bool = False
    by: str = ""

    @property
    def call(self) -> abi.Call | None:
        """The VMI call that stands for it."""
        return abi.BY_NAME[self.by] if self.by else abi.BY_INSTRUCTION.get(self.name)

    def __repr__(self) -> str:
        return f"Form({self.name!r}, {self.effect})"


_T, _S, _H = Effect.TRAPS, Effect.SILENT, Effect.HARMLESS

# Forms that follow from the opcode alone.
_PLAIN: tuple[tuple[str, Effect, Codes], ...] = (
    ("cpuid", _S, (Code.CPUID,)),
    ("rdtsc", _S, (Code.RDTSC,)),
    ("rdtscp", _S, (Code.RDTSCP,)),
    ("rdpid r", _S, (Code.RDPID_R32,)),
    ("rdpmc", _T, (Code.RDPMC,)),
    ("wrmsr", _T, (Code.WRMSR,)),
    ("rdmsr", _T, (Code.RDMSR,)),
    ("wrmsrns", _T, (Code.WRMSRNS,)),
    ("lgdt m", _T, (Code.LGDT_M1632,)),
    ("lidt m", _T, (Code.LIDT_M1632,)),
    # With an operand-size prefix the base has 24 bits only: no call means that.
    ("lgdtw m", _T, (Code.LGDT_M1632_16,)),
    ("lidtw m", _T, (Code.LIDT_M1632_16,)),
    ("lldt rm", _T, (Code.LLDT_RM16, Code.LLDT_R32M16)),
    ("ltr rm", _T, (Code.LTR_RM16, Code.LTR_R32M16)),
    ("sgdt m", _S, (Code.SGDT_M1632,)),
    ("sidt m", _S, (Code.SIDT_M1632,)),
    ("sgdtw m", _S, (Code.SGDT_M1632_16,)),
    ("sidtw m", _S, (Code.SIDT_M1632_16,)),
    ("sldt rm", _S, (Code.SLDT_RM16, Code.SLDT_R32M16)),
    ("str rm", _S, (Code.STR_RM16, Code.STR_R32M16)),
    ("smsw rm", _S, (Code.SMSW_RM16, Code.SMSW_R32M16)),
    ("lmsw rm", _T, (Code.LMSW_RM16, Code.LMSW_R32M16)),
    ("verr rm", _H, (Code.VERR_RM16, Code.VERR_R32M16)),
    ("verw rm", _H, (Code.VERW_RM16, Code.VERW_R32M16)),
    ("arpl rm,r", _H, (Code.ARPL_RM16_R16, Code.ARPL_R32M16_R32)),
    # A raised DPL shows in LAR, and system descriptors of DPL 0 are hidden from both.
    ("lar r,rm", _S, (Code.LAR_R16_RM16, Code.LAR_R32_R32M16)),
    ("lsl r,rm", _S, (Code.LSL_R16_RM16, Code.LSL_R32_R32M16)),
    ("wbinvd", _T, (Code.WBINVD,)),
    ("wbnoinvd", _T, (Code.WBNOINVD,)),
    ("invd", _T, (Code.INVD,)),
    ("clts", _T, (Code.CLTS,)),
    ("cli", _T, (Code.CLI,)),
    ("hlt", _T, (Code.HLT,)),
    ("pushf", _S, (Code.PUSHFD,)),
    ("popf", _S, (Code.POPFD,)),
    ("iret", _S, (Code.IRETD,)),
    ("pushfw", _S, (Code.PUSHFW,)),
    ("popfw", _S, (Code.POPFW,)),
    ("iretw", _S, (Code.IRETW,)),
    ("sysexit", _T, (Code.SYSEXITD,)),
    ("sysret", _T, (Code.SYSRETD,)),
    ("invlpg m", _T, (Code.INVLPG_M,)),
    ("invpcid r,m", _T, (Code.INVPCID_R32_M128,)),
    ("xsetbv", _T, (Code.XSETBV,)),
    ("xsaves m", _T, (Code.XSAVES_MEM,)),
    ("xrstors m", _T, (Code.XRSTORS_MEM,)),
    ("monitor", _T, (Code.MONITORD, Code.MONITORW)),
    ("mwait", _T, (Code.MWAIT,)),
    ("clac", _T, (Code.CLAC,)),
    ("stac", _T, (Code.STAC,)),
    ("in eax", _T, (Code.IN_EAX_DX, Code.IN_EAX_IMM8)),
    ("in ax", _T, (Code.IN_AX_DX, Code.IN_AX_IMM8)),
    ("in al", _T, (Code.IN_AL_DX, Code.IN_AL_IMM8)),
    ("out eax", _T, (Code.OUT_DX_EAX, Code.OUT_IMM8_EAX)),
    ("out ax", _T, (Code.OUT_DX_AX, Code.OUT_IMM8_AX)),
    ("out al", _T, (Code.OUT_DX_AL, Code.OUT_IMM8_AL)),
    ("push cs", _S, (Code.PUSHD_CS, Code.PUSHW_CS)),
    ("push ss", _S, (Code.PUSHD_SS, Code.PUSHW_SS)),
    # A far call pushes the real CS. The matching return has RPL 0 < CPL and traps.
    ("call far", _S, (Code.CALL_PTR1616, Code.CALL_PTR1632, Code.CALL_M1616, Code.CALL_M1632)),
    ("jmp far", _H, (Code.JMP_PTR1616, Code.JMP_PTR1632, Code.JMP_M1616, Code.JMP_M1632)),
    ("retf", _T, (Code.RETFD, Code.RETFD_IMM16, Code.RETFW, Code.RETFW_IMM16)),
    ("lss r,m", _T, (Code.LSS_R32_M1632, Code.LSS_R16_M1616)),
    # Extensions that are no i386 kernel's daily bread: each refuses a CPL above 0, or is not there at all.
    (
        "vmx",
        _T,
        (
            *(Code.VMXON_M64, Code.VMXOFF, Code.VMLAUNCH, Code.VMRESUME, Code.VMPTRLD_M64, Code.VMPTRST_M64),
            *(Code.VMCLEAR_M64, Code.VMREAD_RM32_R32, Code.VMWRITE_R32_RM32),
            *(Code.INVEPT_R32_M128, Code.INVVPID_R32_M128),
        ),
    ),
    (
        "svm",
        _T,
        (
            *(Code.VMRUNW, Code.VMRUND, Code.VMLOADW, Code.VMLOADD, Code.VMSAVEW, Code.VMSAVED),
            *(Code.STGI, Code.CLGI, Code.SKINIT, Code.INVLPGAW, Code.INVLPGAD),
            *(Code.PVALIDATEW, Code.PVALIDATED, Code.INVLPGBW, Code.INVLPGBD, Code.TLBSYNC),
        ),
    ),
    ("sgx", _T, (Code.ENCLS, Code.ENCLV)),
    ("shadow stack", _T, (Code.SETSSBSY, Code.CLRSSBSY_M64, Code.WRUSSD_M32_R32)),
    ("tdcall", _T, (Code.TDCALL,)),
    ("pconfig", _T, (Code.PCONFIG,)),
    ("enqcmds", _T, (Code.ENQCMDS_R32_M512, Code.ENQCMDS_R16_M512)),
    ("loadiwkey", _T, (Code.LOADIWKEY_XMM_XMM,)),
    ("hreset", _T, (Code.HRESET_IMM8,)),
    ("rsm", _T, (Code.RSM,)),
)

# Calls that do what an instruction does that the ABI table doesn't name.
_BY = {
    "smsw rm": "GetCR0",
    "wbnoinvd": "WBINVD",  # which it is on every processor that doesn't know better
    "pushfw": "GetInterruptMask",
    "popfw": "SetInterruptMask",
}
_INLINE = frozenset(("push cs", "push ss"))

# The two that hold off interrupts for one instruction, besides `mov ss`.
_SHADOW: tuple[tuple[str, Effect, Codes], ...] = (
    ("sti", _T, (Code.STI,)),
    ("pop ss", _T, (Code.POPD_SS, Code.POPW_SS)),
)

_STRING: dict[int, str] = {
    Code.INSB_M8_DX: "insb",
    Code.INSW_M16_DX: "insw",
    Code.INSD_M32_DX: "insd",
    Code.OUTSB_DX_M8: "outsb",
    Code.OUTSW_DX_M16: "outsw",
    Code.OUTSD_DX_M32: "outsd",
}
_MOVES: Codes = (
    Code.MOV_CR_R32,
    Code.MOV_R32_CR,
    Code.MOV_DR_R32,
    Code.MOV_R32_DR,
    Code.MOV_RM16_SREG,
    Code.MOV_R32M16_SREG,
    Code.MOV_SREG_RM16,
    Code.MOV_SREG_R32M16,
)

_FIXED: dict[int, Form] = {
    code: Form(name, effect, table is _SHADOW, name in _INLINE, _BY.get(name, ""))
    for table in (_PLAIN, _SHADOW)
    for name, effect, codes in table
    for code in codes
}

SENSITIVE: frozenset[int] = frozenset(_FIXED) | frozenset(_STRING) | frozenset(_MOVES)
"""Decoder code numbers for which `classify` may give a form."""

_STI_HLT = Form("sti;hlt", Effect.TRAPS)
_CR = {Register.CR0 + n: f"cr{n}" for n in (0, 2, 3, 4)}
_MOVE_TO_CR = {register: Form(f"mov {name},r", Effect.TRAPS) for register, name in _CR.items()}
_MOVE_FROM_CR = {register: Form(f"mov r,{name}", Effect.TRAPS) for register, name in _CR.items()}
_MOVE_TO_DR = Form("mov dr,r", Effect.TRAPS)
_MOVE_FROM_DR = Form("mov r,dr", Effect.TRAPS)
# Only these two selectors show the privilege level; reading DS, ES, FS, GS gives back what was loaded.
_READ_SREG = {
    Register.CS: Form("mov r,cs", Effect.SILENT, inline=True),
    Register.SS: Form("mov r,ss", Effect.SILENT, inline=True),
}
_LOAD_SS = Form("mov ss,r", Effect.TRAPS, shadow=True)
_FLAT_STRING = {code: Form(name, Effect.TRAPS) for code, name in _STRING.items()}
_SHORT_STRING = {code: Form(f"{name} a16", Effect.TRAPS) for code, name in _STRING.items()}

ALL_FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        *_FIXED.values(),
        *_MOVE_TO_CR.values(),
        *_MOVE_FROM_CR.values(),
        *(_MOVE_TO_DR, _MOVE_FROM_DR),
        *_READ_SREG.values(),
        _LOAD_SS,
        *_FLAT_STRING.values(),
        *_SHORT_STRING.values(),
        _STI_HLT,
    )
}
"""Every form that an opcode tells (or a pair of them), by name."""


def classify(insn: Instruction) -> Form | None:
    """The form of a decoded 32-bit-mode instruction, None when it isn't sensitive."""
    code = insn.code
    fixed = _FIXED.get(code)
    if fixed is not None:
        return fixed
    if code in _STRING:
        return (_FLAT_STRING if _flat_string(insn) else _SHORT_STRING)[code]
    if code == Code.MOV_CR_R32:
        return _MOVE_TO_CR[insn.op0_register]
    if code == Code.MOV_R32_CR:
        return _MOVE_FROM_CR[insn.op1_register]
    if code == Code.MOV_DR_R32:
        return _MOVE_TO_DR
    if code == Code.MOV_R32_DR:
        return _MOVE_FROM_DR
    if code in (Code.MOV_RM16_SREG, Code.MOV_R32M16_SREG):
        return _READ_SREG.get(insn.op1_register)
    if code in (Code.MOV_SREG_RM16, Code.MOV_SREG_R32M16) and insn.op0_register == Register.SS:
        return _LOAD_SS
    return None


def pair(first: Form, second: Form | None) -> Form | None:
    """The form of two adjacent instructions that are one site (``sti;hlt``), None for all other pairs."""
    if first.name == "sti" and second is not None and second.name == "hlt":
        return _STI_HLT
    return None


def _flat_string(insn: Instruction) -> bool:
    """True when ins/outs uses the 32-bit index register (no address-size prefix)."""
    wide = (OpKind.MEMORY_ESEDI, OpKind.MEMORY_SEG_ESI)
    return insn.op0_kind in wide or insn.op1_kind in wide


# --- page-table stores --------------------------------------------------------------------------

# No opcode tells them from other stores: who knows the kernel says which ones they are (`make_plan`'s
# ``extra``). Left alone they need no care: a hypervisor that must know of them protects the tables.
SET_PTE = Form("set pte", Effect.TRAPS, by="SetPxE")
"""A plain 32-bit store of a 4-byte entry: the call stores it."""
UPDATE_PTE = Form("update pte", Effect.TRAPS, by="UpdatePxE")
"""Any other change of a 4-byte entry: the instruction stores it, then the call reports it."""
UPDATE_PTE_LONG = Form("update pte long", Effect.TRAPS, by="UpdatePxELong")
"""Any change of (half of) an 8-byte entry: the instruction stores it, then the call reports it."""

PAGE_TABLE_FORMS: dict[str, Form] = {form.name: form for form in (SET_PTE, UPDATE_PTE, UPDATE_PTE_LONG)}

_STORES = (OpAccess.WRITE, OpAccess.READ_WRITE, OpAccess.COND_WRITE, OpAccess.READ_COND_WRITE)
PLAIN_STORES: Codes = (
    Code.MOV_RM32_R32,
    Code.MOV_RM32_IMM32,
    Code.MOV_MOFFS32_EAX,
)


def page_table_form(insn: Instruction, long: bool = False) -> Form | None:
    """The form for an instruction that is known to store to one page-table entry; None when no call fits.

    ``long``: the kernel's entries have 8 bytes (PAE).
    """
    if insn.op_count == 0 or insn.op0_kind != OpKind.MEMORY:
        return None
    if InstructionInfoFactory().info(insn).op0_access not in _STORES:
        return None
    if long:
        return UPDATE_PTE_LONG
    return SET_PTE if insn.code in PLAIN_STORES else UPDATE_PTE
