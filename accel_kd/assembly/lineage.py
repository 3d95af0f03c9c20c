"""What a run is made from and what it makes, named alike by all runs: data set -> teacher -> its logits -> student."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from accel_kd.assembly.runs import run_record
from accel_kd.assembly.session import Session
from accel_kd.errors import UserError
from accel_kd.export.model_folder import model_artifact
from accel_kd.locations import locate
from accel_kd.logit_store.manifest import Manifest, manifest_bytes
from accel_kd.tracking import ArtifactRecord

_HUB = "https://huggingface.co"


def data_artifact(session: Session) -> ArtifactRecord:
    """The data as this run reads them: another row, or another label, is another version."""
    section, data = session.config.data, session.data
    metadata = {
        "examples": {name: len(examples) for name, examples in data.splits.items()},
        "digests": data.digests,
        "num_labels": len(data.label_names),
        **{name: value for name, value in (("name", section.name), ("revision", section.revision)) if value},
    }
    return ArtifactRecord(
        name=f"data-{_last_part(section.path)}",
        type="dataset",
        location=_address(section.path, "data.path", f"{_HUB}/datasets"),
        digest=data.digest,
        metadata=metadata,
    )


def teacher_artifact(session: Session, weights_sha256: str) -> ArtifactRecord:
    """The teacher by the digest of its weights: as the teacher's own run names it, where this run fine-tunes it."""
    section = session.config.teacher
    assert section.model is not None, "there is a teacher"
    if section.finetune is not None:
        folder = session.directory.part("teacher").model
        return model_artifact(run_record(session, "teacher").name, folder, weights_sha256, {})
    metadata = {} if section.revision is None else {"revision": section.revision}
    return ArtifactRecord(
        name=f"teacher-{_last_part(section.model)}",
        type="model",
        location=_address(section.model, "teacher.model", _HUB),
        digest=weights_sha256,
        metadata=metadata,
    )


def store_artifact(folder: Path, manifest: Manifest) -> ArtifactRecord:
    """A store of a teacher's logits, by the digest of its manifest, which has those of all its shards."""
    receipt = {name: value for name, value in manifest.receipt.items() if name != "diagnostics"}
    metadata: dict[str, Any] = {
        "fingerprint": manifest.fingerprint,
        "teacher": manifest.made_with.get("teacher"),
        "teacher_weights_sha256": manifest.identity["teacher"]["weights"],
        "encoding": manifest.identity["encoding"],
        "preprocessing": manifest.identity["preprocessing"],
        **receipt,
    }
    digest = hashlib.sha256(manifest_bytes(manifest)).hexdigest()
    name = f"teacher-logits-{manifest.fingerprint[:16]}"
    return ArtifactRecord(name, "teacher-logits", str(folder.resolve()), digest, metadata)


def _last_part(name: str) -> str:
    return Path(name.rstrip("/").removeprefix("package:")).name or "data"


def _address(name: str, setting: str, hub: str) -> str:
    try:
        location = locate(name, setting)
    except UserError:  # gone since it was read
        return name
    if location.path is None:
        return f"{hub}/{name}"
    return name if name.startswith("package:") else str(location.path.resolve())
