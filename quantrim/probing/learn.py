"""Learn the rules of an engine by trying each of them on a small graph.

A rule of a :class:`~quantrim.targets.Target` is a hypothesis on where quantizers may stand. It is tried as it
will be used: :func:`quantrim.placement.place` places the quantizers of a small model by it, the engine runs the
file and says what it did. Each question is asked twice, of values that are nowhere negative and of values of
both signs: their zero points differ, and engines run some ops on codes of zero point 0 alone.

A rule holds when every layer that it is about ran in INT8, or vanished in one that did, and no file is clearly
slower than the one without the rule. Layers that multiply are worth a quantizer where one of the two kinds of
values gets them into INT8 and is faster for it, anything else where both stay in INT8. With several engines a
rule must hold on each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

from quantrim.engines import EngineName, Session, open_session, require_engine
from quantrim.engines.machine import describe_machine
from quantrim.engines.verdict import NAMES, run_of
from quantrim.errors import EngineError
from quantrim.graph import Graph, graph_from_onnx
from quantrim.graph.ops import EXACT_OPS, PRODUCT_OPS
from quantrim.graph.session import save_model
from quantrim.placement import Plan, place
from quantrim.post_training.calibrate import collect
from quantrim.post_training.config import PtqConfig
from quantrim.post_training.quantize import decide, save_quantized
from quantrim.probing import probes
from quantrim.probing.probes import Case, Probe, Question, question
from quantrim.rewrites.duel import Duel, duel
from quantrim.scratch import scratch_folder
from quantrim.targets import PORTABLE, Target

#: Ratio of times beyond which a rule is refused though the layers run in INT8. Small graphs are timed less
#: sharply than models, and what stays in INT8 saves its neighbours a conversion.
_SLOWER = 1.1
_FORMS: tuple[Literal["u8", "s8"], ...] = ("u8", "s8")
_BIASES: tuple[Literal["int32", "float"], ...] = ("int32", "float")
_JOINS = ("add", "concat", "mul", "sub", "div")


@dataclass(frozen=True, slots=True)
class Answer:
    """What an engine said to one question.

    Attributes:
        rule: field of the target.
        op: canonical op.
        holds: whether the rule holds for it.
        why: what was seen.
    """

    rule: str
    op: str
    holds: bool
    why: str


def learn_target(
    name: str,
    engines: Sequence[EngineName],
    *,
    threads: int = 1,
    race_seconds: float = 1.0,
    on_answer: Callable[[Answer], None] = lambda answer: None,
) -> tuple[Target, tuple[Answer, ...]]:
    """The rules by which engines run INT8, found by asking them.

    Args:
        name: what the target will be called.
        engines: engines that one file shall be fast on.
        threads: CPU threads of the races.
        race_seconds: time for one race at most; 0 races nothing: what the engines say of themselves decides.
        on_answer: progress callback.

    Returns:
        The target, and every answer.

    Raises:
        EngineError: an engine is not installed, or runs not even two convolutions in INT8.
    """
    for engine in engines:
        require_engine(engine)
    with scratch_folder() as folder:
        lab = _Lab(tuple(engines), folder, threads, race_seconds, on_answer)
        target = _start(lab, name)
        for step in (_computes, _matmul, _fuses, _follows, _carries, _joins, _codes, _residual):
            target = step(lab, target)
        # small graphs are read right; what is known of large ones is kept where it may matter
        misread = PORTABLE.misread if target.needs_output else frozenset[str]()
        return replace(target, misread=misread, notes=_notes(lab)), tuple(lab.answers)


@dataclass(frozen=True, slots=True)
class _File:
    """A probe as a file.

    Attributes:
        probe: the question.
        path: where the file lies.
        graph: view of the float model.
        plan: where its quantizers stand; None where it is the float model.
    """

    probe: Probe
    path: Path
    graph: Graph
    plan: Plan | None


class _Lab:
    """Places, writes, runs and races probes."""

    def __init__(
        self,
        engines: tuple[EngineName, ...],
        folder: Path,
        threads: int,
        race_seconds: float,
        on_answer: Callable[[Answer], None],
    ) -> None:
        self.engines, self.folder, self.threads = engines, folder, threads
        self.race_seconds, self.on_answer = race_seconds, on_answer
        self.answers: list[Answer] = []
        self._files = 0

    def tell(self, rule: str, op: str, why: str = "") -> bool:
        """Keep an answer; a rule holds where nothing speaks against it."""
        answer = Answer(rule, op, not why, why or "ran in INT8")
        self.answers.append(answer)
        self.on_answer(answer)
        return answer.holds

    def try_rule(self, rule: str, asked: Question, target: Target, without: Target | None = None) -> bool:
        """Whether a target's newest rule holds; ``without`` is the target that lacks it, None the float one."""
        return self.tell(rule, asked[0].op, self.objection(asked, target, without))

    def objection(self, asked: Question, target: Target, without: Target | None = None) -> str:
        """What speaks against a target; empty for nothing."""
        files = [self._write(probe, target) for probe in asked]
        said = self._in_float(files)
        return said or self._slower(files, without)

    def runs(self, asked: Question, target: Target) -> bool:
        """Whether the layers of a question run in INT8, however fast."""
        return not self._in_float([self._write(probe, target) for probe in asked])

    def _write(self, probe: Probe, target: Target | None) -> _File:
        """The INT8 file of a probe; that of the float model for no target."""
        model = ir.serde.deserialize_model(probe.model)
        graph = graph_from_onnx(model, probe.feed)
        self._files += 1
        path = self.folder / f"{probe.op}_{self._files}.onnx"
        if target is None:
            save_model(model, path)
            return _File(probe, path, graph, None)
        plan = place(graph, target)
        sketches = collect(model, plan.groups, [probe.feed], shapes=graph.shapes, threads=self.threads)
        quantized = decide(model, sketches, graph=graph, plan=plan, config=PtqConfig())
        save_quantized(quantized, target, path)
        return _File(probe, path, graph, plan)

    def _float_layers(self, file: _File, engine: EngineName) -> str:
        """Which layers of a file ran in float, in words; empty for none."""
        runs = self._open(file, engine).layers(file.probe.feed)
        by_name = {name: run for run in runs for name in run.nodes}
        found = []
        for name in (*file.probe.layers, *file.probe.asked):
            node = file.graph.by_name[name]
            run = run_of(file.graph, node, by_name)
            if run is None and name in file.probe.layers:
                found.append(f"{node.kind} is in no layer that it names")
            elif run is not None and run.precision != "int8":
                found.append(f"{node.kind} ran in {run.precision}")
        return ", ".join(found)

    def _in_float(self, files: Sequence[_File]) -> str:
        """Which layers of a question ran in float on which engine, in words; empty for none that count."""
        enough = all if files[0].probe.op in PRODUCT_OPS else any
        for engine in self.engines:
            try:
                said = [self._float_layers(file, engine) for file in files]
            except EngineError as error:
                return f"{NAMES[engine]}: {error}"
            if enough(said):
                return f"{NAMES[engine]}: {next(filter(None, said))}"
        return ""

    def _slower(self, files: Sequence[_File], without: Target | None) -> str:
        """Why files with a rule are not worth it beside those without, by time; empty for nothing."""
        if not self.race_seconds:
            return ""
        pairs = [(self._write(file.probe, without), file) for file in files]
        if all(other.plan == file.plan for other, file in pairs):
            return ""
        gains = False
        for engine in self.engines:
            raced = [self._race(*pair, engine) for pair in pairs]
            worst = max(raced, key=lambda one: one.low)
            if worst.low > _SLOWER:
                return f"{NAMES[engine]}: {worst.ratio:.2f}x the time of the file without it"
            gains |= any(one.wins for one in raced)
        product = pairs[0][0].probe.op in PRODUCT_OPS
        return "no faster than in float" if product and not gains else ""

    def faster(self, asked: Question, target: Target, than: Target) -> bool:
        """Whether a file of a target is faster beyond noise than another's, and none is slower."""
        if not self.race_seconds:
            return False
        pairs = [(self._write(probe, than), self._write(probe, target)) for probe in asked]
        raced = [self._race(*pair, engine) for pair in pairs for engine in self.engines]
        return any(one.wins for one in raced) and not any(one.loses for one in raced)

    def _race(self, one: _File, other: _File, engine: EngineName) -> Duel:
        sessions = (self._open(one, engine), self._open(other, engine))
        return duel(*sessions, one.probe.feed, seconds=self.race_seconds)

    def _open(self, file: _File, engine: EngineName) -> Session:
        return open_session(file.path, engine, threads=self.threads)


def _start(lab: _Lab, name: str) -> Target:
    """The form of activations and biases in which two convolutions run in INT8 and no other form is faster."""
    none: frozenset[str] = frozenset()
    conv = frozenset({"conv"})
    u8 = Target(
        name, lab.engines, "u8", conv, none, none, none, none, none, conv, False, "both", "int32", False, {}
    )
    asked = question(probes.plain)
    objections = []
    for bias in _BIASES:
        forms = [replace(u8, activation=form, bias=bias) for form in _FORMS]
        told = [lab.objection(asked, form) for form in forms]
        objections += told
        if not any(told):  # codes of 0..255 are twice as fine where nothing is negative
            forms = forms[::-1] if lab.faster(asked, forms[1], forms[0]) else forms
        if all(told):
            continue
        chosen = forms[0] if not told[0] or not any(told) else forms[1]
        lab.tell("activation", chosen.activation)
        lab.tell("bias", chosen.bias)
        return chosen
    raise EngineError(f"{' and '.join(lab.engines)}: no form of INT8 convolution runs: {'; '.join(objections)}")


def _computes(lab: _Lab, target: Target) -> Target:
    """Linear layers that run in INT8, and whether they need a quantizer behind."""
    compute, needing = set[str](), set[str]()
    for op in ("conv", "conv_transpose", "linear"):
        asked = question(probes.linear, op)
        alone = replace(target, compute=frozenset({op}), needs_output=frozenset())
        needs = not lab.runs(asked, alone)
        tried = replace(alone, needs_output=alone.compute) if needs else alone
        if lab.try_rule("needs_output" if needs else "compute", asked, tried):
            compute.add(op)
            needing |= tried.needs_output
    return replace(target, compute=frozenset(compute), needs_output=frozenset(needing))


def _matmul(lab: _Lab, target: Target) -> Target:
    tried = replace(target, int8_matmul=True)
    return tried if lab.try_rule("int8_matmul", question(probes.matmul), tried, target) else target


def _fuses(lab: _Lab, target: Target) -> Target:
    asked = _of_one(probes.FUNCTIONS)
    return _gathered(lab, target, "fuse", [*asked, question(probes.swish)])


def _follows(lab: _Lab, target: Target) -> Target:
    asked = {op: case for op, case in (probes.FUNCTIONS | probes.AVERAGES).items() if op not in target.fuse}
    return _gathered(lab, target, "follow", _of_one(asked))


def _carries(lab: _Lab, target: Target) -> Target:
    return _gathered(lab, target, "carry", _of_one(probes.MOVERS))


def _of_one(cases: Mapping[str, Case]) -> list[Question]:
    return [question(probes.of_one, op, case) for op, case in cases.items()]


def _gathered(lab: _Lab, target: Target, rule: str, asked: Iterable[Question]) -> Target:
    """The target with those ops in a field that hold there, each tried alone."""
    found = set[str]()
    for one in asked:
        change: dict[str, Any] = {rule: frozenset({one[0].op})}
        if lab.try_rule(rule, one, replace(target, **change), target):
            found.add(one[0].op)
    gathered: dict[str, Any] = {rule: frozenset(found)}
    return replace(target, **gathered)


def _joins(lab: _Lab, target: Target) -> Target:
    """Joins, and which of them need one scale around them."""
    join, shared = set[str](), set[str]()
    for op in _JOINS:
        asked, tried = question(probes.of_two, op), replace(target, join=frozenset({op}))
        objection = lab.objection(asked, tried, target)
        tied = replace(tried, shared_scale=tried.join)
        if op == "concat" and not lab.objection(asked, tied, target):  # arithmetic needs no common scale
            if objection or lab.faster(asked, tied, tried):
                lab.tell("shared_scale", op)
                shared.add(op)
            objection = ""
        if lab.tell("join", op, objection):
            join.add(op)
    return replace(target, join=frozenset(join), shared_scale=frozenset(shared))


def _codes(lab: _Lab, target: Target) -> Target:
    """Whether the engine sees by itself that what was only moved has the codes of before."""
    tried = replace(target, carries_codes=True)
    asked = [question(probes.of_one, op, probes.MOVERS[op]) for op in sorted(target.carry & EXACT_OPS)]
    asked += [question(probes.of_two, op) for op in sorted(target.shared_scale)]
    holds = [lab.try_rule("carries_codes", one, tried, target) for one in asked]
    return tried if holds and all(holds) else target


def _residual(lab: _Lab, target: Target) -> Target:
    """Whether a residual add is faster when the branch that a convolution makes stays as it is."""
    if "add" not in target.join:
        return target
    asked, tried = question(probes.residual), replace(target, residual="identity")
    objection = lab.objection(asked, tried, target)
    if not objection and not lab.faster(asked, tried, target):
        objection = "no faster than quantizers on both branches"
    return tried if lab.tell("residual identity", "add", objection) else target


def _notes(lab: _Lab) -> dict[str, str]:
    machine = describe_machine()
    versions = ", ".join(f"{NAMES[engine]} {machine.versions.get(engine, '?')}" for engine in lab.engines)
    told = {"learned": f"{versions}; {machine.line()}"}
    for rule in dict.fromkeys(answer.rule for answer in lab.answers):
        against = [f"{a.op}: {a.why}" for a in lab.answers if a.rule == rule and not a.holds]
        told[rule] = "; ".join(against) or "every op that was asked"
    return told
