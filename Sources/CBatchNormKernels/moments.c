/* Moments that a caller holds: merged with others, and made statistics. */
#include "moments.h"

#include "coefficients.h"

void bnk_merge_moments(bnk_moment_arrays *moments, const bnk_moment_arrays *other, int64_t channels)
{
    const bnk_shares shares = bnk_shares_of(moments->count, other->count);
    for (int64_t c = 0; c < channels; c++)
        bnk_moments_put(
            moments, c,
            bnk_moments_merge(bnk_moments_at(moments, c), bnk_moments_at(other, c), shares));
}

void bnk_moments_statistics(const bnk_moment_arrays *moments, int64_t channels, double divisor,
                            double epsilon, double *variance, double *invstd)
{
    for (int64_t c = 0; c < channels; c++) {
        const bnk_moments own = bnk_moments_at(moments, c);
        if (variance) variance[c] = bnk_variance_of(own, divisor);
        if (invstd) invstd[c] = bnk_invstd(bnk_variance_of(own, moments->count), epsilon);
    }
}
