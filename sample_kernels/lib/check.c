/* SPDX-License-Identifier: GPL-2.0-only */
#include "check.h"

static int passed, failed, wrong;

void expect(int good, const char *what)
{
        if (!good) {
                printf("  wrong: %s\n", what);
                wrong++;
        }
}

void verdict(const char *what)
{
        printf("%-4s %s\n", wrong ? "FAIL" : "ok", what);
        if (wrong)
                failed++;
        else
                passed++;
        wrong = 0;
}

void finish(const char *kernel)
{
        printf("%s: %d passed, %d failed\n", kernel, passed, failed);
        machine_exit(failed ? EXIT_FAILED : EXIT_OK);
}
