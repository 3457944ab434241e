"""What the first host reads, for all hosts, in parts: a round's traces are many."""

import itertools
from collections.abc import Iterator
from typing import Any

from tpt_jax.runtime import hosts

ITEMS_AT_ONCE = 1024


def broadcast_each(name: str, items: Iterator[Any]) -> Iterator[Any]:
    """Yields the first host's items, for all hosts together; a part of them is in memory at a time.

    Args:
      items: read on the first host only; anything JSON can hold. Every host gets it read back from JSON.

    Raises:
      HostsError, UserError: as hosts.broadcast.
    """
    while part := hosts.broadcast(name, lambda: list(itertools.islice(items, ITEMS_AT_ONCE))):
        yield from part
