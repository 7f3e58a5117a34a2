# SPDX-License-Identifier: GPL-2.0-only
"""Every site is accounted for, by the tactic that fits it best, or with the reason why none did."""

from __future__ import annotations

import struct

import pytest

from tests.patcher.images import BASE, DATA, code_image, source_image
from vmi.patcher.model import Branch, Plan, Window
from vmi.patcher.plan import make_plan
from vmi.rom.assemble import assemble
from vmi.sitetable import Tactic


def tactics(plan: Plan) -> list[tuple[str, Tactic]]:
    return [(p.site.form, p.tactic) for p in plan.placements]


def plan_source(source: str, words: tuple[str, ...] = ()) -> tuple[Plan, dict[str, int]]:
    image, made = source_image(source, words=words)
    return make_plan(image), made.labels


def only_window(plan: Plan) -> Window:
    (window,) = plan.windows
    return window


def left_reason(plan: Plan, form: str) -> tuple[Tactic, str]:
    (found,) = [p for p in plan.placements if p.site.form == form]
    return found.tactic, found.reason


# ---------------------------------------------------------------- tactics


def test_forward_takes_whole_instructions_up_to_five_bytes() -> None:
    plan, _ = plan_source("start: push ebx\n cli\n mov eax, ecx\n add eax, 1\n pop ebx\n ret")
    window = only_window(plan)
    assert tactics(plan) == [("cli", Tactic.FORWARD)]
    assert (window.start, window.length, window.resume) == (BASE + 1, 6, BASE + 7)
    assert [insn.raw.hex() for insn in window.insns] == ["fa", "89c8", "83c001"]
    assert [site.form for site in window.sites] == ["cli"]


def test_backward_when_a_label_stands_behind_the_site() -> None:
    plan, labels = plan_source("start: mov eax, 7\n cli\nback: dec eax\n jnz short back\n ret")
    window = only_window(plan)
    assert tactics(plan) == [("cli", Tactic.BACKWARD)]
    assert (window.start, window.end, window.resume) == (BASE, labels["back"], labels["back"])


def test_both_when_neither_side_is_enough() -> None:
    source = (
        "start: nop\nhere: mov eax, ecx\n cli\n mov ecx, edx\nback: dec eax\n jnz short here\n jmp short back"
    )
    plan, labels = plan_source(source)
    window = only_window(plan)
    assert tactics(plan) == [("cli", Tactic.BOTH)]
    assert (window.start, window.end) == (labels["here"], labels["back"])


def test_sites_close_together_share_a_window() -> None:
    plan, _ = plan_source("start: cli\n mov dx, 0x20\n in al, dx\n mov ebx, eax\n out dx, al\n ret")
    assert tactics(plan) == [("cli", Tactic.FORWARD), ("in al", Tactic.MERGED), ("out al", Tactic.MERGED)]
    assert [site.form for site in only_window(plan).sites] == ["cli", "in al", "out al"]


def test_a_far_site_gets_its_own_window() -> None:
    plan, _ = plan_source("start: cli\n" + "mov eax, 1\n" * 6 + "sti\n mov eax, 2\n ret")
    assert tactics(plan) == [("cli", Tactic.FORWARD), ("sti", Tactic.FORWARD)]


def test_in_place_when_the_instruction_is_long_enough() -> None:
    plan, _ = plan_source("start: nop\n lgdt [0x1234]\nnext: nop\n jmp short next")
    assert tactics(plan) == [("lgdt m", Tactic.IN_PLACE)]
    assert plan.windows == ()
    ((start, length),) = [(slot.start, slot.length) for slot in plan.slots]
    assert (start, length) == (BASE + 1, 7)


def test_a_long_site_moves_along_when_its_neighbour_needs_the_room() -> None:
    plan, _ = plan_source("start: lgdt [0x1234]\n cli\nnext: nop\n jmp short next")
    assert tactics(plan) == [("lgdt m", Tactic.MERGED), ("cli", Tactic.BACKWARD)]
    assert plan.slots == ()


def test_a_last_instruction_takes_the_padding_behind_it() -> None:
    plan, _ = plan_source("start: pop ebx\n jmp short out\nout: iretd\n .byte 0x90, 0x90, 0xcc, 0xcc, 0xcc")
    window = only_window(plan)
    assert tactics(plan) == [("iret", Tactic.FORWARD)]
    assert (window.length, window.resume) == (5, None)
    assert [insn.raw.hex() for insn in window.insns] == ["cf"]


def test_padding_that_something_refers_to_is_not_taken() -> None:
    source = "start: pop ebx\n jmp short out\nout: iretd\n .byte 0x90, 0x90\nnamed: .byte 0x90, 0x90, 0xc3"
    plan, _ = plan_source(source, words=("named", "out"))
    assert left_reason(plan, "iret")[0] is Tactic.TRAP


SHORT = """
    start: test eax, eax
           jz short out
           {before}
    here:  mov ebx, ecx
           cli
    out:   dec eax
           jnz short here
           {after}
"""


def test_a_springboard_lies_in_padding_within_reach() -> None:
    source = SHORT.format(before="nop", after="ret\n .byte 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc")
    plan, labels = plan_source(source, words=("here", "out"))
    window = only_window(plan)
    assert tactics(plan) == [("cli", Tactic.SPRINGBOARD)]
    assert (window.start, window.length) == (labels["here"], 3)
    # The breakpoint behind the return stays.
    assert window.springboard == BASE + len(plan.image.segments[0].data) - 5
    assert plan.padding == ()


def test_a_springboard_lies_in_a_longer_window_close_by() -> None:
    source = SHORT.format(before="mov eax, 1\n mov [ebx], eax\n mov [ebx + 4], eax\n sti\n nop", after="ret")
    plan, labels = plan_source(source, words=("here", "out"))
    host, short = plan.windows
    assert tactics(plan) == [("sti", Tactic.BACKWARD), ("cli", Tactic.HOST)]
    assert (short.start, short.length, short.springboard) == (labels["here"], 3, host.start + 5)
    assert host.length >= 10


def test_a_window_grows_to_be_a_host() -> None:
    source = SHORT.format(before="nop", after="jmp start\n push ebx\nmore: sti\n" + "inc eax\n" * 12 + "ret")
    plan, labels = plan_source(source, words=("here", "out", "more"))
    short, host = plan.windows
    assert tactics(plan) == [("cli", Tactic.HOST), ("sti", Tactic.FORWARD)]
    assert (host.start, host.length, short.springboard) == (labels["more"], 10, labels["more"] + 5)


def test_a_window_is_made_to_be_a_host_when_there_is_none() -> None:
    source = SHORT.format(before="nop", after="jmp start\n push ebx\nmore:" + "inc eax\n" * 12 + "ret")
    plan, labels = plan_source(source, words=("here", "out", "more"))
    short, host = plan.windows
    assert tactics(plan) == [("cli", Tactic.HOST)]
    assert (host.start, host.length, short.springboard) == (labels["more"], 10, labels["more"] + 5)
    assert (host.sites, host.resume) == ((), labels["more"] + 10)


def test_there_is_no_host_out_of_reach() -> None:
    far = "jmp start\n" + ".byte 0xcc\n" * 128 + "more: sti\n" + "inc eax\n" * 12 + "ret"
    plan, _ = plan_source(SHORT.format(before="nop", after=far), words=("here", "out", "more"))
    assert left_reason(plan, "cli")[0] is Tactic.SPRINGBOARD
    far = far.replace("0xcc", "0x40")
    plan, _ = plan_source(SHORT.format(before="nop", after=far), words=("here", "out", "more"))
    assert left_reason(plan, "cli")[0] is Tactic.LEFT


def test_a_call_moves_only_when_nothing_else_works() -> None:
    plan, _ = plan_source("start: nop\nhere: cli\n call f\n nop\n jmp short here\nf: mov eax, 1\n ret")
    window = only_window(plan)
    assert tactics(plan) == [("cli", Tactic.FORWARD)]
    assert (window.insns[-1].branch, window.resume) == (Branch.CALL, window.end)
    plan, _ = plan_source("start: mov eax, 5\n cli\n call f\n ret\nf: mov eax, 1\n ret")
    assert tactics(plan) == [("cli", Tactic.BACKWARD)]
    assert only_window(plan).insns[-1].branch is not Branch.CALL


@pytest.mark.parametrize("thunk", ["pop eax\n push eax\n ret", "mov eax, [esp]\n ret"])
def test_a_call_stays_when_its_target_looks_at_the_return_address(thunk: str) -> None:
    plan, _ = plan_source(f"start: nop\nhere: cli\n call f\n nop\n jmp short here\nf: {thunk}")
    assert tactics(plan) == [("cli", Tactic.LEFT)]


def test_branches_move_with_their_targets() -> None:
    source = "start: cli\n jz short out\n loop out\n mov eax, 1\nout: ret"
    plan, labels = plan_source(source)
    window = only_window(plan)
    found = [(insn.branch, insn.target) for insn in window.insns[1:]]
    assert found == [(Branch.JCC, labels["out"]), (Branch.LOOP, labels["out"])]


BETWEEN = "start: nop\nhere: {}\nback: dec eax\n jnz short here\n jmp short back"


def test_a_site_between_two_labels_is_left_when_it_traps() -> None:
    plan, _ = plan_source(BETWEEN.format("cli"), words=("here", "back"))
    assert left_reason(plan, "cli") == (
        Tactic.LEFT,
        "Jump targets and instructions that must stay leave 1 bytes around it, a jump needs 5.",
    )
    assert plan.windows == ()


def test_a_site_between_two_labels_is_trapped_when_it_is_silent() -> None:
    plan, _ = plan_source(BETWEEN.format("pushfd"), words=("here", "back"))
    assert left_reason(plan, "pushf")[0] is Tactic.TRAP


# ---------------------------------------------------------------- windows across jump targets


def test_a_window_may_hold_a_label_that_only_its_own_jumps_know() -> None:
    plan, labels = plan_source(BETWEEN.format("cli"))
    window = only_window(plan)
    assert tactics(plan) == [("cli", Tactic.FORWARD)]
    assert (window.start, window.end, window.resume) == (labels["here"], labels["back"] + 5, None)
    assert window.inner == (labels["back"],)


def test_a_window_ends_before_a_label_that_something_else_knows() -> None:
    source = "start: jz here\n mov eax, 5\nhere: cli\nback: dec eax\n jmp short back"
    plan, labels = plan_source(source, words=("back",))
    window = only_window(plan)
    assert tactics(plan) == [("cli", Tactic.BACKWARD)]
    assert (window.start, window.end, window.inner) == (BASE, labels["back"], (labels["here"],))


def test_jumps_to_a_label_inside_a_window_get_windows_too() -> None:
    source = """
    start: test eax, eax
           jz away
    here:  cli
    back:  mov ebx, 1
           jmp ebx
    away:  mov ecx, 2
           jmp back
    """
    plan, labels = plan_source(source, words=("here",))
    first, second = plan.windows
    assert (first.start, first.length, first.inner) == (labels["here"], 6, ())
    assert [insn.target for insn in second.insns] == [labels["back"]]
    assert (second.sites, second.inner) == ((), (labels["back"],))


def test_a_window_made_in_vain_leaves_nothing_behind() -> None:
    """Both jumps need a springboard and the window across their target has room for one: its bytes are no
    padding when it is given up."""
    source = """
    start: test eax, eax
    one:   jz short back
    two:   inc eax
           ret
    here:  cli
    back:  mov ebx, 1
           mov ecx, 2
           jmp ebx
    three: inc eax
           jmp short back
    """
    plan, _ = plan_source(source, words=("one", "two", "here", "three"))
    assert left_reason(plan, "cli")[0] is Tactic.LEFT
    assert (plan.windows, plan.padding) == ((), ())


def test_a_label_that_a_call_or_an_unmovable_jump_knows_is_never_inside() -> None:
    source = "start: jmp away\nhere: cli\nback: mov ebx, 1\n jmp ebx\naway: mov ecx, 2\n {}"
    for last in ("call back\n ret", "mov eax, [{jump}]\njump: jmp back"):
        plan, _ = plan_source(source.replace("{}", last), words=("here",))
        assert left_reason(plan, "cli")[0] is Tactic.LEFT


# ---------------------------------------------------------------- sites that stay


EDGES = """
start: test eax, eax
       jz here
       jmp other
here:  cli
back:  mov ebx, 1
       jmp ebx
other: mov ecx, 2
       jmp here
"""


def test_a_site_that_stays_is_copied_on_each_way_to_it() -> None:
    plan, labels = plan_source(EDGES, words=("back",))
    assert tactics(plan) == [("cli", Tactic.EDGE)]
    assert [[site.address for site in window.edges] for window in plan.windows] == [[labels["here"]]] * 2
    assert all(window.sites == () for window in plan.windows)


def test_the_instruction_before_a_site_that_stays_is_a_way_to_it() -> None:
    source = "start: jmp more\nmore: {}\nhere: cli\nback: jmp ebx\nf: mov eax, 1\n ret\nother: jmp here"
    plan, labels = plan_source(source.format("call f"), words=("back", "more", "f", "other"))
    assert left_reason(plan, "cli")[0] is Tactic.EDGE
    before, jump = plan.windows
    assert (before.start, before.resume) == (labels["more"], labels["here"])
    assert [[site.form for site in window.edges] for window in plan.windows] == [["cli"], ["cli"]]
    assert jump.start == labels["other"]
    plan, labels = plan_source(source.format("call eax"), words=("back", "more", "f", "other"))
    assert left_reason(plan, "cli")[0] is Tactic.LEFT


def test_a_site_that_something_else_knows_is_not_copied() -> None:
    plan, _ = plan_source(EDGES, words=("back", "here"))
    assert left_reason(plan, "cli")[0] is Tactic.LEFT


def test_a_site_that_holds_off_interrupts_is_not_copied_alone() -> None:
    plan, _ = plan_source(EDGES.replace("cli", "sti"), words=("back",))
    assert left_reason(plan, "sti")[0] is Tactic.LEFT


def test_without_a_call_there_is_no_slot() -> None:
    plan, _ = plan_source("start: cli\n lar eax, eax\n hlt\n nop\n nop\n ret")
    assert tactics(plan) == [("cli", Tactic.FORWARD), ("lar r,rm", Tactic.TRAP), ("hlt", Tactic.LEFT)]
    window = only_window(plan)
    assert [site.form for site in window.sites] == ["cli"]
    assert [site.form for site in window.traps] == ["lar r,rm"]
    assert left_reason(plan, "hlt")[1] == "No VMI call stands for `hlt`."


def test_a_refused_site_is_left_with_the_reason() -> None:
    image, _ = source_image("start: cli\n mov eax, 1\n pushfd\n pop eax\n ret")
    plan = make_plan(image, lambda site: "No adaptor." if site.form in ("cli", "pushf") else "")
    assert [(p.tactic, p.reason) for p in plan.placements] == [
        (Tactic.LEFT, "No adaptor."),
        (Tactic.TRAP, "No adaptor."),
    ]


def test_harmless_instructions_are_only_counted() -> None:
    plan, _ = plan_source("start: verw ax\n verr ax\n verw bx\n ret")
    assert plan.placements == ()
    assert plan.harmless == (("verr rm", 1), ("verw rm", 2))


def test_code_that_nothing_leads_to_is_skipped_and_said_so() -> None:
    plan, labels = plan_source("start: ret\ndead: cli\n ret")
    assert plan.placements == ()
    assert [(s.start, s.end, s.reason) for s in plan.skipped] == [
        (
            labels["dead"],
            labels["dead"] + 1,
            "Nothing in the kernel leads to these bytes, so they may be data.",
        )
    ]


# ---------------------------------------------------------------- interrupt shadows


def test_sti_and_hlt_are_one_site_and_one_instruction() -> None:
    plan, _ = plan_source("start: sti\n hlt\n mov eax, 1\n ret")
    window = only_window(plan)
    assert tactics(plan) == [("sti;hlt", Tactic.FORWARD)]
    assert [insn.raw.hex() for insn in window.insns] == ["fbf4", "b801000000"]


def test_a_window_that_would_end_in_sti_takes_the_next_instruction_too() -> None:
    plan, _ = plan_source("start: mov eax, 1\n nop\nhere: cli\n mov eax, ebx\n nop\n sti\n mov ebx, 1\n ret")
    window = only_window(plan)
    assert [insn.raw.hex() for insn in window.insns] == ["fa", "89d8", "90", "fb", "bb01000000"]


def test_a_window_never_starts_behind_sti() -> None:
    plan, labels = plan_source(
        "start: nop\nhere: mov ss, eax\n mov esp, ebx\n cli\nback: jmp short back\n jmp here"
    )
    window = only_window(plan)
    assert tactics(plan) == [("mov ss,r", Tactic.LEFT), ("cli", Tactic.BACKWARD)]
    assert (window.start, window.end) == (labels["here"], labels["back"])


def test_sti_before_a_label_takes_a_copy_of_the_next_instruction() -> None:
    plan, labels = plan_source("start: mov eax, 1\n sti\nback: mov ebx, ecx\n jmp short back")
    window = only_window(plan)
    assert (window.start, window.end, window.resume) == (BASE, labels["back"], labels["back"] + 2)
    assert [insn.raw.hex() for insn in window.insns] == ["b801000000", "fb", "89cb"]


BEFORE_NOP = """
    start: test ecx, ecx
           jz short out
           sti
    out:   .byte 0x3e, 0x8d, 0x74, 0x26, 0
           {then}
           ret
"""


def test_a_shadow_may_end_before_a_jump_label() -> None:
    made = assemble(BEFORE_NOP.format(then="nop"), BASE)
    label = made.labels["out"]
    table = struct.pack("<3I", label - DATA & 0xFFFFFFFF, label + 6 - DATA - 4 & 0xFFFFFFFF, 0x1234)
    plan = make_plan(code_image(made.code, data=table))
    window = only_window(plan)
    assert tactics(plan) == [("sti", Tactic.BACKWARD)]
    assert (window.start, window.end, window.resume) == (BASE, label, label)
    assert window.insns[-1].form == "sti"


def test_a_shadow_ends_before_nothing_else_that_must_stay() -> None:
    plan, _ = plan_source(BEFORE_NOP.format(then=f"mov al, [{BASE + 5}]"))
    assert plan.windows == ()
    assert left_reason(plan, "sti") == (
        Tactic.LEFT,
        "An interrupt shadow beside it can't be kept in a trampoline.",
    )


def test_a_short_site_in_a_shadow_is_padded_behind() -> None:
    plan, _ = plan_source("start: sti\n cli\n mov eax, 1\n ret")
    assert tactics(plan) == [("sti", Tactic.FORWARD), ("cli", Tactic.MERGED)]
    assert [(site.form, site.pad_after) for site in only_window(plan).sites] == [
        ("sti", False),
        ("cli", True),
    ]


def test_a_site_in_a_shadow_that_holds_off_interrupts_itself_is_left() -> None:
    plan, _ = plan_source("start: sti\n sti\n mov eax, 1\n ret")
    assert [p.tactic for p in plan.placements] == [Tactic.FORWARD, Tactic.LEFT]
    assert plan.placements[1].reason == (
        "It holds off interrupts and must follow the instruction before it at once: no room for padding."
    )


def test_a_long_site_in_a_shadow_needs_no_padding() -> None:
    plan, _ = plan_source("start: sti\n lgdt [0x1234]\n ret")
    assert tactics(plan) == [("sti", Tactic.FORWARD), ("lgdt m", Tactic.MERGED)]


# ---------------------------------------------------------------- pins


def test_bytes_the_kernel_reads_as_data_do_not_move() -> None:
    plan, _ = plan_source("start: mov eax, [{next}]\n ret\nhere: cli\nnext: mov ebx, 1\n jmp short here")
    assert tactics(plan) == [("cli", Tactic.LEFT)]


def test_a_silent_site_in_bytes_the_kernel_rewrites_gets_no_breakpoint() -> None:
    plan, _ = plan_source("start: mov byte ptr [{here}], 0x90\nhere: pushfd\n pop eax\n ret")
    assert left_reason(plan, "pushf") == (
        Tactic.LEFT,
        "Other instructions read or write these bytes as data.",
    )


def test_repr_is_compact() -> None:
    plan, _ = plan_source("start: cli\n mov eax, 1\n ret")
    assert repr(plan) == "Plan(1 sites, 1 in slots, 1 windows)"
    assert repr(plan.placements[0].site) == f"Site({BASE:#x}, cli, flags dead, DisableInterrupts)"
