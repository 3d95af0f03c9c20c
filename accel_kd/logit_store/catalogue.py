"""Which stores a folder has, and which of them comes nearest to the one that is wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accel_kd.errors import UserError
from accel_kd.logit_store.manifest import MANIFEST, SHARDS, differences, fingerprint_of, read_manifest

_DIGITS = 16
"""Digits of a fingerprint that name a store's folder."""


def is_store(folder: Path) -> bool:
    """Whether `folder` is a store, or the beginning of one, and not a folder of stores."""
    return (folder / MANIFEST).is_file() or (folder / SHARDS).is_dir()


def folder_of(root: Path, identity: dict[str, Any]) -> Path:
    """Where the store of `identity` lies: `root` itself where that is one store, else by its fingerprint inside."""
    return root if is_store(root) else root / fingerprint_of(identity)[:_DIGITS]


def stores_in(root: Path) -> list[Path]:
    """The stores of `root`, which may be one itself."""
    if is_store(root):
        return [root]
    return sorted(entry for entry in root.glob("*") if is_store(entry)) if root.is_dir() else []


def nearest_difference(root: Path, identity: dict[str, Any]) -> str | None:
    """What sets the store of `root` that comes nearest apart from `identity`; None where there is none to compare."""
    found = []
    for folder in stores_in(root):
        try:
            unlike = differences(read_manifest(folder).identity, identity)
        except UserError:
            continue  # a damaged store is named when it is opened
        found.append((len(unlike), folder, unlike))
    if not found:
        return None
    _, folder, unlike = min(found, key=lambda entry: (entry[0], entry[1]))
    return f"{folder} differs in {'; '.join(unlike)}"
