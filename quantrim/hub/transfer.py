"""Files to a model hub and back, through huggingface_hub."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from quantrim.errors import ConfigError, DataError, QuantrimError, first_line
from quantrim.hub.cards import card_of, record_beside
from quantrim.scratch import scratch_folder


class Api(Protocol):
    """What is asked of :class:`huggingface_hub.HfApi`."""

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> Any:
        """Make a repository where there is none."""
        ...

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> Any:
        """Upload a folder as one commit."""
        ...


def push(
    model: str | Path,
    repo: str,
    *,
    base_model: str | None = None,
    licence: str | None = None,
    private: bool = False,
    api: Api | None = None,
) -> str:
    """Upload a file with what belongs to it: weights beside it, ``deploy.yaml``, ranges, record, and its card.

    Args:
        model: .onnx file that a verb made.
        repo: ``owner/name``.
        base_model: the float model's name on the hub, for the card.
        licence: of the weights, for the card.
        private: where the repository is made anew.
        api: huggingface_hub's by default.

    Returns:
        Address of the commit.

    Raises:
        DataError: the file is missing, is not faithful, or has no record.
        ConfigError: the repository's name is illegal.
        QuantrimError: the hub can't be reached or refuses.
    """
    model = Path(model)
    if not model.is_file():
        raise DataError(f"{model}: no such file.")
    record = record_beside(model)
    if record.get("faithful") is False:
        raise DataError(
            f"{model}: its record says that it is not faithful; nobody should deploy it from a hub."
        )
    _require_name(repo)
    with scratch_folder() as folder, _hub_errors(repo):
        for file in belongings(model):
            shutil.copy2(file, folder / file.name)
        card = card_of(record, model, base_model=base_model, licence=licence)
        (folder / "README.md").write_text(card, encoding="utf-8")
        (folder / ".alive").unlink(missing_ok=True)
        hub = api or _api()
        hub.create_repo(repo, private=private, exist_ok=True)
        message = f"{model.name} by quantrim {record.get('command', '')}".rstrip()
        return str(hub.upload_folder(repo_id=repo, folder_path=str(folder), commit_message=message))


def pull(repo: str, folder: str | Path, *, revision: str | None = None, offline: bool = False) -> list[Path]:
    """Download a repository's files into a folder.

    Args:
        repo: ``owner/name``.
        folder: is made where it is missing; files of other names in it are left alone.
        revision: branch, tag or commit.
        offline: only from the local cache of huggingface_hub.

    Returns:
        The .onnx files.

    Raises:
        ConfigError: the repository's name is illegal.
        DataError: it holds no .onnx file.
        QuantrimError: the hub can't be reached, or has no such repository.
    """
    from huggingface_hub import snapshot_download

    _require_name(repo)
    folder = Path(folder)
    with _hub_errors(repo):
        snapshot = Path(snapshot_download(repo, revision=revision, local_files_only=offline))
    found = [file for file in sorted(snapshot.rglob("*")) if file.is_file()]
    if not any(file.suffix == ".onnx" for file in found):
        raise DataError(f"{repo}: holds no .onnx file.")
    made = []
    for file in found:
        target = folder / file.relative_to(snapshot)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
        made.append(target)
    return [file for file in made if file.suffix == ".onnx"]


def belongings(model: Path) -> list[Path]:
    """A file and the files beside it that are of no use without it, or it without them."""
    beside = [
        model.with_name(f"{model.name}.data"),
        model.with_name("deploy.yaml"),
        model.with_name("qat.json"),
    ]
    beside += sorted(model.parent.glob(f"{model.stem}.*.json"))
    return [model, *(file for file in beside if file.is_file())]


def _api() -> Api:
    from huggingface_hub import HfApi

    api: Api = HfApi()
    return api


def _require_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"repo {repo!r} is no name of a hub: owner/name.", field="repo") from error


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """What huggingface_hub raises, as one line."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled as error:
        raise QuantrimError(f"{repo}: the hub is switched off (HF_HUB_OFFLINE is set).") from error
    except LocalEntryNotFoundError as error:
        raise QuantrimError(
            f"{repo}: the hub can't be reached, and nothing of it is in the local cache."
        ) from error
    except HfHubHTTPError as error:
        raise QuantrimError(f"{repo}: the hub refused: {first_line(error)}") from error
    except (httpx.HTTPError, OSError) as error:
        raise QuantrimError(f"{repo}: the hub can't be reached: {first_line(error)}") from error
