"""What is healthy: every threshold of the examination, with where it comes from.

Where a paper or a library states a number it is named. The others are ours: chosen such that each built-in task, and
gymnasium's classic control, lies inside by a wide margin, and each planted fault of the tests outside.
"""

from __future__ import annotations

# --- Observations ----------------------------------------------------------------------------------------------------

STILL = 1e-6
"""A number whose deviation is under this part of its magnitude (or of 1) never moves: float32 has 7 digits."""
SMALL = 0.1
"""A number that is normalized is lost under this part of ``obs_epsilon``, which is added to its deviation: what it is
divided by then tells nothing of it. The same part as in the warning of an export."""
SMALL_RAW = 1e-3
"""Smallest deviation of a number that nothing normalizes; a network begins with weights for inputs of deviation 1
(LeCun et al. 1998, Efficient BackProp, section 4.3)."""
LARGE_RAW = 100.0
"""Largest mean or deviation of a number that nothing normalizes."""
LARGE = 1e3
"""Largest mean or deviation of one that is normalized: in SI units little of a robot comes near it, so that a unit or a
factor is missing."""
OUTLIER = 1e3
"""A number so many deviations from its median, these of the middle 99 %, is an outlier. Normalizers of rlcore limit
what is over 1,000 deviations off."""
MIDDLE = 0.99
"""The share of numbers by which what is usual is told."""

# --- Episodes and rewards --------------------------------------------------------------------------------------------

FEW_EPISODES = 8
"""Complete episodes without which nothing is said of how they end."""
SHORT_EPISODE = 2.0
"""Shortest mean length: at 1 step a task is a bandit, whose value function has nothing to learn."""
RESETS = 0.5
"""Share of last observations that equal the first of the next episode, from which on it is no chance."""
FORGOTTEN = 0.01
"""Weight of a reward, gamma to the number of steps until it, under which the first steps learn nothing of it."""
LARGE_RETURN = 1e3
"""Largest root mean square of discounted returns that a critic is to learn unnormalized; rewards of about 1 and gamma
0.99 make 100. Value targets far from 1 are the first cause of diverging critics (van Hasselt et al. 2016,
arXiv:1602.07714)."""
SMALL_RETURN = 1e-2
"""Smallest one for SAC, whose entropy is part of the return and outweighs what is smaller (Haarnoja et al. 2018,
arXiv:1801.01290, section 5.2 on the reward scale)."""
ONE_TERM = 0.95
"""Share of one term in the sum of the magnitudes of all terms of the reward, from which on it is the only one."""

# --- Actions ---------------------------------------------------------------------------------------------------------

SATURATED = 0.8
"""Share of a new policy's actions at a bound: 0.32 for deviation 1 and bounds of -1..1; 0.74 for deviation 3, by which
the shipped settings solve MountainCarContinuous; 0.8 for bounds at a quarter of the deviation. From there on nearly all
actions are the same two."""
UNUSED = 0.01
"""Smallest deviation of a new policy's actions, in halves of the width of their bounds: less explores nothing."""

# --- Rollouts, batches and speed -------------------------------------------------------------------------------------

SMALL_BATCH = 512
"""Steps of an on-policy iteration under which gradients are noisy; Andrychowicz et al. 2021 (arXiv:2006.05990, section
3.5) find 2,048 and more good for one env."""
SLOW = 278.0
"""Steps of all envs a second: at fewer a million takes over an hour."""
REPLAYED = 100.0
"""Samples drawn for each new one, above which off-policy critics overfit without measures of their own; a classic SAC
with 256 a step is at 256, which Haarnoja et al. 2018 show to be well, so that this is a note."""

# --- Runs ------------------------------------------------------------------------------------------------------------

LARGE_KL = 0.1
"""Mean KL(old, new) of an update in nats. Targets in use are 0.003 to 0.03 (Schulman et al. 2017, arXiv:1707.06347,
table 3 of its section 6); rsl_rl aims at 0.01."""
SMALL_KL = 1e-5
"""Under this the policy stands still."""
CLIPPED = 0.4
"""Share of samples whose ratio is clipped; 0.1 to 0.3 is usual (Huang et al. 2022, The 37 implementation details of
PPO, on debug variables)."""
UNEXPLAINED = 0.0
"""Explained variance of the critic at or under which it is no better than a constant (same source)."""
POORLY_EXPLAINED = 0.3
"""Explained variance under which advantages are mostly returns."""
STD_FELL = 0.05
"""Deviation of the policy as a part of its first, under which nothing is explored any more."""
STD_GREW = 3.0
"""Deviation of the policy as a multiple of its first: the entropy bonus outweighs the reward."""
AT_BOUND = 0.5
"""Share of the second half of a run that the learning rate is at a bound of its schedule."""
CLIPPED_NORM = 10.0
"""Gradient norm in multiples of ``max_grad_norm`` that is worth a note: steps then have the length of the limit."""
HUGE_NORM = 1000.0
"""The same where it is a fault."""
ENTROPY_FELL = 0.05
"""Entropy of choices as a part of its first, in the first half of a run: it stopped to explore before it learned."""
LOSS_GREW = 100.0
"""Value loss at the end in multiples of that of the first quarter: the critic diverges."""
RETURN_FELL = 0.5
"""Fall of the return from its best, as a part of all that was gained."""
DROPPED = 0.01
"""Share of steps left out of learning for numbers that are not finite, from which on it is an error."""
SKIPPED = 0.5
"""Share of the minibatches of an update that ``target_kl`` skips."""
EVALUATED_LESS = 0.5
"""Shortfall of evaluations against the returns of training, as a part of the range of the latter."""
LOST = 0.01
"""Share of samples of the replay memory that count for nothing; the training warns of the same."""
OVER_LIMIT = 1.5
"""A cost in multiples of its limit, in the median of the second half of a run: a PID controller swings about the limit
(Stooke et al. 2020, arXiv:2007.03964), and by then by less."""
FEWEST_ROWS = 8
"""Rows of metrics.csv without which nothing is said of trends."""
