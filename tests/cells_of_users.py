"""Cells that are not in the library, each for what it does otherwise than those that are."""

from test_docs import cell_of_the_page

import bptt_array as ba

#: The cells that ``equations/README.md`` shows.
UpdateGate, MinimalGate = cell_of_the_page(), cell_of_the_page("MinimalGate")


def column(param):
    """A parameter ``(..., M)`` so that it broadcasts over sequences."""
    return param[..., None, :]


class Peephole(ba.Cell):
    """An LSTM whose gates look at the cell state: i and f at ``c_{t-1}``, o at ``c_t`` (Gers and Schmidhuber, 2000).

    Three numbers a unit are its own, and their gradients are no part of dz.
    """

    name, gates, has_c, keeps = "peephole", 4, True, 4

    def own_parameters(self, hidden_size):
        return {"p": (3 * hidden_size,)}

    def peepholes(self, params):
        p, H = column(params["p"]), params["p"].shape[-1] // 3
        return p[..., :H], p[..., H : 2 * H], p[..., 2 * H :]

    def forward_(self, backend, params, product):
        add_product, xp, (p_i, p_f, p_o) = product.adding(), backend.xp, self.peepholes(params)

        def sigmoid(a):
            return 0.5 + 0.5 * xp.tanh(0.5 * a)

        def step_(z, h_before, h, c_before, c, kept):
            add_product(z, h_before)
            z_i, z_f, z_g, z_o = self.split(z)
            i = kept[0, ...] = sigmoid(z_i + p_i * c_before)
            f = kept[1, ...] = sigmoid(z_f + p_f * c_before)
            g = kept[2, ...] = xp.tanh(z_g)
            c[...] = f * c_before + i * g
            o = kept[3, ...] = sigmoid(z_o + p_o * c)
            h[...] = o * xp.tanh(c)

        return step_

    def slopes_(self, backend, slopes, dz, tape):
        return tape.kept, tape.c_before, tape.c

    def backward_(self, backend, params, product):
        add_product, xp, (p_i, p_f, p_o) = product.adding(), backend.xp, self.peepholes(params)

        def step_(dz, dh, dh_before, dc, dc_before, kept, c_before, c):
            i, f, g, o = [kept[k, ...] for k in range(4)]
            dz_i, dz_f, dz_g, dz_o = self.split(dz)
            tanh_c = xp.tanh(c)
            dz_o[...] = tanh_c * o * (1 - o) * dh
            dc += (1 - tanh_c * tanh_c) * o * dh
            dc += p_o * dz_o
            dz_i[...] = g * i * (1 - i) * dc
            dz_f[...] = c_before * f * (1 - f) * dc
            dz_g[...] = i * (1 - g * g) * dc
            dc_before += f * dc + p_i * dz_i + p_f * dz_f
            add_product(dh_before, dz)

        return step_

    def finish_(self, backend, slopes, dz, dh, tape):
        dz_i, dz_f, _, dz_o = self.split(dz)
        return {"p": backend.xp.concat([dz_i * tape.c_before, dz_f * tape.c_before, dz_o * tape.c], axis=-1)}


class Leaky(ba.Cell):
    """``h_t = h_{t-1} + a (clip(z + gain W_hh h_{t-1}) - h_{t-1})``, ``a = sigmoid(s)``.

    ``gain`` and ``s`` are its own, and part of the step both ways; dz is not the gradient of z but ``gain`` times that.
    """

    name, keeps, slopes = "leaky", 2, 1

    def own_parameters(self, hidden_size):
        return {"s": (hidden_size,), "gain": (hidden_size,)}

    def rate(self, xp, params):
        return 0.5 + 0.5 * xp.tanh(0.5 * column(params["s"]))

    def forward_(self, backend, params, product):
        product_, of_h = product.writing()
        xp, gain, a = backend.xp, column(params["gain"]), self.rate(backend.xp, params)

        def step_(z, h_before, h, kept):
            product_(h_before)
            kept[0, ...] = z + gain * of_h
            kept[1, ...] = of_h
            h[...] = h_before + a * (xp.clip(kept[0, ...], -1, 1) - h_before)

        return step_

    def slopes_(self, backend, slopes, dz, tape):
        xp, y = backend.xp, tape.kept[:, 0, ...]
        slopes[:, 0, ...] = xp.where((y > -1) & (y < 1), xp.ones_like(y), xp.zeros_like(y))
        slopes[:, 0, ...] *= self.rate(xp, tape.params)
        return (slopes[:, 0, ...],)

    def backward_(self, backend, params, product):
        add_product, gain, a = product.adding(), column(params["gain"]), self.rate(backend.xp, params)

        def step_(dz, dh, dh_before, slope):
            dz[...] = slope * dh * gain
            dh_before += dh - a * dh
            add_product(dh_before, dz)

        return step_

    def finish_(self, backend, slopes, dz, dh, tape):
        xp, a, y, of_h = backend.xp, self.rate(backend.xp, tape.params), tape.kept[:, 0, ...], tape.kept[:, 1, ...]
        dz[...] = slopes[:, 0, ...] * dh
        return {"s": a * (1 - a) * (xp.clip(y, -1, 1) - tape.h_before) * dh, "gain": of_h * dz}


class Softsign(ba.Cell):
    """``h_t = scale z / (width + |z|)``, with two numbers on itself; in place, and diagonal."""

    name, in_place, diagonal = "softsign", True, True

    def __init__(self, scale=1.5, width=1.25):
        self.scale, self.width = scale, width

    def forward_(self, backend, params, product):
        add_product, xp = product.adding(), backend.xp

        def step_(h_before, h):
            add_product(h, h_before)
            h[...] = self.scale * h / (self.width + xp.abs(h))

        return step_

    def slopes_(self, backend, slopes, dz, tape):
        # width + |z| is width / (1 - |h| / scale)
        dz[...] = self.scale / self.width * (1 - backend.xp.abs(tape.h) / self.scale) ** 2
        return ()

    def backward_(self, backend, params, product):
        add_product = product.adding()

        def step_(dz, dh, dh_before):
            dz *= dh
            add_product(dh_before, dz)

        return step_


class DeepTransition(ba.Cell):
    """``h_t = tanh(z_t + V y_t)``, ``y_t = tanh(U h_{t-1})`` (Pascanu et al., 2014), with twice as many y as h.

    Two more products in every step, of other widths than the state's; only that with U is of the state.
    """

    name, keeps, slopes, of_state = "deep transition", 2, 2, ("U",)

    def own_parameters(self, hidden_size):
        return {"U": (2 * hidden_size, hidden_size), "V": (hidden_size, 2 * hidden_size)}

    def forward_(self, backend, params, product):
        add_product, add_V, (product_U, of_U) = product.adding(), product.of("V").adding(), product.of("U").writing()
        xp = backend.xp

        def step_(z, h_before, h, kept):
            product_U(h_before)
            y, H = xp.tanh(of_U), h.shape[-1]
            kept[0, ...], kept[1, ...] = y[..., :H], y[..., H:]
            add_product(z, h_before)
            add_V(z, y)
            h[...] = xp.tanh(z)

        return step_

    def slopes_(self, backend, slopes, dz, tape):
        return tape.h, tape.kept, slopes

    def backward_(self, backend, params, product):
        add_product, add_U, (product_V, dy) = product.adding(), product.of("U").adding(), product.of("V").writing()
        xp = backend.xp

        def step_(dz, dh, dh_before, h, kept, slopes):
            dz[...] = (1 - h * h) * dh
            product_V(dz)
            y, H = xp.concat([kept[0, ...], kept[1, ...]], axis=-1), h.shape[-1]
            da = (1 - y * y) * dy
            slopes[0, ...], slopes[1, ...] = da[..., :H], da[..., H:]
            add_U(dh_before, da)
            add_product(dh_before, dz)

        return step_

    def finish_(self, backend, slopes, dz, dh, tape):
        da, y = (backend.xp.concat([a[:, 0, ...], a[:, 1, ...]], axis=-1) for a in (slopes, tape.kept))
        return {"U": (da, tape.h_before), "V": (dz, y)}


CELLS_OF_USERS = {cell.name: cell for cell in (UpdateGate, Peephole, Leaky, Softsign, MinimalGate, DeepTransition)}
