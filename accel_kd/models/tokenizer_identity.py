"""Everything about a tokenizer that decides which ids a text becomes, in parts that can be compared."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import tempfile
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

_LONGEST_IN_FULL = 2000
"""Characters of JSON up to which a part stands as it is, to be read; a digest stands for a longer one."""

_ELSEWHERE = {"name_or_path", "tokenizer_file", "additional_special_tokens", "extra_special_tokens"}
"""Parameters of tokenizers that say where the files lie, or which tokens they add (which are a part of their own)."""


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """A JSON object that is equal for two tokenizers where they give every text the same ids, and names what differs.

    It depends neither on where the tokenizer lies nor on what it has been called with. Not in it: the length that texts
    are cut to and the side that batches are padded on, which are the caller's here, and what turns ids into text.
    """
    identity: dict[str, Any] = {
        "vocabulary": _digest(tokenizer.get_vocab()),
        "added_tokens": _readable(
            {str(number): token.__getstate__() for number, token in tokenizer.added_tokens_decoder.items()}
        ),
        # Which ids stand for padding and for the ends of a text. A mask token, too: leaving it out gains nothing.
        "special_tokens": dict(tokenizer.special_tokens_map),
        "truncation_side": tokenizer.truncation_side,
        "split_special_tokens": bool(getattr(tokenizer, "split_special_tokens", False)),
    }
    if getattr(tokenizer, "chat_template", None):
        identity["chat_template"] = _digest(tokenizer.chat_template)
    if not type(tokenizer).__module__.startswith("transformers."):
        identity["code"] = _code(type(tokenizer))
    return identity | (_compiled(tokenizer) if tokenizer.is_fast else _in_python(tokenizer))


def _compiled(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The stages of a tokenizer of the tokenizers library. A call leaves its cut and its padding beside them."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    stages = {name: _readable(state[name]) for name in ("normalizer", "pre_tokenizer", "post_processor")}
    # A mapping to ids is in the vocabulary already; a list has the scores of a unigram model as well.
    options = {
        name: _readable(value)
        for name, value in state["model"].items()
        if not (name == "vocab" and isinstance(value, dict))
    }
    return stages | {"model": options}


def _in_python(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """A tokenizer written in Python: its class, its options, and the files that it would be loaded from again."""
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.suppress(NotImplementedError):  # it has no file: its class and options say all
            tokenizer.save_vocabulary(folder)
        files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in Path(folder).iterdir()}
    parameters = {name for kind in type(tokenizer).__mro__[:-1] for name in inspect.signature(kind).parameters}
    own = parameters - _ELSEWHERE - {*tokenizer.vocab_files_names, *tokenizer.SPECIAL_TOKENS_ATTRIBUTES}
    options = {name: value for name, value in tokenizer.init_kwargs.items() if name in own and _is_json(value)}
    return {"class": type(tokenizer).__name__, "options": options, "files": files}


def _code(kind: type) -> str:
    """A digest of the file that defines a class which is not Transformers' own."""
    try:
        return hashlib.sha256(Path(inspect.getfile(kind)).read_bytes()).hexdigest()
    except (OSError, TypeError):  # typed into a session, so that there is no file
        return f"{kind.__module__}.{kind.__qualname__}"


def _readable(value: Any) -> Any:
    return value if len(_canonical(value)) <= _LONGEST_IN_FULL else {"sha256": _digest(value)}


def _digest(value: Any) -> str:
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _is_json(value: Any) -> bool:
    try:
        _canonical(value)
    except (TypeError, ValueError):
        return False
    return True
