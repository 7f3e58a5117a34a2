# SPDX-License-Identifier: GPL-2.0-only
"""``vmi fuzz``: random sequences of VMI calls, with the bare machine as the judge."""

from __future__ import annotations

import hashlib
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmi.cli import values
from vmi.cli.common import INTERRUPTED, JsonOption, QuietOption, Ui, VerboseOption, guarded, keep_inputs
from vmi.errors import ExitCode, UsageError
from vmi.files import check_writable, read_input, write_atomically

if TYPE_CHECKING:
    from vmi.conformance.campaign import State
    from vmi.conformance.subject import Environment
    from vmi.conformance.suite import Target

_COUNT = 1000  # sequences, unless something else bounds the run
_FOR_EVER = 1 << 62
_KEPT_EACH = 5.0  # seconds between two times that the state is written


@guarded
def command(
    rom: Annotated[
        str, typer.Option("--rom", metavar="FLAVOUR|FILE", help="The option ROM to test.")
    ] = "vmware",
    paging: Annotated[
        str, typer.Option("--paging", metavar="HOW", help="off, 2-level (the default), pse or pae.")
    ] = "",
    mmu: Annotated[str, typer.Option("--mmu", metavar="HOW", help="direct (the default) or shadow.")] = "",
    first: Annotated[
        int | None, typer.Option("--from", metavar="SEED", min=0, help="The first seed, 0 by default.")
    ] = None,
    count: Annotated[
        int | None,
        typer.Option("-n", "--count", metavar="N", min=1, help=f"Sequences, {_COUNT} by default."),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option("--seconds", metavar="N", min=0, help="End after so long.")
    ] = None,
    most: Annotated[
        int, typer.Option("--findings", metavar="N", min=1, help="End after so many that differ.")
    ] = 1,
    jobs: Annotated[int, typer.Option("-j", "--jobs", metavar="N", min=1, max=64, help="Processes.")] = 1,
    kept: Annotated[
        Path | None,
        typer.Option(
            "--state", metavar="FILE", help="Go on where the campaign in FILE is, and keep it there."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Where findings go, for vmi conform --replay."),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Run random sequences of VMI calls on a ROM and on the bare machine, up to the first difference.

    The exit status is 22 if there is one. The sequence is made as short and plain as it can be.
    """
    ui = Ui(as_json, quiet, verbose)
    for path in filter(None, (output, kept)):
        check_writable(path)
        keep_inputs([Path(rom)], path)
    if output is not None and kept is not None and output.resolve() == kept.resolve():
        raise UsageError("--state and --output need files of their own; a state can be replayed as well")
    from vmi.conformance import campaign
    from vmi.conformance.suite import Target

    image = values.rom(rom)
    target, subject = Target(rom, image), hashlib.sha256(image).hexdigest()
    if kept is not None and kept.exists():
        if first is not None:
            raise UsageError(f"the campaign in {str(kept)!r} has its seeds; leave --from out to go on")
        text = read_input(kept, "state").decode("utf-8", "replace")
        state = campaign.load(text, subject=subject, most=most)
        for what, wanted, there in (
            ("paging", paging, state.environment.paging.value),
            ("mmu", mmu, state.environment.mmu),
        ):
            if wanted not in ("", there):
                raise UsageError(f"the campaign in {str(kept)!r} has --{what} {there}, not {wanted}")
    else:
        begin = first or 0
        state = campaign.State(
            subject, _environment(paging or "2-level", mmu or "direct"), begin, begin, most
        )
    bounded = count if count is not None or seconds is not None else _COUNT
    upto = _FOR_EVER if bounded is None else state.next + bounded
    state, whole = _run(ui, target, state, upto, seconds, jobs, kept)
    _tell(ui, state)
    file = kept
    if output is not None:  # without findings as well, or those of another time would stay
        from vmi.conformance.findings import dump

        write_atomically(output, dump(state.findings).encode())
        file = output
    if state.findings:
        again = f"vmi conform --rom {shlex.quote(rom)} --replay {shlex.quote(str(file or 'FILE'))}"
        ui.note(f"-o FILE keeps it, for {again}" if file is None else f"run it again with {again}")
        raise typer.Exit(int(ExitCode.NOT_CONFORMING))
    if not whole:
        ui.note("interrupted")
        raise typer.Exit(INTERRUPTED)


def _environment(paging: str, mmu: str) -> Environment:
    from vmi.conformance.layout import Paging
    from vmi.conformance.subject import Environment
    from vmi.conformance.suite import MMUS

    if paging not in {each.value for each in Paging}:
        raise UsageError(
            f"there is no paging {paging!r}; there is {', '.join(each.value for each in Paging)}"
        )
    if mmu not in MMUS:
        raise UsageError(f"there is no MMU {mmu!r}; there is {', '.join(MMUS)}")
    return Environment(Paging(paging), mmu)


def _run(
    ui: Ui, target: Target, state: State, upto: int, seconds: float | None, jobs: int, kept: Path | None
) -> tuple[State, bool]:
    """Go on up to a bound; gives where the campaign is then, and whether that is where it should be."""
    from vmi.conformance import campaign

    begun, written, whole, now_at = time.monotonic(), 0.0, True, state
    with ui.phases("trying sequences") as tell:
        try:
            limit = _FOR_EVER if seconds is None else seconds
            for now_at in campaign.run(target, state, upto=upto, seconds=limit, jobs=jobs):
                now = time.monotonic()
                _progress(tell, now_at, now_at.next - state.next, now - begun)
                if kept is not None and now - written > _KEPT_EACH:
                    write_atomically(kept, now_at.dump().encode())
                    written = now
        except KeyboardInterrupt:
            whole = False
        finally:  # whatever has happened, what has been done need not be done again
            if kept is not None:
                write_atomically(kept, now_at.dump().encode())
    return now_at, whole


def _progress(tell: Callable[[str], None], state: State, done: int, seconds: float) -> None:
    rate = done / seconds if seconds else 0
    found = len(state.findings)
    findings = f"{found} finding{'' if found == 1 else 's'}"
    tell(f"up to seed {state.next - 1}, {rate:.0f} a second, {findings}")


def _tell(ui: Ui, state: State) -> None:
    if ui.json:
        ui.data({
            "paging": state.environment.paging.value,
            "mmu": state.environment.mmu,
            "first": state.first,
            "next": state.next,
            "findings": [finding.to_json() for finding in state.findings],
        })  # fmt: skip
    elif not state.findings:
        tried = f"seeds {state.first} to {state.next - 1}" if state.next > state.first else "no seed"
        ui.show(f"no difference in the sequences of {tried}")
    else:
        lines = [
            line
            for finding in state.findings
            for line in (f"{finding}:", *(f"  {step}" for step in finding.steps), finding.difference)
        ]
        ui.show("\n".join(lines))
