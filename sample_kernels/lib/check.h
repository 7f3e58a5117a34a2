/* SPDX-License-Identifier: GPL-2.0-only */
/* Self-checks: several expectations make one verdict, one line of the log. */
#ifndef CHECK_H
#define CHECK_H

#include "console.h"

void expect(int good, const char *what);        /* prints only if it does not hold */
void verdict(const char *what);                 /* "ok what", or "FAIL what" if an expectation since the last one failed */
void finish(const char *kernel) __attribute__((noreturn));      /* totals, then out of the machine */

#endif
