// SPDX-License-Identifier: GPL-2.0-only
/*
 * The arithmetic flags of instructions that are left in the middle.
 *
 * The emulator library computes flags when they are needed. It remembers what the last instruction that set
 * them did ("cc_op") and with what ("cc_src" and so on); to compute them is to put them into cc_src and to
 * remember that they are there. An instruction may do so behind a load or store, or only on one of the ways
 * that it can take, such as LOOPNE where ECX does not become zero:
 *
 *   - a fault, or an instruction that is to be done again, goes back to the cc_op from in front of it, but
 *     finds cc_src overwritten, if the flags were computed before it was left;
 *   - behind the other way cc_op says that they are computed, and they are not.
 *
 * Both give wrong flags, in an ADC to a page that is copied when it is written to, for one. Here what computes
 * the flags is moved to the start of the instruction, and going back then finds them in cc_src, as they were.
 */

#include "flags.h"

#include <stdbool.h>
#include <stddef.h>

/* Places in the library's structures. */
enum {
    CONTEXT_OPS_HEAD = 29576, /* first operation, and the link of the last one */
    CONTEXT_DEFINITIONS = 39272,
    CONTEXT_CC_DST = 39288,
    CONTEXT_CC_SRC = 39296,
    CONTEXT_CC_SRC2 = 39304,
    CONTEXT_CC_OP = 39312,
    DEFINITION_SIZE = 32,
    DEFINITION_OUTPUTS = 8,
    DEFINITION_FLAGS = 12,
};

enum { ENDS_BASIC_BLOCK = 2, NO_VARIABLES = 3, CC_OP_EFLAGS = 1 };

#define AT(base, offset, type) (*(type *)((char *)(base) + (offset)))

struct link {
    struct operation *next;
    struct link *before; /* link of the operation before, or of the list */
};

struct operation {
    uint8_t number;
    uint8_t arguments : 4; /* of a call */
    uint8_t results : 4;
    uint16_t life;
    struct link link;
    uintptr_t args[];
};

struct maker { /* one block in the making */
    char *context;
    const struct flag_operations *numbers;
    uintptr_t compute_all;
    uintptr_t dst, src, src2, op; /* the library's variables for flags */
};

static uintptr_t variable(char *context, int at)
{
    return (uintptr_t)context + AT(context, at, uintptr_t);
}

static bool is_flag(const struct maker *m, uintptr_t temp)
{
    return temp == m->dst || temp == m->src || temp == m->src2 || temp == m->op;
}

static uint8_t of_definition(const struct maker *m, const struct operation *o, int at)
{
    return AT(AT(m->context, CONTEXT_DEFINITIONS, char *), o->number * DEFINITION_SIZE + at, uint8_t);
}

static bool is_movi(const struct maker *m, const struct operation *o)
{
    return o->number == m->numbers->movi_i32 || o->number == m->numbers->movi_i64;
}

/* It computes all flags into cc_src. */
static bool computes(const struct maker *m, const struct operation *o)
{
    return o->number == m->numbers->call && o->results == 1 && o->args[0] == m->src
           && o->args[1 + o->arguments] == m->compute_all;
}

/* It sets a variable for flags, or is a function that may do so. */
static bool sets_flag(const struct maker *m, const struct operation *o)
{
    unsigned results = o->number == m->numbers->call ? o->results : of_definition(m, o, DEFINITION_OUTPUTS);

    if (o->number == m->numbers->call && !(o->args[o->results + o->arguments + 1] & NO_VARIABLES))
        return true;
    for (unsigned i = 0; i < results; i++)
        if (is_flag(m, o->args[i]))
            return true;
    return false;
}

/* It belongs to the computation: that itself, what cc_op becomes, and what is of no use behind it. */
static bool belongs(const struct maker *m, const struct operation *o)
{
    if (computes(m, o))
        return true;
    return (is_movi(m, o) || o->number == m->numbers->discard) && is_flag(m, o->args[0]);
}

static void move(struct operation *o, struct link *behind)
{
    /* out of its place, which is never the last: another instruction or the end of the block follows */
    o->link.next->link.before = o->link.before;
    o->link.before->next = o->link.next;
    o->link.next = behind->next;
    o->link.before = behind;
    behind->next->link.before = &o->link;
    behind->next = o;
}

/* A constant that a computation takes is made in front of it; the latest one that this is. */
static struct operation *constant(const struct maker *m, struct operation *start, struct operation *call,
                                  uintptr_t temp)
{
    struct operation *found = NULL;

    for (struct operation *o = start->link.next; o != call; o = o->link.next)
        if (is_movi(m, o) && o->args[0] == temp)
            found = o;
    return found;
}

/* One instruction, from its start to the start of the next one, or to the end of the block. */
static void settle(const struct maker *m, struct operation *start, struct operation *end)
{
    struct operation *last = NULL, *o, *next;
    struct link *behind = &start->link;
    bool branches = false, computed = false;
    uintptr_t taken = 0;

    for (o = start->link.next; o != end; o = o->link.next) {
        if (computes(m, o)) {
            last = o;
            computed = true;
        } else if (branches && is_movi(m, o) && is_flag(m, o->args[0])) {
            last = o;
        } else if (!belongs(m, o) && sets_flag(m, o)) {
            break; /* these are the flags that the instruction itself gives */
        }
        branches |= (of_definition(m, o, DEFINITION_FLAGS) & ENDS_BASIC_BLOCK) != 0;
    }
    if (!last || !last->link.next)
        return;
    end = last->link.next;
    for (o = start->link.next; o != end; o = next) {
        next = o->link.next;
        if (!belongs(m, o))
            continue;
        for (int i = 1; computes(m, o) && i <= o->arguments; i++) {
            struct operation *made = NULL;

            /* the same one may be taken more than once */
            if (!is_flag(m, o->args[i]) && o->args[i] != taken)
                made = constant(m, start, o, taken = o->args[i]);
            if (made) {
                move(made, behind);
                behind = &made->link;
            }
        }
        move(o, behind);
        behind = &o->link;
    }
    if (computed)
        start->args[1] = CC_OP_EFLAGS; /* what going back to this instruction finds */
}

void flags_first(void *context, const struct flag_operations *numbers, const void *compute_all)
{
    struct maker m = {
        .context = context,
        .numbers = numbers,
        .compute_all = (uintptr_t)compute_all,
        .dst = variable(context, CONTEXT_CC_DST),
        .src = variable(context, CONTEXT_CC_SRC),
        .src2 = variable(context, CONTEXT_CC_SRC2),
        .op = variable(context, CONTEXT_CC_OP),
    };
    struct operation *start = NULL, *next;

    for (struct operation *o = AT(context, CONTEXT_OPS_HEAD, struct operation *); o; o = next) {
        next = o->link.next;
        if (o->number != numbers->insn_start && next)
            continue;
        if (start)
            settle(&m, start, o);
        start = o;
    }
}
