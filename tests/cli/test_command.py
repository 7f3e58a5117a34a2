# SPDX-License-Identifier: GPL-2.0-only
"""The command as a whole, as a process: help, streams, statuses, and the small verbs."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Process, Vmi, sentence, surroundings
from vmi import abi
from vmi.errors import ExitCode
from vmi.version import __version__

VERBS = ("patch", "prove", "inspect", "run", "compare", "demo", "abi", "version")
ROM_VERBS = ("build", "inspect", "list")


def test_exit_codes_are_stable_and_even() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "OK": 0,
        "USAGE": 2,
        "BAD_INPUT": 4,
        "OUTPUT": 6,
        "NO_SITES": 8,
        "ROM": 10,
        "GUEST_CRASH": 12,
        "TIMEOUT": 14,
        "CALL_NOT_SERVED": 16,
        "DIFFERENT": 18,
        "ENGINE": 20,
        "NOT_CONFORMING": 22,
        "CONFORMANCE_UNKNOWN": 24,
    }


@pytest.mark.parametrize("verb", [*((verb,) for verb in VERBS), *(("rom", verb) for verb in ROM_VERBS)])
def test_every_verb_has_help_and_the_common_options(vmi: Vmi, verb: tuple[str, ...]) -> None:
    result = vmi(*verb, "--help")
    assert result.exit_code == 0
    for option in ("--json", "--quiet", "-q", "--verbose", "-v"):
        assert option in result.stdout


def test_help_lists_all_verbs(vmi: Vmi) -> None:
    words = vmi("--help").stdout.split()
    assert {*VERBS, "rom"} <= set(words)


@pytest.mark.parametrize("arguments", [(), ("rom",), ("nonsense",), ("rom", "nonsense"), ("run",)])
def test_no_sense_is_status_2(process: Process, arguments: tuple[str, ...]) -> None:
    done = process(*arguments)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


def test_version_option(process: Process) -> None:
    assert process("--version").stdout.decode() == f"vmi {__version__}\n"


def test_version_of_everything(vmi: Vmi) -> None:
    facts = json.loads(vmi("version", "--json").stdout)
    assert facts["vmi"] == __version__
    assert facts["abi"] == "3.0"
    assert facts["unicorn"] == "2.1.4"
    lines = dict(line.split(maxsplit=1) for line in vmi("version").stdout.splitlines())
    assert lines == facts


def test_small_verbs_load_no_engine() -> None:
    """Help and tables answer at once because the large libraries are not even loaded."""
    code = (
        "import sys; from vmi.cli import app; app(['abi', 'CPUID'], standalone_mode=False);"
        "sys.exit(bool({'unicorn', 'lief', 'keystone', 'iced_x86'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_a_native_run_loads_what_it_needs() -> None:
    """Else half of a short run would be the loading of a hypervisor, an assembler and tables."""
    code = (
        "import sys; from vmi.cli import application;"
        "application(['run'])(['run', 'sample:hello', '-q', '--serial', 'none'], standalone_mode=False);"
        "unwanted = {'lief', 'keystone', 'iced_x86', 'rich', 'vmi.hypervisor.domain', 'vmi.rom', 'vmi.abi'};"
        "print(*sorted(unwanted & sys.modules.keys()), 'vmi.native.cpu' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr


def test_abi_lists_every_call(vmi: Vmi) -> None:
    lines = vmi("abi").stdout.splitlines()[1:]
    assert [line.split()[:2] for line in lines] == [[str(call.number), call.name] for call in abi.CALLS]


def test_abi_json_has_the_whole_table(vmi: Vmi) -> None:
    rows = json.loads(vmi("abi", "--json").stdout)
    assert [row["name"] for row in rows] == [call.name for call in abi.CALLS]
    assert rows[abi.BY_NAME["SetCR3"].number]["args"][0]["places"] == ["eax"]


@pytest.mark.parametrize("name", ["SetCR3", "setcr3", str(abi.BY_NAME["SetCR3"].number)])
def test_abi_of_one_call(vmi: Vmi, name: str) -> None:
    call = abi.BY_NAME["SetCR3"]
    text = vmi("abi", name).stdout
    assert text.startswith(f"SetCR3, call {call.number}\n\n{call.summary}\n")
    words = " ".join(text.split())
    assert all(one.id in words and one.text in words for one in call.requirements)
    assert json.loads(vmi("abi", name, "--json").stdout)["number"] == call.number


@pytest.mark.parametrize("call", abi.CALLS, ids=lambda call: call.name)
def test_abi_has_a_page_for_each_call(vmi: Vmi, call: abi.Call) -> None:
    result = vmi("abi", call.name)
    assert result.exit_code == 0
    assert call.summary in result.stdout
    assert json.loads(vmi("abi", call.name, "--json").stdout)["summary"] == call.summary


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cpuidx", "there is no VMI call 'cpuidx'; did you mean CPUID?"),
        ("74", "there is no VMI call '74'; `vmi abi` lists all names and numbers"),
        ("-1x\x1b", "there is no VMI call '-1x\\x1b'; `vmi abi` lists all names and numbers"),
    ],
)
def test_abi_of_no_call(vmi: Vmi, name: str, text: str) -> None:
    result = vmi("abi", "--", name)
    assert (result.exit_code, sentence(result)) == (2, f"vmi: {text}")


def test_full_stdout_is_a_sentence(process: Process) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "wb") as full:
        done = process("abi", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 6
    assert done.stderr.decode() == "vmi: standard output can't be written: No space left on device\n"


def test_reader_that_left_is_no_error_message(process: Process) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = process("abi", capture_output=False, stdout=writer, stderr=subprocess.PIPE)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_old_encodings_lose_nothing_but_looks(process: Process) -> None:
    environment = surroundings(PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    done = process("run", "k\xe4rnel", env=environment)
    assert done.returncode == 4
    assert (
        done.stderr.decode("ascii") == "vmi: kernel 'k\\xe4rnel' can't be read: No such file or directory\n"
    )


@pytest.mark.parametrize(("variable", "colour"), [("NO_COLOR", False), ("VMI_UNUSED", True)])
def test_colour_only_on_a_terminal(process: Process, variable: str, colour: bool) -> None:
    environment = surroundings(TERM="xterm", **{variable: "1"})
    assert b"\x1b" not in process("abi", env=environment).stdout
    controller, terminal = pty.openpty()
    try:
        done = process("--version", capture_output=False, stdout=terminal, stderr=terminal, env=environment)
        assert done.returncode == 0
        done = process("nonsense", capture_output=False, stdout=terminal, stderr=terminal, env=environment)
        assert done.returncode == 2
        text = os.read(controller, 10000)
    finally:
        os.close(controller)
        os.close(terminal)
    assert (b"\x1b[3" in text) is colour  # a colour; bold and the like are allowed
