"""Folders to and from the Hugging Face hub, by huggingface_hub, which timm brings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitgraft.errors import CheckpointError
from vitgraft.weights.official import short_reason

__all__ = ["PREFIX", "download", "upload"]

PREFIX = "hf-hub:"
"""Before the name of a repository: `hf-hub:USER/NAME`, or `hf-hub:USER/NAME@REVISION`."""


def download(repo: str, files: Sequence[str], revision: str | None = None, **options: Any) -> Path:
    """The folder in the cache that holds files of a model's repository.

    Args:
        repo: `USER/NAME`, with or without `hf-hub:` before and `@REVISION` behind it.
        files: Names of the files, or patterns; those that the repository lacks are left out.
        revision: Branch, tag or commit.
        **options: Of `huggingface_hub.snapshot_download`: `token`, `cache_dir`, `local_files_only`, `force_download`.

    Raises:
        CheckpointError: No such repository or revision, no access, or no connection.
    """
    from huggingface_hub import snapshot_download

    name, _, at = repo.removeprefix(PREFIX).partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or at or None, allow_patterns=list(files), **options))
    except Exception as error:  # of the hub, the HTTP library and the system
        raise CheckpointError(f"{repo}: can't be had from the hub: {short_reason(error)}") from error


def upload(folder: Path, repo: str, private: bool | None = None, message: str | None = None, **options: Any) -> str:
    """Puts a folder into a model's repository, which is made where it is missing; returns the address of the commit.

    Args:
        folder: What to upload.
        repo: `USER/NAME`.
        private: Of a new repository; None: as the account has it.
        message: Of the commit.
        **options: Of `huggingface_hub.HfApi.upload_folder`: `revision`, `create_pr`.

    Raises:
        CheckpointError: A name that cannot be, no right to write, or no connection.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=options.pop("token", None), library_name="vitgraft")
    try:
        name = api.create_repo(repo.removeprefix(PREFIX), private=private, exist_ok=True).repo_id
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message=message, **options))
    except Exception as error:  # of the hub, the HTTP library and the system
        raise CheckpointError(f"{repo}: can't be uploaded to the hub: {short_reason(error)}") from error
