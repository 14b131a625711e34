"""Quantization-aware training of a module that stays the user's own."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from quantrim.errors import CheckpointError, ConfigError, DataError, ModelError
from quantrim.modules import Arguments, Inputs, example_arguments, examples_accepted, in_mode
from quantrim.placement import Plan
from quantrim.qat.config import EXPORTED_BITS, QATConfig
from quantrim.qat.export.export import ExportResult, export_int8
from quantrim.qat.interceptor import SET_NAME, LiveModule, QuantizerSet, Visitor, key_of, prepared_weight
from quantrim.qat.plan import CallSite, WeightUse, plan_module
from quantrim.qat.quantizers.activations import ActivationQuantizer
from quantrim.qat.quantizers.calibration import Collect, initial_range
from quantrim.qat.quantizers.weights import ClippedWeight, WeightQuantizer
from quantrim.qat.tracing.trace import Trace, trace
from quantrim.ranges import Algo
from quantrim.targets import Target, target_named

#: Weight of a calibration against training batches in a moving average.
_CALIBRATED, _GUESSED = 100.0, 0.0


class QAT:
    """A module under quantization-aware training.

    ``qat.module`` is the module itself: same class, same forward, same parameter names. Train it with any
    loop. While its forward runs, quantizers act on the tensors that the target runs in INT8.

    Args:
        module: any nn.Module; it is changed in place (hooks, and a submodule named "quantrim").
        example_inputs: a tensor, the positional arguments, or a mapping of keyword arguments of the
            forward. The module is run with it to see its calls; it need not be real data.
        target: name of a target, or the target.
        config: settings; the defaults when None.
        more_examples: further inputs, one for each branch that the forward may take.
        inplace: change ``module``, else a deep copy of it.

    Raises:
        ModelError: the module can't be traced or was quantized before.
        ConfigError: a skip glob matches nothing, or the settings contradict the target.

    Example:
        >>> import torch
        >>> from quantrim import QAT
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
        >>> qat = QAT(net, torch.randn(1, 3, 8, 8))
        >>> tuple(qat.module(torch.randn(2, 3, 8, 8)).shape)
        (2, 8, 6, 6)
    """

    def __init__(
        self,
        module: nn.Module,
        example_inputs: Inputs,
        *,
        target: str | Target = "portable",
        config: QATConfig | None = None,
        more_examples: Sequence[Inputs] = (),
        inplace: bool = True,
    ) -> None:
        if hasattr(module, SET_NAME):
            raise ModelError(
                f"{type(module).__name__} is quantized already, or has an attribute {SET_NAME!r} of its own."
            )
        self.module = module if inplace else copy.deepcopy(module)
        self.target = target_named(target) if isinstance(target, str) else target
        self.config = config or QATConfig()
        self.example = example_arguments(example_inputs)
        self.examples = (self.example, *map(example_arguments, more_examples))
        with examples_accepted(module):
            evaluated, trained = _traces(self.module, self.examples)
        layout = plan_module(self.module, evaluated, trained, self.target, self.config)
        if not layout.plan.weights:
            reasons = "; ".join(sorted(set(layout.plan.float_nodes.values())))
            raise ModelError(
                f"no layer of {type(module).__name__} can be quantized for {self.target.name!r}: "
                f"{reasons or 'it has no convolution or linear layer'}."
            )
        self.quantizer_set = QuantizerSet(self.module, layout, self.config)
        device = next((p.device for p in self.module.parameters()), torch.device("cpu"))
        self.module.add_module(SET_NAME, self.quantizer_set.to(device))
        self.quantizer_set.train(self.module.training)
        self._calibrate(self.examples, "min_max", _GUESSED)
        self.advance(0)

    @property
    def live(self) -> LiveModule:
        """The module with its quantizers, as the stages behind training take it."""
        return LiveModule(self.module, self.quantizer_set, self.target)

    @property
    def plan(self) -> Plan:
        """Where quantizers stand; nodes are calls, tensors are results of calls."""
        return self.quantizer_set.layout.plan

    @property
    def quantizers(self) -> dict[str, nn.Module]:
        """Activation quantizers by the tensor that leads their scale group."""
        return {group: self.quantizer_set.quantizer(group) for group in self.quantizer_set.layout.codes}

    def calibrate(self, batches: Iterable[Inputs], limit: int | None = None) -> None:
        """Set the ranges that training starts from, by one float pass over some data.

        Args:
            batches: inputs of the forward, each as ``example_inputs`` was given; of what a loader adds to them
                (labels behind them, further keys) nothing is used.
            limit: stop after so many batches.

        Raises:
            DataError: no batch, or an activation that is NaN or infinite.
        """
        algo = self.config.initial_range
        self._calibrate((inputs_of(batch, self.example) for batch in batches), algo, _CALIBRATED, limit)

    def _calibrate(
        self, batches: Iterable[Arguments], algo: Algo, trust: float, limit: int | None = None
    ) -> None:
        visitor, count = Collect(self.quantizer_set), 0
        with self.evaluating(visitor):
            for args, kwargs in batches:
                if count == limit:
                    break
                with _batch_statistics(self.module, args, kwargs):
                    self.module(*args, **kwargs)
                count += 1
        if not count:
            raise DataError("calibration got no batch; pass at least one input of the model.")
        for group, codes in self.quantizer_set.layout.codes.items():
            quantizer = self.quantizer_set.quantizer(group)
            if not isinstance(quantizer, ActivationQuantizer):
                continue
            sketches = [visitor.sketches[group, m] for m in range(self.quantizer_set.layout.members[group])]
            ranges = [initial_range(s, algo, codes) for s in sketches if s.samples]
            if len(ranges) == len(sketches):
                quantizer.set_ranges(ranges, trust)
        self._start_weights()

    def _start_weights(self) -> None:
        with self.evaluating(_StartWeights(self.quantizer_set)):
            for args, kwargs in self.examples:  # each branch has weights of its own
                self.module(*args, **kwargs)

    @contextmanager
    def evaluating(self, visitor: Visitor | None = None) -> Iterator[None]:
        """Evaluation mode without gradients, under a visitor; the modes of all modules return afterwards."""
        with self.live.evaluating(visitor):
            yield

    def advance(self, iteration: int) -> None:
        """Follow the schedules; call it with the iteration's number before each training step.

        Args:
            iteration: 0 for the first step.
        """
        config = self.config
        self.quantizer_set.quantizing = iteration >= config.warm_up
        self.quantizer_set.batch_norm_frozen = reached(iteration, config.freeze_batch_norm_at)
        frozen = reached(iteration, config.freeze_ranges_at)
        for quantizer in (*self.quantizer_set.activations.values(), *self.quantizer_set.weights.values()):
            if isinstance(quantizer, (ActivationQuantizer, WeightQuantizer)):
                quantizer.observing = not frozen

    def parameter_groups(self, learning_rate: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Parameter groups for a torch optimizer.

        Learned steps, offsets and thresholds get ``config.learned_rate`` times the learning rate; the
        thresholds of PACT get L2 decay, since nothing else pulls them down, and steps get none.
        """
        learned = {id(p) for p in self.quantizer_set.parameters()}
        own = [p for p in self.module.parameters() if id(p) not in learned and p.requires_grad]
        rate = learning_rate * self.config.learned_rate
        decayed: list[nn.Parameter] = []
        free: list[nn.Parameter] = []
        for name, parameter in self.quantizer_set.named_parameters():
            kind = name.rpartition(".")[2]
            (decayed if kind in ("top", "bottom", "threshold") else free).append(parameter)
        groups = [{"params": own, "lr": learning_rate, "weight_decay": weight_decay}]
        if decayed:
            groups.append({"params": decayed, "lr": rate, "weight_decay": self.config.learned_decay})
        if free:
            groups.append({"params": free, "lr": rate, "weight_decay": 0.0})
        return groups

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load a state_dict of a module that was quantized with the same settings.

        Quantizers of tensors that stay float here, as older versions did not leave them, are left out with a
        warning.

        Raises:
            CheckpointError: keys or shapes don't fit.
        """
        fitting = self._without_retired(state)
        try:
            self.module.load_state_dict(fitting)
        except RuntimeError as error:
            lines = " ".join(line.strip() for line in str(error).splitlines()[1:3])
            raise CheckpointError(f"the state doesn't fit this quantized module: {lines}") from error

    def _without_retired(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        known = {f"{SET_NAME}.activations.{key_of(group)}." for group in self.quantizer_set.layout.codes}
        own = self.module.state_dict()
        strange = [
            name
            for name in state
            if name.startswith(f"{SET_NAME}.activations.")
            and name not in own
            and not any(name.startswith(prefix) for prefix in known)
        ]
        if not strange or any(name not in state for name in own):
            return state
        gone = sorted({name.split(".")[2].replace("|", ".") for name in strange})
        warnings.warn(
            f"the state has quantizers of tensors that stay float here: {', '.join(gone[:5])}", stacklevel=3
        )
        kept = OrderedDict((name, value) for name, value in state.items() if name not in set(strange))
        if hasattr(state, "_metadata"):
            kept._metadata = state._metadata  # type: ignore[attr-defined]
        return kept

    def remove(self) -> nn.Module:
        """Take quantizers and hooks away; returns the module with its trained float weights."""
        self.quantizer_set.detach(self.module)
        delattr(self.module, SET_NAME)
        return self.module

    def export(
        self,
        path: str | Path,
        example_inputs: Inputs | None = None,
        *,
        dynamic_batch: bool = True,
        opset: int = 18,
        input_names: Sequence[str] | None = None,
        output_names: Sequence[str] | None = None,
    ) -> ExportResult:
        """Write the INT8 ONNX file that computes what the module computes in evaluation.

        Args:
            path: where the file goes; written atomically.
            example_inputs: inputs to compare file and module on; the example of the constructor by default.
            dynamic_batch: leave the first axis open of every input that has the batch size of the first one.
            opset: ONNX opset, 18 or newer.
            input_names: names of the inputs; "input", "input_1", ... by default.
            output_names: names of the outputs; "output", "output_1", ... by default.

        Raises:
            ModelError: torch can't export the module, or the file computes something else.
            ConfigError: a width of weights or activations that QDQ files don't express.
        """
        example = self.example if example_inputs is None else example_arguments(example_inputs)
        require_exportable(self.config)
        return export_int8(
            self.live,
            path,
            example,
            dynamic_batch=dynamic_batch,
            opset=opset,
            inputs=input_names,
            outputs=output_names,
        )


def require_exportable(config: QATConfig) -> None:
    """Raise ConfigError for widths that no QDQ file holds."""
    if config.activation_bits != EXPORTED_BITS:
        raise ConfigError(
            f"activation_bits is {config.activation_bits}; narrower or wider activations than "
            f"{EXPORTED_BITS} bits exist in simulation only. Train with activation_bits=8 to export.",
            field="activation_bits",
        )
    if not 1 < config.weight_bits <= EXPORTED_BITS:
        raise ConfigError(
            f"weight_bits is {config.weight_bits}; weights of one bit, or of more than {EXPORTED_BITS}, exist "
            "in simulation only. Train with 2 to 8 bits to export.",
            field="weight_bits",
        )


def inputs_of(batch: Any, example: Arguments) -> Arguments:
    """Inputs of the forward in a batch of a loader, which may hold labels, too.

    Args:
        batch: a tensor, positional arguments, a mapping, or one of these followed by labels.
        example: arguments that the forward was shown; as many are taken, and those of the same names.
    """
    args, kwargs = example
    if isinstance(batch, Mapping):
        return example_arguments({key: batch[key] for key in kwargs if key in batch} or batch)
    if isinstance(batch, tuple | list):
        first = batch[0] if batch else None
        if isinstance(first, tuple | list | Mapping) and not (args and isinstance(args[0], type(first))):
            return inputs_of(first, example)
        return example_arguments(tuple(batch[: len(args)]) if args else batch)
    return example_arguments(batch)


@contextmanager
def _batch_statistics(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[None]:
    """BatchNorms that no batch has been through yet take a batch's own statistics, and keep none.

    Their mean of 0 and variance of 1 say nothing about the data: ranges that are calibrated behind them would
    clip nearly all that training sees. A batch of one sample leaves them alone.
    """
    first = next((leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)), None)
    several = first is not None and first.dim() > 0 and first.shape[0] > 1
    fresh = [inner for inner in module.modules() if several and _never_trained(inner)]
    kept = [(inner.training, inner.momentum, inner.num_batches_tracked) for inner in fresh]
    try:
        for inner, (_, _, count) in zip(fresh, kept, strict=True):
            counted = None if count is None else count.clone()  # synchronized ones ask for it
            inner.training, inner.momentum, inner.num_batches_tracked = True, 0.0, counted
        yield
    finally:
        for inner, (training, momentum, count) in zip(fresh, kept, strict=True):
            inner.training, inner.momentum, inner.num_batches_tracked = training, momentum, count


def _never_trained(module: nn.Module) -> TypeGuard[_BatchNorm]:
    if not isinstance(module, _BatchNorm) or module.running_mean is None or module.running_var is None:
        return False
    return not bool(module.running_mean.any()) and bool((module.running_var == 1).all())


def reached(iteration: int, start: int | None) -> bool:
    """Whether a schedule's start has come; None never comes."""
    return start is not None and iteration >= start


def _traces(module: nn.Module, examples: Sequence[Arguments]) -> tuple[list[Trace], list[Trace]]:
    """Runs in evaluation and, with BatchNorms still, in training mode."""
    runs: tuple[list[Trace], list[Trace]] = ([], [])
    for training, found in zip((False, True), runs, strict=True):
        with in_mode(module, training):
            for inner in module.modules():
                if isinstance(inner, nn.modules.batchnorm._NormBase):
                    inner.training = False
            found.extend(trace(module, args, kwargs) for args, kwargs in examples)
    return runs


class _StartWeights(Visitor):
    """Visitor that shows every weight to its quantizer and preprocess module once."""

    def __init__(self, quantizers: QuantizerSet) -> None:
        self.quantizers = quantizers

    @override
    def weight(self, weight: Tensor, use: WeightUse, site: CallSite) -> Tensor:
        key = key_of(use.key)
        before = dict(self.quantizers.preprocess).get(key)
        if isinstance(before, ClippedWeight):
            before.start(weight)
        quantizer = self.quantizers.weights[key]
        if isinstance(quantizer, WeightQuantizer):
            quantizer.start(prepared_weight(self.quantizers, weight, use))
        return weight
