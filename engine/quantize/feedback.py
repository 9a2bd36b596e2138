"""Round a matrix as GPTQ does: the inputs still to come make up for the error of those before.

What counts is not the weights but the outputs y = W x. With H = Σ x xᵀ over texts, the error of the
outputs is Σ rows e H eᵀ for e = what rounding changed. After input k is rounded, the best that the
later inputs can do about its error has a closed form: each moves by −e_k · (row k of the inverse of
H, as far as it is left) / (its diagonal). A Cholesky factor of H⁻¹ holds all these rows at once.
Frantar et al., 2022.
"""

from __future__ import annotations

import torch

from engine.quantize.weight_rounding import Grid, Rounded, choose_scales, to_codes

DAMPING = 0.01
"""Part of the mean of H's diagonal that is added to it, so that it can be inverted."""


def round_with_feedback(weight: torch.Tensor, hessian: torch.Tensor, grid: Grid) -> Rounded:
    """Round a matrix [N, K]. hessian: fp32 [K, K], Σ x xᵀ of the layer's inputs."""
    rest = weight.float().clone()
    upper = _inverse_factor(hessian)
    codes = torch.empty(rest.shape, dtype=torch.uint8)
    scales: list[torch.Tensor] = []
    zeros: list[torch.Tensor] = []
    for start in range(0, rest.shape[1], grid.group):
        stop = start + grid.group
        scale, zero = choose_scales(rest[:, start:stop], grid)
        scales.append(scale)
        zeros.append(zero)
        errors = torch.empty(len(rest), grid.group)
        for k in range(start, stop):
            column = rest[:, k]
            codes[:, k] = to_codes(column[:, None], scale, zero, grid)[:, 0]
            rounded = (codes[:, k].float() - zero.float()) * scale.float()
            error = (column - rounded) / upper[k, k]
            rest[:, k:stop] -= error[:, None] * upper[k, k:stop]
            errors[:, k - start] = error
        rest[:, stop:] -= errors @ upper[start:stop, stop:]  # later groups, all at once
    return Rounded(codes, torch.stack(scales, 1), torch.stack(zeros, 1))


def _inverse_factor(hessian: torch.Tensor) -> torch.Tensor:
    """Return the upper U with Uᵀ U = H⁻¹: fp32 [K, K]."""
    damped = hessian.double()
    diagonal = damped.diagonal()
    unused = diagonal == 0  # an input that was always 0: any weight does
    diagonal[unused] = 1.0
    diagonal += DAMPING * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()
