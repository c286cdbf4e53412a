"""The same network, loss and optimizer in idiomatic PyTorch: the baseline of benchmark.py."""

from collections.abc import Callable

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

from jaxcalc import ModelConfig, Params
from jaxcalc.model import NORM_EPSILON


class Block(nn.Module):
    """Pre-norm attention and feed-forward layers."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.d_model
        self.n_heads = config.n_heads
        self.attention_norm, self.mlp_norm = nn.RMSNorm(d, eps=NORM_EPSILON), nn.RMSNorm(d, eps=NORM_EPSILON)
        self.query, self.key, self.value, self.out = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(d, config.d_ff, bias=False), nn.Linear(config.d_ff, d, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.attention_norm(x)
        split = (*x.shape[:2], self.n_heads, -1)
        query, key, value = (f(normed).view(split).transpose(1, 2) for f in (self.query, self.key, self.value))
        query, key = (functional.rms_norm(y, y.shape[-1:], eps=NORM_EPSILON) for y in (query, key))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(functional.relu(self.up(self.mlp_norm(x))))


class Model(nn.Module):
    """Token ids `[B, T]` → logits `[B, T, V]`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.token = nn.Embedding(config.vocab_size, config.d_model)
        self.position = nn.Embedding(config.context_length, config.d_model)
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.n_layers)))
        self.norm = nn.RMSNorm(config.d_model, eps=NORM_EPSILON)
        self.unembed = nn.Linear(config.d_model, config.vocab_size, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.token(tokens) + self.position.weight[: tokens.shape[1]]
        return self.unembed(self.norm(self.blocks(x)))


def to_torch(params: Params) -> dict[str, np.ndarray]:
    """Return jaxcalc's parameters under PyTorch's names and with its order of axes, outputs first."""
    weights = {
        "token.weight": params["embed"]["token"],
        "position.weight": params["embed"]["position"],
        "norm.weight": params["output"]["norm"],
        "unembed.weight": params["output"]["unembed"].T,
    }
    for index, block in enumerate(params["blocks"]):
        attention, mlp, d_model = block["attention"], block["mlp"], params["embed"]["token"].shape[1]
        by_name = {name: attention[name].reshape(d_model, -1).T for name in ("query", "key", "value")}
        by_name |= {"out": attention["out"].reshape(-1, d_model).T, "up": mlp["up"].T, "down": mlp["down"].T}
        by_name |= {"attention_norm": attention["norm"], "mlp_norm": mlp["norm"]}
        weights |= {f"blocks.{index}.{name}.weight": weight for name, weight in by_name.items()}
    return {name: np.array(weight) for name, weight in weights.items()}


def train_step(
    config: ModelConfig,
    tokens: np.ndarray,
    mask: np.ndarray,
    learning_rate: float,
    weight_decay: float,
    clip_norm: float,
    weights: dict[str, np.ndarray],
    compiled: bool = False,
) -> Callable[[], torch.Tensor]:
    """Return a function that takes one step of AdamW on a batch, always the same one, and returns the loss.

    Args:
      tokens: `[B, T + 1]`.
      mask: `[B, A]`, 1 for answer tokens that count.
      weights: the first weights, as `to_torch` makes them.
      compiled: whether to use `torch.compile`.
    """
    model = Model(config)
    model.load_state_dict({name: torch.tensor(weight) for name, weight in weights.items()})
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    # The batch keeps its size, so the program need not serve others.
    forward = torch.compile(model, dynamic=False) if compiled else model
    inputs = torch.from_numpy(tokens[:, :-1].astype(np.int64))
    targets = torch.from_numpy(tokens[:, 1:].astype(np.int64))
    targets[:, : -mask.shape[1]] = -100  # the loss ignores these
    targets[:, -mask.shape[1] :][torch.from_numpy(mask == 0)] = -100

    def step() -> torch.Tensor:
        logits = forward(inputs)
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        return loss.detach()

    return step
