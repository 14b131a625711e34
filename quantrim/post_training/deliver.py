"""The file appears under its name when the engines have spoken; under another one if they spoke against it."""

from __future__ import annotations

import shutil
from pathlib import Path

from quantrim.files import atomic_path
from quantrim.graph import read_onnx
from quantrim.graph.session import save_model
from quantrim.post_training.quantize import ranges_path


def unfaithful_path(output: Path) -> Path:
    """Name of a file that must not be deployed by accident: NAME.unfaithful.onnx."""
    return output.with_name(f"{output.stem}.unfaithful{output.suffix}")


def deliver(staged: Path, output: Path, *, faithful: bool) -> Path:
    """Put a judged file and its ranges in place.

    Args:
        staged: the file that was judged, elsewhere; its ranges beside it.
        output: the name that was asked for. An unfaithful file leaves what stands there as it is; a faithful
            one takes away the unfaithful one of an earlier run.
        faithful: the judgement.

    Returns:
        Where the file stands.
    """
    place = output if faithful else unfaithful_path(output)
    copy_model(staged, place)
    if ranges_path(staged).is_file():
        with atomic_path(ranges_path(place)) as temporary:
            shutil.copyfile(ranges_path(staged), temporary)
    else:  # a float file, which tuning found faster
        ranges_path(place).unlink(missing_ok=True)
    if faithful:
        for old in (unfaithful_path(output), ranges_path(unfaithful_path(output))):
            old.unlink(missing_ok=True)
    return place


def copy_model(source: Path, place: Path) -> None:
    """Copy an .onnx file atomically; one with external data is written anew, since it names them."""
    if source.with_name(source.name + ".data").exists():
        save_model(read_onnx(source), place)
        return
    with atomic_path(place) as temporary:
        shutil.copyfile(source, temporary)
