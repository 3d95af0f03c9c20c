"""The `export` command: a student in the form in which it is to be deployed."""

from __future__ import annotations

import argparse
import os
from typing import Any

from accel_kd.config import load_recipe
from accel_kd.errors import UserError
from accel_kd.heavy_imports import heavy_imports
from accel_kd.quietness import quieten_libraries

_FORMS = ("safetensors", "torchao-int8", "onnx", "onnx-int8")


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds `export` to the program's commands."""
    export = commands.add_parser(
        "export",
        help="a student as ONNX, int8 or safetensors",
        description=_export.__doc__,
        epilog="fp32 forms must give every label, int8 forms 98 % (torchao) or 97 % (onnx) of them. An export takes "
        "the place of an earlier one only if it is good.",
    )
    export.add_argument(
        "source", metavar="RUN_OR_MODEL", help="a run directory, RUN/control or RUN/teacher; or a model's folder or "
        "Hub id",
    )  # fmt: skip
    export.add_argument("--to", required=True, choices=_FORMS, help="the form", metavar="|".join(_FORMS))
    export.add_argument("--recipe", help="whose data to compare on; default: the run's own")
    export.add_argument("--output", metavar="FOLDER", help="default: RUN/exports/FORM")
    export.add_argument(
        "--split", default="test", choices=["train", "validation", "test"], help="to compare on; default: test"
    )
    export.add_argument(
        "--min-agreement", type=_share, metavar="SHARE", help="least share of rows with the student's label"
    )
    export.add_argument(
        "--max-difference", type=_share, metavar="SHARE",
        help="most that logits may differ on average, as a share of the student's standard deviation",
    )  # fmt: skip
    export.add_argument("--push-to-hub", metavar="REPO", help="upload it to this repository of the Hugging Face Hub")
    export.add_argument("--private", action="store_true", help="with --push-to-hub: a new repository is private")
    export.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's")
    export.set_defaults(command=_export)


def _export(parsed: argparse.Namespace) -> str:
    """Writes a student in another form, opens it again, and compares its answers with the student's own (fp32, eager)
    on a whole split. Exit code 1, with the figures, where they differ by more than they may."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("export: it runs in one process; call it without accelerate launch or torchrun")
    if parsed.private and parsed.push_to_hub is None:
        raise UserError("--private: is about --push-to-hub; add that, or leave it out")
    if parsed.overrides and parsed.recipe is None:
        raise UserError(f"{parsed.overrides[0]}: overrides a recipe; name it with --recipe")
    config = None if parsed.recipe is None else load_recipe(parsed.recipe, parsed.overrides)
    quieten_libraries()
    with heavy_imports(with_torchao=parsed.to == "torchao-int8"):
        from accel_kd.export_model import Request, export_model

    request = Request(
        parsed.source, parsed.to, parsed.output, parsed.split, parsed.min_agreement, parsed.max_difference,
        parsed.push_to_hub, parsed.private,
    )  # fmt: skip
    return export_model(request, config)


def _share(text: str) -> float:
    """A number from 0 to 1."""
    try:
        share = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from error
    if not 0.0 <= share <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not from 0 to 1")
    return share
