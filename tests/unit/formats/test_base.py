"""What all forms share: the packages that they ask for, and how exporters are kept quiet."""

from __future__ import annotations

import logging
import warnings

import pytest

from accel_kd.errors import UserError
from accel_kd.formats import base
from accel_kd.formats.base import quiet, reason
from accel_kd.formats.forms import FORMS


def test_a_missing_package_is_one_line_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    FORMS["onnx"].check_packages("--to")
    monkeypatch.setattr(base.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(UserError) as refused:
        FORMS["onnx"].check_packages("--to")
    assert str(refused.value) == ("--to: onnx needs onnxscript, not installed here; pip install 'accel_kd[formats]'")
    FORMS["torchao-int8"].check_packages("--to")


def test_nothing_is_printed_meanwhile_and_all_is_as_before_afterwards(capsys: pytest.CaptureFixture[str]) -> None:
    before = logging.root.manager.disable
    with quiet():
        logging.getLogger("torch.onnx").error("no torchvision")
        warnings.warn("axis", UserWarning, stacklevel=1)
        print("the graph")
    assert logging.root.manager.disable == before
    print("after")
    said = capsys.readouterr()
    assert said.out == "after\n" and said.err == ""
    with pytest.raises(KeyError), quiet():
        raise KeyError
    assert logging.root.manager.disable == before


def test_the_reason_is_the_deepest_causes_first_line() -> None:
    error = RuntimeError("step 1 of 3")
    error.__cause__ = TypeError("cannot guard on u0\nmore\nand more")
    assert reason(error) == "TypeError: cannot guard on u0"
    assert reason(AssertionError()) == "AssertionError: it gives no reason"
