"""Row kernels in torch, for CPUs; see :mod:`rlhf.kernels.rows`."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf.kernels.rows import Reading, Tile, Upstream
from rlhf.kernels.workspace import Workspace


def add_statistics(tile: Tile, workspace: Workspace, *, entropy: bool) -> None:
    """See :class:`rlhf.kernels.rows.RowKernels`."""
    statistics = tile.statistics
    relative = workspace.like("relative", tile.products)
    z = bend(tile.products, tile.bias, tile.reading, relative)
    column, inside = _columns(tile)
    statistics.target.copy_(torch.where(inside, z.gather(1, column).squeeze(1), statistics.target))
    peak = torch.maximum(statistics.peak, z.amax(1))
    shift = statistics.peak - peak
    shrink = shift.exp()
    torch.sub(z, peak.unsqueeze(1), out=relative)
    if entropy:
        e = torch.exp(relative, out=workspace.like("exponentials", relative))
        weighted = relative.mul_(e).sum(1)
        statistics.weighted.addcmul_(shift, statistics.total).mul_(shrink).add_(weighted)
    else:
        e = relative.exp_()
    statistics.total.mul_(shrink).add_(e.sum(1))
    statistics.peak.copy_(peak)


def gradients(tile: Tile, upstream: Upstream, out: Tensor, workspace: Workspace) -> None:
    """See :class:`rlhf.kernels.rows.RowKernels`."""
    statistics, reading = tile.statistics, tile.reading
    z = bend(tile.products, tile.bias, reading, tile.products)
    slope = slope_of_cap(z, reading)
    steepness = reading.scale * reading.cooling
    z.sub_(statistics.peak.unsqueeze(1))
    share = -steepness / statistics.total  # (m,); exp(z − peak)·share is −p·steepness
    g, h = upstream.logprobs, upstream.entropies
    if h is None:
        assert g is not None
        d = z.exp_().mul_((share * g).unsqueeze(1))
    else:
        e = torch.exp(z, out=workspace.like("exponentials", z))
        offset = share * ((0.0 if g is None else g) - h * statistics.mean)
        d = z.mul_((share * h).unsqueeze(1)).add_(offset.unsqueeze(1)).mul_(e)
    if g is not None:
        column, inside = _columns(tile)
        d.scatter_add_(1, column, torch.where(inside, g * steepness, 0.0).unsqueeze(1))
    if slope is not None:
        d.mul_(slope)
    if out is not d:
        out.copy_(d)
        if tile.lost is not None:
            tile.lost.sub_(out.sum(1, dtype=torch.float32))
    if tile.lost is not None and slope is not None:
        tile.lost.add_(d.sum(1))


def bend(products: Tensor, bias: Tensor | None, reading: Reading, out: Tensor) -> Tensor:
    """Logits over the temperature: in ``out``, or the products themselves where nothing bends them."""
    factor = reading.scale * reading.cooling
    if bias is not None:
        products = torch.add(products, bias, out=out)
    if reading.softcap is not None:
        products = torch.mul(products, reading.scale / reading.softcap, out=out).tanh_()
        factor = reading.softcap * reading.cooling
    if isinstance(factor, Tensor):
        return torch.mul(products, factor.unsqueeze(1), out=out)
    return products if factor == 1.0 else torch.mul(products, factor, out=out)


def slope_of_cap(z: Tensor, reading: Reading) -> Tensor | None:
    """(m, n) 1 − tanh² at logits over the temperature; None where there is no cap."""
    if reading.softcap is None:
        return None
    height = reading.softcap * reading.cooling
    tanh = z / (height.unsqueeze(1) if isinstance(height, Tensor) else height)
    return tanh.square_().neg_().add_(1.0)


def _columns(tile: Tile) -> tuple[Tensor, Tensor]:
    """(m, 1) each target's column or some other one, and (m,) whether it is in the tile."""
    targets, last = tile.reading.targets - tile.first, tile.products.shape[1] - 1
    return targets.clamp(0, last).unsqueeze(1), (targets >= 0) & (targets <= last)
