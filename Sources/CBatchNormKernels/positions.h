/* Which positions of a tensor take part, and sums over those of a stretch. */
#ifndef BNK_POSITIONS_H
#define BNK_POSITIONS_H

#include "operands.h"
#include "sums.h"

/* Which of a row's values take part, from inner value `offset` on; NULL: all of `length`. */
const uint8_t *bnk_positions_of_row(const bnk_operands *o, int64_t row, int64_t offset,
                                    int64_t length);

/* The same for the columns of a line: `rows` rows from `row` on, `channels` of each. columns: room for
 * BNK_MAX_COLUMNS. */
const uint8_t *bnk_positions_of_line(const bnk_operands *o, int64_t row, int64_t rows,
                                     int64_t channels, uint8_t *columns);

/* If the first ones of `length` values take part and no others do, as in a padded sequence, how many these
 * are; else -1. */
int64_t bnk_prefix_taking_part(const uint8_t *positions, int64_t length);

/* How many positions take part in some rows' inner values [offset, offset + length), and the first of
 * them. */
typedef struct bnk_taking_part {
    int64_t count, row, offset;
} bnk_taking_part;
bnk_taking_part bnk_taking_part_in(const bnk_operands *o, int64_t row, int64_t rows, int64_t offset,
                                   int64_t length);

/* Adds x without what is masked to sums around pivots. By rows count <= BNK_STRETCH. */
void bnk_masked_row_sums(const bnk_operands *o, int64_t at, int64_t count, const uint8_t *positions,
                         bnk_row_sums *sums);
void bnk_masked_line_sums(const bnk_operands *o, int64_t at, int64_t count,
                          const uint8_t *positions, bnk_column_sums *sums);

#endif
