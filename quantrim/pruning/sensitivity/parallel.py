"""Work spread over processes of one machine, or over a Ray cluster."""

from __future__ import annotations

import importlib.util
import math
import multiprocessing
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch

from quantrim.errors import ConfigError, EngineError, first_line

Work = TypeVar("Work")
Result = TypeVar("Result")
#: Does some of the work: a function of a module's top level, so that other processes find it.
Run = Callable[[Work, Sequence[str]], Result]

#: Bundles for each worker: enough to even out the load, few enough to share what lies before the items.
_BUNDLES = 3
_received: tuple[Any, Run[Any, Any]] | None = None


def spread(
    work: Work, run: Run[Work, Result], items: Sequence[str], workers: int | str, *, threads: int = 1
) -> Iterator[Result]:
    """Run bundles of items on several workers; results come as they are ready.

    Args:
        work: what every worker needs, sent to each once.
        run: what to do with a bundle.
        items: names of what is to be done.
        workers: processes on this machine, or "ray" for a Ray cluster.
        threads: of torch in each worker.

    Raises:
        ConfigError: Ray is asked for and not installed.
        EngineError: a worker died, or the work can't be sent to one.
    """
    if not items:
        return iter(())
    if workers == "ray":
        return _on_ray(work, run, items, threads)
    return _on_processes(work, run, items, int(workers), threads)


def _bundles(items: Sequence[str], workers: int) -> list[list[str]]:
    size = max(1, math.ceil(len(items) / (workers * _BUNDLES)))
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def _on_processes(
    work: Work, run: Run[Work, Result], items: Sequence[str], workers: int, threads: int
) -> Iterator[Result]:
    # fork would copy a torch whose thread pool is already running, and hang
    context = multiprocessing.get_context("spawn")
    # as bytes: torch would send tensors as shared memory, and the masks of all workers would meet in it
    content = _pickled((work, run))
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=_receive, initargs=(content, threads)
    ) as pool:
        futures = [pool.submit(_run_bundle, bundle) for bundle in _bundles(items, workers)]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise EngineError(
                "a measuring process died: out of memory, or a script that measures outside of "
                "'if __name__ == \"__main__\":'. Give fewer workers; what was measured is kept."
            ) from error


def _pickled(content: Any) -> bytes:
    try:
        return pickle.dumps(content)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise EngineError(
            f"the model can't be sent to other processes: {first_line(error)}. Define what it is made of at "
            "the top level of a module, or give one worker."
        ) from error


def _receive(content: bytes, threads: int) -> None:
    global _received
    torch.set_num_threads(threads)
    _received = pickle.loads(content)  # from the process that started this one


def _run_bundle(items: Sequence[str]) -> Any:
    if _received is None:
        raise RuntimeError("the worker has not received its work")
    work, run = _received
    return run(work, items)


def _on_ray(work: Work, run: Run[Work, Result], items: Sequence[str], threads: int) -> Iterator[Result]:
    ray = started_ray()
    workers = max(1, int(ray.cluster_resources().get("CPU", 1)) // max(1, threads))
    remote: Any = ray.remote(num_cpus=threads)(_run_remotely)
    shared = ray.put(work)
    waiting = [remote.remote(shared, run, bundle, threads) for bundle in _bundles(items, workers)]
    try:
        while waiting:
            ready, waiting = ray.wait(waiting)
            for one in ready:
                yield ray.get(one)
    except ray.exceptions.RayError as error:
        for task in waiting:
            ray.cancel(task)
        reason = str(error).strip().splitlines()[-1]
        raise EngineError(
            f"a Ray worker failed: {reason}. The model's code must be importable on every node, e.g. by "
            "PYTHONPATH; what was measured is kept."
        ) from error


def started_ray() -> Any:
    """The module ``ray``, connected to the cluster that ``RAY_ADDRESS`` names, or to one of this machine.

    Raises:
        ConfigError: Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("workers='ray' needs Ray. Install it with: pip install 'quantrim[ray]'")
    import ray

    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    return ray


def _run_remotely(work: Work, run: Run[Work, Result], items: Sequence[str], threads: int) -> Result:
    torch.set_num_threads(threads)
    return run(work, items)
