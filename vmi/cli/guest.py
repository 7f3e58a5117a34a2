# SPDX-License-Identifier: GPL-2.0-only
"""The options that say what machine a guest gets; ``run`` and ``compare`` share them."""

from __future__ import annotations

from typing import Annotated

import typer

KernelArgument = Annotated[
    str,
    typer.Argument(metavar="KERNEL", help="A multiboot kernel, or sample:NAME for one that comes with vmi."),
]
MemoryOption = Annotated[
    str, typer.Option("-m", "--memory", metavar="SIZE", help="RAM in MiB, or with K, M or G.")
]
AppendOption = Annotated[str, typer.Option("--append", metavar="TEXT", help="The kernel's command line.")]
InitrdOption = Annotated[
    list[str] | None,
    typer.Option("--initrd", metavar="FILE[,ARGS]", help="A multiboot module; may be given several times."),
]
TimeoutOption = Annotated[
    str, typer.Option("--timeout", metavar="TIME", help="Stop after this much guest time: 60s, 500ms, none.")
]

UntilOption = Annotated[
    str | None,
    typer.Option("--until", metavar="TEXT", help="Stop as soon as the serial console has shown this."),
]

MEMORY = "64M"
TIMEOUT = "60s"
