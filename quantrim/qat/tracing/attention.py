"""Multi-head attention in terms of functions that can be intercepted.

``F.multi_head_attention_forward`` is one opaque call for a function mode, though most of its work is two
linear layers. While quantrim watches, it is computed by the functions below instead.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from quantrim.errors import ModelError

_SIGNATURE = inspect.signature(F.multi_head_attention_forward)
#: Options that no vision transformer uses; better refused than computed wrongly.
_UNSUPPORTED = ("bias_k", "bias_v", "static_k", "static_v", "add_zero_attn")


def multi_head_attention(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """Same arguments and results as ``F.multi_head_attention_forward``.

    Raises:
        ModelError: an option is used that this form doesn't have.
    """
    call = _SIGNATURE.bind(*args, **kwargs)
    call.apply_defaults()
    given = call.arguments
    for option in _UNSUPPORTED:
        if given[option] is not None and given[option] is not False:
            raise ModelError(f"nn.MultiheadAttention with {option} can't be quantized; skip the module.")
    batched = given["query"].dim() == 3
    query, key, value = (
        given[name] if batched else given[name].unsqueeze(1) for name in ("query", "key", "value")
    )
    heads, size = given["num_heads"], given["embed_dim_to_check"]
    queries, keys, values = _projections(query, key, value, given, size)
    mixed, weights = _attend(queries, keys, values, heads, given)
    joined = mixed.permute(2, 0, 1, 3).reshape(query.shape[0], query.shape[1], size)
    output = F.linear(joined, given["out_proj_weight"], given["out_proj_bias"])
    if weights is not None and given["average_attn_weights"]:
        weights = weights.mean(dim=1)
    if not batched:
        output = output.squeeze(1)
        weights = None if weights is None else weights.squeeze(0)
    return output, weights


def _projections(
    query: Tensor, key: Tensor, value: Tensor, given: dict[str, Any], size: int
) -> tuple[Tensor, Tensor, Tensor]:
    bias = given["in_proj_bias"]
    if not given["use_separate_proj_weight"] and query is key and key is value:
        first, second, third = F.linear(query, given["in_proj_weight"], bias).split(size, dim=-1)  # type: ignore[no-untyped-call]
        return first, second, third
    if given["use_separate_proj_weight"]:
        matrices = [given[f"{name}_proj_weight"] for name in ("q", "k", "v")]
    else:
        matrices = list(given["in_proj_weight"].split(size))
    biases = [None] * 3 if bias is None else list(bias.split(size))
    first, second, third = (
        F.linear(source, matrix, part)
        for source, matrix, part in zip((query, key, value), matrices, biases, strict=True)
    )
    return first, second, third


def _attend(
    queries: Tensor, keys: Tensor, values: Tensor, heads: int, given: dict[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """Attention over (length, batch, size) tensors; result (batch, heads, length, size of a head)."""
    queries, keys, values = (_by_head(tensor, heads) for tensor in (queries, keys, values))
    mask = _joined_mask(given, queries.shape[0], heads)
    dropout = given["dropout_p"] if given["training"] else 0.0
    if not given["need_weights"]:
        causal = bool(given["is_causal"]) and mask is None
        return F.scaled_dot_product_attention(queries, keys, values, mask, dropout, causal), None
    scores = torch.matmul(queries * queries.shape[-1] ** -0.5, keys.transpose(-2, -1))
    weights = F.softmax(scores if mask is None else scores + mask, dim=-1)
    return torch.matmul(F.dropout(weights, dropout), values), weights


def _by_head(tensor: Tensor, heads: int) -> Tensor:
    length, batch, size = tensor.shape
    return tensor.reshape(length, batch, heads, size // heads).permute(1, 2, 0, 3)


def _joined_mask(given: dict[str, Any], batch: int, heads: int) -> Tensor | None:
    """Attention mask and key padding mask as one float tensor that broadcasts against the scores."""
    mask = given["attn_mask"]
    if mask is not None:
        mask = _as_float(mask, given["query"].dtype)
        mask = mask.reshape(batch, heads, *mask.shape[-2:]) if mask.dim() == 3 else mask
    padding = given["key_padding_mask"]
    if padding is not None:
        padding = _as_float(padding, given["query"].dtype).reshape(batch, 1, 1, -1)
        mask = padding if mask is None else mask + padding
    return mask


def _as_float(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))
