"""Cells that cannot be a program for one unit of one sequence: what each of them does, and what is said about it."""

import itertools

import numpy as np

import bptt_array as ba


class Plain(ba.Cell):
    """tanh, with one place in which something can be done that has no kernel."""

    def forward_(self, backend, params, product):
        add_product = product.adding()

        def step_(z, h_before, h):
            add_product(z, h_before)
            h[...] = self.f(backend.xp, z, h_before, params)

        return step_

    def f(self, xp, z, h, params):
        return xp.tanh(z)

    def slopes_(self, backend, slopes, dz, tape):
        return (tape.h,)

    def backward_(self, backend, params, product):
        add_product = product.adding()

        def step_(dz, dh, dh_before, h):
            dz[...] = (1 - h * h) * dh
            add_product(dh_before, dz)

        return step_


# ---- with gradients that are right --------------------------------------------------------------------------


class Centred(Plain):
    """``h = tanh(z - mean(z))``, the mean being that of all units."""

    def f(self, xp, z, h, params):
        return xp.tanh(z - xp.mean(z, axis=-1, keepdims=True))

    def backward_(self, backend, params, product):
        add_product, xp = product.adding(), backend.xp

        def step_(dz, dh, dh_before, h):
            d = (1 - h * h) * dh
            dz[...] = d - xp.mean(d, axis=-1, keepdims=True)
            add_product(dh_before, dz)

        return step_


class Width(Plain):
    """``h = tanh(z) / H``."""

    def f(self, xp, z, h, params):
        return xp.tanh(z) / h.shape[-1]

    def slopes_(self, backend, slopes, dz, tape):
        return (tape.h * tape.h.shape[-1],)

    def backward_(self, backend, params, product):
        step_ = super().backward_(backend, params, product)

        def narrower_(dz, dh, dh_before, tanh_z):
            step_(dz, dh / dh.shape[-1], dh_before, tanh_z)

        return narrower_


# ---- that only run forward, or nowhere ----------------------------------------------------------------------

_counter = itertools.count()


def _of_step(step_of):
    """``forward_`` of a step that is given ``(backend, params, product)``."""

    def forward_(self, backend, params, product):
        return step_of(backend, params, product)

    return {"forward_": forward_}


def _two_products(backend, params, product):
    add_product = product.adding()

    def step_(z, h_before, h):
        add_product(z, h_before)
        add_product(z, h_before)
        h[...] = backend.xp.tanh(z)

    return step_


def _of_another_state(backend, params, product):
    add_product = product.adding()

    def step_(z, h_before, h):
        add_product(z, backend.xp.tanh(h_before))
        h[...] = backend.xp.tanh(z)

    return step_


def _no_product(backend, params, product):
    def step_(z, h_before, h):
        h[...] = backend.xp.tanh(z)

    return step_


def _momentum(backend, params, product):
    add_product, v = product.adding(), backend.zeros((*product.rows, params["b_h"].shape[-1]), params["b_h"].dtype)

    def step_(z, h_before, h):
        add_product(z, h_before)
        v[...] = 0.9 * v + z
        h[...] = backend.xp.tanh(v)

    return step_


def _writes_before(backend, params, product):
    add_product = product.adding()

    def step_(z, h_before, h):
        add_product(z, h_before)
        h_before *= 0.5
        h[...] = backend.xp.tanh(z)

    return step_


def _writes_half(backend, params, product):
    add_product = product.adding()

    def step_(z, h_before, h):
        add_product(z, h_before)
        h[..., :-1] = backend.xp.tanh(z[..., :-1])

    return step_


def _backward_of(step_of):
    def backward_(self, backend, params, product):
        return step_of(backend, params, product)

    return {"backward_": backward_}


def _writes_dh(backend, params, product):
    add_product = product.adding()

    def step_(dz, dh, dh_before, h):
        dh *= 1 - h * h
        dz[...] = dh
        add_product(dh_before, dz)

    return step_


def _other_dz(backend, params, product):
    add_product = product.adding()

    def step_(dz, dh, dh_before, h):
        dz[...] = (1 - h * h) * dh
        add_product(dh_before, 2 * dz)

    return step_


def _looks_back(self, backend, slopes, dz, tape):
    xp = backend.xp
    return (xp.concat([tape.h[:1, ...], tape.h[:-1, ...]], axis=0),)


def _branch(self, xp, z, h, params):
    if z[0, 0] > 0:
        return z
    return xp.tanh(z)


def _zeroes_by_value(self, xp, z, h, params):
    z[z < 0] = 0
    return z


def _of(f):
    return {"f": lambda self, xp, z, h, params: f(xp, z, h, params)}


def _own(shape, **more):
    return {"own_parameters": lambda self, H: {"s": shape(H)}, **more}


def _finish(make):
    return {"finish_": lambda self, backend, slopes, dz, dh, tape: make(backend.xp, dz, dh, tape)}


_MEETS = "one unit meets another's numbers, otherwise than through the product with W_hh"
_SEQUENCE = "one sequence \\(or member\\) meets another's numbers"
_DEPENDS = "computes with something that depends on shapes, on the step, or on chance"
_TIME = "depends on other time steps than through h and c"

#: By name: what is changed in ``Plain``; what the refusal says; a part of the line that it shows, or None.
REFUSED = {
    # other units, other sequences
    "layer norm": (_of(lambda xp, z, h, p: z - xp.mean(z, axis=-1, keepdims=True)), "a sum \\(or the like\\) over an axis", "xp.mean(z"),
    "softmax": (_of(lambda xp, z, h, p: xp.exp(z) / xp.sum(xp.exp(z), axis=-1, keepdims=True)), "add.reduce", "xp.sum(xp.exp(z)"),
    "largest": (_of(lambda xp, z, h, p: z - xp.max(z, axis=-1, keepdims=True)), "maximum.reduce", "xp.max(z"),
    "cumulative sum": (_of(lambda xp, z, h, p: xp.cumulative_sum(z, axis=-1)), _MEETS, "cumulative_sum"),
    "neighbour": (_of(lambda xp, z, h, p: z + xp.roll(h, 1, axis=-1)), _MEETS, "xp.roll(h"),
    "turned round": (_of(lambda xp, z, h, p: xp.tanh(z)[..., ::-1]), f"h: {_MEETS}", None),
    "another sequence": (_of(lambda xp, z, h, p: z + h[..., :1, :]), _SEQUENCE, "h[..., :1, :]"),
    "sorted": (_of(lambda xp, z, h, p: xp.sort(z, axis=-1)), "asks whether a number is true", "xp.sort"),
    # what it may not look at
    "a product of its own": (_of(lambda xp, z, h, p: z + xp.matmul(h, p["W_hh"].mT)), "uses matmul", 'p["W_hh"].mT'),
    "the diagonal": (_of(lambda xp, z, h, p: z + h * p["W_hh"][..., 0, None, :]), "uses W_hh otherwise than through `product`", 'p["W_hh"][..., 0'),
    "weights of its input": (_of(lambda xp, z, h, p: z * p["W_xh"][..., None, :, 0]), "uses W_xh otherwise", 'p["W_xh"]'),
    "the bias": (_of(lambda xp, z, h, p: z * p["b_h"][..., None, :]), "uses b_h beside z", None),
    # values
    "branch": ({"f": _branch}, "asks whether a number is true: use xp.where", "if z[0, 0] > 0:"),
    "all": (_of(lambda xp, z, h, p: xp.tanh(z) if (z > 0).all() else z), "logical_and.reduce", ".all()"),
    "value": (_of(lambda xp, z, h, p: z * float(z[0, 0])), "asks for the value of a number", "float(z[0, 0])"),
    "index": (_of(lambda xp, z, h, p: z[int(z[0, 0])]), "asks for the value of a number", "int(z[0, 0])"),
    "by value": ({"f": _zeroes_by_value}, "takes numbers by their values: use xp.where", "z[z < 0] = 0"),
    "Python's max": (_of(lambda xp, z, h, p: max(z, 0)), "ValueError: The truth value", "max(z, 0)"),
    # functions
    "logaddexp": (_of(lambda xp, z, h, p: xp.logaddexp(z, 0 * z)), "uses logaddexp, which is none of absolute, add", "xp.logaddexp"),
    "floor": (_of(lambda xp, z, h, p: xp.floor(z)), "uses floor, which is none of", "xp.floor"),
    "not in the standard": (_of(lambda xp, z, h, p: xp.erf(z)), "uses xp.erf, which is not in the Array API", "xp.erf"),
    "a function of Python": (_of(lambda xp, z, h, p: np.frompyfunc(abs, 1, 1)(z)), "which is none of", "frompyfunc"),
    "whole numbers": (_of(lambda xp, z, h, p: xp.tanh(z - xp.astype(z, xp.int32))), "rounds numbers, to int32", "xp.int32"),
    "half precision": (_of(lambda xp, z, h, p: xp.tanh(xp.astype(z, xp.float16))), "rounds numbers, to float16", "xp.float16"),
    "double precision": (_of(lambda xp, z, h, p: xp.tanh(xp.astype(z, xp.float64))), "rounds numbers, to float64", "xp.float64"),
    "a whole number": (_of(lambda xp, z, h, p: z * xp.full_like(z, 2.5, dtype=xp.int32)), "rounds numbers, to int32", "xp.int32"),
    "bits": (_of(lambda xp, z, h, p: xp.tanh(z * ~xp.astype(z > 0, xp.int32))), "uses invert of the bits of numbers", "~xp.astype"),
    "no NaN": (_of(lambda xp, z, h, p: xp.nan_to_num(z)), "uses nan_to_num, which looks at values", "nan_to_num"),
    # shapes, chance, memory
    "noise": (_of(lambda xp, z, h, p: z + np.random.default_rng().normal()), _DEPENDS, None),
    "counter": (_of(lambda xp, z, h, p: z * next(_counter)), _DEPENDS, None),
    "width": (_of(lambda xp, z, h, p: z / h.shape[-1]), _DEPENDS, None),
    "wide": (_of(lambda xp, z, h, p: xp.tanh(z) if h.shape[-1] > 8 else z), _DEPENDS, None),
    "scales": (_of(lambda xp, z, h, p: z * xp.linspace(0, 1, h.shape[-1])), "h is computed differently for some units", None),
    "momentum": (_of_step(_momentum), _TIME, None),
    "looks back in time": ({"slopes_": _looks_back}, _DEPENDS, None),
    # products and rows
    "two products": (_of_step(_two_products), "forward_ calls the product 2 times a step; expected once", None),
    "no product": (_of_step(_no_product), "forward_ calls the product 0 times a step; expected once", None),
    "of another state": (_of_step(_of_another_state), "forward_ multiplies W_hh by something else than h_before", None),
    "writes to h before": (_of_step(_writes_before), "forward_ writes to h_before", None),
    "writes half of h": (_of_step(_writes_half), "leaves numbers of h unwritten", None),
    "writes to dh": (_backward_of(_writes_dh), "backward_ writes to dh", None),
    "multiplies another dz": (_backward_of(_other_dz), "multiplies W_hh\\^T by something else than the dz it leaves", None),
    # parameters of its own
    "a second product": (_own(lambda H: (H, H)), "a step has a product with s; a kernel has one with W_hh alone", None),
    "fewer gates": ({"gates": 2, "recurrent_gates": 1}, "recurrent_gates=1; a kernel has a part of W_hh for every gate", None),
    "shared parameter": (_own(lambda H: (1,)), "s has not a whole number of values for each unit", None),
    "unused parameter": (_own(lambda H: (H,)), "finish_ returned gradients of \\[\\]; expected those of \\['s'\\]", None),
    "unwritten gradient": (_own(lambda H: (H,), **_finish(lambda xp, dz, dh, tape: {"s": xp.empty_like(dz)})), "leaves numbers of the gradient of s unwritten", None),
    "gradient over time": (_own(lambda H: (H,), **_finish(lambda xp, dz, dh, tape: {"s": dz + tape.h[:1, ...]})), _TIME, None),
}  # fmt: skip


def cell_of(name):
    return type("Refused", (Plain,), {"name": name, **REFUSED[name][0]})()
