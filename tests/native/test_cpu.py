# SPDX-License-Identifier: GPL-2.0-only
"""The CPU on its own: where it stops, and the rest that is neither events nor memory."""

from __future__ import annotations

import signal
from random import Random

import pytest

from tests.native.bare import Recorder, new_cpu, put
from tests.native.guest import CODE
from vmi.errors import EngineError
from vmi.native.wiring import Stop

# -- budget and stops -----------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 2, 3, 7, 100, 101])
def test_budget_is_exact(cpu, budget):
    put(cpu, "l: inc eax\ninc eax\njmp l")
    assert cpu.run(budget) is Stop.BUDGET
    assert cpu.instructions == budget
    assert cpu.eax == budget // 3 * 2 + budget % 3


def test_slices_of_any_size_add_up(cpu):
    code = "l: mov ecx,5\nm: add eax,ecx\nrol eax,3\nadd [0x4000],eax\nloop m\npush eax\npop ebx\njmp l"
    put(cpu, code)
    cpu.run(6000)
    whole = [cpu.gpr(n) for n in range(8)], cpu.eip, cpu.eflags, cpu.memory.sha256()
    other = new_cpu(Recorder())
    put(other, code)
    random = Random(1)
    while other.instructions < 6000:
        other.run(min(random.randint(1, 40), 6000 - other.instructions))
    assert ([other.gpr(n) for n in range(8)], other.eip, other.eflags, other.memory.sha256()) == whole


def test_repeated_string_instruction_is_cut_between_two_rounds(cpu):
    put(cpu, "rep stosb")
    cpu.ecx, cpu.edi, cpu.eax = 100, 0x4000, 0x77
    cpu.run(10)
    assert cpu.eip == CODE
    done = 100 - cpu.ecx
    assert 8 <= done <= 10
    assert cpu.memory.read(0x4000, done + 1) == b"\x77" * done + b"\0"


def test_stop_from_inside_out_is_exact(cpu, bus):
    labels = put(cpu, "out 0x80,al\nafter: inc eax\nout 0x80,al\nagain: inc eax\nl: jmp l")
    bus.act = cpu.stop_soon
    assert cpu.run(1000) is Stop.BUDGET
    assert (cpu.eip, cpu.eax, cpu.instructions) == (labels["after"], 0, 1)
    assert cpu.run(1000) is Stop.BUDGET
    assert (cpu.eip, cpu.eax, cpu.instructions) == (labels["again"], 1, 3)
    assert [entry[0] for entry in bus.log] == ["out", "out"]


@pytest.mark.parametrize("count", [0, 1, 5, 50])
def test_stop_within_counts_from_the_instruction_behind(cpu, bus, count):
    labels = put(cpu, "out 0x80,al\nafter: inc eax\njmp after")
    bus.act = lambda: cpu.stop_within(count)
    cpu.run(1000)
    assert cpu.instructions == 1 + count
    assert cpu.eip == labels["after"] + count % 2


def test_stop_within_never_extends_a_run(cpu, bus):
    put(cpu, "l: out 0x80,al\njmp l")
    bus.act = lambda: cpu.stop_within(1000)
    cpu.run(10)
    assert cpu.instructions == 10


def test_time_inside_a_run_counts_the_instruction_in_progress(cpu, bus):
    put(cpu, "nop\nnop\nout 0x80,al\nnop\nhlt")
    seen = []
    bus.act = lambda: seen.append(cpu.now_instructions())
    cpu.run(100)
    assert seen == [3]
    assert cpu.now_instructions() == cpu.instructions == 5


def test_halt(cpu):
    labels = put(cpu, "hlt\nnext: nop")
    assert cpu.run(100) is Stop.HALTED
    assert cpu.eip == labels["next"]
    assert cpu.run(1) is Stop.BUDGET


def test_exception_of_the_owner_comes_out_of_run(cpu, bus):
    put(cpu, "l: out 0x80,al\njmp l")

    def fail():
        raise KeyError("in a callback")

    bus.act = fail
    with pytest.raises(KeyError, match="in a callback"):
        cpu.run(1000)
    bus.act = lambda: None
    assert cpu.run(10) is Stop.BUDGET


# -- interrupt window -----------------------------------------------------------------------------


def test_window_opens_behind_the_instruction_after_sti(cpu):
    labels = put(cpu, "nop\nsti\nnop\nopen: nop\nl: jmp l")
    assert cpu.run(1000, stop_when_interruptible=True) is Stop.WINDOW
    assert (cpu.eip, cpu.instructions) == (labels["open"], 3)


def test_window_is_open_at_once_if_interrupts_are_on(cpu):
    put(cpu, "l: jmp l")
    cpu.eflags = 0x202
    assert cpu.run(1000, stop_when_interruptible=True) is Stop.WINDOW
    assert cpu.instructions == 0


@pytest.mark.parametrize(
    ("opening", "instructions"),
    [("push 0x202\npopfd", 2), ("push 0x202\npush 8\npush {target}\niretd\ntarget:", 4)],
)
def test_window_opens_by_popf_and_iret_without_a_shadow(cpu, opening, instructions):
    cpu.memory.write(0x1008, bytes.fromhex("ffff0000009bcf00"))
    cpu.gdt = type(cpu.gdt)(0x1000, 0xFF)
    put(cpu, f"{opening}\nnop\nl: jmp l")
    assert cpu.run(1000, stop_when_interruptible=True) is Stop.WINDOW
    assert cpu.instructions == instructions


def test_no_window_while_interrupts_are_off_or_nobody_asks(cpu):
    put(cpu, "l: nop\ncli\njmp l")
    assert cpu.run(100, stop_when_interruptible=True) is Stop.BUDGET
    put(cpu, "sti\nl: nop\njmp l")
    assert cpu.run(100) is Stop.BUDGET


def test_sti_cli_leaves_no_window(cpu):
    put(cpu, "l: sti\ncli\njmp l")
    assert cpu.run(100, stop_when_interruptible=True) is Stop.BUDGET


def test_shadow_behind_sti_and_loads_of_ss(cpu):
    cpu.memory.write(0x1010, bytes.fromhex("ffff00000093cf00"))
    cpu.gdt = type(cpu.gdt)(0x1000, 0xFF)
    cpu.eflags = 0x202
    for source in ("mov ax,0x10\nmov ss,ax\nnop\nnop", "push 0x10\npop ss\nnop\nnop"):
        put(cpu, source)
        cpu.run(2)
        assert cpu.irq_shadow
        cpu.run(1)
        assert not cpu.irq_shadow
    put(cpu, "mov ax,0x10\nmov ss,ax\nnop\nopen: nop")
    cpu.run(2)
    assert cpu.run(100, stop_when_interruptible=True) is Stop.WINDOW
    assert cpu.eip == CODE + 4 + 3 + (1 if cpu.memory.read(CODE + 4, 1) == b"\x66" else 0)


def test_window_opens_behind_halt(cpu):
    put(cpu, "sti\nhlt\nnop")
    assert cpu.run(100, stop_when_interruptible=True) is Stop.HALTED
    assert not cpu.irq_shadow


# -- the rest -------------------------------------------------------------------------------------


def test_ports(cpu, bus):
    put(cpu, "in al,0x71\nmov dx,0x1234\nin eax,dx\nout dx,ax\nmov ecx,2\nmov esi,0x4000\nrep outsb\nhlt")
    assert cpu.run(100) is Stop.HALTED
    assert bus.log == [
        ("in", 0x71, 1), ("in", 0x1234, 4), ("out", 0x1234, 2, 0xA5A5),
        ("out", 0x1234, 1, 0), ("out", 0x1234, 1, 0),
    ]  # fmt: skip


def test_cpuid_and_rdtsc_are_the_owner_s(cpu):
    put(cpu, "rdtsc\nmov esi,eax\ncpuid\nhlt")
    cpu.run(100)
    assert cpu.esi == 5
    assert (cpu.eax, cpu.ebx, cpu.ecx, cpu.edx) == (1, 2, 3, 4)


def test_refused_library_call_is_an_engine_error(cpu):
    with pytest.raises(EngineError, match=r"^the CPU emulator refused to add a hook: error 15$"):
        cpu._engine.check(15, "add a hook")


def test_error_of_the_library_is_the_end_of_the_run(cpu, monkeypatch):
    put(cpu, "nop")
    monkeypatch.setattr(cpu._engine, "start", lambda _eip, _budget: 21)
    assert cpu.run(10) is Stop.FAILED
    assert cpu.failure == 21


def test_two_cpus_have_nothing_in_common(cpu, bus):
    other_bus = Recorder()
    other = new_cpu(other_bus)
    put(cpu, "l: inc eax\nint 0x30\njmp l")
    put(other, "l: dec eax\nint 0x31\njmp l")
    bus.act = lambda: other.run(7)  # one inside the other
    cpu.run(30)
    assert (cpu.eax, cpu.instructions) == (10, 30)
    assert other.instructions == 70
    assert {entry[0] for entry in bus.log} == {0x30}
    assert {entry[0] for entry in other_bus.log} == {0x31}


# -- Ctrl-C ---------------------------------------------------------------------------------------


def test_ctrl_c_ends_a_run_behind_the_instruction(cpu, bus):
    put(cpu, "nop | out 0x80, al | inc eax | l: jmp l")
    bus.act = lambda: signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        cpu.run(100)
    assert (cpu.eip, cpu.instructions) == (CODE + 3, 2)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert cpu.run(1) is Stop.BUDGET
    assert cpu.eip == CODE + 4


def test_ctrl_c_is_not_lost_where_c_would_ignore_it(cpu):
    """Here, where a block of code is shown, in the middle of its translation."""
    watch = type("Watch", (), {})()
    signals = [signal.SIGINT]
    watch.code_appeared = lambda linear, size: signals and signal.raise_signal(signals.pop())
    cpu.watch_code(watch)
    put(cpu, "nop | nop | l: jmp l")
    with pytest.raises(KeyboardInterrupt):
        cpu.run(100)
    assert cpu.run(10) is Stop.BUDGET


def test_a_handler_of_somebody_else_s_is_left_alone(cpu, bus):
    seen = []
    before = signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    try:
        put(cpu, "out 0x80, al | l: jmp l")
        bus.act = lambda: signal.raise_signal(signal.SIGINT)
        assert cpu.run(100) is Stop.BUDGET
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.SIGINT]
