"""What an update of one policy for several tasks costs beside policies of one task, at as many samples.

    python benchmarks/several_tasks.py --device cuda --num-envs 6144 --kernels 20

The tasks are ``Null`` envs with the numbers of observations and actions of robots (Go1, G1 and an arm with its cube);
the one policy has a third of the envs in each. All take turns, round after round, with the device idle at both ends of
an update. ``--kernels`` lists where an update of the one policy, and of the largest task, spends a GPU's time.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from meta_gradient import seconds
from timing import spread

from rlcore.env import VecEnv
from rlcore.envs.multi_task import MultiTask
from rlcore.envs.null import Null
from rlcore.networks import NetworkConfig
from rlcore.ppo import PPO, PPOConfig

ROBOTS = {"Go1": (48, 12), "G1": (99, 29), "Lift-Cube": (29, 7)}
"""Numbers that an actor reads and gives."""


def agents(num_envs: int, device: str, heads: bool) -> dict[str, PPO]:
    """One policy for all, and one for each, that have learned from a rollout, or as many as recording takes."""
    rollouts = 4 if torch.device(device).type == "cuda" else 1
    share = num_envs // len(ROBOTS)
    made = {name: Null(num_envs, device, 1, obs, actions) for name, (obs, actions) in ROBOTS.items()}
    parts = {name: Null(share, device, 1, obs, actions) for name, (obs, actions) in ROBOTS.items()}
    found = {}
    envs: dict[str, VecEnv] = {"one policy": MultiTask(parts), **made}
    for name, env in envs.items():
        several = isinstance(env, MultiTask)
        network = NetworkConfig(hidden_dims=(512, 256, 128), task_heads=heads)
        config = PPOConfig(
            actor=network, critic=network, num_steps=24, num_epochs=5, num_minibatches=4, grad_clip="separate",
            balance="advantage" if several else "none", action_scale="none",
        )  # fmt: skip
        found[name] = PPO(env, config, seed=1)
        found[name].learn(rollouts)
    return found


def costliest(agent: PPO, count: int) -> list[str]:
    """The kernels of an update by their time, in lines."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        agent.update()
        torch.cuda.synchronize()
    kernels = sorted(profile.key_averages(), key=lambda k: -k.self_device_time_total)[:count]
    return [f"{k.self_device_time_total / 1e3:8.3f} ms  {k.count:5} times  {k.key[:110]}" for k in kernels]


def main(words: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--num-envs", type=int, default=6144)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--one-head", action="store_true", help="for all tasks, which tells them apart by its input")
    parser.add_argument("--kernels", type=int, default=0, help="how many of them are listed, on CUDA")
    args = parser.parse_args(words)
    device = torch.device(args.device)
    cuda = device.type == "cuda"
    if not cuda:
        torch.set_num_threads(1)

    made = agents(args.num_envs, args.device, not args.one_head)
    times: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(args.rounds):
        for name, agent in made.items():
            times[name].append(1e3 * seconds(agent.update, device))
    where = torch.cuda.get_device_name() if cuda else "CPU, 1 thread"
    print(f"{where}, torch {torch.__version__}: an update of {args.num_envs:,} envs x 24 steps, {args.rounds} rounds")
    print("| | ms | quartiles | one policy / this (quartiles) |\n|---|--:|---|--:|")
    for name, values in times.items():
        own = spread(values)
        ratio = spread([joint / alone for joint, alone in zip(times["one policy"], values, strict=True)])  # by round
        texts = [f"{part['q25']:.2f} to {part['q75']:.2f}" for part in (own, ratio)]
        print(f"| {name} | {own['median']:.2f} | {texts[0]} | {ratio['median']:.2f} ({texts[1]}) |")
    for name in ("one policy", "G1") if args.kernels and cuda else ():
        print(f"\n{name}:", *costliest(made[name], args.kernels), sep="\n")


if __name__ == "__main__":
    main()
