"""What wandb's errors mean for a run, and how they are told: in one line, without secrets."""

from __future__ import annotations

import os
import re

from accel_kd.tracking.wandb_mode import ChosenMode

_LONGEST_REASON = 400  # characters of wandb's own words that a message keeps
# wandb repeats what may pass (a refused connection, a 5xx) until its time is up, and says so in these words; a key or a
# project that the server refuses it reports at once, as `returned error 401`.
_NO_ANSWER = re.compile(
    r"deadline exceeded|timed? ?out|connection (refused|reset)|no such host|unreachable|\b(HTTP|error) 5\d\d\b", re.I
)


def is_without_answer(error: Exception) -> bool:
    """Whether the server was not reached, hung or broke down, rather than refused what it was asked."""
    import wandb

    return isinstance(error, wandb.errors.CommError | TimeoutError) and bool(_NO_ANSWER.search(str(error)))


def advice_for_online(switch: str) -> str:
    """What to do where an online run cannot start; `switch` takes another mode."""
    return f"Set {switch}=offline to keep the run on disk for `wandb sync`, or {_without(switch)}."


def _without(switch: str) -> str:
    return f"{switch}=disabled to go without W&B"


def explain(error: Exception, chosen: ChosenMode, credentials: str | None, switch: str) -> str:
    """Why W&B cannot start, and what to do; `switch` takes another mode."""
    advice = advice_for_online(switch) if chosen.mode == "online" else f"Mend that, or set {_without(switch)}."
    if isinstance(error, ImportError):
        advice = f"Install wandb, or set {_without(switch)}."
    elif isinstance(error, OSError) and error.filename is not None:  # about a file, so offline would fail as well
        advice = f"Mend that, or set {_without(switch)}."
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
