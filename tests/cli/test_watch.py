# SPDX-License-Identifier: GPL-2.0-only
"""`vmi run` with real guests: each option that shapes the machine, watches it or keeps something of it.

The guests are a few instructions each, flat binaries for 1 MiB. They talk through port E9h, which is part
of the console, and end through the debug-exit port with the status 0: exit status 1.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import Result

from tests.cli.conftest import Process, Vmi, sentence, surroundings
from tests.cli.terminals import PATIENCE, Terminal, read_until
from vmi.native.cpuid import MODELS
from vmi.rom.assemble import assemble

NO_INTERRUPTS = "mov al, 0xff | out 0x21, al | out 0xa1, al"
SLEEP = f"{NO_INTERRUPTS} | sti | hlt"
END = "xor eax, eax | out 0xf4, al | stay: jmp short stay"


def flat(source: str, address: int = 0x100000) -> bytes:
    """A guest; a bar stands for the end of a line."""
    return assemble(source.replace(" | ", "\n"), address).code


@pytest.fixture
def run(vmi: Vmi, tmp_path: Path) -> Vmi:
    """Run a guest given by its source."""

    def start(source: str, *options: str | Path) -> Result:
        (tmp_path / "guest").write_bytes(flat(source))
        return vmi("run", tmp_path / "guest", "--protocol", "flat", "--timeout", "1s", *options)

    return start


def told(result: Result) -> list[str]:
    """The lines on stderr without the last, which tells how the run ended."""
    *lines, end = result.stderr.splitlines()
    assert end.startswith("vmi: native: "), result.stderr
    return lines


# --- the machine ---


@pytest.mark.parametrize("model", MODELS)
def test_processor(run: Vmi, model: str) -> None:
    send = " | shr eax, 8 | out 0xe9, al" * 3
    result = run(f"mov eax, 1 | cpuid | out 0xe9, al{send} | {END}", "--cpu", model)
    assert result.stdout_bytes == MODELS[model].signature.to_bytes(4, "little")


@pytest.mark.parametrize(("words", "address"), [((), 0x100000), (("--load-address", "2345678"), 0x2345678)])
def test_load_address(run: Vmi, words: tuple[str, ...], address: int) -> None:
    send = " | shr eax, 8 | out 0xe9, al" * 3
    result = run(f"call next | next: pop eax | out 0xe9, al{send} | {END}", *words)
    assert result.stdout_bytes == (address + 5).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["--protocol", "elf"], 35, "hello: multiboot FAIL"),
        (["--protocol", "multiboot"], 33, "hello: multiboot ok"),
        ([], 33, "hello: multiboot ok"),
    ],
)
def test_protocol(vmi: Vmi, words: list[str], status: int, text: str) -> None:
    result = vmi("run", "sample:hello", *words)
    assert (result.exit_code, result.stdout.splitlines()[1]) == (status, text)


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        ("--protocol a.out", 2, "boot protocol 'a.out' is not one of linux, multiboot, pvh, elf, flat"),
        ("--protocol linux", 4, "the kernel has no Linux setup header: there is no 'HdrS' at byte 0x202"),
        (
            "--load-address 200000",
            2,
            "only a flat binary takes a load address, but the kernel's protocol is multiboot",
        ),
        (
            "--protocol flat --append x",
            2,
            "a flat kernel without a boot protocol can't be given a command line",
        ),
        (
            "--full --cpu max",
            2,
            "a de-privileged kernel must have a processor that promises only what hypervisors here serve, "
            "but max has 3dnow, 3dnowext, abm, adx, aes, bmi1, bmi2, clflush, clflushopt, clwb, mmxext, "
            "movbe, pclmulqdq, popcnt, sse4.1, sse4.2, sse4a, ssse3",
        ),
        (
            "--full --save saved",
            2,
            "a machine with a hypervisor on it can't be saved, so --save needs one without",
        ),
    ],
)
def test_what_the_machine_refuses(
    vmi: Vmi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, status: int, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = vmi("run", "sample:hello", *words.split())
    assert (sentence(result), result.exit_code) == (f"vmi: {text}", status)
    assert not [*tmp_path.iterdir()]


def test_native_rom_needs_no_special_processor(vmi: Vmi) -> None:
    result = vmi("run", "sample:hello", "--rom", "native", "--cpu", "max", "-q")
    assert result.exit_code == 33


# Reads sector 0 of the first disk, or changes its first two bytes and writes it back.
ADDRESS_DISK = """
        mov dx, 0x1f6 | mov al, 0xe0 | out dx, al
        mov dx, 0x1f2 | mov al, 1 | out dx, al
        xor eax, eax
        inc edx | out dx, al | inc edx | out dx, al | inc edx | out dx, al
"""
WAIT_FOR_DATA = (
    "mov dx, 0x1f7 | {0}: in al, dx | test al, 0x80 | jne {0} | test al, 8 | je {0} | mov dx, 0x1f0"
)
READ_SECTOR = f"""
        {ADDRESS_DISK} | mov dx, 0x1f7 | mov al, 0x20 | out dx, al
        {WAIT_FOR_DATA.format("busy")} | mov edi, 0x8000 | mov ecx, 256 | cld | rep insw
"""
SHOW_FOUR = "mov esi, 0x8000 | mov ecx, 4 | mov dx, 0xe9 | rep outsb"
WRITE_SECTOR = f"""
        mov word ptr [0x8000], 0x4b4f
        {ADDRESS_DISK} | mov dx, 0x1f7 | mov al, 0x30 | out dx, al
        {WAIT_FOR_DATA.format("slow")} | mov esi, 0x8000 | mov ecx, 256 | rep outsw
        mov dx, 0x1f7 | wait: in al, dx | test al, 0x80 | jne wait
"""


def test_disk_is_read(run: Vmi, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"boot".ljust(1024, b"."))
    assert run(f"{READ_SECTOR} | {SHOW_FOUR} | {END}", "--disk", tmp_path / "disk").stdout == "boot"


@pytest.mark.parametrize(("mode", "kept"), [("", b"boot"), (",rw", b"OKot")])
def test_disk_keeps_what_is_written_only_with_rw(run: Vmi, tmp_path: Path, mode: str, kept: bytes) -> None:
    (tmp_path / "disk").write_bytes(b"boot".ljust(1024, b"."))
    source = f"{READ_SECTOR} | {WRITE_SECTOR} | {READ_SECTOR.replace('busy', 'again')} | {SHOW_FOUR} | {END}"
    assert run(source, "--disk", f"{tmp_path / 'disk'}{mode}").stdout == "OKot"
    assert (tmp_path / "disk").read_bytes() == kept.ljust(1024, b".")


def test_firmware_starts_at_the_reset_vector(vmi: Vmi, tmp_path: Path) -> None:
    code = b"\xb0F\xe6\xe9\xb0\x00\xe6\xf4\xeb\xfe"  # mov al,'F'; out E9h,al; mov al,0; out F4h,al; jmp $
    (tmp_path / "bios").write_bytes(b"\xf4" * 0xFFF0 + code.ljust(16, b"\xf4"))
    result = vmi("run", "--bios", tmp_path / "bios")
    assert (result.stdout, result.exit_code) == ("F", 1)


# --- what is watched ---


def test_log_is_on_stderr(run: Vmi) -> None:
    result = run(f"in al, 0x64 | int 0x80 | {END}", "--log", "ports,cpu")
    assert result.exit_code == 12  # nobody has set up an IDT
    assert told(result) == [
        "          0.010 0008:00100000 in    64 -> 1c            i8042 status",
        "          1.020 0008:00100002 cpu   the guest triple-faulted at 0x8:0x100002",
    ]


def test_log_of_everything_in_a_file(run: Vmi, tmp_path: Path) -> None:
    source = f"mov eax, [0xfec00000] | mov ecx, 0x1b | rdmsr | mov al, 0x41 | out 0xe9, al | {END}"
    result = run(source, "--log", "all", "--log-file", tmp_path / "log")
    assert (result.stdout, told(result)) == ("A", [])
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line[30:].rstrip() for line in lines] == [
        "read  fec00000 -> 00000000 io apic select",
        "cpu   rdmsr 1b -> 00000000fee00900",
        "out   e9 <- 41            debugcon data",
        "out   f4 <- 00            debug exit value",
        "cpu   the guest ended itself with debug-exit value 0x0",
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    "words",
    [("--log", "all", "--log-file"), ("--screenshot",), ("--serial", "file:/dev/full", "--until", "x")],
)
def test_full_disk(run: Vmi, words: tuple[str, ...]) -> None:
    words = words if words[0] == "--serial" else (*words, "/dev/full")
    result = run(f"mov al, 0x41 | out 0xe9, al | {END}", *words)
    assert result.exit_code == 6
    assert sentence(result) == "vmi: output '/dev/full' can't be written: No space left on device"


SHOW_HI = "mov dword ptr [0xb8000], 0x1f691f48"


def test_screenshot_as_text(run: Vmi, tmp_path: Path) -> None:
    assert run(f"{SHOW_HI} | {END}", "--screenshot", tmp_path / "screen.txt").exit_code == 1
    assert (tmp_path / "screen.txt").read_text() == "Hi" + "\n" * 25


@pytest.mark.parametrize("name", ["screen.png", "SCREEN.PNG"])
def test_screenshot_as_a_picture(run: Vmi, tmp_path: Path, name: str) -> None:
    assert run(f"{SHOW_HI} | {END}", "--screenshot", tmp_path / name).exit_code == 1
    data = (tmp_path / name).read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")) == (720, 400)


def test_screenshot_when_the_time_is_up(run: Vmi, tmp_path: Path) -> None:
    result = run(f"{SHOW_HI} | stay: jmp short stay", "--timeout", "1ms", "--screenshot", tmp_path / "screen")
    assert result.exit_code == 14
    assert (tmp_path / "screen").read_text().splitlines()[0] == "Hi"


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("aB\\n<F1>.", "1e 9e 2a 30 b0 aa 1c 9c 3b bb 34 b4"),  # make and break codes of set 1
        ("<Ctrl-C><Left>.", "1d 2e ae 9d e0 4b e0 cb 34 b4"),
    ],
)
def test_typed_keys(run: Vmi, text: str, codes: str) -> None:
    source = "next: in al, 0x64 | test al, 1 | je next | in al, 0x60 | out 0xe9, al | cmp al, 0xb4 | jne next"
    result = run(f"mov al, 0xae | out 0x64, al | {source} | {END}", "--type", text)
    assert (result.stdout_bytes.hex(" "), result.exit_code) == (codes, 1)


def test_a_pause_in_what_is_typed(run: Vmi) -> None:
    source = "next: in al, 0x64 | test al, 1 | je next | in al, 0x60 | cmp al, 0x9e | jne next"
    asleep = f"{NO_INTERRUPTS} | mov al, 0xae | out 0x64, al"
    early, late = (
        json.loads(run(f"{asleep} | {source} | {END}", "--type", text, "--json").stdout)["virtual_ns"]
        for text in ("a", "<0.02s>a")
    )
    assert late - early == pytest.approx(20_000_000, abs=2_000)  # a look at the port takes 1 µs


def test_the_screen_is_shown_on_the_terminal(tmp_path: Path) -> None:
    prompt = "mov dx, 0x3f8 | mov al, 0x3e | out dx, al"
    (tmp_path / "guest").write_bytes(flat(f"{SHOW_HI} | {prompt} | {SLEEP}"))
    terminal = Terminal()
    try:
        terminal.start("run", str(tmp_path / "guest"), "--protocol", "flat", "-q", module="vmi")
        read_until(terminal.fd, b">")
        os.write(terminal.fd, b"\x01s")
        assert read_until(terminal.fd, b"Hi" + b"\r\n" * 25) == b"\r\nHi" + b"\r\n" * 25
        os.write(terminal.fd, b"\x01x")
        assert terminal.finish() == (0, "")
    finally:
        terminal.close()


# --- a serial console elsewhere, and time ---

ECHO = """
        mov dx, 0x3fd | in al, dx | test al, 1 | je begin
        mov dx, 0x3f8 | in al, dx | out dx, al | cmp al, 0x71 | jne begin
"""


def test_serial_console_on_a_pty(tmp_path: Path) -> None:
    (tmp_path / "guest").write_bytes(flat(f"begin: {ECHO} | {END}"))
    command = [sys.executable, "-m", "vmi", "run", "guest", "--protocol", "flat", "--serial", "pty"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, env=surroundings(), stdin=pipe, stderr=pipe) as child:
        assert child.stderr is not None
        match = re.fullmatch(rb"vmi: the serial console is (/dev/pts/\d+)\n", child.stderr.readline())
        assert match
        fd = os.open(match[1], os.O_RDWR | os.O_NOCTTY)
        os.write(fd, b"hello")
        assert read_until(fd, b"o") == b"hello"
        os.write(fd, b"q")
        said = child.communicate(timeout=PATIENCE)[1]
        os.close(fd)
    assert (child.returncode, said.splitlines()[0][:28]) == (1, b"vmi: native: the guest ended")


@pytest.mark.parametrize("words", [(), ("--realtime",)])
def test_guest_time_passes_no_faster_than_ours_with_realtime(run: Vmi, words: tuple[str, ...]) -> None:
    result = json.loads(run(SLEEP, "--timeout", "20s" if not words else "200ms", "--json", *words).stdout)
    assert result["outcome"] == "timeout"
    if words:
        assert result["virtual_ns"] == 200_000_000
        assert result["wall_s"] >= 0.19
    else:
        assert result["wall_s"] < 20 == result["virtual_ns"] // 10**9


# --- snapshots ---

TWO_HALVES = f"""
        mov al, 0x31 | out 0xe9, al
        mov ecx, 1000 | more: loop more
        mov al, 0x32 | out 0xe9, al | mov word ptr [0xb8000], 0x0732 | {END}
"""


def facts(result: Result) -> dict[str, object]:
    """What --json tells, less this computer's time."""
    value = json.loads(result.stdout)
    assert isinstance(value, dict)
    del value["wall_s"]
    return value


def test_a_run_in_two_halves_is_the_same_run(run: Vmi, vmi: Vmi, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    whole = facts(run(TWO_HALVES, "--json"))
    first = run(TWO_HALVES, "--until", "1", "--save", saved)
    assert (first.stdout, first.exit_code) == ("1", 0)
    second = vmi("run", "--restore", saved, "--screenshot", tmp_path / "screen")
    assert (second.stdout, second.exit_code) == ("2", 1)
    assert (tmp_path / "screen").read_text() == "2" + "\n" * 25
    assert facts(vmi("run", "--restore", saved, "--json")) == whole


def test_a_snapshot_may_be_replaced_by_a_later_one(run: Vmi, vmi: Vmi, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    run(TWO_HALVES, "--until", "1", "--save", saved)
    assert vmi("run", "--restore", saved, "--timeout", "1us", "--save", saved).exit_code == 14
    assert vmi("run", "--restore", saved).stdout == "2"


def test_a_snapshot_with_a_disk(run: Vmi, vmi: Vmi, tmp_path: Path) -> None:
    disk, saved, moved = tmp_path / "disk", tmp_path / "saved", tmp_path / "moved"
    disk.write_bytes(b"boot".ljust(1024, b"."))
    source = f"{READ_SECTOR} | {WRITE_SECTOR} | mov al, 0x31 | out 0xe9, al | "
    source += f"{READ_SECTOR.replace('busy', 'again')} | {SHOW_FOUR} | {END}"
    assert run(source, "--disk", disk, "--until", "1", "--save", saved).stdout == "1"
    assert vmi("run", "--restore", saved).stdout == "OKot"
    disk.rename(moved)
    result = vmi("run", "--restore", saved)
    assert result.exit_code == 4
    assert sentence(result) == (
        f"vmi: snapshot {str(saved)!r} can't be restored: disk image {str(disk)!r} can't be read: "
        "No such file or directory"
    )
    assert vmi("run", "--restore", saved, "--disk", moved).stdout == "OKot"
    moved.write_bytes(b"toob".ljust(1024, b"."))
    result = vmi("run", "--restore", saved, "--disk", moved)
    assert result.exit_code == 4
    assert sentence(result) == (
        f"vmi: snapshot {str(saved)!r} can't be restored: "
        f"the saved state is of other contents of disk image {str(moved)!r}"
    )


def test_no_snapshot(vmi: Vmi, tmp_path: Path) -> None:
    result = vmi("run", "--restore", tmp_path)
    assert (result.exit_code, sentence(result)) == (
        4,
        f"vmi: snapshot {str(tmp_path)!r} can't be restored: it has no manifest.json",
    )


def test_what_can_be_kept_is_kept_if_the_rest_can_t(run: Vmi, vmi: Vmi, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    saved = tmp_path / "saved"
    result = run(TWO_HALVES, "--until", "1", "--save", saved, "--screenshot", "/dev/full")
    assert result.exit_code == 6
    assert vmi("run", "--restore", saved).stdout == "2"


def test_the_command_as_a_process(process: Process, tmp_path: Path) -> None:
    """Streams of a real process: the console on stdout, the log on stderr, the picture in its file."""
    (tmp_path / "guest").write_bytes(flat(f"mov al, 0x41 | out 0xe9, al | {SHOW_HI} | {END}"))
    done = process("run", "guest", "--protocol", "flat", "--log", "ports", "--screenshot", "screen.txt")
    assert (done.returncode, done.stdout) == (1, b"A")
    assert [line[30:].split() for line in done.stderr.decode().splitlines()[:2]] == [
        ["out", "e9", "<-", "41", "debugcon", "data"],
        ["out", "f4", "<-", "00", "debug", "exit", "value"],
    ]
    assert (tmp_path / "screen.txt").read_text().startswith("Hi\n")
