# SPDX-License-Identifier: GPL-2.0-only
"""A log of what the guest does to the machine and the machine to the guest: one line per event.

A line gives the guest's time in microseconds, CS:EIP, what happened, and the names people use for it::

        1234.560 0008:c0100abc out   64 <- d1            i8042 command
        1240.020 0008:c0102000 exc   #PF error 2 at 0000beef: write to an absent page
        2000.000 0008:c0100000 irq   vector 30, irq 0

With several processors, ``cpu1`` and so on stands before CS:EIP. An event that repeats at the same place (a
driver that polls) is written once and counted.
"""

from __future__ import annotations

from collections.abc import Callable

from vmi.errors import UsageError
from vmi.native.interrupts import Event, Origin
from vmi.native.register_names import memory_name, port_name
from vmi.x86 import HAS_ERROR_CODE, PfError, Vector

#: What may be logged. ``cpu`` is model-specific registers, halts, resets and how runs end; ``refusals`` is
#: what a hypervisor does not do for the guest that asks for it.
CATEGORIES = ("ports", "irq", "exceptions", "mmio", "cpu", "refusals")
ALL = "all"

_VECTORS = {int(vector): f"#{vector.name}" for vector in Vector}


def _no_device(_at: int) -> str | None:
    return None


class EventLog:
    """Writes a line for each event of the chosen categories.

    The machine calls a method for what happens, and only when there is a log at all. None of them raises:
    an error of ``write`` ends the log, and :meth:`close` gives it.

    :param categories: what :meth:`parse` gave.
    :param write: takes each line with its end, as the ``write`` of a text file.
    :param now: the guest's time in ns.
    :param where: CS and EIP, exact or of a moment ago.
    :param processor: the number of the one that runs, where there are several.
    :param device: the name of the device that answers at a port; used where this table knows no name.
    """

    def __init__(
        self,
        categories: frozenset[str],
        write: Callable[[str], object],
        now: Callable[[], int],
        where: Callable[[], tuple[int, int]],
        device: Callable[[int], str | None] = _no_device,
        processor: Callable[[], int] | None = None,
    ) -> None:
        self.categories = categories
        self._ports, self._irq = "ports" in categories, "irq" in categories
        self._exceptions, self._mmio = "exceptions" in categories, "mmio" in categories
        self._cpu, self._refusals = "cpu" in categories, "refusals" in categories
        self._write = write
        self._now = now
        self._where = where
        self._device = device
        self._processor = processor
        self._last: tuple[tuple[int, int], str, str] | None = None
        self._repeats = 0
        self._repeated_at = 0
        self._error: OSError | None = None

    def __repr__(self) -> str:
        return f"<EventLog {','.join(one for one in CATEGORIES if one in self.categories)}>"

    @staticmethod
    def parse(text: str) -> frozenset[str]:
        """Categories from ``ports,irq`` or ``all``. UsageError, with all there are, for any other word."""
        words = [word.strip() for word in text.split(",")]
        for word in words:
            if word not in CATEGORIES and word != ALL:
                raise UsageError(
                    f"log category {word!r} is not understood: expected one or more of "
                    f"{', '.join(CATEGORIES)}, with commas between them, or {ALL}"
                )
        return frozenset(CATEGORIES if ALL in words else words)

    # -- events -----------------------------------------------------------------------------

    def port_read(self, port: int, size: int, value: int) -> None:
        """IN gave ``value`` (``size`` bytes)."""
        if self._ports:
            name = port_name(port, False) or self._device(port) or "nobody"
            self._event("in", f"{f'{port:x} -> {value:0{2 * size}x}':19} {name}")

    def port_write(self, port: int, size: int, value: int) -> None:
        """OUT of ``value`` (``size`` bytes)."""
        if self._ports:
            name = port_name(port, True) or self._device(port) or "nobody"
            self._event("out", f"{f'{port:x} <- {value:0{2 * size}x}':19} {name}")

    def memory_read(self, address: int, size: int, value: int) -> None:
        """A load of ``size`` bytes from where no RAM is gave ``value``."""
        if self._mmio:
            name = memory_name(address, False) or "nobody"
            self._event("read", f"{f'{address:08x} -> {value:0{2 * size}x}':19} {name}")

    def memory_write(self, address: int, size: int, value: int) -> None:
        """A store of ``size`` bytes to where no RAM is."""
        if self._mmio:
            name = memory_name(address, True) or "nobody"
            self._event("write", f"{f'{address:08x} <- {value:0{2 * size}x}':19} {name}")

    def exception(self, vector: int, error: int = 0, address: int = 0) -> None:
        """A fault or trap; ``address`` is CR2 of a page fault."""
        if self._exceptions:
            self._event("exc", _fault(vector, error, address))

    def refused(self, what: str, vector: int | None = None, error: int = 0, address: int = 0) -> None:
        """A call or an instruction of a guest, by name, that its hypervisor does not do.

        :param vector: the exception that tells the guest; None if something else does.
        """
        if self._refusals:
            self._event("no", what if vector is None else f"{what}: {_fault(vector, error, address)}")

    def event(self, event: Event) -> None:
        """An exception or an interrupt is delivered, of whatever kind."""
        if event.origin is Origin.SOFTWARE:
            self.software_interrupt(event.vector)
        elif event.origin is Origin.EXTERNAL:
            self.interrupt(event.vector)
        else:
            self.exception(event.vector, event.error, event.address)

    def software_interrupt(self, vector: int) -> None:
        """An INT instruction; EIP is behind it."""
        if self._exceptions:
            self._event("int", f"vector {vector:02x}")

    def interrupt(self, vector: int, irq: int | None = None) -> None:
        """An external interrupt is delivered; ``irq`` is its line, if that is known."""
        if self._irq:
            self._event("irq", f"vector {vector:02x}" + (f", irq {irq}" if irq is not None else ""))

    def msr_read(self, index: int, value: int | None) -> None:
        """RDMSR gave ``value``, or was refused: None."""
        if self._cpu:
            self._event("cpu", f"rdmsr {index:x} -> {'refused' if value is None else f'{value:016x}'}")

    def msr_write(self, index: int, value: int, taken: bool) -> None:
        """WRMSR of ``value``, which there is such a register for, or not."""
        if self._cpu:
            self._event("cpu", f"wrmsr {index:x} <- {value:016x}{'' if taken else ' refused'}")

    def cpu(self, what: str) -> None:
        """Something that happens to the processor as a whole: it halts, is reset, a run ends."""
        if self._cpu:
            self._event("cpu", what)

    def note(self, text: str) -> None:
        """A line of the machine's own, whatever the categories."""
        self._event("note", text)

    # -- lines ------------------------------------------------------------------------------

    def _event(self, kind: str, text: str) -> None:
        place = self._where()
        who = "" if self._processor is None else f"cpu{self._processor()} "
        event = (place, who, f"{kind:5} {text}")
        if event == self._last:
            self._repeats += 1
            self._repeated_at = self._now()
            return
        self.flush()
        self._last = event
        self._line(f"{_microseconds(self._now())} {who}{place[0]:04x}:{place[1]:08x} {event[2]}")

    def flush(self) -> None:
        """Write how often the last event has repeated, if it has."""
        if self._repeats:
            times = "once" if self._repeats == 1 else f"{self._repeats} times"
            width = 13 if self._processor is None else 18
            self._line(f"{_microseconds(self._repeated_at)} {'':{width}} ...   the same {times} more")
        self._repeats, self._last = 0, None

    def _line(self, line: str) -> None:
        if self._error is None:
            try:
                self._write(f"{line.rstrip()}\n")
            except OSError as error:
                self._error = error

    def close(self) -> OSError | None:
        """Write what is left. Gives the error that writing met, if it met one."""
        self.flush()
        return self._error


def _microseconds(ns: int) -> str:
    # in integers, so that no digit depends on how long the machine has been on
    return f"{ns // 1000:11}.{ns % 1000:03}"


def _fault(vector: int, error: int, address: int) -> str:
    text = _VECTORS.get(vector) or f"exception {vector}"
    if vector in HAS_ERROR_CODE:
        text += f" error {error:x}"
    if vector == Vector.PF:
        text += f" at {address:08x}: {_page_fault(error)}"
    return text


def _page_fault(error: int) -> str:
    what = "fetch from" if error & PfError.I else "write to" if error & PfError.W else "read from"
    kind = "a page with reserved bits" if error & PfError.RSVD else "a protected page"
    page = kind if error & PfError.P else "an absent page"
    return f"{what} {page}{' by user code' if error & PfError.U else ''}"
