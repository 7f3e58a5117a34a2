# SPDX-License-Identifier: GPL-2.0-only
"""rich's console as this command has it; loaded only where there is a table or a moving line to show."""

from __future__ import annotations

from rich.console import Console


class OurConsole(Console):
    """rich's console, except that a reader that left is ours to report."""

    def on_broken_pipe(self) -> None:
        raise  # noqa: PLE0704 - called from inside the handler
