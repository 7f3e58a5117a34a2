# SPDX-License-Identifier: GPL-2.0-only
"""Each feature that CPUID promises is there: code that uses it gives the right result.

And where the emulator knows the difference, code of a feature that a model lacks is an invalid opcode.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import pytest

from tests.native.bare import Recorder, new_cpu
from tests.native.guest import CODE, PAGES
from vmi.native import selftest
from vmi.native.cpuid import MODELS
from vmi.native.wiring import Stop
from vmi.x86 import Cr0, Cr4, Vector

IN, OUT, AREA, NOWHERE = 0x4000, 0x5000, 0x6000, 0x7000
HIGH = 0x40000000  # a linear address that only page tables lead anywhere


def cpu_of(name):
    """A CPU of a model that halts at any exception; SSE is on where there is SSE."""
    cpu = new_cpu(Recorder())
    cpu.decode(MODELS[name])
    cpu.write_memory(NOWHERE, b"\xf4")

    def halt():
        if not isinstance(cpu.bus.log[-1][0], str):
            cpu.eip = NOWHERE

    cpu.bus.act = halt
    if MODELS[name].has("fxsr"):
        cpu.set_cr(4, Cr4.OSFXSR)
    return cpu


def run(cpu, code, limit=1000):
    """Run machine code, given in hexadecimal, to its end; gives the vectors of exceptions on the way."""
    cpu.write_memory(CODE, bytes.fromhex(code) + b"\xf4")
    cpu.eip = CODE
    cpu.bus.log.clear()
    stop = cpu.run(limit)
    if stop is Stop.BUDGET:  # an instruction that was refused has ended it
        stop = cpu.run(limit)
    assert stop is Stop.HALTED
    return [entry[0] for entry in cpu.bus.log if not isinstance(entry[0], str)]


@dataclass(frozen=True)
class Proof:
    """Code in hexadecimal; ``data`` is at IN before, ``result`` at OUT or in registers behind it."""

    feature: str
    code: str
    data: bytes = b""
    result: bytes = b""
    before: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)

    def __str__(self):
        return self.feature


def mmx(feature, op, data, result):
    """mm0 := IN, operation with IN + 8, OUT := mm0. The operation's last bytes may be an immediate."""
    return Proof(feature, f"0f6f0500400000 {op} 0f7f0500500000 0f77", data, result)


def sse(feature, op, data, result):
    """xmm0 := IN, xmm1 := IN + 16, operation on both, OUT := xmm0."""
    return Proof(feature, f"0f100500400000 0f100d10400000 {op} 0f110500500000", data, result)


def regs(feature, op, before, **after):
    """An operation on general registers."""
    return Proof(feature, op, before=before, after=after)


def floats(*values):
    return struct.pack(f"<{len(values)}f", *values)


def doubles(*values):
    return struct.pack(f"<{len(values)}d", *values)


def dwords(*values):
    return struct.pack(f"<{len(values)}I", *(value & 0xFFFFFFFF for value in values))


BYTES = bytes(range(0x10, 0x20))
# AESENC and PCLMULQDQ: the examples of Intel's papers on them, each number written highest byte first
STATE = bytes.fromhex("7b5b54657374566563746f725d53475d")[::-1]
KEY = bytes.fromhex("48692853686179295b477565726f6e5d")[::-1]

PROOFS = [
    Proof("fpu", "d9e8 d8c0 d9eb dec9 db1d00500000", result=dwords(6)),  # (1 + 1) * pi, rounded
    Proof("fpu", "dd0500400000 d9fa dd1d00500000", doubles(2.25), doubles(1.5)),  # square root
    regs("cx8", "0fc70d00400000", {"eax": 1, "edx": 2, "ebx": 3, "ecx": 4}, eax=0, edx=0),
    Proof("cx8", "0fc70d00400000 a100400000 8b1504400000", dwords(1, 2),
          before={"eax": 1, "edx": 2, "ebx": 3, "ecx": 4}, after={"eax": 3, "edx": 4}),
    mmx("mmx", "0fdd0508400000", struct.pack("<8H", 0xFFF0, 1, 2, 3, 0x20, 1, 1, 1),
        struct.pack("<4H", 0xFFFF, 2, 3, 4)),  # paddusw
    mmx("mmx", "0ff50508400000", struct.pack("<8h", 1, 2, 3, -4, 5, 6, 7, 8), struct.pack("<2i", 17, -11)),
    regs("cmov", "39c8 0f44da 0f45f2", {"eax": 1, "ecx": 1, "ebx": 5, "edx": 7, "esi": 9}, ebx=7, esi=9),
    Proof("cmov", "d9ee d9e8 dbf1 dad9 db1d00500000", result=dwords(1)),  # fcomi, fcmovnbe ...
    Proof("fxsr", "dbe3 d9e8 0f100500400000 0fae0500600000 d9ee 0f57c0 dbe3 0fae0d00600000 db1d10500000"
          "0f110500500000", BYTES, BYTES + dwords(1)),
    sse("sse", "0f58c1", floats(1, 2, 3, 4, 0.5, 0.25, -3, 1e10), floats(1.5, 2.25, 0, 4 + 1e10)),
    sse("sse", "0fc6c11b", dwords(0, 1, 2, 3, 4, 5, 6, 7), dwords(3, 2, 5, 4)),  # shufps
    Proof("sse", "0fae1500400000 0fae1d00500000", dwords(0x1FBF), dwords(0x1FBF)),  # mxcsr
    sse("sse2", "660f58c1", doubles(1, 2, 0.5, -2), doubles(1.5, 0)),
    sse("sse2", "660fd4c1", struct.pack("<4Q", 1 << 63, 5, 1 << 63, 7), struct.pack("<2Q", 0, 12)),
    Proof("sse2", "660f6f0500400000 660f70c01b 660fe70500500000 0faef0", dwords(0, 1, 2, 3),
          dwords(3, 2, 1, 0)),  # movdqa, pshufd, movntdq, mfence
    regs("sse2", "0fc30d00500000 8b1d00500000 0faee8 f390", {"ecx": 0x77}, ebx=0x77),  # movnti, lfence, pause
    sse("sse3", "f20f7cc1", floats(1, 2, 3, 4, 5, 6, 7, 8), floats(3, 7, 11, 15)),
    Proof("sse3", "dd0500400000 db0d00500000", doubles(2.75), dwords(2)),  # fisttp: cut, whatever the mode
    sse("sse3", "f20ff00d00400000 0f28c1", BYTES, BYTES),
    sse("ssse3", "660f3800c1", BYTES + bytes(range(15, -1, -1)), BYTES[::-1]),
    sse("ssse3", "660f381ec1", bytes(16) + dwords(-5, 5, 0, -1), dwords(5, 5, 0, 1)),
    sse("sse4.1", "660f3840c1", dwords(2, 3, 1 << 31, -1, 5, 7, 2, -1), dwords(10, 21, 0, 1)),
    Proof("sse4.1", "0f100500400000 660f3a16c302 660f3817c0 0f94c1", dwords(1, 2, 0x1234, 4),
          before={"ecx": 0xFF}, after={"ebx": 0x1234, "ecx": 0}),  # pextrd, ptest
    sse("sse4.2", "660f3837c1", struct.pack("<4q", 1, -1, 0, 0), struct.pack("<2q", -1, 0)),
    Proof("sse4.2", "f20f38f10500400000 f20f38f10504400000 f20f38f00508400000 f7d0", b"123456789",
          before={"eax": 0xFFFFFFFF}, after={"eax": 0xE3069283}),  # the check value of CRC-32C
    Proof("sse4.2", "0f100500400000 0f100d10400000 660f3a63c118", b"abcde".ljust(16, b"\0") + b"abXde",
          after={"ecx": 2}),  # pcmpistri: the first that differs
    regs("popcnt", "f30fb8c1", {"ecx": 0xF00F0001}, eax=9),
    Proof("movbe", "0f38f00500400000 0f38f10d00500000", dwords(0x11223344), dwords(0x44332211),
          before={"ecx": 0x11223344}, after={"eax": 0x44332211}),
    sse("aes", "660f38dcc1", STATE + KEY, bytes.fromhex("a8311c2f9fdba3c58b104b58ded7e595")[::-1]),
    sse("pclmulqdq", "660f3a44c100", STATE + KEY, bytes.fromhex("1d4d84c85c3440c0929633d5d36f0451")[::-1]),
    regs("bmi1", "c4e270f2c2", {"ecx": 0x0F0F, "edx": 0x00FF}, eax=0x00F0),  # andn
    regs("bmi1", "c4e278f3c9", {"ecx": 0x58}, eax=0x50),  # blsr
    regs("bmi1", "c4e268f7c1", {"ecx": 0x12345678, "edx": 0x0804}, eax=0x67),  # bextr
    regs("bmi1", "f30fbcc1 f30fbcda", {"ecx": 0x100, "edx": 0}, eax=8, ebx=32),  # tzcnt
    regs("bmi2", "c4e273f5c2", {"ecx": 0b1011, "edx": 0xF0F0}, eax=0xB0),  # pdep
    regs("bmi2", "c4e272f5c2", {"ecx": 0x1230, "edx": 0xF0F0}, eax=0x13),  # pext
    regs("bmi2", "c4e37bf0c108", {"ecx": 0x12345678}, eax=0x78123456),  # rorx
    regs("bmi2", "c4e273f6c3", {"edx": 0x80000000, "ebx": 6}, eax=3, ecx=0),  # mulx
    regs("bmi2", "c4e271f7c2", {"edx": 3, "ecx": 33}, eax=6),  # shlx
    regs("bmi2", "c4e270f5c2", {"edx": 0xFFFF, "ecx": 5}, eax=0x1F),  # bzhi
    regs("adx", "31db f9 660f38f6c1 660f38f6d3", {"eax": 0xFFFFFFFF, "ecx": 0, "edx": 7}, eax=0, edx=8),
    regs("adx", "31db f9 f30f38f6c1 0f92c3", {"eax": 1, "ecx": 2}, eax=3, ebx=1),  # adox leaves CF alone
    regs("abm", "f30fbdc1 f30fbdda", {"ecx": 0x10, "edx": 0}, eax=27, ebx=32),  # lzcnt
    sse("sse4a", "660f79c1", struct.pack("<4Q", 0x1122334455667788, 0, 0x0810, 0), struct.pack("<Q", 0x6677)),
    Proof("sse4a", "0f100500400000 f30f2b0500500000", floats(2.5), floats(2.5)),  # movntss
    mmx("mmxext", "0f70c01b", struct.pack("<4H", 1, 2, 3, 4), struct.pack("<4H", 4, 3, 2, 1)),  # pshufw
    mmx("mmxext", "0fde0508400000", b"\x01\x80" * 4 + b"\x02\x7f" * 4, b"\x02\x80" * 4),  # pmaxub
    mmx("3dnow", "0f0f05084000009e", floats(1, 2, 0.5, 0.25), floats(1.5, 2.25)),  # pfadd
    mmx("3dnowext", "0f0f0508400000bb", floats(1, 2, 3, 4), floats(4, 3)),  # pswapd
    Proof("clflush", "c6050040000007 0fae3d00400000 a100400000", after={"eax": 7}),
    Proof("clflushopt", "c6050040000007 660fae3d00400000 a100400000", after={"eax": 7}),
    Proof("clwb", "c6050040000007 660fae3500400000 a100400000", after={"eax": 7}),
    Proof("tsc", "0f31", after={"eax": 5, "edx": 0}),
    regs("mce", "0f20e0 83c840 0f22e0 0f20e0 83e040", {}, eax=0x40),  # CR4.MCE can be set
]  # fmt: skip


@pytest.mark.parametrize("proof", PROOFS, ids=str)
def test_feature(proof):
    for name in MODELS:
        if not MODELS[name].has(proof.feature):
            continue
        cpu = cpu_of(name)
        cpu.write_memory(IN, proof.data)
        for register, value in proof.before.items():
            setattr(cpu, register, value)
        assert run(cpu, proof.code) == []
        assert cpu.memory.read(OUT, len(proof.result)) == proof.result
        assert {register: getattr(cpu, register) for register in proof.after} == proof.after


# -- features of paging and debugging -------------------------------------------------------------


def having(feature):
    return pytest.mark.parametrize("name", [name for name in MODELS if MODELS[name].has(feature)])


def paged(name, cr4=0):
    """A CPU of a model with its first 2 MiB mapped one to one by 4 KiB pages; gives it and its tables."""
    cpu = cpu_of(name)
    for index in range(512):
        cpu.memory.put_u32(PAGES + 0x1000 + 4 * index, index << 12 | 3)
    cpu.memory.put_u32(PAGES, PAGES + 0x1000 | 3)
    cpu.set_cr(3, PAGES)
    cpu.set_cr(4, Cr4.OSFXSR | cr4)
    cpu.set_cr(0, Cr0.PE | Cr0.PG)
    return cpu


def put_u64(cpu, address, value):
    cpu.memory.write(address, value.to_bytes(8, "little"))


def paged_wide(name, nx=False):
    """The same with PAE; HIGH leads to the first 2 MiB again."""
    cpu = cpu_of(name)
    pointers, directory, table, second = PAGES, PAGES + 0x1000, PAGES + 0x2000, PAGES + 0x3000
    put_u64(cpu, pointers, directory | 1)
    put_u64(cpu, pointers + 8, directory + 0x3000 | 1)
    put_u64(cpu, directory, table | 3)
    put_u64(cpu, directory + 0x3000, second | 3)
    for index in range(512):
        put_u64(cpu, table + 8 * index, index << 12 | 3)
        put_u64(cpu, second + 8 * index, index << 12 | 3 | nx << 63)
    cpu.efer = 0x800 if nx else 0
    cpu.set_cr(3, pointers)
    cpu.set_cr(4, Cr4.OSFXSR | Cr4.PAE)
    cpu.set_cr(0, Cr0.PE | Cr0.PG)
    return cpu


@having("pse")
def test_pse(name):
    cpu = paged(name, Cr4.PSE)
    cpu.memory.put_u32(PAGES + 4 * (HIGH >> 22), 0x83)
    cpu.memory.put_u32(0x123450, 0x1122)
    assert run(cpu, f"a1{dwords(HIGH + 0x123450).hex()}") == []
    assert cpu.eax == 0x1122


@having("pse36")
def test_pse36(name):
    cpu = paged(name, Cr4.PSE)
    cpu.memory.put_u32(PAGES + 4 * (HIGH >> 22), 0x83 | 5 << 13 | 0xC00000)
    assert run(cpu, f"a1{dwords(HIGH + 0x10).hex()}") == []
    assert cpu.bus.log == [("read", 0x5_00C0_0010, 4)]


@having("pge")
def test_pge(name):
    """What is known of a global page is forgotten when CR4.PGE changes."""
    cpu = paged(name, Cr4.PGE)
    entry = PAGES + 0x1000 + 4 * (IN >> 12)
    cpu.memory.put_u32(entry, IN | 0x103)
    cpu.memory.put_u32(IN, 0x1111)
    cpu.memory.put_u32(OUT, 0x2222)
    load, other = f"a1{dwords(IN).hex()}", f"c705{dwords(entry, OUT | 3).hex()}"
    assert run(cpu, f"{load} {other} {load} 89c3 0f20e1 80f180 0f22e1 {load}") == []
    assert (cpu.ebx, cpu.eax) == (0x1111, 0x2222)


@having("pat")
def test_pat_bit_of_a_page_is_not_reserved(name):
    cpu = paged(name)
    cpu.memory.put_u32(PAGES + 0x1000 + 4 * (IN >> 12), IN | 0x83)
    cpu.memory.put_u32(IN, 0x77)
    assert run(cpu, f"a1{dwords(IN).hex()}") == []
    assert cpu.eax == 0x77


@having("pae")
def test_pae(name):
    cpu = paged_wide(name)
    put_u64(cpu, PAGES + 0x1000 + 8, 1 << 35 | 0x83)  # 2 MiB at 32 GiB
    assert (
        run(cpu, f"c705{dwords(HIGH + IN, 0x99).hex()} a1{dwords(IN).hex()} 8b0d{dwords(0x200008).hex()}")
        == []
    )
    assert cpu.eax == 0x99
    assert cpu.bus.log == [("read", 0x8_0000_0008, 4)]
    assert cpu.memory.read(PAGES + 0x2000 + 8 * (IN >> 12), 1)[0] & 0x60 == 0x20, "accessed, but not written"
    assert cpu.memory.read(PAGES + 0x3000 + 8 * (IN >> 12), 1)[0] & 0x60 == 0x60


@having("nx")
def test_nx(name):
    """A page that is not for code faults when it is jumped to, with the error code's bit for fetches."""
    cpu = paged_wide(name, nx=True)
    cpu.memory.write(IN, b"\x40\xc3")
    assert run(cpu, f"b8{dwords(IN).hex()} ffd0 b8{dwords(HIGH + IN).hex()} ffd0") == [Vector.PF]
    assert (cpu.bus.log[-1][2], cpu.cr2) == (0x11, HIGH + IN)


@having("nx")
def test_code_changed_through_an_address_where_it_cannot_be_executed(name):
    """Each store is seen, not only the first into the page."""
    cpu = paged_wide(name, nx=True)
    one, two = IN, IN + 0x100
    for at in (one, two):
        cpu.memory.write(at, b"\xb8\x01\x00\x00\x00\xc3")  # mov eax, 1; ret
    calls = f"be{dwords(one).hex()} bf{dwords(two).hex()} ffd6 ffd7"
    stores = "".join(f"c605{dwords(HIGH + at + 1).hex()}02" for at in (one, two))
    assert run(cpu, f"{calls} {stores} ffd6 89c3 ffd7") == []
    assert (cpu.ebx, cpu.eax) == (2, 2)


@having("de")
@pytest.mark.parametrize(("access", "call"), [("e680", ("out", 0x80, 1, 2)), ("e480", ("in", 0x80, 1))])
def test_de(name, access, call):
    """A breakpoint on a port fires behind the access; DR4 and DR5 are no names for DR6 and DR7."""
    cpu = cpu_of(name)
    cpu.set_cr(4, Cr4.DE)
    assert run(cpu, f"b880000000 0f23c0 b802000200 0f23f8 {access} 90") == [Vector.DB]
    assert cpu.bus.log[0] == call
    assert cpu.bus.log[1][3] == CODE + 18
    assert cpu.dr(6) & 15 == 1
    assert run(cpu, "0f21e0") == [Vector.UD]
    cpu.set_cr(4, 0)
    assert run(cpu, "0f21e0") == []


ELSEWHERE = {
    "msr": "test_msr.py and the start-up proof",
    "mtrr": "test_msr.py",
    "mca": "test_msr.py",
    "sep": "the start-up proof, test_msr.py",
    "apic": "devices/test_lapic.py",
    "hypervisor": "test_cpuid.py",
}


def test_every_promised_feature_has_a_proof():
    here = {proof.feature for proof in PROOFS} | {"pse", "pse36", "pge", "pat", "pae", "nx", "de"}
    promised = frozenset().union(*(model.features for model in MODELS.values()))
    assert here.isdisjoint(ELSEWHERE)
    assert here | ELSEWHERE.keys() == promised


# -- what a model lacks ---------------------------------------------------------------------------

DECODED = {
    "cmov": ("0f44c1", "dac1", "dbe9"),
    "cx8": ("0fc70d00400000",),
    "fxsr": ("0fae0500600000", "0fae0d00600000"),
    "sse": ("0f58c1", "0fae1500400000", "0faef8"),
    "sse2": ("0faef0",),
    "clflush": ("0fae3d00400000",),
    "ssse3": ("660f381cc1",),
    "sse4.1": ("660f3838c1",),
    "sse4.2": ("660f3837c1", "f20f38f0c1"),
    "popcnt": ("f30fb8c1",),
    "movbe": ("0f38f00500400000",),
    "aes": ("660f38dcc1",),
    "pclmulqdq": ("660f3a44c100",),
    "bmi1": ("c4e270f2c1",),
    "bmi2": ("c4e273f5c1", "c4e37bf0c101"),
    "adx": ("660f38f6c1", "f30f38f6c1"),
    "3dnow": ("0f0fc19e", "0f0e"),
    "clflushopt": ("660fae3d00400000",),
    "clwb": ("660fae3500400000",),
    # of those that no model promises
    "rdrand": ("0fc7f0",),
    "rdtscp": ("0f01f9",),
    "monitor": ("0f01c8", "0f01c9"),
    "xsave": ("0fae2500600000", "0f01d0"),
    "smap": ("0f01ca", "0f01cb"),
    "svm": ("0f01d8",),
}


@pytest.mark.parametrize("feature", DECODED)
@pytest.mark.parametrize("name", MODELS)
def test_instructions_of_a_feature_that_a_model_lacks(name, feature):
    cpu = cpu_of(name)
    cpu.write_memory(IN, dwords(0x1F80))
    for code in DECODED[feature]:
        assert run(cpu, code) == ([] if MODELS[name].has(feature) else [Vector.UD]), code


@pytest.mark.parametrize("name", MODELS)
def test_syscall_is_on_no_processor(name):
    assert run(cpu_of(name), "0f05") == [Vector.UD]


@pytest.mark.parametrize("name", MODELS)
def test_the_start_up_proof_holds_for_every_model(name):
    probe = selftest.Probe()
    for check in selftest._CHECKS:
        probe.reset()
        probe.cpu.decode(MODELS[name])
        check(probe)
