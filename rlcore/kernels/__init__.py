"""Triton kernels, each registered for a plain function by ``rlcore.dispatch.accelerated``.

Nothing imports this package but ``dispatch``, where kernels run: its modules need Triton. A module has kernels, what
launches them, and a function with the arguments of the plain one, which says what they mean. No kernel uses atomics:
sums over the batch are stored per part and added in a fixed order, so equal inputs give equal bits. Shapes are known at
launch and nothing is read by the host, so CUDA graphs can capture every function. Comparisons are arranged such that
NaN stays NaN: a step whose loss is not finite is skipped.

``TRITON_INTERPRET=1`` runs kernels on a CPU, slowly, which is how the tests check them without a GPU.
"""
