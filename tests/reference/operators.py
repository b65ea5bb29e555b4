"""The operators of the graft once more, slow and obvious: loops over windows and pixels, no layout tricks.

Written from the paper's equations and the conventions that `layers/graft.py` states, not from the fast code. Grids are
(B, H, W, C); parameters come as a state dict `p` of the fast module, so that both compute with the same numbers.
"""

import math

import torch


def linear(x, p, name):
    """x W^T + b on the last dimension."""
    y = x @ p[f"{name}.weight"].T
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def layer_norm(x, p, name):
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def sub(p, prefix):
    """The part of a state dict below `prefix`."""
    return {k[len(prefix) + 1 :]: v for k, v in p.items() if k.startswith(prefix + ".")}


def softmax_attention(q, k, v, bias=0.0):
    """(N, d), (L, d), (L, d) -> (N, d)."""
    scores = q @ k.T / math.sqrt(q.shape[1]) + bias
    weights = scores.exp() / scores.exp().sum(1, keepdim=True)
    return weights @ v


def window_attention(x, p, num_heads, window_size):
    """L-MSA with relative position bias. Zero padding right and bottom takes part; the window is at most the map."""
    B, H, W, C = x.shape
    h, w = min(H, window_size[0]), min(W, window_size[1])
    d = C // num_heads
    table = p["relative_position_bias_table"]
    tokens = [(y, x_) for y in range(h) for x_ in range(w)]
    # offsets between two tokens of a window, counted on the table of the configured window
    offset = torch.tensor(
        [
            [
                (qy - ky + window_size[0] - 1) * (2 * window_size[1] - 1) + (qx - kx + window_size[1] - 1)
                for ky, kx in tokens
            ]
            for qy, qx in tokens
        ]
    )
    out = torch.zeros_like(x)
    for b in range(B):
        for top in range(0, H, h):
            for left in range(0, W, w):
                inside = torch.zeros(h * w, C, dtype=x.dtype)
                for n, (dy, dx) in enumerate(tokens):
                    if top + dy < H and left + dx < W:
                        inside[n] = x[b, top + dy, left + dx]
                qkv = linear(inside, p, "qkv")
                heads = []
                for head in range(num_heads):
                    q, k, v = (qkv[:, part * C + head * d : part * C + (head + 1) * d] for part in range(3))
                    heads.append(softmax_attention(q, k, v, table[:, head][offset]))
                result = linear(torch.cat(heads, dim=1), p, "proj")
                for n, (dy, dx) in enumerate(tokens):
                    if top + dy < H and left + dx < W:
                        out[b, top + dy, left + dx] = result[n]
    return out


def cross_attention(x, context, p, num_heads, window_size, x_is_fine):
    """Each token of x asks the tokens of the context that lie in the same window of the coarse grid."""
    B, H, W, C = x.shape
    coarse = context if x_is_fine else x
    h, w = min(coarse.shape[1], window_size[0]), min(coarse.shape[2], window_size[1])
    d = C // num_heads

    def window_of(y, x_, fine):
        return (y // 2 // h, x_ // 2 // w) if fine else (y // h, x_ // w)

    out = torch.zeros_like(x)
    for b in range(B):
        for y in range(H):
            for x_ in range(W):
                keys = torch.stack(
                    [
                        context[b, ky, kx]
                        for ky in range(context.shape[1])
                        for kx in range(context.shape[2])
                        if window_of(ky, kx, not x_is_fine) == window_of(y, x_, x_is_fine)
                    ]
                )
                q = linear(x[b, y, x_][None], p, "q")
                parts = [slice(i * d, (i + 1) * d) for i in range(num_heads)]
                result = torch.cat([softmax_attention(q[:, s], keys[:, s], keys[:, s]) for s in parts], dim=1)
                out[b, y, x_] = (linear(result, p, "proj") if "proj.weight" in p else result)[0]
    return out


def pool(x):
    """Mean of the tokens that exist in each 2 x 2 square; sizes are halved, rounded up."""
    B, H, W, C = x.shape
    out = x.new_zeros(B, math.ceil(H / 2), math.ceil(W / 2), C)
    for y in range(out.shape[1]):
        for x_ in range(out.shape[2]):
            out[:, y, x_] = x[:, 2 * y : min(2 * y + 2, H), 2 * x_ : min(2 * x_ + 2, W)].mean(dim=(1, 2))
    return out


def linear_down(x, p):
    """The 2 x 2 tokens of a square side by side (zeros where there is none), projected from 4C to C."""
    B, H, W, C = x.shape
    out = x.new_zeros(B, math.ceil(H / 2), math.ceil(W / 2), C)
    for y in range(out.shape[1]):
        for x_ in range(out.shape[2]):
            square = [
                x[:, 2 * y + dy, 2 * x_ + dx] if 2 * y + dy < H and 2 * x_ + dx < W else x.new_zeros(B, C)
                for dy in (0, 1)
                for dx in (0, 1)
            ]
            out[:, y, x_] = linear(torch.cat(square, dim=1), p, "proj")
    return out


def interpolate_at(x, y, x_, rows, cols):
    """x (B, H, W, C) at the real coordinates (y, x_), clamped to the tokens `rows` x `cols` (ranges)."""

    def ends(t, span):
        t = min(max(t, span.start), span.stop - 1)
        low = min(math.floor(t), span.stop - 1)
        return low, min(low + 1, span.stop - 1), t - low

    y0, y1, fy = ends(y, rows)
    x0, x1, fx = ends(x_, cols)
    top = x[:, y0, x0] * (1 - fx) + x[:, y0, x1] * fx
    bottom = x[:, y1, x0] * (1 - fx) + x[:, y1, x1] * fx
    return top * (1 - fy) + bottom * fy


def window_bilinear(x, window_size):
    """Phi of equation 2: to double size, pixel centres at half (align_corners False), each window by itself."""
    B, H, W, C = x.shape
    h, w = min(H, window_size[0]), min(W, window_size[1])
    out = x.new_zeros(B, 2 * H, 2 * W, C)
    for y in range(2 * H):
        for x_ in range(2 * W):
            top, left = y // 2 // h * h, x_ // 2 // w * w
            rows, cols = range(top, min(top + h, H)), range(left, min(left + w, W))
            out[:, y, x_] = interpolate_at(x, (y + 0.5) / 2 - 0.5, (x_ + 0.5) / 2 - 0.5, rows, cols)
    return out


def bilinear(x):
    """The same over the whole grid."""
    return window_bilinear(x, (x.shape[1], x.shape[2]))


def nearest(x):
    B, H, W, C = x.shape
    out = x.new_zeros(B, 2 * H, 2 * W, C)
    for y in range(2 * H):
        for x_ in range(2 * W):
            out[:, y, x_] = x[:, y // 2, x_ // 2]
    return out


def gate(logits, size):
    """E_aa: sigmoid of the embedding (h, w, C), resized bilinearly to `size` where that differs."""
    h, w, C = logits.shape
    H, W = size
    out = logits.new_zeros(H, W, C)
    for y in range(H):
        for x_ in range(W):
            at = (y + 0.5) * h / H - 0.5, (x_ + 0.5) * w / W - 0.5
            out[y, x_] = interpolate_at(logits[None], *at, range(h), range(w))[0]
    return 1 / (1 + (-out).exp())


def upsample(z, fine, p, mode, num_heads, window_size):
    """Equation 2: from level output z to the size of the finer grid."""
    z = linear(gelu(layer_norm(z, p, "norm")), p, "proj")
    if mode == "cross_attention":
        return cross_attention(layer_norm(fine, p, "fine_norm"), z, sub(p, "attn"), num_heads, window_size, True)
    if mode == "nearest":
        z = nearest(z)
    else:
        z = z * gate(p["anti_alias"], z.shape[1:3])
        z = window_bilinear(z, window_size) if mode == "w_bilinear" else bilinear(z)
    return z[:, : fine.shape[1], : fine.shape[2]]


def downsample(x, p, mode, num_heads=1, window_size=(7, 7)):
    """Equation 1."""
    x = gelu(layer_norm(x, p, "norm"))
    if mode == "cross_attention":
        return cross_attention(pool(x), x, sub(p, "attn"), num_heads, window_size, False)
    return linear_down(x, p) if mode == "linear" else pool(x)


def graft(x, p, levels, num_heads, window_size, down="avg_pool", up="w_bilinear", upsampled=True):
    """Equations 1 to 3: Z1, and, if `upsampled`, the term up(Z1) of equation 4."""
    grids = [x]
    for b in range(levels):
        grids.append(downsample(grids[-1], sub(p, f"levels.{b}.down"), down, num_heads, window_size))
    above = None
    for b in range(levels, 0, -1):
        q = sub(p, f"levels.{b - 1}")
        normed = layer_norm(grids[b], q, "norm")
        attended = window_attention(normed, sub(q, "attn"), num_heads, window_size)
        z = grids[b] + attended
        if above is not None:
            z = z + above
        if b == 1 and not upsampled:
            return z
        above = upsample(z, grids[b - 1], sub(q, "up"), up, num_heads, window_size)
    return above


def left_graft(x, p, left_levels, num_heads, window_size):
    """Table A's "left": the levels above the backbone's resolution, from the first on."""
    if left_levels == 0:
        return 0
    q = sub(p, "left_levels.0")
    double = x.new_zeros(x.shape[0], 2 * x.shape[1], 2 * x.shape[2], x.shape[3])
    finer = upsample(x, double, sub(q, "up"), "w_bilinear", num_heads, window_size)
    z = finer + window_attention(layer_norm(finer, q, "norm"), sub(q, "attn"), num_heads, window_size)
    rest = {k.replace("left_levels.1", "left_levels.0"): v for k, v in p.items() if "left_levels.0" not in k}
    z = z + left_graft(finer, rest, left_levels - 1, num_heads, window_size)
    return pool(gelu(layer_norm(z, q, "down_norm")))
