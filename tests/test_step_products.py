"""The product of a time step on NumPy, whole or cut into small ones: the same numbers, and cut where that pays."""

import threading
import tracemalloc

import numpy as np
import pytest

from bptt_array.backend import cpu_products
from bptt_array.backend.cpu_products import product_with, shared_copies
from bptt_array.backend.workers import Workers

SHAPES = [((), 1, 5, 7), ((), 6, 5, 64), ((), 6, 130, 200), ((4,), 6, 16, 16), ((2, 3), 4, 9, 33), ((3,), 32, 64, 65)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("steps", [1, 1000])
@pytest.mark.parametrize(("lead", "N", "F", "M"), SHAPES, ids=str)
@pytest.mark.parametrize("block", [None, (1, 16), (2, 32), (3, 5), "all"], ids=str)
def test_every_way_gives_the_product(lead, N, F, M, steps, dtype, block, monkeypatch):
    block = (N, M) if block == "all" else block
    if block is not None and (N % block[0] or block[1] > M):
        pytest.skip("no such blocks")
    monkeypatch.setattr(cpu_products, "_block_of", lambda *shape: block)
    rng = np.random.default_rng(0)
    W = rng.standard_normal((*lead, M, F)).astype(dtype).mT  # a transposed view, as of W_hh
    product_, out = product_with(W, N, steps)
    for rows in (rng.standard_normal((*lead, N, F)), rng.standard_normal((*lead[1:], N, F))):
        a = rows.astype(dtype)
        product_(a)
        assert out.shape == (*lead, N, M)
        assert np.allclose(
            out, a @ W, rtol=1e-4 if dtype == "float32" else 1e-12, atol=1e-4 if dtype == "float32" else 1e-12
        )


@pytest.mark.parametrize(
    ("threads", "N", "F", "M", "itemsize", "block"),
    [
        (1, 32, 256, 1024, 4, (32, 64)),
        (1, 64, 256, 256, 4, (32, 64)),
        (1, 32, 1024, 256, 4, (8, 64)),
        (1, 32, 2048, 512, 4, (8, 32)),
        (1, 32, 256, 256, 8, (32, 32)),
        (1, 30, 1024, 1024, 4, (15, 64)),
        (1, 4, 1024, 1024, 4, (4, 64)),
        (1, 31, 1024, 1024, 4, None),  # a prime number of rows, too many for one small product
        (1, 1, 1024, 1024, 4, None),
        (1, 32, 64, 256, 4, None),  # small as it is
        (1, 32, 1000, 40, 4, (16, 32)),
        (1, 64, 4096, 1024, 4, None),
        (2, 64, 256, 1024, 4, None),  # two threads are faster
        (2, 16, 256, 1024, 4, (16, 64)),
    ],
)
def test_a_product_is_cut_where_that_pays(threads, N, F, M, itemsize, block, monkeypatch):
    monkeypatch.setattr(Workers, "of_a_product", property(lambda self: threads))
    monkeypatch.setattr(Workers, "cores", frozenset({"SkylakeX"}))
    assert cpu_products._block_of(N, F, M, itemsize) == block
    if block is not None:
        rows, columns = block
        assert N % rows == 0
        assert rows * F * columns <= 10**6
    for others in (frozenset(), frozenset({"Haswell"}), frozenset({"SkylakeX", "Haswell"}), frozenset({"None"})):
        monkeypatch.setattr(Workers, "cores", others)
        assert cpu_products._block_of(N, F, M, itemsize) is None


@pytest.mark.parametrize("blocks", [True, False])
def test_parts_share_a_copy_as_long_as_one_of_them_needs_it(blocks, monkeypatch):
    monkeypatch.setattr(cpu_products, "_block_of", lambda *shape: (4, 64) if blocks else None)
    W = np.ones((256, 512), "float32")

    def made(count):
        tracemalloc.start()
        products = [product_with(W, 4, 1000) for _ in range(count)]
        taken = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert len(products) == count
        return taken / W.nbytes

    assert 2.9 < made(3) < 3.5
    with shared_copies():
        assert 0.95 < made(3) < 1.5
        assert 0.95 < made(1) < 1.5  # the one before is gone
        first, _ = product_with(W, 4, 1000)
        assert made(1) < 0.2
        W += 1  # another call's business: the copy is that of the first
        threading.Thread(target=first, args=(np.ones((4, 256), "float32"),)).start()
    assert 0.95 < made(1) < 1.5
