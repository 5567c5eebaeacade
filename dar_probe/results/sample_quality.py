"""How far drawn samples are from real ones, in a space of features; NumPy alone, float64.

Rows are samples: real (N, F) and drawn (M, F).
"""

from collections.abc import Iterator

import numpy as np

Array = np.ndarray
ROWS = 1024  # of a matrix of pairs at a time


def frechet(real: Array, drawn: Array) -> float:
    """Return the squared Fréchet distance of two Gaussians fitted to the rows (1706.08500).

    |m - n|^2 + tr(A + B - 2 (A B)^(1/2)). Biased upwards in small sets, so that only equal
    numbers of samples compare.

    Raises:
        ValueError: a set has fewer than two rows.
    """
    if min(len(real), len(drawn)) < 2:
        raise ValueError("a covariance needs two samples")
    a, b = (np.atleast_2d(np.cov(x.astype(np.float64), rowvar=False)) for x in (real, drawn))
    shift = real.mean(0, dtype=np.float64) - drawn.mean(0, dtype=np.float64)
    root = _root(a)
    # The eigenvalues of A B are those of A^(1/2) B A^(1/2), which is symmetric.
    crossed = np.linalg.eigvalsh(root @ b @ root).clip(0)
    return float(shift @ shift + np.trace(a) + np.trace(b) - 2 * np.sqrt(crossed).sum())


def kernel(real: Array, drawn: Array) -> float:
    """Return the kernel distance, the unbiased squared MMD with (x y / F + 1)^3 (1801.01401).

    It may be negative where the sets are alike.
    """
    within = (_kernel_sum(x, x, diagonal=False) / (len(x) * (len(x) - 1)) for x in (real, drawn))
    return float(sum(within) - 2 * _kernel_sum(real, drawn) / (len(real) * len(drawn)))


def precision_recall(real: Array, drawn: Array, *, neighbours: int = 3) -> tuple[float, float]:
    """Return the shares of drawn samples near real ones and of real ones near drawn (1904.06991).

    Near: not farther from some sample than its own k-th neighbour.
    """
    near_real, near_drawn = (_radii(x, neighbours) for x in (real, drawn))
    precise, recalled = np.zeros(len(drawn), bool), np.zeros(len(real), bool)
    for rows, squares in _squares(drawn, real):
        precise[rows] = (squares <= near_real).any(1)
        recalled |= (squares <= near_drawn[rows, None]).any(0)
    return float(precise.mean()), float(recalled.mean())


def _root(a: Array) -> Array:
    values, vectors = np.linalg.eigh(a)
    root: Array = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    return root


def _kernel_sum(x: Array, y: Array, *, diagonal: bool = True) -> float:
    total = 0.0
    for rows in _pieces(len(x)):
        values = (x[rows].astype(np.float64) @ y.T.astype(np.float64) / x.shape[1] + 1) ** 3
        total += values.sum()
        if not diagonal:
            total -= np.einsum("ii->", values[:, rows])
    return total


def _radii(x: Array, neighbours: int) -> Array:
    """Return the squared distance (N,) of every row from its k-th neighbour."""
    found = np.empty(len(x))
    for rows, squares in _squares(x, x):
        found[rows] = np.partition(squares, neighbours, 1)[:, neighbours]  # itself is the 0-th
    return found


def _squares(x: Array, y: Array) -> Iterator[tuple[slice, Array]]:
    """Yield rows of ``x`` and their squared distances (rows, M) from all of ``y``."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    lengths = (y * y).sum(1)
    for rows in _pieces(len(x)):
        part = x[rows]
        yield rows, ((part * part).sum(1)[:, None] + lengths - 2 * part @ y.T).clip(0)


def _pieces(count: int) -> Iterator[slice]:
    return (slice(at, min(at + ROWS, count)) for at in range(0, count, ROWS))
