"""TensorBoard's event files, written where they are logged."""

import os
import time


class ScalarEvents:
    """Writes scalars to an event file.

    tensorboardX's own SummaryWriter passes events to a thread, through a queue whose semaphores need a writable
    /dev/shm. The thread ends when a disk is full; the queue then blocks whoever logs.
    """

    def __init__(self, folder: str) -> None:
        """Creates the folder, and a new file in it.

        Raises:
          OSError: it cannot be created.
        """
        from tensorboardX.event_file_writer import EventsWriter  # here, for it takes time to import

        os.makedirs(folder, exist_ok=True)
        self._writer = EventsWriter(os.path.join(folder, "events"))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Writes one point of a curve.

        Raises:
          OSError: it cannot be written.
        """
        from tensorboardX.proto import event_pb2

        event = event_pb2.Event(wall_time=time.time(), step=step)  # pyright: ignore[reportAttributeAccessIssue]
        event.summary.value.add(tag=name, simple_value=value)
        self._writer.write_event(event)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
