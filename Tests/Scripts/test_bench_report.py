"""What benchmarks/report.py makes of measurements: whose limit, which peer, what is said aloud."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import results  # noqa: E402
import tables  # noqa: E402

SHAPE = "32x64x56x56"  # 51 MB in a forward
LLC = 32 << 20


@dataclass
class Time:
    """Of a contender, in microseconds."""

    contender: str
    median: float
    spread: float = 2  # percent


class Report:
    """Cells to write, and the report of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, object]] = []

    def cell(
        self,
        *times: Time,
        op="forward",
        layout="nchw",
        shape=SHAPE,
        moved=51 << 20,
        dtype="float32",
    ):
        by_name = {time.contender: time.median for time in times}
        limits = {n: t for n, t in by_name.items() if n.startswith(("copy", "triad", "read"))}
        twice = {n: t for n, t in limits.items() if "+reads" in n} or limits
        for time in times:
            self.rows.append(
                {
                    "op": op,
                    "layout": layout,
                    "dtype": dtype,
                    "shape": shape,
                    "file": "design",
                    "threads": 2,
                    "buffers": "warm",
                    "contender": time.contender,
                    "median_us": time.median,
                    "min_us": time.median,
                    "spread_percent": time.spread,
                    "ratio_plain": time.median / limits.get("copy", 1),
                    "ratio_best": time.median / min(limits.values()),
                    "ratio_honest": time.median / min(twice.values()),
                    "bytes": moved,
                    "gb_per_s": moved / time.median / 1000,
                    "rounds": 15,
                    "others_percent": 1,
                }
            )
        return self

    def write(self) -> Path:
        path = self.folder / "results.csv"
        with path.open("w", newline="") as file:
            file.write(f"# LLC_share: {LLC}\n# cpu: a CPU\n")
            writer = csv.DictWriter(file, self.rows[0])
            writer.writeheader()
            writer.writerows(self.rows)
        return path

    @property
    def faster(self) -> list[str]:
        """Contenders that are faster than the limit."""
        _, cells, _ = results.read(self.write())
        return [row.contender for row, *_ in results.faster_than_limit(cells)]

    @property
    def text(self) -> str:
        """results.md"""
        path = self.folder / "results.md"
        tables.write_tables(*results.read(self.write()), path)
        return path.read_text()

    def section(self, title: str) -> str:
        return self.text.partition(f"## {title}")[2].partition("\n## ")[0]


@pytest.fixture
def report(tmp_path: Path) -> Report:
    return Report(tmp_path)


def test_what_is_faster_than_the_limit_is_told_aloud(report: Report) -> None:
    report.cell(Time("batchnorm", 130), Time("copy", 100), Time("PyTorch", 80))
    report.write()
    command = [sys.executable, str(BENCHMARKS / "report.py"), str(report.folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "faster than the limit: PyTorch at 0.80 / 0.80 of copy, forward NCHW" in done.stderr
    assert "others used 1 % of the machine" in done.stderr
    assert "batchnorm" not in done.stderr
    assert "**Faster than the limit: 1**" in report.text.partition("## The machine")[0]
    assert (report.folder / "ratio-forward.png").stat().st_size > 10_000


@pytest.mark.parametrize("spread, told", [(3, ["batchnorm"]), (30, [])])
def test_noise_is_what_both_times_spread(report: Report, spread: float, told: list[str]) -> None:
    report.cell(Time("batchnorm", 90, spread), Time("copy", 100, spread))
    assert report.faster == told


def test_what_is_masked_moves_less_than_its_limit(report: Report) -> None:
    report.cell(Time("batchnorm", 60), Time("copy", 100), op="forward+lengths", shape="32x64x3136")
    assert not report.faster


def test_a_second_read_belongs_to_the_limit_where_it_was_timed(report: Report) -> None:
    times = Time("batchnorm", 120), Time("copy", 100), Time("copy-x4-nt+reads-x8-back", 150)
    report.cell(*times, layout="nhwc")
    assert report.faster == ["batchnorm"]
    assert "| copy-x4-nt+reads-x8-back | 0.80 / 0.80 |" in report.section("Is the limit one?")


def test_the_faster_release_in_the_same_layout_is_the_fastest_peer(report: Report) -> None:
    report.cell(
        Time("batchnorm", 150),
        Time("copy", 50),
        Time("oneDNN@3.2", 140),
        Time("oneDNN@3.13", 120),
        Time("oneDNN-blocked@3.2", 100),
    )
    ahead = report.section("Where a peer is ahead")
    same, _, blocked = ahead.partition("**oneDNN's blocked layout**")
    assert "| oneDNN 3.13 | 1.25 / 1.25 | 3.00 / 3.00 |" in same
    assert "oneDNN 3.2" not in same and "blocked layout 3.2" not in same
    assert "| oneDNN, blocked layout 3.2 | 1.50 / 1.50 |" in blocked


@pytest.mark.parametrize(
    "shape, moved, group",
    [(SHAPE, LLC + 1, "beyond L3"), (SHAPE, LLC, "inside L3"), ("128x32", 32 << 10, "tiny")],
)
def test_groups_go_by_the_bytes_moved(report: Report, shape: str, moved: int, group: str) -> None:
    report.cell(Time("batchnorm", 150), Time("copy", 50), shape=shape, moved=moved)
    assert f"| forward NCHW float32 x2 warm | {group} | 1 | 3.00 | 3.00 / 3.00 |" in report.section(
        "Against the limit"
    )


def test_relations_within_the_library(report: Report) -> None:
    report.cell(Time("batchnorm", 120), Time("copy", 100))
    report.cell(Time("batchnorm", 80), Time("copy", 50), dtype="bfloat16")
    report.cell(Time("batchnorm", 180), Time("triad", 150), op="forward+add+relu")
    relations = report.section("Half types")
    assert "| forward NCHW, beyond L3: bfloat16 over float32 | 1 | 1.50 |" in relations
    assert "| forward+add+relu NCHW, beyond L3 float32: over forward | 1 | 1.00 |" in relations


def test_a_share_of_the_memory_s_speed(report: Report) -> None:
    report.cell(
        Time("read-x8", 80),
        Time("copy", 110),
        Time("copy-x4-nt", 100),
        Time("triad", 130),
        op="memory",
    )
    report.cell(Time("batchnorm", 150), Time("copy", 125))
    text = report.text
    assert "| 91 % |" in text.partition("## Against the limit")[0], (
        "the plain copy, of the best one"
    )
    assert "| 80 % |" in text.partition("## Every cell")[2], "the cell's"
