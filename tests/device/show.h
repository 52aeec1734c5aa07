/* Reads .nxt files with nxt.h and tells what is in them; host.c and board.c say where the words go. */
#define NXT_IMPLEMENTATION
#include "nxt.h"

static void say(const char *text, size_t size);
static uint8_t *borrow(int which, size_t size); /* memory of exactly so many bytes, NULL if there are not so many */
static uint32_t ticks(void);
static void paint(void);
static uint32_t painted_over(void);

static uint32_t told; /* checksum of all that was read */

static void word(const char *text) { say(text, strlen(text)); }

static void number(long value)
{
    char digits[24];
    size_t at = sizeof digits;
    unsigned long left = value < 0 ? 0ul - (unsigned long)value : (unsigned long)value;
    do digits[--at] = (char)('0' + left % 10); while (left /= 10);
    if (value < 0) digits[--at] = '-';
    digits[--at] = ' ';
    say(digits + at, sizeof digits - at);
}

static void hex(const uint8_t *bytes, size_t size)
{
    static const char digits[] = "0123456789abcdef";
    char line[128];
    size_t i = 0, k;
    word(" ");
    while (i < size) {
        for (k = 0; k < sizeof line && i < size; i++, k += 2) {
            line[k] = digits[bytes[i] >> 4];
            line[k + 1] = digits[bytes[i] & 15];
        }
        say(line, k);
    }
}

static void count_in(const void *bytes, size_t size) { told = nxt__crc(told, (const uint8_t *)bytes, size); }

static void count_number(size_t value)
{
    uint8_t bytes[4];
    size_t k;
    for (k = 0; k < 4; k++) bytes[k] = (uint8_t)(value >> 8 * k);
    count_in(bytes, 4);
}

/* One tensor, read with the scratch it needs and with what makes it fast; both must give the same. */
static int show_tensor(nxt_file *file, size_t index, int whole)
{
    nxt_tensor t;
    size_t need[2], k;
    uint32_t first = 0, spent[2] = {0, 0}, stack = 0;
    uint8_t *out = NULL, *scratch;
    int error = nxt_at(file, index, &t);
    if (error) return error;
    if (nxt_find(file, t.name, &t)) return -100;
    for (k = 0; k < 2; k++) {
        need[k] = nxt_scratch_bytes(file, &t, (int)k);
        out = borrow(0, t.nbytes);
        scratch = borrow(1, need[k]);
        if (!out || !scratch) return -101;
        if (need[k] && !k && nxt_read(file, &t, out, t.nbytes, scratch, need[k] / 2) == NXT_OK && need[k] > 8) return -102;
        if (t.nbytes && nxt_read(file, &t, out, t.nbytes - 1, scratch, need[k]) != NXT_E_OUT) return -103;
        memset(out, 0xA5, t.nbytes);
        paint();
        spent[k] = ticks();
        error = nxt_read(file, &t, out, t.nbytes, scratch, need[k]);
        spent[k] = ticks() - spent[k];
        stack = painted_over();
        if (error) return error;
        if (k && nxt__crc(0, out, t.nbytes) != first) return -104;
        first = nxt__crc(0, out, t.nbytes);
    }
    count_in(t.name, strlen(t.name) + 1);
    count_number((size_t)t.dtype);
    count_number(t.symbols);
    for (k = 0; k < t.ndim; k++) count_number(t.dims[k]);
    count_in(out, t.nbytes);
    if (!whole) return NXT_OK;
    word("tensor");
    number((long)need[0]);
    number((long)need[1]);
    number((long)spent[0]);
    number((long)spent[1]);
    number((long)stack);
    number(t.dtype);
    number((long)t.symbols);
    number((long)t.ndim);
    for (k = 0; k < t.ndim; k++) number((long)t.dims[k]);
    word(" ");
    word(t.name);
    hex(out, t.nbytes);
    word("\n");
    return NXT_OK;
}

/* One line for the file, and with `whole` one for each tensor before it. */
static void show(const uint8_t *data, size_t size, int whole)
{
    nxt_file file;
    size_t i;
    uint32_t spent, stack;
    int error, first;
    told = 0;
    paint();
    spent = ticks();
    first = error = nxt_open(&file, data, size, NULL, 0);
    if (error == NXT_E_SCRATCH) {
        size_t need = file.scratch_needed;
        uint8_t *scratch = borrow(2, need);
        error = scratch ? nxt_open(&file, data, size, scratch, need) : -105;
    }
    spent = ticks() - spent;
    stack = painted_over();
    if (!error) count_in(file.meta, file.meta_size);
    for (i = 0; !error && i < file.tensors; i++) error = show_tensor(&file, i, whole);
    word("file");
    number(error);
    number((long)told);
    if (whole) {
        number(first);
        number((long)file.tensors);
        number((long)file.scratch_needed);
        number((long)spent);
        number((long)stack);
    }
    word("\n");
}
