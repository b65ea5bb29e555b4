"""CSWin's attention in stripes with LePE, token by token, padded as the authors' segmentation backbone does."""

import torch


def stripe_attention(qkv, weight, bias, num_heads: int, stripe: int, direction: str) -> torch.Tensor:
    """qkv (B, H, W, 3, C); weight (C, 1, 3, 3) and bias (C,) of the depthwise convolution. Returns (B, H, W, C)."""
    B, H, W, _, C = qkv.shape
    rows = stripe if direction == "horizontal" else H
    cols = stripe if direction == "vertical" else W
    top, left = (-H % rows) // 2, (-W % cols) // 2
    Hp, Wp = -(-H // rows) * rows, -(-W // cols) * cols
    padded = qkv.new_zeros(B, Hp, Wp, 3, C)
    padded[:, top : top + H, left : left + W] = qkv
    d = C // num_heads
    out = qkv.new_zeros(B, Hp, Wp, C)
    for y in range(Hp):
        for x in range(Wp):
            y0, x0 = y // rows * rows, x // cols * cols
            cell = padded[:, y0 : y0 + rows, x0 : x0 + cols].reshape(B, rows * cols, 3, num_heads, d)
            logits = torch.einsum("bhd,bnhd->bnh", padded[:, y, x, 0].reshape(B, num_heads, d), cell[:, :, 1])
            out[:, y, x] = torch.einsum("bnh,bnhd->bhd", (logits * d**-0.5).softmax(1), cell[:, :, 2]).reshape(B, C)
            out[:, y, x] += bias
            for v in range(max(y - 1, y0), min(y + 2, y0 + rows)):
                for u in range(max(x - 1, x0), min(x + 2, x0 + cols)):
                    out[:, y, x] += weight[:, 0, v - y + 1, u - x + 1] * padded[:, v, u, 2]
    return out[:, top : top + H, left : left + W]
