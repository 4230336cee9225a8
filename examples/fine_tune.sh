#!/bin/sh
# Fine-tuning: a second training that begins with the weights of a first one, for a reward that also counts speed.
#
#     sh examples/fine_tune.sh
#
# It takes about a minute on one CPU core. The last two commands measure both policies with the new reward: the second
# flies slower, and returns more. Settings behind the script's name are for both
# trainings: --num-iterations 2 only shows that it runs.
set -e
latest() { ls -td runs/python_examples_own_env.py_Hover/ppo/*-"$1" | head -n 1; }

rlcore train --config examples/hover.yaml --name first "$@"
rlcore train --init-from "$(latest first)" --name gentle --env.speed_weight 1 \
    --init.critic_warmup 2 --num-iterations 20 "$@" # for two iterations the critic alone learns: its reward is new

rlcore eval --run "$(latest first)" --env.speed_weight 1
rlcore eval --run "$(latest gentle)"
