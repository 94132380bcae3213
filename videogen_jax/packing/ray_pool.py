"""Workers on a Ray cluster, instead of the processes of `workers.make_pool`; the work behind `pack --engine=ray`.

Ray (the extra "ray") starts the tasks; what they do, and the order in which their results are written, is the same for
both, and so are the bytes of the data set. Clips pass through files in OUTPUT/unfinished, because those of an hour of
video are too large to return: every node needs --input and --output at the same path, on a file system that they share,
and this package installed. Ray runs a task whose worker or node died RETRIES more times.
"""

import contextlib
import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool

from videogen_jax.data.workers import TaskDied

RETRIES = 3
OBJECT_STORE_BYTES = 100 * 2**20  # of a Ray that is started here; results are small


class RayTask:
    """The result of a call, as a `concurrent.futures.Future`."""

    def __init__(self, reference):
        self._reference = reference

    def result(self):
        """Waits for the result.

        Raises:
          TaskDied: its workers died, more often than Ray retries.
          BrokenProcessPool: the cluster is gone.
          Exception: what the call raised.
        """
        import ray

        try:
            return ray.get(self._reference)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
            raise TaskDied(str(error)) from None
        except ray.exceptions.RayError as error:
            raise BrokenProcessPool(str(error)) from None

    def cancel(self) -> None:
        """Stops the call, unless it has ended."""
        import ray

        ray.cancel(self._reference, force=True)


class RayPool:
    """Calls functions on the workers of a cluster, as a `concurrent.futures.Executor`."""

    def __init__(self, folders: Sequence[str]):
        """Takes folders that every node must have."""
        import ray

        self._folders = [os.path.abspath(folder) for folder in folders]
        self._call = ray.remote(num_cpus=1, max_retries=RETRIES)(_call)
        self.workers = max(1, int(ray.cluster_resources().get("CPU", 1)))

    def submit(self, function: Callable, *arguments, **named) -> RayTask:
        """Calls a function on one of the workers."""
        return RayTask(self._call.remote(self._folders, function, arguments, named))


def _call(folders, function, arguments, named):
    """Runs on a node of the cluster."""
    for folder in folders:
        if not os.path.isdir(folder):
            raise ValueError(
                f"the node {socket.gethostname()} of the Ray cluster has no folder {folder}: put --input and --output "
                "on a file system that all nodes mount at the same path."
            )
    return function(*arguments, **named)


def _reach(address):
    """Raises OSError if nothing listens at an address with a port, for which Ray itself would wait for minutes."""
    if match := re.fullmatch(r"(?:ray://)?\[?(.+?)\]?:(\d+)", address):
        socket.create_connection((match[1], int(match[2])), timeout=10).close()


@contextlib.contextmanager
def connect(address: str | None, workers: int, folders: Sequence[str]) -> Iterator[RayPool]:
    """Connects to a Ray cluster, or starts Ray on this machine.

    Args:
      address: as of `ray.init`, such as "auto" or "ray://HOST:10001"; None: that in RAY_ADDRESS, or this machine.
      workers: CPUs of a Ray that is started here.
      folders: that every node must have.
    Yields:
      The pool.
    Raises:
      ValueError: Ray is not installed, or the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ValueError(
            f"--engine=ray needs Ray ({error}): pip install 'ray>=2.50', or pack without it."
        ) from None
    options = {"log_to_driver": False, "logging_level": "ERROR"}
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        options |= {"num_cpus": workers, "include_dashboard": False}
        options |= {"object_store_memory": OBJECT_STORE_BYTES}
    try:
        _reach(address)
        ray.init(address=address, **options)
    except (OSError, ValueError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise ValueError(
            f"there is no Ray cluster at --ray_address={address} ({text}): start it with ray start --head, or "
            "leave out the option to use this machine."
        ) from None
    try:
        yield RayPool(folders)
    finally:
        ray.shutdown()
