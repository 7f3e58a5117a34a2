# SPDX-License-Identifier: GPL-2.0-only
"""The ROM as a guest finds it, VMI_Init and GetRelocationInfo."""

from __future__ import annotations

from iced_x86 import Decoder, Mnemonic

from vmi import abi
from vmi.abi import Reloc
from vmi.conformance.case import Findings, case
from vmi.conformance.layout import FREE_PAGES, GDT, IDT, RAM, SCRATCH, TASK, control
from vmi.conformance.rig import CALL_LENGTH, Rig, Unfit, fill
from vmi.rom.layout import PciData, RomHeader, text_at

_COPY = FREE_PAGES + 0x8000  # where a case copies the ROM to
_LEVELS = b"\x8c\xc8\x8c\xd1"  # MOV EAX, CS; MOV ECX, SS
_TIMER = 0x20  # the vector of line 0
_IF, _RING = 0x200, 3


def _image(rig: Rig) -> bytes:
    rig.power_on()
    if not rig.rom:
        return b""
    return rig.image()


@case("ROM", "found", 1, 2, 3, begun=False, alone=True)
def found_by_scan(rig: Rig, found: Findings) -> None:
    """A scan finds it, on a 2 KiB boundary; its bytes add up to 0."""
    image = _image(rig)
    found.true(bool(image), "a ROM must be found between C0000h and DFFFFh")
    found.equal("the sum of its bytes", sum(image) & 0xFF, 0)
    found.equal("its place modulo 2 KiB", rig.rom % abi.SCAN_STEP, 0)
    found.true(
        rig.rom + len(image) <= 0x100000, f"it must end below 1 MiB, but it ends at {rig.rom + len(image):#x}"
    )


@case("ROM", "strings and PCI", 4, 5, 6, 7, begun=False, alone=True)
def strings(rig: Rig, found: Findings) -> None:
    """Licence, PCI data and reserved fields are as a client wants them."""
    image = _image(rig)
    header = RomHeader.parse(image)
    found.true(text_at(image, header.license_offs) in abi.LICENCES, "the licence must be GPL or GPL v2")
    pci = PciData.parse(image, header.pci_header_offs)
    found.equal("the PCI signature", pci.signature, abi.PCI_SIGNATURE)
    found.equal("vendor and device", (pci.vendor_id, pci.device_id), (abi.PCI_VENDOR, abi.PCI_DEVICE))
    found.equal("the length in the PCI data", pci.chunks, len(image) // abi.ROM_UNIT)
    reserved = [field for field in abi.ROM_HEADER if field.name.startswith(("reserved", "rom_pad"))]
    for field in reserved:
        at = image[field.offset : field.offset + field.size]
        found.true(not any(at), f"the reserved field {field.name} must be 0")
    found.true(
        header.virtual_top == 0 or header.virtual_top >= RAM,
        f"virtual_top must be 0 or above RAM, but it is {header.virtual_top:#x}",
    )


@case("ROM", "BIOS entry", 8, begun=False, alone=True)
def bios_entry(rig: Rig, found: Findings) -> None:
    """The 16-bit entry ends in a far return."""
    image = _image(rig)
    found.true(
        len(image) > abi.ROM_HEADER_SIZE,
        f"the image must hold more than its header, but has {len(image)} bytes",
    )
    if len(image) <= abi.ROM_HEADER_SIZE:
        return
    at, seen = 3, 0
    decoder = Decoder(16, image, ip=0)
    decoder.position = at
    decoder.ip = at
    while seen < 64:
        instruction = decoder.decode()
        seen += 1
        if instruction.mnemonic == Mnemonic.JMP and instruction.near_branch_target < len(image):
            decoder.position = decoder.ip = instruction.near_branch_target
        elif instruction.mnemonic == Mnemonic.RETF:
            break
    found.true(seen < 64, "it must end in a far return within 64 instructions")


@case("Init", "takes over", 2, 3, begun=False)
def takes_over(rig: Rig, found: Findings) -> None:
    """EAX is 0, the registers that must survive do, interrupts are off, and selectors carry the level."""
    rig.power_on()
    done = rig.initialise(**{**fill(0), "ebx": 0})
    found.true(done.returned, f"it must return, but {done.stop.reason}")
    found.equal("EAX", done.registers["eax"], 0)
    for name in ("ebp", "esi", "edi"):
        found.equal(name.upper(), done.registers[name], fill(0)[name])
    found.equal("EBX", done.registers["ebx"], 0)
    found.equal("what it took off the stack", done.popped, 0)
    found.equal("the mask", rig.value("GetInterruptMask") & _IF, 0)
    rig.write(SCRATCH, _LEVELS)
    rig.jump_to(SCRATCH + len(_LEVELS), rig.labels["done"], call=False)
    levels = rig.start(SCRATCH).registers
    level = levels["eax"] & _RING
    found.equal("the level in SS", levels["ecx"] & _RING, level)
    found.equal("the level in CS of a frame", rig.go("int30").first.cs & _RING, level)


@case("Init", "while an interrupt waits", 3, more=("VMI-Interrupt-10",), begun=False)
def an_interrupt_waits(rig: Rig, found: Findings) -> None:
    """It waits on, and is handled once when interrupts are switched on, all that in one run."""
    rig.power_on()
    rig.initialise()
    rig.need("EnableInterrupts")
    entry = rig.entry("EnableInterrupts")[1]
    rig.power_on()
    rig.go("open_irq0")
    rig.subject.interrupt(0)
    behind, end = SCRATCH + CALL_LENGTH, SCRATCH + 2 * CALL_LENGTH
    rig.jump_to(SCRATCH, rig.rom + abi.INIT_OFFSET, call=True)
    rig.jump_to(behind, entry, call=True)
    rig.jump_to(end, rig.labels["done"], call=False)
    done = rig.start(SCRATCH, ebx=0)
    found.equal("events", done.vectors, [_TIMER])
    found.true(
        all(frame.eip in (behind, end) or frame.eip >= rig.rom for frame in done.frames),
        "it must come in EnableInterrupts",
    )


@case("Init", "in place", 1, begun=False)
def in_place(rig: Rig, found: Findings) -> None:
    """It works at other addresses, where the guest has copied the ROM to: at the end of RAM, too."""
    for place in (_COPY, RAM - len(_image(rig)) & -abi.SCAN_STEP):
        image = _image(rig)
        rig.write(place, image or bytes(abi.ROM_HEADER_SIZE))
        done = rig.call_address(place + abi.INIT_OFFSET, ebx=0)
        found.true(done.returned, f"it must return, but {done.stop.reason}")
        found.equal("EAX", done.registers["eax"], 0)
        answer = rig.call_address(place + abi.GET_RELOC_OFFSET, eax=abi.BY_NAME["GetCR3"].number)
        found.equal("the type of GetCR3", answer.registers["edx"], int(Reloc.CALL_REL))
        found.true(
            place <= answer.registers["eax"] < place + len(image),
            f"the entry must be in the copy, but it is {answer.registers['eax']:#x}",
        )


@case("Init", "state stays", 5, begun=False)
def state_stays(rig: Rig, found: Findings) -> None:
    """Tables, task register and page tables loaded before are what the guest sees afterwards."""
    rig.power_on()
    rig.initialise()
    for call, base in (("GetGDT", GDT), ("GetIDT", IDT)):
        rig.value(call, eax=SCRATCH)
        found.equal(call, rig.read(SCRATCH, 6), (0x7FF).to_bytes(2, "little") + base.to_bytes(4, "little"))
    found.equal("TR", rig.value("GetTR"), TASK)
    found.equal("LDT", rig.value("GetLDT"), 0)
    for name, value in control(rig.environment.paging).items():
        found.equal(name, rig.value(f"Get{name}"), value)


@case("Init", "twice", 4)
def twice(rig: Rig, found: Findings) -> None:
    """A hypervisor that can't take over again says so, and nothing changes."""
    before = rig.value("GetCR0"), rig.value("GetCR3")
    done = rig.initialise()
    if not done.registers["eax"]:
        raise Unfit("it says yes a second time")
    found.true(done.returned, "it must return")
    found.equal("CR0 and CR3", (rig.value("GetCR0"), rig.value("GetCR3")), before)


@case("GetReloc", "numbers", 1, 2, 3, 7)
def numbers(rig: Rig, found: Findings) -> None:
    """Unknown numbers are answered NONE; answers are the same with interrupts on, and registers survive."""
    for number in (len(abi.CALLS), 100, 255, 256, 0x7FFFFFFF, 0xFFFFFFFF):
        found.equal(f"the type for call {number:#x}", rig.relocation(number)["edx"], int(Reloc.NONE))
    first = [(rig.relocation(call.number)["eax"], rig.relocation(call.number)["edx"]) for call in abi.CALLS]
    rig.value("EnableInterrupts")
    again = [(rig.relocation(call.number)["eax"], rig.relocation(call.number)["edx"]) for call in abi.CALLS]
    found.true(again == first, "answers must be the same with interrupts on")
    for pattern in (0, 1):
        registers = {**fill(pattern), "eax": 3}
        done = rig.call_address(rig.rom + abi.GET_RELOC_OFFSET, **registers)
        for name in ("ebx", "esi", "edi", "ebp"):
            found.equal(name.upper(), done.registers[name], registers[name])


@case("GetReloc", "calls that go together", 4, 5, 6, alone=True)
def together(rig: Rig, found: Findings) -> None:
    """JUMP_REL is for the two ways out only; timer calls and long updates are offered as a set."""
    for call in abi.CALLS:
        if rig.entry(call.name)[0] is Reloc.JUMP_REL:
            found.true(call.name in ("IRET", "SYSEXIT"), f"JUMP_REL must not be answered for {call.name}")
    if rig.entry("GetCycleFrequency")[0] is not Reloc.NONE:
        for name in ("GetCycleCounter", "SetAlarm", "CancelAlarm", "GetWallclockTime"):
            found.equal(f"the type for {name}", rig.entry(name)[0], Reloc.CALL_REL)
    if rig.entry("SetPxELong")[0] is not Reloc.NONE:
        found.equal("the type for UpdatePxELong", rig.entry("UpdatePxELong")[0], Reloc.CALL_REL)


@case("SetCallbacks", "not offered", 1, alone=True)
def no_callbacks(rig: Rig, found: Findings) -> None:
    """It is answered NONE."""
    found.equal("the type", rig.entry("SetCallbacks")[0], Reloc.NONE)
