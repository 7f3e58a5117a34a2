# SPDX-License-Identifier: GPL-2.0-only
"""What connects the APICs: an interrupt message is taken by the local APICs that its destination names.

A message of lowest priority goes to one of them alone: to the first that is addressed, as on QEMU, where
systems are tried out. INIT and start-up messages are for the processors behind the APICs, which get to
know of them through ``Lapic.on_init`` and ``Lapic.on_startup``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum

from vmi.native.devices.lapic import INIT, LEVEL, LOWEST_PRIORITY, Lapic, Message

_ASSERT = 1 << 14  # in the interrupt command register


class Shorthand(IntEnum):
    """Whom a message of a processor is for, in the interrupt command register."""

    NONE = 0  # the destination field says it
    SELF = 1
    ALL = 2
    OTHERS = 3


class ApicBus:
    """The bus between one I/O APIC and the local APICs, by processor number.

    ``on_sent`` is called when a processor has sent a message that may be for another one.
    """

    def __init__(self, lapics: Sequence[Lapic]) -> None:
        self.on_sent: Callable[[], None] | None = None
        self.lapics = tuple(lapics)
        for lapic in self.lapics:
            lapic.on_send = self._send

    def __repr__(self) -> str:
        return f"<ApicBus of {len(self.lapics)} processors>"

    def deliver(self, message: Message) -> None:
        """Bring a message to the local APICs that it addresses."""
        self._bring(message, (lapic for lapic in self.lapics if lapic.is_addressed(message)))

    def _send(self, sender: Lapic, message: Message, command: int) -> None:
        """A processor's message, with the interrupt command register's lower half as ``command``."""
        if message.mode == INIT and command & LEVEL and not command & _ASSERT:
            return  # the end of INIT: it once told APICs of their bus identities, and is nothing else now
        shorthand = command >> 18 & 3
        if shorthand == Shorthand.SELF:
            sender.take(message)
            return
        if shorthand == Shorthand.NONE:
            self.deliver(message)
        else:
            everyone = shorthand == Shorthand.ALL
            self._bring(message, (lapic for lapic in self.lapics if everyone or lapic is not sender))
        if self.on_sent is not None:
            self.on_sent()

    @staticmethod
    def _bring(message: Message, to: Iterable[Lapic]) -> None:
        for lapic in to:
            if lapic.enabled:
                lapic.take(message)
                if message.mode == LOWEST_PRIORITY:
                    return
