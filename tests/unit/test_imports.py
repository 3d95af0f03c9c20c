"""What a process has imported before it does anything: start-up is a cost of every run."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from accel_kd import cli
from accel_kd.errors import EXIT_USER_ERROR, UserError
from accel_kd.heavy_imports import heavy_imports, may_be_quantised_by_torchao

_NOT_BEFORE_THE_FIRST_STEP = (
    "evaluate", "sklearn", "scipy.stats", "transformers.pipelines", "transformers.trainer", "wandb", "deepspeed",
    "tensorflow", "jax", "matplotlib", "optuna", "onnxruntime", "torch.utils.tensorboard",
)  # fmt: skip
_NOT_FOR_A_COMMAND_LINE = (*_NOT_BEFORE_THE_FIRST_STEP, "torch", "transformers", "accelerate", "datasets", "numpy")


def imported(code: str) -> set[str]:
    """The modules of a new process that ran `code`."""
    code = f"import json, sys\n{code}\nprint('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_a_run_starts_without_what_only_its_later_parts_need() -> None:
    modules = imported("import accel_kd.distill, accel_kd.export.results_table")
    assert "accel_kd.evaluation" in modules and "torch" in modules
    assert sorted(modules.intersection(_NOT_BEFORE_THE_FIRST_STEP)) == []


@pytest.mark.parametrize("arguments", [["--help"], ["distill", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    modules = imported(f"from accel_kd.cli import main\ntry: main({arguments})\nexcept SystemExit: pass")
    assert "accel_kd.config.schema" in modules
    assert sorted(modules.intersection(_NOT_FOR_A_COMMAND_LINE)) == []


def test_a_run_starts_without_torchao_and_may_import_it_later() -> None:
    """Transformers would import it wherever it is installed, which takes seconds."""
    pytest.importorskip("torchao")
    run = "from accel_kd.heavy_imports import heavy_imports\nwith heavy_imports(): import accel_kd.distill"
    assert not [name for name in imported(run) if name.partition(".")[0] == "torchao"]
    assert "torchao.quantization" in imported(f"{run}\nimport torchao.quantization")


def test_commands_for_quantised_models_have_torchao() -> None:
    pytest.importorskip("torchao")
    run = (
        "from accel_kd.heavy_imports import heavy_imports\nwith heavy_imports(with_torchao=True): import transformers."
    )
    assert "torchao" in imported(f"{run}modeling_utils")


@pytest.mark.parametrize(
    ("config", "is_so"),
    [
        ({"quantization_config": {"quant_method": "torchao"}}, True),
        ({"quantization_config": {"quant_method": "gptq"}}, False),
        ({"quantization_config": None}, False),
        ({}, False),
        (None, True),
    ],
)
def test_a_model_that_may_be_quantised_is_known_before_anything_is_imported(
    tmp_path: Path, config: object, is_so: bool
) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    assert may_be_quantised_by_torchao(str(tmp_path)) == is_so


@pytest.fixture
def _collector_as_it_was() -> Iterator[None]:
    yield
    gc.enable()
    gc.unfreeze()


@pytest.mark.usefixtures("_collector_as_it_was")
def test_the_collector_rests_while_heavy_modules_are_imported_and_never_goes_over_them() -> None:
    gc.unfreeze()
    with heavy_imports():
        assert not gc.isenabled()
        kept = [[number] for number in range(100_000)]
    assert gc.isenabled() and gc.get_freeze_count() > len(kept)
    gc.disable()
    with heavy_imports():
        pass
    assert not gc.isenabled(), "whoever switched it off before wants it so"


@pytest.mark.usefixtures("_collector_as_it_was")
@pytest.mark.parametrize(
    ("command", "module", "work"),
    [
        (["distill", "demo"], "accel_kd.distill", "distill"),
        (["cache-teacher", "demo"], "accel_kd.cache_teacher", "cache_teacher"),
        (["evaluate", "here", "--recipe", "demo"], "accel_kd.evaluate_checkpoint", "evaluate_checkpoint"),
    ],
)
def test_commands_import_their_work_like_that(
    monkeypatch: pytest.MonkeyPatch, command: list[str], module: str, work: str
) -> None:
    frozen: list[int] = []

    def stand_in(*_: object) -> None:
        frozen.append(gc.get_freeze_count())
        raise UserError("far enough")

    imported = ModuleType(module)
    setattr(imported, work, stand_in)
    monkeypatch.setitem(sys.modules, module, imported)
    gc.unfreeze()
    assert cli.main(command) == EXIT_USER_ERROR
    assert len(frozen) == 1 and frozen[0] > 0
