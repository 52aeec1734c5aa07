/* nxt.h: reads the .nxt files of enxuto, version 2, from memory. One header, C99, for hosts and for microcontrollers.

   No allocation, no recursion, no floating point; of libc only string.h. Every length, count and offset is checked before
   it is used: what is damaged is refused. Bytes are read one by one, so that neither alignment nor byte order matter.

   In one C file:      #define NXT_IMPLEMENTATION
                       #include "nxt.h"
   In the others:      #include "nxt.h"

       nxt_file file;
       nxt_tensor weight;
       int error = nxt_open(&file, model, sizeof model, scratch, sizeof scratch);
       if (!error) error = nxt_find(&file, "fc.weight", &weight);
       if (!error) error = nxt_read(&file, &weight, values, sizeof values, scratch, sizeof scratch);
       if (error) puts(nxt_error(error));

   To leave out what your files do not use (a tensor that does is refused with NXT_E_LEFT_OUT), define before including:
   NXT_NO_ADAPTIVE, NXT_NO_TEXT (also the coded index), NXT_NO_CLASSES, NXT_NO_RUNS, NXT_NO_PLANES, NXT_NO_SPARSE and
   NXT_NO_MESSAGES. NXT_API may be defined as `static`. See docs/device.md; the format is in docs/format.md. */
#ifndef NXT_H
#define NXT_H

#include <stddef.h>
#include <stdint.h>

#ifndef NXT_API
#define NXT_API extern
#endif

#define NXT_VERSION 2
#define NXT_MOST_AXES 32

#ifdef __cplusplus
extern "C" {
#endif

enum {
    NXT_OK = 0,
    NXT_E_FORMAT = -1,   /* these bytes are no .nxt file */
    NXT_E_VERSION = -2,  /* another version of the format */
    NXT_E_DAMAGED = -3,  /* altered, cut off, or it contradicts itself */
    NXT_E_MISSING = -4,  /* no tensor of that name or number */
    NXT_E_OUT = -5,      /* `out` is smaller than the tensor's `nbytes` */
    NXT_E_SCRATCH = -6,  /* more scratch is needed: file.scratch_needed, or nxt_scratch_bytes() */
    NXT_E_LEFT_OUT = -7  /* needs a method that was left out when nxt.h was compiled */
};

enum {
    NXT_BOOL, NXT_UINT8, NXT_UINT16, NXT_UINT32, NXT_UINT64, NXT_INT8, NXT_INT16, NXT_INT32, NXT_INT64,
    NXT_FLOAT16, NXT_FLOAT32, NXT_FLOAT64, NXT_COMPLEX64, NXT_COMPLEX128, NXT_BFLOAT16, NXT_FLOAT8_E4M3FN, NXT_FLOAT8_E5M2
};

/* Where a stream stands: private. */
typedef struct {
    size_t length_at;  /* of its length, in the index */
    size_t offset;     /* in the file */
    size_t number;
    size_t block;      /* blocks that began before or here */
    size_t block_left; /* streams of the current block from here on */
} nxt_place;

typedef struct {
    const char *meta;      /* JSON, not ended by a zero and not looked at */
    size_t meta_size;
    size_t tensors;        /* nxt_at takes 0 to tensors - 1 */
    size_t scratch_kept;   /* bytes at the begin of nxt_open's scratch that hold names and meta: leave them alone. 0 if plain */
    size_t scratch_needed; /* by nxt_open, which gave NXT_E_SCRATCH */
    const uint8_t *data;   /* from here on private */
    const uint8_t *text;
    const uint8_t *sums;
    size_t size, text_size, names, kinds, kind_count, choices, sizes, lengths, streams, shelves, verified;
} nxt_file;

typedef struct {
    const char *name; /* ended by a zero; UTF-8 */
    int dtype;        /* NXT_FLOAT32, ... */
    unsigned ndim;
    size_t dims[NXT_MOST_AXES];
    uint32_t symbols; /* different codes, one an element of NXT_UINT8 or NXT_UINT16; 0: the elements are no codes */
    size_t count;     /* elements */
    size_t itemsize;
    size_t nbytes;    /* count * itemsize: what nxt_read fills */
    size_t piece;     /* from here on private */
    size_t skip;
    size_t shelf;     /* which it lies on, from 1; 0: it has streams of its own */
    size_t shelf_at;  /* elements before it on there */
    size_t shelf_count;
    nxt_place place;
} nxt_tensor;

/* Looks at magic, version, checksum and index. `data` is kept, not copied. A plain index needs no scratch (NULL, 0); a coded
   one needs file.scratch_needed bytes (8 KiB more halve its time), of which the first file.scratch_kept must stay as they are while
   the file is in use. Scratch may begin at any address. */
NXT_API int nxt_open(nxt_file *file, const void *data, size_t size, void *scratch, size_t scratch_size);

/* The tensor of that name, or number `index` in the order of the file; its elements are not touched. */
NXT_API int nxt_find(const nxt_file *file, const char *name, nxt_tensor *tensor);
NXT_API int nxt_at(const nxt_file *file, size_t index, nxt_tensor *tensor);

/* The scratch that nxt_read needs for this tensor; with `fast`, what it can use to read several times faster. 0 as well
   where the tensor is damaged, which nxt_read then says. */
NXT_API size_t nxt_scratch_bytes(const nxt_file *file, const nxt_tensor *tensor, int fast);

/* Checks the checksums over the tensor and fills `out` with its elements, little endian. `scratch` must not overlap with
   what nxt_open kept. After an error `out` holds anything. */
NXT_API int nxt_read(nxt_file *file, const nxt_tensor *tensor, void *out, size_t out_size, void *scratch, size_t scratch_size);

/* What an error means, in words. */
NXT_API const char *nxt_error(int error);

#ifdef __cplusplus
}
#endif
#endif /* NXT_H */

#ifdef NXT_IMPLEMENTATION
#ifndef NXT_IMPLEMENTED
#define NXT_IMPLEMENTED

#include <string.h>

#if SIZE_MAX < 0xFFFFFFFF
#error "nxt.h needs a size_t of at least 32 bits"
#endif
typedef char nxt__shifts_keep_the_sign[(-3 >> 1) == -2 ? 1 : -1];

/* Scratch is the caller's array of any type: these may overlap with it in the eyes of the compiler. */
#if defined(__GNUC__)
typedef uint32_t __attribute__((__may_alias__)) nxt__u32;
typedef uint16_t __attribute__((__may_alias__)) nxt__u16;
typedef int16_t __attribute__((__may_alias__)) nxt__i16;
#define NXT__ALONE __attribute__((__noinline__)) /* so that the stack holds one of them at a time */
#else
typedef uint32_t nxt__u32;
typedef uint16_t nxt__u16;
typedef int16_t nxt__i16;
#define NXT__ALONE
#endif

enum {
    NXT__CONSTANT, NXT__RAW, NXT__STATIC, NXT__ADAPTIVE, NXT__CLASSES, NXT__RUNS, NXT__TEXT, NXT__NARROW, NXT__PLANES, NXT__SPARSE
};

#define NXT__PIECE ((size_t)1 << 22) /* elements that one stream holds */
#define NXT__SHELF ((size_t)1 << 12) /* elements that a shelf holds */
#define NXT__BLOCK ((size_t)1 << 12) /* bytes of streams that have one checksum */
#define NXT__MOST ((size_t)1 << 20)  /* codes of an adaptive stream, letters of a text */
#define NXT__LANES 8u
#define NXT__TRY(call) do { int nxt__error = (call); if (nxt__error) return nxt__error; } while (0)

/* ---- bytes ---- */

typedef struct {
    const uint8_t *at;
    size_t size;
} nxt__in;

typedef struct {
    uint8_t *at;
    size_t left;
} nxt__arena;

static uint32_t nxt__le16(const uint8_t *at) { return (uint32_t)at[0] | (uint32_t)at[1] << 8; }

static uint32_t nxt__le32(const uint8_t *at) { return nxt__le16(at) | nxt__le16(at + 2) << 16; }

/* A multiple of four bytes at an address that is one; NULL if there are not so many. */
static void *nxt__take(nxt__arena *arena, size_t bytes)
{
    size_t odd = (size_t)(-(uintptr_t)arena->at & 3u);
    void *found;
    bytes += (0u - bytes) & 3u;
    if (arena->left < odd || arena->left - odd < bytes) return NULL;
    found = arena->at + odd;
    arena->at += odd + bytes;
    arena->left -= odd + bytes;
    return found;
}

/* A number of seven bits a byte; one that does not fit counts as the largest, which every check refuses. */
static int nxt__varint(nxt__in *in, size_t *value)
{
    size_t found = 0;
    unsigned i;
    for (i = 0; i < 9 && i < in->size; i++) {
        size_t byte = in->at[i], part = byte & 0x7Fu;
        unsigned shift = 7 * i;
        if (part && (shift >= sizeof(size_t) * 8 || part > SIZE_MAX >> shift)) found = SIZE_MAX;
        else if (part) found |= part << shift;
        if (byte < 0x80) {
            if (!byte && i) return NXT_E_DAMAGED;
            in->at += i + 1;
            in->size -= i + 1;
            *value = found;
            return NXT_OK;
        }
    }
    return NXT_E_DAMAGED;
}

static int nxt__byte(nxt__in *in, size_t *value)
{
    if (!in->size) return NXT_E_DAMAGED;
    *value = *in->at++;
    in->size--;
    return NXT_OK;
}

/* Cuts off the next `size` bytes. */
static int nxt__cut(nxt__in *in, size_t size, nxt__in *part)
{
    if (size > in->size) return NXT_E_DAMAGED;
    part->at = in->at;
    part->size = size;
    in->at += size;
    in->size -= size;
    return NXT_OK;
}

#if !defined(NXT_NO_CLASSES) || !defined(NXT_NO_RUNS) || !defined(NXT_NO_PLANES) || !defined(NXT_NO_SPARSE)
/* The next part of several, which stands behind its length unless it is the last. */
static int nxt__part(nxt__in *in, int last, nxt__in *part)
{
    size_t size = in->size;
    if (!last) NXT__TRY(nxt__varint(in, &size));
    return nxt__cut(in, size, part);
}
#endif

static size_t nxt__product(size_t a, size_t b) { return b && a > SIZE_MAX / b ? SIZE_MAX : a * b; }

/* The bits that `symbols - 1` takes. */
static unsigned nxt__width(uint32_t symbols)
{
    unsigned bits = 0;
    for (symbols--; symbols; symbols >>= 1) bits++;
    return bits;
}

static uint32_t nxt__crc(uint32_t crc, const uint8_t *at, size_t size)
{
    static const uint32_t table[16] = {
        0x00000000, 0x1DB71064, 0x3B6E20C8, 0x26D930AC, 0x76DC4190, 0x6B6B51F4, 0x4DB26158, 0x5005713C,
        0xEDB88320, 0xF00F9344, 0xD6D6A3E8, 0xCB61B38C, 0x9B64C2B0, 0x86D3D2D4, 0xA00AE278, 0xBDBDF21C};
    crc = ~crc;
    while (size--) {
        crc ^= *at++;
        crc = crc >> 4 ^ table[crc & 15];
        crc = crc >> 4 ^ table[crc & 15];
    }
    return ~crc;
}

/* ---- where codes go ---- */

typedef struct {
    uint8_t *out;
    size_t stride; /* bytes from one code to the next */
    unsigned wide; /* bytes of a code; 0: one bit each, in memory that is zero */
} nxt__sink;

static void nxt__put(const nxt__sink *to, size_t i, uint32_t code)
{
    if (to->wide) {
        uint8_t *at = to->out + i * to->stride;
        at[0] = (uint8_t)code;
        if (to->wide > 1) at[1] = (uint8_t)(code >> 8);
    } else if (code) {
        to->out[i >> 3] = (uint8_t)(to->out[i >> 3] | 1u << (i & 7));
    }
}

/* ---- simple streams (constant, raw, static), code by code ---- */

typedef struct {
    const uint8_t *at;
    size_t size;     /* words of a static stream, else bytes */
    size_t next;     /* word or bit that is read next */
    size_t count;
    unsigned method;
    unsigned bits;   /* of a raw code; precision of a static stream */
    uint32_t symbols;
    uint32_t value;  /* of a constant; lane of a static stream */
    uint32_t bad;
    uint32_t used;   /* symbols that occur */
    uint32_t state[NXT__LANES];
    const nxt__u32 *entries; /* start << 16 | symbol, for each that occurs, and the end of the last */
    const uint8_t *slots;    /* the entry for each place in a sum of 2^bits; NULL: they are searched */
} nxt__simple;

typedef struct {
    nxt__in in;
    unsigned shift; /* bits taken of the first byte */
} nxt__bits;

/* The next bits, highest first; those behind the end of the data are refused. */
static int nxt__bits_take(nxt__bits *from, unsigned bits, uint32_t *value)
{
    uint32_t found = 0;
    while (bits--) {
        if (!from->in.size) return NXT_E_DAMAGED;
        found = found << 1 | (*from->in.at >> (7 - from->shift) & 1u);
        if (++from->shift == 8) {
            from->shift = 0;
            from->in.at++;
            from->in.size--;
        }
    }
    *value = found;
    return NXT_OK;
}

static int nxt__golomb(nxt__bits *from, unsigned order, uint32_t *value)
{
    unsigned zeros = 0;
    uint32_t bit, head, low;
    for (;;) {
        NXT__TRY(nxt__bits_take(from, 1, &bit));
        if (bit) break;
        if (++zeros > 16) return NXT_E_DAMAGED;
    }
    NXT__TRY(nxt__bits_take(from, zeros, &head));
    NXT__TRY(nxt__bits_take(from, order, &low));
    head = ((uint32_t)1 << zeros | head) - 1; /* below 2^17, and orders are below 16 */
    *value = (head << order) + low;
    return NXT_OK;
}

/* Reads a table: how many symbols occur, and what follows it. Fills `entries`, room for that many and one, unless NULL. */
static int nxt__table(nxt__in *in, uint32_t symbols, unsigned *precision, uint32_t *used, nxt__u32 *entries)
{
    nxt__bits from;
    uint32_t order, mode, value, left, at = 0, found = 0, placed = 0, start = 0, k;
    from.in = *in;
    from.shift = 0;
    NXT__TRY(nxt__bits_take(&from, 4, &value));
    NXT__TRY(nxt__bits_take(&from, 4, &order));
    NXT__TRY(nxt__bits_take(&from, nxt__width(symbols), &mode));
    if (value < 8 || value > 14 || value & 1 || mode >= symbols) return NXT_E_DAMAGED;
    *precision = (unsigned)value;
    left = (uint32_t)1 << value;
    while (at < symbols - 1) { /* all but the mode, whose frequency is what the others leave */
        NXT__TRY(nxt__golomb(&from, (unsigned)order, &value));
        if (value >= left) return NXT_E_DAMAGED;
        left -= value;
        if (!placed && at >= mode) {
            if (entries) entries[found] = mode;
            found++;
            placed = 1;
        }
        if (value) {
            if (entries) entries[found] = value << 16 | (at + placed);
            found++;
        }
        at++;
        if (!value) {
            NXT__TRY(nxt__golomb(&from, 0, &value));
            if (value > symbols - 1 - at) return NXT_E_DAMAGED;
            at += value;
        }
    }
    if (!placed) {
        if (entries) entries[found] = mode;
        found++;
    }
    if (from.shift) {
        NXT__TRY(nxt__bits_take(&from, 8 - from.shift, &value));
        if (value) return NXT_E_DAMAGED;
    }
    *in = from.in;
    *used = found;
    if (!entries) return NXT_OK;
    for (k = 0; k < found; k++) {
        value = entries[k] >> 16 ? entries[k] >> 16 : left;
        entries[k] = start << 16 | (entries[k] & 0xFFFF);
        start += value;
    }
    entries[found] = start << 16;
    return NXT_OK;
}

/* Opens a stream of `count` codes; a static one takes its table from the arena. */
static int nxt__open(nxt__simple *s, nxt__in in, size_t count, uint32_t symbols, nxt__arena *arena)
{
    size_t method = NXT__CONSTANT, k;
    nxt__u32 *entries;
    nxt__in table;
    memset(s, 0, sizeof *s);
    if (!count != !in.size) return NXT_E_DAMAGED;
    s->count = count;
    s->symbols = symbols;
    if (!count) return NXT_OK;
    NXT__TRY(nxt__byte(&in, &method));
    s->method = (unsigned)method;
    if (method == NXT__CONSTANT) {
        if (in.size > 2 || (in.size && !in.at[in.size - 1])) return NXT_E_DAMAGED;
        for (k = 0; k < in.size; k++) s->value |= (uint32_t)in.at[k] << 8 * k;
        if (s->value >= symbols) return NXT_E_DAMAGED;
    } else if (method == NXT__RAW && symbols > 1) {
        s->bits = nxt__width(symbols);
        if (count > SIZE_MAX / 16 || in.size != (count * s->bits + 7) / 8) return NXT_E_DAMAGED;
        k = count * s->bits % 8;
        if (k && in.at[in.size - 1] >> k) return NXT_E_DAMAGED;
    } else if (method == NXT__STATIC && symbols > 1) {
        table = in;
        NXT__TRY(nxt__table(&table, symbols, &s->bits, &s->used, NULL));
        entries = (nxt__u32 *)nxt__take(arena, ((size_t)s->used + 1) * 4);
        if (!entries) return NXT_E_SCRATCH;
        NXT__TRY(nxt__table(&in, symbols, &s->bits, &s->used, entries));
        s->entries = entries;
        if (in.size < 4 * NXT__LANES || in.size % 2) return NXT_E_DAMAGED;
        for (k = 0; k < NXT__LANES; k++) s->state[k] = nxt__le32(in.at + 4 * k);
        in.at += 4 * NXT__LANES;
        in.size = (in.size - 4 * NXT__LANES) / 2;
    } else {
        return NXT_E_DAMAGED;
    }
    s->at = in.at;
    s->size = in.size;
    return NXT_OK;
}

/* Where scratch is left: a byte for each place of the sum, instead of searching for each code. */
static void nxt__hasten(nxt__simple *s, nxt__arena *arena)
{
    uint8_t *slots;
    uint32_t k;
    if (s->method != NXT__STATIC || s->used > 256) return;
    slots = (uint8_t *)nxt__take(arena, (size_t)1 << s->bits);
    for (k = 0; slots && k < s->used; k++)
        memset(slots + (s->entries[k] >> 16), (int)k, (s->entries[k + 1] >> 16) - (s->entries[k] >> 16));
    s->slots = slots;
}

static uint32_t nxt__next_static(nxt__simple *s)
{
    uint32_t x = s->state[s->value], slot = x & (((uint32_t)1 << s->bits) - 1), entry, start;
    size_t low = 0;
    if (s->slots) {
        low = s->slots[slot];
    } else {
        size_t high = s->used;
        while (high - low > 1) {
            size_t middle = (low + high) >> 1;
            if (s->entries[middle] >> 16 <= slot) low = middle;
            else high = middle;
        }
    }
    entry = s->entries[low];
    start = entry >> 16;
    x = ((s->entries[low + 1] >> 16) - start) * (x >> s->bits) + slot - start;
    if (x < 0x10000) {
        x <<= 16;
        if (s->next < s->size) x |= nxt__le16(s->at + 2 * s->next);
        s->next++;
    }
    s->state[s->value] = x;
    s->value = (s->value + 1) % NXT__LANES;
    return entry & 0xFFFF;
}

/* The next code. Of codes that are not below `symbols` gives 0 instead, which nxt__close reports. */
static uint32_t nxt__next(nxt__simple *s)
{
    uint32_t code;
    unsigned shift;
    if (s->method == NXT__STATIC) return nxt__next_static(s);
    if (s->method == NXT__CONSTANT) return s->value;
    shift = s->next & 7;
    code = (uint32_t)s->at[s->next >> 3] >> shift; /* count * bits were checked to lie inside */
    if (shift + s->bits > 8) code |= (uint32_t)s->at[(s->next >> 3) + 1] << (8 - shift);
    if (shift + s->bits > 16) code |= (uint32_t)s->at[(s->next >> 3) + 2] << (16 - shift);
    s->next += s->bits;
    code &= ((uint32_t)1 << s->bits) - 1;
    if (code < s->symbols) return code;
    s->bad = 1;
    return 0;
}

/* Behind the last code: whether the stream ends where it must. */
static int nxt__close(nxt__simple *s)
{
    unsigned k;
    if (s->method == NXT__STATIC && s->count) {
        while (s->value) nxt__next_static(s); /* filled up to a multiple of eight */
        for (k = 0; k < NXT__LANES; k++) s->bad |= s->state[k] != 0x10000;
        s->bad |= s->next != s->size;
    }
    return s->bad ? NXT_E_DAMAGED : NXT_OK;
}

static size_t nxt__simple_need(nxt__in in, uint32_t symbols, int fast)
{
    size_t method, need;
    uint32_t used;
    unsigned precision;
    if (nxt__byte(&in, &method) || method != NXT__STATIC) return 0;
    if (nxt__table(&in, symbols, &precision, &used, NULL)) return 0;
    need = ((size_t)used + 1) * 4;
    if (fast && used <= 256) need += (size_t)1 << precision;
    return need;
}

NXT__ALONE static int nxt__simple_codes(nxt__in in, size_t count, uint32_t symbols, const nxt__sink *to, nxt__arena arena)
{
    nxt__simple s;
    size_t i;
    NXT__TRY(nxt__open(&s, in, count, symbols, &arena));
    nxt__hasten(&s, &arena);
    if (s.method == NXT__STATIC && to->wide == 1) { /* what is read most, without asking for each code how */
        uint8_t *out = to->out;
        for (i = 0; i < count; i++, out += to->stride) *out = (uint8_t)nxt__next_static(&s);
    } else {
        for (i = 0; i < count; i++) nxt__put(to, i, nxt__next(&s));
    }
    return nxt__close(&s);
}

/* ---- classes: lines of a matrix, each under the model of its class ---- */

#ifndef NXT_NO_CLASSES
typedef struct {
    size_t lines, line, across, along; /* codes of a line; from line to line; from code to code */
    uint32_t classes;
} nxt__classes;

static int nxt__classes_head(nxt__in *in, size_t count, nxt__classes *c)
{
    size_t first, stride, classes;
    NXT__TRY(nxt__varint(in, &first));
    NXT__TRY(nxt__byte(in, &classes));
    stride = first / 2;
    if (!stride || stride > count || count % stride || classes < 2 || classes > 16) return NXT_E_DAMAGED;
    c->classes = (uint32_t)classes;
    c->lines = first % 2 ? stride : count / stride;
    c->line = first % 2 ? count / stride : stride;
    c->across = first % 2 ? 1 : stride;
    c->along = first % 2 ? stride : 1;
    return NXT_OK;
}

/* The class of each line is read anew for each class, so that no memory is needed for it. */
NXT__ALONE static int nxt__classes_codes(nxt__in in, size_t count, uint32_t symbols, const nxt__sink *to, nxt__arena arena)
{
    nxt__classes c;
    nxt__in map, part;
    nxt__simple lines, codes;
    nxt__arena inner;
    uint32_t each;
    size_t i, k, chosen;
    NXT__TRY(nxt__classes_head(&in, count, &c));
    NXT__TRY(nxt__part(&in, 0, &map));
    for (each = 0; each < c.classes; each++) {
        NXT__TRY(nxt__part(&in, each + 1 == c.classes, &part));
        inner = arena;
        NXT__TRY(nxt__open(&lines, map, c.lines, c.classes, &inner));
        for (i = chosen = 0; i < c.lines; i++) chosen += nxt__next(&lines) == each;
        NXT__TRY(nxt__close(&lines));
        inner = arena;
        NXT__TRY(nxt__open(&lines, map, c.lines, c.classes, &inner));
        NXT__TRY(nxt__open(&codes, part, chosen * c.line, symbols, &inner));
        nxt__hasten(&codes, &inner);
        for (i = 0; i < c.lines; i++) {
            if (nxt__next(&lines) != each) continue;
            for (k = 0; k < c.line; k++) nxt__put(to, i * c.across + k * c.along, nxt__next(&codes));
        }
        NXT__TRY(nxt__close(&codes));
    }
    return NXT_OK;
}

static size_t nxt__classes_need(nxt__in in, size_t count, uint32_t symbols, int fast)
{
    nxt__classes c;
    nxt__in map, part;
    size_t most = 0, need;
    uint32_t each;
    if (nxt__classes_head(&in, count, &c) || nxt__part(&in, 0, &map)) return 0;
    for (each = 0; each < c.classes && !nxt__part(&in, each + 1 == c.classes, &part); each++) {
        need = nxt__simple_need(part, symbols, fast);
        if (need > most) most = need;
    }
    return most + nxt__simple_need(map, c.classes, 0);
}
#endif

/* ---- runs of the mode, and the codes between them, in step ---- */

#ifndef NXT_NO_RUNS
static int nxt__runs_head(nxt__in *in, size_t *mode, size_t *runs, nxt__in *first)
{
    NXT__TRY(nxt__varint(in, mode));
    NXT__TRY(nxt__varint(in, runs));
    return nxt__part(in, 0, first); /* the second is what remains */
}

NXT__ALONE static int nxt__runs_codes(nxt__in in, size_t count, uint32_t symbols, const nxt__sink *to, nxt__arena arena)
{
    nxt__simple lengths, codes;
    nxt__arena inner = arena;
    nxt__in first;
    size_t mode, runs, i, k, length = 255, filled = 0, others = 0;
    NXT__TRY(nxt__runs_head(&in, &mode, &runs, &first));
    if (mode >= symbols || runs < 1 || runs > count + 1) return NXT_E_DAMAGED;
    NXT__TRY(nxt__open(&lengths, first, runs, 256, &inner));
    for (i = 0; i < runs; i++) { /* before anything is written: do they fill the codes exactly? */
        length = nxt__next(&lengths);
        others += length < 255;
        filled += length + (length < 255);
        if (filled > count + 1) return NXT_E_DAMAGED;
    }
    NXT__TRY(nxt__close(&lengths));
    if (length == 255 || filled != count + 1) return NXT_E_DAMAGED;
    NXT__TRY(nxt__open(&lengths, first, runs, 256, &arena));
    NXT__TRY(nxt__open(&codes, in, others - 1, symbols, &arena));
    nxt__hasten(&lengths, &arena);
    nxt__hasten(&codes, &arena);
    for (i = filled = 0; i < runs; i++) {
        length = nxt__next(&lengths);
        for (k = 0; k < length; k++) nxt__put(to, filled++, (uint32_t)mode);
        if (length < 255 && filled < count) nxt__put(to, filled++, nxt__next(&codes));
    }
    return nxt__close(&codes);
}
#endif

/* ---- adaptive streams and texts: a binary range coder under mixed contexts ---- */

#if !defined(NXT_NO_ADAPTIVE) || !defined(NXT_NO_TEXT)
#define NXT__CONTEXTS 4u /* of a code */
#define NXT__ORDERS 6u   /* contexts of a letter */
#define NXT__LEVELS 26u
#define NXT__SLOT_BITS 15
#define NXT__HALF 3072
#define NXT__STRETCHES 4096u
#define NXT__SCATTER 0x2F0B4C47u

/* 65536 / (1 + exp(-x)) for x = -12, -11.5, ... 12 */
static const uint16_t nxt__squashes[49] = {
    1, 1, 1, 2, 3, 5, 8, 13, 22, 36, 60, 98, 162, 267, 439, 720, 1179, 1921, 3108, 4971, 7812, 11955, 17625, 24743, 32768,
    40793, 47911, 53581, 57724, 60565, 62428, 63615, 64357, 64816, 65097, 65269, 65374, 65438, 65476, 65500, 65514, 65523,
    65528, 65531, 65533, 65534, 65535, 65535, 65535};

typedef struct {
    const uint8_t *at;
    size_t size, next;
    uint32_t code, range; /* a range of 2^32, which only the first bit meets, is 0 */
    uint32_t last_age, slow; /* a chance learns by 2 / (2 age + slow) */
    unsigned contexts;
    size_t place[NXT__ORDERS];        /* of the chance that each context has for the next bit */
    int32_t weights[42]; /* 10 parts of 4 contexts, or 7 of 6; of 65536; below 2^27: 2^23 bits, each a small step downhill */
    nxt__u16 *chances, *ages;
    nxt__i16 *stretches; /* NULL: worked out each time */
} nxt__mix;

/* Chances and ages; the table of logarithms is optional. */
static size_t nxt__mix_need(size_t chances, int fast) { return 4 * chances + (fast ? 2 * NXT__STRETCHES : 0); }

/* The logarithm of the odds of a probability, in 4096ths: the first place where squash reaches it. */
static int32_t nxt__stretch(uint32_t chance)
{
    uint32_t wanted = 16 * chance + 8, low = 0, high = 48, rise;
    int32_t found;
    while (high - low > 1) {
        uint32_t middle = (low + high) >> 1;
        if (nxt__squashes[middle] < wanted) low = middle;
        else high = middle;
    }
    rise = (uint32_t)nxt__squashes[low + 1] - nxt__squashes[low];
    found = (int32_t)(128 * low + (128 * (wanted - nxt__squashes[low]) + rise - 1) / rise) - NXT__HALF;
    return found < NXT__HALF ? found : NXT__HALF - 1;
}

static uint32_t nxt__squash(int32_t odds)
{
    uint32_t place = (uint32_t)(odds + NXT__HALF), low = nxt__squashes[place >> 7];
    return low + (((nxt__squashes[(place >> 7) + 1] - low) * (place & 127)) >> 7);
}

static void nxt__mix_byte(nxt__mix *m)
{
    m->code = m->code << 8 | (m->next < m->size ? m->at[m->next] : 0u); /* behind its end, data is zero */
    m->next++;
}

static int nxt__mix_open(
    nxt__mix *m, nxt__in in, size_t chances, unsigned contexts, uint32_t ages, uint32_t slow, nxt__arena *arena)
{
    size_t i;
    unsigned k;
    memset(m, 0, sizeof *m);
    m->at = in.at;
    m->size = in.size;
    m->last_age = ages - 1;
    m->slow = slow;
    m->chances = (nxt__u16 *)nxt__take(arena, 2 * chances);
    m->ages = (nxt__u16 *)nxt__take(arena, 2 * chances);
    if (!m->chances || !m->ages) return NXT_E_SCRATCH;
    for (i = 0; i < chances; i++) m->chances[i] = 1u << 15;
    memset(m->ages, 0, 2 * chances);
    m->contexts = contexts;
    for (k = 0; k < sizeof m->weights / sizeof m->weights[0]; k++) m->weights[k] = 19661; /* 0.3 */
    for (k = 0; k < 4; k++) nxt__mix_byte(m);
    return NXT_OK;
}

static void nxt__mix_hasten(nxt__mix *m, nxt__arena *arena)
{
    uint32_t i;
    m->stretches = (nxt__i16 *)nxt__take(arena, 2 * NXT__STRETCHES);
    for (i = 0; m->stretches && i < NXT__STRETCHES; i++) m->stretches[i] = (int16_t)nxt__stretch(i);
}

/* The next bit, mixed by a part of the weights; one that is known is only learnt from. */
static uint32_t nxt__mix_bit(nxt__mix *m, unsigned part, int known)
{
    int32_t odds[NXT__ORDERS], off, *weights = m->weights + part * m->contexts;
    int64_t total = 0;
    uint32_t bit, p, bound, chance, step;
    unsigned k;
    for (k = 0; k < m->contexts; k++) {
        chance = (uint32_t)m->chances[m->place[k]] >> 4;
        odds[k] = m->stretches ? m->stretches[chance] : nxt__stretch(chance);
        total += (int64_t)weights[k] * odds[k];
    }
    total >>= 16;
    p = nxt__squash(total < -NXT__HALF ? -NXT__HALF : total >= NXT__HALF ? NXT__HALF - 1 : (int32_t)total);
    if (known < 0) {
        bound = (uint32_t)((((uint64_t)(uint32_t)(m->range - 1) + 1) * p) >> 16);
        bit = m->code < bound;
        if (bit) {
            m->range = bound;
        } else {
            m->range -= bound;
            m->code -= bound;
        }
        while (m->range < (uint32_t)1 << 24) {
            nxt__mix_byte(m);
            m->range <<= 8;
        }
    } else {
        bit = (uint32_t)known;
    }
    off = (int32_t)(bit << 16) - (int32_t)p;
    for (k = 0; k < m->contexts; k++) {
        nxt__u16 *age = m->ages + m->place[k];
        weights[k] += (odds[k] * off) >> 15;
        chance = m->chances[m->place[k]];
        step = ((uint32_t)1 << 17) / (2u * *age + m->slow);
        if (bit) chance += ((65536 - chance) * step) >> 16; /* below 2^32, as a chance is from 16 to 65520 */
        else chance -= (chance * step + 65535) >> 16;
        m->chances[m->place[k]] = (uint16_t)(chance < 16 ? 16 : chance > 65520 ? 65520 : chance);
        if (*age < m->last_age) *age = (uint16_t)(*age + 1);
    }
    return bit;
}

static int nxt__mix_runs_dry(const nxt__mix *m) { return m->next > m->size + 64; }

static int nxt__mix_close(const nxt__mix *m)
{
    return m->next < m->size || m->next > m->size + 4 ? NXT_E_DAMAGED : NXT_OK;
}
#endif

#ifndef NXT_NO_ADAPTIVE
/* Twice the bit length of an activity, and its second highest bit. */
static uint32_t nxt__level(uint32_t activity)
{
    uint32_t twice = 0;
    while (activity > 3) {
        activity >>= 1;
        twice += 2;
    }
    return activity > 1 ? twice + 4 + (activity & 1) : twice + 2 * activity;
}

/* Bits of the largest distance from the mode, less one. */
static unsigned nxt__reach(uint32_t symbols, size_t mode)
{
    uint32_t above = symbols - 1 - (uint32_t)mode;
    return nxt__width(above > mode ? above : (uint32_t)mode);
}

static size_t nxt__adaptive_chances(unsigned bits) { return (size_t)(NXT__CONTEXTS * NXT__LEVELS) * (((size_t)1 << bits) + 1); }

NXT__ALONE static int nxt__adaptive_codes(nxt__in in, size_t count, uint32_t symbols, const nxt__sink *to, nxt__arena arena)
{
    nxt__mix m;
    nxt__u16 *columns; /* 16 bits of activity */
    uint8_t *above;    /* whether the code above was another than the mode */
    size_t stride, mode, i, nodes, column = 0;
    unsigned bits, depth, k;
    uint32_t node, size, sign, before = 0, last = 0, level[NXT__CONTEXTS];
    int32_t row = 200, here, beside, activity, mixed, code;
    NXT__TRY(nxt__varint(&in, &stride));
    NXT__TRY(nxt__varint(&in, &mode));
    if (!stride || stride > count || count > NXT__MOST || mode >= symbols || symbols < 2 || symbols > 256) return NXT_E_DAMAGED;
    bits = nxt__reach(symbols, mode);
    nodes = ((size_t)1 << bits) + 1;
    NXT__TRY(nxt__mix_open(&m, in, nxt__adaptive_chances(bits), NXT__CONTEXTS, 400, 5, &arena));
    columns = (nxt__u16 *)nxt__take(&arena, 2 * stride);
    above = (uint8_t *)nxt__take(&arena, stride);
    if (!columns || !above) return NXT_E_SCRATCH;
    nxt__mix_hasten(&m, &arena);
    for (i = 0; i < stride; i++) columns[i] = 200; /* activity before anything was seen, of 65536 */
    memset(above, 0, stride);
    for (i = 0; i < count; i++) {
        if (nxt__mix_runs_dry(&m)) return NXT_E_DAMAGED;
        here = columns[column];
        beside = column ? columns[column - 1] : here;
        beside += column + 1 < stride ? columns[column + 1] : here;
        mixed = (here + row + (beside >> 1)) >> 5;
        level[0] = 0;
        level[1] = before + 4u * above[column];
        level[2] = nxt__level((uint32_t)here >> 4);
        level[3] = nxt__level((uint32_t)(mixed > 4095 ? 4095 : mixed));
        for (k = 0; k < NXT__CONTEXTS; k++) m.place[k] = (k * NXT__LEVELS + level[k]) * nodes;
        code = (int32_t)mode;
        activity = 0;
        above[column] = (uint8_t)nxt__mix_bit(&m, 0, -1);
        before = (before << 1 | above[column]) & 3;
        if (above[column]) {
            level[1] = level[2];
            level[2] = nxt__level((uint32_t)row >> 4);
            level[3] = last;
            for (k = 0; k < NXT__CONTEXTS; k++) m.place[k] = (k * NXT__LEVELS + level[k]) * nodes + nodes - 1;
            sign = nxt__mix_bit(&m, 1, -1);
            level[1] = sign;
            level[3] = last >> 1;
            node = 1;
            for (depth = 0; depth < bits; depth++) {
                for (k = 0; k < NXT__CONTEXTS; k++) m.place[k] = (k * NXT__LEVELS + level[k]) * nodes + node;
                node = node << 1 | nxt__mix_bit(&m, depth + 2, -1);
            }
            size = node - ((uint32_t)1 << bits);
            code += sign ? -1 - (int32_t)size : (int32_t)size + 1;
            last = 2 * ((size * (NXT__LEVELS / 2)) >> bits) + sign;
            activity = (int32_t)(5000 + ((60000 * (size + 1)) >> bits));
        }
        if (code < 0 || (uint32_t)code >= symbols) return NXT_E_DAMAGED;
        nxt__put(to, i, (uint32_t)code);
        columns[column] = (uint16_t)(here + ((activity - here) >> 5));
        row += (activity - row) >> 4;
        if (++column == stride) column = 0;
    }
    return nxt__mix_close(&m);
}
#endif

#ifndef NXT_NO_TEXT
#define NXT__SPELL_CHANCES ((size_t)NXT__ORDERS << NXT__SLOT_BITS)

/* Learns the letters of `known`, then reads `count` of them, in the same model. */
NXT__ALONE static int nxt__spell(nxt__in in, nxt__in known, size_t count, const nxt__sink *to, nxt__arena arena)
{
    static const uint8_t orders[NXT__ORDERS] = {0, 1, 2, 3, 4, 6};
    nxt__mix m;
    uint8_t before[6]; /* the last letters, the latest at the end */
    uint32_t mixed[NXT__ORDERS], node, place;
    size_t i, seen = 0;
    unsigned k, j, depth, surely;
    int learning, bit;
    if (count > NXT__MOST) return NXT_E_DAMAGED;
    /* an index repeats what it said once; bytes of floats do not */
    NXT__TRY(nxt__mix_open(&m, in, NXT__SPELL_CHANCES, NXT__ORDERS, known.size ? 6 : 12, known.size ? 2 : 3, &arena));
    nxt__mix_hasten(&m, &arena);
    memset(before, 0, sizeof before);
    for (i = 0; i < known.size + count; i++) {
        learning = i < known.size;
        if (nxt__mix_runs_dry(&m)) return NXT_E_DAMAGED;
        for (k = 0; k < NXT__ORDERS; k++) {
            mixed[k] = 0;
            for (j = orders[k] < seen ? orders[k] : (unsigned)seen; j; j--)
                mixed[k] = (mixed[k] + before[6 - j] + 1) * NXT__SCATTER;
        }
        node = 1;
        for (depth = 0; depth < 8; depth++) {
            for (surely = k = 0; k < NXT__ORDERS; k++) {
                place = (mixed[k] ^ node) * NXT__SCATTER;
                place = (place ^ place >> 15) * NXT__SCATTER;
                m.place[k] = ((size_t)k << NXT__SLOT_BITS) + (place >> (32 - NXT__SLOT_BITS));
                surely += m.ages[m.place[k]] > 0; /* the longer the context that was here before, the surer */
            }
            bit = learning ? known.at[i] >> (7 - depth) & 1 : -1;
            node = node << 1 | nxt__mix_bit(&m, surely, bit);
        }
        if (!learning) nxt__put(to, i - known.size, node & 0xFF);
        memmove(before, before + 1, 5);
        before[5] = (uint8_t)node;
        if (seen < 6) seen++;
    }
    return nxt__mix_close(&m);
}

/* What an index usually says; the text coder has read it before. */
static const char nxt__primer[] =
    "{\"args\":{\"in_features\":64,\"out_features\":10,\"bias\":true},\"kind\":\"Linear\",\"sizes\":{\"in_channels"
    "\":16,\"out_channels\":32,\"groups\":1,\"num_features\":32},\"tensors\":[\"weight\",\"bias\"],\"input\":8,\"sa"
    "me\":{\"weight_hh_l0\"},[\"affine\",8,\"group\",64],{\"edits\":[{\"coded\":{\"bias\":[\"affine\",8,\"tensor\"]"
    "},\"path\":\"features.0\"},{\"path\":\"fc\"}]}\010fc1.coded.weight.codes\000fc1.coded.weight.codebook\000fc1.c"
    "oded.bias.codes\000fc1.coded.bias.scale\000fc2.coded.weight.codes\000fc2.coded.weight.codebook\000fc2.coded.bi"
    "as.codes\000fc2.coded.bias.scale\000\212\001{\"edits\":[{\"coded\":{\"bias\":[\"affine\",8,\"tensor\"]},\"path"
    "\":\"fc1\"},{\"coded\":{\"bias\":[\"affine\",8,\"tensor\"]},\"path\":\"fc2\"}],\"grid\":[\"table\",4]}\004\001"
    "\020\002\000\011\000\001\001\001\377\001\001\000\012\000\001\002\000\001\002\003\000\001\002\003\201\001\221"
    "\006\021\201\001\002\013\201\001\021\013\002\023layers.0.self_attn.in_proj_bias\000layers.0.self_attn.out_proj"
    ".bias\000layers.0.self_attn.out_proj.coded.weight.codes\000layers.0.self_attn.out_proj.coded.weight.scale\000l"
    "ayers.0.self_attn.coded.in_proj_weight.codes\000layers.0.self_attn.coded.in_proj_weight.scale\000layers.0.line"
    "ar1.bias\000layers.0.linear1.coded.weight.codes\000layers.0.linear1.coded.weight.scale\000layers.0.linear2.bia"
    "s\000layers.0.linear2.coded.weight.codes\000layers.0.linear2.coded.weight.scale\000layers.0.norm1.weight\000la"
    "yers.0.norm1.bias\000layers.0.norm2.weight\000layers.0.norm2.bias\000classifier.bias\000classifier.coded.weigh"
    "t.codes\000classifier.coded.weight.scale\000*{\"edits\":[],\"grid\":[\"affine\",4,\"channel\"]}\005\012\000"
    "\001\001\012\000\001\002\001\017\002\000\012\000\001\003\012\000\001\004\000\001\002\003\002\003\001\002\003"
    "\001\002\003\004\001\004\001\001\002\003\301\001A\000\000\000\301\001\000\000\201\001\000A\000A\000\201\001"
    "\000\000\000\000\000\013\000A\000\037conv1.coded.weight.codes\000conv1.coded.weight.codebook\000bn1.weight\000"
    "bn1.bias\000bn1.running_mean\000bn1.running_var\000bn1.num_batches_tracked\000layer1.0.conv1.coded.weight.code"
    "s\000layer1.0.conv1.coded.weight.codebook\000layer1.0.bn1.weight\000layer1.0.bn1.bias\000layer1.0.bn1.running_"
    "mean\000layer1.0.bn1.running_var\000layer1.0.bn1.num_batches_tracked\000layer1.0.conv2.coded.weight.codes\000l"
    "ayer1.0.conv2.coded.weight.codebook\000layer1.0.bn2.weight\000layer1.0.bn2.bias\000layer1.0.bn2.running_mean"
    "\000layer1.0.bn2.running_var\000layer1.0.bn2.num_batches_tracked\000layer1.0.downsample.0.coded.weight.codes"
    "\000layer1.0.downsample.0.coded.weight.codebook\000layer1.0.downsample.1.weight\000layer1.0.downsample.1.bias"
    "\000layer1.0.downsample.1.running_mean\000layer1.0.downsample.1.running_var\000layer1.0.downsample.1.num_batch"
    "es_tracked\000fc.bias\000fc.coded.weight.codes\000fc.coded.weight.codebook\000\037{\"edits\":[],\"grid\":[\"ta"
    "ble\",4]}\010\001\020\004\000\011\000\001\001\012\000\001\002\012\000\001\003\012\000\001\004\012\000\001\005"
    "\010\000\000\006\001\020\002\000\000\001\002\003\004\005\006\000\001\002\003\004\005\006\000\001\002\003\004"
    "\005\006\000\001\002\003\004\005\006\003\007\001\021\004\004\004\000\000\000\000\000!\000\004\004\021!\000\000"
    "\000\000\000\004\004\021!\000\000\000\000\021\002\002\021!\000\000\000\013\000!\021\011rnn.bias_ih_l0\000rnn.b"
    "ias_hh_l0\000rnn.coded.weight_ih_l0.codes\000rnn.coded.weight_ih_l0.scale\000rnn.coded.weight_hh_l0.codes\000r"
    "nn.coded.weight_hh_l0.scale\000fc.bias\000fc.coded.weight.codes\000fc.coded.weight.scale\000*{\"edits\":[],\"g"
    "rid\":[\"affine\",4,\"channel\"]}\005\012\000\001\001\012\000\001\002\001\017\002\000\012\000\001\003\012\000"
    "\001\004\000\001\002\003\002\003\004\002\003\201\002\000\000\035\000\000A\000\013\000A\000";
#endif

/* ---- codes of any method ---- */

static int nxt__codes(nxt__in in, size_t count, uint32_t symbols, const nxt__sink *to, nxt__arena arena)
{
    nxt__in body = in;
    size_t method = NXT__CONSTANT;
    if (!count != !in.size) return NXT_E_DAMAGED;
    if (!count) return NXT_OK;
    NXT__TRY(nxt__byte(&body, &method));
    switch (method) {
    case NXT__CLASSES:
#ifdef NXT_NO_CLASSES
        return NXT_E_LEFT_OUT;
#else
        return nxt__classes_codes(body, count, symbols, to, arena);
#endif
    case NXT__RUNS:
#ifdef NXT_NO_RUNS
        return NXT_E_LEFT_OUT;
#else
        return nxt__runs_codes(body, count, symbols, to, arena);
#endif
    case NXT__ADAPTIVE:
#ifdef NXT_NO_ADAPTIVE
        return NXT_E_LEFT_OUT;
#else
        return nxt__adaptive_codes(body, count, symbols, to, arena);
#endif
    case NXT__TEXT:
        if (symbols != 256) return NXT_E_DAMAGED;
#ifdef NXT_NO_TEXT
        return NXT_E_LEFT_OUT;
#else
        in.size = 0; /* nothing is known */
        return nxt__spell(body, in, count, to, arena);
#endif
    default:
        return nxt__simple_codes(in, count, symbols, to, arena);
    }
}

static size_t nxt__codes_need(nxt__in in, size_t count, uint32_t symbols, int fast)
{
    nxt__in body = in;
    size_t method, first, second;
    if (nxt__byte(&body, &method)) return 0;
    (void)count;
    (void)first;
    (void)second;
    switch (method) {
#ifndef NXT_NO_CLASSES
    case NXT__CLASSES:
        return nxt__classes_need(body, count, symbols, fast);
#endif
#ifndef NXT_NO_RUNS
    case NXT__RUNS:
        if (nxt__runs_head(&body, &first, &second, &in)) return 0;
        return nxt__simple_need(in, 256, fast) + nxt__simple_need(body, symbols, fast);
#endif
#ifndef NXT_NO_ADAPTIVE
    case NXT__ADAPTIVE:
        if (nxt__varint(&body, &first) || nxt__varint(&body, &second)) return 0;
        if (first > count || symbols > 256 || second >= symbols) return 0;
        return nxt__mix_need(nxt__adaptive_chances(nxt__reach(symbols, second)), fast) + 4 * (first + first % 2);
#endif
#ifndef NXT_NO_TEXT
    case NXT__TEXT:
        return nxt__mix_need(NXT__SPELL_CHANCES, fast);
#endif
    default:
        return nxt__simple_need(in, symbols, fast);
    }
}

/* ---- elements of two to eight bytes ---- */

#ifndef NXT_NO_PLANES
NXT__ALONE static int nxt__planes(nxt__in in, size_t count, size_t wide, uint8_t *out, nxt__arena arena)
{
    size_t rotated, i, k;
    nxt__in part;
    nxt__sink to;
    uint8_t first;
    NXT__TRY(nxt__byte(&in, &rotated));
    if (rotated > 1) return NXT_E_DAMAGED;
    to.stride = wide;
    to.wide = 1;
    for (k = 0; k < wide; k++) {
        NXT__TRY(nxt__part(&in, k + 1 == wide, &part));
        to.out = out + k;
        NXT__TRY(nxt__codes(part, count, 256, &to, arena));
    }
    for (i = 0; rotated && i < count; i++, out += wide) { /* the sign back to the top */
        first = out[0];
        for (k = 0; k + 1 < wide; k++) out[k] = (uint8_t)(out[k] >> 1 | out[k + 1] << 7);
        out[k] = (uint8_t)(out[k] >> 1 | first << 7);
    }
    return NXT_OK;
}
#endif

/* Elements of any method but sparse. */
static int nxt__dense(nxt__in in, size_t count, size_t wide, uint8_t *out, nxt__arena arena)
{
    size_t method = NXT__CONSTANT, kept, i;
    (void)arena;
    if (!count != !in.size) return NXT_E_DAMAGED;
    if (!count) return NXT_OK;
    NXT__TRY(nxt__byte(&in, &method));
    switch (method) {
    case NXT__CONSTANT:
    case NXT__NARROW:
        kept = method == NXT__CONSTANT ? in.size : in.size / count;
        if (kept > wide) return NXT_E_DAMAGED;
        if (method == NXT__CONSTANT ? kept && !in.at[kept - 1] : !kept || kept == wide || in.size % count) return NXT_E_DAMAGED;
        for (i = 0; i < count; i++, out += wide) {
            if (kept) memcpy(out, in.at, kept);
            memset(out + kept, 0, wide - kept);
            if (method == NXT__NARROW) in.at += kept;
        }
        return NXT_OK;
    case NXT__RAW:
        if (in.size / wide != count || in.size % wide) return NXT_E_DAMAGED;
        memcpy(out, in.at, in.size);
        return NXT_OK;
    case NXT__PLANES:
#ifdef NXT_NO_PLANES
        return NXT_E_LEFT_OUT;
#else
        return nxt__planes(in, count, wide, out, arena);
#endif
    default:
        return NXT_E_DAMAGED;
    }
}

#ifndef NXT_NO_SPARSE
static size_t nxt__is_set(const uint8_t *mask, size_t i) { return (size_t)mask[i >> 3] >> (i & 7) & 1u; }

/* The elements that are not zero are read to the end of `out`, and drawn forward from there. */
NXT__ALONE static int nxt__sparse(nxt__in in, size_t count, size_t wide, uint8_t *out, nxt__arena arena)
{
    nxt__in part;
    nxt__sink mask;
    uint8_t *from;
    size_t i, filled = 0;
    NXT__TRY(nxt__part(&in, 0, &part));
    mask.out = (uint8_t *)nxt__take(&arena, (count + 7) / 8);
    if (!mask.out) return NXT_E_SCRATCH;
    mask.stride = 0;
    mask.wide = 0;
    memset(mask.out, 0, (count + 7) / 8);
    NXT__TRY(nxt__codes(part, count, 2, &mask, arena));
    for (i = 0; i < count; i++) filled += nxt__is_set(mask.out, i);
    from = out + (count - filled) * wide;
    NXT__TRY(nxt__dense(in, filled, wide, from, arena));
    for (i = 0; i < count; i++, out += wide) { /* `from` is never behind `out`: there are as many zeros to come as lie between */
        if (nxt__is_set(mask.out, i)) {
            memmove(out, from, wide);
            from += wide;
        } else {
            memset(out, 0, wide);
        }
    }
    return NXT_OK;
}
#endif

static int nxt__elements(nxt__in in, size_t count, size_t wide, uint8_t *out, nxt__arena arena)
{
    if (in.size && *in.at == NXT__SPARSE) {
#ifdef NXT_NO_SPARSE
        return NXT_E_LEFT_OUT;
#else
        in.at++;
        in.size--;
        return nxt__sparse(in, count, wide, out, arena);
#endif
    }
    return nxt__dense(in, count, wide, out, arena);
}

static size_t nxt__elements_need(nxt__in in, size_t count, size_t wide, int fast)
{
    size_t first = 0, rest = 0, method = 0;
    (void)count;
    (void)wide;
    (void)fast;
    if (nxt__byte(&in, &method)) return 0;
#ifndef NXT_NO_SPARSE
    if (method == NXT__SPARSE) {
        nxt__in mask;
        if (nxt__part(&in, 0, &mask)) return 0;
        first = (count + 31) / 32 * 4;
        rest = nxt__codes_need(mask, count, 2, fast);
        if (nxt__byte(&in, &method)) return first + rest;
    }
#endif
#ifndef NXT_NO_PLANES
    if (method == NXT__PLANES) {
        nxt__in part;
        size_t k, need, rotated;
        if (nxt__byte(&in, &rotated)) return first + rest;
        for (k = 0; k < wide && !nxt__part(&in, k + 1 == wide, &part); k++) {
            need = nxt__codes_need(part, count, 256, fast);
            if (need > rest) rest = need;
        }
    }
#endif
    return first + rest;
}

/* ---- the index ---- */

/* The next stream; with `check`, its block is found right when it begins. */
static int nxt__stream(const nxt_file *f, nxt_place *place, nxt__in *stream, size_t *check)
{
    nxt__in in, ahead;
    size_t size, length, k;
    in.at = f->text + place->length_at;
    in.size = f->text_size - place->length_at;
    if (!place->block_left) {
        ahead = in;
        for (size = k = 0; place->number + k < f->streams && size < NXT__BLOCK; k++) {
            NXT__TRY(nxt__varint(&ahead, &length));
            if (!length || length > f->size - place->offset - size) return NXT_E_DAMAGED;
            size += length;
        }
        if (check && *check != place->block) {
            if (nxt__crc(0, f->data + place->offset, size) != nxt__le32(f->sums + 4 * place->block)) return NXT_E_DAMAGED;
            *check = place->block;
        }
        place->block++;
        place->block_left = k;
    }
    NXT__TRY(nxt__varint(&in, &length));
    if (!length || length > f->size - place->offset) return NXT_E_DAMAGED;
    stream->at = f->data + place->offset;
    stream->size = length;
    place->length_at = f->text_size - in.size;
    place->offset += length;
    place->number++;
    place->block_left--;
    return NXT_OK;
}

/* Streams that hold nothing but the tensor. */
static size_t nxt__streams(const nxt_tensor *t)
{
    return t->shelf ? 0 : t->count / t->piece + (t->count % t->piece != 0);
}

/* Where the reader of the tensors' kinds and sizes stands. */
typedef struct {
    nxt__in choices, sizes;
    size_t used, first; /* kinds so far; the first axis of the last tensor that has one, SIZE_MAX before that */
} nxt__rows;

static void nxt__rows_open(const nxt_file *f, nxt__rows *rows)
{
    rows->choices.at = f->text + f->choices;
    rows->choices.size = f->sizes - f->choices;
    rows->sizes.at = f->text + f->sizes;
    rows->sizes.size = f->text_size - f->sizes;
    rows->used = 0;
    rows->first = SIZE_MAX;
}

/* One kind from the table: dtype, symbols, axes, shelf. */
static int nxt__kind(nxt__in *in, size_t kind[4])
{
    unsigned k;
    for (k = 0; k < 4; k++) NXT__TRY(nxt__varint(in, kind + k));
    return kind[0] > NXT_FLOAT8_E5M2 || kind[2] > NXT_MOST_AXES ? NXT_E_DAMAGED : NXT_OK;
}

/* The next tensor; `limit` is for its bytes, and is lowered by them. */
static int nxt__row(const nxt_file *f, nxt__rows *rows, nxt_tensor *t, size_t *limit)
{
    static const uint8_t sizes[17] = {1, 1, 2, 4, 8, 1, 2, 4, 8, 2, 4, 8, 8, 16, 2, 1, 1};
    size_t number, size, k, row, bound, kind[4];
    nxt__in in;
    NXT__TRY(nxt__varint(&rows->choices, &number));
    if (number > rows->used || number >= f->kind_count) return NXT_E_DAMAGED;
    if (number == rows->used) rows->used++;
    in.at = f->text + f->kinds;
    in.size = f->choices - f->kinds;
    for (k = 0; k <= number; k++) NXT__TRY(nxt__kind(&in, kind));
    if (kind[1] > (kind[0] == NXT_UINT8 ? 256u : kind[0] == NXT_UINT16 ? 65536u : 0u)) return NXT_E_DAMAGED;
    t->dtype = (int)kind[0];
    t->symbols = (uint32_t)kind[1];
    t->ndim = (unsigned)kind[2];
    t->shelf = kind[3];
    t->itemsize = bound = sizes[kind[0]];
    t->count = 1;
    for (k = 0; k < t->ndim; k++) {
        NXT__TRY(nxt__varint(&rows->sizes, &size));
        if (!size && rows->first == SIZE_MAX) return NXT_E_DAMAGED;
        if (!size) size = rows->first;
        else if (size < SIZE_MAX) size--;
        t->dims[k] = size;
        t->count = nxt__product(t->count, size);
        bound = nxt__product(bound, size ? size : 1); /* an axis of 0 counts as 1, so that the others stay bounded */
    }
    if (bound > *limit) return NXT_E_DAMAGED;
    if (t->shelf && (t->symbols || !t->count || t->count > NXT__SHELF)) return NXT_E_DAMAGED;
    if (t->ndim) rows->first = t->dims[0];
    *limit -= bound;
    t->nbytes = t->count * t->itemsize;
    row = t->ndim && t->count ? t->count / t->dims[0] : 1;
    t->piece = row <= NXT__PIECE ? NXT__PIECE / row * row : NXT__PIECE;
    return NXT_OK;
}

static int nxt__is_utf8(const uint8_t *at, const uint8_t *end)
{
    while (at < end) {
        unsigned more = *at < 0x80 ? 0 : *at < 0xE0 ? 1 : *at < 0xF0 ? 2 : 3;
        if (*at >= 0x80) {
            if (*at < 0xC2 || *at > 0xF4 || (size_t)(end - at) <= more) return 0;
            if ((*at == 0xE0 && at[1] < 0xA0) || (*at == 0xED && at[1] > 0x9F)) return 0;
            if ((*at == 0xF0 && at[1] < 0x90) || (*at == 0xF4 && at[1] > 0x8F)) return 0;
        }
        for (at++; more; more--, at++)
            if ((*at & 0xC0) != 0x80) return 0;
    }
    return 1;
}

/* Finds names, meta and kinds in the index, and how many shelves there are. */
static int nxt__heads(nxt_file *f, nxt__in *in)
{
    nxt__in part;
    const uint8_t *end;
    size_t k, size, kind[4];
    NXT__TRY(nxt__varint(in, &f->tensors));
    if (f->tensors > in->size / 2) return NXT_E_DAMAGED;
    f->names = f->text_size - in->size;
    for (k = 0; k < f->tensors; k++) {
        end = in->size ? (const uint8_t *)memchr(in->at, 0, in->size) : NULL;
        if (!end || !nxt__is_utf8(in->at, end)) return NXT_E_DAMAGED;
        NXT__TRY(nxt__cut(in, (size_t)(end - in->at) + 1, &part));
    }
    NXT__TRY(nxt__varint(in, &size));
    NXT__TRY(nxt__cut(in, size, &part));
    f->meta = (const char *)part.at;
    f->meta_size = part.size;
    NXT__TRY(nxt__varint(in, &f->kind_count));
    if (f->kind_count > f->tensors) return NXT_E_DAMAGED;
    f->kinds = f->text_size - in->size;
    for (k = 0; k < f->kind_count; k++) {
        NXT__TRY(nxt__kind(in, kind));
        if (kind[3] > f->shelves + 1) return NXT_E_DAMAGED; /* they are numbered as they come */
        if (kind[3] > f->shelves) f->shelves++;
    }
    f->choices = f->text_size - in->size;
    for (k = 0; k < f->tensors; k++) NXT__TRY(nxt__varint(in, &size));
    f->sizes = f->text_size - in->size;
    return NXT_OK;
}

/* Takes the index apart; streams and padding lie before `first`, checksums take `sums` bytes. */
NXT__ALONE static int nxt__index(nxt_file *f, size_t first, size_t sums)
{
    nxt__in in;
    nxt__rows rows;
    nxt_tensor t;
    nxt_place place;
    size_t k, size, limit = (size_t)1 << 26; /* bytes of all tensors: that, and 1 KiB for each byte of the file */
    limit = f->size > (SIZE_MAX - 1 - limit) / 1024 ? SIZE_MAX - 1 : limit + 1024 * f->size;
    in.at = f->text;
    in.size = f->text_size;
    NXT__TRY(nxt__heads(f, &in));
    nxt__rows_open(f, &rows);
    for (k = 0; k < f->tensors; k++) {
        NXT__TRY(nxt__row(f, &rows, &t, &limit));
        size = nxt__streams(&t);
        if (size > rows.sizes.size) return NXT_E_DAMAGED;
        f->streams += size; /* cannot overflow: each is at most the index, and in.size / 2 bounds their number */
        if (f->streams > f->text_size) return NXT_E_DAMAGED;
    }
    if (rows.used != f->kind_count) return NXT_E_DAMAGED;
    f->streams += f->shelves;
    f->lengths = f->text_size - rows.sizes.size;
    memset(&place, 0, sizeof place);
    place.length_at = f->lengths;
    place.offset = 5;
    while (place.number < f->streams) NXT__TRY(nxt__stream(f, &place, &in, NULL));
    if (place.length_at != f->text_size || place.offset > first || sums / 4 != place.block || sums % 4) return NXT_E_DAMAGED;
    for (k = place.offset; k < first; k++)
        if (f->data[k]) return NXT_E_DAMAGED;
    return NXT_OK;
}

NXT_API int nxt_open(nxt_file *f, const void *data, size_t size, void *scratch, size_t scratch_size)
{
    static const uint8_t magic[4] = {0x93, 'N', 'X', 'T'};
    const uint8_t *bytes = (const uint8_t *)data;
    uint8_t back[9];
    nxt__in in, text;
    size_t end, length, letters, coded, k;
    memset(f, 0, sizeof *f);
    if (size < sizeof magic || memcmp(bytes, magic, sizeof magic) != 0) return NXT_E_FORMAT;
    if (size < 13) return NXT_E_DAMAGED;
    if (bytes[4] != NXT_VERSION) return NXT_E_VERSION;
    f->data = bytes;
    f->size = size;
    f->verified = SIZE_MAX;
    end = size - 4;
    for (k = 0; k < sizeof back; k++) back[k] = bytes[end - 1 - k];
    in.at = back;
    in.size = sizeof back;
    NXT__TRY(nxt__varint(&in, &length));
    end -= sizeof back - in.size;
    if (end < 5 || length > end - 5) return NXT_E_DAMAGED;
    in.at = bytes + (end - length);
    in.size = length;
    if (nxt__crc(nxt__crc(0, bytes, 5), in.at, size - 4 - (end - length)) != nxt__le32(bytes + size - 4)) return NXT_E_DAMAGED;
    NXT__TRY(nxt__varint(&in, &letters));
    NXT__TRY(nxt__varint(&in, &coded));
    NXT__TRY(nxt__cut(&in, coded, &text));
    f->sums = in.at;
    f->text = text.at;
    f->text_size = text.size;
    if (letters) {
#ifdef NXT_NO_TEXT
        (void)scratch;
        (void)scratch_size;
        return NXT_E_LEFT_OUT;
#else
        nxt__arena arena;
        nxt__in primer;
        nxt__sink to;
        if (letters > NXT__MOST) return NXT_E_DAMAGED;
        f->scratch_needed = letters + nxt__mix_need(NXT__SPELL_CHANCES, 0) + 3;
        if (scratch_size < f->scratch_needed) return NXT_E_SCRATCH;
        to.out = (uint8_t *)scratch;
        to.stride = 1;
        to.wide = 1;
        arena.at = to.out + letters;
        arena.left = scratch_size - letters;
        primer.at = (const uint8_t *)nxt__primer;
        primer.size = sizeof nxt__primer - 1;
        NXT__TRY(nxt__spell(text, primer, letters, &to, arena));
        f->text = to.out;
        f->text_size = f->scratch_kept = letters;
#endif
    }
    (void)scratch;
    (void)scratch_size;
    return nxt__index(f, end - length, in.size);
}

/* The name behind this one. */
static const char *nxt__behind(const char *name) { return name + strlen(name) + 1; }

/* What lies with the tensor on its shelf: how much, and how much of that before it. */
static int nxt__shelf(const nxt_file *f, size_t index, nxt_tensor *t)
{
    nxt__rows rows;
    nxt_tensor other;
    size_t k, limit;
    nxt__rows_open(f, &rows);
    for (k = 0; k < f->tensors; k++) {
        limit = SIZE_MAX;
        NXT__TRY(nxt__row(f, &rows, &other, &limit));
        if (other.shelf != t->shelf) continue;
        if (other.dtype != t->dtype) return NXT_E_DAMAGED;
        if (k == index) t->shelf_at = t->shelf_count;
        t->shelf_count += other.count;
        if (t->shelf_count > NXT__SHELF) return NXT_E_DAMAGED;
    }
    return NXT_OK;
}

NXT_API int nxt_at(const nxt_file *f, size_t index, nxt_tensor *t)
{
    const char *name = (const char *)f->text + f->names;
    nxt__in in;
    nxt__rows rows;
    nxt_place place;
    size_t k, before = 0, limit;
    memset(t, 0, sizeof *t);
    if (index >= f->tensors) return NXT_E_MISSING;
    for (k = 0; k < index; k++) name = nxt__behind(name);
    t->name = name;
    for (k = 0, name = (const char *)f->text + f->names; k < f->tensors; k++, name = nxt__behind(name))
        if (k != index && strcmp(name, t->name) == 0) return NXT_E_DAMAGED; /* it occurs twice */
    nxt__rows_open(f, &rows);
    for (k = 0; k <= index; k++) {
        before += k ? nxt__streams(t) : 0;
        limit = SIZE_MAX;
        NXT__TRY(nxt__row(f, &rows, t, &limit));
    }
    if (t->shelf) {
        NXT__TRY(nxt__shelf(f, index, t));
        before = f->streams - f->shelves + t->shelf - 1;
    }
    memset(&place, 0, sizeof place);
    place.length_at = f->lengths;
    place.offset = 5;
    t->place = place;
    while (place.number < before) {
        NXT__TRY(nxt__stream(f, &place, &in, NULL));
        t->skip++;
        if (!place.block_left) {
            t->place = place;
            t->skip = 0;
        }
    }
    return NXT_OK;
}

NXT_API int nxt_find(const nxt_file *f, const char *wanted, nxt_tensor *t)
{
    const char *name = (const char *)f->text + f->names;
    size_t k;
    for (k = 0; k < f->tensors && strcmp(name, wanted) != 0; k++) name = nxt__behind(name);
    return nxt_at(f, k, t);
}

/* Elements of a tensor as a stream counts and sizes them: complex128 is two of eight bytes. */
static size_t nxt__wide(const nxt_tensor *t) { return t->itemsize > 8 ? 8 : t->itemsize; }

static uint32_t nxt__symbols(const nxt_tensor *t) { return t->symbols ? t->symbols : t->dtype == NXT_BOOL ? 2 : 256; }

/* Scratch for one stream of the tensor. */
static size_t nxt__need(nxt__in in, const nxt_tensor *t, size_t count, int fast)
{
    if (t->symbols || t->itemsize == 1) return nxt__codes_need(in, count, nxt__symbols(t), fast);
    return nxt__elements_need(in, count * (t->itemsize / nxt__wide(t)), nxt__wide(t), fast);
}

/* Reads one stream of the tensor. */
static int nxt__fill(nxt__in in, const nxt_tensor *t, size_t count, uint8_t *out, nxt__arena arena)
{
    nxt__sink to;
    if (!t->symbols && t->itemsize > 1)
        return nxt__elements(in, count * (t->itemsize / nxt__wide(t)), nxt__wide(t), out, arena);
    to.out = out;
    to.stride = t->itemsize;
    to.wide = (unsigned)t->itemsize;
    return nxt__codes(in, count, nxt__symbols(t), &to, arena);
}

NXT_API size_t nxt_scratch_bytes(const nxt_file *f, const nxt_tensor *t, int fast)
{
    nxt_place place = t->place;
    nxt__in in;
    size_t k, start, count, need, most = 0, total = t->shelf ? t->shelf_count : t->count;
    for (k = 0; k < t->skip; k++)
        if (nxt__stream(f, &place, &in, NULL)) return 0;
    for (start = 0; start < total && !nxt__stream(f, &place, &in, NULL); start += count) {
        count = t->shelf || total - start < t->piece ? total - start : t->piece;
        need = nxt__need(in, t, count, fast);
        if (need > most) most = need;
    }
    if (t->shelf) most += total * t->itemsize + 3;
    return most ? most + 3 : 0; /* to reach an address that is a multiple of four */
}

NXT_API int nxt_read(nxt_file *f, const nxt_tensor *t, void *out, size_t out_size, void *scratch, size_t scratch_size)
{
    nxt_place place = t->place;
    nxt__in in;
    nxt__arena arena;
    uint8_t *shelf;
    size_t k, start, count;
    if (out_size < t->nbytes) return NXT_E_OUT;
    arena.at = (uint8_t *)scratch;
    arena.left = scratch ? scratch_size : 0;
    for (k = 0; k < t->skip && t->count; k++) NXT__TRY(nxt__stream(f, &place, &in, &f->verified));
    if (t->shelf) {
        shelf = (uint8_t *)nxt__take(&arena, t->shelf_count * t->itemsize);
        if (!shelf) return NXT_E_SCRATCH;
        NXT__TRY(nxt__stream(f, &place, &in, &f->verified));
        NXT__TRY(nxt__fill(in, t, t->shelf_count, shelf, arena));
        memcpy(out, shelf + t->shelf_at * t->itemsize, t->nbytes);
        return NXT_OK;
    }
    for (start = 0; start < t->count; start += count) {
        NXT__TRY(nxt__stream(f, &place, &in, &f->verified));
        count = t->count - start < t->piece ? t->count - start : t->piece;
        NXT__TRY(nxt__fill(in, t, count, (uint8_t *)out + start * t->itemsize, arena));
    }
    return NXT_OK;
}

NXT_API const char *nxt_error(int error)
{
#ifdef NXT_NO_MESSAGES
    (void)error;
    return "";
#else
    switch (error) {
    case NXT_OK: return "no error";
    case NXT_E_FORMAT: return "no .nxt file";
    case NXT_E_VERSION: return "a .nxt file of another version: save it again with the enxuto this header came with";
    case NXT_E_DAMAGED: return "the file was altered or cut off, or contradicts itself";
    case NXT_E_MISSING: return "no such tensor";
    case NXT_E_OUT: return "out holds fewer than the tensor's nbytes";
    case NXT_E_SCRATCH: return "scratch is too small: see file.scratch_needed and nxt_scratch_bytes()";
    case NXT_E_LEFT_OUT: return "needs a method that was left out by an NXT_NO_ macro";
    default: return "unknown error";
    }
#endif
}

#endif /* NXT_IMPLEMENTED */
#endif /* NXT_IMPLEMENTATION */
