/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The smallest guest: greets over COM1 and leaves through the debug-exit port.
 * It never turns interrupts or paging on, so it is the first thing to try on a new machine or ROM.
 */
#include "x86.h"
#include "console.h"

#define MULTIBOOT_BOOTED 0x2badb002     /* in EAX, from any multiboot loader */

void kmain(u32 magic, u32 info)
{
        int booted = magic == MULTIBOOT_BOOTED && info != 0;

        console_init();
        printf("hello: an i386 kernel on bare metal, as far as it can tell\n");
        printf("hello: multiboot %s\n", booted ? "ok" : "FAIL");
        printf("hello: goodbye\n");
        machine_exit(booted ? EXIT_OK : EXIT_FAILED);
}
