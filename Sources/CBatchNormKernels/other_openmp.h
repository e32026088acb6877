/* The OpenMP runtime that others have brought into the process. */
#ifndef BNK_OTHER_OPENMP_H
#define BNK_OTHER_OPENMP_H

/* The entries that GNU's, LLVM's and Intel's runtimes have in common. */
typedef struct bnk_openmp {
    void (*parallel)(void (*body)(void *), void *context, unsigned threads, unsigned flags);
    void (*barrier)(void);
    int (*max_threads)(void);
    int (*num_threads)(void);
    int (*thread_num)(void);
    int (*processors)(void);
    char name[64]; /* of its file */
} bnk_openmp;

/* NULL if there is none, or none whose threads can be trusted. Costs nanoseconds unless a library was
 * loaded since the last call. One that was found stays the one. */
const bnk_openmp *bnk_other_openmp(void);

/* In the child of a fork: it has none from now on. */
void bnk_forget_other_openmp(void);
int bnk_other_openmp_is_lost(void);

#endif
