#include "plans.h"

#include <stdio.h>

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static bool known(const bnk_plan *cuts, int count, bnk_plan cut)
{
    for (int i = 0; i < count; i++)
        if (cuts[i].by_columns == cut.by_columns && cuts[i].rows_per_line == cut.rows_per_line &&
            cuts[i].run_channels == cut.run_channels && cuts[i].piece_rows == cut.piece_rows &&
            cuts[i].piece_values == cut.piece_values)
            return true;
    return false;
}

static int add(bnk_plan *cuts, int count, bnk_plan cut)
{
    cut.threads = 1;
    cut.whole_runs = 0;
    cut.nontemporal = 0;
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
                                .rows_per_line = 1,
                                .run_channels = 1,
                                .piece_rows = smaller(pieces[i][0], rows),
                                .piece_values = smaller(pieces[i][1], inner) });

    /* By columns: runs of one, three and as many channels as fit. */
    const int64_t fitting = smaller(channels, BNK_MAX_COLUMNS / inner);
    const int64_t runs[][2] = { { fitting, rows }, { fitting, 5 }, { 3, 2 }, { 1, rows } };
    for (size_t i = 0; fitting > 0 && i < sizeof runs / sizeof *runs; i++)
        count = add(cuts, count,
                    (bnk_plan){ .by_columns = 1,
                                .rows_per_line = 1,
                                .run_channels = smaller(runs[i][0], fitting),
                                .piece_rows = smaller(runs[i][1], rows),
                                .piece_values = inner });

    /* Several short rows as one. */
    const int64_t lines[] = { 2, 5, BNK_MAX_COLUMNS / channels };
    for (size_t i = 0; inner == 1 && i < sizeof lines / sizeof *lines; i++) {
        bnk_plan cut = { .by_columns = 1,
                         .rows_per_line =
                             smaller(smaller(lines[i], rows), BNK_MAX_COLUMNS / channels),
                         .run_channels = channels,
                         .piece_rows = rows,
                         .piece_values = 1 };
        if (cut.rows_per_line < 2) continue;
        count = add(cuts, count, cut);
        cut.piece_rows = 2 * cut.rows_per_line;
        if (cut.piece_rows < rows) count = add(cuts, count, cut);
    }
    return count;
}

int manners_of(bnk_plan cut, bool thorough, bnk_plan manners[MAX_MANNERS])
{
    static const int32_t all_threads[] = { 1, 3, 2, 5, 8 };
    const int different_threads = thorough ? 5 : 2;
    int count = 0;
    for (int32_t isa = next_isa(-1); isa >= 0; isa = next_isa(isa))
        for (int32_t whole_runs = 0; whole_runs < 2; whole_runs++)
            for (int32_t nontemporal = 0; nontemporal < 2; nontemporal++)
                for (int t = 0; t < different_threads; t++) {
                    /* The generic code is slow; that stores and threads go together shows elsewhere. */
                    if (isa == BNK_ISA_GENERIC && nontemporal && t > 0) continue;
                    cut.isa = isa;
                    cut.whole_runs = whole_runs;
                    cut.nontemporal = nontemporal;
                    cut.threads = all_threads[t];
                    manners[count++] = cut;
                }
    return count;
}

const char *plan_text(const bnk_grid *grid, const bnk_plan *plan)
{
    static const char *const isa_names[] = { "generic", "avx2", "avx512" };
    static char text[256];
    snprintf(
        text, sizeof text,
        "%s [%lld][%lld][%lld], by %s, rows_per_line %lld, run_channels %lld, piece_rows %lld, "
        "piece_values %lld, "
        "%d threads, %s, %s, %s",
        grid->is_double ? "double" : "float", (long long)grid->rows, (long long)grid->channels,
        (long long)grid->inner, plan->by_columns ? "columns" : "rows",
        (long long)plan->rows_per_line, (long long)plan->run_channels, (long long)plan->piece_rows,
        (long long)plan->piece_values, plan->threads,
        plan->whole_runs ? "whole runs" : "three steps",
        plan->nontemporal ? "non-temporal" : "ordinary", isa_names[plan->isa]);
    return text;
}
