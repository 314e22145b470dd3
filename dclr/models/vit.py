"""Video vision transformers in the layout of VideoMAE (Tong et al., NeurIPS 2022): joint attention over space and time.

A patch of 2 frames x 16 x 16 pixels is a token. The map of a clip is its tokens on their grid, after the last norm, so
that pools, activation maps and the losses on them are those of any encoder.

The state dict has the keys and shapes of VideoMAE's pretrained encoder (`encoder.` in front of them removed):
`patch_embed.proj`, `blocks.N.{norm1,attn,norm2,mlp}`, `norm`. Its finetuned models have another norm, `fc_norm`, which
they apply to the mean of the tokens.

Shapes: B clips, n tokens, c features, h heads; a grid of (t, h, w) tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, linear, scaled_dot_product_attention

from dclr.models.resnet3d import Triple

# Tokens of a clip of 16 x 224 x 224, for which VideoMAE's positions are made.
GRID: Triple = (8, 14, 14)


class Attention(nn.Module):
    """Multi-head self-attention; queries and values have a bias, keys have none."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_bnc: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        parts = linear(x_bnc, self.qkv.weight, bias).unflatten(2, (3, self.heads, -1))
        query, key, value = (part.transpose(1, 2) for part in parts.unbind(2))
        return self.proj(scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with four times as many features between them."""

    def __init__(self, dim: int):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)

    def forward(self, x_bnc: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x_bnc)))


class TransformerBlock(nn.Module):
    """Attention and MLP, each added to its input and with a norm before it."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim, eps=1e-6), Attention(dim, heads)
        self.norm2, self.mlp = nn.LayerNorm(dim, eps=1e-6), Mlp(dim)

    def forward(self, x_bnc: Tensor) -> Tensor:
        x_bnc = x_bnc + self.attn(self.norm1(x_bnc))
        return x_bnc + self.mlp(self.norm2(x_bnc))


class PatchEmbedding(nn.Module):
    """Clip to tokens: (B, 3, T, H, W) to (B, c, t, h, w). What fills no patch at the end of an axis is left out."""

    def __init__(self, dim: int, patch: Triple):
        super().__init__()
        self.proj = nn.Conv3d(3, dim, patch, stride=patch)

    def forward(self, clip_bcthw: Tensor) -> Tensor:
        size, patch = tuple(clip_bcthw.shape[2:]), self.proj.kernel_size
        if any(here < least for here, least in zip(size, patch)):
            raise ValueError(f"clip: got frames x height x width {size}, expected at least one patch, {patch}")
        return self.proj(clip_bcthw)


class VideoTransformer(nn.Module):
    """Tokens with fixed positions through blocks of joint attention: (B, 3, T, H, W) to (B, dim, t, h, w).

    Args:
        dim: features of a token.
        depth: number of blocks.
        heads: of the attention; a divisor of `dim`.
        patch: frames, height and width of a patch.
    """

    def __init__(self, dim: int, depth: int, heads: int, patch: Triple = (2, 16, 16)):
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim: got {dim}, expected a multiple of the {heads} heads")
        self.feature_dim = dim
        self.patch_embed = PatchEmbedding(dim, patch)
        self.blocks = nn.ModuleList(TransformerBlock(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.register_buffer("position", sinusoids(dim), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, clip_bcthw: Tensor) -> Tensor:
        tokens = self.patch_embed(clip_bcthw)
        grid = tokens.shape[2:]
        position = self.position
        if grid != position.shape[2:]:
            position = interpolate(position, size=grid, mode="trilinear", align_corners=False)
        x_bnc = (tokens + position).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x_bnc = block(x_bnc)
        return self.norm(x_bnc).transpose(1, 2).unflatten(2, grid)


def sinusoids(dim: int) -> Tensor:
    """Positions (1, dim, 8, 14, 14) of the tokens of `GRID`, which are numbered row by row and frame by frame.

    Feature j of token p is the sine (j even) or cosine (j odd) of p / 10000^(2 floor(j / 2) / dim).
    """
    token = torch.arange(GRID[0] * GRID[1] * GRID[2], dtype=torch.float64)
    rate = 10000.0 ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angle = rate[:, None] * token
    waves = torch.stack([angle.sin(), angle.cos()], dim=1).flatten(0, 1)[:dim]
    return waves.float().unflatten(1, GRID)[None]


def vit_small() -> VideoTransformer:
    """VideoMAE's ViT-S: 21,879,936 parameters, 384 features."""
    return VideoTransformer(384, 12, 6)


def vit_base() -> VideoTransformer:
    """VideoMAE's ViT-B: 86,227,200 parameters, 768 features."""
    return VideoTransformer(768, 12, 12)


def vit_tiny() -> VideoTransformer:
    """A ViT of two narrow blocks and patches of 2 x 8 x 8, for CPUs and tests."""
    return VideoTransformer(48, 2, 3, (2, 8, 8))
