#include "guarded.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { SLACK = 0xA5 };

typedef struct block {
    struct block *next;
    unsigned char *map;
    size_t map_bytes;
    unsigned char *body; /* the accessible pages */
    size_t body_bytes;
    unsigned char *data;
    size_t data_bytes;
} block;

static block *blocks;

void *guarded(size_t bytes, size_t size, placement where)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t shift = where == PLACE_SHIFTED ? size : 0;
    block *b = calloc(1, sizeof *b);
    if (b == NULL) abort();
    b->body_bytes = (bytes + shift + page - 1) / page * page;
    if (b->body_bytes == 0) b->body_bytes = page;
    b->map_bytes = b->body_bytes + 2 * page;
    b->map = mmap(NULL, b->map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (b->map == MAP_FAILED) {
        perror("mmap");
        abort();
    }
    b->body = b->map + page;
    if (mprotect(b->body, b->body_bytes, PROT_READ | PROT_WRITE) != 0) {
        perror("mprotect");
        abort();
    }
    b->data = where == PLACE_END ? b->body + b->body_bytes - bytes : b->body + shift;
    b->data_bytes = bytes;
    memset(b->body, SLACK, (size_t)(b->data - b->body));
    memset(b->data + bytes, SLACK, (size_t)(b->body + b->body_bytes - b->data) - bytes);
    b->next = blocks;
    blocks = b;
    return b->data;
}

elements guarded_elements(int64_t count, bool is_double, placement where)
{
    const size_t size = element_size(is_double);
    return (elements){ guarded((size_t)count * size, size, where), count, is_double };
}

elements guarded_copy(elements from)
{
    const elements to = guarded_elements(from.count, from.is_double, PLACE_START);
    elements_copy(to, from);
    return to;
}

static bool all_slack(const unsigned char *from, const unsigned char *to)
{
    for (; from < to; from++)
        if (*from != SLACK) return false;
    return true;
}

bool guarded_intact(void)
{
    for (const block *b = blocks; b != NULL; b = b->next)
        if (!all_slack(b->body, b->data) ||
            !all_slack(b->data + b->data_bytes, b->body + b->body_bytes))
            return false;
    return true;
}

static void free_at(block **link)
{
    block *b = *link;
    *link = b->next;
    munmap(b->map, b->map_bytes);
    free(b);
}

void guarded_free(void *data)
{
    for (block **link = &blocks; *link != NULL; link = &(*link)->next)
        if ((*link)->data == data) {
            free_at(link);
            return;
        }
    abort(); /* not one of ours */
}

void guarded_free_all(void)
{
    while (blocks != NULL) free_at(&blocks);
}
