"""`joined_hosts`: the library's calls on several hosts, as on one."""

import contextlib
from collections.abc import Iterator

from tpt_jax.errors import UserError
from tpt_jax.runtime import environment, hosts, preemption
from tpt_jax.terminal import STDERR, say


@contextlib.contextmanager
def joined_hosts(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> Iterator[None]:
    """Runs the body as one host of a pod, or alone; every host runs the same program.

    Only the first host shows progress. An error on one host ends all of them with that error, and SIGTERM stops all of
    them at the same step. Enter it before any other use of JAX.

    Args:
      coordinator: HOST:PORT of the first host, with the number of hosts and this one's number; none of the three on
        Cloud TPU, GKE and Slurm, where the environment names the hosts.

    Raises:
      UserError: only some of the three are given, or not all hosts joined.
    """
    environment.prepare()
    options = (coordinator, num_processes, process_id)
    if any(value is not None for value in options) and None in options:
        raise UserError("--coordinator, --num_processes and --process_id: give all three, or none")
    if coordinator is None or num_processes is None or process_id is None:
        hosts.join(None)
    else:
        hosts.join(hosts.Coordinator(coordinator, num_processes, process_id))
    preemption.listen()
    STDERR.quiet = not hosts.is_first()
    if hosts.count() > 1:
        say(f"hosts: {hosts.roster()}")
    with hosts.end_together():
        yield
