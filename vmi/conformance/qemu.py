# SPDX-License-Identifier: GPL-2.0-only
"""QEMU as a subject: the suite on a machine that knows nothing of this toolkit.

With the native ROM it is a check of the suite itself, since what it calls native behaviour must be what
QEMU does. It is also the example of a backend for a machine that somebody else has written: everything goes
through what QEMU has for debuggers and tests.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import cache

from vmi.conformance import qemu_firmware
from vmi.conformance.layout import RAM, Paging
from vmi.conformance.qemu_lines import PATIENCE, Lines, complaint
from vmi.conformance.subject import REGISTERS, End, Environment, Stop
from vmi.errors import EngineError, RomError, UsageError
from vmi.native.machine import ROM_BAY
from vmi.rom.build import build
from vmi.version import __version__

#: In the environment: the program, with options that go behind those given here.
COMMAND = "VMI_QEMU"
PROGRAM = "qemu-system-i386"
INSTRUCTION_NS = 100  # guest time of an instruction where :meth:`Qemu.run` counts them
_COUNTED_NS = 50_000  # limits up to this are counted
_PORT = 0xF4
_OUT = bytes((0xE6, _PORT))  # OUT F4h, AL
_MIB = 1 << 20
# another processor each time, so that features are there and are not
_MODELS = {Paging.TWO_LEVEL: "pentium3", Paging.PSE: "pentium2", Paging.PAE: "max"}
_SECONDS, _LOOK = 3.0, 0.3  # how long a guest may run, and until it is asked whether it waits
_STEP, _SOON = 0.25, 0.005  # seconds until an instruction, and a stop that is under way, must have come
# stops as gdb numbers them: by request, by a guest that switched off, behind a step or at a breakpoint
_BREAK, _OFF, _TRAP = "T02", "T03", "T05"
_MOST_BEHIND = 200  # instructions of a loop that writes to the port


class Qemu:
    """QEMU with a ROM image, by default the native one. It starts with the first :meth:`reset`.

    :raises RomError: the ROM is too large.
    :raises EngineError: QEMU is not installed.
    """

    def __init__(self, environment: Environment, rom: bytes | None = None) -> None:
        self._rom = build("native").image if rom is None else rom
        if len(self._rom) > len(ROM_BAY):
            raise RomError(f"the ROM bay has {len(ROM_BAY)} bytes, the ROM needs {len(self._rom)}")
        self.name = "the native ROM on QEMU" if rom is None else "QEMU"
        self._command = _command(environment)
        self._environment = environment
        self._lines: Lines | None = None
        self._pic: tuple[str, ...] = ()
        self._breaks: set[int] = set()
        self._registers: dict[str, int] = {}
        self._changed: set[str] = set()
        self._raised = False  # an interrupt, since the last run

    def __repr__(self) -> str:
        return f"<Qemu {self._environment}>"

    def reset(self) -> None:
        """See :class:`vmi.conformance.subject.Subject`."""
        lines = self._started()
        lines.listen()
        for address in self._breaks - {qemu_firmware.end()}:
            lines.ask(f"z1,{address:x},1")
        self._breaks = {qemu_firmware.end()}
        lines.monitor("system_reset")
        self._changed.clear()
        self._raised = False
        lines.say("c")
        lines.must(lines.answer())
        lines.board(f"memset 0x0 {RAM:#x} 0x0")
        self.write(ROM_BAY.start, self._rom)
        begun = self._look()["eip"] == qemu_firmware.end()
        if not begun or self.read(ROM_BAY.start, len(self._rom)) != self._rom:
            raise EngineError(
                "QEMU's machine must begin and have RAM from C0000h on as pc does, but it has not"
            )

    def read(self, address: int, size: int) -> bytes:
        """See :class:`vmi.conformance.subject.Subject`."""
        return self._running().read(address, size) if size else b""

    def write(self, address: int, data: bytes) -> None:
        """See :class:`vmi.conformance.subject.Subject`."""
        lines = self._running()
        if data:
            lines.write(address, data)
        at = data.find(_OUT)
        while at >= 0:
            behind = address + at + len(_OUT)
            if behind not in self._breaks:
                self._breaks.add(behind)
                lines.ask(f"Z1,{behind:x},1")
            at = data.find(_OUT, at + 1)

    def registers(self) -> dict[str, int]:
        """See :class:`vmi.conformance.subject.Subject`."""
        return dict(self._registers)

    def set_registers(self, values: Mapping[str, int]) -> None:
        """See :class:`vmi.conformance.subject.Subject`."""
        self._registers.update(values)
        self._changed.update(values)

    def run(self, limit_ns: int) -> Stop:
        """See :class:`vmi.conformance.subject.Subject`.

        A limit up to 50 µs is counted in instructions of 100 ns each, so that interrupts can arrive at any
        of them. With a longer one the guest has at least three seconds of this computer's time.
        """
        lines = self._running()
        lines.settle()
        lines.written()
        changed = [name for name in REGISTERS if name in self._changed]
        self._changed.clear()
        lines.say(*(f"P{_NUMBERS[name]:x}={_little(self._registers[name])}" for name in changed))
        for _ in changed:
            lines.must(lines.answer())
        if limit_ns <= _COUNTED_NS:
            end = self._step(max(1, limit_ns // INSTRUCTION_NS))
        else:
            end = self._go(_SECONDS + limit_ns / 1e8)
        began_anew = self._look()["eip"] >= qemu_firmware.BASE
        if end is End.UNKNOWN:
            return Stop(end, f"QEMU gives up: {complaint(lines.listen())}")
        if began_anew:
            fatal = "Triple fault" in lines.listen()
            return Stop(End.CRASHED, "triple fault") if fatal else Stop(End.RESET)
        return Stop(end)

    def exits(self) -> int:
        """See :class:`vmi.conformance.subject.Subject`: nothing stands behind the ROM."""
        return 0

    def interrupt(self, line: int) -> None:
        """See :class:`vmi.conformance.subject.Subject`."""
        lines, pic = self._running(), self._pic[line >> 3]
        for level in (0, 1):  # it stays up: a request that is withdrawn is forgotten
            lines.board(f"set_irq_in {pic} unnamed-gpio-in {line & 7} {level}")
        self._raised = True

    def mark(self) -> Callable[[], None] | None:
        """See :class:`vmi.conformance.subject.Subject`. Beginning anew is quicker than a snapshot."""
        return None

    def facts(self) -> dict[str, str]:
        """See :class:`vmi.conformance.subject.Subject`."""
        options = self._command
        return {
            "vmi": __version__,
            "ROM": self.name,
            "ROM SHA-256": hashlib.sha256(self._rom).hexdigest(),
            "processor": options[len(options) - 1 - options[::-1].index("-cpu") + 1],
            "hypervisor": "none",
            "engine": _version(options[0]),
            "QEMU": shlex.join(options),
        }

    # -- running ----------------------------------------------------------------------------

    def _started(self) -> Lines:
        if self._lines is None or self._lines.closed:
            with tempfile.NamedTemporaryFile(prefix="vmi-", suffix=".bin") as file:
                file.write(qemu_firmware.image())
                file.flush()
                self._lines = lines = Lines([*self._command, "-bios", file.name], _PORT)
            lines.ask("Qqemu.sstep=1")  # a step takes interrupts and lets timers go on
            self._breaks = {qemu_firmware.end()}
            lines.ask(f"Z1,{qemu_firmware.end():x},1")
            self._pic = _interrupt_controllers(lines)
        return self._lines

    def _running(self) -> Lines:
        if self._lines is None or self._lines.closed:
            raise EngineError("QEMU is not running: it needs a reset first")
        return self._lines

    def _look(self) -> dict[str, int]:
        """Registers of the first processor, which has stopped."""
        lines = self._running()
        if self._environment.cpus > 1:
            lines.ask("Hg1")
            lines.ask("Hc1")
        words = bytes.fromhex(lines.ask("g")[: 8 * len(_NUMBERS)])
        self._registers = {
            name: int.from_bytes(words[4 * number : 4 * number + 4], "little")
            for name, number in _NUMBERS.items()
        }
        return self._registers

    def _go(self, seconds: float) -> End:
        """Until the guest writes to the port, or for so long."""
        lines, until = self._running(), time.monotonic() + seconds
        if self._raised or self._registers["eip"] in self._breaks:
            # or it stops where it is; and where it counts instructions QEMU takes an interrupt one block late
            end, self._raised = self._step(1), False
            if end is not End.TIMEOUT:
                return end
        while True:
            lines.say("c")
            stop = lines.answer(_LOOK, writes=True)
            if stop is None:
                stop = lines.answer(_SOON)  # there is a breakpoint behind most instructions that write
            if stop is None:
                lines.interrupt()
                stop = lines.must(lines.answer())
            if not stop.startswith((_BREAK, _TRAP)):
                return _other(stop)
            if lines.written():
                return self._behind(stop)
            if self._look()["eip"] >= qemu_firmware.BASE:
                return End.RESET
            if stop.startswith(_BREAK):
                if self._waits():
                    return End.HALTED
                if time.monotonic() > until:
                    return End.TIMEOUT
            elif self._step(1) is End.DONE:  # it has jumped to behind such an instruction
                return End.DONE

    def _behind(self, stop: str) -> End:
        """Behind an instruction that writes to the port: go on to the next one if the guest ran on."""
        if stop.startswith(_BREAK):
            self._step(_MOST_BEHIND)
        return End.DONE

    def _step(self, count: int) -> End:
        """So many instructions, or until one has written to the port."""
        lines = self._running()
        for _ in range(count):
            lines.say("s")
            stop = lines.answer(_STEP)
            while stop is None or stop.startswith(_BREAK):
                if stop is None:
                    lines.interrupt()
                    stop = lines.must(lines.answer())
                elif self._waits():
                    return End.HALTED
                else:
                    lines.say("s")
                    stop = lines.answer(_STEP)
            if not stop.startswith(_TRAP):
                return _other(stop)
            if lines.written():
                return End.DONE
        return End.TIMEOUT

    def _waits(self) -> bool:
        """The first processor is halted."""
        told = self._running().ask("qThreadExtraInfo,1")
        return b"halted" in bytes.fromhex(told)


_NUMBERS = {  # of registers, as gdb's protocol has them
    name: number
    for number, name in enumerate(
        ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi", "eip", "eflags")
    )
}  # fmt: skip


def _other(stop: str) -> End:
    """QEMU has stopped of its own accord."""
    return End.OFF if stop.startswith(_OFF) else End.UNKNOWN


def _little(value: int) -> str:
    return (value & 0xFFFFFFFF).to_bytes(4, "little").hex()


def _command(environment: Environment) -> list[str]:
    """Program and options. :raises EngineError: there is no such program."""
    try:
        program, *more = shlex.split(os.environ.get(COMMAND, "")) or [PROGRAM]
    except ValueError as error:
        raise UsageError(f"{COMMAND} must be a command, but it is none: {error}") from None
    if shutil.which(program) is None:
        raise EngineError(f"{program} is not installed, or not where programs are looked for")
    model = _MODELS.get(environment.paging, "qemu32")
    options = ["-M", "pc", "-cpu", model, "-smp", str(environment.cpus), "-m", f"{RAM // _MIB}M"]
    options += ["-nodefaults", "-display", "none", "-action", "shutdown=pause"]
    if not any(each in ("-accel", "-enable-kvm", "-icount") for each in more):
        # time is that of instructions, and passes at once while the processor waits
        options += ["-accel", "tcg", "-icount", "shift=6"]
    return [program, *options, *more]


@cache
def _version(program: str) -> str:
    done = subprocess.run([program, "--version"], check=False, capture_output=True, timeout=PATIENCE)
    return done.stdout.decode("utf-8", "replace").split("\n")[0].strip()


def _interrupt_controllers(lines: Lines) -> tuple[str, ...]:
    """QEMU's names of the two, that of lines 0 to 7 first."""
    tree = lines.monitor("info qom-tree")
    names = [f"/machine/unattached/{each}" for each in re.findall(r"/(device\[\d+\]) \(isa-i8259\)", tree)]
    if len(names) != 2:
        lines.close()
        kvm = "; with KVM that takes -accel kvm,kernel-irqchip=off" if "kvm-i8259" in tree else ""
        raise EngineError(f"QEMU must emulate two i8259, but it does {len(names)}{kvm}")
    return tuple(sorted(names, key=lambda name: "true" not in lines.monitor(f"qom-get {name} master")))
