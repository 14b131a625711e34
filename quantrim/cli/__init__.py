"""The ``quantrim`` command: one file a verb; a verb parses and prints, it decides nothing."""

from __future__ import annotations

import sys

import typer

from quantrim.cli import (
    bench,
    binarize,
    demo,
    doctor,
    evaluate,
    export,
    inspect,
    predict,
    prune,
    ptq,
    qat,
    quant,
    report,
    train,
)
from quantrim.errors import QuantrimError

app = typer.Typer(
    name="quantrim",
    help="Quantize and trim vision models, verified on the engine that runs them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("demo")(demo.demo)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("binarize")(binarize.binarize)
app.command("predict")(predict.predict)
app.command("export")(export.export)
app.command("ptq")(ptq.ptq)
app.command("qat")(qat.qat)
app.command("quant")(quant.quant)
app.command("prune")(prune.prune)
app.command("inspect")(inspect.inspect)
app.command("bench")(bench.bench)
app.command("report")(report.report)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Entry point: exit code 0 done, 1 failed with one clear line, 2 bad usage, 130 interrupted."""
    try:
        app()
    except QuantrimError as error:
        print(f"quantrim: error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("quantrim: interrupted", file=sys.stderr)
        sys.exit(130)
