"""These tests need MXNet."""

import pytest
from conftest import HAS_MXNET

if not HAS_MXNET:
    pytest.skip("MXNet has no wheel for this platform", allow_module_level=True)
