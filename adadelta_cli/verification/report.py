"""Write verify.csv, verify.json and verify.png, and lay out the verdicts."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from adadelta_cli.errors import ExitCode, UsageError, displayed
from adadelta_cli.files import jsonable, plottable, write_csv, write_json, write_plot
from adadelta_cli.markdown import code, escaped, markdown_table
from adadelta_cli.verification import catalogue, fuzz
from adadelta_cli.verification.rows import COLUMNS, CheckVerdict, Status, skip_reasons, summaries

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

    from adadelta_cli.verification.rows import ComparisonRow, DriftTrace, Summary, TrainingTrace
    from adadelta_cli.verification.runner import Verification


CHECKS = {
    "step": "synthetic steps",
    "training": "trainings",
    "gradient": "gradient kept",
    "replay": "recorded steps",
    "oracle": "single steps",
    "drift": "trajectories",
    "drawn": "fuzzed cases",
    "guard": "guard zones",
    "repeat": "run again",
    "saved": "saved states",
}
COUNTED = {"gradient", "guard", "repeat", "saved"}  # the checks without distances
PLOTTED = {"step", "training", "replay"}  # the checks in the picture
HEADINGS = (
    *("implementation", "against", "over", "cases"),
    *("numbers", "differ", "ULP", "bound", "verdict"),
)
RANKS = {"numbers": 4, "bound": 3, "ULP": 2, "against": 1}  # dropped in this order
RIGHT = {"cases", "numbers", "differ", "ULP", "bound"}
EXPLANATION = (
    "cases: counted once per dtype (n/a: not applicable)   numbers: over all steps",
    "differ: in a bit   ULP: largest error in units in the last place of the largest operand",
    "bound: largest allowed ULP; 0: every bit must be equal",
)

FILES = ("verify.csv", "verify.json", "verify.png")


def write_verification(folder: Path, verification: Verification, *, plot: bool = True) -> None:
    """Write verify.csv, verify.json and verify.png."""
    write_csv(folder / "verify.csv", verification.rows, COLUMNS)
    write_json(folder / "verify.json", verification_document(verification, rows=True))
    if plot and any(row.passed is not None for row in verification.rows):
        write_plot(folder / "verify.png", verification_figure(verification))


def verification_document(verification: Verification, *, rows: bool = False) -> dict[str, Any]:
    """Arrange a verification for verify.json (with all rows) or `--json` (with the failures)."""
    chosen = verification.rows if rows else verification.failures
    asked = verification.plan
    plan = {
        "implementations": [each.name for each in asked.implementations],
        "absent": {each.name: reason for each, reason in asked.absent},
        "cases": [case.name for case in asked.cases],
        "configs": asked.configs,
        "dtypes": asked.dtypes,
        "training_dtypes": asked.training_dtypes,
        "training_steps": asked.training_steps,
        "seed": asked.seed,
        "timeout": asked.timeout,
        "ctx": str(asked.device),
        "subnormals": "flush" if asked.flush else "strict",
    }
    document = {
        "complete": not verification.unfinished,
        "passed": verification.exit_code is ExitCode.OK,
        "checks": {"planned": verification.planned, "ran": verification.ran},
        "plan": plan,
        "summaries": summaries(verification.rows),
        "rows" if rows else "failures": [row.columns | {"replay": row.replay} for row in chosen],
    }
    if rows:
        from adadelta_cli.system import machine

        document["machine"] = machine.describe()
    return jsonable(document)


def summary_cells(summary: Summary) -> dict[str, str]:
    """Write the verdict on a check as a person reads it: its cells by heading."""
    skipped, failed = summary.skipped, summary.failed
    cells = (
        summary.implementation,
        summary.reference,
        CHECKS[summary.check],
        f"{summary.cases - skipped}" + f" ({skipped} n/a)" * bool(skipped),
        f"{summary.elements:,}",
        f"{summary.mismatches:,}",
        f"{summary.scaled_ulp:.2g}" if summary.check not in COUNTED else "",
        "-".join(f"{bound:.3g}" for bound in _ends(summary.allowed_ulp)),
        f"{failed} " * bool(failed) + summary.verdict.value,
    )
    return dict(zip(HEADINGS, cells, strict=True))


def verification_table(verification: Verification) -> Table:
    """Lay out the verdicts for a terminal, one row for each check of each implementation."""
    from adadelta_cli.tables import fitting_table

    rows, before = [], ""
    for each in map(summary_cells, summaries(verification.rows)):
        repeated = {"implementation": ""} if each["implementation"] == before else {}
        before = each["implementation"]
        rows.append(each | repeated)
    styles = {row["verdict"]: "red" for row in rows if row["verdict"].endswith("FAILED")}
    unfinished = f": not complete, {verification.unfinished}" * bool(verification.unfinished)
    return fitting_table(
        f"adadelta verify{unfinished}",
        HEADINGS,
        [rows],
        right=RIGHT,
        ranks=RANKS,
        styles=styles | {CheckVerdict.PASSED.value: "green"},
        caption="\n".join(EXPLANATION),
    )


def verification_markdown(verification: Verification, most: int) -> str:
    """Lay out the verdicts as Markdown, with `most` failures and how to repeat them."""
    found = summaries(verification.rows)
    counts = {verdict: sum(each.verdict is verdict for each in found) for verdict in CheckVerdict}
    words = ", ".join(f"{count} {verdict.value}" for verdict, count in counts.items() if count)
    unfinished = f"not complete, {verification.unfinished}: " * bool(verification.unfinished)
    failures = verification.failures
    listed = [
        "- "
        + "<br>\n  ".join((*map(escaped, failure_lines(row)), f"repeat it: {code(row.replay)}"))
        for row in most_telling(failures)[:most]
    ]
    more = [f"- ... and {len(failures) - most} more, in verify.csv"] * (len(failures) > most)
    table = markdown_table(list(map(summary_cells, found)), {"verdict"})
    explained = [f"{escaped(line)}<br>" for line in EXPLANATION]
    head = f"**adadelta verify**: {unfinished}{words or 'nothing was compared'}"
    parts = [[head], [table], explained]
    return "\n\n".join("\n".join(part) for part in (*parts, [*listed, *more]) if part)


def _ends(bounds: Sequence[float]) -> list[float]:
    return sorted({*bounds[:1], *bounds[-1:]})


def verification_skips(verification: Verification) -> list[str]:
    """Name the frameworks that are not installed, and the reason if nothing was compared."""
    lines = [f"Skipped {each.name}: {reason}" for each, reason in verification.plan.absent]
    if verification.is_empty and not verification.unfinished:
        lines.append(f"Nothing was compared: {'; '.join(skip_reasons(verification.rows))}")
    return lines


def verification_failures(verification: Verification, most: int) -> list[str]:
    """Describe `most` failures, the most telling first, each with the command that repeats it."""
    failures = verification.failures
    more = [f"... and {len(failures) - most} more, in verify.csv"] if len(failures) > most else []
    return [*map(_described, most_telling(failures)[:most]), *more]


LATER = {"drift", "oracle"}  # checks whose failure mostly follows from one of a step


def most_telling(failures: Sequence[ComparisonRow]) -> list[ComparisonRow]:
    """Order failures: shrunk fuzzed cases, then a row for each other case, then the rest."""
    telling: dict[tuple[str, str], ComparisonRow] = {}
    for row in sorted(failures, key=lambda row: row.check in LATER):
        telling.setdefault((row.implementation, row.case), row)
    first = sorted(telling.values(), key=lambda row: not row.case.startswith(fuzz.PREFIX))
    listed = {id(row) for row in first}
    return first + [row for row in failures if id(row) not in listed]


def _described(row: ComparisonRow) -> str:
    return "\n  ".join((*failure_lines(row), f"repeat it: {row.replay}"))


def failure_lines(row: ComparisonRow) -> list[str]:
    """Say what failed and by how much, with which hyper-parameters, and what would allow it."""
    place = row.check, row.case, row.dtype, row.implementation, row.tensor  # "" without a result
    what = f"FAILED {displayed(' '.join(filter(None, place)))}: "
    differ = f"{row.mismatches:,} of {row.elements:,} differ; " if row.mismatches else ""
    allow = "to allow that: --subnormals flush" if row.only_subnormals else ""
    return [*filter(None, (what + differ + _excess(row) + row.note, _hyper(row), allow))]


def _excess(row: ComparisonRow) -> str:
    """Write an error beyond its bound; empty for comparisons of bits."""
    error, allowed = row.scaled_ulp, row.allowed_ulp
    if error is None or not allowed or error <= allowed:
        return ""
    return f"{error:.4g} ULPs, allowed {allowed:.4g}; "


def _hyper(row: ComparisonRow) -> str:
    """Write the hyper-parameters of a row's case; empty for a training and other kinds."""
    try:
        (case,) = catalogue.select((fuzz.length_name(row.case),))
    except UsageError:
        return ""
    values = ", ".join(f"{name} {value}" for name, value in vars(case.hyper).items())
    return f"with {values}"


def verification_figure(verification: Verification) -> Figure:
    """Plot the verdict on each case, errors and drift of third-party code, and the trainings."""
    from matplotlib.figure import Figure

    rows = [row for row in verification.rows if row.check in PLOTTED and row.reference != "oracle"]
    cases = list(dict.fromkeys((row.check, row.case) for row in rows))
    lines = list(dict.fromkeys((row.implementation, row.dtype) for row in rows))
    panels: list[tuple[float, Callable[[Any], None]]] = []
    if rows:
        height = 2.2 + 0.24 * len(lines)
        title = "\n".join(filter(None, (verification.unfinished, _outcome(rows))))
        panels.append((height, partial(_plot_verdicts, title, rows, cases, lines)))
    bounded = [row for row in verification.rows if row.allowed_ulp and row.check != "drift"]
    errors = [row for row in bounded if row.scaled_ulp is not None]
    for pair in dict.fromkeys((row.implementation, row.reference) for row in errors):
        own = [row for row in errors if (row.implementation, row.reference) == pair]
        panels.append((4.0, partial(_plot_errors, own)))
    drifts = _largest(verification.drifts)
    if drifts:
        panels.append((3.4, lambda part: _plot_drifts(part, drifts)))
    traces = _traces(verification)
    if traces:
        panels.append((3.4, lambda part: _plot_traces(part, traces)))
    heights = [height for height, _ in panels] or [2.2]
    width = max(9.0, 3.0 + 0.24 * max(len(cases), len({row.case for row in errors})))
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, (_, draw) in zip(parts, panels, strict=False):
        draw(part)
    return figure


def _traces(verification: Verification) -> list[TrainingTrace]:
    """Choose the longest training of each problem."""
    traces = [trace for trace in verification.traces if trace.dtype == "float32"]
    longest = sorted(traces, key=lambda trace: len(trace.fused))
    return list({trace.problem: trace for trace in longest}.values())


def _largest(drifts: Sequence[DriftTrace]) -> list[DriftTrace]:
    """Choose the case with the largest error for each implementation, of equal ones the longest."""
    some = sorted((d for d in drifts if len(d.relative_l2) > 1), key=_size)
    chosen = {d.implementation: (d.case, d.dtype) for d in some}
    return [d for d in drifts if chosen.get(d.implementation) == (d.case, d.dtype)]


def _size(drift: DriftTrace) -> tuple[float, int]:
    finite = filter(math.isfinite, drift.relative_l2)
    return max(finite, default=0.0), len(drift.relative_l2)


LARGEST_DRAWN = 1e150  # Matplotlib cannot lay out an axis up to the largest float64
TENSOR_COLORS = {"weight": "C0", "acc_grad": "C1", "acc_delta": "C2", "master": "C3"}
DTYPE_MARKS = {"float32": "o", "float64": "x", "float16": "^"}


LABEL = 24  # characters


def _label(case: str) -> str:
    """Shorten the name of a fuzzed case: it would take the panel's place."""
    return plottable(case if len(case) <= LABEL else f"{case[: LABEL - 3]}...")


def _largest_drawn(errors: Sequence[float]) -> float:
    """Return where an infinite error is drawn: above the finite ones."""
    finite = max((each for each in errors if math.isfinite(each)), default=0.0)
    largest = min(finite, LARGEST_DRAWN)
    return largest if all(map(math.isfinite, errors)) else 1e3 * max(largest, 1.0)


def _plot_errors(rows: Sequence[ComparisonRow], part: Any) -> None:
    """Plot each tensor's largest error by case, and its bound."""
    from matplotlib.ticker import NullLocator

    panel: Axes = part.subplots()
    cases = list(dict.fromkeys(row.case for row in rows))
    top = _largest_drawn([row.scaled_ulp or 0.0 for row in rows])
    for k, (tensor, color) in enumerate(TENSOR_COLORS.items()):
        own = [row for row in rows if row.tensor == tensor]
        for dtype, mark in DTYPE_MARKS.items():
            points = [
                (cases.index(row.case) + k / 5, min(row.scaled_ulp or 0.0, top))
                for row in own
                if row.dtype == dtype
            ]
            if points:
                label = f"{tensor} {dtype}"
                xs, ys = zip(*points, strict=True)
                panel.scatter(xs, ys, s=14, color=color, marker=mark, label=label, alpha=0.8)
        _plot_bounds(panel, own, tensor, color)
    panel.set_yscale("symlog", linthresh=1)
    decades = math.log10(max(1.0, top))
    every = 1 + int(decades / 8)  # decades between ticks: at most nine fit beside each other
    first = 0 if every == 1 else every  # 1 lies too near to 0 on a long axis
    panel.set_yticks([0.0, *(10.0**k for k in range(first, int(decades) + 2, every))])
    panel.yaxis.set_minor_locator(NullLocator())
    panel.set_ylim(bottom=0)
    panel.set_xlim(-1, len(cases))
    panel.set_xticks(range(len(cases)), map(_label, cases), rotation=90, fontsize=8)
    panel.set_ylabel("error in ULPs")
    panel.set_title(
        f"{plottable(rows[0].implementation)}: largest error of one step against "
        f"{rows[0].reference}, in ULPs of the largest operand\ndotted: the bound of each tensor   "
        "an infinite error is drawn at the top",
        fontsize=10,
    )
    panel.grid(alpha=0.3)
    panel.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _plot_bounds(panel: Axes, rows: Sequence[ComparisonRow], tensor: str, color: str) -> None:
    """Draw a tensor's bounds; where they differ, the legend names the dtypes of each."""
    bounds = sorted({row.allowed_ulp or 0.0 for row in rows})
    for bound in bounds:
        having = dict.fromkeys(row.dtype for row in rows if row.allowed_ulp == bound)
        which = f" {', '.join(having)}" if len(bounds) > 1 else ""
        label = f"{tensor}{which}: allowed {bound:.3g}"
        panel.axhline(bound, color=color, linestyle=":", linewidth=1, label=label)


def _plot_drifts(part: Any, drifts: Sequence[DriftTrace]) -> None:
    """Plot how the errors add up over the steps, a panel for each implementation."""
    names = list(dict.fromkeys(drift.implementation for drift in drifts))
    for panel, name in zip(part.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        own = [each for each in drifts if each.implementation == name]
        for drift in own:
            steps = range(1, len(drift.relative_l2) + 1)
            color = TENSOR_COLORS[drift.tensor]
            panel.plot(steps, drift.relative_l2, color=color, label=drift.tensor)
        panel.set_title(
            f"drift of {plottable(name)}: {plottable(drift.case)}, {drift.dtype}", fontsize=10
        )
        if not any(map(any, (drift.relative_l2 for drift in own))):
            panel.text(0.5, 0.5, "0: no error in any case", transform=panel.transAxes, ha="center")
        panel.set_xlabel("step")
        panel.set_ylabel("relative 2-norm of the error")
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)


def _plot_verdicts(
    title: str,
    rows: Sequence[ComparisonRow],
    cases: list[tuple[str, str]],
    lines: list[tuple[str, str]],
    part: Any,
) -> None:
    """Plot a square for each case and implementation: green, red with a cross, or white."""
    from matplotlib.colors import ListedColormap

    panel: Axes = part.subplots()
    verdicts = [[float("nan")] * len(cases) for _ in lines]
    for row in rows:
        if row.passed is None:
            continue
        y, x = lines.index((row.implementation, row.dtype)), cases.index((row.check, row.case))
        verdicts[y][x] = 0.0 if verdicts[y][x] == 0 else float(row.passed)
        if not row.passed:
            panel.text(x, y, "x", ha="center", va="center", color="white", fontsize=8)
    panel.imshow(
        verdicts, cmap=ListedColormap(["#c62828", "#66bb6a"]), vmin=0, vmax=1, aspect="auto"
    )
    names = [_label(case) for _, case in cases]
    panel.set_xticks(range(len(cases)), names, rotation=90, fontsize=8)
    implementations = [f"{plottable(name)}  {dtype}" for name, dtype in lines]
    panel.set_yticks(range(len(lines)), implementations, fontsize=8)
    panel.set_xticks([x - 0.5 for x in range(1, len(cases))], minor=True)
    panel.set_yticks([y - 0.5 for y in range(1, len(lines))], minor=True)
    panel.grid(which="minor", color="white", linewidth=1)
    panel.tick_params(which="both", length=0)
    panel.set_title(
        f"{plottable(title)}\n"
        "green: all bits equal, or third-party code within its bounds   red: failed   "
        "white: not applicable",
        fontsize=10,
    )


def _outcome(rows: Sequence[ComparisonRow]) -> str:
    """Count the numbers that differ, and the cases without a result."""
    compared = sum(row.elements for row in rows)
    differing = sum(row.mismatches or 0 for row in rows)
    lines = []
    if compared:
        lines.append(f"{differing:,} of {compared:,} numbers differ from the reference in a bit")
    broken = Counter(row.note for row in rows if row.status is Status.NO_RESULT)
    if broken:
        (note, _), *others = broken.most_common()
        more = f", and {len(others)} more kinds of failure" if others else ""
        count = sum(broken.values())
        reason = shorten(note, 90, placeholder=" ...") + more
        lines.append(f"no result of {count} case{'s' * (count > 1)}: {reason}")
    return "\n".join(lines or ["nothing was compared: all were skipped"])


def _plot_traces(part: Any, traces: Sequence[TrainingTrace]) -> None:
    """Plot the losses of trainings with the fused and with the unfused step, a panel for each."""
    panels = part.subplots(1, len(traces), squeeze=False)[0]
    for panel, trace in zip(panels, traces, strict=True):
        for losses, label, color, width in (
            (trace.unfused, "unfused step", "#ffcc99", 5.0),
            (trace.fused, "fused step", "C0", 1.2),
        ):
            panel.plot(*zip(*losses, strict=True), label=label, color=color, linewidth=width)
        panel.set_yscale("log")
        panel.set_title(f"{plottable(trace.problem)} ({trace.backend}, {trace.dtype})", fontsize=10)
        panel.set_xlabel("step")
        panel.set_ylabel("training loss")
        panel.grid(alpha=0.3)
        panel.legend()
