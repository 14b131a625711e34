"""The ``quantrim`` command: one file a verb; a verb parses and prints, it decides nothing."""

from __future__ import annotations

import os
import re
import sys
from typing import NoReturn

import typer

from quantrim.cli import (
    bench,
    binarize,
    compress,
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
    serve,
    train,
)
from quantrim.errors import QuantrimError

_INTERRUPTED = 130
#: Options whose name is not that of the library's argument.
OPTIONS = {"overrides": "--override", "refinements": "--refine", "skip_tensors": "--skip-tensor"}

app = typer.Typer(
    name="quantrim",
    help="Quantize and trim vision models, verified on the engine that runs them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        # PaddleSeg spells options with underscores, --save_dir; both spellings are the same option.
        "token_normalize_func": lambda word: word.replace("_", "-"),
    },
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
app.command("compress")(compress.compress)
app.command("inspect")(inspect.inspect)
app.command("bench")(bench.bench)
app.command("report")(report.report)
app.command("serve")(serve.serve)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Entry point: exit code 0 done, 1 failed with one clear line, 2 bad usage, 130 interrupted."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")  # what it warns of becomes an error of ours
    try:
        app()
    except QuantrimError as error:
        _fail(with_option(error))
    except MemoryError as error:
        _fail(f"not enough memory ({error or 'allocation failed'}). Use a smaller batch or input.")
    except OSError as error:  # a file that can't be read, a folder that can't be written
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}.")
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:  # typer turns Ctrl-C into this code, without a word
            print("quantrim: interrupted", file=sys.stderr)
        raise


def with_option(error: QuantrimError) -> str:
    """The message of an error with the option of the command line in place of the argument's name."""
    text = str(error)
    if error.field is None:
        return text
    option = OPTIONS.get(error.field, "--" + error.field.replace("_", "-"))
    return re.sub(rf"(?<![\w-]){re.escape(error.field)}(?!\w)", option, text)


def _fail(message: str) -> NoReturn:
    if message.startswith("Caught "):  # torch wraps an error of a data loading process in its traceback
        message = message.rsplit("Error: ", 1)[-1]
    print(f"quantrim: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(1)
