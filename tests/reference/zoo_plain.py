"""The zoo's attentions as plain formulas of PyTorch's own operators: a second way to compute each, and what ours are
measured against (`reproduction/zoo_page.py`)."""

import copy
import functools

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention
from torch import nn

from vitgraft.models.zoo.pvt import SRAttention
from vitgraft.models.zoo.regionvit import R2LAttention
from vitgraft.models.zoo.t2t_vit import TokenAttention, TokenPerformer
from vitgraft.models.zoo.vil_blocks import FullAttention, WindowedAttention


def softmax_attention(q, k, v, bias=None, scale=None) -> torch.Tensor:
    """(B, heads, N, d), (B, heads, L, d) twice -> (B, N, heads * d)."""
    weights = (q * (scale or q.shape[-1] ** -0.5)) @ k.transpose(-2, -1)
    if bias is not None:
        weights = weights + bias
    return (weights.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)


def split(x: torch.Tensor, parts: int, heads: int) -> tuple[torch.Tensor, ...]:
    """(B, N, parts * C) -> parts times (B, heads, N, d)."""
    return x.unflatten(2, (parts, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def sr_attention(attn: SRAttention, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    (q,) = split(attn.q(x), 1, attn.num_heads)
    if attn.sr is not None:
        x = attn.sr(x.transpose(1, 2).reshape(*x.shape[::2], *size))
        x = attn.norm(x.flatten(2).transpose(1, 2))
    return attn.proj(softmax_attention(q, *split(attn.kv(x), 2, attn.num_heads)))


def token_attention(attn: TokenAttention, x: torch.Tensor) -> torch.Tensor:
    q, k, v = split(attn.qkv(x), 3, 1)
    return v.squeeze(1) + attn.proj(softmax_attention(q, k, v, scale=attn.scale))


def performer(layer: TokenPerformer, x: torch.Tensor) -> torch.Tensor:
    def features(x):
        return torch.exp(torch.einsum("bnd,fd->bnf", x, layer.w) - (x * x).sum(-1, keepdim=True) / 2) / 32**0.5

    k, q, v = layer.kqv(layer.norm1(x)).chunk(3, dim=-1)
    k, q = features(k), features(q)
    total = torch.einsum("bnf,bf->bn", q, k.sum(dim=1)).unsqueeze(2)
    y = torch.einsum("bnf,bdf->bnd", q, torch.einsum("bnd,bnf->bdf", v, k)) / (total + 1e-8)
    y = v + layer.proj(y)
    return y + layer.mlp(layer.norm2(y))


def r2l_attention(attn: R2LAttention, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    if bias is not None and bias.shape[0] > 1:
        bias = bias.repeat(x.shape[0] // bias.shape[0], 1, 1, 1)
    return attn.proj(softmax_attention(*split(attn.qkv(x), 3, attn.num_heads), bias))


def full_attention(attn: FullAttention, x: torch.Tensor) -> torch.Tensor:
    bias = None
    if attn.local_relative_position_bias_table is not None:
        N, G = attn.relative_position_index.shape[0], attn.global_tokens
        bias = attn.local_relative_position_bias_table[attn.relative_position_index.flatten()]
        bias = bias.view(N, N, -1).permute(2, 0, 1)
        if G:
            keys = attn.g2l_relative_position_bias[1].unsqueeze(1).expand(-1, N, -1)
            queries = attn.g2l_relative_position_bias[0].unsqueeze(2).expand(-1, -1, N)
            queries = torch.cat((attn.g2g_relative_position_bias, queries), dim=2)
            bias = torch.cat((queries, torch.cat((keys, bias), dim=2)), dim=1)
    return attn.proj(softmax_attention(*split(attn.qkv(x), 3, attn.num_heads), bias))


def windowed_attention(attn: WindowedAttention, x: torch.Tensor) -> torch.Tensor:
    """Neighborhoods by F.unfold, windows outside the map masked."""
    B, _, C = x.shape
    (H, W), M, G, heads = attn.size, attn.side, attn.global_tokens, attn.num_heads
    rows, columns = -(-H // M), -(-W // M)
    pad = (0, columns * M - W, 0, rows * M - H)
    (q,), (k, v) = split(attn.query(x), 1, heads), split(attn.kv(x), 2, heads)

    def image(t):  # (B, heads, N, d) -> (B, C, H, W)
        return t[:, :, G:].transpose(2, 3).reshape(B, C, H, W)

    def windows(t, side, padding):  # (B, C, H, W) -> (B * windows, heads, side * side, d)
        t = F.unfold(F.pad(t, pad), side, stride=M, padding=padding)
        t = t.view(-1, heads, t.shape[1] // heads // side**2, side**2, rows * columns)
        return t.permute(0, 4, 1, 3, 2).flatten(0, 1)

    def with_global(t, local):
        glob = t[:, :, :G].repeat_interleave(rows * columns, dim=0)
        return torch.cat((glob, local), dim=2)

    real = windows(x.new_ones(1, heads, H, W), 3 * M, M)[:, :1, :, 0]  # (windows, 1, 9 * M^2)
    bias = torch.where(real == 0, -torch.inf, 0.0).unsqueeze(2)  # (windows, 1, 1, 9 * M^2)
    local_bias = keys_bias = x.new_zeros(heads, M * M, 0)
    biased = attn.local_relative_position_bias_table is not None
    if biased:
        local_bias = attn.local_relative_position_bias_table[attn.relative_position_index.flatten()]
        local_bias = local_bias.view(M * M, 9 * M * M, heads).permute(2, 0, 1)
        bias = bias + local_bias
        if G:
            keys_bias = attn.g2l_relative_position_bias[1].unsqueeze(1).expand(-1, M * M, -1)
    else:
        keys_bias = x.new_zeros(heads, M * M, G)
    bias = bias.expand(-1, heads, M * M, -1)
    bias = torch.cat((keys_bias.expand(len(bias), -1, -1, -1), bias), dim=3).repeat(B, 1, 1, 1)
    keys, values = (with_global(t, windows(image(t), 3 * M, M)) for t in (k, v))
    local = softmax_attention(windows(image(q), M, 0), keys, values, bias)
    local = local.view(B, rows, columns, M, M, C).transpose(2, 3).reshape(B, rows * M, columns * M, C)
    parts = [local[:, :H, :W].reshape(B, H * W, C)]
    if G:
        bias = None
        if biased:
            bias = attn.g2l_relative_position_bias[0].unsqueeze(2).expand(-1, -1, H * W)
            bias = torch.cat((attn.g2g_relative_position_bias, bias), dim=2)
        parts.insert(0, softmax_attention(q[:, :, :G], k, v, bias))
    return attn.proj(torch.cat(parts, dim=1))


PLAIN = {
    SRAttention: sr_attention,
    TokenAttention: token_attention,
    TokenPerformer: performer,
    R2LAttention: r2l_attention,
    FullAttention: full_attention,
    WindowedAttention: windowed_attention,
}


def plain(model: nn.Module) -> nn.Module:
    """A copy of a model of the zoo that attends by the formulas above (in evaluation: no dropout)."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if type(module) in PLAIN:
            module.forward = functools.partial(PLAIN[type(module)], module)
        elif isinstance(module, Attention):
            module.fused_attn = False
    return model
