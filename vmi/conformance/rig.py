# SPDX-License-Identifier: GPL-2.0-only
"""What a case works with: the guest on a subject, activated, and ready for the first call.

The rig does what a client does and in the same way: it looks for the ROM where clients look, calls VMI_Init
in place, asks GetRelocationInfo for each call it needs, and makes calls by CALL rel32 from a site. All of
that is guest code that runs on the subject; the rig itself only writes words and starts it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from struct import Struct

from vmi import abi
from vmi.abi import Reloc
from vmi.conformance import agent, layout
from vmi.conformance.layout import LOG, LOG_ENTRY, STACK, WORDS
from vmi.conformance.subject import End, Environment, Stop, Subject
from vmi.x86 import U32

LIMIT_NS = 20_000_000  # guest time that any one step may take
CALL_LENGTH = 5
_OUT_LENGTH = 2
_MOST_EVENTS = 8  # at the end of a run
_MOST_LOGGED = 60
_FRAME = Struct("<16I")


class Unfit(Exception):
    """A case does not apply here; the sentence says why."""


def branch(at: int, target: int, *, call: bool) -> bytes:
    """CALL or JMP rel32 as it stands at an address."""
    return (b"\xe8" if call else b"\xe9") + (target - at - CALL_LENGTH & U32).to_bytes(4, "little")


class Broken(Exception):
    """The guest did not come to the end that every guest must come to."""

    def __init__(self, stop: Stop, doing: str) -> None:
        super().__init__(f"while {doing}: {stop.end.value}" + (f", {stop.reason}" if stop.reason else ""))
        self.stop = stop


@dataclass(frozen=True)
class Frame:
    """An event as a handler of the guest saw it, with the registers at that moment.

    ``esp`` and ``ss`` mean something in frames from user code only.
    """

    edi: int
    esi: int
    ebp: int
    handler_esp: int
    ebx: int
    edx: int
    ecx: int
    eax: int
    vector: int
    error: int
    eip: int
    cs: int
    eflags: int
    esp: int
    ss: int
    ds: int


@dataclass(frozen=True)
class Called:
    """What a call left.

    :ivar returned: it came back to the instruction behind its site.
    :ivar registers: general registers, EFLAGS too.
    :ivar popped: bytes of the stack that it took besides the return address.
    :ivar exits: how often the guest left for its hypervisor.
    :ivar frames: what handlers saw meanwhile.
    """

    returned: bool
    registers: dict[str, int]
    popped: int
    exits: int
    frames: tuple[Frame, ...]
    stop: Stop

    @property
    def vectors(self) -> list[int]:
        """Vectors of the events."""
        return [frame.vector for frame in self.frames]

    @property
    def faults(self) -> list[tuple[int, int]]:
        """Vectors and error codes of the events."""
        return [(frame.vector, frame.error) for frame in self.frames]

    @property
    def wide(self) -> int:
        """EDX:EAX."""
        return self.registers["edx"] << 32 | self.registers["eax"]

    @property
    def first(self) -> Frame:
        """The first event. :raises Broken: there was none."""
        return self._frame(0)

    @property
    def last(self) -> Frame:
        """The last event. :raises Broken: there was none."""
        return self._frame(-1)

    def _frame(self, index: int) -> Frame:
        if not self.frames:
            raise Broken(self.stop, "waiting for an event, which did not come")
        return self.frames[index]


class Rig:
    """A guest on a subject. :meth:`begin` makes it anew; everything else is for after that."""

    def __init__(self, subject: Subject, environment: Environment) -> None:
        self.subject = subject
        self.environment = environment
        self.labels = agent.load().labels
        self.rom = 0
        self.limit_ns = LIMIT_NS
        self.own_exits = 0  # that one run with nothing in it takes, for the port it ends with
        self.back: Callable[[], None] | None = None  # see Subject.mark
        self._entries: dict[str, tuple[Reloc, int]] = {}
        self._left = STACK, 0, 0  # ESP, number of events and of exits when the guest set off

    def __repr__(self) -> str:
        return f"<Rig {self.subject.name} {self.environment}>"

    # -- beginning --------------------------------------------------------------------------

    def begin(self) -> None:
        """Power on, start the guest, find the ROM and let the hypervisor take over."""
        self.power_on()
        answer = self.initialise()
        if answer.registers["eax"]:
            raise Broken(answer.stop, f"VMI_Init, which answered {answer.registers['eax']:#x}")
        kind, target = self.entry("IRET")
        if kind is not Reloc.NONE:
            self.jump_to(self.labels["iret_slot"], target, call=kind is Reloc.CALL_REL)
        before = self.subject.exits()
        self.go("done")
        self.own_exits = self.subject.exits() - before

    def again(self) -> None:
        """The guest as it was when it had just begun."""
        if self.back is not None:
            self.back()
        else:
            self.begin()

    def power_on(self) -> None:
        """The guest on the bare machine, paging as the environment says; the ROM is found, not called."""
        subject, paging = self.subject, self.environment.paging
        subject.reset()
        self._entries.clear()
        self.write(layout.AGENT, agent.load().code)
        for address, data in (*layout.tables(self.labels), *layout.page_tables(paging)):
            self.write(address, data)
        for name, value in layout.control(paging).items():
            self.put(WORDS[name], value)
        self.put(WORDS["USER_FLAGS"], 0x202)
        self.go("boot", "booting")
        self.rom = next(self._roms(), 0)

    def _roms(self) -> Iterator[int]:
        for address in range(abi.SCAN_START, abi.SCAN_END, abi.SCAN_STEP):
            header = self.read(address, abi.ROM_HEADER_SIZE)
            if (
                int.from_bytes(header[:2], "little") == abi.ROM_SIGNATURE
                and int.from_bytes(header[8:12], "little") == abi.VROM_SIGNATURE
                and header[0x0D] == abi.API_MAJOR
            ):
                yield address

    def initialise(self, **registers: int) -> Called:
        """Call VMI_Init, without a table of sites unless EBX is given."""
        if not self.rom:
            raise Broken(Stop(End.REFUSED), "looking for a ROM between C0000h and DFFFFh")
        return self.call_address(self.rom + abi.INIT_OFFSET, **{"ebx": 0, **registers})

    # -- memory -----------------------------------------------------------------------------

    def read(self, address: int, size: int) -> bytes:
        """Guest memory."""
        return self.subject.read(address, size)

    def write(self, address: int, data: bytes) -> None:
        """Store into guest memory."""
        self.subject.write(address, data)

    def word(self, address: int) -> int:
        """A dword of guest memory."""
        return int.from_bytes(self.read(address, 4), "little")

    def put(self, address: int, *values: int) -> None:
        """Store dwords, one after the other."""
        self.write(address, b"".join((value & U32).to_bytes(4, "little") for value in values))

    def jump_to(self, at: int, target: int, *, call: bool) -> None:
        """Put CALL or JMP rel32 somewhere."""
        self.write(at, branch(at, target, call=call))

    # -- calls ------------------------------------------------------------------------------

    def entry(self, name: str) -> tuple[Reloc, int]:
        """What GetRelocationInfo answers for a call: type and address."""
        if name not in self._entries:
            answer = self.relocation(abi.BY_NAME[name].number)
            kind = answer["edx"] & 0xFF
            if kind not in {int(each) for each in Reloc}:
                raise Broken(Stop(End.REFUSED), f"asking for {name}: the unknown relocation type {kind}")
            address = answer["eax"]
            if kind in (Reloc.CALL_REL, Reloc.JUMP_REL) and not self.may_hold_code(address):
                raise Broken(
                    Stop(End.REFUSED),
                    f"asking for {name}: its entry {address:#x} is in the guest's own memory",
                )
            self._entries[name] = Reloc(kind), address
        return self._entries[name]

    def image(self) -> bytes:
        """The ROM as the guest sees it, as long as it says that it is; there must be one."""
        return self.read(self.rom, abi.ROM_UNIT * self.read(self.rom + 2, 1)[0])

    def may_hold_code(self, address: int) -> bool:
        """An entry lies in the ROM, or in what a hypervisor keeps for itself."""
        size = abi.ROM_UNIT * self.read(self.rom + 2, 1)[0]
        return self.rom <= address < self.rom + size or address >= layout.RAM

    def relocation(self, number: int) -> dict[str, int]:
        """Registers after GetRelocationInfo for a call number."""
        done = self.call_address(self.rom + abi.GET_RELOC_OFFSET, eax=number)
        if not done.returned:
            raise Broken(done.stop, f"asking for the relocation of call {number}")
        return done.registers

    def offers(self, name: str) -> bool:
        """The ROM has code for a call."""
        return self.entry(name)[0] in (Reloc.CALL_REL, Reloc.JUMP_REL)

    def need(self, *names: str) -> None:
        """Raise Unfit unless all these calls have code to call."""
        for name in names:
            if not self.offers(name):
                raise Unfit(f"the ROM answers {self.entry(name)[0].name} for {name}")

    def call(self, name: str, *stack: int, **registers: int) -> Called:
        """Make a call, with its stack arguments in order. :raises Unfit: the ROM has no code for it."""
        self.need(name)
        return self.call_address(self.entry(name)[1], *stack, **registers)

    def value(self, name: str, *stack: int, **registers: int) -> int:
        """EAX after a call that must return."""
        done = self.call(name, *stack, **registers)
        if not done.returned:
            raise Broken(done.stop, f"calling {name}")
        return done.registers["eax"]

    def call_address(self, target: int, *stack: int, **registers: int) -> Called:
        """CALL an address from the site."""
        self.set_off_to(target, *stack, **registers)
        return self.arrive()

    def set_off_to(self, target: int, *stack: int, **registers: int) -> None:
        """As :meth:`set_off`, to CALL an address from the site."""
        site = self.labels["site"]
        self.jump_to(site, target, call=True)
        esp = registers.pop("esp", STACK) - 4 * len(stack)
        self.put(esp, *stack)
        self.set_off(site, esp=esp, **registers)

    def start(self, at: int, **registers: int) -> Called:
        """Start the guest somewhere; it ends itself."""
        self.set_off(at, **registers)
        return self.arrive()

    def set_off(self, at: int, **registers: int) -> None:
        """Put the guest somewhere, ready to go: :meth:`advance` and :meth:`arrive` let it."""
        esp = registers.setdefault("esp", STACK)
        self._left = esp, self.word(WORDS["LOG_COUNT"]), self.subject.exits()
        self.subject.set_registers({**registers, "eip": at})

    def advance(self, limit_ns: int) -> bool:
        """Let the guest go on for so long; False if it has come to its end, or to any other."""
        return self.subject.run(limit_ns).end is End.TIMEOUT

    def arrive(self) -> Called:
        """Let the guest go on to its end."""
        subject, (esp, seen, exits) = self.subject, self._left
        stop, left, runs = subject.run(self.limit_ns), subject.registers(), 1
        behind = self.labels["done"] + _OUT_LENGTH
        while stop.end is End.DONE and left["eip"] != behind and runs < _MOST_EVENTS:
            # an event came with the last instruction: its handler goes first
            stop, left, runs = subject.run(self.limit_ns), subject.registers(), runs + 1
        return Called(
            returned=stop.end is End.DONE and left["eip"] == behind,  # the ROM can write to that port, too
            registers=left,
            popped=left["esp"] - esp & U32,
            exits=subject.exits() - exits - runs * self.own_exits,
            frames=tuple(self.log(seen)),
            stop=stop,
        )

    def go(self, label: str, doing: str = "", **registers: int) -> Called:
        """Start one of the guest's routines, which must come to its end."""
        done = self.start(self.labels[label], **registers)
        if not done.returned:
            raise Broken(done.stop, doing or f"running {label}")
        return done

    def user(self, code: bytes, **registers: int) -> Called:
        """Run code on level 3; INT 31h behind it ends it."""
        self.write(layout.USER, code + bytes((0xCD, layout.USER_END)))
        return self.go("enter_user", "running user code", **registers)

    def has(self, feature: int) -> bool:
        """CPUID shows a feature: a bit of EDX of leaf 1."""
        return bool(self.call("CPUID", eax=1, ecx=0).registers["edx"] >> feature & 1)

    @property
    def deprivileged(self) -> bool:
        """There is a hypervisor, so the kernel is not on the processor's level 0."""
        return self.subject.facts().get("hypervisor") != "none"

    # -- what handlers saw ------------------------------------------------------------------

    def log(self, first: int = 0) -> list[Frame]:
        """Events that went to the guest's handlers, from the one with that number on; of the first 60."""
        count = max(0, min(self.word(WORDS["LOG_COUNT"]), _MOST_LOGGED) - first)
        data = self.read(LOG + LOG_ENTRY * first, LOG_ENTRY * count)
        return [Frame(*fields) for fields in _FRAME.iter_unpack(data)]

    def resume_at(self, label: str) -> None:
        """Let the next event's handler return to a label instead."""
        self.put(WORDS["RESUME"], self.labels[label])


def fill(pattern: int) -> Mapping[str, int]:
    """Every general register but ESP with a value of its own; patterns 0 and 1 complement each other."""
    turn = U32 if pattern else 0
    return {name: (0x10203040 + 0x01010101 * n) ^ turn for n, name in enumerate(abi.REGISTERS)}
