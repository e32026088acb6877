/*
 * check.h — cmocka with the headers it needs, and one assertion that tells where in a table it is.
 *
 * Included first by every C test. check() leaves the test by longjmp: main thread only.
 */
#ifndef CHECK_H
#define CHECK_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

/* Fails the test with a printf message unless the condition holds. */
#define check(condition, ...)                                                   \
    do {                                                                        \
        if (!(condition)) {                                                     \
            print_error("%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            fail_msg(__VA_ARGS__);                                              \
        }                                                                       \
    } while (0)

#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))

#endif
