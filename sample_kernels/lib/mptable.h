/* SPDX-License-Identifier: GPL-2.0-only */
/* What the firmware says of processors. */
#ifndef MPTABLE_H
#define MPTABLE_H

#include "x86.h"

u32 mp_processors(u32 below);           /* APIC IDs below this of usable processors, as bits; 0 without tables */

#endif
