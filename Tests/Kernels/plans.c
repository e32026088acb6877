#include "plans.h"

#include <stdio.h>

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static bool known(const bnk_plan *cuts, int count, bnk_plan cut)
{
    for (int i = 0; i < count; i++)
        if (cuts[i].by_columns == cut.by_columns && cuts[i].fold == cut.fold &&
            cuts[i].run == cut.run && cuts[i].group_rows == cut.group_rows &&
            cuts[i].segment == cut.segment)
            return true;
    return false;
}

static int add(bnk_plan *cuts, int count, bnk_plan cut)
{
    cut.threads = 1;
    cut.fused = 0;
    cut.stream = 0;
    cut.isa = BNK_ISA_GENERIC;
    if (known(cuts, count, cut)) return count;
    cuts[count] = cut;
    return count + 1;
}

int cuts_of(const bnk_grid *grid, bnk_plan cuts[MAX_CUTS])
{
    const int64_t rows = grid->rows, channels = grid->channels, inner = grid->inner;
    int count = 0;

    /* By rows: all at once, value by value almost, and pieces that do not divide anything. */
    const int64_t pieces[][2] = {
        { rows, inner }, { 1, inner }, { 3, inner }, { 1, 16 }, { 2, 7 }
    };
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++)
        count = add(cuts, count,
                    (bnk_plan){ .by_columns = 0,
                                .fold = 1,
                                .run = 1,
                                .group_rows = smaller(pieces[i][0], rows),
                                .segment = smaller(pieces[i][1], inner) });

    /* By columns: runs of one, three and as many channels as fit. */
    const int64_t fitting = smaller(channels, BNK_MAX_COLUMNS / inner);
    const int64_t runs[][2] = { { fitting, rows }, { fitting, 5 }, { 3, 2 }, { 1, rows } };
    for (size_t i = 0; fitting > 0 && i < sizeof runs / sizeof *runs; i++)
        count = add(cuts, count,
                    (bnk_plan){ .by_columns = 1,
                                .fold = 1,
                                .run = smaller(runs[i][0], fitting),
                                .group_rows = smaller(runs[i][1], rows),
                                .segment = inner });

    /* Several short rows as one. */
    const int64_t folds[] = { 2, 5, BNK_MAX_COLUMNS / channels };
    for (size_t i = 0; inner == 1 && i < sizeof folds / sizeof *folds; i++) {
        const int64_t fold = smaller(smaller(folds[i], rows), BNK_MAX_COLUMNS / channels);
        if (fold < 2) continue;
        const bnk_plan folded = {
            .by_columns = 1, .fold = fold, .run = channels, .group_rows = rows, .segment = 1
        };
        count = add(cuts, count, folded);
        if (2 * fold >= rows) continue;
        bnk_plan grouped = folded;
        grouped.group_rows = 2 * fold;
        count = add(cuts, count, grouped);
    }
    return count;
}

int manners_of(bnk_plan cut, bool thorough, bnk_plan manners[MAX_MANNERS])
{
    static const int32_t all_threads[] = { 1, 3, 2, 5, 8 };
    const int different_threads = thorough ? 5 : 2;
    int count = 0;
    for (int32_t isa = next_isa(-1); isa >= 0; isa = next_isa(isa))
        for (int32_t fused = 0; fused < 2; fused++)
            for (int32_t stream = 0; stream < 2; stream++)
                for (int t = 0; t < different_threads; t++) {
                    /* The generic code is slow; that stores and threads go together shows elsewhere. */
                    if (isa == BNK_ISA_GENERIC && stream && t > 0) continue;
                    cut.isa = isa;
                    cut.fused = fused;
                    cut.stream = stream;
                    cut.threads = all_threads[t];
                    manners[count++] = cut;
                }
    return count;
}

const char *plan_text(const bnk_grid *grid, const bnk_plan *plan)
{
    static const char *const isa_names[] = { "generic", "avx2", "avx512" };
    static char text[256];
    snprintf(text, sizeof text,
             "%s [%lld][%lld][%lld], by %s, fold %lld, run %lld, group_rows %lld, segment %lld, "
             "%d threads, %s, %s, %s",
             grid->is_double ? "double" : "float", (long long)grid->rows, (long long)grid->channels,
             (long long)grid->inner, plan->by_columns ? "columns" : "rows", (long long)plan->fold,
             (long long)plan->run, (long long)plan->group_rows, (long long)plan->segment,
             plan->threads, plan->fused ? "fused" : "split", plan->stream ? "stream" : "store",
             isa_names[plan->isa]);
    return text;
}
