# SPDX-License-Identifier: GPL-2.0-only
"""Whole runs through :mod:`vmi.run`: modes, ends, limits, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.patcher.elfs import Piece, Plan, make
from vmi import samples
from vmi.abi import BY_NAME
from vmi.errors import BadInput, ExitCode, RomError, UsageError
from vmi.native.boot.state import Module
from vmi.native.cpuid import I686, I686_APIC, MODELS
from vmi.native.disk import Disk
from vmi.native.machine import DEFAULT_MODEL, Machine
from vmi.patcher import patch
from vmi.rom import layout
from vmi.rom.assemble import assemble
from vmi.rom.build import build, build_flavour
from vmi.rom.flavours import vmware
from vmi.rom.template import gate
from vmi.run import Guest, Outcome, RunResult, Setup, compare, prepare, run_kernel
from vmi.run import run as run_setup

ADDRESS = 0x100000
MULTIBOOT = b"".join(n.to_bytes(4, "little") for n in (0x1BADB002, 0, -0x1BADB002 & 0xFFFFFFFF))


def kernel(source: str) -> bytes:
    """A multiboot kernel that does this; its header stands in front of the code."""
    at = ADDRESS + len(MULTIBOOT)
    return make(Plan([Piece(ADDRESS, MULTIBOOT + assemble(source, at).code, paddr=ADDRESS)], entry=at))


def run(source: str, **options: object) -> RunResult:
    options = {"timeout_ns": 10**7} | options
    return run_kernel(kernel(source), **options)  # type: ignore[arg-type]


def test_debug_exit_gives_the_status_qemu_gives() -> None:
    result = run("mov al, 0x2a\nout 0xf4, al\nagain: jmp short again")
    assert (result.outcome, result.exit_status) == (Outcome.DEBUG_EXIT, 0x55)
    assert result.reason == "the guest ended itself with debug-exit value 0x2a"


def test_triple_fault() -> None:
    result = run("ud2")
    assert (result.outcome, result.exit_status) == (Outcome.TRIPLE_FAULT, ExitCode.GUEST_CRASH)
    assert result.reason == f"the guest triple-faulted at 0x8:{ADDRESS + len(MULTIBOOT):#x}"


def test_jump_to_nowhere() -> None:
    result = run("mov eax, 0xd0000000\njmp eax")
    assert (result.outcome, result.exit_status) == (Outcome.CRASHED, ExitCode.GUEST_CRASH)
    assert result.reason == "the guest jumped to 0xd0000000, where no memory is"


def test_endless_loop() -> None:
    result = run("again: jmp short again", timeout_ns=10**6)
    assert (result.outcome, result.exit_status) == (Outcome.TIMEOUT, ExitCode.TIMEOUT)
    assert result.reason == "the guest was still running after 0.001 s"
    assert result.virtual_ns >= 10**6


def test_a_call_that_is_not_served() -> None:
    """By a ROM that offers more than its hypervisor: the kernel uses it in place."""
    templates = {**vmware.FLAVOUR.templates, "WBINVD": gate()}
    rom = build_flavour(replace(vmware.FLAVOUR, templates=templates))
    call = BY_NAME["WBINVD"]
    result = run(
        f"call 0xc0080\ncall {0xC0000 + rom.offset(call.name):#x}\nagain: jmp short again", rom=rom.image
    )
    assert (result.outcome, result.exit_status) == (Outcome.CALL_NOT_SERVED, ExitCode.CALL_NOT_SERVED)
    assert result.reason == (
        f"the guest made the VMI call WBINVD (number {call.number}), which this hypervisor does not serve"
    )
    assert result.calls == {"VMI_Init": 1, "WBINVD": 1}


def test_a_kernel_that_leaves_protected_mode() -> None:
    result = run("mov eax, cr0\nand al, 0xfe\nmov cr0, eax", full=True)
    assert (result.outcome, result.exit_status) == (Outcome.CRASHED, ExitCode.GUEST_CRASH)
    assert result.reason == "the guest kernel left protected mode, which this hypervisor does not serve"


def test_full_virtualization_of_a_patched_kernel() -> None:
    """Without a ROM it is the kernel that it was, and so it is for a hypervisor that has none."""
    plain = samples.get("hello").path.read_bytes()
    results = [run_kernel(image, full=True) for image in (plain, patch(plain).data)]
    assert results[0].console == results[1].console != b""
    assert results[0].exit_status == results[1].exit_status
    assert 0 < results[0].price < results[1].price, "it looks for a ROM first"


def test_a_rom_that_is_not_what_it_calls_itself() -> None:
    with pytest.raises(RomError) as caught:
        run("hlt", rom=_damaged(layout.CALL_TABLE, 0))
    assert str(caught.value) == "a ROM of flavour vmware must have gates, and a data page at its end"


def test_halt_for_ever() -> None:
    result = run("cli\nhlt")
    assert (result.outcome, result.exit_status) == (Outcome.HALTED, ExitCode.OK)


def test_binary_garbage_on_the_console() -> None:
    result = run(
        """
        mov dx, 0x3f8
        xor eax, eax
next:   out dx, al
        inc al
        jne next
        out 0xf4, al
again:  jmp short again
        """
    )
    assert result.console == bytes(range(256))
    assert json.loads(json.dumps(result.to_json()))["console"].encode("latin-1") == result.console


def test_until_ends_the_run() -> None:
    image = samples.get("hello").path.read_bytes()
    result = run_kernel(image, until=b"multiboot")
    assert (result.outcome, result.exit_status) == (Outcome.CONSOLE, 0)
    assert result.console.endswith(b"multiboot")
    assert result.reason == "the console showed 'multiboot'"


def test_console_is_given_on_as_it_comes() -> None:
    pieces: list[bytes] = []
    result = run_kernel(samples.get("hello").path.read_bytes(), on_console=pieces.append)
    assert b"".join(pieces) == result.console


def _damaged(at: int, value: int) -> bytes:
    image = bytearray(build("vmware").image)
    image[at] = value
    image[-1] = (image[-1] - sum(image)) & 0xFF
    return bytes(image)


@pytest.mark.parametrize(
    "rom",
    [
        build("vmware").image[:-1] + b"\x01",
        _damaged(0x0D, 4),
        _damaged(0x02, 1),
        build("vmware").image[:512],
        b"",
    ],
    ids=["checksum", "API major", "length", "truncated", "empty"],
)
def test_bad_rom_is_refused(rom: bytes) -> None:
    with pytest.raises(RomError) as caught:
        run_kernel(samples.get("hello").path.read_bytes(), rom=rom)
    assert caught.value.exit_code == 10
    assert "\n" not in str(caught.value)


def test_bad_kernel_is_refused() -> None:
    with pytest.raises(BadInput):
        run_kernel(b"not a kernel")


def test_full_and_rom_exclude_each_other() -> None:
    with pytest.raises(UsageError) as caught:
        run_kernel(b"", rom=build("vmware").image, full=True)
    assert str(caught.value) == "full virtualization runs without a ROM, so it can't be combined with one"


# --- machines that are made first ---

LETTER_THEN_REST = "mov al, 0x61\nout 0xe9, al\nmov al, 0x62\nout 0xe9, al\nout 0xf4, al\nhlt"

#: 64 KiB of firmware that writes an F to port E9h and ends with the value 0.
FIRMWARE = b"\xf4" * 0xFFF0 + b"\xb0F\xe6\xe9\xb0\x00\xe6\xf4".ljust(16, b"\xf4")


def test_a_prepared_guest_goes_on_where_it_was() -> None:
    guest = prepare(Setup(kernel(LETTER_THEN_REST)))
    first, second = guest.run(until=b"a"), guest.run()
    assert (first.outcome, first.console) == (Outcome.CONSOLE, b"a")
    assert (second.outcome, second.console) == (Outcome.DEBUG_EXIT, b"ab")
    assert first.instructions < second.instructions
    assert repr(guest) == "<Guest native: <Machine 64 MiB qemu32 at 3050 ns>>"


def test_a_machine_made_by_hand_is_a_guest() -> None:
    machine = Machine(ram=4 << 20)
    machine.load(kernel(LETTER_THEN_REST))
    assert Guest(machine).run().console == b"ab"


def test_a_restored_machine_is_a_guest(tmp_path: Path) -> None:
    machine = prepare(Setup(kernel(LETTER_THEN_REST))).machine
    machine.console.expect(b"a")
    machine.save(tmp_path / "saved")
    ends = [Guest(one).run() for one in (machine, Machine.restore(tmp_path / "saved"))]
    assert replace(ends[0], wall_s=0) == replace(ends[1], wall_s=0)
    assert ends[0].console == b"ab"


def test_a_prepared_guest_has_its_hypervisor() -> None:
    image = patch(samples.get("hello").path.read_bytes()).data
    guest = prepare(Setup(image, rom=build("vmware").image))
    assert guest.domain is not None
    assert guest.machine.console.expect(b"goodbye").endswith(b"hello: goodbye")
    assert guest.domain.calls["VMI_Init"] == 1
    assert repr(guest) == f"<Guest paravirt: {guest.machine!r}>"


def test_firmware_starts_without_a_kernel() -> None:
    result = run_setup(Setup(bios=FIRMWARE))
    assert (result.mode, result.console, result.exit_status) == ("native", b"F", 1)


def test_disks_are_the_machine_s() -> None:
    disk = Disk.from_bytes(bytes(512))
    guest = prepare(Setup(bios=FIRMWARE, disks=[None, disk]))
    assert guest.machine.board.disks == (None, disk, None, None)


@pytest.mark.parametrize(
    ("setup", "model"),
    [
        (Setup(kernel("hlt")), DEFAULT_MODEL),
        (Setup(kernel("hlt"), model=MODELS["max"]), MODELS["max"]),
        (Setup(kernel("hlt"), rom=build("native").image), I686),
        (Setup(kernel("hlt"), rom=build("native").image, model=MODELS["pentium3"]), MODELS["pentium3"]),
        (Setup(kernel("hlt"), rom=build("vmware").image), I686),
        (Setup(kernel("hlt"), rom=build("vmware").image, model=MODELS["486"]), MODELS["486"]),
        (Setup(kernel("hlt"), rom=build("vmware").image, model=I686_APIC), I686_APIC),
        (Setup(kernel("hlt"), full=True), I686),
    ],
    ids=repr,
)
def test_processor(setup: Setup, model: object) -> None:
    assert prepare(setup).machine.model is model


@pytest.mark.parametrize("options", [{"full": True}, {"rom": build("vmware").image}], ids=["full", "rom"])
def test_a_processor_that_promises_too_much(options: dict[str, object]) -> None:
    with pytest.raises(UsageError) as caught:
        prepare(Setup(kernel("hlt"), model=MODELS["max"], **options))  # type: ignore[arg-type]
    assert str(caught.value) == (
        "a de-privileged kernel must have a processor that promises only what hypervisors here serve, "
        "but max has 3dnow, 3dnowext, abm, adx, aes, bmi1, bmi2, clflush, clflushopt, clwb, mmxext, movbe, "
        "pclmulqdq, popcnt, sse4.1, sse4.2, sse4a, ssse3"
    )


@pytest.mark.parametrize(
    ("setup", "text"),
    [
        (Setup(), "there is nothing to start: neither a kernel nor firmware was given"),
        (
            Setup(kernel("hlt"), bios=FIRMWARE),
            "firmware boots from a disk here, so it can't be combined with a kernel",
        ),
        (
            Setup(bios=FIRMWARE, full=True),
            "full virtualization starts with a kernel, so it can't begin with firmware",
        ),
        (
            Setup(kernel("hlt"), mmu="none"),
            "the MMU strategy must be one of direct, shadow, but it is 'none'",
        ),
        (Setup(kernel("hlt"), memory=1 << 32), "RAM must be at most 3584 MiB, but it is 4096 MiB"),
        (
            Setup(kernel("hlt"), protocol="a.out"),
            "boot protocol 'a.out' is not one of linux, multiboot, pvh, elf, flat",
        ),
        (
            Setup(kernel("hlt"), address=0x200000),
            "only a flat binary takes a load address, but the kernel's protocol is multiboot",
        ),
        (
            Setup(kernel("hlt"), protocol="elf", modules=[Module(b"m", "m")]),
            "an ELF kernel without a boot protocol can't be given a module",
        ),
    ],
)
def test_setups_that_make_no_sense(setup: Setup, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        prepare(setup)
    assert str(caught.value) == text


class Recorder:
    """An observer that notes what it is told."""

    def __init__(self) -> None:
        self.notes: list[object] = []

    def begin(self, machine: Machine) -> None:
        self.notes.append(("begin", machine.instructions))

    def on_slice(self) -> None:
        self.notes.append("slice")

    def on_idle(self, ns: int | None) -> int | None:
        self.notes.append("idle")
        return ns

    def end(self, machine: Machine) -> None:
        self.notes.append(("end", machine.console.data))


def test_observer() -> None:
    observer = Recorder()
    masked = "mov al, 0xff\nout 0x21, al\nout 0xa1, al\n"
    run_setup(Setup(kernel(f"{masked}out 0xe9, al\nsti\nhlt")), timeout_ns=10**6, observer=observer)
    assert observer.notes[0] == ("begin", 0)
    assert observer.notes[-1] == ("end", b"\xff")
    assert {"slice", "idle"} <= set(observer.notes[1:-1])


# --- comparisons ---


def test_compare_finds_a_difference() -> None:
    """A kernel that looks for the ROM itself and tells."""
    image = patch(
        kernel(
            """
            cli
            mov dx, 0x3f8
            mov al, 'n'
            cmp word ptr [0xc0000], 0xaa55
            jne tell
            mov al, 'r'
tell:       out dx, al
            mov al, 0
            out 0xf4, al
again:      jmp short again
            """.replace("'n'", "0x6e").replace("'r'", "0x72")
        )
    ).data
    found = compare(image, rom=build("vmware").image)
    assert not found.equal
    assert found.diff == "--- native\n+++ paravirt\n@@ -1 +1 @@\n-n\n+r\n"
    json.dumps(found.to_json())


def test_compare_finds_equality() -> None:
    image = samples.get("hello").path.read_bytes()
    modes: list[str] = []
    found = compare(
        patch(image).data, ("native", "paravirt", "full"), rom=build("vmware").image, original=image,
        on_mode=modes.append,
    )  # fmt: skip
    assert (found.equal, found.diff, modes) == (True, "", ["native", "paravirt", "full"])
    assert repr(found) == "<Comparison native paravirt full: equal>"


def test_compare_with_another_processor() -> None:
    image = patch(samples.get("hello").path.read_bytes()).data
    found = compare(image, rom=build("vmware").image, model=MODELS["486"])
    assert found.equal


def test_unknown_mode() -> None:
    with pytest.raises(UsageError) as caught:
        compare(b"", ("turbo",), rom=b"")
    assert str(caught.value) == "mode 'turbo' is not one of native, paravirt, full"
