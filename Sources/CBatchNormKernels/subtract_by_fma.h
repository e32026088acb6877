/*
 * a - b as a * 1 - b, which rounds alike: AMD's cores have two pipes for additions and two for products, and
 * the sums, mostly additions, fill the first. The compiler must not see that the 1 is one. Included by
 * the leaves_<isa>.c of instruction sets with FMA.
 */
#ifndef BNK_SUBTRACT_BY_FMA_H
#define BNK_SUBTRACT_BY_FMA_H

static inline double bnk_hidden_one(void)
{
    double one = 1;
    __asm__("" : "+x"(one));
    return one;
}

#define BNK_ONES(vector) (bnk_hidden_one() - (vector){ 0 })
#define BNK_SUBTRACT(a, b, one) __builtin_elementwise_fma(a, one, -(b))

#endif
