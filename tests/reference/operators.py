"""The operators of the graft once more, slow and obvious: loops over windows and pixels, no layout tricks.

Written from the paper's equations and the conventions that `layers/graft.py` states, not from the fast code. Grids are
(B, H, W, C); parameters come as a state dict `p` of the fast module, so that both compute with the same numbers.
"""

import math

import torch
from reference.stripe_attention import stripe_attention


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


def shifted_window_attention(x, p, num_heads, window_size):
    """The same with windows shifted by half a window, in the directions in which the padded grid has several.

    A token at y lies in window (y - s) // h, where the first s rows, wrapped round, are windows of their own: tokens
    attend to each other where they share window and part.
    """
    B, H, W, C = x.shape
    window = min(H, window_size[0]), min(W, window_size[1])
    padded_size = [math.ceil(n / m) * m for n, m in zip((H, W), window, strict=True)]
    shift = [m // 2 if n > m else 0 for n, m in zip(padded_size, window, strict=True)]
    padded = x.new_zeros(B, *padded_size, C)
    padded[:, :H, :W] = x
    table = p.get("relative_position_bias_table")
    groups = {}
    for y in range(padded_size[0]):
        for x_ in range(padded_size[1]):
            moved = [(t - s) % n for t, s, n in zip((y, x_), shift, padded_size, strict=True)]
            key = (moved[0] // window[0], moved[1] // window[1], y < shift[0], x_ < shift[1])
            groups.setdefault(key, []).append((y, x_, moved[0] % window[0], moved[1] % window[1]))
    out = torch.zeros_like(padded)
    d = C // num_heads
    for tokens in groups.values():
        rows, cols = [t[0] for t in tokens], [t[1] for t in tokens]
        offset = torch.tensor(
            [
                [
                    (q[2] - k[2] + window_size[0] - 1) * (2 * window_size[1] - 1) + (q[3] - k[3] + window_size[1] - 1)
                    for k in tokens
                ]
                for q in tokens
            ]
        )
        for b in range(B):
            qkv = linear(padded[b, rows, cols], p, "qkv")
            heads = []
            for head in range(num_heads):
                q, k, v = (qkv[:, part * C + head * d : part * C + (head + 1) * d] for part in range(3))
                heads.append(softmax_attention(q, k, v, 0.0 if table is None else table[:, head][offset]))
            out[b, rows, cols] = linear(torch.cat(heads, dim=1), p, "proj")
    return out[:, :H, :W]


def cross_shaped_attention(x, p, num_heads, window_size):
    """Half of the heads in vertical stripes, half in horizontal ones; a stripe is at most as wide as the grid."""
    B, H, W, C = x.shape
    qkv = linear(x, p, "qkv").reshape(B, H, W, 3, C)
    parts = []
    for i, (direction, stripe) in enumerate(
        (("vertical", min(W, window_size[1])), ("horizontal", min(H, window_size[0])))
    ):
        half = qkv[..., i * C // 2 : (i + 1) * C // 2]
        weight, bias = p[f"attns.{i}.get_v.weight"], p[f"attns.{i}.get_v.bias"]
        parts.append(stripe_attention(half, weight, bias, num_heads // 2, stripe, direction))
    return linear(torch.cat(parts, dim=-1), p, "proj")


def level_attention(x, p, num_heads, window_size, kind="window", shift=False):
    if kind == "cross_shaped":
        return cross_shaped_attention(x, p, num_heads, window_size)
    if shift or "relative_position_bias_table" not in p:
        if not shift:  # no bias is a bias of zeros
            rows = (2 * window_size[0] - 1) * (2 * window_size[1] - 1)
            p = {**p, "relative_position_bias_table": x.new_zeros(rows, num_heads)}
            return window_attention(x, p, num_heads, window_size)
        return shifted_window_attention(x, p, num_heads, window_size)
    return window_attention(x, p, num_heads, window_size)


def cross_attention(x, context, p, num_heads, window_size, x_is_fine, factor=2):
    """Each token of x attends to the tokens of the context that lie in the same window of the coarse grid."""
    B, H, W, C = x.shape
    coarse = context if x_is_fine else x
    h, w = min(coarse.shape[1], window_size[0]), min(coarse.shape[2], window_size[1])
    d = C // num_heads

    def window_of(y, x_, fine):
        return (y // factor // h, x_ // factor // w) if fine else (y // h, x_ // w)

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


def pool(x, factor=2, size=None):
    """Mean of the tokens that exist in each square of `factor`; sizes are divided by it, rounded up.

    With a factor of None: to `size`, each mean over all tokens of which a part lies in the region of the new one.
    """
    B, H, W, C = x.shape
    h, w = size if factor is None else (math.ceil(H / factor), math.ceil(W / factor))
    out = x.new_zeros(B, h, w, C)
    for y in range(h):
        for x_ in range(w):
            if factor is None:
                rows = slice(y * H // h, math.ceil((y + 1) * H / h))
                cols = slice(x_ * W // w, math.ceil((x_ + 1) * W / w))
            else:
                rows = slice(factor * y, min(factor * (y + 1), H))
                cols = slice(factor * x_, min(factor * (x_ + 1), W))
            out[:, y, x_] = x[:, rows, cols].mean(dim=(1, 2))
    return out


def linear_down(x, p, factor=2):
    """The tokens of a square side by side (zeros where there is none), projected from f * f * C to C."""
    B, H, W, C = x.shape
    f = factor
    out = x.new_zeros(B, math.ceil(H / f), math.ceil(W / f), C)
    for y in range(out.shape[1]):
        for x_ in range(out.shape[2]):
            square = [
                x[:, f * y + dy, f * x_ + dx] if f * y + dy < H and f * x_ + dx < W else x.new_zeros(B, C)
                for dy in range(f)
                for dx in range(f)
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


def window_bilinear(x, window_size, factor=2):
    """Phi of equation 2: to `factor` times the size, pixel centers at half (align_corners False), window by window."""
    B, H, W, C = x.shape
    h, w = min(H, window_size[0]), min(W, window_size[1])
    f = factor
    out = x.new_zeros(B, f * H, f * W, C)
    for y in range(f * H):
        for x_ in range(f * W):
            top, left = y // f // h * h, x_ // f // w * w
            rows, cols = range(top, min(top + h, H)), range(left, min(left + w, W))
            out[:, y, x_] = interpolate_at(x, (y + 0.5) / f - 0.5, (x_ + 0.5) / f - 0.5, rows, cols)
    return out


def bilinear(x, factor=2):
    """The same over the whole grid."""
    return window_bilinear(x, (x.shape[1], x.shape[2]), factor)


def bilinear_to(x, size):
    """The whole grid to any size, edges repeated."""
    B, H, W, C = x.shape
    out = x.new_zeros(B, *size, C)
    for y in range(size[0]):
        for x_ in range(size[1]):
            at = (y + 0.5) * H / size[0] - 0.5, (x_ + 0.5) * W / size[1] - 0.5
            out[:, y, x_] = interpolate_at(x, *at, range(H), range(W))
    return out


def nearest_to(x, size):
    """Each token of the result is that of x in whose region its upper left corner lies."""
    B, H, W, C = x.shape
    out = x.new_zeros(B, *size, C)
    for y in range(size[0]):
        for x_ in range(size[1]):
            out[:, y, x_] = x[:, y * H // size[0], x_ * W // size[1]]
    return out


def nearest(x, factor=2):
    return nearest_to(x, (factor * x.shape[1], factor * x.shape[2]))


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


def upsample(z, fine, p, mode, num_heads, window_size, factor=2):
    """Equation 2: from level output z to the size of the finer grid."""
    z = linear(gelu(layer_norm(z, p, "norm")), p, "proj")
    if "anti_alias" in p:
        z = z * gate(p["anti_alias"], z.shape[1:3])
    if mode == "cross_attention":
        fine = layer_norm(fine, p, "fine_norm")
        return cross_attention(fine, z, sub(p, "attn"), num_heads, window_size, True, factor)
    if factor is None:
        return (nearest_to if mode == "nearest" else bilinear_to)(z, fine.shape[1:3])
    if mode == "nearest":
        z = nearest(z, factor)
    else:
        z = window_bilinear(z, window_size, factor) if mode == "w_bilinear" else bilinear(z, factor)
    return z[:, : fine.shape[1], : fine.shape[2]]


def downsample(x, p, mode, num_heads=1, window_size=(7, 7), factor=2, size=None, x0=None, x0_factor=None):
    """Equation 1."""
    x = gelu(layer_norm(x, p, "norm"))
    if mode == "cross_attention":
        return cross_attention(pool(x, factor), x, sub(p, "attn"), num_heads, window_size, False, factor)
    if mode == "cross_attention_x0":
        context = gelu(layer_norm(x0, p, "x0_norm"))
        return cross_attention(pool(x, factor, size), context, sub(p, "attn"), num_heads, window_size, False, x0_factor)
    return linear_down(x, p, factor) if mode == "linear" else pool(x, factor, size)


def graft(
    x,
    p,
    levels,
    num_heads,
    window_size,
    down="avg_pool",
    up="w_bilinear",
    upsampled=True,
    factors=None,
    x0_factors=None,
    sizes=None,
    attention="window",
    shift=False,
):
    """Equations 1 to 3: Z1, and, if `upsampled`, the term up(Z1) of equation 4.

    `factors`, `x0_factors` and `sizes` are those of each level; by default each halves the one before.
    """
    factors = factors or [2] * levels
    x0_factors = x0_factors or [2 ** (b + 1) for b in range(levels)]
    sizes = sizes or [None] * levels
    grids = [x]
    for b in range(levels):
        q = sub(p, f"levels.{b}.down")
        more = {"factor": factors[b], "size": sizes[b], "x0": x, "x0_factor": x0_factors[b]}
        grids.append(downsample(grids[-1], q, down, num_heads, window_size, **more))
    above = None
    for b in range(levels, 0, -1):
        q = sub(p, f"levels.{b - 1}")
        normed = layer_norm(grids[b], q, "norm")
        attended = level_attention(normed, sub(q, "attn"), num_heads, window_size, attention, shift)
        z = grids[b] + attended
        if above is not None:
            z = z + above
        if b == 1 and not upsampled:
            return z
        above = upsample(z, grids[b - 1], sub(q, "up"), up, num_heads, window_size, factors[b - 1])
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
