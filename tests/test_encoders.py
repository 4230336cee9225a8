"""Convolutional encoders and the random shift of images."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rlcore.config import ConfigError
from rlcore.encoders import CNN, CNNConfig, Encoders, random_shift


@pytest.mark.parametrize("side", [10, 16, 35, 36, 64, 84])
def test_the_default_is_chosen_by_size_and_fits(side: int) -> None:
    cnn = CNN((3, side, side), CNNConfig())
    kernels = [layer.kernel_size[0] for layer in cnn.convolutions if isinstance(layer, torch.nn.Conv2d)]
    assert kernels == ([8, 4, 3] if side >= 36 else [3, 3, 3] if side >= 16 else [3, 3])
    assert cnn(torch.rand(2, 5, 3, side, side)).shape == (2, 5, cnn.size)


def test_84_pixels_have_the_3136_features_of_the_paper() -> None:
    assert CNN((4, 84, 84), CNNConfig()).size == 3136


def test_the_arithmetic_is_that_of_the_layers_written_out() -> None:
    config = CNNConfig(
        channels=(4, 6), kernel_sizes=(5, 3), strides=(2, 1), pooling="max", padding=(2, 1), output_size=7,
        activation="elu", layer_norm=True,
    )  # fmt: skip
    cnn = CNN((2, 17, 20), config)
    image = torch.randint(0, 256, (3, 2, 17, 20), dtype=torch.uint8)
    (first, _, _, second, _, _), (linear, norm, _) = cnn.convolutions, cnn.projection
    x = image.double() / 255
    for layer, stride, margin in ((first, 2, 2), (second, 1, 1)):
        x = F.conv2d(x, layer.weight.double(), layer.bias.double(), stride, margin)
        x = F.max_pool2d(F.elu(x), 2)
    x = F.layer_norm(x.flatten(1) @ linear.weight.double().t() + linear.bias.double(), (7,))
    assert norm.weight.eq(1).all()
    torch.testing.assert_close(cnn(image).double(), F.elu(x), atol=1e-5, rtol=1e-5)


def test_bytes_and_floats_of_the_same_image_have_the_same_features() -> None:
    cnn = CNN((1, 16, 16), CNNConfig(global_pooling="average"))
    image = torch.randint(0, 256, (4, 1, 16, 16), dtype=torch.uint8)
    assert cnn.size == 64
    assert torch.equal(cnn(image), cnn(image.float() / 255))


def test_a_softmax_over_the_image_tells_where_a_channel_is_strong() -> None:
    """The mean row and column, from -1 to 1, written out place by place."""
    cnn = CNN((2, 7, 9), CNNConfig(channels=(3,), kernel_sizes=(3,), global_pooling="softmax", activation="tanh"))
    assert cnn.size == 6
    images = 3 * torch.randn(2, 2, 7, 9)
    for image, features in zip(images, cnn(images), strict=True):
        for channel, place in zip(cnn.convolutions(image).detach(), features.view(3, 2), strict=True):
            total = sum(math.exp(value) for row in channel.tolist() for value in row)
            expected = [0.0, 0.0]
            for i in range(5):
                for j in range(7):
                    share = math.exp(channel[i, j]) / total
                    expected[0] += share * (i / 2 - 1)
                    expected[1] += share * (j / 3 - 1)
            torch.testing.assert_close(place.detach(), torch.tensor(expected))
    bright = torch.zeros(1, 1, 5, 5)
    bright[0, 0, 4, 1] = 100
    follower = CNN((1, 5, 5), CNNConfig(channels=(1,), kernel_sizes=(1,), global_pooling="softmax"))
    torch.nn.init.ones_(follower.convolutions[0].weight)  # type: ignore[arg-type]
    torch.testing.assert_close(follower(bright), torch.tensor([[1.0, -0.5]]))
    assert "places" not in follower.state_dict()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"channels": ()}, "channels: .* set one or more numbers"),
        ({"channels": (8, 8), "strides": (1, 2, 3)}, "strides: .* set one number, or 2"),
        ({"channels": (8, 8), "padding": (1, 2, 3)}, "padding: .* set one number, or 2"),
        ({"channels": (8,), "padding": (-1,)}, "padding: .* numbers from 0 on"),
        ({"kernel_sizes": (3,)}, "kernel_sizes: .* set channels, which they belong to"),
        ({"channels": (8,), "kernel_sizes": (0,)}, "kernel_sizes: .* numbers from 1 on"),
        ({"output_size": 0}, "output_size"),
    ],
)
def test_impossible_settings_are_named(settings: dict[str, tuple[int, ...]], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        CNNConfig(**settings)  # type: ignore[arg-type]


def test_an_image_of_which_nothing_would_be_left_is_refused() -> None:
    with pytest.raises(ConfigError, match="an image of 12x64 is smaller than what convolution 3 needs"):
        CNN((1, 12, 64), CNNConfig(channels=(8, 8, 8), kernel_sizes=(4,), strides=(2,)))
    with pytest.raises(ConfigError, match=r"an image of 84x3 is .*; or, if 3 is its channels, let the env give \[C, H"):
        CNN((84, 84, 3), CNNConfig())


def shifted(image: Tensor, down: int, right: int) -> Tensor:
    """The picture through a window that is moved over one with its edges repeated, pixel by pixel."""
    result = torch.empty_like(image)
    _, height, width = image.shape
    for y in range(height):
        for x in range(width):
            result[:, y, x] = image[:, min(max(y + down, 0), height - 1), min(max(x + right, 0), width - 1)]
    return result


def test_random_shifts_are_whole_pixels_each_as_often_and_independent() -> None:
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, 9, 8), dtype=torch.uint8)
    moved = random_shift(image.expand(5000, -1, -1, -1), 2)
    known = {(dy, dx): shifted(image, dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)}
    counts = {shift: int((moved == picture).flatten(1).all(1).sum()) for shift, picture in known.items()}
    assert sum(counts.values()) == 5000 and moved.dtype == torch.uint8
    # 25 shifts with a mean of 200 and a deviation of 13.9
    assert all(abs(count - 200) < 4.5 * 13.9 for count in counts.values())
    assert random_shift(image[None], 0).equal(image[None])


def test_features_of_all_groups_and_the_vector_are_joined_in_order() -> None:
    shapes = {"front": (1, 12, 12), "wrist": (3, 10, 14)}
    encoders = Encoders(shapes, CNNConfig(output_size=5))
    images = {group: torch.rand(2, 4, *shape) for group, shape in shapes.items()}
    vector = torch.rand(2, 4, 3)
    joined = encoders(images, vector)
    parts = [cnn(images[group]) for group, cnn in zip(shapes, encoders.cnns, strict=True)]
    assert torch.equal(joined, torch.cat([*parts, vector], -1)) and encoders.size == 10
    assert torch.equal(encoders(images, vector[..., :0]), torch.cat(parts, -1))
