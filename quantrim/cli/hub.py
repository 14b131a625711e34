"""``quantrim card``, ``push`` and ``pull``: a file's model card, and its way to a hub and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantrim.cli.output import JsonOption, console_for, emit_json

_Model = Annotated[Path, typer.Argument(help=".onnx file that ptq, qat, compress or export made.")]
_Repo = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository of the hub.")]
_BaseOption = Annotated[
    str | None, typer.Option(metavar="OWNER/NAME", help="The float model's name on the hub.")
]
_LicenceOption = Annotated[
    str | None, typer.Option("--licence", "--license", help="Of the weights, e.g. apache-2.0.")
]


def card(
    model: _Model,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="NAME.md beside MODEL by default.")
    ] = None,
    base_model: _BaseOption = None,
    licence: _LicenceOption = None,
    json_target: JsonOption = None,
) -> None:
    """Write a model card from the record beside MODEL: verdict, speed and accuracy, with the hub's metadata."""
    from quantrim.hub import write_card

    path = write_card(model, base_model=base_model, licence=licence, output=output)
    console_for(json_target).print(f"{path}: the card of {model}", markup=False)
    emit_json({"command": "card", "output": str(path)}, json_target)


def push(
    model: _Model,
    repo: _Repo,
    base_model: _BaseOption = None,
    licence: _LicenceOption = None,
    private: Annotated[bool, typer.Option("--private", help="Where the repository is new.")] = False,
    json_target: JsonOption = None,
) -> None:
    """Upload MODEL with its deploy.yaml, record and card to the Hugging Face hub; needs `hf auth login`."""
    from quantrim.hub import push as run

    address = run(model, repo, base_model=base_model, licence=licence, private=private)
    console_for(json_target).print(f"{model} -> {address}", markup=False)
    emit_json({"command": "push", "repo": repo, "commit": address}, json_target)


def pull(
    repo: _Repo,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for its files.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Only from the local cache.")] = False,
    json_target: JsonOption = None,
) -> None:
    """Download a repository of the Hugging Face hub that holds an ONNX file."""
    from quantrim.hub import pull as run

    files = run(repo, output, revision=revision, offline=offline)
    for file in files:
        console_for(json_target).print(f"{file}: quantrim inspect {file}", markup=False)
    emit_json({"command": "pull", "repo": repo, "files": [str(file) for file in files]}, json_target)
