"""Repeat a bench command, and count how often its answers agree, for docs/statistics.md.

    python tests/repeat_bench.py 21 OUT -- --sizes 1e5,1e6,1e7 --impl numpy-fused
    python tests/repeat_bench.py 20 OUT -- --sizes 1e6 --impl numpy-fused --against OTHER/bin/python

Of a plain command it counts in how many pairs of successive repeats the intervals of the share of
the ceiling overlap, and the verdicts of `adadelta compare` on them; with `--against`, the verdicts.
Each repeat's rows go to OUT/repeats.csv. `ADADELTA` names another command than the installed one.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

COMMAND = os.environ.get("ADADELTA", str(Path(sys.executable).parent / "adadelta"))
KEY = ("implementation", "workload", "dtype", "threads", "cache")
SHARE = ("ceiling_fraction_low", "ceiling_fraction", "ceiling_fraction_high")


def bench(out: Path, arguments: list[str]) -> dict:
    """Run the command once; return its JSON document."""
    command = [COMMAND, "bench", "--json", "-q", "--out", str(out), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def compared(old: Path, new: Path) -> list[dict]:
    """Compare two results; return the rows."""
    command = [COMMAND, "compare", str(old), str(new), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return json.loads(done.stdout)["rows"]


def main() -> None:
    """Repeat, write, count."""
    repeats, out, arguments = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[4:]
    rows: list[dict] = []
    for k in range(repeats):
        document = bench(out / f"{k:02d}", arguments)
        judged = [row for each in document["comparisons"] for row in each["rows"]]
        chosen = judged or document["rows"]
        rows += [{"repeat": k, **{name: row[name] for name in columns(judged)}} for row in chosen]
        print(f"{k + 1} of {repeats}", file=sys.stderr)
    with (out / "repeats.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    if "verdict" in rows[0]:
        report("verdicts", Counter((name(row), row["verdict"]) for row in rows))
    else:
        report("intervals of successive repeats", overlaps(rows))
        pairs = pairwise(out / f"{k:02d}" for k in range(repeats))
        verdicts = [row for pair in pairs for row in compared(*pair)]
        report("adadelta compare", Counter((name(row), row["verdict"]) for row in verdicts))


def columns(judged: list[dict]) -> tuple[str, ...]:
    """Return the columns that are written for a row."""
    kept = ("ratio_low", "ratio", "ratio_high", "verdict") if judged else ("median_s", *SHARE)
    return (*KEY, *kept)


def name(row: dict) -> str:
    """Name a row."""
    return f"{row['workload']} {row['implementation']} {row['cache']}"


def overlaps(rows: list[dict]) -> Counter:
    """Count the pairs of successive repeats with overlapping intervals."""
    by_name: dict[str, list[dict]] = {}
    for row in rows:
        by_name.setdefault(name(row), []).append(row)
    found: Counter = Counter()
    for each, several in by_name.items():
        for a, b in pairwise(several):
            meet = a[SHARE[0]] <= b[SHARE[2]] and b[SHARE[0]] <= a[SHARE[2]]
            found[each, "overlap" if meet else "apart"] += 1
    return found


def report(title: str, counts: Counter) -> None:
    """Print counts by row."""
    print(title)
    for (row, what), count in sorted(counts.items()):
        print(f"  {row:28} {what:8} {count}")


if __name__ == "__main__":
    main()
