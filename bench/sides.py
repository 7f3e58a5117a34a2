# SPDX-License-Identifier: GPL-2.0-only
"""How each figure is measured on each side: with the C part, in Python alone, and under QEMU.

Which engine runs is decided once in a process, so each figure of ours is taken in one of its own, with the
environment that chooses; what is timed is decided there, too, where starting up shall not count.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import guests
import qemu
from figures import Side, Time
from guests import Loop

MEMORY = 64 << 20
SHORT, LONG = 1, 11  # a loop's two lengths, in units
_UNIT_S = 0.06  # what a unit takes about, where it could be more turns than that
SWITCH = "VMI_ACCELERATOR"
PEAKS: list[int] = []  # MiB of this computer's memory, for each boot of ours
HELLO_STATUS = 33
_DIRTY, _RESTORES = 100, 101
_GUEST_DONE = 33


@dataclass(frozen=True)
class Boot:
    """A kernel, and the text on the serial console that it is to come to; bytes of RAM."""

    kernel: Path
    append: str
    initrd: Path | None
    until: str
    memory: int = MEMORY


def available() -> list[Side]:
    """The sides of ours that there are here."""
    accelerated = _measured(Side.ACCELERATED, "accelerated", "")
    return [Side.ACCELERATED, Side.PYTHON] if accelerated else [Side.PYTHON]


def processor() -> str:
    """What this computer's processor calls itself, and how many there are."""
    try:
        rows = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        rows = []
    names = [row.split(":", 1)[1].strip() for row in rows if row.startswith("model name")]
    return f"{os.cpu_count()} processors" + (f" ({names[0]})" if names else "")


# -- in processes of their own ------------------------------------------------------------------


def installed() -> dict[str, str]:
    """The environment of a process whose compiled modules are kept, as they are where vmi is installed."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def environment(side: Side) -> dict[str, str]:
    """That of a process for one side."""
    kept = installed()
    kept.pop(SWITCH, None)
    return kept | ({SWITCH: "0"} if side is Side.PYTHON else {})


def run_process(
    command: Sequence[str], status: int, env: dict[str, str] | None = None, peaks: list[int] | None = None
) -> Time:
    """The time of a whole process, which must end with a status."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=env) as process:
        _, ended, usage = os.wait4(process.pid, 0)
        passed = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(ended)
    if process.returncode != status:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {process.returncode}, not {status}")
    if peaks is not None:
        peaks.append(usage.ru_maxrss // 1024)
    return Time(passed, usage.ru_utime + usage.ru_stime)


def _measured(side: Side, what: str, argument: object) -> object:
    """What :func:`measure_here` gives in a process of that side."""
    program = Path(__file__).with_name("engine.py")
    command = [sys.executable, str(program), "--measure", json.dumps([what, argument])]
    done = subprocess.run(command, env=environment(side), check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"measuring {what} {argument} ended with {done.returncode}")
    return json.loads(done.stdout)


def _ours(what: str, argument: object) -> Callable[[Side], Time]:
    def ours(side: Side) -> Time:
        wall, cpu = _measured(side, what, argument)  # type: ignore[misc]
        return Time(wall, cpu)

    return ours


def loop(which: Loop) -> Callable[[Side], Time]:
    """One turn of a loop."""
    return _ours("loop", which.name)


def call_out(name: str) -> Callable[[Side], Time]:
    """One call that goes to the hypervisor, and back."""
    return _ours("call-out", name)


restore = _ours("restore", "")


def boot(what: Boot, *, rom: bool = False) -> Callable[[Side], Time]:
    """The whole process of a boot."""
    command = [sys.executable, "-m", "vmi", "run", str(what.kernel), "-m", str(what.memory >> 20)]
    command += ["--initrd", str(what.initrd)] if what.initrd is not None else []
    command += ["--rom", "vmware"] if rom else []
    command += ["--append", what.append, "--until", what.until, "--serial", "none", "--timeout", "none", "-q"]
    return lambda side: run_process(command, 0, environment(side), PEAKS)


def start_up(side: Side) -> Time:
    """The whole process of the smallest run."""
    command = [sys.executable, "-m", "vmi", "run", "sample:hello", "--serial", "none", "-q"]
    run_process(command, HELLO_STATUS, environment(side))  # whose modules are compiled, and in memory
    return run_process(command, HELLO_STATUS, environment(side))


# -- QEMU ---------------------------------------------------------------------------------------


def loop_qemu(which: Loop) -> Callable[[], Time]:
    """One turn of a loop under QEMU."""

    def theirs() -> Time:
        short, long = (_image_qemu(guests.loop(which, n * which.quick)) for n in (SHORT, LONG))
        return (long - short).over((LONG - SHORT) * which.quick)

    return theirs


def hello_qemu() -> Time:
    """The whole process of the smallest run under QEMU, with its firmware."""
    from vmi import samples

    return _image_qemu(samples.get("hello").path.read_bytes())


def _image_qemu(image: bytes) -> Time:
    with tempfile.NamedTemporaryFile() as file:
        file.write(image)
        file.flush()
        more = ("-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-kernel", file.name)
        command = [*qemu.COMMAND, "-M", "isapc", "-m", str(MEMORY >> 20), *more]
        return run_process(command, _GUEST_DONE)


def boot_qemu(what: Boot) -> Callable[[], Time]:
    """From QEMU's start to the text on the serial console."""
    more = ["-initrd", str(what.initrd)] if what.initrd is not None else []
    until = what.until.encode()
    return lambda: Time(*qemu.boot_times("pc", what.kernel, what.append, until, what.memory, more))


# -- here ---------------------------------------------------------------------------------------


def measure_here(what: str, argument: str) -> object:
    """One figure, in this process: seconds on the wall and of the processor; a bool for "accelerated"."""
    if what == "accelerated":
        return _accelerated()
    if what == "restore":
        return _restore_here()
    if what == "call-out":
        import vmi

        rom = vmi.build_rom("vmware").image
        return _one_turn(lambda n: _run_here(guests.call_out(argument, n), rom), 1_000, 100_000)
    (which,) = (one for one in guests.LOOPS if one.name == argument)
    return _one_turn(lambda n: _run_here(guests.loop(which, n), None), which.slow // 4, which.quick)


def _accelerated() -> bool:
    """There is an accelerator, and it is what CPUs of this process use."""
    try:
        from vmi.native import accelerator
    except ImportError:
        return False
    return accelerator.load() is not None


def _one_turn(run: Callable[[int], Time], fewest: int, most: int) -> tuple[float, float]:
    """The time of one turn of a loop, from two runs of it; ``fewest`` and ``most`` turns in a unit."""
    once = run(fewest).wall / fewest
    unit = int(min(most, max(fewest, _UNIT_S / once)))
    found = (run(LONG * unit) - run(SHORT * unit)).over((LONG - SHORT) * unit)
    return found.wall, found.cpu


def _run_here(image: bytes, rom: bytes | None) -> Time:
    from vmi.run import Setup, prepare

    guest = prepare(Setup(image, rom=rom, memory=MEMORY))
    wall, cpu = time.perf_counter(), time.process_time()
    result = guest.run(hashed=False)
    found = Time(time.perf_counter() - wall, time.process_time() - cpu)
    if result.exit_status != _GUEST_DONE:
        raise SystemExit(f"a guest did not end: {result.reason}")
    return found


def _restore_here() -> tuple[float, float]:
    """The median of many: a machine that has run a while, and pages all over its memory that were written."""
    from vmi import samples
    from vmi.native.machine import Machine

    machine = Machine(ram=MEMORY)
    machine.load(samples.get("sched").path.read_bytes())
    machine.console.expect(b"\n")
    checkpoint = machine.checkpoint()
    chance, found = random.Random(1), []
    pages = chance.sample(range(MEMORY >> 12), _DIRTY)
    for _ in range(_RESTORES):
        for page in pages:
            machine.memory.write(page << 12, chance.randbytes(8))
        wall, cpu = time.perf_counter(), time.process_time()
        checkpoint.restore()
        found.append(Time(time.perf_counter() - wall, time.process_time() - cpu))
    return statistics.median(one.wall for one in found), statistics.median(one.cpu for one in found)
