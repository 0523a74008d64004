"""The CPU as a device to measure on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from adadelta_cli.bench import runner


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
def test_peak_extra_bytes():
    """A step that fills 40 MB and lets them go has a peak of 40 MB, though nothing remains.

    In a process of its own, as it is measured: here, memory of other tests may be used again.
    """
    program = (
        "import numpy as np; from adadelta_cli.bench.device import CpuDevice; "
        "peak = CpuDevice().peak_extra_bytes; "
        "print(peak(lambda: np.ones(5_000_000).sum()), peak(lambda: None))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | runner.UNPOOLED,
    )
    peak, nothing = map(int, done.stdout.split())
    assert peak == pytest.approx(4e7, rel=0.05)
    assert nothing < 1e6
