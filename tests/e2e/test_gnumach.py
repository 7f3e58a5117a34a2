# SPDX-License-Identifier: GPL-2.0-only
"""GNU Mach as Debian ships it: a real kernel, stripped and unprepared, through the whole toolkit.

It boots to its final panic ("No bootstrap code", since none is given) five ways: as it is, patched
without a ROM, and patched with one, under QEMU and on our machine. The serial logs must be equal up to the
differences that are named here, each with its reason.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.e2e.qemu import Boot, needs_qemu
from vmi import sitetable
from vmi.patcher import Patched, inspect_file, patch
from vmi.rom.build import build
from vmi.run import RunResult, run_kernel

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

PANIC = b"No bootstrap code loaded with the kernel!"
APPEND = "console=com0"
LIMIT = 60 * 10**9  # guest time, ns; the panic comes after 5 s

#: What QEMU's machine has and ours has not, or the other way round: lines to leave out, and why.
MACHINE_DIFFERENCES = {
    r"^RTC time is ": "QEMU's clock is the host's, ours starts at a fixed date",
    r"^pcibios_init": "QEMU has a BIOS that answers, ours has none: the kernel asks the chipset itself",
    r"^FDC \d|floppy": "QEMU has a floppy controller",
}
#: What the patched file changes by being larger.
PATCH_DIFFERENCES = {
    r"^biosmem: 0{11,12}1": "the .vmi segment is shown as reserved, which splits the range it is in",
    r"^vm_page: DIRECTMAP: pages: ": "the pages of the segment are not free",
}


def lines(log: bytes, *without: dict[str, str]) -> list[str]:
    """A serial log as lines, the named differences left out."""
    text = log[: log.index(PANIC) + len(PANIC)].decode("latin-1").replace("\x1b[K", "\r")
    found = [line.strip() for line in re.split(r"[\r\n]+", text)]
    patterns = [pattern for named in without for pattern in named]
    return [line for line in found if line and not any(re.search(pattern, line) for pattern in patterns)]


@dataclass(frozen=True)
class Kernels:
    """The kernel before and after patching."""

    original: bytes
    patched: Patched


@cache
def _kernels(path: Path) -> Kernels:
    data = path.read_bytes()
    return Kernels(data, patch(data))


@pytest.fixture
def kernels(gnumach: Path) -> Kernels:
    return _kernels(gnumach)


@cache
def _ours(path: Path, patched: bool, rom: str | None, full: bool = False) -> RunResult:
    kernels = _kernels(path)
    return run_kernel(
        kernels.patched.data if patched else kernels.original,
        rom=None if rom is None else build(rom).image,
        append=APPEND,
        timeout_ns=LIMIT,
        until=PANIC,
        full=full,
    )


@pytest.fixture
def unpatched_here(gnumach: Path) -> RunResult:
    return _ours(gnumach, False, None)


def test_nearly_all_sites_are_in_slots_and_the_rest_is_listed(kernels: Kernels) -> None:
    report = kernels.patched.report
    assert len(report.sites) > 3000
    assert report.slotted / len(report.sites) >= 0.95
    left = [site for site in report.sites if site.tactic in ("trap", "left")]
    assert len(left) == len(report.sites) - report.slotted
    assert all(site.reason for site in left)


def test_patching_is_deterministic(kernels: Kernels) -> None:
    again = patch(kernels.original)
    assert again.data == kernels.patched.data
    assert again.report == kernels.patched.report


def test_output_tells_its_sites(kernels: Kernels) -> None:
    table = inspect_file(kernels.patched.data).table
    assert table is not None
    in_table = sum(site.has_call for site in table.sites)
    assert in_table == kernels.patched.report.slotted


@needs_qemu
def test_unpatched_here_as_under_qemu(gnumach: Path, unpatched_here: RunResult, tmp_path: Path) -> None:
    judge = Boot(tmp_path, gnumach, APPEND, PANIC).run()
    assert lines(unpatched_here.console, MACHINE_DIFFERENCES) == lines(judge.log, MACHINE_DIFFERENCES)


@needs_qemu
@pytest.mark.parametrize("rom", [None, "native"])
def test_patched_under_qemu(
    gnumach: Path, kernels: Kernels, unpatched_here: RunResult, tmp_path: Path, rom: str | None
) -> None:
    kernel = tmp_path / "gnumach.vmi"
    kernel.write_bytes(kernels.patched.data)
    more: list[str] = []
    if rom is not None:
        (tmp_path / "rom.bin").write_bytes(build(rom).image)
        more = ["-option-rom", str(tmp_path / "rom.bin")]
    table = inspect_file(kernels.patched.data).table
    assert table is not None
    bias = table.header.bias
    header = table.header.rom_reserve - 4096 - bias
    status, base = (header + sitetable.header_offset(name) for name in ("status", "rom_base"))
    slots = [site.slot - bias & ~3 for site in table.sites if site.has_call][::300]
    judge = Boot(tmp_path, kernel, APPEND, PANIC, *more).run([status, base, *slots])
    both = (MACHINE_DIFFERENCES, PATCH_DIFFERENCES)
    assert lines(judge.log, *both) == lines(unpatched_here.console, *both)
    assert "reserved" in judge.log.decode("latin-1").split(f"{header:018x}:")[1].splitlines()[0]
    if rom is None:
        assert judge.words[status] == sitetable.Status.NATIVE
    else:
        assert judge.words[status] == sitetable.Status.ACTIVE
        assert judge.words[base] in range(0xC0000, 0xE0000, 2048)
    plain = {at: int.from_bytes(_loaded(kernels.patched.data, at + bias), "little") for at in slots}
    changed = [at for at in slots if judge.words[at] != plain[at]]
    assert len(changed) == (0 if rom is None else len(slots))


def _loaded(data: bytes, address: int) -> bytes:
    """The dword that the file puts at a virtual address."""
    from vmi.native.boot.elf import parse

    for segment in parse(data).segments:
        if segment.vaddr <= address < segment.vaddr + segment.filesz:
            at = segment.offset + address - segment.vaddr
            return data[at : at + 4]
    raise AssertionError(f"no segment holds {address:#x}")


@pytest.mark.parametrize("rom", [None, "native", "vmware"])
def test_patched_here(gnumach: Path, unpatched_here: RunResult, rom: str | None) -> None:
    result = _ours(gnumach, True, rom)
    assert result.outcome == "console"
    assert lines(result.console, PATCH_DIFFERENCES) == lines(unpatched_here.console, PATCH_DIFFERENCES)
    if rom == "vmware":
        assert result.calls["VMI_Init"] == 1
        assert result.calls["SetCR3"] > 0
        # the same interrupts arrive, and the sites in slots do not trap
        assert result.exits["interrupt"] == pytest.approx(unpatched_here.exits["interrupt"], abs=5)
        assert "privileged instruction: cli" not in result.exits


def test_same_log_with_and_without_a_rom(gnumach: Path) -> None:
    native, paravirt = _ours(gnumach, True, None), _ours(gnumach, True, "vmware")
    assert paravirt.console == native.console


def test_unpatched_at_ring_1(gnumach: Path, unpatched_here: RunResult) -> None:
    result = _ours(gnumach, False, None, full=True)
    assert result.console == unpatched_here.console
    assert result.exits["privileged instruction: cli"] > 10_000
