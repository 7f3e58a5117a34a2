# SPDX-License-Identifier: GPL-2.0-only
"""The options that say what machine a guest gets; ``run`` and ``compare`` share them."""

from __future__ import annotations

from typing import Annotated

import typer

from vmi.errors import UsageError

KernelArgument = Annotated[
    str,
    typer.Argument(metavar="KERNEL", help="A kernel, or sample:NAME for one that comes with vmi."),
]
MemoryOption = Annotated[
    str, typer.Option("-m", "--memory", metavar="SIZE", help="RAM in MiB, or with K, M or G.")
]
RunMemoryOption = Annotated[
    str | None,
    typer.Option(
        "-m",
        "--memory",
        metavar="SIZE",
        help="RAM in MiB, or with K, M or G; 64M without it.",
        show_default=False,
    ),
]
AppendOption = Annotated[str, typer.Option("--append", metavar="TEXT", help="The kernel's command line.")]
InitrdOption = Annotated[
    list[str] | None,
    typer.Option(
        "--initrd", metavar="FILE[,ARGS]", help="Linux's initrd, or a boot module; may be repeated."
    ),
]
CpuOption = Annotated[
    str | None,
    typer.Option(
        "--cpu", metavar="MODEL", help="486, pentium, pentium3, i686, i686-apic, i686-pae, qemu32 or max."
    ),
]
SmpOption = Annotated[int, typer.Option("--smp", metavar="N", help="Processors, 1 to 8.")]
MmuOption = Annotated[
    str,
    typer.Option(
        "--mmu", metavar="HOW", help="How a hypervisor manages the guest's memory: direct or shadow."
    ),
]
ProtocolOption = Annotated[
    str | None,
    typer.Option("--protocol", metavar="NAME", help="linux, multiboot, pvh, elf or flat."),
]
TimeoutOption = Annotated[
    str, typer.Option("--timeout", metavar="TIME", help="Stop after this much guest time: 60s, 500ms, none.")
]
RunTimeoutOption = Annotated[
    str | None,
    typer.Option(
        "--timeout",
        metavar="TIME",
        help="Stop after this much guest time: 60s, 500ms, none. Without it 60s, or none at a terminal.",
        show_default=False,
    ),
]

UntilOption = Annotated[
    str | None,
    typer.Option("--until", metavar="TEXT", help="Stop as soon as the serial console has shown this."),
]


def check_hypervisor(full: bool, rom: str | None, mmu: str) -> None:
    """UsageError where the options of a run contradict each other in what runs the guest."""
    if full and rom is not None:
        raise UsageError("--full runs without a ROM, so it can't be combined with --rom")
    if mmu != MMU and not full and rom is None:
        raise UsageError("--mmu is about a hypervisor's work, so it needs --rom or --full")


MEMORY = "64M"
MMU = "direct"
TIMEOUT = "60s"
