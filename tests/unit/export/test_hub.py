"""What a failed upload says holds no secret; the upload itself is in `tests/end_to_end/test_export.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from accel_kd.errors import RunFailure, UserError
from accel_kd.export import hub


def test_tokens_are_blotted_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "get_token", lambda: "my-own-token")
    assert hub.without_secrets("401 for my-own-token, hf_AbC123 and Bearer xyz!") == "401 for ***, *** and ***"


def test_no_login_is_a_mistake_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="--push-to-hub: there is no token of the Hub; set HF_TOKEN"):
        hub.check_login()


def test_a_network_that_is_down_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Unreachable:
        def create_repo(self, *_: object, **__: object) -> None:
            raise hub.httpx.ConnectError("no route to host\nat some length, token hf_Secret1")

    monkeypatch.setattr(hub, "HfApi", Unreachable)
    with pytest.raises(RunFailure) as told:
        hub.push_folder(tmp_path, "somebody/tiny", is_private=False)
    assert str(told.value) == (
        "--push-to-hub: somebody/tiny could not be uploaded: ConnectError: no route to host at some length, token ***; "
        f"the export itself is in {tmp_path}"
    )
