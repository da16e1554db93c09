"""The forward passes of the four families in NumPy and float64, written from their published code.

Parameters have their published names. Pixels are float64 [n, 3, 224, 224]; vectors have unit norm.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np

Parameters = Mapping[str, np.ndarray]
_erf = np.vectorize(math.erf)


def _linear(x: np.ndarray, p: Parameters, name: str) -> np.ndarray:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def _norm(x: np.ndarray, p: Parameters, name: str, epsilon: float) -> np.ndarray:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * p[f"{name}.weight"] + p[f"{name}.bias"]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def _quick_gelu(x: np.ndarray) -> np.ndarray:
    return x * _sigmoid(1.702 * x)


def _gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1.0 + _erf(x / math.sqrt(2.0)))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def _attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int) -> np.ndarray:
    """[n, a, d] over [n, b, d]: softmax of scaled products, by head."""
    q, k, v = (x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2) for x in (q, k, v))
    scores = q @ k.swapaxes(2, 3) / math.sqrt(q.shape[3])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = weights / weights.sum(-1, keepdims=True) @ v
    return mixed.swapaxes(1, 2).reshape(mixed.shape[0], mixed.shape[2], -1)


def _patches(pixels: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """A convolution whose stride is its size: [n, patches, d], rows of patches from the top."""
    n, side = len(pixels), weight.shape[2]
    across = pixels.shape[2] // side
    cut = pixels.reshape(n, 3, across, side, across, side).transpose(0, 2, 4, 1, 3, 5)
    return cut.reshape(n, across * across, -1) @ weight.reshape(len(weight), -1).T


def _with_class_token(tokens: np.ndarray, token: np.ndarray) -> np.ndarray:
    tokens_first = np.broadcast_to(token.reshape(1, 1, -1), (len(tokens), 1, tokens.shape[2]))
    return np.concatenate([tokens_first, tokens], axis=1)


def clip(pixels: np.ndarray, p: Parameters, heads: int) -> np.ndarray:
    """openai/CLIP, clip/model.py: VisionTransformer, with its LayerNorms of epsilon 1e-5."""
    x = _with_class_token(_patches(pixels, p["conv1.weight"]), p["class_embedding"])
    x = _norm(x + p["positional_embedding"], p, "ln_pre", 1e-5)
    for index in range(_depth(p, "transformer.resblocks.")):
        block = f"transformer.resblocks.{index}"
        y = _norm(x, p, f"{block}.ln_1", 1e-5)
        y = y @ p[f"{block}.attn.in_proj_weight"].T + p[f"{block}.attn.in_proj_bias"]
        x = x + _linear(_attention(*np.split(y, 3, axis=2), heads), p, f"{block}.attn.out_proj")
        y = _quick_gelu(_linear(_norm(x, p, f"{block}.ln_2", 1e-5), p, f"{block}.mlp.c_fc"))
        x = x + _linear(y, p, f"{block}.mlp.c_proj")
    return _unit(_norm(x[:, 0], p, "ln_post", 1e-5) @ p["proj"])


def _bicubic_axis(length: int, resized: int, scale: float) -> np.ndarray:
    """[resized, length] of torch's bicubic interpolation without antialias: A = -0.75, edges repeated."""
    a = -0.75
    found = np.zeros((resized, length))
    for index in range(resized):
        source = (index + 0.5) / scale - 0.5
        first = math.floor(source)
        for at in range(first - 1, first + 3):
            x = abs(source - at)
            near, far = ((a + 2) * x - (a + 3)) * x * x + 1, ((x - 5) * x + 8) * x * a - 4 * a
            found[index, min(max(at, 0), length - 1)] += near if x <= 1 else far
    return found


def _vit14(
    pixels: np.ndarray, p: Parameters, heads: int, mlp: Callable[[np.ndarray, str], np.ndarray]
) -> np.ndarray:
    """facebookresearch/dinov2, models/vision_transformer.py, under Franca's names of the parameters."""
    grid = p["pos_embed"][0, 1:].reshape(37, 37, -1)
    resampling = _bicubic_axis(37, 16, (16 + 0.1) / 37)
    positions = np.einsum("ia,jb,abd->ijd", resampling, resampling, grid).reshape(256, -1)
    x = _patches(pixels, p["patch_embed.proj.weight"]) + p["patch_embed.proj.bias"]
    x = _with_class_token(x, p["cls_token"]) + np.concatenate([p["pos_embed"][0, :1], positions])
    for index in range(_depth(p, "blocks.")):
        block = f"blocks.{index}"
        y = _linear(_norm(x, p, f"{block}.norm1", 1e-6), p, f"{block}.attn.qkv")
        y = _linear(_attention(*np.split(y, 3, axis=2), heads), p, f"{block}.attn.proj")
        x = x + p[f"{block}.ls1.gamma"] * y
        x = x + p[f"{block}.ls2.gamma"] * mlp(_norm(x, p, f"{block}.norm2", 1e-6), block)
    return _unit(_norm(x[:, 0], p, "norm", 1e-6))


def franca(pixels: np.ndarray, p: Parameters, heads: int) -> np.ndarray:
    """valeoai/Franca: DINOv2 with SwiGLU in the place of the MLP."""

    def swiglu(x: np.ndarray, block: str) -> np.ndarray:
        gate, value = np.split(_linear(x, p, f"{block}.mlp.w12"), 2, axis=2)
        return _linear(gate * _sigmoid(gate) * value, p, f"{block}.mlp.w3")

    return _vit14(pixels, p, heads, swiglu)


def dinov2(pixels: np.ndarray, p: Parameters, heads: int) -> np.ndarray:
    """facebookresearch/dinov2, from parameters under the names of its hub checkpoints."""
    plain = {
        "cls_token": p["embeddings.cls_token"],
        "pos_embed": p["embeddings.position_embeddings"],
        "patch_embed.proj.weight": p["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": p["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": p["layernorm.weight"],
        "norm.bias": p["layernorm.bias"],
    }
    for index in range(_depth(p, "encoder.layer.")):
        layer, block = f"encoder.layer.{index}", f"blocks.{index}"
        for end in ("weight", "bias"):
            parts = [p[f"{layer}.attention.attention.{part}.{end}"] for part in ("query", "key", "value")]
            plain[f"{block}.attn.qkv.{end}"] = np.concatenate(parts)
            plain[f"{block}.attn.proj.{end}"] = p[f"{layer}.attention.output.dense.{end}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                plain[f"{block}.{name}.{end}"] = p[f"{layer}.{name}.{end}"]
        for number in (1, 2):
            plain[f"{block}.ls{number}.gamma"] = p[f"{layer}.layer_scale{number}.lambda1"]

    def mlp(x: np.ndarray, block: str) -> np.ndarray:
        return _linear(_gelu(_linear(x, plain, f"{block}.mlp.fc1")), plain, f"{block}.mlp.fc2")

    return _vit14(pixels, plain, heads, mlp)


def siglip2(pixels: np.ndarray, p: Parameters, heads: int) -> np.ndarray:
    """google-research/big_vision, models/vit.py with pool_type "map", under transformers' names."""
    p = {name.removeprefix("vision_model."): values for name, values in p.items()}

    def mlp(x: np.ndarray, name: str) -> np.ndarray:
        return _linear(_gelu_tanh(_linear(x, p, f"{name}.fc1")), p, f"{name}.fc2")

    x = _patches(pixels, p["embeddings.patch_embedding.weight"]) + p["embeddings.patch_embedding.bias"]
    x = x + p["embeddings.position_embedding.weight"]
    for index in range(_depth(p, "encoder.layers.")):
        layer = f"encoder.layers.{index}"
        y = _norm(x, p, f"{layer}.layer_norm1", 1e-6)
        parts = (_linear(y, p, f"{layer}.self_attn.{part}_proj") for part in "qkv")
        x = x + _linear(_attention(*parts, heads), p, f"{layer}.self_attn.out_proj")
        x = x + mlp(_norm(x, p, f"{layer}.layer_norm2", 1e-6), f"{layer}.mlp")
    x = _norm(x, p, "post_layernorm", 1e-6)
    weights, biases = (np.split(p[f"head.attention.in_proj_{end}"], 3) for end in ("weight", "bias"))
    probe = np.broadcast_to(p["head.probe"], (len(x), *p["head.probe"].shape[1:]))
    q, k, v = (y @ w.T + b for y, w, b in zip((probe, x, x), weights, biases, strict=True))
    pooled = _linear(_attention(q, k, v, heads), p, "head.attention.out_proj")
    return _unit((pooled + mlp(_norm(pooled, p, "head.layernorm", 1e-6), "head.mlp"))[:, 0])


NETWORKS = {"clip": clip, "dinov2": dinov2, "franca": franca, "siglip2": siglip2}


def _depth(p: Parameters, prefix: str) -> int:
    return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in p if name.startswith(prefix))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
