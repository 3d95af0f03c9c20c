"""What a settings file may not hold; that lines are read as the batch script reads them is in `test_job_script`."""

from __future__ import annotations

from pathlib import Path

import pytest

from accel_kd.errors import UserError
from accel_kd.slurm.search_settings import read_search_settings


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "--array: '{file}' holds no line with settings"),
        (b"# a\n\n", "--array: '{file}' holds no line with settings"),
        (b"a=1\nb='2\n", "--array: {file} line 2 has a quote that is not closed: b='2"),
        (b"a=1\r\n", "--array: {file} line 1 holds a carriage return"),
        (b"# a\na=x\\ y\n", "--array: {file} line 2 holds a backslash"),
        (b"a=1\0\n", "--array: {file} line 1 holds NUL"),
        (b"a=1 'run.directory=x'\n", "--array: {file} line 1 sets run.directory"),
        (b"\xff=1\n", "--array: '{file}' cannot be read as text"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "settings.txt"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_search_settings(file)
    assert str(caught.value).startswith(message.format(file=file)) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--array: '.*nowhere' cannot be read"):
        read_search_settings(tmp_path / "nowhere")
