# SPDX-License-Identifier: GPL-2.0-only
"""`vmi run`: options reach the library, the guest's console reaches the user, the status is right.

The library below is a stand-in; what its answers look like with real guests is in test_watch.py.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.conftest import Vmi, sentence
from tests.cli.fake_run import FakeRun, Outcome
from vmi import samples
from vmi.cli import run as verb
from vmi.cli.console import ConsoleSession
from vmi.cli.values import Serial
from vmi.errors import BadInput, EngineError, GuestTimeout
from vmi.native.boot.loader import PROTOCOLS
from vmi.native.boot.multiboot import Module
from vmi.native.cpuid import MODELS
from vmi.patcher import patch
from vmi.rom.build import build

DEFAULTS = {
    "image": b"some kernel", "rom": None, "memory": 64 << 20, "append": "", "modules": [],
    "protocol": None, "address": None, "full": False, "mmu": "direct", "model": None, "disks": [],
    "bios": None, "video_bios": None, "cpus": 1, "share": 100, "timeout_ns": 60 * 10**9, "until": None,
}  # fmt: skip


def test_defaults(vmi: Vmi, fake_run: FakeRun, kernel: Path) -> None:
    result = vmi("run", kernel)
    assert result.exit_code == 0
    assert fake_run.seen == DEFAULTS


def test_every_option(vmi: Vmi, fake_run: FakeRun, kernel: Path, tmp_path: Path) -> None:
    (tmp_path / "rom.bin").write_bytes(b"rom")
    (tmp_path / "disk").write_bytes(b"disk")
    disk = tmp_path / "disk"
    result = vmi(
        *("run", kernel, "--rom", tmp_path / "rom.bin", "-m", "8M", "--append", "a=1 b"),
        *("--initrd", disk, "--initrd", f"{disk},x y,z", "--timeout", "1.5ms"),
        *("--mmu", "shadow", "--share", "75"),
    )
    assert result.exit_code == 0, result.stderr
    assert fake_run.seen == DEFAULTS | {
        "rom": b"rom",
        "memory": 8 << 20,
        "append": "a=1 b",
        "modules": [Module(b"disk", str(disk)), Module(b"disk", f"{disk} x y,z")],
        "timeout_ns": 1_500_000,
        "mmu": "shadow",
        "share": 75,
    }


def test_options_of_the_machine(vmi: Vmi, fake_run: FakeRun, kernel: Path, tmp_path: Path) -> None:
    for name in ("one", "two,rw", "three"):
        (tmp_path / name).write_bytes(name.encode().ljust(512, b"."))
    (tmp_path / "two").write_bytes(b"2" * 1024)
    result = vmi(
        *(
            "run",
            kernel,
            "--cpu",
            "pentium3",
            "--smp",
            "2",
            "--protocol",
            "flat",
            "--load-address",
            "0x200000",
        ),
        *("--disk", tmp_path / "one", "--disk", f"{tmp_path / 'two'},rw", "--disk", tmp_path / "three"),
    )
    assert result.exit_code == 0, result.stderr
    disks = fake_run.seen.pop("disks")
    assert [(disk.name, disk.writable, disk.sectors) for disk in disks] == [
        (str(tmp_path / "one"), False, 1),
        (str(tmp_path / "two"), True, 2),
        (str(tmp_path / "three"), False, 1),
    ]
    changed = {"model": MODELS["pentium3"], "cpus": 2, "protocol": "flat", "address": 0x200000}
    assert fake_run.seen == {key: DEFAULTS[key] for key in fake_run.seen} | changed


def test_firmware_instead_of_a_kernel(vmi: Vmi, fake_run: FakeRun, tmp_path: Path) -> None:
    (tmp_path / "bios").write_bytes(b"B" * 65536)
    (tmp_path / "vga").write_bytes(b"\x55\xaa" + b"V" * 510)
    result = vmi("run", "--bios", tmp_path / "bios", "--video-bios", tmp_path / "vga", "--rom", "native")
    assert result.exit_code == 0, result.stderr
    assert fake_run.seen == DEFAULTS | {
        "image": None,
        "bios": b"B" * 65536,
        "video_bios": b"\x55\xaa" + b"V" * 510,
        "rom": build("native").image,
    }


def test_help_names_all_models_and_protocols(vmi: Vmi) -> None:
    words = set(vmi("run", "--help").stdout.replace(",", " ").replace(".", " ").split())
    assert set(MODELS) | set(PROTOCOLS) <= words


class AtTerminal(ConsoleSession):
    """A session that takes itself for one on a terminal."""

    def __init__(self, serial: Serial, **options: bool) -> None:
        super().__init__(serial, **options)
        self.interactive = True


@pytest.mark.parametrize(("words", "limit"), [((), None), (("--timeout", "7s"), 7 * 10**9)])
def test_on_a_terminal_there_is_no_limit_unless_asked_for(
    vmi: Vmi,
    fake_run: FakeRun,
    kernel: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    limit: int | None,
) -> None:
    monkeypatch.setattr(verb, "ConsoleSession", AtTerminal)
    assert vmi("run", kernel, *words).exit_code == 0
    assert fake_run.seen["timeout_ns"] == limit


@pytest.mark.parametrize("words", [(), ("--realtime",)])
def test_realtime_reaches_the_session(
    vmi: Vmi, fake_run: FakeRun, kernel: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    seen = {}

    def session(serial: Serial, **options: bool) -> ConsoleSession:
        seen.update(options)
        return ConsoleSession(serial, **options)

    monkeypatch.setattr(verb, "ConsoleSession", session)
    assert vmi("run", kernel, "-q", *words).exit_code == 0
    assert seen == {"realtime": bool(words), "quiet": True}


def test_rom_by_flavour(vmi: Vmi, fake_run: FakeRun, kernel: Path) -> None:
    assert vmi("run", kernel, "--rom", "vmware").exit_code == 0
    assert fake_run.seen["rom"] == build("vmware").image


def test_rom_for_an_unpatched_kernel_is_noted(vmi: Vmi, fake_run: FakeRun, tmp_path: Path) -> None:
    notes = vmi("run", "sample:hello", "--rom", "native").stderr.splitlines()
    assert (
        notes[0] == "vmi: sample:hello is not patched; it uses the ROM only if it is a VMI client by itself"
    )
    assert len(notes) == 2
    (tmp_path / "patched").write_bytes(patch(samples.get("hello").path.read_bytes()).data)
    sentence(vmi("run", tmp_path / "patched", "--rom", "native"))


def test_full(vmi: Vmi, fake_run: FakeRun, kernel: Path) -> None:
    assert vmi("run", kernel, "--full", "--timeout", "none").exit_code == 0
    assert (fake_run.seen["full"], fake_run.seen["timeout_ns"]) == (True, None)


def test_console_is_raw_in_a_pipe_and_the_outcome_is_on_stderr(
    vmi: Vmi, fake_run: FakeRun, kernel: Path
) -> None:
    fake_run.pieces = (b"\x1b[31mred", b"\xff\x00\r\n")
    result = vmi("run", kernel)
    assert result.stdout_bytes == b"\x1b[31mred\xff\x00\r\n"
    assert sentence(result) == (
        "vmi: native: the guest ended itself "
        "(debug_exit; 1,000,000 instructions, 2.500 ms guest time, 0.5 s here)"
    )


@pytest.mark.parametrize("status", [0, 1, 33, 12, 14, 16])
def test_exit_status_is_the_run_s(vmi: Vmi, fake_run: FakeRun, kernel: Path, status: int) -> None:
    fake_run.result = replace(fake_run.result, exit_status=status, outcome=Outcome.TIMEOUT)
    assert vmi("run", kernel).exit_code == status


def test_quiet_leaves_the_console_only(vmi: Vmi, fake_run: FakeRun, kernel: Path) -> None:
    result = vmi("run", kernel, "-q")
    assert (result.stdout_bytes, result.stderr) == (b"hello\r\n", "")


def test_verbose_counts_exits_and_calls(vmi: Vmi, fake_run: FakeRun, kernel: Path) -> None:
    fake_run.result = replace(fake_run.result, exits={"port": 3, "halt": 1}, calls={"SetCR3": 1})
    lines = [line.split() for line in vmi("run", kernel, "-v").stderr.splitlines()]
    assert ["port", "3", "75.0", "%"] in lines
    assert ["halt", "1", "25.0", "%"] in lines
    assert ["SetCR3", "1", "100.0", "%"] in lines
    assert ["total", "4"] in lines


def test_json_holds_the_console(vmi: Vmi, fake_run: FakeRun, kernel: Path) -> None:
    result = vmi("run", kernel, "--json")
    assert json.loads(result.stdout) == fake_run.result.to_json()


def test_serial_to_a_file(vmi: Vmi, fake_run: FakeRun, kernel: Path, tmp_path: Path) -> None:
    result = vmi("run", kernel, "--serial", f"file:{tmp_path / 'log'}")
    assert result.stdout_bytes == b""
    assert (tmp_path / "log").read_bytes() == b"hello\r\n"


def test_serial_file_is_complete_even_if_the_run_fails(
    vmi: Vmi, fake_run: FakeRun, kernel: Path, tmp_path: Path
) -> None:
    fake_run.error = EngineError("the engine is not what it should be")
    result = vmi("run", kernel, "--serial", f"file:{tmp_path / 'log'}")
    assert result.exit_code == 20
    assert (tmp_path / "log").read_bytes() == b"hello\r\n"


def test_nothing_is_written_if_there_is_no_run(
    vmi: Vmi, fake_run: FakeRun, kernel: Path, tmp_path: Path
) -> None:
    kept = [tmp_path / name for name in ("console", "log", "screen")]
    for path in kept:
        path.write_bytes(b"of the last run")
    options = ("--serial", f"file:{kept[0]}", "--log", "all", "--log-file", kept[1], "--screenshot", kept[2])
    fake_run.refusal = BadInput("the kernel is none")
    for name in (kernel, tmp_path / "missing"):
        result = vmi("run", name, *options, "--save", tmp_path / "saved")
        assert result.exit_code == 4
        assert [path.read_bytes() for path in kept] == [b"of the last run"] * 3
        assert not (tmp_path / "saved").exists()


def test_serial_file_that_cant_be_written_is_known_before_the_run(
    vmi: Vmi, fake_run: FakeRun, kernel: Path, tmp_path: Path
) -> None:
    result = vmi("run", kernel, "--serial", f"file:{tmp_path}")
    assert result.exit_code == 6
    assert sentence(result) == f"vmi: output {str(tmp_path)!r} can't be written: Is a directory"
    assert not fake_run.seen


def test_serial_to_nowhere(vmi: Vmi, fake_run: FakeRun, kernel: Path) -> None:
    assert vmi("run", kernel, "--serial", "none").stdout_bytes == b""


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (GuestTimeout("the guest still ran after 3 s"), 14),
        (EngineError("unicorn 9.9 is not 2.1.4"), 20),
    ],
)
def test_library_errors_are_one_sentence(
    vmi: Vmi, fake_run: FakeRun, kernel: Path, error: Exception, status: int
) -> None:
    fake_run.error = error
    result = vmi("run", kernel)
    assert result.exit_code == status
    assert sentence(result) == f"vmi: {error}"


def test_interrupt(vmi: Vmi, fake_run: FakeRun, kernel: Path) -> None:
    fake_run.error = KeyboardInterrupt()
    result = vmi("run", kernel)
    assert (result.exit_code, sentence(result)) == (130, "vmi: interrupted")


def test_unexpected_error_is_one_sentence_with_a_hint(
    vmi: Vmi, fake_run: FakeRun, kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VMI_TRACEBACK", raising=False)
    fake_run.error = ZeroDivisionError("division by zero")
    result = vmi("run", kernel)
    assert result.exit_code == 1
    assert sentence(result) == (
        "vmi: internal error, please report it (VMI_TRACEBACK=1 shows where): "
        "ZeroDivisionError: division by zero"
    )
    monkeypatch.setenv("VMI_TRACEBACK", "1")
    assert vmi("run", kernel).stderr.startswith("Traceback (most recent call last):\n")


BAD_ARGUMENTS = {
    "missing": (4, "kernel 'missing' can't be read: No such file or directory"),
    "": (2, "exactly one of KERNEL, --bios and --restore must say what to run"),
    "kernel --bios bios": (2, "exactly one of KERNEL, --bios and --restore must say what to run"),
    "kernel --restore saved": (2, "exactly one of KERNEL, --bios and --restore must say what to run"),
    "kernel --mmu shadow": (2, "--mmu is about a hypervisor's work, so it needs --rom or --full"),
    "kernel --full --rom native": (2, "--full runs without a ROM, so it can't be combined with --rom"),
    "kernel --rom nonsense": (
        2, "ROM 'nonsense' is neither a flavour (native, vmware) nor the name of a file",
    ),
    "kernel --rom ./no.bin": (4, "ROM './no.bin' can't be read: No such file or directory"),
    "kernel -m 64X": (
        2,
        "memory size '64X' is not understood: expected a number of MiB or one with K, M or G, "
        "from 1M to 3584M, in whole pages of 4K",
    ),
    "kernel --cpu 386": (
        2, f"processor '386' is not understood: expected one of {', '.join(MODELS)}",
    ),
    "kernel --timeout soon": (
        2, "time 'soon' is not understood: expected 'none', or a number above 0 in ns, us, ms, s, m or h",
    ),
    "kernel --timeout=": (
        2, "time '' is not understood: expected 'none', or a number above 0 in ns, us, ms, s, m or h",
    ),
    "kernel --until=": (2, "the text to wait for must not be empty"),
    "kernel --load-address c000g": (
        2, "address 'c000g' is not understood: expected up to 8 hexadecimal digits, like c0100000",
    ),
    "kernel --serial tcp:1": (
        2, "serial port 'tcp:1' is not understood: expected stdio, pty, file:PATH or none",
    ),
    "kernel --initrd ,x": (2, "module ',x' is not understood: expected FILE or FILE,ARGUMENTS"),
    "kernel --initrd no": (4, "module 'no' can't be read: No such file or directory"),
    "kernel --disk no": (4, "disk image 'no' can't be read: No such file or directory"),
    "kernel --disk no,rw": (4, "disk image 'no' can't be written to: No such file or directory"),
    "kernel --disk no,ro": (4, "disk image 'no,ro' can't be read: No such file or directory"),
    "kernel --disk=": (4, "disk image '' can't be read: No such file or directory"),
    "kernel --disk empty": (4, "disk image 'empty' is empty"),
    "kernel --disk folder": (4, "disk image 'folder' must be a file or a block device"),
    "kernel --disk folder,rw": (4, "disk image 'folder' can't be written to: Is a directory"),
    "kernel --disk kernel,rw --disk kernel": (
        2, "disk image 'kernel' can't be given twice if one of the two is rw",
    ),
    "kernel --disk kernel --disk folder/../kernel,rw": (
        2, "disk image 'folder/../kernel' can't be given twice if one of the two is rw",
    ),
    "kernel --disk kernel --disk kernel --disk kernel --disk kernel --disk kernel": (
        2, "there can be up to 4 disks, but 5 were given",
    ),
    "--bios no": (4, "firmware 'no' can't be read: No such file or directory"),
    "--bios empty": (4, "firmware 'empty' must have a multiple of 64 KiB up to 8 MiB, but it has 0 bytes"),
    "--bios kernel": (4, "firmware 'kernel' must have a multiple of 64 KiB up to 8 MiB, but it has 11 bytes"),
    "--bios bios --video-bios no": (4, "video BIOS 'no' can't be read: No such file or directory"),
    "--bios bios --video-bios kernel": (
        4, "video BIOS 'kernel' must have 512 bytes to 1 MiB, but it has 11 bytes",
    ),
    "--bios bios --video-bios bios": (4, "video BIOS 'bios' must start with 55 aa, but it starts with 00 00"),
    "kernel --video-bios bios": (2, "--video-bios is started by firmware, so it needs --bios"),
    "--bios bios --full": (2, "--full is for a KERNEL, so it can't be combined with --bios"),
    "--bios bios --append x": (2, "--append is for a KERNEL, so it can't be combined with --bios"),
    "--bios bios --initrd kernel": (2, "--initrd is for a KERNEL, so it can't be combined with --bios"),
    "--bios bios --protocol elf": (2, "--protocol is for a KERNEL, so it can't be combined with --bios"),
    "--restore x --append y": (2, "--append is for a new machine, so it can't be combined with --restore"),
    "--restore x -m 64": (2, "--memory is for a new machine, so it can't be combined with --restore"),
    "--restore x --cpu 486": (2, "--cpu is for a new machine, so it can't be combined with --restore"),
    "--restore x --rom native": (2, "--rom is for a new machine, so it can't be combined with --restore"),
    "--restore x --full": (2, "--full is for a new machine, so it can't be combined with --restore"),
    "kernel --log irq,disk": (
        2,
        "log category 'disk' is not understood: expected one or more of "
        "ports, irq, exceptions, mmio, cpu, refusals, with commas between them, or all",
    ),
    "kernel --log-file x": (2, "--log-file needs --log, which says what is logged"),
    "kernel --log all --log-file folder": (6, "output 'folder' can't be written: Is a directory"),
    "kernel --screenshot folder": (6, "output 'folder' can't be written: Is a directory"),
    "kernel --screenshot folder/no/x.png": (
        6, "output 'folder/no/x.png' can't be written: there is no folder 'HERE/folder/no'",
    ),
    "kernel --save kernel": (6, "snapshot 'kernel' can't be written: there is a file of that name"),
    "kernel --save full": (6, "snapshot 'full' can't be written: the folder holds something else"),
    "kernel --save folder/no/x": (
        6, "snapshot 'folder/no/x' can't be written: there is no folder 'HERE/folder/no'",
    ),
    "kernel --type \xe4": (2, "the character '\xe4' can't be typed on a US keyboard"),
}  # fmt: skip


@pytest.mark.parametrize("line", BAD_ARGUMENTS)
def test_bad_arguments(
    vmi: Vmi, fake_run: FakeRun, kernel: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    here = kernel.parent
    monkeypatch.chdir(here)
    (here / "bios").write_bytes(bytes(65536))
    (here / "empty").touch()
    (here / "folder").mkdir()
    (here / "full").mkdir()
    (here / "full" / "letter").touch()
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    status, text = BAD_ARGUMENTS[line]
    result = vmi("run", *line.split())
    assert (sentence(result), result.exit_code) == (f"vmi: {text.replace('HERE', str(here))}", status)
    assert not fake_run.seen
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def test_firmware_that_is_too_large(vmi: Vmi, fake_run: FakeRun, tmp_path: Path) -> None:
    path = tmp_path / "bios"
    path.write_bytes(b"")
    for size in ((8 << 20) + 65536, 65536 + 4096):
        os.truncate(path, size)
        result = vmi("run", "--bios", path)
        assert sentence(result) == (
            f"vmi: firmware {str(path)!r} must have a multiple of 64 KiB up to 8 MiB, but it has {size} bytes"
        )
        assert result.exit_code == 4


def test_unknown_key(vmi: Vmi, fake_run: FakeRun, kernel: Path) -> None:
    result = vmi("run", kernel, "--type", "ls<Retrun>")
    assert result.exit_code == 2
    assert sentence(result).startswith(
        "vmi: no key is called 'Retrun'; besides those that print there are Esc, F1"
    )


def test_unknown_sample(vmi: Vmi, fake_run: FakeRun) -> None:
    result = vmi("run", "sample:nonsense")
    assert result.exit_code == 4
    assert sentence(result).startswith("vmi: no sample kernel is called 'nonsense'; there are ")


def test_unknown_option_is_a_usage_error(vmi: Vmi, kernel: Path) -> None:
    result = vmi("run", kernel, "--nonsense")
    assert result.exit_code == 2
    assert "--nonsense" in result.stderr
