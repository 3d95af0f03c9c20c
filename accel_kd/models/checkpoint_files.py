"""Finds the files of a checkpoint that `from_pretrained` would read: its configuration, its weights, its own code."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from transformers.dynamic_module_utils import get_relative_imports
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
    is_peft_available,
)

from accel_kd.errors import UserError
from accel_kd.models.loading import Checkpoint, refusal, refuse_pickle

CLASSIFIER = "AutoModelForSequenceClassification"
"""What `auto_map` calls the class that is loaded here."""


def raw_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """What `config.json` says, without what the installed Transformers would add to it.

    Raises:
        UserError: there is none, or it is no JSON object.
    """
    try:
        facts = json.loads(_existing(checkpoint, "config.json").read_text(encoding="utf-8"))
        if not isinstance(facts, dict):
            raise ValueError("config.json holds no object")
    except UserError:
        raise
    except Exception as error:  # the hub client, the disk and JSON each raise their own
        raise refusal(checkpoint, "configuration", error) from error
    return facts


def weight_files(checkpoint: Checkpoint) -> list[Path]:
    """The files whose tensors are the model's weights; others beside them (an optimizer's, a variant's) do not count.

    Raises:
        UserError: there are none, only pickles where these are not allowed, or an adapter that would change them.
        OSError: an index names a file that is not there, or the Hub does not give it.
    """
    refuse_pickle(checkpoint, Path(checkpoint.resolved()))
    if is_peft_available() and _found(checkpoint, "adapter_config.json") is not None:
        # Transformers would load the adapter's weights on top, and the same files without PEFT give other logits.
        raise UserError(
            f"{checkpoint.setting}: {checkpoint.name!r} holds a PEFT adapter, whose weights are not fingerprinted; "
            "merge it into the model and save that"
        )
    names = [SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME]
    if checkpoint.allow_pickle:
        names += [WEIGHTS_NAME, WEIGHTS_INDEX_NAME]
    named = raw_config(checkpoint).get("transformers_weights")
    for name in names if named is None else [named]:
        file = _found(checkpoint, name)
        if file is not None:
            return _shards(checkpoint, file) if name.endswith(".index.json") else [file]
    raise UserError(
        f"{checkpoint.setting}: {checkpoint.name!r} has none of {', '.join(names if named is None else [named])}"
        f"{'' if checkpoint.allow_pickle else f'; {checkpoint.pickle_advice}'}"
    )


def code_files(checkpoint: Checkpoint) -> dict[str, Path]:
    """The Python files that come with the checkpoint and may be run, by name; none where its code is not trusted.

    In a folder all that lie in it; of the Hub those that `config.json` names, and what these import from beside them.

    Raises:
        UserError: one of them cannot be had.
    """
    if not checkpoint.trust_remote_code:
        return {}
    source = checkpoint.resolved()
    files = {file.name: file for file in Path(source).glob("*.py")} if Path(source).is_dir() else {}
    auto_map = raw_config(checkpoint).get("auto_map") or {}
    pending = [
        _repository_and_module(auto_map[kind], source) for kind in ("AutoConfig", CLASSIFIER) if auto_map.get(kind)
    ]
    while pending:
        repository, module = pending.pop()
        name = module if repository == source else f"{repository}/{module}"
        if name in files:
            continue
        try:
            found = cached_file(repository, module, revision=checkpoint.revision if repository == source else None)
            assert found is not None, "cached_file raises where there is no such file"
            imports = get_relative_imports(found)
        except Exception as error:  # as above
            raise refusal(checkpoint, "code", error) from error
        files[name] = Path(found)
        beside = PurePosixPath(module).parent
        pending += [(repository, str(beside / f"{imported}.py")) for imported in imports]
    return files


def code_revision(checkpoint: Checkpoint) -> str | None:
    """The revision of the classifier's own code: the checkpoint's, where the code lies beside the weights."""
    reference = (raw_config(checkpoint).get("auto_map") or {}).get(CLASSIFIER)
    if not checkpoint.trust_remote_code or reference is None:
        return None
    repository, _ = _repository_and_module(reference, checkpoint.name)
    return checkpoint.revision if repository == checkpoint.name else None


def _repository_and_module(reference: str, source: str) -> tuple[str, str]:
    """`module.Class` is code beside the configuration, `org/repository--module.Class` lies elsewhere."""
    repository, _, dotted = reference.rpartition("--")
    return repository or source, f"{dotted.rpartition('.')[0]}.py"


def _found(checkpoint: Checkpoint, name: str) -> Path | None:
    """The file of that name; None where the checkpoint has none. Downloads it from the Hub if it must."""
    found = cached_file(
        checkpoint.resolved(), name, revision=checkpoint.revision, _raise_exceptions_for_missing_entries=False
    )
    return None if found is None else Path(found)


def _existing(checkpoint: Checkpoint, name: str) -> Path:
    found = _found(checkpoint, name)
    if found is None:
        raise FileNotFoundError(f"{name} is missing")
    return found


def _shards(checkpoint: Checkpoint, index: Path) -> list[Path]:
    weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    return [_existing(checkpoint, name) for name in sorted(set(weight_map.values()))]
