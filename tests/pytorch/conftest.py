"""These tests need PyTorch; `make test-peers` runs them."""

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed; make test-peers installs it")
