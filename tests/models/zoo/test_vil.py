"""Vision Longformer's attention in windows, against dense attention with a mask."""

import pytest
import torch

from vitgraft.models.zoo.vil_blocks import FullAttention, WindowedAttention


def dense(attn: WindowedAttention, x: torch.Tensor) -> torch.Tensor:
    """All tokens to all tokens; forbidden pairs get -inf. Slow and obvious."""
    B, N, C = x.shape
    W, M, G = attn.size[1], attn.side, attn.global_tokens
    biased = attn.local_relative_position_bias_table is not None
    bias = torch.zeros(attn.num_heads, N, N, dtype=x.dtype)
    for q in range(N):
        for k in range(N):
            if q < G and k < G:
                bias[:, q, k] = attn.g2g_relative_position_bias[:, q, k] if biased else 0
            elif q < G:
                bias[:, q, k] = attn.g2l_relative_position_bias[0, :, q] if biased else 0
            elif k < G:
                bias[:, q, k] = attn.g2l_relative_position_bias[1, :, k] if biased else 0
            else:
                (qy, qx), (ky, kx) = divmod(q - G, W), divmod(k - G, W)
                if abs(qy // M - ky // M) > 1 or abs(qx // M - kx // M) > 1:
                    bias[:, q, k] = -torch.inf
                elif biased:
                    # for 7 x 7 windows: (dr + 13) * 27 + (dc + 13), query minus key
                    row = (qy - ky + 2 * M - 1) * (4 * M - 1) + qx - kx + 2 * M - 1
                    bias[:, q, k] = attn.local_relative_position_bias_table[row]
    q = attn.query(x)
    k, v = attn.kv(x).chunk(2, dim=-1)
    q, k, v = (t.view(B, N, attn.num_heads, -1).transpose(1, 2) for t in (q, k, v))
    weights = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5 + bias).softmax(-1)
    return attn.proj((weights @ v).transpose(1, 2).reshape(B, N, C))


def attention(cls, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    attn = cls(8, 2, **options, dtype=torch.float64)
    for p in attn.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return attn


@pytest.mark.parametrize("size", [(6, 6), (9, 12), (5, 8), (1, 1), (2, 10), (7, 3), (10, 4)], ids=str)
@pytest.mark.parametrize("rel_pos", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("global_tokens", [0, 1, 2])
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
def test_windows_against_dense(size, rel_pos, global_tokens, grad):
    attn = attention(WindowedAttention, size=size, window_size=3, global_tokens=global_tokens, rel_pos=rel_pos)
    x = torch.randn(2, global_tokens + size[0] * size[1], 8, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(attn(x), dense(attn, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(3, 4), (3, 2)], ids=str)
def test_small_maps_are_full_attention(size):
    """Within 2 x 2 windows every window sees every other: the other class, with a part of the same table."""
    windowed = attention(WindowedAttention, size=size, window_size=3, global_tokens=1)
    full = attention(FullAttention, size=size, global_tokens=1)
    side = 4 * 3 - 1
    table = windowed.local_relative_position_bias_table.view(side, side, -1)
    (H, W), center = size, 2 * 3 - 1
    table = table[center - H + 1 : center + H, center - W + 1 : center + W].flatten(0, 1)
    full.load_state_dict(
        {
            "local_relative_position_bias_table": table,
            "g2l_relative_position_bias": windowed.g2l_relative_position_bias,
            "g2g_relative_position_bias": windowed.g2g_relative_position_bias,
            "qkv.weight": torch.cat((windowed.query.weight, windowed.kv.weight)),
            "qkv.bias": torch.cat((windowed.query.bias, windowed.kv.bias)),
            "proj.weight": windowed.proj.weight,
            "proj.bias": windowed.proj.bias,
        }
    )
    x = torch.randn(2, 1 + H * W, 8, dtype=torch.float64)
    torch.testing.assert_close(full(x), windowed(x), rtol=0, atol=1e-12)


def test_every_token_is_a_query_once():
    attn = attention(WindowedAttention, size=(10, 8), window_size=3, global_tokens=2)
    queries = torch.cat([getattr(attn, f"queries{i}") for i in range(len(attn.kinds))])
    assert queries.sort().values.tolist() == list(range(2, 82))


def test_gradients_reach_every_table():
    attn = attention(WindowedAttention, size=(9, 9), window_size=3)
    attn(torch.randn(1, 82, 8, dtype=torch.float64)).square().sum().backward()
    for name, p in attn.named_parameters():
        assert p.grad.abs().sum() > 0, name
    # the whole table: queries and keys of neighboring windows are at most 5 apart in each direction
    assert (attn.local_relative_position_bias_table.grad.abs().sum(1) > 0).all()
