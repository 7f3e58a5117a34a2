/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The program of every process; its process number chooses the work. Workers send what they find to the
 * collector, which knows the right answers. Nothing that is printed depends on who ran when.
 */
#include "sched.h"
#include "console.h"

asm (".section .start, \"ax\"\n call main\n mov %eax, %ebx\n xor %eax, %eax\n int $0x80\n .text");

static u32 syscall(u32 number, u32 a, u32 b)
{
        u32 result;
        asm volatile ("int %1" : "=a" (result) : "i" (SYSCALL_VECTOR), "a" (number), "b" (a), "c" (b) : "memory");
        return result;
}

static void send(u32 value)
{
        syscall(SYS_SEND, value, 0);
}

void putchar(char c)                    /* for printf: a line at a time */
{
        static char line[100];
        static u32 length;

        line[length++] = c;
        if (c == '\n' || length == sizeof(line)) {
                syscall(SYS_WRITE, (u32)line, length);
                length = 0;
        }
}

static void primes(void)
{
        static u8 composite[40000];
        u32 count = 0;

        for (u32 n = 2; n < sizeof(composite); n++) {
                if (!composite[n]) {
                        count++;
                        for (u32 m = n * n; n < 200 && m < sizeof(composite); m += n)
                                composite[m] = 1;
                }
                if (n % 1000 == 999)
                        send(count);
        }
}

static u32 random_state = 1;            /* in .data, on a page shared by all until its first store */

static u32 random(void)
{
        random_state = random_state * 1103515245 + 12345;
        return random_state >> 16;
}

static void crc(void)
{
        u32 value = 0xffffffff;

        for (u32 i = 1; i <= 100000; i++) {
                value ^= random() & 0xff;
                for (int bit = 0; bit < 8; bit++)
                        value = value >> 1 ^ (value & 1 ? 0xedb88320 : 0);
                if (i % 2500 == 0)
                        send(~value);
        }
}

static void sort(void)
{
        static u32 item[8192];
        const u32 items = sizeof(item) / sizeof(item[0]);
        u32 ordered = 1;

        for (u32 i = 0; i < items; i++)
                item[i] = random();
        for (u32 gap = items / 2; gap; gap /= 2) {
                for (u32 i = gap; i < items; i++) {
                        u32 value = item[i], j = i;
                        for (; j >= gap && item[j - gap] > value; j -= gap)
                                item[j] = item[j - gap];
                        item[j] = value;
                }
                send(item[items / 2]);
                syscall(SYS_YIELD, 0, 0);
        }
        for (u32 i = 1; i < items; i++)
                ordered += item[i - 1] <= item[i];
        send(ordered);
}

/* Midpoint rule over the x87 unit. Two processes do it at once: their registers must not mix. */
static void integrate(int pi)
{
        const int steps = 40000;
        double sum = 0;

        for (int i = 0; i < steps; i++) {
                double x = (i + 0.5) / steps;
                sum += pi ? 4 / (1 + x * x) : 1 / (1 + x);
                if (i % 1000 == 999) {
                        send(sum / steps * 1000000);
                        syscall(SYS_YIELD, 0, 0);
                }
        }
}

/* Compute in ring 3 without a single system call, so that only the timer can take the processor away. */
static void spin(void)
{
        volatile u32 *clock = (volatile u32 *)USER_CLOCK;
        u32 start = *clock, wrong = 0;

        while (*clock - start < 10) {
                u32 a = 1, b = 1;
                for (int i = 0; i < 1000; i++) {
                        u32 c = a + b;
                        a = b;
                        b = c;
                }
                wrong += b != 2874523960;        /* Fibonacci number 1002, modulo 2^32 */
        }
        send(wrong);
}

static void sleeper(void)
{
        volatile u32 *clock = (volatile u32 *)USER_CLOCK;

        for (u32 i = 1; i <= 20; i++) {
                u32 start = *clock;
                syscall(SYS_SLEEP, 1, 0);
                send(*clock - start >= 1);
        }
}

static const struct {
        const char *name;
        u32 messages, sum, last;
} results[PROCESSES] = {
        [PRIMES] = { "primes", 40, 91034, 4203 },
        [CRC] = { "crc", 40, 1141254142, 3708643597 },
        [SORT] = { "sort", 14, 513676, 8192 },
        [PI] = { "pi", 40, 71778541, 3141592 },
        [LOGARITHM] = { "logarithm", 40, 15797286, 693147 },
        [SPIN_A] = { "spin a", 1, 0, 0 },
        [SPIN_B] = { "spin b", 1, 0, 0 },
        [SLEEPER] = { "sleeper", 20, 20, 1 },
};

static int collect(void)
{
        static u32 messages[PROCESSES], sum[PROCESSES], last[PROCESSES];
        u32 outstanding = 0, wrong = 0;
        struct message m;

        for (int i = 0; i < PROCESSES; i++)
                outstanding += results[i].messages;
        while (outstanding--) {
                syscall(SYS_RECEIVE, (u32)&m, 0);
                messages[m.from]++;
                sum[m.from] += m.value;
                last[m.from] = m.value;
        }
        syscall(SYS_SLEEP, 5, 0);       /* nobody else is left: the machine idles */
        printf("worker     messages        sum       last\n");
        for (int i = PRIMES; i <= SLEEPER; i++) {
                int right = messages[i] == results[i].messages && sum[i] == results[i].sum && last[i] == results[i].last;
                printf("%-10s %8u %10u %10u  %s\n", results[i].name, messages[i], sum[i], last[i], right ? "ok" : "FAIL");
                wrong += !right;
        }
        return wrong;
}

int main(void)
{
        switch (syscall(SYS_GETPID, 0, 0)) {
        case COLLECTOR:
                return collect();
        case PRIMES:
                primes();
                break;
        case CRC:
                crc();
                break;
        case SORT:
                sort();
                break;
        case PI:
                integrate(1);
                break;
        case LOGARITHM:
                integrate(0);
                break;
        case SPIN_A:
        case SPIN_B:
                spin();
                break;
        case SLEEPER:
                sleeper();
                break;
        case TRESPASSER:                /* the kernel's memory: ends here */
                return *(volatile u8 *)0xc0100000;
        case OUTLAW:                    /* not allowed in ring 3: ends here */
                asm volatile ("cli");
        }
        return 0;
}
