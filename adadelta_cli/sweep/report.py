"""Write the files of `sweep`, and say what is best."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Any

from adadelta_cli.errors import ExitCode
from adadelta_cli.files import jsonable, write_csv, write_json, write_plot
from adadelta_cli.inputs import DATA_FOLDER
from adadelta_cli.run import published, yaml12
from adadelta_cli.run.key_values import value_text
from adadelta_cli.sweep import figures
from adadelta_cli.sweep.rows import (
    RESULTS,
    SettingRow,
    Status,
    SweepRow,
    best_run,
    ranked,
    setting_rows,
)
from adadelta_cli.sweep.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.table import Table

    from adadelta_cli.run.published import PublishedRow, PublishedTable
    from adadelta_cli.sweep.runner import Sweep

FILES = ("sweep.csv", "summary.csv", "sweep.json", "sweep.png")
REPEATED = "results/best"  # a folder for each run: others may hold the config with other settings
MOST_SHOWN = 20  # settings in the table of a terminal, the best ones


class Report:
    """What a sweep found so far."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.rows = sweep.rows
        self.settings = setting_rows(sweep.plan, self.rows)
        in_order = ranked(self.settings, sweep.metric, higher=sweep.higher)
        self.best, self.second = [*in_order, None, None][:2]
        self._published = published.table_of(sweep.plan.reference)

    @property
    def run(self) -> SweepRow | None:
        """The best run of the best setting."""
        return (
            best_run(self.rows, self.best, self.sweep.metric, higher=self.sweep.higher)
            if self.best
            else None
        )

    @property
    def command(self) -> str:
        """The command that repeats the best run; empty without one."""
        return _command(self.sweep, self.run) if self.run else ""

    def write(self) -> None:
        """Write all files."""
        out, metrics = self.sweep.out, list(self.sweep.labels)
        columns = self._columns()
        write_csv(out / "sweep.csv", [_cells(row.cells(metrics)) for row in self.rows], columns[0])
        summary = [_cells(row.cells(metrics)) for row in self.settings]
        write_csv(out / "summary.csv", summary, columns[1])
        write_json(out / "sweep.json", self.document())
        figure = figures.sweep_figure(self.sweep, self.settings, Store(out / "runs"))
        write_plot(out / "sweep.png", figure)
        if self._published:
            published.write(out, self._published, self._beside(self._published))

    def _beside(self, table: PublishedTable) -> list[PublishedRow]:
        """Put the medians beside the published values."""
        rows = [row.cells(list(self.sweep.labels)) for row in self.settings]
        return published.beside(table, rows)

    def _columns(self) -> tuple[list[str], list[str]]:
        """Return the columns of both tables, which may have no rows."""
        values = dict.fromkeys(self.sweep.plan.keys)
        metrics = list(self.sweep.labels)
        row = SweepRow(0, values, 0, Status.FINISHED, None, {}, "", "", None)
        setting = SettingRow(0, values, 0, {}, None, {}, ())
        return list(row.cells(metrics)), list(setting.cells(metrics))

    def document(self) -> dict[str, Any]:
        """Return the content of sweep.json and `--json`."""
        plan, metrics = self.sweep.plan, list(self.sweep.labels)
        return {
            "config": plan.name,
            "keys": list(plan.keys),
            "seeds": list(plan.seeds),
            "metric": self.sweep.metric,
            "complete": self.is_complete,
            "passed": self.is_complete and self.exit_code is ExitCode.OK,
            "best": self._best(metrics),
            "settings": [
                jsonable(row.cells(metrics))
                | {"checks": [jsonable(each) | {"passed": each.passed} for each in row.checks]}
                for row in self.settings
            ],
            "runs": [jsonable(row.cells(metrics)) for row in self.rows],
        }

    @property
    def is_complete(self) -> bool:
        """Whether each run has a row."""
        return len(self.rows) == len(self.sweep.places)

    def _best(self, metrics: Sequence[str]) -> dict[str, Any] | None:
        if not (self.best and self.run):
            return None
        run = jsonable(self.run.cells(metrics))
        return {"setting": jsonable(self.best.cells(metrics)), "run": run, "command": self.command}

    @property
    def exit_code(self) -> ExitCode:
        """Return 1 if a median misses an expectation, or a run has no result."""
        missed = any(row.passed is False for row in self.settings)
        broken = any(row.status not in RESULTS for row in self.rows)
        return ExitCode.CHECK_FAILED if missed or broken else ExitCode.OK

    def remarks(self) -> Iterator[str]:
        """Yield what went wrong, and where the files are."""
        for status in Status:
            found = [row for row in self.rows if row.status is status]
            if found and status is not Status.FINISHED:
                first = f": {found[0].message}" if found[0].message else ""
                where = ", ".join([*_shown(found[0].values), f"seed {found[0].seed}"])
                yield f"{len(found)} of {len(self.rows)} runs {status.verb}, first {where}{first}"
        missed = [row for row in self.settings if row.passed is False]
        if missed:
            wanted = ", ".join(
                f"{each.metric} {each.words}" for each in missed[0].checks if not each.passed
            )
            yield f"{len(missed)} of {len(self.settings)} settings missed expect: {wanted}"
        left = len(self.sweep.places) - len(self.rows)
        if left:
            yield (
                f"{len(self.rows)} of {len(self.sweep.places)} runs are done; the same command, "
                "without --force, computes those that are not stored"
            )
        yield from self._doubt()
        if self._published:
            yield published.remark(self._published, self._beside(self._published))
        yield f"Files: {self.sweep.out}/{', '.join(FILES)}, runs/"

    def _doubt(self) -> Iterator[str]:
        """Say that the second best may be as good; one seed says nothing of it."""
        best, second, metric = self.best, self.second, self.sweep.metric
        if not (best and second and min(best.results, second.results) > 1):
            return
        if best.spreads[metric].overlaps(second.spreads[metric]):
            yield f"Not clearly better than {_described(second, metric)}: use more --seeds"

    def conclusion(self) -> list[str]:
        """Return the best setting, and the command that repeats its best run."""
        if not (self.best and self.run):
            how = " without divergence" if any(row.diverges for row in self.settings) else ""
            return [f"No setting has a finite {self.sweep.metric}{how}."]
        return [
            f"Best: {_described(self.best, self.sweep.metric)}",
            f"Repeat its best run: {self.command}",
        ]

    def tables(self) -> list[Table]:
        """Lay out the best settings; and all beside the published values, where there are any."""
        table = self._published
        return [
            self._table(),
            *([published.terminal_table(table, self._beside(table))] if table else ()),
        ]

    def _table(self) -> Table:
        """Lay out the best settings, in the order of the plan."""
        from rich.text import Text

        from adadelta_cli.tables import FittingTable

        metric, shown, title = self.sweep.metric, self.settings, self.sweep.title
        if len(shown) > MOST_SHOWN:
            chosen = ranked(shown, metric, higher=self.sweep.higher)[:MOST_SHOWN]
            shown = [row for row in shown if row in chosen]
            title += f"; the best {MOST_SHOWN} of {len(self.settings)} settings"
        table = FittingTable(title=Text(title))
        for key in self.sweep.plan.keys:
            table.add_column(Text(key), justify="right")
        names = [metric, *(each for each in self.sweep.labels if each != metric)]
        for rank, each in enumerate(names):
            table.add_column(each, justify="right", rank=2 * (rank > 0))
        table.add_column("runs", justify="right", rank=1)
        table.add_column("verdict")
        for row in shown:
            cells = [_spread(row, each) for each in names]
            table.add_row(
                *(Text(value_text(each)) for each in row.values.values()),
                *cells,
                f"{row.runs}",
                _verdict(row),
                style="bold" if row is self.best else "",
            )
        return table


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    """Write lists, texts and so on as `--set` takes them."""
    plain = (str, float, int, type(None))
    return {k: v if isinstance(v, plain) else yaml12.flow(v) for k, v in row.items()}


def _shown(values: dict[str, Any]) -> list[str]:
    return [f"{key}={yaml12.flow(each)}" for key, each in values.items()]


def _described(row: SettingRow, metric: str) -> str:
    """Name a setting and the median of a metric, with what its interval covers."""
    found, about = row.spreads[metric], ""
    if row.results > 1:
        covers = f"{row.coverage:.0%} interval of the median of {row.results} seeds"
        about = f" ({found.low:.4g} to {found.high:.4g}, the {covers})"
    shown = (f"{key}={value_text(each)}" for key, each in row.values.items())
    return f"{', '.join(shown) or 'all seeds'}: {metric} {found.median:.4g}{about}"


def _spread(row: SettingRow, metric: str) -> str:
    if metric not in row.spreads:
        return ""
    found = row.spreads[metric]
    band = f" ({found.low:.3g}-{found.high:.3g})" if found.low != found.high else ""
    return f"{found.median:.4g}{band}"


def _verdict(row: SettingRow) -> str:
    bad = [
        f"{row.counts[status]} {status.value}"
        for status in Status
        if status is not Status.FINISHED and row.counts[status]
    ]
    checked = {True: "[green]passed[/]", False: "[red]missed[/]", None: ""}[row.passed]
    return ", ".join(filter(None, [checked, *bad])) or "finished"


def _command(sweep: Sweep, row: SweepRow) -> str:
    """Return the command that repeats a run, in a folder that an earlier run did not fill."""
    job, plan = sweep.jobs[row.run], sweep.plan
    sets = [*plan.request.overrides, *_shown(row.values)]
    parts = ["adadelta", "run", plan.reference]
    for each in sets:
        parts += ["--set", each]
    if job.device.kind != "cpu":
        parts += ["--ctx", str(job.device)]
    parts += ["--backend", job.backend, "--dtype", job.how["dtype"]]
    parts += [] if job.how["fused"] else ["--no-fused"]
    data = os.environ.get(DATA_FOLDER)
    if data and getattr(job.config.problem, "data", None):
        parts += ["--data", data]
    parts += ["--seed", str(job.seed), "--threads", str(sweep.threads)]
    return shlex.join([*parts, "--out", f"{REPEATED}/{row.run}"])
