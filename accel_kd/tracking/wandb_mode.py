"""Decides whether a W&B run is sent while it runs or only written to disk, without asking the network."""

from __future__ import annotations

import netrc
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from accel_kd.errors import UserError

if TYPE_CHECKING:
    import wandb

WandbMode = Literal["auto", "online", "offline"]
"""The setting; `auto` means online where credentials are to be had, else offline."""

_MODE_OF_VARIABLE: dict[str, Literal["online", "offline", "disabled"]] = {
    "online": "online",
    "run": "online",  # the names that W&B used before
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
# The names that W&B's own cloud has had: a key saved under one of them is good for the others.
_CLOUD_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com", "forge.coreweave.com")


@dataclass(frozen=True)
class Words:
    """How messages name what asked for W&B with the mode `auto`, and what takes another mode."""

    asked: str
    switch: str


OF_RECIPES = Words("tracking.mode=auto", "tracking.mode")


@dataclass(frozen=True)
class ChosenMode:
    """What `start` will do, and the words that say why."""

    mode: Literal["online", "offline", "disabled"]
    origin: str
    may_fall_back: bool = False
    """Online only because a key was found: where no server answers, offline will do."""


def choose_mode(
    setting: WandbMode, environ: Mapping[str, str], has_credentials: Callable[[], bool], words: Words = OF_RECIPES
) -> ChosenMode:
    """A setting other than `auto` decides alone; else WANDB_MODE does where set, else whether there are credentials.

    Raises `UserError` if WANDB_MODE decides and is none of online, offline and disabled.
    """
    if setting != "auto":
        return ChosenMode(setting, f"{words.switch}={setting}")
    if variable := environ.get("WANDB_MODE"):
        if variable not in _MODE_OF_VARIABLE:
            raise UserError(
                f"{words.asked}: WANDB_MODE is {variable!r}, not online, offline or disabled. "
                f"Unset WANDB_MODE, or set {words.switch}=offline or {words.switch}=disabled."
            )
        return ChosenMode(_MODE_OF_VARIABLE[variable], f"{words.asked}, with WANDB_MODE={variable}")
    if has_credentials():
        return ChosenMode("online", f"{words.asked}, online because a W&B key was found", may_fall_back=True)
    return ChosenMode("offline", f"{words.asked}, offline because no W&B key was found")


def find_credentials(settings: wandb.Settings, environ: Mapping[str, str]) -> str | None:
    """The W&B API key (or the path of the identity token) that wandb would use, or None; never to be printed.

    `settings` are those that wandb loaded from its files and environment. Looked for here rather than left to wandb,
    which asks at the terminal where it finds none, and a batch job would wait for an answer.
    """
    if credentials := environ.get("WANDB_API_KEY") or settings.api_key or settings.identity_token_file:
        return credentials
    host = urlsplit(str(settings.base_url)).netloc
    return _key_in_netrc(_CLOUD_HOSTS if host in _CLOUD_HOSTS else (host,), environ)


def _key_in_netrc(hosts: tuple[str, ...], environ: Mapping[str, str]) -> str | None:
    candidates = [environ["NETRC"]] if environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for path in (Path(os.path.expanduser(candidate)) for candidate in candidates):
        try:
            entries = netrc.netrc(path)
        except (OSError, netrc.NetrcParseError):
            continue  # wandb takes no key from a file that it cannot read either
        for host in hosts:
            if (entry := entries.authenticators(host)) and entry[2]:
                return entry[2]
    return None
