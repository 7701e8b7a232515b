"""Parts of a data set, stratified by class: what is held out, subsets, folds. Each is a function of labels and seed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

_SPLIT_SEED = 0x5EED  # keeps the random numbers of splits and subsets apart


def balanced(labels: Sequence[int], count: int, seed: int) -> list[int]:
    """`count` indices, from every class the same number or one more (where it has them), in rising order."""
    shuffled = shuffled_by_class(labels, seed)
    # The k-th picture of every class comes before the (k+1)-th of any.
    rounds = sorted((k, label) for label, members in shuffled.items() for k in range(len(members)))
    return sorted(shuffled[label][k] for k, label in rounds[:count])


def held_out_part(labels: Sequence[int], fraction: float, seed: int) -> set[int]:
    """About `fraction` of each class, at least one; no class loses its only picture."""
    chosen: set[int] = set()
    for indices in shuffled_by_class(labels, seed).values():
        chosen.update(indices[: min(max(1, round(fraction * len(indices))), len(indices) - 1)])
    return chosen


def fold_part(labels: Sequence[int], folds: int, fold: int, seed: int) -> set[int]:
    """What fold `fold` (from 1) of `folds` holds out: every picture is in one fold, every class spread evenly.

    The folds' sizes differ by one at most. The only picture of a class is in none.
    """
    classes = [members for members in shuffled_by_class(labels, seed).values() if len(members) > 1]
    # Dealt like cards, going on where the class before ended: remainders do not all fall to the first fold.
    dealt = [index for members in classes for index in members]
    return set(dealt[fold - 1 :: folds])


def shuffled_by_class(labels: Sequence[int], seed: int) -> dict[int, list[int]]:
    """The indices of each class in random order."""
    members: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(labels):
        members[label].append(index)
    return {
        label: np.random.default_rng([_SPLIT_SEED, seed, label]).permutation(indices).tolist()
        for label, indices in sorted(members.items())
    }


def rarest(sets: Sequence[Sequence[int]]) -> list[int]:
    """Of each picture's classes the one that the fewest pictures have: a split that spreads these loses none."""
    counts = Counter(label for several in sets for label in several)
    return [min(several, key=lambda label: (counts[label], label)) for several in sets]
