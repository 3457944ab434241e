"""The hosts of a pod: one process each, all running the same command on their own devices.

What hosts tell each other goes through JAX's coordination service, with time limits: a host that is late ends the
others with a message that names it. So does one that has died, within HEARTBEAT seconds: the service hears no more of
it. A process that is alone is the first of one host, and waits for nobody.

Every host calls meet, exchange and agree in the same order; their names are for messages.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import socket
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from tpt_jax.errors import HostsError, UserError

SECONDS_TO_START = 300  # for all hosts to come
SECONDS_TO_WAIT = 900  # for the last host, where all meet
HEARTBEAT = 30  # seconds without a word, and a host counts as dead
PIECE = 2**20  # bytes of a message

_calls = itertools.count()  # the service wants every meeting and every message under a name of its own


@dataclasses.dataclass(frozen=True)
class Coordinator:
    """Where the hosts meet, for those whose environment does not say.

    Attributes:
      address: "HOST:PORT" of the first one.
    """

    address: str
    num_processes: int
    process_id: int


def join(coordinator: Coordinator | None) -> None:
    """Joins the other hosts; call it before anything else of JAX.

    Cloud TPU, GKE and Slurm tell by themselves who the others are; elsewhere a process is alone unless a coordinator is
    given.

    Raises:
      UserError: the others did not come.
    """
    given: dict[str, Any] = {}
    if coordinator is not None:
        given = {
            "coordinator_address": coordinator.address,
            "num_processes": coordinator.num_processes,
            "process_id": coordinator.process_id,
        }
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=SECONDS_TO_START,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=HEARTBEAT,
        )
    except ValueError as error:
        if coordinator is not None:
            raise UserError(
                f"--coordinator {coordinator.address}: {error}; write HOST:PORT of the first host"
            ) from error
        return  # nothing here says that there are others
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"not all hosts came within {SECONDS_TO_START} s ({_first_line(error)}); "
            "start the same command on every host"
        ) from error
    _client().key_value_set(f"name/{jax.process_index()}", socket.gethostname())
    barrier("all are here")
    if count() > 1:
        _limit_orbax()


def roster() -> str:
    """Which number stands for which machine: JAX's own messages know hosts by their numbers only."""
    return ", ".join(f"{host} {_name(host)}" for host in range(count()))


def count() -> int:
    return jax.process_count()


def is_first() -> bool:
    """Whether this is the host that prints, and writes what is there once."""
    return jax.process_index() == 0


def filename_suffix() -> str:
    """What a file that each host writes for itself is called more than on a single one: "" on the first."""
    return "" if is_first() else f".{jax.process_index():03}"


def own_share(items: Sequence[Any]) -> Sequence[Any]:
    """Those of some things that this host sees to."""
    return items[jax.process_index() :: count()]


def barrier(name: str) -> None:
    """Waits until every host is here.

    Raises:
      HostsError: some host did not come in time.
    """
    if count() > 1:
        with _naming_the_late(name):
            _client().wait_at_barrier(f"{next(_calls)}: {name}", SECONDS_TO_WAIT * 1000)


def all_gather(name: str, value: Any) -> list[Any]:
    """What every host says, in their order.

    Args:
      value: anything that JSON can hold.

    Raises:
      HostsError: some host did not say anything in time.
    """
    if count() == 1:
        return [value]
    call = next(_calls)
    _say(f"{call}/{jax.process_index()}", value)
    return [value if host == jax.process_index() else _hear(f"{call}/{host}", host, name) for host in range(count())]


def broadcast(name: str, make: Callable[[], Any]) -> Any:
    """What the first host finds, for all: a file that one host has just written need not be there for the next.

    Args:
      make: called on the first host only; gives anything that JSON can hold.
    """
    if count() == 1:
        return make()
    call = next(_calls)
    if is_first():
        value = make()
        _say(f"{call}/0", value)
        return value
    return _hear(f"{call}/0", 0, name)


def _client() -> Any:
    # Public JAX has no barrier with a time limit; orbax reaches for the same client.
    from jax._src import distributed

    return distributed.global_state.client


def _limit_orbax() -> None:
    """Has orbax's hosts wait for each other through the service too; else it is a collective, which waits for ever."""
    import orbax.checkpoint  # noqa: F401  (which defines the flag)
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # the command line is not absl's
    flags.FLAGS.experimental_orbax_use_distributed_barrier = True


def _say(key: str, value: Any) -> None:
    data = zlib.compress(json.dumps(value).encode())
    num_pieces = max(1, math.ceil(len(data) / PIECE))
    for piece in range(num_pieces):
        _client().key_value_set_bytes(f"{key}/{piece}", data[piece * PIECE : (piece + 1) * PIECE])
    _client().key_value_set(f"{key}/pieces", str(num_pieces))


def _hear(key: str, host: int, name: str) -> Any:
    with _naming_the_late(name, host):
        num_pieces = int(_client().blocking_key_value_get(f"{key}/pieces", SECONDS_TO_WAIT * 1000))
        pieces = (_client().blocking_key_value_get_bytes(f"{key}/{piece}", 60_000) for piece in range(num_pieces))
        return json.loads(zlib.decompress(b"".join(pieces)))


@contextlib.contextmanager
def _naming_the_late(name: str, host: int | None = None) -> Iterator[None]:
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        late = [host] if host is not None else _numbers_at_the_end(str(error))
        names = ", ".join(f"{number} ({_name(number)})" for number in late) or "unknown"
        raise HostsError(f"host {names} is late or gone: waited {SECONDS_TO_WAIT} s for it at {name!r}") from error


def _numbers_at_the_end(message: str) -> list[int]:
    """The hosts that the service's message about a barrier names, one a line."""
    after = message.partition("timed out task names:")[2]
    return [int(line) for line in after.split("RPC:")[0].split() if line.isdigit()]


def _name(host: int) -> str:
    name = _client().key_value_try_get(f"name/{host}")
    return str(name)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
