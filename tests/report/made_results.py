"""Results as the commands write them, of any size, without the work."""

from __future__ import annotations

import math

from adadelta_cli import files
from adadelta_cli.bench import regression
from adadelta_cli.bench.results import BenchRow
from adadelta_cli.verification.rows import COLUMNS, ComparisonRow

HOSTILE = "<script>alert(1)</script>"


def make_run(folder, name="mlp", *, outcome="passed", steps=200, rows=21, rate=1.0, checks=()):
    """Write the files of a run."""
    losses = [rate * math.exp(-5 * k / rows) for k in range(rows)]
    history = [
        {
            "step": k * steps // (rows - 1),
            "epoch": k,
            "loss": loss,
            "grad_norm": loss / 2 if k else None,
            "update_norm": 0.1 if k else None,
            "accuracy": 1 - loss / 10,
        }
        for k, loss in enumerate(losses)
    ]
    files.write_csv(folder / "history.csv", history)
    summary = {
        "name": name,
        "problem": "mlp",
        "optimizer": "adadelta",
        "backend": "numpy",
        "ctx": "cpu",
        "dtype": "float32",
        "fused": True,
        "seed": 0,
        "outcome": outcome,
        "checks": list(checks),
        "steps": steps,
        "seconds": 1.5,
        "optimum": None,
        "start": history[0],
        "end": history[-1],
    }
    files.write_json(folder / "summary.json", summary)
    config = (
        f"# adadelta run {folder}/config.yaml --backend numpy\nproblem:\n  name: mlp\n"
        f"optimizer:\n  name: adadelta\n  learning_rate: {rate}\n  rho: 0.9\n"
    )
    files.write_bytes(folder / "config.yaml", config.encode())


def verify_row(number=0, **changed):
    """Return a row that passed."""
    tensors = ("weight", "acc_grad", "acc_delta")
    values = {
        "check": "step",
        "case": f"case-{number // 9}",
        "implementation": "numpy-fused",
        "reference": "numpy",
        "backend": "numpy",
        "ctx": "cpu",
        "dtype": ("float32", "float64", "float16")[number // 3 % 3],
        "tensor": tensors[number % 3],
        "elements": 1000,
        "steps": 5,
        "mismatches": 0,
        "max_ulp": 0.0,
        "scaled_ulp": 0.0,
        "allowed_ulp": 0.0,
        "passed": True,
    }
    return ComparisonRow(**(values | changed))


FAILED = {"mismatches": 3, "max_ulp": 7.0, "scaled_ulp": 7.0, "passed": False, "note": "weight[3]"}


def make_verification(folder, rows, *, as_csv=False, complete=True, ran=1, planned=1):
    """Write verify.json, or verify.csv alone."""
    if as_csv:
        files.write_csv(folder / "verify.csv", rows, COLUMNS)
    else:
        listed = [row.columns | {"replay": f"adadelta verify --case {row.case}"} for row in rows]
        document = {
            "complete": complete,
            "passed": complete,
            "checks": {"planned": planned, "ran": ran},
            "rows": listed,
        }
        files.write_json(folder / "verify.json", document)


def bench_row(number=0, **changed):
    """Return a row; the size grows with its number, the implementations take turns."""
    elements = 10 ** (4 + number // 3 % 4)
    median = 1e-9 * elements * (1 + number % 3)
    values = {
        "implementation": ("numpy", "numpy-fused", "mxnet-fused")[number % 3],
        "backend": "numpy",
        "ctx": "cpu",
        "dtype": "float32",
        "workload": f"{elements:.0e}",
        "tensors": 1,
        "elements": elements,
        "threads": 1 + number // 12,
        "processes": 6,
        "samples": 300,
        "median_s": median,
        "ci_low_s": 0.9 * median,
        "ci_high_s": 1.2 * median,
        "gigabytes_per_s": 28.0 / (1 + number % 3),
        "ceiling_gigabytes_per_s": 30.0,
        "ceiling_fraction": 0.9,
        "ceiling_fraction_low": 0.8,
        "ceiling_fraction_high": 1.0,
        "bound": "memory",
        "speedup": 12.0,
        "speedup_low": 11.0,
        "speedup_high": 13.0,
    }
    return BenchRow(**(values | changed))


def make_bench(folder, rows, samples=50, name=""):
    """Write bench.json, with the samples of six processes for each row."""
    document = {
        "rows": rows,
        "by_process": [{} for _ in rows],
        "samples_s": [
            [[row.median_s * (1 + k % 7 / 50) for k in range(samples)] for _ in range(6)]
            for row in rows
        ],
        "doubts": [name] if name else [],
        "comparisons": [],
        "settings": {"processes": 6},
        "machine": {"host": f"somewhere {name}", "versions": {"numpy": "1.26.4"}},
    }
    files.write_json(folder / "bench.json", document)


def make_comparison(folder, verdicts=("SAME", "SLOWER")):
    """Write compare.csv, a row for each verdict."""
    rows = [
        regression.RegressionRow(
            implementation="numpy-fused",
            backend="numpy",
            ctx="cpu",
            dtype="float32",
            workload=f"1e{k + 4}",
            threads=2,
            cache="warm",
            compared="seconds",
            old=1.0,
            new=1.1,
            ratio=1.1,
            verdict=regression.Verdict(verdict),
        )
        for k, verdict in enumerate(verdicts)
    ]
    files.write_csv(folder / "compare.csv", [files.jsonable(row) for row in rows])


def make_sweep(folder, failed=0, name="mlp"):
    """Write a sweep.json of three rates and two decays."""
    settings = [
        {
            "optimizer.learning_rate": rate,
            "optimizer.rho": rho,
            "runs": 3,
            "finished": 3,
            "loss_median": rate * rho,
            "loss_low": 0.9 * rate * rho,
            "loss_high": rate,
            "coverage": 0.75,
            "passed": True,
            "checks": [],
        }
        for rate in (0.01, 0.1, 1.0)
        for rho in (0.9, 0.95)
    ]
    document = {
        "config": name,
        "keys": ["optimizer.learning_rate", "optimizer.rho"],
        "seeds": [0, 1],
        "metric": "loss",
        "complete": True,
        "settings": settings,
        "best": {"setting": settings[0], "run": {}, "command": f"adadelta run {name} --seed 1"},
        "runs": [{"status": "failed" if k < failed else "finished"} for k in range(18)],
    }
    files.write_json(folder / "sweep.json", document)


def make_all(folder, name="mlp"):
    """Write a result of each command."""
    make_run(folder / "run" / "a", name)
    make_run(folder / "run" / "b", f"{name} again", rate=0.5)
    rows = [verify_row(number) for number in range(30)]
    make_verification(folder / "verify", [*rows, verify_row(3, case=f"bad {name}", **FAILED)])
    make_bench(folder / "bench", [bench_row(number) for number in range(24)], name=name)
    make_comparison(folder / "compare")
    make_sweep(folder / "sweep", name=name)
