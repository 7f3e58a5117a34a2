# SPDX-License-Identifier: GPL-2.0-only
"""What the registers of a PC are called: ports and memory-mapped ones, for logs that people read.

Names cover what kernels probe for, whether this machine has it or not: a log must tell a search for a
floppy controller from a stray write.
"""

from __future__ import annotations

# First port, device, then the names of its registers one after the other; a dash is no register.
# "a|b" is called a when read and b when written.
_PORTS = """
000 dma1 address0 count0 address1 count1 address2 count2 address3 count3
008 dma1 status|command request mask mode clear_pointer master_clear clear_mask all_masks
020 pic1 command mask
02e superio index data
040 pit counter0 counter1 counter2 control
060 i8042 data
061 port_b control
064 i8042 status|command
070 rtc index data
080 post code
081 dma_page channel2 channel3 channel1
087 dma_page channel0 - channel6 channel7 channel5
092 port92 control
0a0 pic2 command mask
0b2 apm command status
0c0 dma2 address4 - count4 - address5 - count5 - address6 - count6 - address7 - count7 -
0d0 dma2 status|command - request - mask - mode - clear_pointer - master_clear - clear_mask - all_masks
0e9 debugcon data
0f0 fpu clear_error
0f4 debug_exit value
170 ide1 data error|features sector_count lba_low lba_mid lba_high device status|command
1ce bochs_display index data
1f0 ide0 data error|features sector_count lba_low lba_mid lba_high device status|command
201 gameport axes
278 lpt2 data status control
2e8 com4 RBR/DLL|THR/DLL IER/DLM IIR|FCR LCR MCR LSR MSR SCR
2f8 com2 RBR/DLL|THR/DLL IER/DLM IIR|FCR LCR MCR LSR MSR SCR
376 ide1 alternate_status|control
378 lpt1 data status control
3b4 vga mono_crtc_index mono_crtc_data
3ba vga mono_status|mono_feature
3bc lpt3 data status control
3c0 vga attribute_index attribute_data status0|misc vga_enable sequencer_index sequencer_data
3c6 vga pel_mask dac_state|dac_read_index dac_write_index dac_data feature - misc
3ce vga graphics_index graphics_data
3d4 vga crtc_index crtc_data
3da vga status1|feature
3e8 com3 RBR/DLL|THR/DLL IER/DLM IIR|FCR LCR MCR LSR MSR SCR
3f2 floppy output tape main_status|data_rate data
3f6 ide0 alternate_status|control
3f7 floppy change|rate
3f8 com1 RBR/DLL|THR/DLL IER/DLM IIR|FCR LCR MCR LSR MSR SCR
402 firmware_debug data
4d0 elcr irq0-7 irq8-15
510 fw_cfg selector data
514 fw_cfg dma_high - - - dma_low
cd6 power_management index data
cf8 pci address
cf9 reset_control value
cfc pci data data+1 data+2 data+3
"""

# The same for registers in memory: base, distance of the registers, device, names.
_MEMORY = """
fec00000 10 io_apic select window
fed00000 8 hpet capabilities - configuration
fee00020 10 lapic ID version - - - - TPR APR PPR EOI - LDR DFR SVR
fee00100 10 lapic ISR0 ISR1 ISR2 ISR3 ISR4 ISR5 ISR6 ISR7 TMR0 TMR1 TMR2 TMR3 TMR4 TMR5 TMR6 TMR7
fee00200 10 lapic IRR0 IRR1 IRR2 IRR3 IRR4 IRR5 IRR6 IRR7 ESR
fee00300 10 lapic ICR_low ICR_high LVT_timer LVT_thermal LVT_perf LVT_LINT0 LVT_LINT1 LVT_error
fee00380 10 lapic initial_count current_count
fee003e0 10 lapic divide
"""

_SPANS = (
    (range(0xA0000, 0xC0000), "vga memory"),
    (range(0xC0000, 0xE0000), "option ROM"),
    (range(0xE0000, 0x100000), "firmware"),
    (range(0xFEC00000, 0xFEC01000), "io apic"),
    (range(0xFED00000, 0xFED00400), "hpet"),
    (range(0xFEE00000, 0xFEE01000), "lapic"),
    (range(0xFFF00000, 0x100000000), "firmware"),
)


def _rows(device: str, first: int, distance: int, names: list[str]) -> dict[int, tuple[str, str]]:
    found = {}
    for number, name in enumerate(names):
        if name != "-":
            read, _, written = name.partition("|")
            found[first + number * distance] = (f"{device} {read}", f"{device} {written or read}")
    return found


def _ports() -> dict[int, tuple[str, str]]:
    found: dict[int, tuple[str, str]] = {}
    for line in _PORTS.split("\n")[1:-1]:
        first, device, *names = line.split()
        found |= _rows(device, int(first, 16), 1, names)
    return found


def _memory() -> dict[int, tuple[str, str]]:
    found: dict[int, tuple[str, str]] = {}
    for line in _MEMORY.split("\n")[1:-1]:
        base, distance, device, *names = line.split()
        found |= _rows(device, int(base, 16), int(distance, 16), names)
    return found


_PORT_NAMES, _MEMORY_NAMES = _ports(), _memory()


def port_name(port: int, written: bool) -> str:
    """Device and register of a port, "" if PCs have nothing there."""
    names = _PORT_NAMES.get(port)
    return "" if names is None else names[written].replace("_", " ")


def memory_name(address: int, written: bool) -> str:
    """Device and register at a guest-physical address outside RAM, "" if PCs have nothing there."""
    names = _MEMORY_NAMES.get(address)
    if names is not None:
        return names[written].replace("_", " ")
    return next((name for span, name in _SPANS if address in span), "")
