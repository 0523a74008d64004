"""Make the page: one HTML file that requests nothing."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import metadata, resources
from typing import TYPE_CHECKING, Any

from adadelta_cli.files import to_utf8, write_bytes
from adadelta_cli.report import charts, tables
from adadelta_cli.report.findings import findings
from adadelta_cli.report.grid import heat_maps, verify_grid

if TYPE_CHECKING:
    from pathlib import Path

    from markupsafe import Markup

    from adadelta_cli.report.found import Found


def write_page(path: Path, found: Found) -> Path:
    """Write the page of what was found.

    Raises:
        BrokenError: the file cannot be written.
    """
    return write_bytes(path, to_utf8(page(found)))


def page(found: Found) -> str:
    """Lay out the page."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    contents = _Contents(found)
    return environment.from_string(_static("page.html.j2")).render(
        found=found,
        findings=findings(found),
        contents=contents,
        version=metadata.version("adadelta"),
        style=_inlined("page.css"),
        scripts=[_inlined(name) for name in ("plotly-basic.min.js", "page.js")],
        policy=_policy(),
    )


@cache
def _static(name: str) -> str:
    return (resources.files(__package__) / "static" / name).read_text(encoding="utf-8")


def _inlined(name: str) -> Markup:
    """Return a file of this package, which is not escaped."""
    from markupsafe import Markup

    return Markup(_static(name))  # noqa: S704 - none of it comes from a user


def _policy() -> str:
    """Return the page's security policy: no requests, and no scripts but its own."""
    scripts = [_static(name) for name in ("plotly-basic.min.js", "page.js")]
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}'"
        for each in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


class _Contents:
    """What the template shows of each section, and collects for the scripts of the page."""

    def __init__(self, found: Found) -> None:
        self.settings = tables.compared_settings(found.runs)
        self.data: dict[str, Any] = {"tables": {}, "charts": {}, "runs": charts.curves(found.runs)}
        self._found = found

    def table(self, name: str, table: tables.PageTable) -> tables.PageTable:
        """Hand a table to the script that shows it."""
        self.data["tables"][name] = table.document
        return table

    def chart(self, name: str, chart: charts.Chart) -> charts.Chart:
        """Hand a chart to the script that draws it."""
        self.data["charts"][name] = chart.document
        return chart

    run_table = staticmethod(tables.run_table)
    shared_table = staticmethod(tables.shared_table)
    summary_table = staticmethod(tables.summary_table)
    verify_table = staticmethod(tables.verify_table)
    sweep_table = staticmethod(tables.sweep_table)
    bench_table = staticmethod(tables.bench_table)
    comparison_table = staticmethod(tables.comparison_table)
    machine_table = staticmethod(tables.machine_table)
    verify_grid = staticmethod(verify_grid)
    heat_maps = staticmethod(heat_maps)
    bench_charts = staticmethod(charts.bench_charts)
    sweep_charts = staticmethod(charts.sweep_charts)

    @property
    def machines(self) -> list[tuple[str, dict[str, Any]]]:
        """The machines that are recorded, with the settings of their measurement."""
        found = self._found
        both = [(each.place, each.machine, each.plan) for each in found.verifications]
        both += [(each.place, each.machine, each.settings) for each in found.benches]
        return [(place, {**facts, "settings": how}) for place, facts, how in both if facts or how]

    @property
    def thinned(self) -> bool:
        """Whether a curve has fewer points than were recorded."""
        return any(run["rows"] > len(run["steps"]) for run in self.data["runs"])
