"""The quantizers of a module, and the function mode that applies them while its forward runs.

They are a submodule named ``quantrim`` of the user's module, so that ``to``, ``train``, ``state_dict``,
``deepcopy``, optimizers and DistributedDataParallel treat quantizers like any other state; the user's own
keys stay as they were. Hooks on every module keep track of where the forward is and hold the function mode
active in it. They are bound methods of the quantizer set, so a deepcopy of the module has hooks of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from quantrim.errors import ModelError
from quantrim.graph.ops import PRODUCT_OPS
from quantrim.modules import in_mode, transparent_modules, uncompiled
from quantrim.qat.config import QATConfig, fresh
from quantrim.qat.plan import CallSite, QuantizationPlan, Read, WeightUse, Write
from quantrim.qat.quantizers.activations import activation_quantizer
from quantrim.qat.quantizers.bias import BiasRounding, finer_factor, replaced
from quantrim.qat.quantizers.ranks import merge_ranges
from quantrim.qat.quantizers.weights import scale_of, weight_preprocess, weight_quantizer
from quantrim.qat.tracing.attention import multi_head_attention
from quantrim.qat.tracing.functions import Function, canonical
from quantrim.qat.tracing.scope import Scope
from quantrim.targets import Target

#: Name of the quantizer set in the user's module, and prefix of its keys in the state_dict.
SET_NAME = "quantrim"
#: What nn.Module.__call__ calls; one in the instance's own dictionary stands before the class's.
_CALL = "_call_impl"
OUT_OF_PLACE: dict[Function, Function] = {Tensor.add_: torch.add, Tensor.__iadd__: torch.add}


class Visitor:
    """What happens to the tensors at a site: the set walks, the visitor acts. This one does nothing."""

    def read(self, x: Tensor, read: Read, site: CallSite) -> Tensor:
        """An activation on its way into the call."""
        return x

    def source(self, x: Tensor, site: CallSite) -> Tensor:
        """The activation that is multiplied with a quantized weight, after :meth:`read`."""
        return x

    def weight(self, weight: Tensor, use: WeightUse, site: CallSite) -> Tensor:
        """A weight on its way into the call."""
        return weight

    def bias(self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any], site: CallSite) -> Any:
        """Arguments of a call at whose bias the file stores int32; they are returned, changed or not."""
        return args, kwargs

    def write(self, x: Tensor, write: Write, site: CallSite) -> Tensor:
        """A result."""
        return x

    def replaces(self, site: CallSite) -> Callable[[Tensor], Tensor] | None:
        """Function of the first argument to be called instead of the site's own, or None."""
        return None


class Modes(threading.local):
    """Function modes that are active in this thread; a copy or a loaded one starts with none."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[Interceptor] = []

    def __reduce__(self) -> Any:
        return Modes, ()


class QuantizerSet(nn.Module):
    """Quantizers of one module.

    Args:
        module: the user's module; hooks are registered on it and on all of its submodules.
        layout: what is quantized where.
        config: which quantizers to make.
    """

    def __init__(self, module: nn.Module, layout: QuantizationPlan, config: QATConfig) -> None:
        super().__init__()
        self.layout = layout
        self.activations = nn.ModuleDict(
            {key_of(g): activation_quantizer(config, c, layout.members[g]) for g, c in layout.codes.items()}
        )
        self.weights, self.preprocess = nn.ModuleDict(), nn.ModuleDict()
        self.inputs = nn.ModuleDict()
        for key, use in layout.weights.items():
            self.weights[key_of(key)] = weight_quantizer(config, use.axis, use.shape)
            before = weight_preprocess(config)
            if before is not None:
                self.preprocess[key_of(key)] = before
        if config.activation_preprocess is not None:
            for group in layout.codes:
                self.inputs[key_of(group)] = fresh(config.activation_preprocess)
        self.quantizing, self.batch_norm_frozen = True, False
        self.rank_ranges = config.rank_ranges
        self.visitor: Visitor | None = None
        self._modes = Modes()
        self.handles: list[Any] = []
        for path, inner in transparent_modules(module):
            self.handles.extend(self._hook(path, inner))
            inner.__dict__[_CALL] = Entry(inner, path, self)

    def _hook(self, path: str, inner: nn.Module) -> list[Any]:
        return [
            inner.register_forward_pre_hook(partial(self._enter, path)),
            inner.register_forward_hook(self._leave, always_call=True),
        ]

    def detach(self, module: nn.Module) -> None:
        """Take hooks and entries away; the module runs as if it had never been quantized."""
        for handle in self.handles:
            handle.remove()
        self.handles = []
        for inner in module.modules():
            inner.__dict__.pop(_CALL, None)

    def forward(self, x: Any) -> Any:
        """Hand on what is given: an nn.Sequential calls all of its submodules in turn, this one too."""
        return x

    @property
    def running(self) -> bool:
        """Whether the function mode is active."""
        return bool(self._modes.stack)

    @contextmanager
    def active(self, path: str, module: nn.Module) -> Iterator[None]:
        """The function mode, for a call of the module at ``path`` that comes from outside of any other."""
        if self.batch_norm_frozen and self.training:
            freeze_batch_norms(module)
        mode = Interceptor(self, self.visitor or Simulate(self, observe=path == ""))
        mode.outermost = self._only_frame(path)
        self._modes.stack.append(mode)
        try:
            with mode:
                yield
            if path == "" and self.training and torch.is_grad_enabled():
                merge_ranges(
                    (q for q in self.activations.values() if getattr(q, "observing", False)), self.rank_ranges
                )
        finally:
            self._modes.stack.pop()

    def _enter(self, path: str, module: nn.Module, args: Any) -> None:
        if not self.running:
            raise ModelError(
                f"module {path!r} is quantized, but was called around nn.Module's own call, as nn.DataParallel "
                "does. Call the module itself; use DistributedDataParallel."
            )
        mode = self._modes.stack[-1]
        mode.scope.enter(path, None if mode.scope.frames else mode.outermost)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.running and self._modes.stack[-1].scope.frames:  # else another hook failed before ours had run
            self._modes.stack[-1].scope.leave()

    def _only_frame(self, path: str) -> str:
        """Name under which the module at ``path`` runs, when it is called from outside of the root.

        Gradient checkpointing does so in the backward pass.
        """
        names = self.layout.frames.get(path, frozenset({path}))
        if len(names) > 1:
            raise ModelError(
                f"module {path!r} is used {len(names)} times in a forward pass, so a call from outside of it "
                "(gradient checkpointing, or a direct call) can't tell which quantizers to use. "
                "Checkpoint the module around it."
            )
        return next(iter(names))

    def quantizer(self, group: str) -> nn.Module:
        """Activation quantizer by its key."""
        return self.activations[key_of(group)]

    def __getstate__(self) -> dict[str, Any]:
        if self.running:
            raise RuntimeError("a module can't be copied while its forward runs.")
        return dict(self.__dict__)


class Entry:
    """Stands in a module for nn.Module's own call, and holds the function mode in the outermost one.

    Forward hooks alone can't: torch runs none of them when a call ends by Ctrl-C or SystemExit.
    """

    def __init__(self, module: nn.Module, path: str, quantizers: QuantizerSet) -> None:
        self.module, self.path, self.quantizers = module, path, quantizers

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the module's class computes."""
        if self.quantizers.running:
            return _class_call(self.module, *args, **kwargs)
        return uncompiled(self._outermost)(*args, **kwargs)

    def _outermost(self, *args: Any, **kwargs: Any) -> Any:
        with self.quantizers.active(self.path, self.module):
            return _class_call(self.module, *args, **kwargs)


def _class_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return type(module)._call_impl(module, *args, **kwargs)  # type: ignore[no-untyped-call]


def key_of(name: str) -> str:
    """Name for a ModuleDict, which allows no dots."""
    return name.replace(".", "|")


def freeze_batch_norms(module: nn.Module) -> None:
    """Put BatchNorms into evaluation mode, whatever ``train()`` said."""
    for inner in module.modules():
        if isinstance(inner, _BatchNorm):
            inner.training = False


class Interceptor(TorchFunctionMode):
    """Hands every call of a torch function to the site that is laid out for it."""

    def __init__(self, quantizers: QuantizerSet, visitor: Visitor) -> None:
        super().__init__()
        self.scope, self.outermost = Scope(), ""
        self.sites, self.seen, self.visitor = quantizers.layout.sites, quantizers.layout.seen, visitor

    def __torch_function__(
        self,
        function: Function,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        op = canonical(function)
        if op is None:
            return function(*args, **kwargs)
        if function is F.multi_head_attention_forward:
            with self:
                return multi_head_attention(*args, **kwargs)
        name = self.scope.site(op)
        site = self.sites.get(name)
        if site is None:
            if op in PRODUCT_OPS and name not in self.seen:
                raise ModelError(self._unseen(name, op))
            return function(*args, **kwargs)
        return run_site(site, self.visitor, function, args, dict(kwargs))

    def _unseen(self, name: str, op: str) -> str:
        return (
            f"module {self.scope.path!r} took a branch that no example input has shown: {name!r} ({op}) has no "
            "quantizer. Pass more_examples=[...] with an input for each branch to QAT, or skip the module."
        )


def run_site(
    site: CallSite, visitor: Visitor, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """One call with its arguments and results shown to the visitor."""
    instead = visitor.replaces(site)
    if instead is not None:
        return instead(args[0] if args else kwargs["input"])
    for read in site.reads:
        args, kwargs = replaced(args, kwargs, read.slot, partial(visitor.read, read=read, site=site))
    if site.weight is not None:
        args, kwargs = replaced(args, kwargs, site.weight.source, partial(visitor.source, site=site))
    if site.weight is not None and site.weight.slot:
        change = partial(visitor.weight, use=site.weight, site=site)
        args, kwargs = replaced(args, kwargs, site.weight.slot, change)
    if site.bias is not None:
        args, kwargs = visitor.bias(function, args, kwargs, site)
    if site.out_of_place:
        function = OUT_OF_PLACE.get(function, function)
    output = function(*args, **kwargs)
    for write in site.writes:
        if isinstance(output, Tensor):
            output = visitor.write(output, write, site)
        else:
            parts = list(output)
            parts[write.index] = visitor.write(parts[write.index], write, site)
            output = type(output)(parts)
    return output


class Simulate(Visitor):
    """Fake quantization, for training and evaluation.

    Args:
        quantizers: the quantizers.
        observe: quantizers may take statistics; not when gradient checkpointing runs a block again.
    """

    def __init__(self, quantizers: QuantizerSet, observe: bool) -> None:
        self.quantizers, self.observe = quantizers, observe
        self.rounding = BiasRounding()

    @override
    def read(self, x: Tensor, read: Read, site: CallSite) -> Tensor:
        return self._activation(x, read.group, read.member, exposed=read.exposed)

    @override
    def write(self, x: Tensor, write: Write, site: CallSite) -> Tensor:
        if write.member is None:
            return x
        reuse = write.reuse and not site.is_relu and not write.consumed
        result = self._activation(x, write.group, write.member, reuse, write.exposed)
        return result.clone() if write.consumed and result.requires_grad else result

    @override
    def weight(self, weight: Tensor, use: WeightUse, site: CallSite) -> Tensor:
        if not self.quantizers.quantizing:
            return weight
        quantizer = self.quantizers.weights[key_of(use.key)]
        prepared = prepared_weight(self.quantizers, weight, use)
        if not self.quantizers.training and hasattr(quantizer, "scale"):
            finer = finer_factor(getattr(quantizer, "largest", 127))
            self.rounding.scales[site.name] = scale_of(quantizer, prepared, use.axis) / finer
        result: Tensor = quantizer(prepared)
        return result

    @override
    def bias(self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any], site: CallSite) -> Any:
        assert site.bias is not None
        source = self.quantizers.quantizer(site.bias.group)
        if self.quantizers.training or not self.quantizers.quantizing or not hasattr(source, "qparams"):
            return args, kwargs
        scale, _ = source.qparams()  # type: ignore[operator]
        return self.rounding.arguments(function, args, kwargs, site, scale)

    @override
    def replaces(self, site: CallSite) -> Callable[[Tensor], Tensor] | None:
        if (
            not site.is_relu
            or not self.quantizers.quantizing
            or key_of(site.writes[0].group) in self.quantizers.inputs
        ):
            return None
        write = site.writes[0]
        group = write.group
        if write.consumed or site.reads or not getattr(self.quantizers.quantizer(group), "takes_relu", False):
            return None
        return partial(
            self._activation, group=group, member=write.member, reuse=write.reuse, exposed=write.exposed
        )

    def _activation(
        self, x: Tensor, group: str, member: int | None, reuse: bool = False, exposed: bool = False
    ) -> Tensor:
        member = member if self.observe else None
        key = key_of(group)
        quantizer = self.quantizers.activations[key]
        x, plain = prepared_activation(self.quantizers, x, group), x
        if not self.quantizers.quantizing:
            if quantizer.training and member is not None and hasattr(quantizer, "observe"):
                with torch.no_grad():
                    quantizer.observe(x.detach(), member)  # type: ignore[operator]
            return plain
        result: Tensor = quantizer(x, member, reuse, exposed) if hasattr(quantizer, "members") else quantizer(x)
        return result


def prepared_activation(quantizers: QuantizerSet, x: Tensor, group: str) -> Tensor:
    """Activation after its preprocess module, if it has one."""
    key = key_of(group)
    prepared: Tensor = quantizers.inputs[key](x) if key in quantizers.inputs else x
    return prepared


def prepared_weight(quantizers: QuantizerSet, weight: Tensor, use: WeightUse) -> Tensor:
    """Weight after its preprocess module, if it has one."""
    before = quantizers.preprocess
    key = key_of(use.key)
    prepared: Tensor = before[key](weight) if key in before else weight
    return prepared


@dataclass(frozen=True, slots=True)
class LiveModule:
    """A module with its quantizers.

    Attributes:
        module: the user's module.
        quantizers: its quantizers, which its hooks call.
        target: rules of the engine that they were placed for.
    """

    module: nn.Module
    quantizers: QuantizerSet
    target: Target

    @contextmanager
    def evaluating(self, visitor: Visitor | None = None) -> Iterator[None]:
        """Evaluation mode without gradients, under a visitor; the modes of all modules return afterwards."""
        self.quantizers.visitor = visitor
        try:
            with in_mode(self.module, training=False), torch.no_grad():
                yield
        finally:
            self.quantizers.visitor = None
