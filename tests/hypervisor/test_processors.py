# SPDX-License-Identifier: GPL-2.0-only
"""Several virtual CPUs: how a second one starts, what it begins with, and what each has for itself."""

from __future__ import annotations

import pytest

from tests.hypervisor.lab import SITE, Lab, call, place_call
from tests.native.guest import CODE0, CODE3, DATA0, DATA3, GDT, IDT, MS, PAGES, STACK, TASK
from vmi import abi, samples
from vmi.abi import AlarmFlag, Counter
from vmi.native.cpuid import I686_APIC
from vmi.native.machine import Outcome
from vmi.patcher import patch
from vmi.rom.build import build
from vmi.rom.flavours import vmware
from vmi.run import run_kernel
from vmi.x86 import Cr0, Eflags, Vector

STATE = 0x7801  # where the guest keeps it: at an odd address, as no rule asks for another
ICR, ICR_HIGH = 0xFEE00300, 0xFEE00310
INIT, STARTUP = 0x4500, 0x4612
SHARED = 0x7000
OTHER_STACK = 0xC000
DONE = "mov al,1\nout 0xf4,al\nhlt"
WAIT = "l{0}: pause\ncmp dword ptr [0x7ffc],{0}\njb l{0}"
TELL = "inc dword ptr [0x7ffc]"

# What a processor begins with if nothing else is said: flat, no paging, everything else 0.
USUAL = {
    "cr0": int(Cr0.PE | Cr0.ET), "esp": OTHER_STACK, "cs": CODE0, "ss": DATA0, "ds": DATA3, "es": DATA3,
    "gdtr_base": GDT, "gdtr_limit": 0xFFF, "idtr_base": IDT, "idtr_limit": 0x7FF,
}  # fmt: skip


def packed(fields: dict[str, int]) -> bytes:
    """The ABI's structure."""
    data = bytearray(abi.AP_STATE_SIZE)
    for each in abi.AP_STATE:
        data[each.offset : each.offset + each.size] = fields.get(each.name, 0).to_bytes(each.size, "little")
    return bytes(data)


def messages(*values: int) -> str:
    lines = [f"mov dword ptr [{ICR_HIGH:#x}],0x1000000"]
    return "\n".join(lines + [f"mov dword ptr [{ICR:#x}],{value:#x}" for value in values])


START = messages(INIT, STARTUP)


def two(source: str, handlers: dict[int, str] | None = None, **fields: int) -> Lab:
    """A guest of two processors; the second one has been given a state: it begins at label "other"."""
    lab = Lab(source, handlers, "paravirt", model=I686_APIC, cpus=2)
    lab.memory.write(STATE, packed({**USUAL, "eip": lab.labels["other"], **fields}))
    entry = lab.cpu.eip
    assert call(lab, "SetInitialAPState", eax=STATE, edx=1).returned
    lab.memory.write(STATE, b"\xff" * abi.AP_STATE_SIZE)
    lab.cpu.eip, lab.cpu.esp = entry, STACK
    return lab


def ended(lab: Lab) -> None:
    end = lab.machine.run(100 * MS)
    assert end.outcome is Outcome.DEBUG_EXIT, end.reason


# -- whole kernels ------------------------------------------------------------------------------


@pytest.mark.parametrize("mmu", ["direct", "shadow"])
@pytest.mark.parametrize("mode", ["paravirt", "full"])
def test_the_sample_kernel_starts_its_processors_in_real_mode(mode: str, mmu: str) -> None:
    sample = samples.get("smp")
    image = sample.path.read_bytes()
    options = {"full": True} if mode == "full" else {"rom": build("vmware").image}
    result = run_kernel(
        image if mode == "full" else patch(image).data, model=I686_APIC, cpus=3, mmu=mmu,
        timeout_ns=1000 * MS, **options,
    )  # fmt: skip
    assert (result.console.decode(), result.exit_status) == (sample.expected, sample.exit_status)
    assert result.exits["processor switch"] > 100


def test_two_runs_are_the_same() -> None:
    image = patch(samples.get("smp").path.read_bytes()).data
    runs = [
        run_kernel(image, rom=build("vmware").image, model=I686_APIC, cpus=3, timeout_ns=1000 * MS)
        for _ in range(2)
    ]
    assert runs[0].ram_sha256 == runs[1].ram_sha256
    assert (runs[0].exits, runs[0].instructions) == (runs[1].exits, runs[1].instructions)


# -- SetInitialAPState ----------------------------------------------------------------------------


def test_the_state_is_copied_and_all_of_it_counts() -> None:
    """VMI-SetInitialAPState-01 and -02: registers as given, ring and flags as they show to the guest."""
    registers = ("eax", "ebx", "ecx", "edx", "ebp", "esi", "edi")
    given = {name: 0x11111111 * (n + 1) for n, name in enumerate(registers)}
    stores = "\n".join(f"mov [{SHARED + 4 * n:#x}],{name}" for n, name in enumerate(registers))
    lab = two(
        f"{START}\n{WAIT.format(1)}\n{DONE}"
        f"\nother: {stores}\nmov [{SHARED + 28:#x}],esp\nmov eax,cr2\nmov [{SHARED + 32:#x}],eax"
        f"\nmov eax,ds\nmov [{SHARED + 36:#x}],eax\nmov eax,gs\nmov [{SHARED + 40:#x}],eax"
        f"\nstr eax\nmov [{SHARED + 44:#x}],eax\nsldt eax\nmov [{SHARED + 48:#x}],eax\n{TELL}\n@halt",
        **given,
        cr2=0xABCDE000,
    )
    ended(lab)
    words = [lab.memory.u32(SHARED + 4 * n) for n in range(13)]
    assert words == [*given.values(), OTHER_STACK, 0xABCDE000, DATA3, 0, 0, 0]


def test_it_begins_with_paging_on() -> None:
    """The first start-up message starts it in the paged state; its vector says nothing."""
    lab = two(
        f"{START}\n{WAIT.format(1)}\n{DONE}\nother: mov eax,[0x400000]\nmov [{SHARED:#x}],eax\n{TELL}\n@halt",
        cr0=int(Cr0.PE | Cr0.ET | Cr0.PG),
        cr3=PAGES,
    )
    for n in range(1024):
        lab.memory.put_u32(PAGES + 0x1000 + 4 * n, n << 12 | 3)
    lab.memory.put_u32(PAGES, PAGES + 0x1003)
    lab.memory.put_u32(PAGES + 4, PAGES + 0x2003)
    lab.memory.put_u32(PAGES + 0x2000, 0x6003)
    lab.memory.put_u32(PAGES + 4 * 0x3FB, 0)
    lab.memory.put_u32(0x6000, 0x12345678)
    ended(lab)
    assert lab.memory.u32(SHARED) == 0x12345678


def test_a_second_start_up_message_has_no_effect() -> None:
    lab = two(
        f"{START}\n{messages(STARTUP)}\n{WAIT.format(1)}\n{messages(STARTUP)}\nmov ecx,20000"
        f"\nw: dec ecx\njnz w\n{DONE}\nother: inc dword ptr [{SHARED:#x}]\n{TELL}\n@halt"
    )
    ended(lab)
    assert lab.memory.u32(SHARED) == 1


@pytest.mark.parametrize("rpl", [0, 1])
def test_selectors_of_either_ring_are_adjusted(rpl: int) -> None:
    """VMI-SetInitialAPState-04: and what the kernel sees of its own is what the first processor sees."""
    lab = two(
        f"mov eax,cs\nmov [{SHARED:#x}],eax\n{START}\n{WAIT.format(1)}\n{DONE}"
        f"\nother: mov eax,cs\nmov [{SHARED + 4:#x}],eax\nmov eax,ss\nmov [{SHARED + 8:#x}],eax"
        f"\n{TELL}\n@halt",
        cs=CODE0 | rpl,
        ss=DATA0 | rpl,
    )
    ended(lab)
    cs, other_cs, other_ss = (lab.memory.u32(SHARED + 4 * n) for n in range(3))
    assert (cs, other_cs, other_ss) == (CODE0 | 1, CODE0 | 1, DATA0 | 1)


@pytest.mark.parametrize(("eflags", "on"), [(0, 0), (2, 0), (int(Eflags.IF), 0x200)])
def test_virtual_interrupts_begin_as_eflags_say(eflags: int, on: int) -> None:
    """VMI-SetInitialAPState-05, while those of the first processor are what they were."""
    lab = two(
        f"@sti\n{START}\n{WAIT.format(1)}\ncall GetInterruptMask\nmov [{SHARED:#x}],eax\n{DONE}"
        f"\nother: call GetInterruptMask\nmov [{SHARED + 4:#x}],eax\n{TELL}\n@halt",
        eflags=eflags,
    )
    ended(lab)
    assert [lab.memory.u32(SHARED + 4 * n) & 0x200 for n in range(2)] == [0x200, on]


def test_an_unmapped_state_faults_at_the_call() -> None:
    lab = Lab(f"{DONE}\npf: hlt", {Vector.PF: "pf"}, "paravirt", model=I686_APIC, cpus=2, taken=False)
    lab.page(0xD000)
    lab.take()
    place_call(lab, "SetInitialAPState")
    lab.cpu.eip, lab.cpu.eax, lab.cpu.edx = SITE, 0xCFE0, 1
    lab.step_to(lab.labels["pf"])
    assert lab.cpu.cr2 == 0xD000
    assert lab.u32(lab.cpu.esp + 4) == SITE  # behind the error code: the call's own address
    assert lab.domain is not None
    assert lab.domain.processors.all[1].initial is None


@pytest.mark.parametrize("number", [2, 7, 0x80000000])
def test_an_apic_id_that_no_processor_has_is_ignored(number: int) -> None:
    lab = Lab(DONE, None, "paravirt", model=I686_APIC, cpus=2)
    lab.memory.write(STATE, packed(USUAL))
    assert call(lab, "SetInitialAPState", eax=STATE, edx=number).returned
    assert lab.domain is not None
    assert [each.initial for each in lab.domain.processors.all] == [None, None]


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"cs": DATA0}, "#GP with error 0x10"),
        ({"cs": 0}, "#GP with error 0x0"),
        ({"cs": CODE3}, "#GP with error 0x18"),
        ({"ss": 0}, "#GP with error 0x0"),
        ({"ss": CODE0}, "#GP with error 0x8"),
        ({"fs": 0xFFF8}, "#GP with error 0xfff8"),
        ({"ldtr": TASK}, "#GP with error 0x28"),
        ({"cr0": 0}, "#GP with error 0x0"),
        ({"cr0": 0x80000000}, "#GP with error 0x0"),
        ({"cr4": 0xFFFFFFFF}, "#GP with error 0x0"),
        ({"efer": 0x100}, "#GP with error 0x0"),
        ({"cr0": 0x80000011, "cr3": 0x1FF000}, "#PF with error 0x0"),
    ],
)
def test_a_state_that_nothing_can_begin_in_ends_the_run(fields: dict[str, int], fault: str) -> None:
    lab = two(f"{START}\n{WAIT.format(1)}\n{DONE}\nother: hlt", **fields)
    end = lab.machine.run(100 * MS)
    assert end.outcome is Outcome.CRASHED
    sentence = f"the guest gave processor 1 a state that it can't begin in: loading it is a {fault}"
    assert end.reason == sentence


# -- what each has for itself -----------------------------------------------------------------------


def test_the_words_of_the_rom_belong_to_the_processor() -> None:
    """Stacks of the kernel, IOPL and the interrupt flag: set on one, as they were on the other."""
    lab = two(
        f"mov eax,0x10\nmov edx,0x5550\ncall UpdateKernelStack\nmov eax,0x3000\ncall SetIOPLMask\n@sti"
        f"\n{START}\n{WAIT.format(2)}\n{DONE}"
        f"\nother: {TELL}\n{TELL}\nx: pause\njmp x"
    )
    ended(lab)
    assert lab.domain is not None
    first, second = lab.domain.processors.all
    privilege = lab.domain.privilege
    assert lab.machine.turns is not None
    assert lab.domain.processors.current is first
    assert (privilege.iopl, privilege.words.get(), privilege.words.kernel_stack()) == (
        0x3000, True, (0x10, 0x5550),
    )  # fmt: skip
    words = [int.from_bytes(second.words[at : at + 4], "little") for at in range(0, 80, 4)]
    shown = (vmware.VIF, vmware.IOPL, vmware.KERNEL_SS, vmware.KERNEL_ESP, vmware.GDT)
    assert [words[at // 4] for at in shown] == [0, 0, 0, 0, GDT]


def test_alarms_come_to_who_has_set_them() -> None:
    """Each by the entry of its own local APIC, and the same counter twice."""
    arm = (
        "mov dword ptr [0xfee000f0],0x1ff\nmov dword ptr [0xfee00320],{0:#x}\npush 0\npush 0"
        f"\nmov eax,{int(Counter.REAL) | int(AlarmFlag.WIRED_LVTT):#x}\nmov edx,{{1}}\nxor ecx,ecx"
        "\ncall SetAlarm\nadd esp,8"
    )
    lab = two(
        f"{START}\n{arm.format(0x41, 60000)}\n@halt\n{WAIT.format(1)}\n{DONE}"
        f"\nother: {arm.format(0x42, 50000)}\n@halt\n{TELL}\n@halt"
        f"\nh41: inc dword ptr [{SHARED:#x}]\nmov dword ptr [0xfee000b0],0\n@iret"
        f"\nh42: inc dword ptr [{SHARED + 4:#x}]\nmov dword ptr [0xfee000b0],0\n@iret",
        {0x41: "h41", 0x42: "h42"},
    )
    ended(lab)
    assert [lab.memory.u32(SHARED + 4 * n) for n in range(2)] == [1, 1]
    assert lab.domain is not None
    assert not any(each.timer.alarms for each in lab.domain.processors.all)


def test_linear_mappings_are_not_inherited() -> None:
    """Slot 0 of the first processor is its own; the second one begins with none."""
    lab = two(
        "push 0x80\nxor eax,eax\nmov edx,0xc0000000\nmov ecx,16\ncall SetLinearMapping\nadd esp,4"
        f"\n{START}\n{WAIT.format(1)}\n{DONE}\nother: {TELL}\nx: pause\njmp x"
    )
    ended(lab)
    assert lab.domain is not None
    first, second = lab.domain.processors.all
    assert lab.domain.processors.current is first
    none = (0, 0, 0)
    assert lab.domain.rom.linear_maps() == [(0xC0000000, 16, 0x80), none, none, none]
    slots = second.words[vmware.LINEAR : vmware.LINEAR + 48]
    assert len(slots) == 48 and not any(slots)


def test_without_a_state_it_begins_in_real_mode_and_is_de_privileged_in_32_bits() -> None:
    lab = Lab(
        f"{START}\n{WAIT.format(1)}\n{DONE}"
        f"\nother: mov eax,cs\nmov [{SHARED:#x}],eax\nmov eax,0x10\nmov ss,eax\nmov ds,eax\n{TELL}"
        "\nx: pause\njmp x",
        None,
        "paravirt",
        model=I686_APIC,
        cpus=2,
    )
    lab.memory.write(0x7100, (0xFFF).to_bytes(2, "little") + GDT.to_bytes(4, "little"))
    code = bytes.fromhex("fa 66 0f 01 16 00 71 0f 20 c0 0c 01 0f 22 c0 66 ea")
    lab.memory.write(0x12000, code + lab.labels["other"].to_bytes(4, "little") + b"\x08\0")
    ended(lab)
    assert lab.memory.u32(SHARED) == CODE0 | 1
    assert lab.domain is not None
    assert [each.active for each in lab.domain.processors.all] == [True, True]
