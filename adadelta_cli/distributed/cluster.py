"""The processes of a distributed training, as the environment describes them."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adadelta_cli.errors import UnavailableError, UsageError, shortened, suggestion

if TYPE_CHECKING:
    from collections.abc import Mapping

ROLES = ("worker", "server", "scheduler")
LARGEST_PORT = 65535
MOST_PROCESSES = 1000
RENDEZVOUS_S = 60.0  # by default
# MXNet's own variables (ps-lite, src/van.cc); it sends no heartbeats by default.
HEARTBEAT_INTERVAL, HEARTBEAT_TIMEOUT = "PS_HEARTBEAT_INTERVAL", "PS_HEARTBEAT_TIMEOUT"
INTERVAL_S, TIMEOUT_S = 1, 20
REMEDY = "or use `adadelta launch`, which sets all of these on this machine"


@dataclass(frozen=True)
class Cluster:
    """What a process knows of the others before it meets them.

    Attributes:
        role: of this process, one of ROLES.
        host: the scheduler's address.
        port: the scheduler's port.
        workers: the number of workers.
        servers: the number of servers.
        dead_after_s: seconds without a heartbeat after which a process counts as lost.
    """

    role: str
    host: str
    port: int
    workers: int
    servers: int
    dead_after_s: int = TIMEOUT_S

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Cluster:
        """Read the variables that MXNet's launchers set.

        Raises:
            UsageError: one is missing or has a wrong value.
        """
        role = _text(environment, "DMLC_ROLE", "worker, server or scheduler")
        if role not in ROLES:
            raise UsageError(
                f"DMLC_ROLE is {shortened(role)!r}{suggestion(role, ROLES)}; expected one of "
                f"{', '.join(ROLES)}"
            )
        interval = _number(environment, HEARTBEAT_INTERVAL, MOST_PROCESSES, INTERVAL_S)
        timeout = _number(environment, HEARTBEAT_TIMEOUT, MOST_PROCESSES, TIMEOUT_S)
        if timeout <= interval:
            raise UsageError(
                f"{HEARTBEAT_TIMEOUT} is {timeout} s and {HEARTBEAT_INTERVAL} is {interval} s; the "
                "timeout must be longer, or each process counts as lost"
            )
        return cls(
            role=role,
            host=_text(environment, "DMLC_PS_ROOT_URI", "the scheduler's address"),
            port=_number(environment, "DMLC_PS_ROOT_PORT", LARGEST_PORT),
            workers=_number(environment, "DMLC_NUM_WORKER", MOST_PROCESSES),
            servers=_number(environment, "DMLC_NUM_SERVER", MOST_PROCESSES),
            dead_after_s=timeout,
        )

    @property
    def described(self) -> str:
        """Who takes part, and where they meet, for messages."""
        return (
            f"the scheduler at {self.host}:{self.port}, {_counted(self.workers, 'worker')} and "
            f"{_counted(self.servers, 'server')}"
        )

    def environment(self, role: str) -> dict[str, str]:
        """Return the variables of a process of this role."""
        return {
            "DMLC_ROLE": role,
            "DMLC_PS_ROOT_URI": self.host,
            "DMLC_PS_ROOT_PORT": str(self.port),
            "DMLC_NUM_WORKER": str(self.workers),
            "DMLC_NUM_SERVER": str(self.servers),
        }

    def check_address(self) -> None:
        """Check that the scheduler's address exists; in the scheduler, that it can listen there.

        Raises:
            UsageError: the name is unknown.
            UnavailableError: the address is another machine's, or in use.
        """
        try:
            addresses = socket.getaddrinfo(self.host, self.port, socket.AF_INET)
        except (OSError, UnicodeError) as error:
            raise UsageError(
                f"DMLC_PS_ROOT_URI is {shortened(self.host)!r}, which is no address "
                f"({error}); expected the scheduler's, such as 10.0.0.1"
            ) from None
        if self.role != "scheduler":
            return
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(addresses[0][4])
            except OSError as error:
                raise UnavailableError(
                    f"the scheduler cannot listen at {self.host}:{self.port} ({error.strerror}); "
                    "set DMLC_PS_ROOT_URI to an address of its machine, and DMLC_PS_ROOT_PORT to a "
                    "free port"
                ) from error

    def prepare(self) -> None:
        """Let MXNet send heartbeats, by which each process notices that another is lost."""
        os.environ.setdefault(HEARTBEAT_INTERVAL, str(INTERVAL_S))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _text(environment: Mapping[str, str], name: str, expected: str) -> str:
    value = environment.get(name, "").strip()
    if not value:
        raise UsageError(
            f"--kvstore: {name} is not set; set it to {expected} in each process, {REMEDY}"
        )
    return value


def _number(
    environment: Mapping[str, str], name: str, most: int, default: int | None = None
) -> int:
    if default is not None and not environment.get(name, "").strip():
        return default
    text = _text(environment, name, f"a number from 1 to {most}")
    # Longer numbers are slow to read; no digits but ASCII's, as in C.
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= most):
        raise UsageError(f"{name} is {shortened(text)!r}; expected a whole number from 1 to {most}")
    return int(text)
