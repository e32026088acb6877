/* Applies a channel by rows in turns with other work: see bnk_application in apply.h. */
#include "apply.h"

void bnk_apply_begin(bnk_application *a, const bnk_operands *o, const bnk_piece *piece,
                     const bnk_linear *f)
{
    a->operands = o;
    a->piece = *piece;
    a->f = *f;
    a->row = a->offset = a->owed = 0;
}

/* A turn ends where a cache line of y does, so that each is written whole. */
static int64_t whole_lines(const bnk_application *a, int64_t length)
{
    const bnk_cut *cut = a->operands->cut;
    const int64_t at = bnk_first_element(cut, &a->piece) + a->row * cut->stride + a->offset;
    const char *end = bnk_value(a->operands, bnk_written(a->operands), at + length);
    return length - (int64_t)((uintptr_t)end % 64) / cut->element;
}

void bnk_apply_some(bnk_application *a, int64_t elements)
{
    const bnk_piece *piece = &a->piece;
    a->owed += elements;
    while (a->row < piece->rows) {
        int64_t rows = 1, length = piece->length - a->offset;
        if (a->offset == 0 && a->owed >= length)
            rows = bnk_min(a->owed / length, piece->rows - a->row);
        else if (length > a->owed)
            length = whole_lines(a, a->owed);
        if (length <= 0) return;
        const bnk_piece part = { .channel = piece->channel,
                                 .channels = 1,
                                 .row = piece->row + a->row,
                                 .rows = rows,
                                 .offset = piece->offset + a->offset,
                                 .length = length };
        bnk_apply_rows(a->operands, &part, &a->f);
        a->owed -= rows * length;
        a->offset += length;
        if (a->offset == piece->length) {
            a->offset = 0;
            a->row += rows;
        }
    }
}

void bnk_apply_rest(bnk_application *a)
{
    bnk_apply_some(a, a->piece.rows * a->piece.length);
}
