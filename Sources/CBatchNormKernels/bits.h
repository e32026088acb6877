/*
 * Masks of one bit a value: bit i % 8 of byte i / 8. Two threads may own bits of the same byte.
 */
#ifndef BNK_BITS_H
#define BNK_BITS_H

#include <stdint.h>
#include <string.h>

/* Some bits of a byte whose others may belong to another thread. */
static inline void bnk_put_some_bits(uint8_t *byte, int mask, int value)
{
    __atomic_fetch_and(byte, (uint8_t)~mask, __ATOMIC_RELAXED);
    __atomic_fetch_or(byte, (uint8_t)(value & mask), __ATOMIC_RELAXED);
}

/* Bits [first, first + count) of `from` to bits [at, at + count) of `bits`. `from` is readable a byte
 * beyond. */
static inline void bnk_put_bits(const uint8_t *from, int64_t first, int64_t count, uint8_t *bits,
                                int64_t at)
{
    while (count > 0) {
        if (at % 8 == 0 && first % 8 == 0 && count >= 8) {
            memcpy(bits + at / 8, from + first / 8, (size_t)(count / 8));
            first += count / 8 * 8;
            at += count / 8 * 8;
            count %= 8;
            continue;
        }
        const int into = (int)(at % 8), out_of = (int)(first % 8);
        const int room = 8 - into, length = count < room ? (int)count : room;
        const int word = from[first / 8] | from[first / 8 + 1] << 8;
        const int value = word >> out_of << into, mask = ((1 << length) - 1) << into;
        if (length == 8)
            bits[at / 8] = (uint8_t)value;
        else
            bnk_put_some_bits(bits + at / 8, mask, value);
        first += length;
        at += length;
        count -= length;
    }
}

#endif
