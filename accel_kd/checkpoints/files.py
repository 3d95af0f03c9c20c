"""The files of checkpoints: what there is to write, find, read and remove them. Below it, they lie like this:

    <root>/step-00000120/        manifest.json  student.safetensors  optimizer.safetensors  rank-00000.json …
    <root>/best-00000100/        manifest.json  student.safetensors
    <root>/.draft-<name>/        while it is being written: its files, and part-<part>.json for each part that is done
    <root>/.replaced-<name>/     the older one of that name, while a new one takes its place
    <root>/.removed-<name>-<id>/ while it is being deleted

A folder `<prefix><number>` is a checkpoint if it holds `manifest.json` and the files that this names, of those sizes
and checksums, and nothing else that is not hidden. The manifest (see `manifest`) is one line of JSON:

    format, version   "accel_kd checkpoint", 1; a reader refuses a version above its own
    name              that of the folder
    state             what `publish` was given
    files             {name: {bytes, xxh3_128}}
    checksum          xxh3-128 of the rest

Tensors are safetensors, all else is JSON; there is no pickle, and no link is followed below the root. A process that is
killed, or a machine that loses its power, leaves the older checkpoints, the new one or both, each whole, and at most
hidden litter for `clean_up`.
"""

from __future__ import annotations

from accel_kd.checkpoints.manifest import InvalidCheckpoint
from accel_kd.checkpoints.reader import Checkpoint, names, newest_valid, read_checkpoint
from accel_kd.checkpoints.writer import (
    Content,
    clean_up,
    missing_parts,
    publish,
    remove_all_but,
    start_draft,
    write_part,
)

__all__ = [
    "Checkpoint",
    "Content",
    "InvalidCheckpoint",
    "clean_up",
    "missing_parts",
    "names",
    "newest_valid",
    "publish",
    "read_checkpoint",
    "remove_all_but",
    "start_draft",
    "write_part",
]
