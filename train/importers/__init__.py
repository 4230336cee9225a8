"""Configurations of rsl_rl, rl_games, skrl and Stable-Baselines3 as rlcore's: one library a file."""
