"""Which device a name means, and whether it is there."""

from __future__ import annotations

import torch

from rlcore.config import ConfigError


def checked_device(device: str | torch.device) -> torch.device:
    """The torch device of a name.

    Raises:
        ConfigError: a ValueError: there is no such kind of device, or not so many of it here.
    """
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device is {device!r}, none of PyTorch's; use 'cpu', 'cuda' or 'cuda:0'") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        have = torch.cuda.device_count()
        raise ConfigError(f"device is '{device}' and PyTorch sees {have} CUDA devices here; use --device cpu")
    return device
