# SPDX-License-Identifier: GPL-2.0-only
"""``vmi demo``: the whole idea in one command, on a sample kernel that comes with the toolkit."""

from __future__ import annotations

from vmi.cli import values
from vmi.cli.common import JsonOption, QuietOption, Ui, VerboseOption, facts, guarded
from vmi.cli.compare import DEFAULT_ROM, finish, show
from vmi.cli.guest import MEMORY, TIMEOUT
from vmi.cli.tables import summary

SAMPLE = "sample:sched"

MODES = ["native", "paravirt", "full"]
EXPLANATION = """
What you see: one kernel, run three times on the same emulated PC. Its console is equal each time.
  native    the patched file with no ROM plugged in: its own privileged instructions run at ring 0.
  paravirt  the same file with a VMI ROM plugged in: while booting, it finds the ROM, asks it for
            relocations and turns each prepared instruction into a call. It now runs at ring 1.
  full      the file before patching, at ring 1 too: every privileged instruction traps and is
            emulated. It is what a hypervisor must do without the guest's help.
  exits     how often the machine or hypervisor below had to act. Paravirtualization answers in the
            guest what full virtualization traps: cli, sti, pushf, popf, iret.
  ratios    the figures at the right are multiples of native's; time here is this computer's.
Next: `vmi patch KERNEL -o OUT` for a kernel of your own, then `vmi compare OUT`.
""".strip()


@guarded
def command(as_json: JsonOption = False, quiet: QuietOption = False, verbose: VerboseOption = False) -> None:
    """Patch a sample kernel, run it native, paravirt and full, and explain what is to be seen."""
    ui = Ui(as_json, quiet, verbose)
    image = values.kernel(SAMPLE)
    firmware = values.rom(DEFAULT_ROM)

    from vmi.patcher import patch
    from vmi.run import compare

    with ui.progress(f"patching {image.name}"):
        done = patch(image.data)
    ui.note(f"patched {image.name}: {summary(done.report)}")
    with ui.progress(f"running {image.name}: {', '.join(MODES)}"):
        comparison = compare(
            done.data,
            MODES,
            rom=firmware,
            memory=values.memory_size(MEMORY),
            append="",
            modules=[],
            timeout_ns=values.duration(TIMEOUT),
            original=image.data,
        )
    if ui.json:
        ui.data({"patch": facts(done.report), "comparison": facts(comparison)})
    else:
        show(ui, comparison)
        ui.show("", EXPLANATION)
    finish(comparison)
