"""Shifted-window attention of the Swin authors' dense-task code, one token pair at a time.

No roll, no mask, no window partition: a token at (y, x) of the padded map lies, after a shift by s, in window
((y - s) // M, (x - s) // M), where the map's wrapped-round first s rows and columns form windows of their own
parts. Two tokens see each other when they share window and part.
"""

import torch


def swin_attention(attn, x: torch.Tensor, window: int, shift: int, shift_single_window: bool = True) -> torch.Tensor:
    """`attn`: a timm WindowAttention. x: (B, H, W, C), normed. Returns (B, H, W, C).

    Without `shift_single_window`, a map of one window is not shifted, as in the authors' classification code.
    """
    B, H, W, C = x.shape
    Hp, Wp = -(-H // window) * window, -(-W // window) * window
    if window >= H and window >= W and not shift_single_window:
        shift = 0
    padded = x.new_zeros(B, Hp, Wp, C)
    padded[:, :H, :W] = x
    heads = attn.num_heads
    d = C // heads
    qkv = (padded @ attn.qkv.weight.T + attn.qkv.bias).reshape(B, Hp, Wp, 3, heads, d)
    table = attn.relative_position_bias_table.reshape(2 * window - 1, 2 * window - 1, heads)

    def home(y: int, size: int) -> tuple[int, int, bool]:
        """(window, place in it, wrapped round) along one axis."""
        moved = (y - shift) % size
        return moved // window, moved % window, y < shift

    out = x.new_zeros(B, H, W, C)
    tokens = [(y, z) for y in range(Hp) for z in range(Wp)]
    homes = {(y, z): (home(y, Hp), home(z, Wp)) for y, z in tokens}
    for y, z in tokens:
        if y >= H or z >= W:
            continue
        (wy, py, ry), (wz, pz, rz) = homes[y, z]
        seen, bias = [], []
        for v, u in tokens:
            (wv, pv, rv), (wu, pu, ru) = homes[v, u]
            if (wy, ry, wz, rz) == (wv, rv, wu, ru):
                seen.append((v, u))
                bias.append(table[py - pv + window - 1, pz - pu + window - 1])
        rows, cols = [v for v, _ in seen], [u for _, u in seen]
        q, k, v = qkv[:, y, z, 0], qkv[:, rows, cols, 1], qkv[:, rows, cols, 2]
        logits = torch.einsum("bhd,bnhd->bnh", q, k) * d**-0.5 + torch.stack(bias)
        out[:, y, z] = torch.einsum("bnh,bnhd->bhd", logits.softmax(1), v).reshape(B, C)
    return out @ attn.proj.weight.T + attn.proj.bias
