"""Rewrite MONAI's modules for inference: the same result from the same weights, with less work and less memory.

`--exact_rewrites False` leaves MONAI's modules as they are. The rewritten networks keep the names of all weights. In float32
the results differ by rounding only.

MONAI's modules compute in bfloat16 by autocast, which converts all weights at each step and keeps the norms in float32. The
rewritten networks can hold their weights in bfloat16 and stay in it: that moves less than half of the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution, SABlock, UpSample
from monai.networks.nets.autoencoderkl import AEKLResBlock, Decoder
from monai.networks.nets.diffusion_model_unet import (
    DiffusionModelUNet,
    DiffusionUNetResnetBlock,
    DiffusionUNetTransformerBlock,
)
from torch import nn


def rewrite(
    network: nn.Module, wanted: bool = True, slabs: int = 1, bfloat16: bool = False, compiled: bool = False
) -> nn.Module:
    """Rewrite an autoencoder or a diffusion U-Net in place, and return it; leave it as it is if not `wanted`.

    Move it to its device before.

    Args:
        network: the trained network.
        wanted: whether to rewrite it.
        slabs: number of slabs of the decoder's last stage, see `SlabDecoder`.
        bfloat16: whether to hold the parameters in bfloat16; buffers, such as the scale factor, keep their type.
        compiled: whether to compile the U-Net, or the decoder, with torch.compile at its first call. The compiler fuses norms
            with what follows them, so parameters are stored channels last, as GPUs prefer.
    """
    if compiled and not wanted:
        raise ValueError("compile True needs exact_rewrites True: MONAI's modules are not compiled")
    if not wanted:
        return network
    layout = torch.channels_last_3d if compiled else torch.preserve_format
    for parameter in network.parameters():
        dtype = torch.bfloat16 if bfloat16 else parameter.dtype
        parameter.data = parameter.data.to(dtype, memory_format=layout if parameter.ndim == 5 else torch.preserve_format)
    for module in [*network.modules()]:
        if isinstance(module, DiffusionModelUNet):
            _project_times_together(module)
        if type(module) in REWRITTEN:
            module.__class__ = REWRITTEN[type(module)]
        if isinstance(module, SlabDecoder):
            module.slabs = 1 if compiled else slabs  # the compiler would treat each slab as a layer of its own
        if isinstance(module, SABlock):  # MONAI's other way multiplies scores of float32 by values of bfloat16, which fails
            module.use_flash_attention, module.attention_dtype = True, None
    if compiled:
        for module in network.modules():  # the compiler cannot see whether weights have changed
            if hasattr(module, "derive"):
                module.derive()
        for module in [*network.modules()]:
            if isinstance(module, DiffusionModelUNet):
                module.compile(mode="reduce-overhead")  # CUDA graphs, which save the launches of many small layers
            elif isinstance(module, SlabDecoder):
                module.compile(mode=None)
    return network


def derived(module: nn.Module, make: Callable[[], torch.Tensor], weights: list[torch.Tensor]) -> torch.Tensor:
    """Return what `make` computes from weights. Outside of training it is kept with the module until a weight changes."""
    if torch.compiler.is_compiling():
        return module.derived_weight
    if torch.is_grad_enabled() and any(weight.requires_grad for weight in weights):
        return make()
    state = [(w.data_ptr(), w.dtype, w.device, 0 if w.is_inference() else w._version) for w in weights]
    if module.__dict__.get("derived_from") != state:
        module.derived_weight, module.derived_from = make(), state
    return module.derived_weight


# Nearest upsampling by two, then a convolution of 3 x 3 x 3, is a transposed convolution of 4 x 4 x 4 with stride 2: weights
# that read the same voxel are added. Along an axis, output 2 i reads voxels i - 1 and i, output 2 i + 1 voxels i and i + 1.
TAPS = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])


def summed_taps(conv: nn.Conv3d) -> torch.Tensor:
    """Return the weight (C, C', 4, 4, 4) of the transposed convolution for that of `conv` (C', C, 3, 3, 3)."""

    def add_taps() -> torch.Tensor:
        weight = conv.weight.to(torch.promote_types(conv.weight.dtype, torch.float32))
        taps = TAPS.to(weight)
        return torch.einsum("oixyz,ax,by,cz->ioabc", weight, taps, taps, taps).to(conv.weight.dtype).contiguous()

    return derived(conv, add_taps, [conv.weight])


def upsampled(conv: nn.Conv3d, x: torch.Tensor, padding: Sequence[int] = (1, 1, 1)) -> torch.Tensor:
    """Return `conv` of the features x (B, C, d, h, w) at twice the resolution: (B, C', 2 d, 2 h, 2 w).

    A padding of 3 along an axis leaves out the two outer planes on both sides, and the result is four planes smaller.
    """
    return F.conv_transpose3d(x, summed_taps(conv), conv.bias, stride=2, padding=padding)


class UpsampledConvolution(UpSample):
    """UpSample of the decoder."""

    def derive(self) -> None:
        summed_taps(self.postconv.conv)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return upsampled(self.postconv.conv, x)


def halved(x: torch.Tensor) -> torch.Tensor:
    """Return the means (B, C, d / 2, h / 2, w / 2) of cubes of 2 x 2 x 2. PyTorch has no pooling in bfloat16 on a CPU."""
    for dim in (2, 4, 6):
        x = x.unflatten(dim, (-1, 2))
    return x.mean(dim=(3, 5, 7))


class ResBlock(DiffusionUNetResnetBlock):
    """Residual block of the U-Net. It takes its part of what `TimeProjections` computes, and upsamples in its convolution."""

    def derive(self) -> None:
        if self.upsample is not None:
            summed_taps(self.conv1.conv)

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        h = F.silu(self.norm1(x))
        if self.upsample is not None:
            x, h = self.upsample(x), upsampled(self.conv1.conv, h)
        else:
            if self.downsample is not None:
                x, h = halved(x), halved(h)
            h = self.conv1(h)
        h = h + emb[:, self.time_channels, None, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return self.skip_connection(x) + h


class TimeProjections(nn.Sequential):
    """Embedding of the time, followed by the projections of all residual blocks in one product."""

    def derive(self) -> torch.Tensor:
        weights = [layer.weight for layer in self.projections]
        return derived(self, lambda: torch.cat(weights), weights)

    def forward(self, t_emb: torch.Tensor) -> torch.Tensor:
        """Return the projections (B, sum of the blocks' channels) of sinusoidal embeddings (B, C)."""
        bias = torch.cat([layer.bias for layer in self.projections])
        return F.linear(F.silu(super().forward(t_emb)), self.derive(), bias)


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
    """Decoder whose last stage, at the resolution of the image, can be processed in slabs along the second axis.

    At the published size, four slabs need a third less memory and move a quarter more bytes than one.

    Layer by layer, all slabs are replaced one after the other, so that input and output of a layer are never both complete in
    memory. Convolutions read a plane of each neighbouring slab. Group norms use the statistics of the whole volume.
    """

    slabs = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        *_, last = [0, *(number for number, block in enumerate(self.blocks) if isinstance(block, UpSample))]
        stage = self.blocks[last + 1 :]
        known = all(isinstance(block, (AEKLResBlock, nn.GroupNorm, Convolution)) for block in stage)
        if self.slabs == 1 or not last or not known or torch.is_grad_enabled():  # gradients need what the slabs overwrite
            return super().forward(x)
        for block in self.blocks[:last]:
            x = block(x)
        slabs = list(x.tensor_split(min(self.slabs, x.shape[3]), dim=3))
        _replace(slabs, lambda slab: F.pad(slab, (0, 0, 1, 1)))
        _exchange_borders(slabs)
        _replace(slabs, lambda slab: upsampled(self.blocks[last].postconv.conv, slab, padding=(1, 3, 1)))
        for block in stage:
            if isinstance(block, AEKLResBlock):
                shortcuts = [block.nin_shortcut(slab) for slab in slabs]
                for norm, conv in ((block.norm1, block.conv1), (block.norm2, block.conv2)):
                    _normalise(slabs, norm, activate=True)
                    _convolve(slabs, conv)
                for number in range(len(slabs)):
                    slabs[number] += shortcuts[number]
                    shortcuts[number] = None
            elif isinstance(block, nn.GroupNorm):
                _normalise(slabs, block, activate=False)
            else:
                _convolve(slabs, block)
        return torch.cat(slabs, dim=3)


def _replace(slabs: list[torch.Tensor], function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Replace each slab by a function of it. The earlier slab is freed before the next is computed."""
    for number in range(len(slabs)):
        slabs[number] = function(slabs[number])


def _convolve(slabs: list[torch.Tensor], layer: Convolution) -> None:
    """Replace slabs with borders (B, C, d, h_i + 2, w) by their convolution of 3 x 3 x 3 (B, C', d, h_i, w)."""
    _replace(slabs, lambda slab: F.conv3d(slab, layer.conv.weight, layer.conv.bias, padding=(1, 0, 1)))


def _exchange_borders(slabs: list[torch.Tensor]) -> None:
    """Copy the outer planes of neighbouring slabs into the borders. The first and the last border stay zero, as padding."""
    for one, other in zip(slabs, slabs[1:]):
        one[:, :, :, -1], other[:, :, :, 0] = other[:, :, :, 1], one[:, :, :, -2]


def _normalise(slabs: list[torch.Tensor], norm: nn.GroupNorm, activate: bool) -> None:
    """Replace slabs by their group norm, and SiLU if `activate`, with borders: (B, C, d, h_i + 2, w).

    The mean and variance are those of the whole volume (Chan et al. 1983).
    """
    means, variances = (torch.stack(part) for part in zip(*(_statistics(slab, norm.num_groups) for slab in slabs)))
    sizes = torch.tensor([slab[0, 0].numel() for slab in slabs])
    share = (sizes / sizes.sum()).to(means)[:, None, None]  # (slabs, 1, 1)
    mean = (share * means).sum(dim=0)  # (B, G)
    variance = (share * (variances + (means - mean) ** 2)).sum(dim=0)

    channels = norm.num_channels // norm.num_groups
    scale = norm.weight * (variance + norm.eps).rsqrt().repeat_interleave(channels, dim=1)  # (B, C)
    shift = norm.bias - scale * mean.repeat_interleave(channels, dim=1)
    scale, shift = scale[..., None, None, None], shift[..., None, None, None]

    def normalised(slab: torch.Tensor) -> torch.Tensor:
        batch, width, depth, height, columns = slab.shape
        bordered = slab.new_empty(batch, width, depth, height + 2, columns)
        bordered[:, :, :, 0] = bordered[:, :, :, -1] = 0
        torch.addcmul(shift, slab, scale, out=bordered[:, :, :, 1:-1])
        return F.silu(bordered, inplace=True) if activate else bordered  # SiLU of 0 is 0

    _replace(slabs, normalised)
    _exchange_borders(slabs)


def _statistics(slab: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and variance (B, G) of the groups of channels, in float32 or better."""
    values = slab.reshape(len(slab), groups, -1)
    if values.dtype.itemsize > 2:
        return torch.var_mean(values, dim=2, correction=0)[::-1]
    mean = values.mean(dim=2, dtype=torch.float32)  # var_mean would round its results
    squares = torch.linalg.vector_norm(values, dim=2, dtype=torch.float32) ** 2 / values.shape[2]
    return mean, (squares - mean**2).clamp(min=0)


REWRITTEN = {
    UpSample: UpsampledConvolution,
    DiffusionUNetResnetBlock: ResBlock,
    DiffusionUNetTransformerBlock: OneTokenTransformer,
    Decoder: SlabDecoder,
}
