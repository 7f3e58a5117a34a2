# SPDX-License-Identifier: GPL-2.0-only
"""``vmi header``: the file with which a kernel's source marks what a patcher should know."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from vmi.cli.common import guarded
from vmi.files import write_atomically


@guarded
def command(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="OUT", help="Where it goes instead of here.")
    ] = None,
) -> None:
    """Print vmi_guest.h, the header with which a kernel marks its sensitive instructions.

    It is one file for C and assembly, to be copied into the kernel's tree; it says itself how it is used.
    """
    text = (resources.files("vmi.patcher") / "include" / "vmi_guest.h").read_text(encoding="utf-8")
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_atomically(output, text.encode())
