"""The command line: trains everything, prints table and verdicts, draws the pictures."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import batchnorm

from . import figures, report
from .data import load_digits
from .experiments import FULL, QUICK, run_all


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo; returns the exit status."""
    parser = argparse.ArgumentParser(prog="demo", description=main.__doc__ and __doc__)
    parser.add_argument("--quick", action="store_true", help="train little: under 30 seconds")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("demo-output"),
        help="folder for the results (%(default)s)",
    )
    options = parser.parse_args(arguments)
    folder: Path = options.output.resolve()
    folder.mkdir(parents=True, exist_ok=True)

    size = QUICK if options.quick else FULL
    digits = load_digits(size.train_per_class, size.test_per_class)
    print(
        f"libbatchnorm {batchnorm.version()} ({batchnorm.get_isa()}), "
        f"{len(digits.train_images)} training and {len(digits.test_images)} test digits",
        flush=True,
    )
    results = run_all(size, digits)
    print(f"\n{report.summary(results)}\n")
    pictures = figures.draw_all(results, folder)
    files = report.write(results, pictures, folder)
    print(f"Trained for {results.seconds:.0f} s. Pictures and report:")
    for path in (*pictures, *files):
        print(f"  {path}")
    return 0
