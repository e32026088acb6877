/* Whose threads a call runs on. */
#ifndef BNK_THREADING_H
#define BNK_THREADING_H

#include "bnk.h"
#include "other_openmp.h"

typedef struct bnk_pool {
    bnk_run run; /* NULL: none */
    void *pool;
    void (*release)(void *pool); /* may be NULL */
    int64_t users;               /* calls in progress */
} bnk_pool;

/* A pool or another runtime; neither: the threads of our own runtime. */
typedef struct bnk_workers {
    bnk_pool pool; /* a copy: in a forked child the settings forget theirs */
    int slot;      /* where the pool's users are counted */
    int32_t forks; /* bnk_were_left_behind() */
    const bnk_openmp *other;
} bnk_workers;

/* What the settings say now; a call asks once, keeps what it got, and then dismisses it. */
bnk_workers bnk_hire(void);
void bnk_dismiss(bnk_workers workers);

/* Whether this process has been forked since: then they are the parent's. */
int bnk_were_left_behind(const bnk_workers *workers);

#endif
