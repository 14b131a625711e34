"""``quantrim doctor``: what this machine is, and what to expect from INT8 here."""

from __future__ import annotations

from quantrim.cli.output import JsonOption, console_for, emit_json


def doctor(json_target: JsonOption = None) -> None:
    """Show CPU features, engines and versions, and what to expect from INT8 here."""
    from quantrim.engines import ENGINES, installed_engines
    from quantrim.engines.machine import counted, describe_machine, expectations

    machine = describe_machine()
    console = console_for(json_target)
    console.print(f"[bold]{machine.processor}[/bold], {counted(machine.cores, 'core')}, {machine.memory_gb} GB")
    console.print(f"INT8 and BF16 features: {', '.join(machine.flags) or 'none known'}")
    for package, version in machine.versions.items():
        console.print(f"  {package} {version}")
    present = installed_engines()
    for engine in ENGINES:
        console.print(f"engine {engine}: {'ready' if engine in present else 'not installed'}")
    advice = expectations(machine)
    for line in advice:
        console.print(line)
    emit_json(
        machine.to_json() | {"command": "doctor", "engines": list(present), "expect": advice}, json_target
    )
