"""What `doctor` found, as tables and as a document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from adadelta_cli.doctor.checks import CheckOutcome
from adadelta_cli.doctor.findings import Level
from adadelta_cli.files import jsonable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from adadelta_cli.doctor.checks import Check, Examination

KEY_WIDTH = 17  # the longest name of a piece: the tables stand below each other
TEXT_WIDTH = 80  # also where the terminal is wider: longer lines are hard to read


def doctor_document(found: Examination) -> dict[str, Any]:
    """Arrange an examination as `--json` has it."""
    parts = jsonable(found)
    del parts["conditions"]  # they are among the findings
    return {"exit_code": int(found.exit_code), **parts, "findings": jsonable(found.findings)}


def doctor_tables(found: Examination, verbosity: int) -> list[Table]:
    """Lay out an examination; with `-q`, only what does not work, and what was found."""
    if verbosity < 0:
        troubled = [check for check in found.checks if check.outcome is not CheckOutcome.WORKS]
        tables = [checks_table(troubled, "What does not work"), findings_table(found)]
    else:
        tables = [
            machine_table(found, verbose=verbosity > 0),
            checks_table(found.checks),
            findings_table(found),
        ]
    return [table for table in tables if table.row_count]


# --- the machine ----------------------------------------------------------------------------------


def machine_table(found: Examination, *, verbose: bool) -> Table:
    """Lay out what the machine is, a fact a line; what is not known here is left out."""
    table = _table("The machine", columns=2)
    for name, fact in (*_facts(found), *(_more_facts(found) if verbose else ())):
        if fact:
            table.add_row(f"[bold]{name}[/]", escape(fact))
    return table


def _facts(found: Examination) -> Iterator[tuple[str, str]]:
    here = found.machine
    yield "host", here.host
    yield "processor", ", ".join(filter(None, (here.processor, here.architecture, here.simd)))
    yield "cores", ", ".join(_cores(found))
    yield "caches", ", ".join(_caches(found))
    yield "memory", ", ".join(_memory(found))
    yield "frequency", ", ".join(_frequency(found))
    yield "activity", ", ".join(_activity(found))
    yield "virtual", ", ".join(_virtual(found))
    yield "GPU", ", ".join(here.gpus)
    yield "system", here.kernel
    yield "Python", here.python
    yield "libraries", ", ".join(f"{name} {version}" for name, version in here.versions.items())
    yield "environment", ", ".join(f"{name}={value}" for name, value in here.environment.items())


def _more_facts(found: Examination) -> Iterator[tuple[str, str]]:
    here = found.machine
    yield "Numba", f"built with the threading layers {', '.join(here.threading_layers)}"
    yield "OpenMP", "\n".join(here.openmp_runtimes)
    yield "compiler", here.compiler or ""


def _cores(found: Examination) -> Iterator[str]:
    here = found.machine
    yield f"{here.cores} logical"
    if here.cores_physical:
        yield f"{here.cores_physical} physical"
    yield f"{here.cores_available} for this process"
    if here.cpu_quota_cores is not None:
        yield f"the time of {here.cpu_quota_cores:g} by quota"
    if here.numa_nodes:
        yield f"on {here.numa_nodes} NUMA node{'s' * (here.numa_nodes > 1)}"


def _caches(found: Examination) -> Iterator[str]:
    here = found.machine
    for level, size in here.cache_bytes.items():
        shared = here.cache_shared_by[level]
        yield f"{level} {_binary(size)} for {shared} core{'s' * (shared > 1)}"


def _memory(found: Examination) -> Iterator[str]:
    here = found.machine
    if here.memory_bytes:
        yield f"{here.memory_bytes / 1e9:.1f} GB"
    if here.memory_available_bytes is not None:
        yield f"{here.memory_available_bytes / 1e9:.1f} GB available"
    if here.swap_used_bytes:
        yield f"{here.swap_used_bytes / 1e9:.1f} GB in swap"
    if here.huge_pages:
        yield f"huge pages: {here.huge_pages}"


def _frequency(found: Examination) -> Iterator[str]:
    here = found.machine
    if here.governor:
        yield f"governor {here.governor}"
    if here.turbo is not None:
        yield f"turbo {'on' if here.turbo else 'off'}"


def _activity(found: Examination) -> Iterator[str]:
    if found.activity.busy_cores is not None:
        yield f"{found.activity.busy_cores:.2f} cores busy with other work"
    if found.machine.load_average is not None:
        yield f"load {found.machine.load_average:.2f} over the last minute"
    if found.steal_share is not None:
        yield f"{found.steal_share:.1%} of its time taken by the hypervisor"


def _virtual(found: Examination) -> Iterator[str]:
    here = found.machine
    if here.hypervisor:
        yield f"hypervisor {here.hypervisor}"
    if here.container:
        yield f"container {here.container}"


def _binary(size: int) -> str:
    return f"{size / 2**20:g} MiB" if size >= 2**20 else f"{size / 2**10:g} KiB"


# --- what was tried -------------------------------------------------------------------------------

OUTCOMES = {
    CheckOutcome.WORKS: "[green]works[/]",
    CheckOutcome.BROKEN: "[red]broken[/]",
    CheckOutcome.MISSING: "[yellow]missing[/]",
}


def checks_table(checks: Sequence[Check], title: str = "What works") -> Table:
    """Lay out what was tried, and what came of it."""
    table = _table(title, columns=4)
    for check in checks:
        took = "" if check.outcome is CheckOutcome.MISSING else f"[dim]{check.seconds:.1f} s[/]"
        table.add_row(f"[bold]{check.name}[/]", OUTCOMES[check.outcome], took, _came_of(check))
    return table


def _came_of(check: Check) -> str:
    if check.outcome is CheckOutcome.WORKS:
        return escape(check.observed)
    return f"{escape(check.observed)}; needed for {escape(check.purpose)}\n{_fix(check.fix)}"


def _fix(fix: str) -> str:
    return f"[cyan]-> {escape(fix)}[/]"


# --- findings -------------------------------------------------------------------------------------

LEVELS = {Level.BROKEN: "[red]broken[/]", Level.DISTURBS: "[yellow]disturbs[/]", Level.NOTE: "note"}


def findings_table(found: Examination) -> Table:
    """Lay out what about the machine is to be known; what was tried has a table of its own."""
    table = _table("Before a measurement", columns=2)
    for finding in found.conditions:
        what, why = escape(finding.what), escape(finding.why)
        text = f"[bold]{what}[/]\n{why}\n{_fix(finding.fix)}"
        table.add_row(LEVELS[finding.level], text)
    return table


def verdict(found: Examination) -> str:
    """Sum up in a sentence."""
    broken, disturbs, missing = (
        len(found.of(level)) for level in (Level.BROKEN, Level.DISTURBS, Level.MISSING)
    )
    works = "What is needed works"
    if broken:
        works = f"{_counted(broken, 'thing')} broken, to be fixed as said above"
    disturbed = (
        f"{_counted(disturbs, 'thing') if disturbs else 'nothing'} will disturb a measurement"
    )
    parts = (works, disturbed, f"{_counted(missing, 'optional piece')} missing")
    return "; ".join(parts)


def _counted(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'s' * (number != 1)}"


# --- layout ---------------------------------------------------------------------------------------


def _table(title: str, columns: int) -> Table:
    table = Table(
        title=f"\n{title}",
        title_justify="left",
        title_style="bold",
        box=None,
        show_header=False,
        padding=(0, 1),
    )
    table.add_column(no_wrap=True, min_width=KEY_WIDTH)
    for _ in range(columns - 2):
        table.add_column(no_wrap=True)
    table.add_column(max_width=TEXT_WIDTH, overflow="fold")
    return table
