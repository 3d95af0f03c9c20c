"""What wandb's errors mean for a run, and how they are told: in one line, without secrets."""

from __future__ import annotations

import os
import re

from accel_kd.tracking.wandb_mode import ChosenMode

_LONGEST_REASON = 400  # characters of wandb's own words that a message keeps
ADVICE_FOR_ONLINE = (
    "Set tracking.mode=offline to keep the run on disk for `wandb sync`, or tracking.mode=disabled to go without W&B."
)
_ADVICE_FOR_OFFLINE = "Mend that, or set tracking.mode=disabled to go without W&B."
# wandb repeats what may pass (a refused connection, a 5xx) until its time is up, and says so in these words; a key or a
# project that the server refuses it reports at once, as `returned error 401`.
_NO_ANSWER = re.compile(
    r"deadline exceeded|timed? ?out|connection (refused|reset)|no such host|unreachable|\b(HTTP|error) 5\d\d\b", re.I
)


def is_without_answer(error: Exception) -> bool:
    """Whether the server was not reached, hung or broke down, rather than refused what it was asked."""
    import wandb

    return isinstance(error, wandb.errors.CommError | TimeoutError) and bool(_NO_ANSWER.search(str(error)))


def explain(error: Exception, chosen: ChosenMode, credentials: str | None) -> str:
    """Why W&B cannot start, and what to do."""
    advice = ADVICE_FOR_ONLINE if chosen.mode == "online" else _ADVICE_FOR_OFFLINE
    if isinstance(error, ImportError):
        advice = "Install wandb, or set tracking.mode=disabled to go without W&B."
    elif isinstance(error, OSError) and error.filename is not None:  # about a file, so offline would fail as well
        advice = _ADVICE_FOR_OFFLINE
    return f"{chosen.origin}: W&B cannot start: {reason(error, credentials)}. {advice}"


def reason(error: Exception, credentials: str | None) -> str:
    """An error as one line, without the secrets of this process, however wandb came to quote them."""
    secrets = [value for name, value in os.environ.items() if re.search(r"KEY|TOKEN|SECRET|PASSWORD", name)]
    words = " ".join(f"{type(error).__name__}: {error}".split())
    for secret in [credentials or "", *secrets]:
        if len(secret) >= 8:  # a shorter one, such as "true", is no secret and would riddle the words
            words = words.replace(secret, "***")
    words = re.sub(r"://[^/\s@]*@", "://***@", words)
    return words[:_LONGEST_REASON].rstrip(".: ")
