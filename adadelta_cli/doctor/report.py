"""Doctor's result as tables and as a JSON document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.markup import escape

from adadelta_cli.doctor.checks import CheckOutcome
from adadelta_cli.doctor.findings import Level
from adadelta_cli.files import jsonable
from adadelta_cli.tables import FittingTable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.table import Table

    from adadelta_cli.doctor.checks import Check, Examination
    from adadelta_cli.system.machine import Machine

KEY_WIDTH = 17  # the longest name of a check: aligns the tables below each other
TEXT_WIDTH = 80  # also on wider terminals: longer lines are hard to read
STYLES: dict[CheckOutcome | Level, str] = {
    CheckOutcome.WORKS: "green",
    CheckOutcome.BROKEN: "red",
    CheckOutcome.MISSING: "yellow",
    Level.BROKEN: "red",
    Level.DISTURBS: "yellow",
    Level.MISSING: "yellow",
    Level.NOTE: "default",
}


def doctor_document(found: Examination) -> dict[str, Any]:
    """Return the document of `--json`."""
    parts = jsonable(found)
    del parts["conditions"]  # they are among the findings
    return {"exit_code": int(found.exit_code), **parts, "findings": jsonable(found.findings)}


def doctor_tables(found: Examination, verbosity: int) -> list[Table]:
    """Return the tables that are not empty; with `-q`, those of problems only."""
    if verbosity < 0:
        failed = [check for check in found.checks if check.outcome is not CheckOutcome.WORKS]
        tables = [checks_table(failed, "What does not work"), findings_table(found)]
    else:
        tables = [
            machine_table(found, verbose=verbosity > 0),
            checks_table(found.checks),
            findings_table(found),
        ]
    return [table for table in tables if table.row_count]


def _labelled(kind: CheckOutcome | Level) -> str:
    return f"[{STYLES[kind]}]{kind.value}[/]"


def _fix(fix: str) -> str:
    return f"[cyan]-> {escape(fix)}[/]"


def machine_table(found: Examination, *, verbose: bool) -> Table:
    """Describe the machine, one fact a line, without the unknown ones."""
    table = _table("The machine", columns=2)
    here = found.machine
    facts = {**_hardware(here), "activity": _activity(found), **_software(here)}
    if verbose:
        facts |= {"OpenMP": ["\n".join(here.openmp_runtimes)], "compiler": [here.compiler or ""]}
    for name, parts in facts.items():
        if fact := ", ".join(filter(None, parts)):
            table.add_row(f"[bold]{name}[/]", escape(fact))
    return table


def _hardware(here: Machine) -> dict[str, Iterable[str]]:
    shared = here.cache_shared_by
    return {
        "host": [here.host],
        "processor": [here.processor, here.architecture, here.simd],
        "cores": [
            _known("{} logical", here.cores),
            _known("{} physical", here.cores_physical),
            _known("{} for this process", here.cores_available),
            _known("CPU time of {:g} by quota", here.cpu_quota_cores),
            _known(f"on {{}} NUMA {_plural('node', here.numa_nodes)}", here.numa_nodes),
        ],
        "caches": [
            f"{level} {_binary(size)} for {shared[level]} {_plural('core', shared[level])}"
            for level, size in here.cache_bytes.items()
        ],
        "memory": [
            _known("{:.1f} GB", _gb(here.memory_bytes)),
            _known("{:.1f} GB available", _gb(here.memory_available_bytes)),
            _known("{:.1f} GB in swap", _gb(here.swap_used_bytes or None)),
            _known("huge pages: {}", here.huge_pages or None),
        ],
        "frequency": [
            _known("governor {}", here.governor),
            {True: "turbo on", False: "turbo off", None: ""}[here.turbo],
        ],
    }


def _activity(found: Examination) -> list[str]:
    return [
        _known("{:.2f} cores busy with other work", found.activity.busy_cores),
        _known("load {:.2f} over the last minute", found.machine.load_average),
        _known("{:.1%} of its time taken by the hypervisor", found.steal_share),
    ]


def _software(here: Machine) -> dict[str, Iterable[str]]:
    return {
        "virtual": [
            _known("hypervisor {}", here.hypervisor or None),
            _known("container {}", here.container or None),
        ],
        "GPU": here.gpus,
        "system": [here.kernel],
        "Python": [here.python],
        "libraries": [f"{name} {version}" for name, version in here.versions.items()],
        "environment": [f"{name}={value}" for name, value in here.environment.items()],
    }


def _known(form: str, value: float | str | None) -> str:
    """Format a value; empty if it is unknown."""
    return "" if value is None else form.format(value)


def _gb(size: int | None) -> float | None:
    return None if size is None else size / 1e9


def _binary(size: int) -> str:
    return f"{size / 2**20:g} MiB" if size >= 2**20 else f"{size / 2**10:g} KiB"


def _plural(noun: str, number: int | None) -> str:
    return noun if number == 1 else f"{noun}s"


def checks_table(checks: Sequence[Check], title: str = "What works") -> Table:
    """Show each check with its outcome."""
    table = _table(title, columns=4)
    for check in checks:
        took = "" if check.outcome is CheckOutcome.MISSING else f"[dim]{check.seconds:.1f} s[/]"
        text = escape(check.observed)
        if check.outcome is not CheckOutcome.WORKS:
            text += f"; needed for {escape(check.purpose)}\n{_fix(check.fix)}"
        table.add_row(f"[bold]{check.name}[/]", _labelled(check.outcome), took, text)
    return table


def findings_table(found: Examination) -> Table:
    """Show the findings about machine and environment; the checks have their own table."""
    table = _table("Before a measurement", columns=2)
    for finding in found.conditions:
        what, why = escape(finding.what), escape(finding.why)
        table.add_row(_labelled(finding.level), f"[bold]{what}[/]\n{why}\n{_fix(finding.fix)}")
    return table


def verdict(found: Examination) -> str:
    """Summarise in one sentence."""
    broken, disturbs, missing = (
        len(found.of(level)) for level in (Level.BROKEN, Level.DISTURBS, Level.MISSING)
    )
    works = "What is needed works"
    if broken:
        works = f"{broken} {_plural('thing', broken)} broken; see above for the fix"
    disturbed = f"{disturbs} {_plural('thing', disturbs)}" if disturbs else "nothing"
    optional = f"{missing or 'no'} optional {_plural('piece', missing)} missing"
    return f"{works}; {disturbed} will disturb a measurement; {optional}"


def _table(title: str, columns: int) -> Table:
    table = FittingTable(
        title=f"\n{title}", title_style="bold", box=None, show_header=False, padding=(0, 1)
    )
    table.add_column(min_width=KEY_WIDTH)
    for _ in range(columns - 2):
        table.add_column()
    table.add_column(max_width=TEXT_WIDTH, wrap=True)
    return table
