"""Error rates of the verdict, by simulation: `python tests/simulate_verdict.py`.

A table has 10 rows; the first is 7 % slower, the others are equal. Times of processes
vary by a log-normal factor, drawn for each process and row, so pairs share only the session. Prints
the table of docs/statistics.md, the same at each run, in a quarter of a minute.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adadelta_cli.bench.significance import LogRatio, Verdict, judge_all, paired, unpaired

ROWS, SLOWER_BY, THRESHOLD = 10, 0.07, 0.05


@dataclass(frozen=True)
class Noise:
    """The variation of times, as standard deviations of their logarithms.

    Attributes:
        process: between processes.
        session: between two runs of bench, for each row, beyond that.
        outliers: the share of processes that are 20 % slower.
    """

    name: str
    process: float
    session: float = 0.0
    outliers: float = 0.0


NOISES = (
    Noise("1 %", 0.01),
    Noise("2 %", 0.02),
    Noise("3 %", 0.03),
    Noise("8 %", 0.08),
    Noise("1 %, one process in ten 20 % slower", 0.01, outliers=0.1),
    Noise("1 %, and 1 % between sessions", 0.01, session=0.01),
    Noise("1 %, and 2 % between sessions", 0.01, session=0.02),
)
PROCESSES = (3, 6, 12)


def table(noise: Noise, processes: int, random: np.random.Generator) -> list[list[LogRatio]]:
    """Draw a table and test it: its rows by `paired`, timed in one session, and by `unpaired`."""
    sides = random.normal(0, noise.process, (2, ROWS, processes))
    sides += np.log(1.2) * (random.random(sides.shape) < noise.outliers)
    sides[1, 0] += np.log(1 + SLOWER_BY)
    old, new = np.exp(sides)
    later = np.exp(random.normal(0, noise.session * np.sqrt(2), (ROWS, 1))) * new
    return [list(map(paired, new / old)), list(map(unpaired, old, later))]


def rates(noise: Noise, processes: int, tables: int = 1000, seed: int = 0) -> np.ndarray:
    """Return, for `paired` and `unpaired`, three shares.

    Tables with a false alarm (an equal row SLOWER), tables whose slow row is found, and equal rows
    that are SAME.
    """
    random = np.random.default_rng(seed)
    found = np.zeros((2, 3))
    for _ in range(tables):
        for design, rows in enumerate(table(noise, processes, random)):
            slow, *equal = [each.verdict for each in judge_all(rows, THRESHOLD)]
            same = equal.count(Verdict.SAME) / len(equal)
            found[design] += (Verdict.SLOWER in equal, slow is Verdict.SLOWER, same)
    return found / tables


def line(noise: Noise, processes: int) -> str:
    """Write a line of the table."""
    cells = [" / ".join(f"{100 * x:.1f}" for x in each) for each in rates(noise, processes)]
    return f"| {noise.name} | {processes} | {' | '.join(cells)} |"


if __name__ == "__main__":
    print("| noise of a process | processes | `--against` | `compare` |\n|---|---|---|---|")  # noqa: T201
    for noise in NOISES:
        for processes in PROCESSES:
            print(line(noise, processes), flush=True)  # noqa: T201
