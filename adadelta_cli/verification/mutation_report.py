"""Write selftest.csv and self-test.md: the mutants, and what caught them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adadelta_cli.files import jsonable, write_bytes, write_csv

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.table import Table

    from adadelta_cli.verification import self_test


SELF_TEST_PAGE = """# Mutants

`adadelta verify --self-test` makes each of these mistakes in the one source that it belongs to: the
array update, the scalar kernel, or a user kernel, which is checked through `--impl`. `verify` must
catch each of these mutants. The command wrote this page.

The case is the smallest of `verify`'s own that catches the mutant; `adadelta verify --case` runs it
on any implementation. The last two columns say whether the test procedure of MXNet or of PyTorch,
as in its repository, would have caught the same mistake, with the array update as reference:

* MXNet's: one step from zero accumulators on three small tensors, uniform in [0, 1); relative
  tolerance 1e-4, absolute 1e-5, over a grid of hyper-parameters, float32 and float16.
* PyTorch's: seven steps of two small linear layers in float64, a relative and absolute tolerance
  of 1e-7, over rates, weight decays and rho. It covers neither rescaling nor clipping.

{counts}

| mutant | mistake | source | smallest case | MXNet's test | PyTorch's test |
|---|---|---|---|---|---|
{lines}
"""


FILES = ("selftest.csv", "self-test.md")


def write_self_test(
    folder: Path, rows: Sequence[self_test.MutantRow], unfinished: str = ""
) -> None:
    """Write selftest.csv and the page self-test.md; `unfinished` says what is missing."""
    if rows:
        write_csv(folder / "selftest.csv", rows)
        write_bytes(folder / "self-test.md", self_test_page(rows, unfinished).encode())


def self_test_document(rows: Sequence[self_test.MutantRow], unfinished: str = "") -> dict[str, Any]:
    """Arrange a self-test for `--json`."""
    passed = not unfinished and all(row.passed for row in rows)
    return {"complete": not unfinished, "passed": passed, "rows": jsonable(list(rows))}


def _self_test_counts(rows: Sequence[self_test.MutantRow], unfinished: str) -> str:
    mutants = [row for row in rows if row.is_mutant]
    caught, mxnet, pytorch = (
        sum(getattr(row, name) for row in mutants)
        for name in ("caught", "mxnet_test", "pytorch_test")
    )
    counts = (
        f"Of {len(mutants)} mutants, `verify` catches {caught}, MXNet's test {mxnet}, "
        f"PyTorch's {pytorch}."
    )
    return f"{unfinished[:1].upper()}{unfinished[1:]}. {counts}" if unfinished else counts


def self_test_page(rows: Sequence[self_test.MutantRow], unfinished: str = "") -> str:
    """Write the page of the documentation that lists the mutants."""
    lines = [
        f"| `{row.fault}` | {row.about} | `{row.source}` | `{row.case}` {row.dtype} | "
        f"{_caught(row.mxnet_test)} | {_caught(row.pytorch_test)} |"
        for row in rows
        if row.is_mutant
    ]
    counts = _self_test_counts(rows, unfinished)
    return SELF_TEST_PAGE.format(counts=counts, lines="\n".join(lines))


def _caught(caught: bool) -> str:
    return "catches it" if caught else "lets it pass"


def self_test_table(rows: Sequence[self_test.MutantRow], unfinished: str = "") -> Table:
    """Lay out what caught each mutant."""
    from adadelta_cli.tables import FittingTable

    table = FittingTable(
        title="adadelta verify --self-test: is every mutant caught?",
        caption=_self_test_counts(rows, unfinished).replace("`", ""),
    )
    # Dropped by a narrow terminal in this order.
    ranks = {"tensor": 4, "PyTorch's": 3, "MXNet's": 2, "mistake": 1}
    names = ("mutant", "mistake", "smallest case", "tensor", "MXNet's", "PyTorch's", "verdict")
    for name in names:
        table.add_column(name, rank=ranks.get(name, 0), wrap=name == "mistake")
    for row in rows:
        table.add_row(
            row.fault,
            row.about,
            f"{row.case} {row.dtype}",
            row.tensor,
            _caught(row.mxnet_test),
            _caught(row.pytorch_test),
            f"[{'green' if row.passed else 'red'}]{row.verdict.value}[/]",
        )
    return table
