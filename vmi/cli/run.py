# SPDX-License-Identifier: GPL-2.0-only
"""``vmi run``: boot one kernel, or firmware and a disk, on bare hardware or under a hypervisor."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmi.cli import values
from vmi.cli.common import JsonOption, QuietOption, Ui, VerboseOption, guarded
from vmi.cli.console import ConsoleSession
from vmi.cli.guest import (
    MEMORY,
    MMU,
    TIMEOUT,
    AppendOption,
    CpuOption,
    InitrdOption,
    MmuOption,
    ProtocolOption,
    RunMemoryOption,
    RunTimeoutOption,
    SmpOption,
    UntilOption,
    check_hypervisor,
)
from vmi.cli.profiled import Profiled
from vmi.cli.tables import counts_table, seconds
from vmi.cli.watch import Watch
from vmi.errors import BadInput, UsageError

if TYPE_CHECKING:
    from vmi.native.machine import Machine
    from vmi.run import RunResult


@guarded
def command(
    kernel: Annotated[
        str | None,
        typer.Argument(
            metavar="KERNEL",
            help="A kernel, or sample:NAME of one that comes with vmi.",
            show_default=False,
        ),
    ] = None,
    rom: Annotated[
        str | None,
        typer.Option("--rom", metavar="FLAVOUR|FILE", help="Plug this option ROM in (see `vmi rom list`)."),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="De-privilege the unpatched guest: trap and emulate, no ROM.")
    ] = False,
    mmu: MmuOption = MMU,
    memory: RunMemoryOption = None,
    cpu: CpuOption = None,
    smp: SmpOption = 1,
    share: Annotated[
        int,
        typer.Option(
            "--share", metavar="PERCENT", help="Of each processor; the rest is another domain's, and stolen."
        ),
    ] = 100,
    append: AppendOption = "",
    initrd: InitrdOption = None,
    protocol: ProtocolOption = None,
    load_address: Annotated[
        str | None, typer.Option("--load-address", metavar="HEX", help="Where a flat binary goes.")
    ] = None,
    disk: Annotated[
        list[str] | None,
        typer.Option(
            "--disk",
            metavar="FILE[,rw]",
            help="An IDE disk's raw image; may be repeated. Without rw changes are lost.",
        ),
    ] = None,
    bios: Annotated[
        str | None, typer.Option("--bios", metavar="FILE", help="Start this firmware instead of a kernel.")
    ] = None,
    video_bios: Annotated[
        str | None, typer.Option("--video-bios", metavar="FILE", help="The VGA's option ROM, for --bios.")
    ] = None,
    timeout: RunTimeoutOption = None,
    until: UntilOption = None,
    serial: Annotated[
        str, typer.Option("--serial", metavar="WHERE", help="Serial console: stdio, pty, file:PATH or none.")
    ] = "stdio",
    keys: Annotated[
        str | None,
        typer.Option(
            "--type",
            metavar="TEXT",
            help="Type this on the keyboard; \\n is Enter, <F2> a key, <2s> a pause.",
        ),
    ] = None,
    realtime: Annotated[
        bool, typer.Option("--realtime", help="Let guest time pass no faster than time here.")
    ] = False,
    log: Annotated[
        str | None,
        typer.Option("--log", metavar="WHAT", help="Log ports,irq,exceptions,mmio,cpu,refusals or all."),
    ] = None,
    log_file: Annotated[
        Path | None, typer.Option("--log-file", metavar="PATH", help="Where the log goes instead of stderr.")
    ] = None,
    screenshot: Annotated[
        Path | None,
        typer.Option("--screenshot", metavar="PATH", help="Save the last screen: .png a picture, else text."),
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FOLDER", help="Save the whole machine at the end.")
    ] = None,
    restore: Annotated[
        Path | None, typer.Option("--restore", metavar="FOLDER", help="Go on with a machine saved before.")
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option("--profile", metavar="FILE", help="Record which instructions write page tables."),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Boot a kernel, or firmware with --bios, and show its serial console.

    The exit status is the guest's own if it ends through the debug-exit port.
    On a terminal, keys go to the guest; Ctrl-A x ends the run, and Ctrl-A h
    lists what else Ctrl-A does. With --json the console is part of the value.
    """
    ui = Ui(as_json, quiet, verbose)
    for_kernel = {
        "--append": append, "--initrd": initrd, "--protocol": protocol, "--load-address": load_address,
        "--full": full, "--profile": profile,
    }  # fmt: skip
    for_machine = {
        "--rom": rom, "--memory": memory, "--cpu": cpu, "--video-bios": video_bios, "--smp": smp > 1,
        "--mmu": mmu != MMU, "--share": share != 100,
    }  # fmt: skip
    _check_start(kernel, bios, restore, for_kernel, for_machine)
    check_hypervisor(full, rom, mmu)
    if profile is not None and (full or rom is not None):
        raise UsageError("--profile needs a native run, so it can't be combined with --rom or --full")
    where, wanted = values.serial(serial), values.text(until)
    if ui.json and where.terminal:
        where = values.Serial(terminal=False)
    session = ConsoleSession(where, realtime=realtime, quiet=quiet)
    limit = values.duration(timeout if timeout is not None else "none" if session.interactive else TIMEOUT)
    profiled = None if profile is None or kernel is None else Profiled(profile, values.kernel(kernel))
    watch = Watch(
        session, log=log, log_file=log_file, screenshot=screenshot, save=save, keys=keys, profiled=profiled
    )
    name = kernel or bios or str(restore)
    # A spinner would fight with the guest or the log for the same terminal; their output is progress.
    busy = where.terminal or (log is not None and log_file is None)
    with Ui(quiet=quiet or busy).progress(f"running {name}"):
        from vmi.run import Guest, Setup, prepare

        if restore is not None:
            guest = Guest(_restored(restore, disk))
        else:
            image = None if kernel is None else values.kernel(kernel)
            option_rom = None if rom is None else values.rom(rom)
            if image is not None and option_rom is not None:
                _note_unpatched(ui, image)
            setup = Setup(
                image=None if image is None else image.data,
                rom=option_rom,
                memory=values.memory_size(MEMORY if memory is None else memory),
                append=append,
                modules=[values.module(one) for one in initrd or ()],
                protocol=protocol,
                address=None if load_address is None else values.address(load_address),
                full=full,
                mmu=mmu,
                model=values.cpu(cpu),
                disks=values.disks(disk or ()),
                bios=None if bios is None else values.firmware(bios),
                video_bios=None if video_bios is None else values.video_bios(video_bios),
                cpus=smp,
                share=share,
            )
            guest = prepare(setup)
        if save is not None and guest.domain is not None:
            raise UsageError("a machine with a hypervisor on it can't be saved, so --save needs one without")
        with watch:
            result = guest.run(timeout_ns=limit, until=wanted, observer=watch, hashed=ui.json)
    _tell(ui, result)


def _check_start(
    kernel: str | None,
    bios: str | None,
    restore: Path | None,
    for_kernel: Mapping[str, object],
    for_machine: Mapping[str, object],
) -> None:
    """UsageError unless it is clear what is to run, and each option means something for it."""
    if (kernel is not None) + (bios is not None) + (restore is not None) != 1:
        raise UsageError("exactly one of KERNEL, --bios and --restore must say what to run")
    if bios is not None:
        _refuse(for_kernel, "is for a KERNEL, so it can't be combined with --bios")
    if restore is not None:
        _refuse({**for_kernel, **for_machine}, "is for a new machine, so it can't be combined with --restore")
    if kernel is not None and for_machine["--video-bios"]:
        raise UsageError("--video-bios is started by firmware, so it needs --bios")


def _refuse(options: Mapping[str, object], why: str) -> None:
    for name, value in options.items():
        if value:
            raise UsageError(f"{name} {why}")


def _restored(folder: Path, disk: list[str] | None) -> Machine:
    """The machine of a snapshot, with the disks that it had, or with these in their places."""
    from vmi.native.machine import Machine

    return Machine.restore(folder, values.disks(disk) if disk else None)


def _tell(ui: Ui, result: RunResult) -> None:
    if ui.json:
        ui.facts(result)
    ui.note(
        f"{result.mode}: {result.reason} ({result.outcome.value}; {result.instructions:,} instructions, "
        f"{seconds(result.virtual_ns)} guest time, {result.wall_s:.1f} s here)"
    )
    if ui.verbose:
        ui.detail(counts_table("exits by reason", result.exits))
        ui.detail(counts_table("VMI calls that left the ROM", result.calls))
    if result.exit_status:
        raise typer.Exit(result.exit_status)


def _note_unpatched(ui: Ui, image: values.Kernel) -> None:
    """A ROM that nobody looks for changes nothing; say so before the user wonders."""
    with contextlib.suppress(BadInput):  # the boot loader knows better what it can't load
        if not image.patched:
            ui.note(f"{image.name} is not patched; it uses the ROM only if it is a VMI client by itself")
