# SPDX-License-Identifier: GPL-2.0-only
"""Whole runs through :mod:`vmi.run`: modes, ends, limits, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.patcher.elfs import Piece, Plan, make
from vmi import samples
from vmi.abi import BY_NAME
from vmi.errors import BadInput, ExitCode, RomError, UsageError
from vmi.patcher import patch
from vmi.rom import layout
from vmi.rom.assemble import assemble
from vmi.rom.build import build, build_flavour
from vmi.rom.flavours import vmware
from vmi.rom.template import gate
from vmi.run import Outcome, RunResult, compare, run_kernel

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
    templates = {**vmware.FLAVOUR.templates, "APICRead": gate()}
    rom = build_flavour(replace(vmware.FLAVOUR, templates=templates))
    call = BY_NAME["APICRead"]
    result = run(
        f"call 0xc0080\ncall {0xC0000 + rom.offset(call.name):#x}\nagain: jmp short again", rom=rom.image
    )
    assert (result.outcome, result.exit_status) == (Outcome.CALL_NOT_SERVED, ExitCode.CALL_NOT_SERVED)
    assert result.reason == (
        f"the guest made the VMI call APICRead (number {call.number}), which this hypervisor does not serve"
    )
    assert result.calls == {"VMI_Init": 1, "APICRead": 1}


def test_a_kernel_that_leaves_protected_mode() -> None:
    result = run("mov eax, cr0\nand al, 0xfe\nmov cr0, eax", full=True)
    assert (result.outcome, result.exit_status) == (Outcome.CRASHED, ExitCode.GUEST_CRASH)
    assert result.reason == "the guest kernel left protected mode, which this hypervisor does not serve"


def test_full_virtualization_takes_no_patched_kernel() -> None:
    image = patch(samples.get("hello").path.read_bytes()).data
    with pytest.raises(BadInput, match=r"^the file is already patched: there is a \.vmi segment at 0x\w+$"):
        run_kernel(image, full=True)


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


def test_unknown_mode() -> None:
    with pytest.raises(UsageError) as caught:
        compare(b"", ("turbo",), rom=b"")
    assert str(caught.value) == "mode 'turbo' is not one of native, paravirt, full"
