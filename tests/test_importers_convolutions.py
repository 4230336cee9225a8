"""Convolutions in other libraries' settings become those of ours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_importers import RL_GAMES, RSL_RL, RSL_RL_OLD, SB3, SKRL, agent, changed, converted, row

from rlcore.config import ConfigError, from_dict
from rlcore.encoders import CNN, CNNConfig
from rlcore.train.importers.convert import convert

CNN_CFG: dict[str, Any] = {"output_channels": [8, 16], "kernel_size": [5, 3], "stride": [2, 1], "activation": "relu"}
CONV: dict[str, Any] = {"filters": 32, "kernel_size": 8, "strides": 4, "padding": 0}
PICTURES: dict[str, Any] = {
    "name": "features",
    "input": 'permute(OBSERVATIONS["camera"], (0, 3, 1, 2))',
    "layers": [{"conv2d": {"out_channels": 32, "kernel_size": 8, "stride": 4}}, {"conv2d": [64, 4, 2, 1]}, "flatten"],
    "activations": "relu",
}
NET: dict[str, Any] = {"name": "net", "input": "features", "layers": [512], "activations": "elu"}


def built(settings: dict[str, Any]) -> CNNConfig:
    return from_dict(CNNConfig, settings, source="converted")


def test_rsl_rl_model_of_convolutions() -> None:
    conversion = converted("rsl_rl", actor__class_name="CNNModel", actor__cnn_cfg=CNN_CFG)
    ours = agent(conversion)
    assert ours["actor"]["cnn"] == {
        "channels": [8, 16], "kernel_sizes": [5, 3], "strides": [2, 1], "padding": [], "activation": "relu",
        "pooling": "none", "global_pooling": "none",
    }  # fmt: skip
    assert "cnn" not in ours["critic"] and ours["actor_obs"] == ["policy", "camera"]
    assert not [r.key for r in conversion.rows if r.status in ("dropped", "changed") and "cnn" in r.key]
    old = converted("rsl_rl", RSL_RL_OLD, policy__class_name="ActorCriticCNN", policy__critic_cnn_cfg=CNN_CFG)
    assert agent(old)["critic"]["cnn"] == ours["actor"]["cnn"] and row(old, "policy.class_name").status == "kept"


@pytest.mark.parametrize(
    ("change", "key", "ours"),
    [
        ({"padding": "reflect"}, "padding", {"padding": [2, 1]}),
        ({"max_pool": [True, False]}, "max_pool", {"pooling": "max"}),
    ],
)
def test_what_rsl_rl_does_a_little_differently_is_told(change: dict[str, Any], key: str, ours: dict[str, Any]) -> None:
    conversion = converted("rsl_rl", actor__cnn_cfg=CNN_CFG | change)
    assert row(conversion, f"actor.cnn_cfg.{key}").status == "changed"
    assert agent(conversion)["actor"]["cnn"].items() >= ours.items()


@pytest.mark.parametrize("change", [{"dilation": 2}, {"norm": ["batch", "none"]}, {"flatten": False}, {"depth": 1}])
def test_what_convolutions_of_rsl_rl_have_besides_is_dropped(change: dict[str, Any]) -> None:
    key = next(iter(change))
    assert row(converted("rsl_rl", actor__cnn_cfg=CNN_CFG | change), f"actor.cnn_cfg.{key}").status == "dropped"
    off = CNN_CFG | {"dilation": [1, 1], "norm": "none", "flatten": True, "max_pool": False}
    conversion = converted("rsl_rl", actor__cnn_cfg=off, algorithm__share_cnn_encoders=False)
    assert not [r for r in conversion.rows if r.status == "dropped"], "switched off is no loss"


def test_rsl_rl_encoders_by_group_and_shared_ones() -> None:
    groups = {"left": CNN_CFG, "right": CNN_CFG, "far": CNN_CFG | {"stride": 2}}
    conversion = converted("rsl_rl", actor__cnn_cfg=groups, algorithm__share_cnn_encoders=True)
    assert agent(conversion)["actor"]["cnn"]["strides"] == [2, 1]
    assert row(conversion, "actor.cnn_cfg.right").status == "kept"
    assert row(conversion, "actor.cnn_cfg.far").status == row(conversion, "algorithm.share_cnn_encoders").status
    assert row(conversion, "actor.cnn_cfg.far").status == "dropped"


@pytest.mark.parametrize(("module", "status"), [("mjlab.rl.spatial_softmax", "kept"), ("my.models", "changed")])
def test_models_that_pool_by_a_softmax_over_the_image(module: str, status: str) -> None:
    name = f"{module}:SpatialSoftmaxCNNModel"
    given = CNN_CFG | {"spatial_softmax": True, "spatial_softmax_temperature": 0.5}
    conversion = converted("rsl_rl", actor__class_name=name, actor__cnn_cfg=given)
    assert agent(conversion)["actor"]["cnn"]["global_pooling"] == "softmax"
    assert row(conversion, "actor.class_name").status == status
    assert row(conversion, "actor.cnn_cfg.spatial_softmax_temperature").status == "dropped"


def test_rsl_rl_without_channels_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"actor.cnn_cfg.output_channels: None cannot be converted"):
        converted("rsl_rl", actor__cnn_cfg={"kernel_size": [3]})


@pytest.mark.parametrize("padding", ["none", "zeros"])
@pytest.mark.parametrize("softmax", [False, True])
def test_features_are_those_of_rsl_rl(padding: str, softmax: bool) -> None:
    """With its own module and the same weights."""
    modules: Any = pytest.importorskip("rsl_rl.modules", reason="rsl_rl is not installed")
    given = {"output_channels": [4, 6, 5], "kernel_size": [8, 4, 3], "stride": [4, 2, 1], "padding": padding}
    settings: dict[str, Any] = {"actor__cnn_cfg": given}
    theirs: Any = modules.CNN((64, 48), 2, **given)
    if softmax:
        mjlab: Any = pytest.importorskip("mjlab.rl.spatial_softmax", reason="mjlab is not installed")
        theirs = mjlab.SpatialSoftmaxCNN((64, 48), 2, **given)
        settings["actor__class_name"] = "mjlab.rl.spatial_softmax:SpatialSoftmaxCNNModel"
    ours = CNN((2, 64, 48), built(agent(converted("rsl_rl", **settings))["actor"]["cnn"]))
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        mine.data.copy_(other.data)
    image = torch.rand(3, 2, 64, 48)
    torch.testing.assert_close(ours(image), theirs(image))


def test_rl_games_convolutions() -> None:
    cnn = {"type": "conv2d", "activation": "relu", "permute_input": False, "initializer": {"name": "default"}}
    second = {"filters": 64, "kernel_size": [3, 3], "strides": 4, "padding": 1}
    cnn |= {"regularizer": {"name": "None"}, "convs": [CONV, second]}
    conversion = converted("rl_games", params__network__cnn=cnn)
    expected = {
        "channels": [32, 64], "kernel_sizes": [8, 3], "strides": [4, 4], "padding": [0, 1], "activation": "relu",
        "global_pooling": "none",
    }  # fmt: skip
    assert agent(conversion)["actor"]["cnn"] == agent(conversion)["critic"]["cnn"] == expected
    built(expected)
    assert {row(conversion, f"params.network.cnn.{name}").status for name in cnn} == {"kept"}
    assert row(conversion, "(running normalization of pictures)").status == "changed"
    central = changed(RL_GAMES, params__config__central_value_config={"network": {"mlp": {"units": [8]}, "cnn": cnn}})
    assert "cnn" not in agent(converted("rl_games", central))["actor"]
    assert agent(converted("rl_games", central))["critic"]["cnn"] == expected


@pytest.mark.parametrize(
    ("change", "key", "status"),
    [
        ({"type": "coord_conv2d"}, "params.network.cnn.type", "changed"),
        ({"type": "conv1d"}, "params.network.cnn", "dropped"),
        ({"initializer": {"name": "orthogonal_initializer"}}, "params.network.cnn.initializer", "dropped"),
        ({"convs": [{**CONV, "dilation": 2}]}, "params.network.cnn.convs.0.dilation", "dropped"),
    ],
)
def test_what_convolutions_of_rl_games_have_besides_is_told(change: dict[str, Any], key: str, status: str) -> None:
    cnn = {"type": "conv2d", "activation": "relu", "convs": [CONV], **change}
    assert row(converted("rl_games", params__network__cnn=cnn), key).status == status


def test_rl_games_softargmax() -> None:
    cnn = {"type": "conv2d_spatial_softargmax", "activation": "elu", "convs": [CONV]}
    assert agent(converted("rl_games", params__network__cnn=cnn))["actor"]["cnn"]["global_pooling"] == "softmax"


@pytest.mark.parametrize(
    ("convs", "text"),
    [
        ([], "give a list of convolutions"),
        ([{"filters": 8, "kernel_size": 3, "strides": 1}], "a convolution has no padding"),
        ([CONV | {"kernel_size": [3, 5]}], "not as high as it is wide"),
    ],
)
def test_convolutions_that_cannot_be_meant_are_refused(convs: list[Any], text: str) -> None:
    with pytest.raises(ConfigError, match=rf"params\.network\.cnn\.convs: .* cannot be converted: .*{text}"):
        converted("rl_games", params__network__cnn={"activation": "relu", "convs": convs})


def skrl(*blocks: dict[str, Any]) -> Any:
    return converted("skrl", models__policy__network=list(blocks))


def test_skrl_convolutions_alone() -> None:
    plain = PICTURES | {"input": "permute(OBSERVATIONS, (0, 3, 1, 2))"}
    conversion = skrl(plain, NET)
    ours = agent(conversion)
    assert ours["actor"]["cnn"] == {
        "channels": [32, 64], "kernel_sizes": [8, 4], "strides": [4, 2], "padding": [0, 1], "activation": "relu",
    }  # fmt: skip
    built(ours["actor"]["cnn"])
    assert ours["actor"]["hidden_dims"] == [512] and ours["actor"]["activation"] == "elu"
    assert ours["actor_obs"] == ["policy"]
    assert {r.status for r in conversion.rows if r.key == "models.policy.network"} == {"kept"}


def test_skrl_linear_layers_after_convolutions_are_hidden_layers_where_nothing_is_joined() -> None:
    layers = [*PICTURES["layers"], {"linear": 256}]
    ours = agent(skrl(PICTURES | {"layers": layers, "activations": ["relu", "relu", None, "elu"]}, NET))
    assert ours["actor"]["hidden_dims"] == [256, 512] and ours["actor"]["activation"] == "elu"
    assert "output_size" not in ours["actor"]["cnn"] and ours["actor_obs"] == ["policy/camera"]


def test_skrl_pictures_and_vectors_meet_after_a_linear_layer() -> None:
    layers = [*PICTURES["layers"], {"linear": 512}, {"linear": 16}]
    activations = ["relu", "relu", None, "tanh", "tanh"]
    net = NET | {"input": 'concatenate([features, OBSERVATIONS["speeds"]])', "layers": [32, 32]}
    conversion = skrl(PICTURES | {"layers": layers, "activations": activations}, net)
    ours = agent(conversion)
    assert ours["actor"]["hidden_dims"] == [32, 32] and ours["actor"]["cnn"]["output_size"] == 16
    assert ours["actor"]["cnn"]["activation"] == "relu" and ours["actor_obs"] == ["policy", "policy/camera"]
    notes = " ".join(r.note for r in conversion.rows if r.key == "models.policy.network")
    assert "one activation for all layers: relu" in notes and "the last one is kept" in notes


def test_skrl_vectors_with_layers_of_their_own_meet_pictures_before_them() -> None:
    state = {"name": "state", "input": "OBSERVATIONS[1]", "layers": [16], "activations": "elu"}
    conversion = skrl(PICTURES, state, NET | {"input": "concatenate([features, state])"})
    assert agent(conversion)["actor"]["hidden_dims"] == [16, 512]
    notes = " ".join(r.note for r in conversion.rows if r.key == "models.policy.network")
    assert "vectors meet the features of pictures before all hidden layers" in notes


def test_skrl_options_of_convolutions_without_equal_are_told() -> None:
    block = PICTURES | {"layers": [{"conv2d": {"features": 8, "kernel_size": 3, "dilation": 2, "use_bias": False}}]}
    rows = [r for r in skrl(block, NET).rows if r.key == "models.policy.network" and r.status == "dropped"]
    assert [r.note for r in rows] == ["conv2d has no dilation here", "conv2d always has a bias here"]
    with pytest.raises(ConfigError, match="conv2d needs out_channels and kernel_size"):
        skrl(PICTURES | {"layers": [{"conv2d": [8]}]}, NET)


def test_sb3_policies_of_pictures() -> None:
    conversion = converted("sb3", changed(SB3, policy="CnnPolicy"))
    ours = agent(conversion)["actor"]
    assert ours["hidden_dims"] == [] and ours["cnn"]["output_size"] == 512
    plain = built(ours["cnn"])
    assert plain.layers((4, 84, 84)) == CNNConfig().layers((4, 84, 84)), "NatureCNN is the default of large images"
    assert row(conversion, "policy").status == "kept"
    several = "dict(features_extractor_kwargs=dict(cnn_output_dim=64))"
    ours = agent(converted("sb3", changed(SB3, policy="MultiInputPolicy", policy_kwargs=several)))["critic"]
    assert ours["hidden_dims"] == [64, 64] and ours["cnn"]["output_size"] == 64


@pytest.mark.parametrize(("algo", "layers"), [("sac", [256, 256]), ("td3", [256, 256])])
def test_sb3_policies_of_pictures_off_policy(algo: str, layers: list[int]) -> None:
    source = {"n_timesteps": 1e5, "policy": "CnnPolicy"}
    conversion = convert(source, "sb3", num_envs=1, task="gym:CarRacing-v3", algo=algo)
    for net in ("actor", "critic"):
        ours = agent(conversion)[net]
        assert ours["hidden_dims"] == layers and ours["cnn"]["output_size"] == 512
    assert "policy_kwargs.share_features_extractor" not in [r.key for r in conversion.rows]


def test_all_of_them_train_a_network_that_reads_pictures() -> None:
    for settings in (
        agent(converted("rsl_rl", RSL_RL, actor__cnn_cfg=CNN_CFG))["actor"]["cnn"],
        agent(converted("skrl", SKRL, models__policy__network=[PICTURES, NET]))["actor"]["cnn"],
    ):
        assert CNN((3, 48, 48), built(settings))(torch.rand(2, 3, 48, 48)).shape[0] == 2
