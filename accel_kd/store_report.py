"""What a store holds, as text and as rows of a table, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accel_kd.logit_store.manifest import Manifest


def report(folder: Path, manifest: Manifest, texts: Mapping[str, str] | None = None) -> str:
    """Path, size, identity and fidelity of a store, and the rows that stand out; `texts` by example id, if known."""
    receipt, identity = manifest.receipt, manifest.identity
    encoding = ", ".join(f"{name} {value}" for name, value in identity["encoding"].items() if name != "type")
    lines = [
        f"store        {folder}",
        f"fingerprint  {manifest.fingerprint}",
        f"teacher      {manifest.made_with.get('teacher', 'unknown')} ({identity['teacher']['dtype']}, "
        f"{identity['teacher']['attention']} attention, {manifest.num_classes} classes)",
        f"encoding     {identity['encoding']['type']} ({encoding})",
        f"rows         {manifest.num_rows:,} in {len(manifest.shards)} shards, {manifest.num_bytes:,} bytes, "
        f"{receipt.get('bytes_per_row', 0):,} a row",
    ]
    lines += _fidelity(receipt)
    lines += _diagnostics(manifest, texts)
    return "\n".join(lines)


def diagnostics_rows(manifest: Manifest, texts: Mapping[str, str] | None = None) -> tuple[list[str], list[list[Any]]]:
    """The rows that stand out as a table: columns, and one list a row; with a text where `texts` are given."""
    found = manifest.receipt.get("diagnostics") or {}
    names = manifest.identity["teacher"]["labels"]
    columns = ["why", "id", "label", "teacher", "probability", *(["text"] if texts is not None else [])]
    rows = []
    for why, title in (("suspects", "label suspect"), ("least_certain", "least certain")):
        for id, label, answer, probability in found.get(why, ()):
            row = [title, id, names[label] if label >= 0 else None, names[answer], probability]
            rows.append([*row, texts.get(id, "")] if texts is not None else row)
    return columns, rows


def _fidelity(receipt: Mapping[str, Any]) -> Sequence[str]:
    if "argmax_agreement" not in receipt:
        return []
    kl = ""
    if "kl_mean" in receipt:
        kl = f"KL(teacher || stored) mean {receipt['kl_mean']:.3g}, most {receipt['kl_max']:.3g}"
        if receipt.get("kl_full_mean", receipt["kl_mean"]) != receipt["kl_mean"]:
            kl += f" ({receipt['kl_full_mean']:.3g} over all classes)"
    else:
        kl = f"total variation {receipt['total_variation_mean']:.3g} (a sample: no KL)"
    return [
        f"fidelity     {kl}, argmax equal on {receipt['argmax_agreement']:.4%}, mass kept "
        f"{receipt['mass_kept_mean']:.6f}, over {receipt['num_sampled_positions']:,} positions at temperature "
        f"{receipt['temperature']:g}"
    ]


def _diagnostics(manifest: Manifest, texts: Mapping[str, str] | None) -> list[str]:
    found = manifest.receipt.get("diagnostics") or {}
    lines = []
    if "accuracy" in found:
        lines.append(
            f"accuracy     {found['accuracy']:.4f} of {found['num_labelled']:,} rows with a label; "
            f"{found['num_wrong']:,} wrong, of which {found['num_suspects']:,} so surely that the label may be"
        )
    if "entropy_mean" in found:
        lines.append(
            f"certainty    entropy {found['entropy_mean']:.4f} nats, margin {found['margin_mean']:.4f}, on average"
        )
    columns, rows = diagnostics_rows(manifest, texts)
    title = None
    for row in rows:
        if row[0] != title:
            title = row[0]
            lines.append(f"{title}s" if title == "label suspect" else str(title))
        text = f"  {row[5]!r}" if len(row) > len(columns) - 1 and texts is not None else ""
        lines.append(f"  {row[1]:34} {row[2] or '-':28} teacher: {row[3]:28} {row[4]:.4f}{text}")
    return lines
