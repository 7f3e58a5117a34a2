// SPDX-License-Identifier: GPL-2.0-only
/*
 * Events that go straight to the guest's handlers, without Python: see straight.c.
 *
 * The structure is shared with Python, field by field as declared in vmi/native/straight.py.
 */

#ifndef STRAIGHT_H
#define STRAIGHT_H

#include <stdbool.h>
#include <stdint.h>

/* Calls that C serves, by what is done for them. */
enum {
    LOAD_CR3,   /* EAX is its value */
    FLUSH_PAGE, /* at the address EAX in DS */
    FLUSH_ALL,  /* as the flags in EAX say */
    SERVICES,
};

struct straight {
    uint64_t size;        /* of this structure, as Python has it */
    void *cpu;            /* the library's CPU */
    void *env;            /* and its register state */
    uint8_t *ram;
    uint64_t ram_size;
    uint8_t *pages;       /* what is known of each page of RAM, by number; bit 0: it holds code */
    void (*flush_page)(void *cpu, uint64_t linear);

    /* time */
    uint64_t before;      /* instructions executed before this run */
    int64_t idle;         /* ns besides instructions */
    int64_t run_ends;     /* ns, at the latest */
    int64_t ns_each;      /* of an instruction */
    int64_t ns_event;     /* of the entry to a handler */

    /* counts of what went straight, for Python to collect */
    uint64_t entered;
    uint64_t exceptions[32];
    uint64_t software;
    uint64_t served[SERVICES]; /* calls */

    uint64_t *told_cr2;   /* what CR2 was set to, not counting the page faults that the CPU finds itself */
    uint64_t *uncached;   /* linear address of a page to tell somebody of when it is cached */

    /* what goes straight */
    uint32_t reports;     /* anything at all, without asking Python */
    uint32_t pages_too;   /* page faults too: nobody else provides the tables */
    uint32_t enters;      /* translation goes by the CPU's own registers */
    uint32_t gate;        /* a vector of INT n that Python wants to see; 256 for none */
    uint32_t asked[4];    /* exceptions that Python wants to see, by ring; all bits: INT n too */
    uint32_t asked_in_rom; /* those that it wants to see only if they happen on ring 1 in the ROM */
    uint32_t open_a20;    /* address line 20 is not closed */
    uint64_t rom_start;   /* the ROM's code, guest-physical */
    uint64_t rom_end;
    uint64_t top;         /* linear addresses from here on are hidden */

    /* ring compression: none of it counts on the bare machine, where "compressed" is 0 */
    uint32_t compressed;  /* the kernel's ring 0 is ring 1 */
    uint32_t shown_ring;  /* and the ring that it sees in selectors */
    uint32_t idt_base;
    uint32_t idt_limit;
    uint32_t *interrupts; /* the virtual interrupt flag, in EFLAGS position */
    uint32_t *iopl;       /* the virtual IOPL, likewise */
    uint32_t *kernel_ss;  /* the stack that the kernel gave, NULL if it can't */
    uint32_t *kernel_esp;
    uint32_t kernel_ss_given;  /* bit of kernel_ss that says whether it did */
    uint32_t uncached_known;   /* bit of uncached_word that says that there is such a page */
    int (*called)(uint32_t number); /* who is told of INTs from the gates in the ROM; NULL for nobody; 0: it wants none of it */
    uint64_t gates_start;      /* guest-physical */
    uint32_t gate_size;
    uint32_t gate_count;
    uint32_t *cr2;             /* where the ROM shows CR2, NULL for nowhere */
    uint32_t *uncached_word;   /* where the ROM sees that page */
    uint32_t *cr3;             /* where it shows CR3, NULL for nowhere */
    uint32_t served_gates[SERVICES]; /* numbers of the gates of those that C serves; all bits: of none */
};

/*
 * The library reports an exception or INT: enter its handler, count it, and let its time pass.
 *
 * counter: instructions begun in this run; *budget: how many it may begin, which is cut in time.
 * False: nothing has changed that Python would not change likewise, and it has to do it.
 */
bool straight_report(struct straight *straight, uint32_t vector, uint64_t counter, uint64_t *budget);

/*
 * Number of the gate in the ROM that an INT comes from, if that is all there is to know of it; negative if
 * not. When the call is done comes straight_spend().
 */
int straight_gate(struct straight *straight, uint32_t vector, uint64_t counter, uint64_t budget);

/* Let the time of an event pass. */
void straight_spend(struct straight *straight, uint64_t counter, uint64_t *budget);

/* A page that somebody waits for is about to be cached; false: Python has to be told. */
bool straight_cached(struct straight *straight);

#endif
