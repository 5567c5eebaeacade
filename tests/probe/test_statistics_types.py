"""States of several number types in one model: some classes hand on float32 behind float64."""

import torch

from dar_probe.probe.statistics import block_statistics, token_norms


def test_the_widest_type_is_taken():
    draw = torch.Generator().manual_seed(0)
    states = [torch.randn(2, 5, 7, generator=draw, dtype=torch.float64) for _ in range(3)]
    grads = [torch.randn(2, 5, 7, generator=draw, dtype=torch.float64) for _ in range(3)]
    mixed = [*states[:2], states[2].float()]
    rounded = [*states[:2], states[2].float().double()]
    for order in ([0, 1, 2], [2, 0, 1]):
        some = [mixed[i] for i in order]
        same = [rounded[i] for i in order]
        slopes = [grads[i] for i in order]
        norms = torch.stack([token_norms(state).double() for state in same])
        found, wanted = block_statistics(some, norms, slopes), block_statistics(same, norms, slopes)
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, equal_nan=True)
