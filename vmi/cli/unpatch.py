# SPDX-License-Identifier: GPL-2.0-only
"""``vmi unpatch``: give the original back that a patched kernel was made of."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import typer

from vmi.cli.common import JsonOption, QuietOption, Ui, VerboseOption, guarded, keep_inputs
from vmi.files import check_writable, read_input, write_atomically


@guarded
def command(
    kernel: Annotated[Path, typer.Argument(metavar="FILE", help="A kernel that vmi patched.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="Where the original goes.")],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Take a patch back: write the file that was patched, the same to the byte.

    The patched file is never changed.
    """
    ui = Ui(as_json, quiet, verbose)
    data = read_input(kernel, "kernel")
    keep_inputs([kernel], output)
    check_writable(output)

    from vmi.patcher import undo

    with ui.progress(f"restoring {output.name}"):
        original = undo.restore(data)
    write_atomically(output, original)
    if ui.json:
        digest = hashlib.sha256(original).hexdigest()
        ui.data({"output": str(output), "size": len(original), "sha256": digest})
    elif not ui.quiet:
        ui.show(f"{output}: {len(original)} bytes")
