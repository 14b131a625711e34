"""One step in a process of its own, so that whatever happens to it happens to it alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from quantrim.errors import QuantrimError, first_line
from quantrim.files import read_json, write_json
from quantrim.fleet.cache import Cache, Step, made_in
from quantrim.graph.feeds import IMAGENET, ImagePreprocess
from quantrim.recipes.deploy import deploy_of
from quantrim.scratch import end_with

#: The file that a step makes, in its folder.
MADE = "model.int8.onnx"
_FAILED = 1
_running: set[subprocess.Popen[bytes]] = set()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a step.

    Attributes:
        result: its JSON; None where it failed.
        error: one line that says why.
        seconds: that it took; 0.0 where it was done before.
    """

    result: dict[str, Any] | None
    error: str = ""
    seconds: float = 0.0


def done(folder: str, step: Step) -> Outcome:
    """Do a step, or take what was done; never raises what is the step's own fault.

    Args:
        folder: of the cache.
        step: what to do.
    """
    cache = Cache(Path(folder))
    if (known := cache.result(step)) is not None:
        return Outcome(known)
    start = time.perf_counter()
    final = cache.place(step)
    try:
        made_in(final, partial(_in_process, cache.log(step), final, step))
    except QuantrimError as error:
        return Outcome(None, str(error), time.perf_counter() - start)
    return Outcome(cache.result(step), seconds=time.perf_counter() - start)


def _in_process(log: Path, final: Path, step: Step, folder: Path) -> None:
    write_json(folder / "step.json", {"kind": step.kind, "inputs": step.inputs, "final": str(final)})
    words = [sys.executable, "-m", "quantrim.fleet.work", str(folder), str(os.getpid())]
    threads = str(step.inputs.get("threads", 1))
    environment = {**os.environ, "TMPDIR": str(folder), "OMP_NUM_THREADS": threads}
    with log.open("w") as heard:
        process = subprocess.Popen(words, stdout=heard, stderr=heard, env=environment)
        _running.add(process)
        try:
            code = process.wait()
        finally:
            _running.discard(process)
    if code == 0 and (folder / "result.json").is_file():
        return
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    if code == _FAILED and lines:
        raise QuantrimError(lines[-1])
    if code < 0:
        raise QuantrimError(f"its process was ended by {signal.Signals(-code).name}; {log} has what it said.")
    raise QuantrimError(f"its process ended with code {code}; {log} has what it said.")


def end_running() -> None:
    """End the steps that are under way in this process; they are done anew at the next run."""
    for process in list(_running):
        process.terminate()


def main(folder: str, parent: str) -> int:
    """Do the step that a folder holds, in this process."""
    end_with(int(parent))
    place = Path(folder)
    step = read_json(place / "step.json")
    try:
        value = _STEPS[step["kind"]](place, Path(step["final"]), **step["inputs"])
    except QuantrimError as error:
        print(f"{' '.join(str(error).split())}", file=sys.stderr)
        return _FAILED
    except MemoryError as error:
        print(f"not enough memory ({first_line(error)}).", file=sys.stderr)
        return _FAILED
    write_json(place / "result.json", value)
    return 0


def _ptq(place: Path, final: Path, *, model: str, data: str, deploy: str | None, target: str, engine: str,
         accept: str, task: str | None, shape: list[int] | None, threads: int, recipe: Mapping[str, Any],
         ) -> dict[str, Any]:  # fmt: skip
    from quantrim.post_training import ptq
    from quantrim.recipes.deploy import carry_deploy, judging_from

    result = ptq(
        model,
        data,
        place / MADE,
        target=target,
        engines=(engine,),
        judging=judging_from([Path(model)], _path(deploy), task=task, decoder=None, accept=accept),
        input_shape=shape,
        threads=threads,
        preprocess=preparation([Path(model)], _path(deploy)),
        **recipe,
    )
    carry_deploy(Path(model), _path(deploy), Path(result.output))
    return result.to_json() | {"output": str(final / Path(result.output).name)}


def _compress(place: Path, final: Path, *, model: str, data: str, deploy: str | None, engine: str,
              max_drop: float, task: str | None, shape: list[int] | None, threads: int,
              recipe: Mapping[str, Any]) -> dict[str, Any]:  # fmt: skip
    from quantrim.compression import compress
    from quantrim.recipes.deploy import carry_deploy, judging_from

    result = compress(
        model,
        data,
        place / MADE,
        max_drop=max_drop,
        engine=engine,  # type: ignore[arg-type]
        judging=judging_from([Path(model)], _path(deploy), task=task, decoder=None, accept="any"),
        samples=recipe["samples"],
        judged=recipe["judged"],
        skip=recipe["skip"],
        input_shape=None if shape is None else tuple(shape),
        threads=threads,
        preprocess=preparation([Path(model)], _path(deploy)),
    )
    carry_deploy(Path(model), _path(deploy), Path(result.output))
    return result.to_json() | {"output": str(final / Path(result.output).name)}


def _time(place: Path, final: Path, *, models: list[str], engine: str, shape: list[int] | None, threads: int,
          repeat: int) -> dict[str, Any]:  # fmt: skip
    from quantrim.engines.bench import bench
    from quantrim.engines.machine import describe_machine

    sizes = None if shape is None else tuple(shape)
    rows = bench(models, engines=(engine,), threads=threads, repeat=repeat, shape=sizes)
    machine = describe_machine().to_json()
    return {"rows": [row.to_json() | {"machine": machine} for row in rows]}


_STEPS: Mapping[str, Callable[..., dict[str, Any]]] = {"ptq": _ptq, "compress": _compress, "time": _time}


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def preparation(models: Sequence[Path], deploy: Path | None) -> ImagePreprocess | Callable[[Path], np.ndarray]:
    """How image files become inputs: as the ``deploy.yaml`` says that is named or lies beside a model.

    Args:
        models: the first of them that has one beside it is asked.
        deploy: or this file.
    """
    source = next(filter(None, (deploy_of(model, deploy) for model in models)), None)
    if source is None:
        return IMAGENET
    from quantrim.recipes.calibration import deployed_decoder  # needs torch

    return deployed_decoder(source)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
