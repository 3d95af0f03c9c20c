"""A folder with a model, to the Hugging Face Hub; what goes wrong there is a line without secrets."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from huggingface_hub import HfApi, constants, get_token

from accel_kd.errors import RunFailure, UserError

_OF_AN_EXPORT = ("*.safetensors", "*.safetensors.index.json", "*.onnx", "*.onnx.data", "export.json")
"""What exports have, one form or another, beside names that all of them share."""
_TOKEN = re.compile(r"hf_\w+|Bearer \S+")


def check_login() -> None:
    """Raises `UserError` where there is no token, or the Hub is switched off: before hours go into what is to be
    uploaded."""
    if constants.HF_HUB_OFFLINE:
        raise UserError("--push-to-hub: HF_HUB_OFFLINE is set; unset it, or leave --push-to-hub out")
    if get_token() is None:
        raise UserError("--push-to-hub: there is no token of the Hub; set HF_TOKEN, or call `hf auth login`")


def push_folder(folder: Path, repository: str, *, is_private: bool) -> str:
    """Makes the repository if it is not there and uploads every file of `folder` in one commit, the card among them;
    weights that an export in another form left there go with it.

    Returns:
        The address of the commit.

    Raises:
        RunFailure: the Hub refuses, or cannot be reached; `folder` stays.
    """
    api = HfApi()
    with _told_in_a_line(folder, repository):
        # `private=None` leaves the choice to the account's default where it was not asked for.
        made = api.create_repo(repository, private=True if is_private else None, exist_ok=True)
        # No patterns are given to be deleted: "*.onnx" would be those in folders of other people's making too.
        left = [
            name
            for name in api.list_repo_files(made.repo_id)
            if "/" not in name and not (folder / name).exists() and _is_of_an_export(name)
        ]
        commit = api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            commit_message=f"Upload {folder.name} with accel_kd",
            delete_patterns=left or None,
        )
    return str(commit.commit_url)


def _is_of_an_export(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _OF_AN_EXPORT)


@contextmanager
def _told_in_a_line(folder: Path, repository: str) -> Iterator[None]:
    try:
        yield
    # Its client raises subclasses of the first two; an LFS upload wraps its own in RuntimeError.
    except (httpx.HTTPError, OSError, ValueError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        said = without_secrets(" ".join(lines[:2])[:300] or "it gives no reason")
        raise RunFailure(
            f"--push-to-hub: {repository} could not be uploaded: {type(cause).__name__}: {said}; the export itself is "
            f"in {folder}"
        ) from error


def without_secrets(text: str) -> str:
    """`text` with the token of this machine's login, and whatever else looks like one, blotted out."""
    token = get_token()
    if token:
        text = text.replace(token, "***")
    return _TOKEN.sub("***", text)
