"""Nonlinearities by the names that settings give them."""

from __future__ import annotations

from typing import Literal

from torch import nn

Activation = Literal["elu", "relu", "tanh", "silu", "gelu", "leaky_relu", "selu"]

MODULES: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "selu": nn.SELU,
}
"""The layer of each."""
