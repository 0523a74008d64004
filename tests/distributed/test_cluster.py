"""What the environment says of a distributed training, and what it must not say."""

from __future__ import annotations

import socket

import pytest

from adadelta_cli.distributed.cluster import Cluster
from adadelta_cli.errors import UnavailableError, UsageError

GOOD = {
    "DMLC_ROLE": "worker",
    "DMLC_PS_ROOT_URI": "127.0.0.1",
    "DMLC_PS_ROOT_PORT": "9000",
    "DMLC_NUM_WORKER": "2",
    "DMLC_NUM_SERVER": "1",
}


def test_the_variables_of_a_launcher_describe_the_cluster():
    """They are read, and written for other processes."""
    cluster = Cluster.from_environment(GOOD | {"PS_HEARTBEAT_TIMEOUT": "7"})
    assert cluster == Cluster("worker", "127.0.0.1", 9000, 2, 1, dead_after_s=7)
    assert cluster.environment("worker").items() == GOOD.items()


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("value", [None, "", " "])
def test_a_variable_that_is_missing_is_named_with_what_sets_it(name, value):
    """An empty one counts as missing."""
    environment = {key: each for key, each in GOOD.items() if key != name}
    if value is not None:
        environment[name] = value
    with pytest.raises(UsageError, match=f"{name} is not set.*adadelta launch"):
        Cluster.from_environment(environment)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("DMLC_ROLE", "workers", r"did you mean worker\?.*expected one of worker, server"),
        ("DMLC_ROLE", "Worker", "expected one of"),
        ("DMLC_PS_ROOT_PORT", "0", "from 1 to 65535"),
        ("DMLC_PS_ROOT_PORT", "65536", "from 1 to 65535"),
        ("DMLC_PS_ROOT_PORT", "http", "from 1 to 65535"),
        ("DMLC_PS_ROOT_PORT", "²", "from 1 to 65535"),
        ("DMLC_PS_ROOT_PORT", "9" * 5000, "from 1 to 65535"),
        ("DMLC_NUM_WORKER", "0", "from 1 to 1000"),
        ("DMLC_NUM_WORKER", "-1", "from 1 to 1000"),
        ("DMLC_NUM_SERVER", "1.5", "from 1 to 1000"),
        ("PS_HEARTBEAT_TIMEOUT", "0", "from 1 to 1000"),
        ("PS_HEARTBEAT_INTERVAL", "60", "the timeout must be longer"),
    ],
)
def test_a_wrong_value_is_refused(name, value, message):
    """The message says what was expected."""
    with pytest.raises(UsageError, match=message):
        Cluster.from_environment(GOOD | {name: value})


def test_an_address_that_is_none_is_refused():
    """MXNet would abort."""
    with pytest.raises(UsageError, match="DMLC_PS_ROOT_URI is 'no such host'"):
        Cluster("worker", "no such host", 9000, 2, 1).check_address()


def test_the_scheduler_refuses_a_port_that_is_in_use_and_a_worker_does_not():
    """The scheduler listens there; the others connect to it."""
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        port = used.getsockname()[1]
        Cluster("worker", "127.0.0.1", port, 2, 1).check_address()
        with pytest.raises(UnavailableError, match=f"cannot listen at 127.0.0.1:{port}"):
            Cluster("scheduler", "127.0.0.1", port, 2, 1).check_address()
