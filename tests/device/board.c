/* Start-up, output and a clock for the Cortex-M boards mps2 under qemu-system-arm; nothing of a system but string.h. */
#include "show.h"

#ifndef WHOLE
#define WHOLE 1
#endif

extern const uint8_t *const files[]; /* ended by NULL */
extern const size_t sizes[];
extern uint8_t stack_low[], stack_top[], data_from[], data_start[], data_end[], bss_start[], bss_end[];

void start(void);

static long semihost(long operation, const void *arguments)
{
    register long r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = arguments;
    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static void leave(void)
{
    semihost(0x18, (const void *)0x20026); /* the application ends */
    for (;;) {}
}

static void fault(void)
{
    semihost(4, "fault\n");
    leave();
}

__attribute__((used, section(".vectors"))) static const struct {
    const uint8_t *stack;
    void (*handlers[7])(void);
} vectors = {stack_top, {start, fault, fault, fault, fault, fault, NULL}};

static void say(const char *text, size_t size)
{
    static char line[4096];
    static size_t used;
    static long out = -1;
    if (out < 0) { /* the console, opened for writing */
        struct { const char *name; long mode, size; } open = {":tt", 4, 3};
        out = semihost(1, &open);
    }
    if (used + size > sizeof line || !text) {
        struct { long file; const char *at; size_t size; } write = {out, line, used};
        while (write.size) { /* it says how much it did not write */
            size_t left = (size_t)semihost(5, &write);
            write.at += write.size - left;
            write.size = left;
        }
        used = 0;
    }
    if (text) memcpy(line + used, text, size);
    used += size;
}

static uint8_t *borrow(int which, size_t size)
{
    static uint8_t room[3][1 << 20];
    return size < sizeof room[0] ? room[which] + 1 : NULL;
}

/* SysTick counts down at 25 MHz, which is forty instructions under -icount shift=0. */
static uint32_t ticks(void) { return 0xFFFFFF - *(volatile uint32_t *)0xE000E018; }

static uint8_t *lowest(void)
{
    uint8_t *here;
    __asm__ volatile("mov %0, sp" : "=r"(here));
    return here;
}

static uint8_t *painted; /* the stack is free below */

__attribute__((noinline)) static void paint(void)
{
    volatile uint8_t *at = stack_low;
    painted = lowest();
    while (at < painted) *at++ = 0x5A;
}

__attribute__((noinline)) static uint32_t painted_over(void)
{
    const uint8_t *at = stack_low;
    while (at < painted && *at == 0x5A) at++;
    return (uint32_t)(painted - at);
}

void start(void)
{
    size_t i;
    memcpy(data_start, data_from, (size_t)(data_end - data_start));
    memset(bss_start, 0, (size_t)(bss_end - bss_start));
    *(volatile uint32_t *)0xE000E014 = 0xFFFFFF;
    *(volatile uint32_t *)0xE000E018 = 0;
    *(volatile uint32_t *)0xE000E010 = 5;
    for (i = 0; files[i]; i++) show(files[i], sizes[i], WHOLE);
    say(NULL, 0);
    leave();
}
