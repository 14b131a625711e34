"""The ``quantrim`` command: one file a verb; a verb parses and prints, it decides nothing."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Annotated

import typer

from quantrim.cli import (
    analyze,
    bench,
    binarize,
    calibrate,
    compress,
    demo,
    doctor,
    evaluate,
    example,
    export,
    fleet,
    hub,
    infer,
    inspect,
    predict,
    prune,
    ptq,
    qat,
    quant,
    report,
    reproduce,
    serve,
    shipped,
    shrink,
    target,
    train,
    verify,
)
from quantrim.cli.options import Command, option_of
from quantrim.cli.supervise import SUPERVISED, leave, stopping, supervised
from quantrim.errors import QuantrimError

_INTERRUPTED = 130

#: How to get what the core does without, by module.
EXTRAS = {
    **dict.fromkeys(
        ("torch", "torchvision", "accelerate", "safetensors", "tensorboard"), "pip install 'quantrim[train]'"
    ),
    "huggingface_hub": "pip install 'quantrim[hub]'",
    **dict.fromkeys(("fastapi", "uvicorn", "prometheus_client", "multipart"), "pip install 'quantrim[serve]'"),
}

app = typer.Typer(
    name="quantrim",
    help="Quantize and trim vision models, verified on the engine that runs them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # tables of the other modes cut the names of options at 80 columns
    context_settings={
        "help_option_names": ["-h", "--help"],
        # PaddleSeg spells options with underscores, --save_dir; both spellings are the same option.
        "token_normalize_func": lambda word: word.replace("_", "-"),
    },
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"quantrim {version('quantrim')}")
        raise typer.Exit


@app.callback()
def _common(
    show: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Quantize and trim vision models, verified on the engine that runs them."""


#: Every verb; two are PaddleSeg's names for what evaluate and export do with weights of qat.
VERBS: dict[str, Callable[..., None]] = {
    "demo": demo.demo,
    "example": example.example,
    "train": train.train,
    "evaluate": evaluate.evaluate,
    "qat-val": evaluate.evaluate,
    "binarize": binarize.binarize,
    "predict": predict.predict,
    "infer": infer.infer,
    "export": export.export,
    "qat-export": export.export,
    "ptq": ptq.ptq,
    "calibrate": calibrate.calibrate,
    "shrink": shrink.shrink,
    "qat": qat.qat,
    "quant": quant.quant,
    "prune": prune.prune,
    "compress": compress.compress,
    "analyze": analyze.analyze,
    "fleet": fleet.fleet,
    "inspect": inspect.inspect,
    "bench": bench.bench,
    "verify": verify.verify,
    "report": report.report,
    "reproduce": reproduce.reproduce,
    "serve": serve.serve,
    "card": hub.card,
    "push": hub.push,
    "pull": hub.pull,
    "doctor": doctor.doctor,
}
for _name, _verb in VERBS.items():
    app.command(_name, cls=Command, hidden=_name in ("qat-val", "qat-export"))(_verb)
app.add_typer(shipped.shipped_verbs("configs", "Configurations"), name="configs")
app.add_typer(shipped.shipped_verbs("examples", "Example programs"), name="examples")
app.add_typer(target.app, name="target")


def main() -> None:
    """Entry point: exit code 0 done, 1 failed with one clear line, 2 bad usage, 128 + n ended by signal n."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")  # what it warns of becomes an error of ours
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # constants that can't be folded stay nodes
    verb = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    code = _until_stopped(partial(supervised, _run) if verb in SUPERVISED else _outcome)
    if verb == "serve":  # nothing is left to write, and a container has ten seconds after SIGTERM
        leave(code)
    sys.exit(code)


def _run() -> int:
    return _until_stopped(_outcome)


def _until_stopped(work: Callable[[], int]) -> int:
    """Exit code of some work, or of the signal that ended it."""
    with stopping() as stop:
        try:
            return work()
        except QuantrimError as error:
            return _failed(with_option(error))
        except KeyboardInterrupt:
            pass
        except SystemExit as end:
            if end.code != _INTERRUPTED:  # typer turns Ctrl-C into this code, without a word
                return end.code if isinstance(end.code, int) else int(end.code is not None)
        number = stop.number or signal.SIGINT
        print("quantrim: terminated" if number == signal.SIGTERM else "quantrim: interrupted", file=sys.stderr)
        return 128 + number


def _outcome() -> int:
    try:
        app()
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in EXTRAS:
            raise
        return _failed(f"this needs {package}, which is not installed. Install it with: {EXTRAS[package]}")
    except MemoryError as error:
        return _failed(f"not enough memory ({error or 'allocation failed'}). Use a smaller batch or input.")
    except OSError as error:  # a file that can't be read, a folder that can't be written
        if error.filename is None:
            raise
        return _failed(f"{error.filename}: {error.strerror}.")
    return 0


def with_option(error: QuantrimError) -> str:
    """The message of an error with the option of the command line in place of the argument's name."""
    text = str(error)
    if error.field is None:
        return text
    option = option_of(error.field)
    return re.sub(rf"(?<![\w-]){re.escape(error.field)}(?!\w)", option, text)


def _failed(message: str) -> int:
    if message.startswith("Caught "):  # torch wraps an error of a data loading process in its traceback
        message = message.rsplit("Error: ", 1)[-1]
    print(f"quantrim: error: {' '.join(message.split())}", file=sys.stderr)
    return 1
