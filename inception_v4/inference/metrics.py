"""Counting correct predictions."""

from __future__ import annotations

from torch import Tensor


def topk_hits(logits: Tensor, labels: Tensor, k: int = 5) -> tuple[Tensor, Tensor]:
    """Whether the label is the first, and among the first k, of the classes.

    Args:
        logits: [B, K]; labels: int64 [B].
        k: clipped to the number of classes.
    Returns:
        Two bool tensors [B].
    """
    ranked = logits.topk(min(k, logits.shape[1]), dim=1).indices
    hits = ranked == labels[:, None]
    return hits[:, 0], hits.any(dim=1)


def class_table(confused: Tensor, names: tuple[str, ...] | None) -> list[dict[str, object]]:
    """Rows of the per-class table from `confused` [K, 3]: samples, top-1 hits, top-5 hits of each class."""
    rows = []
    for index, (total, first, fifth) in enumerate(confused.tolist()):
        if total:
            name = names[index] if names and index < len(names) else str(index)
            rows.append(
                {"class": name, "samples": total, "top1": 100 * first / total, "top5": 100 * fifth / total}
            )  # fmt: skip
    return rows
