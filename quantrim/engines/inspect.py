"""Ask an engine about a file: which layers run INT8; and where a quantized model loses accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from quantrim.engines import EngineName, LayerRun, open_session, require_engine
from quantrim.engines.compare import compare
from quantrim.engines.machine import describe_machine
from quantrim.engines.verdict import Verdict, judge
from quantrim.errors import ModelError
from quantrim.graph import graph_from_onnx, normalize, random_feed, read_onnx, require_finite
from quantrim.graph.feeds import IMAGENET, ImagePreprocess, calibration_feeds
from quantrim.graph.names import module_of
from quantrim.graph.ports import input_ports, spell
from quantrim.graph.session import reference_session, with_outputs
from quantrim.judges import Distances, Judgement, Judging
from quantrim.judges.judgement import batch_of, distances

#: Signal to noise of a tensor that was rounded to 8 bits once and well.
_EIGHT_BITS_DB = 40.0


@dataclass(frozen=True, slots=True)
class LayerError:
    """Error of one tensor of a quantized model, all quantization before it included.

    Attributes:
        node: node that makes the tensor.
        op: its op type.
        tensor: name in the float model.
        sqnr_db: median over samples of the signal to quantization noise, decibel.
        cosine: median over samples of the cosine similarity.
        module: path of the node's module, where the file tells.
        lost_db: decibel that this node alone lost: those of the worst tensor that it reads, less its own.
    """

    node: str
    op: str
    tensor: str
    sqnr_db: float
    cosine: float
    module: str = ""
    lost_db: float = 0.0


@dataclass(frozen=True, slots=True)
class Inspection:
    """Result of :func:`inspect`.

    Attributes:
        model: path.
        verdict: which linear layers run INT8.
        layers: every layer the engine executed.
        errors: per-tensor errors in order of execution; empty without a float model to compare with.
        judgement: what the outputs on the engine keep of the float model; None likewise.
        modules: paths of modules by node, where the file tells.
    """

    model: str
    verdict: Verdict
    layers: tuple[LayerRun, ...]
    errors: tuple[LayerError, ...]
    judgement: Judgement | None
    modules: Mapping[str, str]

    def module(self, run: LayerRun) -> str:
        """Path of the module that an executed layer stands for; "" where the file does not tell."""
        return next((self.modules[node] for node in run.nodes if node in self.modules), "")

    def to_json(self) -> dict[str, Any]:
        """The documented JSON schema."""
        return {
            "command": "inspect",
            "model": self.model,
            "verdict": self.verdict.to_json(),
            "faithful": None if self.judgement is None else self.judgement.faithful,
            "judgement": None if self.judgement is None else self.judgement.to_json(),
            "executed": [asdict(run) | {"module": self.module(run)} for run in self.layers],
            "layers": [asdict(error) for error in self.errors],
            "agreement": [asdict(one) for one in self.judgement.outputs] if self.judgement else [],
            "machine": describe_machine().to_json(),
        }


def inspect(
    model: str | Path,
    *,
    engine: EngineName = "openvino",
    against: str | Path | None = None,
    data: Any = None,
    samples: int = 8,
    preprocess: ImagePreprocess | Callable[[Path], np.ndarray] = IMAGENET,
    input_shape: tuple[int, ...] | None = None,
    threads: int = 1,
    judging: Judging | None = None,
) -> Inspection:
    """Which layers of a file an engine runs in INT8, and where it differs from the float model.

    Args:
        model: .onnx file, quantized or not, whoever wrote it.
        engine: engine to ask.
        against: float model; with it, errors are measured.
        data: inputs for the comparison (see :func:`quantrim.calibrate.calibration_feeds`); random ones
            by default.
        samples: how many of them.
        preprocess: for image files.
        input_shape: shape of the first input where it is dynamic.
        threads: CPU threads.
        judging: how the outputs are judged; as their shapes say by default.

    Raises:
        ModelError, EngineError, DataError: the file can't be read or run, or the data don't fit.
    """
    require_engine(engine)
    quantized = read_onnx(model)
    require_finite(quantized)
    feeds = _inputs(quantized, data, samples, preprocess, input_shape)
    graph = graph_from_onnx(quantized, feeds[0])
    session = open_session(model, engine, threads=threads)
    layers = session.layers(feeds[0])
    verdict = judge(graph, layers, engine, {})
    errors: tuple[LayerError, ...] = ()
    judgement = None
    if against is not None:
        reference = read_onnx(against)
        _require_alike(reference, quantized, against, model)
        errors = layer_errors(normalize(reference), quantized, feeds)
        sessions = open_session(against, engine), open_session(model, engine)
        judgement = compare(*sessions, feeds, judging)
    modules = {name: node.module for node in graph.nodes if node.module for name in (*node.outputs, node.name)}
    return Inspection(str(model), verdict, layers, errors, judgement, modules)


def _require_alike(reference: ir.Model, quantized: ir.Model, one: str | Path, two: str | Path) -> None:
    """Refuse to compare models of different inputs or outputs."""
    sides = [
        {str(v.name): tuple(d if isinstance(d, int) else None for d in v.shape or ()) for v in values}
        for m in (reference, quantized)
        for values in ([v for v in m.graph.inputs if v.name not in m.graph.initializers], m.graph.outputs)
    ]
    for expected, got in zip(sides[:2], sides[2:], strict=True):
        for name, shape in expected.items():
            other = got.get(name)
            if other is None or not _shapes_meet(shape, other):
                there = "none" if other is None else spell(other)
                raise ModelError(
                    f"{one}: not the float model of {two}: {name!r} is {spell(shape)} there, {there} here."
                )


def _shapes_meet(one: Sequence[int | None], two: Sequence[int | None]) -> bool:
    return len(one) == len(two) and all(None in (a, b) or a == b for a, b in zip(one, two, strict=True))


def _inputs(
    model: ir.Model,
    data: Any,
    samples: int,
    preprocess: ImagePreprocess | Callable[[Path], np.ndarray],
    shape: tuple[int, ...] | None,
) -> list[Mapping[str, np.ndarray]]:
    if data is None:
        return [random_feed(model, shape, seed) for seed in range(min(samples, 4))]
    ports = input_ports(model)
    return list(
        calibration_feeds(data, ports, samples=samples, batch_size=1, preprocess=preprocess, shape=shape)
    )


def layer_errors(
    reference: ir.Model, quantized: ir.Model, feeds: Sequence[Mapping[str, np.ndarray]]
) -> tuple[LayerError, ...]:
    """Compare the tensors that both models name, with the quantized one simulated by ONNX Runtime.

    A tensor ``t`` of the float model is compared with what a quantizer behind the quantized model's ``t`` makes
    of it (that is what later layers read), else with its own ``t``; whoever wrote the file.
    """
    made = {str(v.name): node for node in reference.graph for v in node.outputs if v.name}
    there = {str(v.name) for node in quantized.graph for v in node.outputs if v.name}
    behind = _dequantized(quantized)
    pairs = {name: behind.get(name, name) for name in made if name in there}
    found = _compare(with_outputs(reference, pairs), with_outputs(quantized, pairs.values()), pairs, feeds)
    decibel = {name: float(np.median(one.sqnr_db)) for name, one in found.items()}
    return tuple(
        LayerError(
            node=str(made[name].name),
            op=made[name].op_type,
            tensor=name,
            sqnr_db=decibel[name],
            cosine=float(np.median(one.cosine)),
            module=module_of(made[name]),
            lost_db=_before(made[name], decibel) - decibel[name],
        )
        for name, one in found.items()
    )


def _dequantized(model: ir.Model) -> dict[str, str]:
    """Tensors that a QuantizeLinear reads → the result of the DequantizeLinear behind it."""
    return {
        str(node.inputs[0].name): str(reader.outputs[0].name)
        for node in model.graph
        if node.op_type == "QuantizeLinear" and node.inputs[0] is not None
        for reader, position in node.outputs[0].uses()
        if reader.op_type == "DequantizeLinear" and position == 0
    }


def _before(node: ir.Node, decibel: Mapping[str, float]) -> float:
    """Decibel of the worst tensor that a node reads; those of 8 bits for the input of the model."""
    read = [decibel[str(v.name)] for v in node.inputs if v is not None and str(v.name) in decibel]
    return min(read, default=_EIGHT_BITS_DB)


def worst_layers(errors: Sequence[LayerError], count: int = 3) -> list[LayerError]:
    """The nodes that lose most by themselves, of those whose result is worse than the middle one."""
    if not errors:
        return []
    middle = float(np.median([error.sqnr_db for error in errors]))
    bad = [error for error in errors if error.sqnr_db <= middle and error.lost_db > 0]
    return sorted(bad, key=lambda error: -error.lost_db)[:count]


def _compare(
    reference: ir.Model,
    quantized: ir.Model,
    pairs: Mapping[str, str],
    feeds: Sequence[Mapping[str, np.ndarray]],
) -> dict[str, Distances]:
    """Distances of every pair of tensors, sample by sample."""
    one, two = reference_session(reference), reference_session(quantized)
    found: dict[str, list[Distances]] = {name: [] for name in pairs}
    for feed in feeds:
        expected = dict(zip((o.name for o in one.get_outputs()), one.run(None, dict(feed)), strict=True))
        got = dict(zip((o.name for o in two.get_outputs()), two.run(None, dict(feed)), strict=True))
        for name, other in pairs.items():
            x, y = (np.asarray(a, np.float32) for a in (expected[name], got[other]))
            if x.shape == y.shape:
                found[name].append(distances(x, y, batch_of(feed)))
    return {name: Distances.joined(parts) for name, parts in found.items() if parts}
