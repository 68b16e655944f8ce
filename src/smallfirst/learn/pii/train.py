"""Trains the tagger on generated text and writes its artifact: python -m smallfirst.learn.pii.train

The same seed and versions of Python, numpy and Faker give the same artifact. Log-likelihood of a linear-chain CRF
(Lafferty, McCallum and Pereira 2001), gradients by forward-backward, AdaGrad steps.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from smallfirst.learn.pii.corpus import Corpus, Example
from smallfirst.learn.pii.tagger import ARTIFACT, BITS, LABELS, Tagger, features, tokenise

CHAIN = 128
"""Tokens of one training sequence: the examples' tokens are laid end to end and cut."""
BATCH = 48
RATE = 0.15
DROPPED = 0.4
"""Share of a token's features left out in a step, so that several must agree."""
_LEVELS = 127

Doubles = NDArray[np.float64]


def train(examples: Iterable[Example], epochs: int, seed: int = 0) -> Tagger:
    """A tagger fitted to the examples."""
    ids, gold = encoded(examples)
    rng = np.random.default_rng(seed)
    labels = len(LABELS)
    weights = np.zeros(((1 << BITS) + 1) * labels, dtype=np.float32)
    squares = np.full_like(weights, 1e-8)
    transitions = np.zeros((labels, labels))
    transition_squares = np.full_like(transitions, 1e-8)
    for epoch in range(epochs):
        rate, loss = RATE * (1 - epoch / epochs), 0.0
        order = rng.permutation(len(ids))
        for at in range(0, len(order), BATCH):
            chosen = np.sort(order[at : at + BATCH])
            kept = rng.random(ids[chosen].shape, dtype=np.float32) >= DROPPED
            slots = np.where(kept, ids[chosen], 1 << BITS)
            scores = weights.reshape(-1, labels)[slots].sum(2, dtype=np.float64) / (1 - DROPPED)
            nll, by_score, by_transition = gradients(scores, transitions, gold[chosen])
            loss += nll
            step = np.zeros_like(weights, dtype=np.float64)
            for label in range(labels):
                pull = np.repeat(by_score[..., label].reshape(-1), ids.shape[2])
                step[label::labels] = np.bincount(slots.reshape(-1), pull, (1 << BITS) + 1)
            step[-labels:] = 0
            touched = np.flatnonzero(step)
            squares[touched] += step[touched] ** 2
            weights[touched] -= rate * step[touched] / np.sqrt(squares[touched])
            transition_squares += by_transition**2
            transitions -= rate * by_transition / np.sqrt(transition_squares)
        print(f"epoch {epoch + 1} of {epochs}: loss a token {loss / gold.size:.4f}", file=sys.stderr, flush=True)
    return Tagger(weights.reshape(-1, labels)[:-1], transitions.astype(np.float32))


def encoded(examples: Iterable[Example]) -> tuple[NDArray[np.int32], NDArray[np.int8]]:
    """Features (chains, CHAIN, features) and labels (chains, CHAIN) of the examples laid end to end."""
    rows, gold = [], []
    for example in examples:
        tokens = tokenise(example.text)
        rows.append(features(tokens).astype(np.int32))
        gold.append(np.array(labelled(tokens.starts, example), dtype=np.int8))
    chains = sum(map(len, gold)) // CHAIN
    ids = np.concatenate(rows)[: chains * CHAIN].reshape(chains, CHAIN, -1)
    return ids, np.concatenate(gold)[: chains * CHAIN].reshape(chains, CHAIN)


def labelled(starts: list[int], example: Example) -> list[int]:
    """The gold label of each token."""
    labels = [0] * len(starts)
    for start, end, kind in example.spans:
        inside = [at for at, place in enumerate(starts) if start <= place < end]
        for number, at in enumerate(inside):
            labels[at] = LABELS.index(f"{'I' if number else 'B'}-{kind}")
    return labels


def gradients(scores: Doubles, transitions: Doubles, gold: NDArray[np.int8]) -> tuple[float, Doubles, Doubles]:
    """Negative log-likelihood of the chains and its gradients by scores (mean over tokens) and by transitions.

    `scores` (chains, tokens, labels), `gold` (chains, tokens).
    """
    chains, length, _ = scores.shape
    tops = scores.max(2, keepdims=True)
    emission = np.exp(scores - tops)
    matrix = np.exp(transitions)
    forward, backward = np.empty_like(scores), np.ones_like(scores)
    norms = np.empty((chains, length))
    state = emission[:, 0]
    for at in range(length):
        state = state if at == 0 else (forward[:, at - 1] @ matrix) * emission[:, at]
        norms[:, at] = state.sum(1)
        forward[:, at] = state / norms[:, at, None]
    for at in range(length - 2, -1, -1):
        backward[:, at] = ((emission[:, at + 1] * backward[:, at + 1]) @ matrix.T) / norms[:, at + 1, None]
    expected = forward * backward
    ahead = emission[:, 1:] * backward[:, 1:] / norms[:, 1:, None]
    pairs = np.einsum("cti,ctj->ij", forward[:, :-1], ahead, optimize=True) * matrix
    rows, columns = np.indices(gold.shape)
    path = scores[rows, columns, gold].sum() + transitions[gold[:, :-1], gold[:, 1:]].sum()
    expected[rows, columns, gold] -= 1
    np.subtract.at(pairs, (gold[:, :-1], gold[:, 1:]), 1)
    return float(np.log(norms).sum() + tops.sum() - path), expected / gold.size, pairs / gold.size


def save(tagger: Tagger, path: Path) -> None:
    """Writes the weights in 8 bits, one scale for all; weights that round to nothing compress away."""
    scale = np.float32(np.quantile(np.abs(tagger.weights[tagger.weights != 0]), 0.9999) / _LEVELS)
    rounded = np.clip(np.rint(tagger.weights / scale), -_LEVELS, _LEVELS).astype(np.int8)
    np.savez_compressed(path, weights=rounded, scale=scale, transitions=tagger.transitions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=36_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ARTIFACT)
    given = parser.parse_args()
    save(train(Corpus(given.seed, held_out=False).examples(given.examples), given.epochs, given.seed), given.out)


if __name__ == "__main__":
    main()
