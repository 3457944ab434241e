"""The hosts of a pod: one process each, all running the same command on their own devices.

Hosts exchange JSON through JAX's coordination service. Every host makes the same calls in the same order. A message's
key holds the number and the name of its exchange, so one exchange can never read another's message, and hosts that
reach different calls fail within a second. Waiting has a time limit, after which the error names the late host. A dead
host is noticed within HEARTBEAT seconds, when the service misses its heartbeat. An error on one host ends all of them
with that error (`end_together`).

A single process is the only host and never waits.
"""

import collections
import contextlib
import dataclasses
import itertools
import json
import math
import socket
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from tpt_jax.errors import HostsError, MachineError, Stopped, UserError

SECONDS_TO_START = 300  # for all hosts to join
SECONDS_TO_WAIT = 900  # for the slowest host in an exchange
SECONDS_TO_END = 20  # for the other hosts to see an error
HEARTBEAT = 30  # seconds of silence after which a host counts as dead
CHUNK = 2**20  # bytes of a message under one key
POLL = 1000  # milliseconds between checks on the other hosts

FAILURE = "failure"  # the key of the first error that any host reports
SHARED_ERRORS: tuple[type[Exception], ...] = (UserError, MachineError, HostsError, FloatingPointError)

_exchanges = itertools.count()  # numbers for all exchanges of this process, which share JAX's client
_remembered: collections.deque[int] = collections.deque()  # those whose messages the service still holds


@dataclasses.dataclass(frozen=True)
class Coordinator:
    """Where the hosts meet, if the environment does not name them.

    Attributes:
      address: "HOST:PORT" of the first host.
    """

    address: str
    num_processes: int
    process_id: int


def join(coordinator: Coordinator | None) -> None:
    """Joins the other hosts; must come before any other use of JAX.

    On Cloud TPU, GKE and Slurm the environment names the other hosts. Elsewhere a process without a coordinator is
    alone.

    Raises:
      UserError: not all hosts joined in time, or the address is wrong.
    """
    options: dict[str, Any] = {}
    if coordinator is not None:
        options = {
            "coordinator_address": coordinator.address,
            "num_processes": coordinator.num_processes,
            "process_id": coordinator.process_id,
        }
    try:
        jax.distributed.initialize(
            **options,
            initialization_timeout=SECONDS_TO_START,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=HEARTBEAT,
        )
    except ValueError as error:
        if coordinator is not None:
            raise UserError(
                f"--coordinator {coordinator.address}: {error}; write HOST:PORT of the first host"
            ) from error
        return  # the environment names no other hosts
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"not all hosts joined within {SECONDS_TO_START} s ({_first_line(error)}); "
            "start the same command on every host"
        ) from error
    _client().key_value_set(f"hostname/{jax.process_index()}", socket.gethostname())
    barrier("joining")
    if count() > 1:
        _limit_orbax()


def roster() -> str:
    """The number and the hostname of every host; JAX's own messages give numbers only."""
    return ", ".join(f"{host} {_hostname(host)}" for host in range(count()))


def count() -> int:
    return jax.process_count()


def is_first() -> bool:
    """Whether this host prints, and writes the shared files."""
    return jax.process_index() == 0


def filename_suffix() -> str:
    """Suffix for a file that each host writes for itself; "" on the first host."""
    return "" if is_first() else f".{jax.process_index():03}"


def own_share(items: Sequence[Any]) -> Sequence[Any]:
    """This host's share of the items: every `count()`-th, starting at its own index."""
    return items[jax.process_index() :: count()]


def barrier(name: str) -> None:
    """Waits until all hosts have reached it.

    Raises:
      HostsError: a host is late, gone, or in another exchange.
    """
    all_gather(name, None)


def all_gather(name: str, value: Any) -> list[Any]:
    """The values of all hosts, in the order of the hosts; every host gets the same list, read back from JSON.

    Args:
      value: anything JSON can hold.

    Raises:
      HostsError: a host is late, gone, or in another exchange.
      UserError, MachineError, FloatingPointError: as another host raised it.
    """
    if count() == 1:
        return [_through_json(value)]
    exchange = _Exchange.enter(name)
    if not is_first():
        exchange.post(str(jax.process_index()), value)
        return exchange.receive("all", sender=0)
    values = [value, *(exchange.receive(str(host), sender=host) for host in range(1, count()))]
    _forget_before(exchange.number)  # all hosts have come here, so they have received what was sent before
    exchange.post("all", values)
    return _through_json(values)


def broadcast(name: str, make: Callable[[], Any]) -> Any:
    """The first host's value, for all hosts: a file one host has just written may not be visible to the next yet.

    Args:
      make: called on the first host only; returns anything JSON can hold. Every host gets it read back from JSON.

    Raises:
      HostsError: the first host is late, gone, or in another exchange.
      UserError, MachineError, FloatingPointError: as `make` raised it, on every host.
    """
    if count() == 1:
        return _through_json(make())
    exchange = _Exchange.enter(name)
    if not is_first():
        return exchange.receive("value", sender=0)
    try:
        value = make()
    except Exception as error:
        _report(error)
        raise
    exchange.post("value", value)
    return _through_json(value)


@contextlib.contextmanager
def end_together() -> Iterator[None]:
    """Tells the other hosts of an error in the body, and waits until they have seen it.

    Each of them raises it where it waits next, so that all end with the same message and exit status. Without the wait
    the first host would shut down the coordination service, and JAX would abort the others.
    """
    try:
        yield
    except Stopped:  # all hosts stop at the same step
        raise
    except Exception as error:
        if count() > 1:
            _report(error)
            _wait_for_others_to_see()
        raise


@dataclasses.dataclass(frozen=True)
class _Exchange:
    """One numbered and named exchange of messages among all hosts."""

    number: int
    name: str

    @classmethod
    def enter(cls, name: str) -> "_Exchange":
        """The next exchange; the other hosts can see that this host has reached it, and under which name."""
        exchange = cls(next(_exchanges), name)
        _remembered.append(exchange.number)
        _client().key_value_set(exchange._reached_key(jax.process_index()), name)
        return exchange

    def post(self, label: str, value: Any) -> None:
        """Sends a value under a label; the number of chunks is sent last, after all chunks."""
        data = zlib.compress(json.dumps(value).encode())
        num_chunks = max(1, math.ceil(len(data) / CHUNK))
        for index in range(num_chunks):
            chunk = data[index * CHUNK : (index + 1) * CHUNK]
            _client().key_value_set_bytes(self._key(label, str(index)), chunk)
        _client().key_value_set(self._key(label, "num_chunks"), str(num_chunks))

    def receive(self, label: str, sender: int) -> Any:
        """The value that the sender posts under the label.

        Raises:
          HostsError: a host is late, gone, or in another exchange.
        """
        deadline = time.monotonic() + SECONDS_TO_WAIT
        while (num_chunks := self._poll(self._key(label, "num_chunks"))) is None:
            _raise_reported_error()
            self._check_same_exchange(sender)
            if time.monotonic() > deadline:
                error = HostsError(self._describe_late(sender))
                _report(error)
                raise error
        keys = [self._key(label, str(index)) for index in range(int(num_chunks))]
        chunks = [_client().blocking_key_value_get_bytes(key, 60_000) for key in keys]
        return json.loads(zlib.decompress(b"".join(chunks)))

    def _poll(self, key: str) -> str | None:
        try:
            return _client().blocking_key_value_get(key, POLL)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" in str(error):
                return None
            raise HostsError(f"the coordination service is gone, at {self.name!r} ({_first_line(error)})") from error

    def _check_same_exchange(self, host: int) -> None:
        reached = _try_get(self._reached_key(host))
        if reached is not None and reached != self.name:
            error = HostsError(
                f"the hosts have diverged: host {host} ({_hostname(host)}) is at {reached!r}, host "
                f"{jax.process_index()} at {self.name!r}; start the same command with the same files on every host"
            )
            _report(error)
            raise error

    def _describe_late(self, sender: int) -> str:
        late = [host for host in range(count()) if _try_get(self._reached_key(host)) is None] or [sender]
        names = ", ".join(f"{host} ({_hostname(host)})" for host in late)
        return f"host {names} is late or gone: waited {SECONDS_TO_WAIT} s for it at {self.name!r}"

    def _key(self, label: str, field: str) -> str:
        return f"exchange/{self.number}/{self.name}/{label}/{field}"

    def _reached_key(self, host: int) -> str:
        return f"reached/{self.number}/{host}"


def _forget_before(number: int) -> None:
    """Removes the messages of exchanges below a number from the service, whose memory would grow with a run."""
    while _remembered[0] < number:
        earlier = _remembered.popleft()
        _client().key_value_delete(f"exchange/{earlier}/")
        _client().key_value_delete(f"reached/{earlier}/")


def _report(error: Exception) -> None:
    """Reports an error to all hosts, unless another one was reported before."""
    kind = next((kind for kind in SHARED_ERRORS if isinstance(error, kind)), None)
    message = str(error)
    if kind is None:
        host = jax.process_index()
        kind, message = HostsError, f"host {host} ({_hostname(host)}): {type(error).__name__}: {_first_line(error)}"
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # an earlier error stands, or the service is gone
        _client().key_value_set(FAILURE, json.dumps([kind.__name__, message]))


def _raise_reported_error() -> None:
    reported = _try_get(FAILURE)
    if reported is not None:
        kind, message = json.loads(reported)
        raise next(error for error in SHARED_ERRORS if error.__name__ == kind)(message)


def _wait_for_others_to_see() -> None:
    """Waits, for a limited time, until every host has seen the reported error."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # the service is gone, and with it the first host
        _client().key_value_set(f"{FAILURE}_seen/{jax.process_index()}", "")
        deadline = time.monotonic() + SECONDS_TO_END
        while time.monotonic() < deadline and len(_client().key_value_dir_get(f"{FAILURE}_seen/")) < count():
            time.sleep(0.1)


def _client() -> Any:
    # Public JAX offers no key-value exchange; orbax uses the same client.
    from jax._src import distributed

    return distributed.global_state.client


def _limit_orbax() -> None:
    """Makes orbax's hosts wait for each other through the service, with time limits, rather than in a collective."""
    import orbax.checkpoint  # noqa: F401  (defines the flag)
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # the command line is not absl's
    flags.FLAGS.experimental_orbax_use_distributed_barrier = True


def _through_json(value: Any) -> Any:
    """What a host receives when this value is sent, on the sending host and in a single process too."""
    return json.loads(json.dumps(value))


def _try_get(key: str) -> str | None:
    try:
        return str(_client().key_value_try_get(key))
    except jax.errors.JaxRuntimeError:
        return None


def _hostname(host: int) -> str:
    return _try_get(f"hostname/{host}") or "unknown"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
