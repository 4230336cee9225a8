"""From image observations to features: convolutional encoders, and the random shift that learning from pixels needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rlcore.activations import MODULES, Activation
from rlcore.config import ConfigError, check

Shape = tuple[int, int, int]
"""Channels, height and width of an image."""


@dataclass(frozen=True, kw_only=True)
class CNNConfig:
    """Convolutions that read an image group; with channels at none they are chosen by the image's size."""

    channels: tuple[int, ...] | None = None
    """Filters of each convolution; none: by the shorter side of the image. From 36 pixels on those of Mnih et al. 2015
    (doi:10.1038/nature14236), 32, 64, 64 with kernels 8, 4, 3 and strides 4, 2, 1; from 16 pixels on the same with
    kernels of 3 and strides 2, 2, 1; below that 32, 64 with kernels of 3."""
    kernel_sizes: tuple[int, ...] = ()
    """Width of each convolution's kernel; one number holds for all; empty: 3."""
    strides: tuple[int, ...] = ()
    """Pixels from one place of the kernel to the next; one number holds for all; empty: 1."""
    padding: tuple[int, ...] = ()
    """Width of the zeros around what each convolution reads; one number holds for all; empty: 0."""
    pooling: Literal["none", "max", "average"] = "none"
    """After each convolution, of two by two places."""
    global_pooling: Literal["none", "max", "average", "softmax"] = "none"
    """After the last, of each channel over the whole image, in place of a feature for each place. softmax: the two
    coordinates, -1 to 1, of where the channel is strong, the mean place under a softmax over the image, as in Levine et
    al. 2016 (arXiv:1504.00702)."""
    layer_norm: bool = False
    """Layer normalization of the features (Ba et al. 2016, arXiv:1607.06450), as in DrQ-v2 (arXiv:2107.09645)."""
    activation: Activation = "relu"
    """Nonlinearity after each convolution, and after the linear layer."""
    output_size: int | None = None
    """Width of a linear layer after the convolutions; none: without one each place of each channel is a feature."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        count = None if self.channels is None else len(self.channels)
        check(count != 0, "channels", self.channels, "set one or more numbers, or none")
        for name, least in (("channels", 1), ("kernel_sizes", 1), ("strides", 1), ("padding", 0)):
            values = getattr(self, name) or ()
            check(all(value >= least for value in values), name, values, f"set numbers from {least} on")
        for name in ("kernel_sizes", "strides", "padding"):
            values = getattr(self, name)
            fits = not values or (count is not None and len(values) in (1, count))
            remedy = "set channels, which they belong to" if count is None else f"set one number, or {count}"
            check(fits, name, values, remedy)
        check(self.output_size is None or self.output_size >= 1, "output_size", self.output_size, "set at least 1")

    def layers(self, shape: Shape) -> list[tuple[int, int, int, int]]:
        """Channels, kernel, stride and padding of each convolution for images of this shape."""
        if self.channels is None:
            side = min(shape[1:])
            if side < 16:
                return [(32, 3, 1, 0), (64, 3, 1, 0)]
            large = [(32, 8, 4, 0), (64, 4, 2, 0), (64, 3, 1, 0)]
            return large if side >= 36 else [(32, 3, 2, 0), (64, 3, 2, 0), (64, 3, 1, 0)]
        count = len(self.channels)
        kernels, strides, margins = (
            values * (count if len(values) == 1 else 1) or (default,) * count
            for values, default in ((self.kernel_sizes, 3), (self.strides, 1), (self.padding, 0))
        )
        return list(zip(self.channels, kernels, strides, margins, strict=True))


class CNN(nn.Module):
    """Convolutions, activations and pooling, to a vector of features.

    Args:
        shape: channels, height and width of an image.
        config: see ``CNNConfig``.
        init: ``orthogonal`` with gain sqrt 2 and zero biases, or PyTorch's default.

    Raises:
        ConfigError: nothing is left of an image of this shape.
    """

    def __init__(self, shape: Shape, config: CNNConfig, init: str = "orthogonal") -> None:
        super().__init__()
        self.shape = shape
        layers: list[nn.Module] = []
        channels, *size = shape
        pools: dict[str, Any] = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}
        for number, (filters, kernel, stride, margin) in enumerate(config.layers(shape)):
            size = [(side + 2 * margin - kernel) // stride + 1 for side in size]
            if config.pooling != "none":
                size = [side // 2 for side in size]
            if min(size) < 1:
                remedy = "set fewer channels, smaller kernel_sizes or strides, or padding"
                if shape[2] < min(shape[:2]):  # of channels last, as far as one can see
                    remedy += f"; or, if {shape[2]} is its channels, let the env give [C, H, W]"
                raise ConfigError(
                    f"cnn: an image of {shape[1]}x{shape[2]} is smaller than what convolution {number + 1} needs; "
                    f"{remedy}"
                )
            layers += [nn.Conv2d(channels, filters, kernel, stride, margin), MODULES[config.activation]()]
            if config.pooling != "none":
                layers.append(pools[config.pooling](2))
            channels = filters
        self.convolutions = nn.Sequential(*layers)
        self.global_pooling = config.global_pooling
        features = channels * {"none": math.prod(size), "softmax": 2}.get(config.global_pooling, 1)
        places = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in size), indexing="ij")
        self.places: Tensor  # [H * W, 2]
        # Not in the state: they follow from the configuration and the image's size.
        self.register_buffer("places", torch.stack(places, -1).view(-1, 2), persistent=False)
        self.projection = nn.Sequential()
        if config.output_size is not None:
            self.projection.append(nn.Linear(features, config.output_size))
            features = config.output_size
        if config.layer_norm:
            self.projection.append(nn.LayerNorm(features))
        if config.output_size is not None:
            self.projection.append(MODULES[config.activation]())
        self.size = features
        """Number of features."""
        if init == "orthogonal":
            for layer in self.modules():
                if isinstance(layer, (nn.Conv2d, nn.Linear)):
                    nn.init.orthogonal_(layer.weight, math.sqrt(2))
                    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        """Map images ``[..., C, H, W]``, uint8 of 0..255 or float32 as it is, to features ``[..., size]``."""
        before = image.shape[:-3]
        x = self.convolutions(scaled(image).reshape(-1, *self.shape))
        if self.global_pooling == "max":
            x = x.amax((-2, -1))
        elif self.global_pooling == "average":
            x = x.mean((-2, -1))
        elif self.global_pooling == "softmax":
            x = torch.softmax(x.flatten(2), -1) @ self.places  # [B, C, 2]
        return self.projection(x.flatten(1)).reshape(*before, self.size)  # type: ignore[no-any-return]


def scaled(image: Tensor) -> Tensor:
    """Images ``[..., C, H, W]`` as float32: uint8 scaled from 0..255 to 0..1, float32 as it is."""
    return image.float() / 255 if image.dtype == torch.uint8 else image


def random_shift(images: Tensor, pixels: int) -> Tensor:
    """Move each image by up to ``pixels`` each way, its edges repeated: the augmentation of DrQ-v2 (arXiv:2107.09645).

    By whole pixels, drawn for each image from the device's default generator, as in DrQ (arXiv:2004.13649): no
    interpolation, so that uint8 stays uint8.

    Args:
        images: ``[B, C, H, W]``.
        pixels: the largest shift; 0 for none.

    Returns:
        Images of the same shape and type.
    """
    if pixels == 0:
        return images
    batch, _, height, width = images.shape
    shift = torch.randint(-pixels, pixels + 1, (2, batch, 1), device=images.device)
    rows = (torch.arange(height, device=images.device) + shift[0]).clamp(0, height - 1)  # [B, H]
    columns = (torch.arange(width, device=images.device) + shift[1]).clamp(0, width - 1)  # [B, W]
    picked = images.gather(2, rows[:, None, :, None].expand_as(images))
    return picked.gather(3, columns[:, None, None, :].expand_as(images))


class Encoders(nn.Module):
    """One encoder for each image group, whose features go before those of the vectors.

    Args:
        shapes: of the image groups, in the order in which features are joined.
        config: of all of them.
        init: see ``CNN``.
        shared: encoders whose own are taken for groups that those read, too.
    """

    def __init__(
        self,
        shapes: Mapping[str, Shape],
        config: CNNConfig,
        init: str = "orthogonal",
        shared: Encoders | None = None,
    ) -> None:
        super().__init__()
        self.groups = tuple(shapes)
        there = {} if shared is None else dict(zip(shared.groups, shared.cnns, strict=True))
        cnns = (there[group] if group in there else CNN(shape, config, init) for group, shape in shapes.items())
        self.cnns: nn.ModuleList = nn.ModuleList(cnns)
        self.size = sum(cnn.size for cnn in self.cnns)  # type: ignore[misc]
        """Number of features of all groups."""

    def forward(self, images: Mapping[str, Tensor], vector: Tensor) -> Tensor:
        """Join the features of images ``[..., C, H, W]`` and a vector ``[..., O]``, which may be of size 0."""
        return self.join(self.features(images), vector)

    def features(
        self, images: Mapping[str, Tensor], known: Mapping[nn.Module, Tensor] | None = None
    ) -> dict[nn.Module, Tensor]:
        """Features ``[..., size]`` by encoder; of those that are ``known`` as they are."""
        known = known or {}
        pairs = zip(self.groups, self.cnns, strict=True)
        return {cnn: known[cnn] if cnn in known else cnn(images[group]) for group, cnn in pairs}

    def join(self, features: Mapping[nn.Module, Tensor], vector: Tensor) -> Tensor:
        """Put features, by encoder, before a vector ``[..., O]``."""
        parts = [features[cnn] for cnn in self.cnns]
        if not parts:
            return vector
        return torch.cat([*parts, vector], -1) if vector.shape[-1] else torch.cat(parts, -1)
