"""Timestep decodability: the noise level, predicted from what each reader reads."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

FOLDS = 4
# Penalty per row on the squared weights of standardised features, whose variance is one: small
# beside a feature that tells the level, large beside the differences that two samples share by
# chance. arXiv 2605.20708 names ridge regression and states no strength; on the digits fixtures
# a tenth of it or ten times it changes the R2 of no reader by more than 0.03.
RIDGE = 1e-2
# A feature that moves by less than this share of its size is constant: pooled states are float32,
# and to standardise their rounding would make a feature of it.
CONSTANT = 1e-6


def decode(pooled: npt.NDArray[np.floating], levels: Array) -> Array:
    """Predict the noise level of every cell by ridge regression fitted on other samples.

    After the timestep probe of arXiv 2605.20708. Sample n lies in fold n modulo ``FOLDS`` with
    all its levels, and is predicted by the fit on the other folds: features standardised on
    those, an intercept, and ``RIDGE`` times their number of rows as penalty.

    Args:
        pooled: token mean of what each reader reads (levels, n, R, D).
        levels: noise level of each row of ``pooled`` (levels,).

    Returns:
        Predictions (levels, n, R); NaN with fewer than two levels or two samples.
    """
    count, samples, readers, width = pooled.shape
    found = np.full((count, samples, readers), np.nan)
    if count < 2 or samples < 2:
        return found
    fold = np.arange(samples) % FOLDS
    for reader in range(readers):
        states = pooled[:, :, reader].astype(np.float64)
        for held in range(min(FOLDS, samples)):
            test, train = fold == held, fold != held
            known = states[:, train].reshape(-1, width)
            target = np.repeat(levels, train.sum())
            asked = states[:, test].reshape(-1, width)
            found[:, test, reader] = _ridge(known, target, asked).reshape(count, -1)
    return found


def _ridge(known: Array, target: Array, asked: Array) -> Array:
    """Fit ``target`` (n,) on ``known`` (n, D) and predict it for ``asked`` (m, D): (m,)."""
    rows, width = known.shape
    centre, spread = known.mean(axis=0), known.std(axis=0)
    moves = spread > CONSTANT * np.sqrt(centre**2 + spread**2)
    scale = np.where(moves, 1 / np.where(moves, spread, 1.0), 0.0)
    known, asked = (known - centre) * scale, (asked - centre) * scale
    mean = target.mean()
    if rows < width:  # the dual form: as many unknowns as rows
        dual = np.linalg.solve(known @ known.T + rows * RIDGE * np.eye(rows), target - mean)
        weights = known.T @ dual
    else:
        gram = known.T @ known + rows * RIDGE * np.eye(width)
        weights = np.linalg.solve(gram, known.T @ (target - mean))
    return np.asarray(asked @ weights + mean)
