/* SPDX-License-Identifier: GPL-2.0-only */
/* Shared by main.c and cases.S: vectors, selectors, addresses, flags. */
#include "segments.h"
#include "x86.h"

#define DE 0
#define DB 1
#define BP 3
#define OF 4
#define BR 5
#define UD 6
#define NM 7
#define DF 8
#define TS 10
#define NP 11
#define SS 12
#define GP 13
#define PF 14
#define MF 16
#define SYSCALL 0x80                    /* ring 3 may use it; an interrupt gate */
#define KERNEL_ONLY 0x81                /* ring 3 may not */
#define ABSENT_GATE 0x83                /* (0x82 is left out: hypervisors like it for themselves) */
#define RING2_GATE 0x84                 /* leads to ring 2, for which the TSS has an unfit stack segment */
#define DATA_GATE 0x85                  /* its selector is no code segment */
#define NULL_GATE 0x86
#define ABSENT_CODE_GATE 0x87           /* its code segment is not present */
#define TRAP_GATE 0x88                  /* leaves EFLAGS.IF alone */
#define LEAVE 0x89                      /* ends a case of ring 3 */
#define BEYOND_IDT 0xf0
#define NOTHING 0xff                    /* the case must run without any trap */

#define ABSENT_DATA 0x30                /* not present, privilege 0 */
#define ABSENT_DATA3 0x38               /* not present, privilege 3 */
#define ABSENT_CODE 0x40
#define ONLY_CODE 0x48                  /* execute-only: not for loading into a data register */
#define RING2_CODE 0x50
#define LDT_SELECTOR 0x58
#define ABSENT_LDT 0x60
#define ABSENT_CALL_GATE 0x68
#define KERNEL_CALL_GATE 0x70           /* privilege 0 */
#define BEYOND_GDT 0x1000
#define LDT_DATA 0x04
#define LDT_ABSENT 0x0c
#define BEYOND_LDT 0x14

#define HOLE 0x400000                   /* not mapped */
#define READ_ONLY 0x401000              /* mapped for ring 3, not writable */
#define KERNEL_PAGE 0x402000            /* not for ring 3 */
#define ON_DEMAND 0x403000              /* not mapped until the first fault */

/* Flags of a case. */
#define RESUME 0x01                     /* the handler returns by iret and the case runs on to its end */
#define ANY_EIP 0x02                    /* EIP undefined (#DF), or the instruction is one that a patcher may move */
#define EIP_ARG 0x04                    /* the fault is at the case's argument: a jump went there */
#define WITH_TS 0x08                    /* CR0.TS is set */
#define WITH_EM 0x10                    /* CR0.EM is set */
#define WITH_MF 0x20                    /* an unmasked x87 exception is pending */
#define STEP 0x40                       /* ring 3 starts with EFLAGS.TF */
#define NEST 0x80                       /* the handler itself faults, recovers, goes on */
#define HIDE_DE 0x0100                  /* high byte: vector + 1 of a gate to mark not present meanwhile */
#define HIDE_UD 0x0700
#define HIDE_NP 0x0c00
#define HIDE_GP 0x0e00
#define HIDE_PF 0x0f00

#define NONE 0                          /* no error code */
#define GATE_ERROR(vector) vector*8+2   /* error code that names a gate of the IDT; no spaces: macro arguments */
