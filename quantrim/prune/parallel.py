"""Measuring spread over processes of one machine, or over a Ray cluster; each group is measured alike."""

from __future__ import annotations

import copy
import importlib.util
import math
import multiprocessing
import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Any

import torch

from quantrim.errors import ConfigError, EngineError
from quantrim.prune.groups import ChannelGroup
from quantrim.prune.sensitivity import Found, Job, measure_some, require_workers
from quantrim.runtime import first_line

#: Bundles for each worker: enough to even out the load, few enough to share what lies before the groups.
_BUNDLES = 3
_job: Job | None = None


def spread(job: Job, groups: Sequence[ChannelGroup], workers: int | str) -> Iterator[Found]:
    """Measure groups on workers; results come as they are ready."""
    require_workers(workers)
    names = [group.name for group in groups]
    if not names:
        return iter(())
    if workers == "ray":
        return _on_ray(job, names)
    return _on_processes(job, names, int(workers)) if int(workers) > 1 else measure_some(job, names)


def _bundles(names: Sequence[str], workers: int) -> list[list[str]]:
    size = max(1, math.ceil(len(names) / (workers * _BUNDLES)))
    return [list(names[start : start + size]) for start in range(0, len(names), size)]


def _on_processes(job: Job, names: Sequence[str], workers: int) -> Iterator[Found]:
    # fork would copy a torch whose thread pool is already running, and hang
    context = multiprocessing.get_context("spawn")
    # as bytes: torch would send tensors as shared memory, and the masks of all workers would meet in it
    content = _pickled(job)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_receive, initargs=(content,)) as pool:
        futures = [pool.submit(_measure_bundle, bundle) for bundle in _bundles(names, workers)]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise EngineError(
                "a measuring process died: out of memory, or a script that measures outside of "
                "'if __name__ == \"__main__\":'. Give fewer workers; what was measured is kept."
            ) from error


def _pickled(job: Job) -> bytes:
    try:
        return pickle.dumps(job)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise EngineError(
            f"the model can't be sent to other processes: {first_line(error)}. Define what it is made of at "
            "the top level of a module, or give one worker."
        ) from error


def _receive(content: bytes) -> None:
    global _job
    job: Job = pickle.loads(content)  # from the process that started this one
    torch.set_num_threads(job.threads)
    _job = job


def _measure_bundle(names: Sequence[str]) -> Found:
    if _job is None:
        raise RuntimeError("the worker has not received its job")
    return _merged(list(measure_some(_job, names)))


def _merged(found: Sequence[Found]) -> Found:
    curves = {name: curve for one in found for name, curve in one.curves.items()}
    return Found(curves, sum(one.evaluations for one in found), found[-1].baseline)


def _on_ray(job: Job, names: Sequence[str]) -> Iterator[Found]:
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("workers='ray' needs Ray. Install it with: pip install 'quantrim[ray]'")
    import ray

    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    workers = max(1, int(ray.cluster_resources().get("CPU", 1)) // max(1, job.threads))
    remote: Any = ray.remote(num_cpus=job.threads)(_measure_remotely)
    shared = ray.put(job)
    waiting = [remote.remote(shared, bundle) for bundle in _bundles(names, workers)]
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


def _measure_remotely(job: Job, names: Sequence[str]) -> Found:
    torch.set_num_threads(job.threads)
    # Ray may hand out tensors that it also shows to others
    return _merged(list(measure_some(replace(job, module=copy.deepcopy(job.module)), names)))
