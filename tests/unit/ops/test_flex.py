"""Attention under a rule of places."""

import torch

from flame.ops.flex import create_block_mask_compiled, flex_attention_compiled


def test_each_query_sees_the_keys_of_its_rule():
    def rule(b, h, query, key):
        return ((query // 7 == key // 7) | (key % 7 == 0)) & (query >= key)

    q, k, v = (torch.randn(2, 3, 300, 16, requires_grad=True) for _ in range(3))
    mask = create_block_mask_compiled(rule, None, None, 300, 300)
    o = flex_attention_compiled(q, k, v, block_mask=mask)
    places = torch.arange(300)
    seen = rule(0, 0, places[:, None], places)
    expected = ((q @ k.mT) / 4).masked_fill(~seen, -torch.inf).softmax(-1) @ v
    torch.testing.assert_close(o, expected, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(*(torch.autograd.grad(y.square().sum(), (q, k, v)) for y in (o, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_without_a_rule_every_key_is_seen():
    q = torch.randn(1, 2, 9, 8)
    torch.testing.assert_close(flex_attention_compiled(q, q, q), torch.softmax(q @ q.mT / 8**0.5, -1) @ q)
