"""Compare trainings with the fused and with the unfused step."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from adadelta_cli.implementations import array_backends, registry
from adadelta_cli.system.sandbox import SandboxError
from adadelta_cli.verification import comparison
from adadelta_cli.verification.execute import train
from adadelta_cli.verification.rows import TrainingTrace
from adadelta_cli.verification.trajectories import FLUSHING

if TYPE_CHECKING:
    from adadelta_cli.implementations.base import Implementation
    from adadelta_cli.system.sandbox import InProcess, Sandbox
    from adadelta_cli.verification.execute import Trajectory
    from adadelta_cli.verification.plan import VerifyPlan
    from adadelta_cli.verification.results import Results


def check_training(
    plan: VerifyPlan, results: Results, config: str, dtype: str, sandbox: Sandbox | InProcess
) -> None:
    """Train a problem with each fused step and with its unfused one; compare them bit for bit."""
    only_trainings = not (plan.cases or plan.is_fuzzed)
    for chosen in plan.implementations:
        reason = _without_training(chosen)
        if not reason:
            with results.timed():
                _compare(plan, results, config, chosen, dtype, sandbox)
        elif only_trainings:
            results.skip(plan.row("training", config, chosen, dtype, 0), reason)


def _without_training(chosen: Implementation) -> str:
    """Say why an implementation trains no problems; empty if it does."""
    if not chosen.fused:
        return f"trainings compare fused steps; {chosen.name} is unfused"
    if chosen.backend not in array_backends.BACKENDS:
        return f"problems are not trained on {chosen.backend}; its step is checked by the cases"
    return ""


def _compare(
    plan: VerifyPlan,
    results: Results,
    config: str,
    fused: Implementation,
    dtype: str,
    sandbox: Sandbox | InProcess,
) -> None:
    on_mxnet = fused.backend == "mxnet"
    place, limit = sandbox.of(FLUSHING if on_mxnet else ""), plan.training_steps

    def trained(chosen: Implementation) -> Trajectory:
        how = dtype, plan.seed, limit if on_mxnet else None
        return place.call(train, config, plan.overrides, chosen, *how)

    row = replace(plan.row("training", config, fused, dtype, 0), reference=fused.unfused)
    unfused = registry.IMPLEMENTATIONS[fused.unfused].on(fused.device)
    try:
        got, wanted = trained(fused), trained(unfused)
    except SandboxError as error:
        results.fail(row, error)
        return
    row = replace(row, steps=got.losses[-1][0])
    results.rows += comparison.bitwise_rows(row, got, wanted)
    results.traces.append(TrainingTrace(config, fused.backend, dtype, got.losses, wanted.losses))
