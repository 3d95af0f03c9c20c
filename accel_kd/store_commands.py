"""The `store` commands: what stores there are, what one holds, whether it is whole, and what can go."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from accel_kd.errors import RunFailure, UserError

_ROOT_HELP = "folder of stores, or one store (default: stores)"


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds `store` and its four actions to the program's commands; each returns the text that it has to say."""
    store = commands.add_parser("store", help="look after stores of teacher logits", description=__doc__)
    actions = store.add_subparsers(required=True, metavar="ACTION")

    ls = actions.add_parser("ls", help="list stores", description="Lists the stores of a folder.")
    ls.add_argument("root", nargs="?", default="stores", help=_ROOT_HELP)
    ls.set_defaults(command=_ls)

    show = actions.add_parser("show", help="what a store holds", description=_show.__doc__)
    show.add_argument("path", help="folder of the store")
    show.add_argument("--recipe", help="whose data bring the texts of the rows that are listed")
    show.set_defaults(command=_show)

    verify = actions.add_parser("verify", help="read every byte and compare", description=_verify.__doc__)
    verify.add_argument("path", help="folder of the store")
    verify.add_argument("--repair", action="store_true", help="set damaged shards aside, to be computed again")
    verify.set_defaults(command=_verify)

    prune = actions.add_parser("prune", help="delete leftovers", description=_prune.__doc__)
    prune.add_argument("root", nargs="?", default="stores", help=_ROOT_HELP)
    prune.add_argument("--older-than", type=float, metavar="DAYS", help="whole stores, not used for so long, too")
    prune.add_argument("--dry-run", action="store_true", help="say what would be deleted, and delete nothing")
    prune.set_defaults(command=_prune)


def _ls(parsed: argparse.Namespace) -> str:
    from accel_kd.logit_store.maintenance import listing

    found = listing(_folder(parsed.root))
    if not found:
        return f"no store in {parsed.root}"
    lines = []
    for folder, manifest in found:
        if isinstance(manifest, str):
            lines.append(f"{folder}  {manifest}")
        else:
            encoding = manifest.identity["encoding"]["type"]
            teacher = manifest.made_with.get("teacher", "unknown")
            size = f"{manifest.num_rows:,} rows  {manifest.num_bytes:,} bytes"
            lines.append(f"{folder}  {size}  {encoding}  {manifest.num_classes} classes  {teacher}")
    return "\n".join(lines)


def _show(parsed: argparse.Namespace) -> str:
    """Prints what a store is, how faithful it is, and the rows that stand out: label suspects, and where the teacher
    is least certain."""
    from accel_kd.logit_store.manifest import read_manifest
    from accel_kd.store_report import report

    folder = _folder(parsed.path)
    texts = None
    if parsed.recipe is not None:
        from accel_kd.assembly.data import read_data
        from accel_kd.config import load_recipe

        texts = read_data(load_recipe(parsed.recipe, [])).texts_by_id()
    return report(folder, read_manifest(folder), texts)


def _verify(parsed: argparse.Namespace) -> str:
    """Reads every byte of a store and compares its checksums; --repair sets aside what is damaged."""
    from accel_kd.logit_store.maintenance import repair, verify

    folder = _folder(parsed.path)
    verdict = verify(folder)
    if not verdict.faults:
        assert verdict.manifest is not None
        return f"{folder} is whole: {len(verdict.whole)} shards, {verdict.manifest.num_bytes:,} bytes"
    if not parsed.repair:
        raise RunFailure("\n".join(verdict.faults))
    return "\n".join([*verdict.faults, repair(folder, verdict)])


def _prune(parsed: argparse.Namespace) -> str:
    """Deletes what no store needs: shards that were set aside, files of writers that were killed, and with
    --older-than whole stores."""
    from accel_kd.logit_store.maintenance import prune

    if parsed.older_than is not None and not parsed.older_than >= 0:
        raise UserError(f"--older-than: {parsed.older_than} is no number of days")
    found = prune(_folder(parsed.root), parsed.older_than, delete=not parsed.dry_run)
    if not found:
        return "nothing to delete"
    done = "would be deleted" if parsed.dry_run else "deleted"
    return "\n".join(f"{path}  {num_bytes:,} bytes  {done}" for path, num_bytes in found)


def _folder(name: str) -> Path:
    from accel_kd.locations import expanded

    folder = expanded(name, "store")
    if not folder.is_dir():
        raise UserError(f"store: {name!r} is no folder (looked from {Path.cwd()})")
    return folder
