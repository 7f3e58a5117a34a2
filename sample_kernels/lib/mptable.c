/* SPDX-License-Identifier: GPL-2.0-only */
/* The multiprocessor tables: a pointer that is found by its signature, and entries of which those for processors are longer. */
#include "mptable.h"

#define SIGNATURE 0x5f504d5f            /* _MP_ */
#define PROCESSOR_ENTRY 20              /* bytes; others have 8 */

static u8 sum(const u8 *bytes, u32 count)
{
        u8 total_of_bytes = 0;
        while (count--)
                total_of_bytes += *bytes++;
        return total_of_bytes;
}

u32 mp_processors(u32 below)
{
        for (const u8 *at = (const u8 *)0xf0000; at < (const u8 *)0x100000; at += 16) {
                if (*(const u32 *)at != SIGNATURE || sum(at, 16))
                        continue;
                const u8 *table = *(const u8 *const *)(at + 4), *entry = table + 44;
                u32 found = 0;
                for (u32 n = *(const u16 *)(table + 34); n; n--) {
                        if (*entry)
                                entry += 8;
                        else {
                                if (entry[3] & 1 && entry[1] < below)
                                        found |= 1u << entry[1];
                                entry += PROCESSOR_ENTRY;
                        }
                }
                return found;
        }
        return 0;
}
