# SPDX-License-Identifier: GPL-2.0-only
"""The VMI calls that reach the hypervisor, one file per group of the ABI table.

Each handler is registered under its call's name; dispatch, numbers and statistics come from the
table. A handler reads its arguments from the registers the table names and leaves its results there.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from vmi import abi
from vmi.hypervisor.processors import Processors
from vmi.hypervisor.timer import VirtualTimer
from vmi.hypervisor.transfer import Transfers
from vmi.hypervisor.vcpu import VirtualCpu
from vmi.native.cpu import Cpu
from vmi.x86 import U32, Seg

# The ROM's gate has pushed nothing: the return address is on top of the stack.
RETURN_ADDRESS = 4


@dataclass(frozen=True)
class CallContext:
    """What a handler works on."""

    vcpu: VirtualCpu
    transfers: Transfers
    processors: Processors

    @property
    def timer(self) -> VirtualTimer:
        """The timer of the virtual CPU that calls."""
        return self.processors.current.timer

    @property
    def cpu(self) -> Cpu:
        """The CPU with the guest's registers."""
        return self.vcpu.cpu

    def address(self, pointer: int) -> int:
        """Linear address of a pointer argument, which counts from the base of DS."""
        return self.cpu.segment(Seg.DS).base + pointer & U32

    def stack_argument(self, number: int) -> int:
        """A dword argument on the stack, 0 being the first. :raises GuestFault: #PF."""
        return self.vcpu.linear.u32(self.transfers.stack_address(RETURN_ADDRESS + 4 * number))

    def stack_argument_long(self, number: int) -> int:
        """A 64-bit argument on the stack, low dword first, at dword ``number``. :raises GuestFault: #PF."""
        return self.stack_argument(number) | self.stack_argument(number + 1) << 32

    def answer(self, value: int) -> None:
        """A 64-bit result in EDX:EAX, modulo 2**64."""
        self.cpu.eax, self.cpu.edx = value & U32, value >> 32 & U32


Handler = Callable[[CallContext], None]
HANDLERS: dict[int, Handler] = {}


def serves(name: str) -> Callable[[Handler], Handler]:
    """Register the handler of a call."""

    def register(handler: Handler) -> Handler:
        number = abi.BY_NAME[name].number
        if number in HANDLERS:
            raise ValueError(f"{name} has two handlers")
        HANDLERS[number] = handler
        return handler

    return register


def load_all() -> Mapping[int, Handler]:
    """All handlers by call number."""
    for module in sorted(found.name for found in pkgutil.iter_modules(__path__)):
        importlib.import_module(f"{__name__}.{module}")
    return MappingProxyType(HANDLERS)
