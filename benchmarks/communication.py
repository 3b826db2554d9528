"""What a step of several processes sends, counted; and a model of what that takes on 8 to 1024 GPUs.

A model and no measurement: the bandwidths and latencies are what vendors specify or what is usual, the arithmetic is
a sustained part of a GPU's, and the cost of a call is what CuPy's launches are known for. All are parameters.
"""

import math
from typing import NamedTuple


class Counting:
    """A communicator that notes every call that sends something, with the bytes of each buffer."""

    def __init__(self, comm):
        self.comm, self.calls = comm, []

    def __getattr__(self, name):
        found = getattr(self.comm, name)
        if name.startswith(("Get_", "Is_")) or not callable(found):
            return found

        def counted(*arguments, **more):
            self.calls.append((name, *(a.nbytes for a in arguments if hasattr(a, "nbytes"))))
            return found(*arguments, **more)

        return counted


class Link(NamedTuple):
    """One way of a GPU to the others."""

    latency: float  # s a message
    bandwidth: float  # bytes / s, each way


class Cluster(NamedTuple):
    """Nodes of GPUs.

    ``call``: what the host needs to start a kernel or a product; ``flops``: sustained, in float32.
    """

    per_node: int = 8
    inside: Link = Link(3e-6, 450e9)  # NVLink 4: 900 GB/s of both directions
    between: Link = Link(5e-6, 50e9)  # one 400 Gb/s adapter for every GPU
    call: float = 10e-6
    flops: float = 40e12  # of an H100's 67e12 outside its tensor cores


class Network(NamedTuple):
    """One layer with as many inputs, units and outputs."""

    cell: str
    H: int

    @property
    def weights(self):
        """Of W_xh and W_hh for each gate, and of W_hy."""
        gates = {"tanh": 1, "lstm": 4}[self.cell]
        return (2 * gates + 1) * self.H**2

    @property
    def parameters(self):
        gates = {"tanh": 1, "lstm": 4}[self.cell]
        return self.weights + (gates + 1) * self.H

    @property
    def bytes(self):
        """Of the one message of an update, as distributed.py counts them: with the loss, the steps and a flag."""
        return 4 * (self.parameters + 3)

    @property
    def calls(self):
        """A time step, both ways: products and launches, as tests count them."""
        return {"tanh": 2 * (1 + 1), "lstm": 2 * (1 + 2)}[self.cell]


def flat(size, ranks, link):
    """Seconds of an all-reduce of ``size`` bytes over ranks with the same link: the better of a ring and a tree."""
    ring = 2 * (ranks - 1) * link.latency + 2 * (ranks - 1) / ranks * size / link.bandwidth
    tree = 2 * math.ceil(math.log2(ranks)) * link.latency + 2 * size / link.bandwidth
    return min(ring, tree) if ranks > 1 else 0.0


def all_reduce(size, gpus, cluster):
    """The same over GPUs in nodes.

    Each GPU of a node sums its share of the buffer (reduce-scatter), all-reduces it with its like in the other nodes,
    and hands it to the others of its node (all-gather).
    """
    if gpus <= cluster.per_node:
        return flat(size, gpus, cluster.inside)
    here, link = cluster.per_node, cluster.inside
    scatter = (here - 1) * link.latency + (here - 1) / here * size / link.bandwidth
    return 2 * scatter + flat(size / here, gpus // here, cluster.between)


def compute(network, T, N, cluster):
    """Seconds of a step on one GPU with N sequences: what it takes to start its calls, or to do its arithmetic."""
    start = T * network.calls * cluster.call
    arithmetic = 6 * network.weights * T * N / cluster.flops  # 2 forward, 4 backward, those of inputs too
    return max(start, arithmetic)


def efficiency(network, T, N, gpus, cluster, *, overlap=False):
    """The part of a step that is not waiting for the all-reduce; with ``overlap``: if all of a step could hide it."""
    own, sent = compute(network, T, N, cluster), all_reduce(network.bytes, gpus, cluster)
    return min(1.0, own / sent) if overlap else own / (own + sent)


def least_batch(network, T, gpus, cluster):
    """The fewest sequences on a GPU for computing to take as long as the all-reduce."""
    sent = all_reduce(network.bytes, gpus, cluster)
    if compute(network, T, 1, cluster) >= sent:
        return 1
    return math.ceil(sent * cluster.flops / (6 * network.weights * T))


def too_many(network, T, N, cluster):
    """Of 8, 16, 32, ... GPUs that share N sequences, the first number with which computing takes less than sending.

    None if it does not while each has a sequence.
    """
    gpus = cluster.per_node
    while gpus <= N:
        if compute(network, T, N / gpus, cluster) < all_reduce(network.bytes, gpus, cluster):
            return gpus
        gpus *= 2
    return None


GPUS = (8, 16, 64, 256, 1024)
NETWORKS = [Network(cell, H) for cell in ("tanh", "lstm") for H in (256, 1024, 4096)]
#: Steps; sequences of a GPU (weak scaling) and of all (strong).
T, EACH, ALL = 32, 32, 8192


def tables(table, cluster=Cluster()):  # noqa: B008 (never changed)
    """Lines of Markdown, with ``table(head, rows)`` to make tables of."""
    lines = [
        f"Assumed, not measured: nodes of {cluster.per_node} GPUs; each has {cluster.inside.bandwidth / 1e9:.0f} GB/s "
        f"each way and {cluster.inside.latency * 1e6:.0f} us a message inside a node, "
        f"{cluster.between.bandwidth / 1e9:.0f} GB/s and {cluster.between.latency * 1e6:.0f} us between nodes; "
        f"{cluster.call * 1e6:.0f} us to start a call, "
        f"{NETWORKS[0].calls} calls a time step for tanh and {NETWORKS[-1].calls} for LSTM; "
        f"{cluster.flops / 1e12:.0f} TFLOP/s. One layer with H inputs, units and outputs, float32; T = {T}.",
        "",
    ]
    heads = [f"{gpus} GPUs" for gpus in GPUS]
    for title, batch in (
        (f"N = {EACH} on every GPU (weak scaling)", lambda gpus: EACH),
        (f"N = {ALL:,} on all together (strong scaling)", lambda gpus: ALL // gpus),
    ):
        rows = [
            [f"{n.cell}, H = {n.H}", f"{n.bytes / 1e6:,.1f}", *(_cell(n, batch(g), g, cluster) for g in GPUS)]
            for n in NETWORKS
        ]
        lines += [f"{title}: compute + all-reduce, ms (efficiency without overlap, and with a perfect one):", ""]
        lines += [*table(["", "MB a step", *heads], rows), ""]
    rows = []
    for n in NETWORKS:
        least, most = [f"{T * least_batch(n, T, g, cluster):,}" for g in GPUS], too_many(n, T, ALL, cluster)
        rows.append([f"{n.cell}, H = {n.H}", *least, f"{most:,} GPUs" if most else "never"])
    lines += [f"The least T N on a GPU (T = {T}) with which computing takes as long as the all-reduce:", ""]
    return [*lines, *table(["", *heads, f"N = {ALL:,} falls below at"], rows)]


def _cell(network, N, gpus, cluster):
    own, sent = compute(network, T, N, cluster), all_reduce(network.bytes, gpus, cluster)
    parts = [efficiency(network, T, N, gpus, cluster, overlap=overlap) for overlap in (False, True)]
    return f"{own * 1e3:.2f} + {sent * 1e3:.2f} ({parts[0]:.0%}, {parts[1]:.0%})"
