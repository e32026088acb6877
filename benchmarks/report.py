#!/usr/bin/env python3
"""Makes the tables (results.md) and the pictures from results.csv, and from nothing else.

report.py FOLDER        reads FOLDER/results.csv, writes beside it
"""

from __future__ import annotations

import sys
from pathlib import Path

from pictures import draw_pictures
from results import faster_than_limit, read
from tables import write_tables


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    header, cells, sweeps = read(folder / "results.csv")
    table = folder / "results.md"
    write_tables(header, cells, sweeps, table)
    print("\n".join(map(str, [table, *draw_pictures(header, cells, folder)])))
    for row, ratio, _ in faster_than_limit(cells):
        where = f"{ratio.cell.case} {ratio.cell.shape}"
        print(
            f"faster than the limit: {row.contender} at {ratio} of {ratio.cell.honest.contender}, "
            f"{where} (others used {row.others_percent:.0f} % of the machine)",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
