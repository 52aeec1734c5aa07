/* host whole|brief BUNDLE: shows the files in a bundle, each behind its length of four bytes. */
#include <stdio.h>
#include <stdlib.h>

#include "show.h"

static void say(const char *text, size_t size) { fwrite(text, 1, size, stdout); }

/* At odd addresses, and not a byte more than asked for, so that the sanitizer sees every step too far. */
static uint8_t *borrow(int which, size_t size)
{
    static uint8_t *lent[4];
    free(lent[which]);
    lent[which] = (uint8_t *)malloc(size + 1);
    return lent[which] ? lent[which] + 1 : NULL;
}

static uint32_t ticks(void) { return 0; }
static void paint(void) {}
static uint32_t painted_over(void) { return 0; }

int main(int argc, char **argv)
{
    FILE *bundle = argc == 3 ? fopen(argv[2], "rb") : NULL;
    uint8_t head[4], *data;
    if (!bundle) return 1;
    while (fread(head, 1, 4, bundle) == 4) {
        size_t size = nxt__le32(head);
        data = borrow(3, size);
        if (!data || fread(data, 1, size, bundle) != size) return 1;
        show(data, size, argv[1][0] == 'w');
    }
    borrow(0, 0), borrow(1, 0), borrow(2, 0), borrow(3, 0);
    return fclose(bundle);
}
