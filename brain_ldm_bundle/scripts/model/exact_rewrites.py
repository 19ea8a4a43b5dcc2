"""Rewrite MONAI's modules for inference: the same result from the same weights, with less work and less memory.

`--exact_rewrites False` leaves MONAI's modules as they are. The rewritten networks keep the names of all weights. In float32
the results differ by rounding only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution, UpSample
from monai.networks.nets.autoencoderkl import AEKLResBlock, Decoder
from monai.networks.nets.diffusion_model_unet import (
    DiffusionModelUNet,
    DiffusionUNetResnetBlock,
    DiffusionUNetTransformerBlock,
)
from torch import nn

SLABS = 4  # chosen: more slabs need less memory, but compute more of the borders twice


def rewrite(network: nn.Module, wanted: bool = True) -> nn.Module:
    """Rewrite an autoencoder or a diffusion U-Net in place, and return it; leave it as it is if not `wanted`."""
    for module in [*network.modules()] if wanted else []:
        if isinstance(module, DiffusionModelUNet):
            _project_times_together(module)
        if type(module) in REWRITTEN:
            module.__class__ = REWRITTEN[type(module)]
    return network


def derived(module: nn.Module, make: Callable[[], torch.Tensor], weights: list[torch.Tensor]) -> torch.Tensor:
    """Return what `make` computes from weights. Outside of training it is kept with the module until a weight changes."""
    if torch.is_grad_enabled() and any(weight.requires_grad for weight in weights):
        return make()
    state = [(w.data_ptr(), w.dtype, w.device, 0 if w.is_inference() else w._version) for w in weights]
    if module.__dict__.get("derived_from") != state:
        module.derived_weight, module.derived_from = make(), state
    return module.derived_weight


# Nearest upsampling by two, then a convolution of 3 x 3 x 3, is a transposed convolution of 4 x 4 x 4 with stride 2: weights
# that read the same voxel are added. Along an axis, output 2 i reads voxels i - 1 and i, output 2 i + 1 voxels i and i + 1.
TAPS = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])


def upsampled(conv: nn.Conv3d, x: torch.Tensor, padding: Sequence[int] = (1, 1, 1)) -> torch.Tensor:
    """Return `conv` of the features x (B, C, d, h, w) at twice the resolution: (B, C', 2 d, 2 h, 2 w).

    A padding of 3 along an axis leaves out the two outer planes on both sides, and the result is four planes smaller.
    """

    def summed_taps() -> torch.Tensor:
        taps = TAPS.to(conv.weight)
        return torch.einsum("oixyz,ax,by,cz->ioabc", conv.weight, taps, taps, taps).contiguous()

    return F.conv_transpose3d(x, derived(conv, summed_taps, [conv.weight]), conv.bias, stride=2, padding=padding)


class UpsampledConvolution(UpSample):
    """UpSample of the decoder."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return upsampled(self.postconv.conv, x)


class ResBlock(DiffusionUNetResnetBlock):
    """Residual block of the U-Net. It takes its part of what `TimeProjections` computes, and upsamples in its convolution."""

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        h = F.silu(self.norm1(x))
        if self.upsample is not None:
            x, h = self.upsample(x), upsampled(self.conv1.conv, h)
        else:
            if self.downsample is not None:
                x, h = self.downsample(x), self.downsample(h)
            h = self.conv1(h)
        h = h + emb[:, self.time_channels, None, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return self.skip_connection(x) + h


class TimeProjections(nn.Sequential):
    """Embedding of the time, followed by the projections of all residual blocks in one product."""

    def forward(self, t_emb: torch.Tensor) -> torch.Tensor:
        """Return the projections (B, sum of the blocks' channels) of sinusoidal embeddings (B, C)."""
        layers = self.projections
        weight = derived(self, lambda: torch.cat([layer.weight for layer in layers]), [layer.weight for layer in layers])
        return F.linear(F.silu(super().forward(t_emb)), weight, torch.cat([layer.bias for layer in layers]))


def _project_times_together(network: DiffusionModelUNet) -> None:
    blocks = [module for module in network.modules() if type(module) is DiffusionUNetResnetBlock]
    if blocks:
        ends = [0, *accumulate(block.out_channels for block in blocks)]
        for block, start, end in zip(blocks, ends, ends[1:]):
            block.time_channels = slice(start, end)
        network.time_embed.projections = tuple(block.time_emb_proj for block in blocks)  # a tuple adds no names of weights
        network.time_embed.__class__ = TimeProjections


class OneTokenTransformer(DiffusionUNetTransformerBlock):
    """Transformer block whose cross-attention sees one token. A softmax over one key is 1, so the token's value is added."""

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        if context is None or context.shape[1] != 1:
            return super().forward(x, context)
        x = self.attn1(self.norm1(x)) + x
        x = self.attn2.out_proj(self.attn2.to_v(context)) + x
        return self.ff(self.norm3(x)) + x


class SlabDecoder(Decoder):
    """Decoder whose last stage, at the resolution of the image, goes through in slabs along the second axis.

    Layer by layer, all slabs are replaced one after the other, so that input and output of a layer are never both complete in
    memory. A convolution reads the border of the neighbouring slabs. Group norms use the statistics of the whole volume.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        *_, last = [0, *(number for number, block in enumerate(self.blocks) if isinstance(block, UpSample))]
        stage = self.blocks[last + 1 :]
        known = all(isinstance(block, (AEKLResBlock, nn.GroupNorm, Convolution)) for block in stage)
        if not last or not known or torch.is_grad_enabled():  # gradients need what the slabs overwrite
            return super().forward(x)
        for block in self.blocks[:last]:
            x = block(x)
        slabs = list(x.tensor_split(min(SLABS, x.shape[3]), dim=3))
        del x
        _replace(slabs, self.blocks[last])
        for block in stage:
            if isinstance(block, AEKLResBlock):
                _residual_block(slabs, block)
            elif isinstance(block, nn.GroupNorm):
                _normalise(slabs, block, keep=False)
            else:
                _replace(slabs, block)
        return torch.cat(slabs, dim=3)


def _residual_block(slabs: list[torch.Tensor], block: AEKLResBlock) -> None:
    """Apply AEKLResBlock to slabs (B, C, d, h_i, w), in place."""
    shortcuts = [block.nin_shortcut(slab) for slab in slabs]
    _normalise(slabs, block.norm1, keep=isinstance(block.nin_shortcut, nn.Identity), activate=True)
    _replace(slabs, block.conv1)
    _normalise(slabs, block.norm2, keep=False, activate=True)
    _replace(slabs, block.conv2)
    for number, slab in enumerate(slabs):
        slab += shortcuts[number]
        shortcuts[number] = None


def _replace(slabs: list[torch.Tensor], layer: nn.Module) -> None:
    """Replace each slab by the result of a convolution of 3 x 3 x 3, or of UpSample."""
    nothing = torch.zeros_like(slabs[0][:, :, :, :1])
    before = nothing  # last plane of the slab before, which is replaced already
    for number in range(len(slabs)):
        after = slabs[number + 1][:, :, :, :1] if number + 1 < len(slabs) else nothing
        x = torch.cat([before, slabs[number], after], dim=3)
        before, slabs[number] = slabs[number][:, :, :, -1:].clone(), None
        if isinstance(layer, UpSample):
            slabs[number] = upsampled(layer.postconv.conv, x, padding=(1, 3, 1))
        else:
            slabs[number] = F.conv3d(x, layer.conv.weight, layer.conv.bias, padding=(1, 0, 1))


def _normalise(slabs: list[torch.Tensor], norm: nn.GroupNorm, keep: bool, activate: bool = False) -> None:
    """Apply a group norm to slabs, and SiLU if `activate`. The mean and variance are those of the whole volume.

    The slabs are overwritten unless `keep`: then the list holds new tensors.
    """
    sizes, means, variances = [], [], []
    for slab in slabs:
        variance, mean = torch.var_mean(slab.float().reshape(len(slab), norm.num_groups, -1), dim=2, correction=0)  # (B, G)
        sizes.append(slab[0, 0].numel())
        means.append(mean)
        variances.append(variance)
    share = (torch.tensor(sizes) / sum(sizes)).to(means[0])[:, None, None]  # (slabs, 1, 1)
    means, variances = torch.stack(means), torch.stack(variances)  # (slabs, B, G)
    mean = (share * means).sum(dim=0)
    variance = (share * (variances + (means - mean) ** 2)).sum(dim=0)  # Chan et al. 1983

    channels = norm.num_channels // norm.num_groups
    scale = norm.weight * (variance + norm.eps).rsqrt().repeat_interleave(channels, dim=1)  # (B, C)
    shift = norm.bias - scale * mean.repeat_interleave(channels, dim=1)
    scale, shift = scale[..., None, None, None], shift[..., None, None, None]
    for number, slab in enumerate(slabs):
        slabs[number] = torch.addcmul(shift, slab, scale, out=torch.empty_like(slab) if keep else slab)
        if activate:
            F.silu(slabs[number], inplace=True)


REWRITTEN = {
    UpSample: UpsampledConvolution,
    DiffusionUNetResnetBlock: ResBlock,
    DiffusionUNetTransformerBlock: OneTokenTransformer,
    Decoder: SlabDecoder,
}
