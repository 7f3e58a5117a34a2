# SPDX-License-Identifier: GPL-2.0-only
"""``vmi inspect``: what is in a kernel file, patched or not."""

from __future__ import annotations

from vmi.cli import values
from vmi.cli.common import JsonOption, QuietOption, Ui, VerboseOption, guarded
from vmi.cli.guest import KernelArgument


@guarded
def command(
    kernel: KernelArgument,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show a kernel's layout, and its site table if it is patched (every site with -v)."""
    ui = Ui(as_json, quiet, verbose)
    image = values.kernel(kernel)
    from vmi.patcher import inspect_file

    with ui.progress(f"reading {image.name}"):
        found = inspect_file(image.data)
    if ui.json:
        ui.facts(found)
    else:
        ui.show(found.to_text(sites=ui.verbose))
