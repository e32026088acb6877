/*
 * guarded.h — buffers between two pages that nobody may touch.
 *
 * A read or write beyond the page faults at once; a write beyond the buffer, but within its page, is
 * found by guarded_intact(). guarded_free_all() in a teardown frees them after a failed test, too.
 */
#ifndef GUARDED_H
#define GUARDED_H

#include "elements.h"

typedef enum placement {
    PLACE_END,    /* the last byte touches the guard page: aligned as the size happens to be */
    PLACE_START,  /* the first byte touches the guard page: page-aligned */
    PLACE_SHIFTED /* one element after a page's start: aligned to its element and no more */
} placement;

/* `bytes` bytes (0 is allowed) of elements of `size` bytes. Never NULL. */
void *guarded(size_t bytes, size_t size, placement where);
elements guarded_elements(int64_t count, bool is_double, placement where);
elements guarded_copy(elements from);

/* True if the bytes around every live buffer are as they were. */
bool guarded_intact(void);
void guarded_free(void *data);
void guarded_free_all(void);

#endif
