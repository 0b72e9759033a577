"""GPTQ (Frantar et al., 2023): weights are rounded one input channel after the other, and what each rounding does to
the output is made up for by the channels that are still to come.

Dimensions: K channels that enter the matrix, N that leave it.
"""

import numpy as np

BLOCK = 128  # channels whose corrections are made at once
DAMPING = 0.01  # of the mean of the diagonal, added to it


def rounded(w_KN: np.ndarray, scale_KN: np.ndarray, largest: int, square_KK: np.ndarray) -> np.ndarray:
    """int8 [K, N] from -`largest` to `largest`, so that with `scale` (positive, broadcastable to w) it stands for a
    matrix whose products are near those of w, by `square`, XᵀX of what enters it.

    The channels with the most energy go first. Weights that are zero stay zero, so that pruning holds. A column for
    which rounding to nearest is better is rounded to nearest, so that no column is worse. Channels that are never there
    are rounded to nearest too.
    """
    w = w_KN.astype(np.float64)
    scale = np.broadcast_to(scale_KN.astype(np.float64), w.shape)
    order = np.argsort(-np.diag(square_KK), kind="stable")
    found = np.empty_like(w)
    found[order] = _in_turn(w[order], scale[order], largest, square_KK[np.ix_(order, order)])
    nearest = np.clip(np.round(w / scale), -largest, largest)
    better = output_error(w - found * scale, square_KK) < output_error(w - nearest * scale, square_KK)
    return np.where(better, found, nearest).astype(np.int8)


def output_error(away_KN: np.ndarray, square_KK: np.ndarray) -> np.ndarray:
    """float64 [N]: for each column the sum of squares by which products change when the matrix changes by `away`."""
    return (away_KN * (square_KK @ away_KN)).sum(0)


def _in_turn(w: np.ndarray, scale: np.ndarray, largest: int, square: np.ndarray) -> np.ndarray:
    """Whole numbers, float64 [K, N], for the channels in the order in which they are given."""
    free, w, q = w != 0, w.copy(), np.zeros_like(w)
    upper = _inverse_factor(square)
    for start in range(0, len(w), BLOCK):
        end = min(start + BLOCK, len(w))
        errors = np.zeros((end - start, w.shape[1]))
        for k in range(start, end):
            q[k] = np.where(free[k], np.clip(np.round(w[k] / scale[k]), -largest, largest), 0.0)
            errors[k - start] = (w[k] - q[k] * scale[k]) / upper[k, k]
            w[k + 1 : end] -= np.outer(upper[k, k + 1 : end], errors[k - start])
        w[end:] -= upper[start:end, end:].T @ errors
    return q


def _inverse_factor(square: np.ndarray) -> np.ndarray:
    """The upper triangular U with UᵀU the inverse of the damped square. A channel that is never there has a diagonal of
    1, and nothing beside it."""
    silent = np.diag(square) == 0
    damped = square + np.diag(np.where(silent, 1.0, DAMPING * np.diag(square).mean()))
    return np.linalg.cholesky(np.linalg.inv(damped)).T
