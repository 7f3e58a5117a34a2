# SPDX-License-Identifier: GPL-2.0-only
"""Code that changes, in every way that memory can change."""

from __future__ import annotations

from random import Random

import pytest

from tests.native.bare import Recorder, new_cpu, put
from tests.native.guest import CODE
from vmi.native.registers import Segment
from vmi.native.wiring import Stop
from vmi.x86 import Cr0, Cr4, Seg

AT = 0x40000  # code that changes: mov eax, n; ret
VALUE = AT + 1
PAGES = 0x20000
HIGH = 0x40000000  # other addresses of the same memory
HIGHER = 0x80000000
NX = 1 << 63


def code(value):
    return b"\xb8" + value.to_bytes(4, "little") + b"\xc3"


def paged(cpu):
    """4 KiB pages: 2 MiB one to one, and again at HIGH; a large one at HIGHER."""
    for index in range(512):
        cpu.memory.put_u32(PAGES + 0x1000 + 4 * index, index << 12 | 7)
    cpu.memory.put_u32(PAGES, PAGES + 0x1000 | 7)
    cpu.memory.put_u32(PAGES + 4 * (HIGH >> 22), PAGES + 0x1000 | 7)
    cpu.memory.put_u32(PAGES + 4 * (HIGHER >> 22), 0x87)
    cpu.set_cr(3, PAGES)
    cpu.set_cr(4, Cr4.PSE)
    cpu.set_cr(0, Cr0.PE | Cr0.PG)


def paged_wide(cpu):
    """The same with PAE, where HIGH is not for code."""

    def put_u64(at, value):
        cpu.memory.write(at, value.to_bytes(8, "little"))

    for root, directory, table in ((0, 0x1000, 0x2000), (8, 0x3000, 0x4000)):
        put_u64(PAGES + root, PAGES + directory | 1)
        put_u64(PAGES + directory, PAGES + table | 7)
        for index in range(512):
            put_u64(PAGES + table + 8 * index, index << 12 | 7 | (NX if root else 0))
    cpu.efer = 0x800
    cpu.set_cr(3, PAGES)
    cpu.set_cr(4, Cr4.PAE)
    cpu.set_cr(0, Cr0.PE | Cr0.PG)


def call(cpu, at=AT):
    """Run the code that changes; gives what it loads."""
    put(cpu, f"mov edi,{at} | call edi | hlt", 0x10800)
    assert cpu.run(100) is Stop.HALTED
    return cpu.eax


def run(cpu, source, at=CODE):
    put(cpu, f"{source} | hlt", at)
    assert cpu.run(10000) is Stop.HALTED


# -- who writes -----------------------------------------------------------------------------------

STORES = {
    "mov byte": "mov byte ptr [{at}],{value}",
    "mov word": "mov word ptr [{at}],{value}",
    "mov dword": "mov dword ptr [{at}],{value}",
    "add": "add dword ptr [{at}],1",
    "xchg": "mov eax,{value} | xchg [{at}],eax",
    "stosb": "mov eax,{value} | mov edi,{at} | cld | stosb",
    "rep movsb": "mov dword ptr [0x5000],{value} | mov esi,0x5000 | mov edi,{at} | mov ecx,4 | rep movsb",
    "push": "mov esp,{top} | push {value} | mov esp,0x8000",
    "pop": "push {value} | pop dword ptr [{at}]",
    "cmpxchg": "mov eax,[{at}] | mov ecx,{value} | lock cmpxchg [{at}],ecx",
    "cmpxchg8b": "mov eax,[{at}] | mov edx,[{top}] | mov ebx,{value} | mov ecx,edx | cmpxchg8b [{at}]",
    "fistp": "mov dword ptr [0x5000],{value} | fild dword ptr [0x5000] | fistp dword ptr [{at}]",
    "inc": "inc byte ptr [{at}]",
    "bts": "mov dword ptr [{at}],0 | bts dword ptr [{at}],{bit}",
}


def _store(name, at, value):
    return STORES[name].format(at=at, top=at + 4, value=value, bit=value.bit_length() - 1)


@pytest.mark.parametrize("base", [0, HIGH, HIGHER])
@pytest.mark.parametrize("name", STORES)
def test_code_changed_by_a_store(cpu, name, base):
    """Through the address that it is executed at, through another one, and through a large page."""
    paged(cpu)
    cpu.write_memory(AT, code(1))
    for run_before in (True, False, True, True):
        value = 2
        cpu.write_memory(AT, code(1))
        if run_before:
            assert call(cpu) == 1
        run(cpu, _store(name, base + VALUE, value))
        assert call(cpu) == value, f"the code had {'' if run_before else 'not '}run before"


@pytest.mark.parametrize("name", STORES)
def test_code_changed_where_it_cannot_be_executed(cpu, name):
    """Each store is seen, not only the first into the page; other code of the page, too."""
    paged_wide(cpu)
    for at in (AT, AT + 0x100):
        cpu.write_memory(at, code(1))
        assert call(cpu, at) == 1
    for at in (AT, AT + 0x100, AT):
        cpu.write_memory(at, code(1))
        assert call(cpu, at) == 1
        run(cpu, _store(name, HIGH + at + 1, 2))
        assert call(cpu, at) == 2


@pytest.mark.parametrize("wide", [False, True])
def test_code_written_through_one_address_and_executed_through_another(cpu, wide):
    """First write, first run, then in turn, without an end."""
    (paged_wide if wide else paged)(cpu)
    run(cpu, f"mov byte ptr [{HIGH + AT}],0xb8 | mov byte ptr [{HIGH + AT + 5}],0xc3")
    for value in range(1, 40):
        run(cpu, f"mov dword ptr [{HIGH + VALUE}],{value}")
        assert call(cpu) == value
        if not wide:
            assert call(cpu, HIGH + AT) == value
            assert call(cpu, HIGHER + AT) == value
            run(cpu, f"mov dword ptr [{HIGHER + VALUE}],{value + 100}")
            assert call(cpu, HIGH + AT) == call(cpu) == value + 100


def test_stores_of_ring_3(cpu):
    """Another mode of access has translations of its own."""
    paged(cpu)
    cpu.write_memory(AT, code(1))
    for value in (2, 3):
        call(cpu)
        put(cpu, f"mov dword ptr [{HIGH + VALUE}],{value} | int 0x30", 0x11000)
        cpu.set_segment(Seg.CS, Segment(0x1B, 0, 0xFFFFFFFF, 0xCFFB00))
        for seg in (Seg.ES, Seg.SS, Seg.DS):
            cpu.set_segment(seg, Segment(0x23, 0, 0xFFFFFFFF, 0xCFF300))
        cpu.bus.act = cpu.stop_soon
        cpu.run(10)
        cpu.set_segment(Seg.CS, Segment(8, 0, 0xFFFFFFFF, 0xCF9B00))
        for seg in (Seg.ES, Seg.SS, Seg.DS):
            cpu.set_segment(seg, Segment(0x10, 0, 0xFFFFFFFF, 0xCF9300))
        assert call(cpu) == value


def test_store_across_the_end_of_the_page_in_front(cpu):
    """Two of its bytes are the code's."""
    cpu.write_memory(AT, b"\xb0\x01\xc3")  # mov al, 1; ret
    for value in (2, 3, 4):
        call(cpu)
        run(cpu, f"mov dword ptr [{AT - 2}],{0xB0 << 16 | value << 24}")
        assert call(cpu) & 0xFF == value


def test_code_across_two_pages(cpu):
    """A change of either part, from either side, by the guest or the host."""
    at = AT + 0xFFE
    cpu.write_memory(at, code(0x01010101))
    assert call(cpu, at) == 0x01010101
    for offset, value in ((1, 0x01010102), (2, 0x01010302), (4, 0x04010302), (1, 0x04010305)):
        run(cpu, f"mov byte ptr [{at + offset}],{value >> 8 * (offset - 1) & 255}")
        assert call(cpu, at) == value
    for offset in (0, 1, 3):
        cpu.write_memory(at + 1 + offset, b"\x77")
        assert call(cpu, at) >> 8 * offset & 255 == 0x77
    run(cpu, f"mov dword ptr [{at + 1}],5")
    assert call(cpu, at) == 5


@pytest.mark.parametrize("at", [0, 0x500, 0x9F000, 0x100000, 0x1FFFFA])
def test_where_the_code_lies(cpu, at):
    cpu.write_memory(at, code(1))
    for value in (2, 3):
        assert call(cpu, at) == value - 1
        run(cpu, f"mov dword ptr [{at + 1}],{value}")
    assert call(cpu, at) == 3


def test_writes_by_the_host(cpu, bus):
    """In the middle of a run too, as a device's access to memory comes."""
    cpu.write_memory(AT, code(1))
    assert call(cpu) == 1
    cpu.write_memory(VALUE, b"\x02")
    assert call(cpu) == 2
    cpu.store(VALUE, b"\x03")
    assert call(cpu) == 3
    cpu.put_u32(VALUE, 4)
    assert call(cpu) == 4
    values = iter(range(5, 100))
    bus.act = lambda: cpu.write_memory(VALUE, bytes([next(values)]))
    run(cpu, f"mov edi,{AT} | xor ebx,ebx | mov ecx,10 | l: out 0x80,al | call edi | add ebx,eax | loop l")
    assert cpu.ebx == sum(range(5, 15))


def test_host_write_over_many_pages_of_code(cpu):
    for page in range(8):
        cpu.write_memory(AT + 0x1000 * page, code(page))
        assert call(cpu, AT + 0x1000 * page) == page
    cpu.write_memory(AT, b"".join(code(page + 50).ljust(0x1000, b"\0") for page in range(8)))
    assert [call(cpu, AT + 0x1000 * page) for page in range(8)] == list(range(50, 58))


def test_rom_that_is_made_writable(cpu):
    """Its code changes as any other while it is, and not while it isn't."""
    cpu.write_memory(0xC8000, code(1))
    for writable, value in ((False, 1), (True, 3), (True, 4), (False, 4)):
        cpu.set_writable(0xC8000, writable)
        call(cpu, 0xC8000)
        run(cpu, f"mov byte ptr [0xc8001],{value if writable else 0x99}")
        assert call(cpu, 0xC8000) == value


# -- code that changes itself ---------------------------------------------------------------------


@pytest.mark.parametrize("distance", [0, 1, 5, 200])
def test_instruction_further_on_in_its_own_block(cpu, distance):
    fill = " | ".join(["nop"] * distance) or "nop"
    put(
        cpu,
        f"mov byte ptr [{{there}}+1],7 | {fill} | there: mov eax,1 | hlt".replace("{there}+1", "{there+1}"),
    )
    for _ in range(3):
        cpu.eip = CODE
        assert cpu.run(1000) is Stop.HALTED
        assert cpu.eax == 7
        cpu.write_memory(cpu.eip - 5, b"\x01")


def test_instruction_that_overwrites_itself(cpu):
    """It is done once, as it was; the next time it is another."""
    put(cpu, "l: mov byte ptr [{l}],0x90 | inc eax | hlt")
    cpu.eax = 0
    assert cpu.run(10) is Stop.HALTED
    assert cpu.memory.read(CODE, 1) == b"\x90"
    assert cpu.eax == 1


@pytest.mark.parametrize(
    "before", ["mov al,0x7f | add al,1", "cmp eax,eax", "stc", "xor ecx,ecx | sub ecx,1"]
)
def test_flags_survive_a_change_of_the_block(cpu, before):
    flags = []
    for there in ("{there}", "0x5000"):
        put(cpu, f"{before} | mov byte ptr [{there}],0x90 | pushfd | pop ebx | there: nop | hlt")
        assert cpu.run(100) is Stop.HALTED
        flags.append(cpu.ebx)
    assert flags[0] == flags[1]


def test_loop_that_rewrites_its_body(cpu):
    """Many times, so that the library begins to look at single bytes."""
    put(cpu, "xor ebx,ebx | mov ecx,300 | l: inc byte ptr [{body+1}] | body: mov al,0 | movzx eax,al"
             " | add ebx,eax | loop l | hlt")  # fmt: skip
    assert cpu.run(100000) is Stop.HALTED
    assert cpu.ebx == sum(n & 255 for n in range(1, 301))


def test_data_beside_code(cpu):
    """Stores to data in a page of code do no harm, and the code is not translated for each."""
    put(cpu, "xor ebx,ebx | mov ecx,2000 | l: inc dword ptr [{data}] | add ebx,[{data}] | loop l | hlt"
             " | .align 64 | data: .long 0")  # fmt: skip
    assert cpu.run(100000) is Stop.HALTED
    assert cpu.ebx == sum(range(2001))


def test_stack_in_a_page_of_code(cpu):
    put(cpu, f"mov esp,{CODE + 0x800} | mov ecx,500 | l: push ecx | call f | pop eax | loop l | hlt | f: ret")
    assert cpu.run(100000) is Stop.HALTED
    assert (cpu.eax, cpu.esp) == (1, CODE + 0x800)


def test_copy_of_code_over_code(cpu):
    for value in range(20):
        cpu.write_memory(0x50000, code(value))
        copy = f"mov esi,0x50000 | mov edi,{AT} | mov ecx,6 | cld | rep movsb"
        run(cpu, f"{copy} | mov edi,{AT} | call edi | mov ebx,eax")
        assert cpu.ebx == value


def test_page_that_is_code_then_data_then_code(cpu):
    """What a loader does with memory that it uses again."""
    random = Random(4)
    paged(cpu)
    for _ in range(30):
        value, base = random.getrandbits(32), random.choice((0, HIGH, HIGHER))
        low, high = (int.from_bytes((code(value) + b"\0\0")[at : at + 4], "little") for at in (0, 4))
        run(cpu, f"mov dword ptr [{base + AT}],{low} | mov dword ptr [{base + AT + 4}],{high}")
        assert call(cpu) == value
        fill = f"mov ecx,1024 | mov edi,{base + AT} | mov eax,{value ^ 1} | cld | rep stosd"
        run(cpu, f"{fill} | mov ebx,[{HIGH + AT + 0x800}]")
        assert cpu.ebx == value ^ 1


@pytest.mark.parametrize("wide", [False, True])
def test_same_as_byte_by_byte_translation(wide):
    """Random stores and calls through random addresses, beside a model that keeps bytes only."""
    random = Random(11 + wide)
    cpu = new_cpu(Recorder())
    (paged_wide if wide else paged)(cpu)
    spots = [AT + 0x1000 * page + at for page in range(3) for at in (0x10, 0x300, 0xFFD)]
    values = dict.fromkeys(spots, 1)
    for spot in spots:
        cpu.write_memory(spot, code(1))
    for _ in range(150):
        spot, action = random.choice(spots), random.randrange(4)
        if action == 0:
            assert call(cpu, spot) == values[spot]
            continue
        byte, at = random.getrandbits(8), random.randrange(4)
        values[spot] = values[spot] & ~(255 << 8 * at) | byte << 8 * at
        if action == 1:
            cpu.write_memory(spot + 1 + at, bytes([byte]))
        else:
            base = random.choice((0, HIGH) if wide else (0, HIGH, HIGHER))
            run(cpu, f"mov byte ptr [{base + spot + 1 + at}],{byte}")
    assert [call(cpu, spot) for spot in spots] == list(values.values())


def test_another_page_at_the_same_address(cpu):
    """After a change of the tables and INVLPG the other page's code runs, and each can be changed."""
    paged(cpu)
    entry = PAGES + 0x1000 + 4 * (AT >> 12)
    cpu.write_memory(AT, code(1))
    cpu.write_memory(AT + 0x1000, code(2))
    for page, value in ((0, 1), (1, 2), (0, 1), (1, 2)):
        run(cpu, f"mov dword ptr [{entry}],{AT + 0x1000 * page | 7} | mov eax,{AT} | invlpg [eax]")
        assert call(cpu) == value
        run(cpu, f"mov dword ptr [{VALUE}],{value + 10}")
        assert call(cpu) == value + 10
        cpu.write_memory(VALUE + 0x1000 * page, bytes([value]))
        assert call(cpu) == value


# -- which pages are watched ----------------------------------------------------------------------


def test_only_pages_with_code_are_watched(cpu):
    cpu.code_pages.clear()
    cpu.write_memory(AT, code(1))
    call(cpu)
    assert cpu.code_pages == {AT >> 12, 0x10}
    run(cpu, f"mov byte ptr [{AT + 0x800}],1 | mov byte ptr [0x70000],1")
    assert AT >> 12 in cpu.code_pages, "no code was hit"
    run(cpu, f"mov byte ptr [{VALUE}],1")
    assert AT >> 12 not in cpu.code_pages, "the last code of the page is gone"
    assert call(cpu) == 1
    assert AT >> 12 in cpu.code_pages
