/*
 * bare.h — the bodies of bare.c for one element type T: included twice, with T and NAME(x) defined.
 * Rows: a channel's values lie together (NCHW). Columns: the channels do (NHWC, matrices).
 */

/* y = x * a + b, or dx = dy * a + x * d + b: what is left when the sums are known. */
static void NAME(finish)(const bare_job *j, int64_t c, T m, T mean, T square, T s1, T s2, T *a,
                         T *b, T *d)
{
    const T *weight = j->weight, *bias = j->bias;
    T *running_mean = j->running_mean, *running_var = j->running_var;
    T r = (T)1 / (T)sqrt((double)square + 1e-5);
    if (!j->grad_output) {
        if (!j->frozen) {
            running_mean[c] += (T)0.1 * (mean - running_mean[c]);
            running_var[c] += (T)0.1 * (square * m / (m - 1) - running_var[c]);
            j->saved_mean[c] = (double)mean;
            j->saved_invstd[c] = (double)r;
        }
        *a = r * weight[c];
        *b = bias[c] - mean * *a;
        return;
    }
    if (!j->frozen) r = (T)j->saved_invstd[c];
    ((T *)j->grad_weight)[c] = s2 * r;
    ((T *)j->grad_bias)[c] = s1;
    *a = weight[c] * r;
    *d = j->frozen ? 0 : -*a * r * r * s2 / m;
    *b = j->frozen ? 0 : -*a * s1 / m - mean * *d;
}

static T NAME(given_mean)(const bare_job *j, int64_t c)
{
    return j->frozen ? ((const T *)j->running_mean)[c] : (T)j->saved_mean[c];
}

static void NAME(rows)(const bare_job *j)
{
    const T *input = j->input, *gradient = j->grad_output;
    T *output = j->output, m = (T)(j->n * j->s);
    for (int64_t c = 0; c < j->c; c++) {
        T mean = 0, square = 0, s1 = 0, s2 = 0, a = 0, b = 0, d = 0;
        if (gradient || j->frozen) {
            mean = NAME(given_mean)(j, c);
            square = ((const T *)j->running_var)[c];
        } else {
            for (int64_t n = 0; n < j->n; n++) {
                const T *x = input + (n * j->c + c) * j->s;
                for (int64_t s = 0; s < j->s; s++) mean += x[s];
            }
            mean /= m;
            for (int64_t n = 0; n < j->n; n++) {
                const T *x = input + (n * j->c + c) * j->s;
                for (int64_t s = 0; s < j->s; s++) square += (x[s] - mean) * (x[s] - mean);
            }
            square /= m;
        }
        for (int64_t n = 0; gradient && n < j->n; n++) {
            const T *x = input + (n * j->c + c) * j->s, *dy = gradient + (n * j->c + c) * j->s;
            for (int64_t s = 0; s < j->s; s++) {
                s1 += dy[s];
                s2 += dy[s] * (x[s] - mean);
            }
        }
        NAME(finish)(j, c, m, mean, square, s1, s2, &a, &b, &d);
        for (int64_t n = 0; n < j->n; n++) {
            int64_t at = (n * j->c + c) * j->s;
            const T *x = input + at, *dy = gradient + at;
            T *y = output + at;
            if (gradient)
                for (int64_t s = 0; s < j->s; s++) y[s] = dy[s] * a + x[s] * d + b;
            else
                for (int64_t s = 0; s < j->s; s++) y[s] = x[s] * a + b;
        }
    }
}

/* Sums of `wide` columns, in which the c channels follow one another several times: one for each channel. */
static void NAME(fold)(T *v, int64_t wide, int64_t c)
{
    for (int64_t i = wide - 1; i >= c; i--) v[i - c] += v[i];
}
static void NAME(repeat)(T *v, int64_t wide, int64_t c)
{
    for (int64_t i = c; i < wide; i++) v[i] = v[i - c];
}

/* Short rows are walked several at a time, as one that is wide enough for vectors. */
static void NAME(columns)(const bare_job *j)
{
    static T mean[BARE_MAX], square[BARE_MAX], s1[BARE_MAX], s2[BARE_MAX], a[BARE_MAX], b[BARE_MAX],
        d[BARE_MAX];
    const T *gradient = j->grad_output;
    int64_t rows = j->n * j->s, channels = j->c, wide = channels;
    T m = (T)rows;
    while (wide <= 64 && rows % 2 == 0) wide *= 2, rows /= 2;
    for (int64_t c = 0; c < wide; c++) mean[c] = square[c] = s1[c] = s2[c] = 0;
    if (gradient || j->frozen) {
        for (int64_t c = 0; c < channels; c++) {
            mean[c] = NAME(given_mean)(j, c);
            square[c] = ((const T *)j->running_var)[c];
        }
        NAME(repeat)(mean, wide, channels);
    } else {
        for (int64_t i = 0; i < rows; i++) {
            const T *x = (const T *)j->input + i * wide;
            for (int64_t c = 0; c < wide; c++) mean[c] += x[c];
        }
        NAME(fold)(mean, wide, channels);
        for (int64_t c = 0; c < channels; c++) mean[c] /= m;
        NAME(repeat)(mean, wide, channels);
        for (int64_t i = 0; i < rows; i++) {
            const T *x = (const T *)j->input + i * wide;
            for (int64_t c = 0; c < wide; c++) square[c] += (x[c] - mean[c]) * (x[c] - mean[c]);
        }
        NAME(fold)(square, wide, channels);
        for (int64_t c = 0; c < channels; c++) square[c] /= m;
    }
    for (int64_t i = 0; gradient && i < rows; i++) {
        const T *x = (const T *)j->input + i * wide, *dy = gradient + i * wide;
        for (int64_t c = 0; c < wide; c++) {
            s1[c] += dy[c];
            s2[c] += dy[c] * (x[c] - mean[c]);
        }
    }
    NAME(fold)(s1, wide, channels);
    NAME(fold)(s2, wide, channels);
    for (int64_t c = 0; c < channels; c++)
        NAME(finish)(j, c, m, mean[c], square[c], s1[c], s2[c], &a[c], &b[c], &d[c]);
    NAME(repeat)(a, wide, channels);
    NAME(repeat)(b, wide, channels);
    NAME(repeat)(d, wide, channels);
    for (int64_t i = 0; i < rows; i++) {
        const T *x = (const T *)j->input + i * wide, *dy = gradient + i * wide;
        T *y = (T *)j->output + i * wide;
        if (gradient)
            for (int64_t c = 0; c < wide; c++) y[c] = dy[c] * a[c] + x[c] * d[c] + b[c];
        else
            for (int64_t c = 0; c < wide; c++) y[c] = x[c] * a[c] + b[c];
    }
}

void NAME(bare_run)(const bare_job *j)
{
    if (j->nhwc || j->s == 1)
        NAME(columns)(j);
    else
        NAME(rows)(j);
}
