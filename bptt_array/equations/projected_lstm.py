"""The LSTM whose state is a projection of its units: one step forward and backward around those of ``lstm.py``."""

from __future__ import annotations

from ..backend.portable import Array, Backend
from .cell import OwnGradients, Params, Step, Tape, multiply, shared
from .lstm import LSTM
from .state_product import StateProduct


@shared
class ProjectedLSTM(LSTM):
    """Long short-term memory with ``h_t = W_hr (o tanh(c_t))``, P numbers of H units (Sak et al., 2014).

    ``W_hr`` is (P, H), and so ``W_hh`` (4H, P); c, the gates and all else are those of :class:`LSTM`.
    """

    slopes = LSTM.slopes + 1  # and o tanh(c_t)
    changes_dz = False

    def __init__(self, proj_size: int) -> None:
        vars(self).update(state_size=proj_size)  # nobody sets it after this

    def own_parameters(self, hidden_size: int) -> dict[str, tuple[int, ...]]:
        assert self.state_size is not None
        return {"W_hr": (self.state_size, hidden_size)}

    def forward_(self, backend: Backend, params: Params, product: StateProduct) -> Step:
        step_ = super().forward_(backend, params, product)
        product_, projected = product.of("W_hr").writing()
        out = backend.empty((*product.rows, params["W_hr"].shape[-1]), projected.dtype)

        def projected_step_(z: Array, h_before: Array, h: Array, *further: Array) -> None:
            step_(z, h_before, out, *further)  # o tanh(c_t)
            product_(out)
            h[...] = projected

        return projected_step_

    def outputs(self, backend: Backend, slopes: Array, tape: Tape) -> Array:
        out = slopes[:, -1, ...]
        backend.over_segment(multiply)(out, tape.kept[:, 3, ...], tape.kept[:, 4, ...])
        return out

    def backward_(self, backend: Backend, params: Params, product: StateProduct) -> Step:
        step_ = super().backward_(backend, params, product)
        product_, d_out = product.of("W_hr").writing()

        def projected_step_(dz: Array, dh: Array, *further: Array) -> None:
            product_(dh)  # W_hr^T dh_t
            step_(dz, d_out, *further)

        return projected_step_

    def finish_(self, backend: Backend, slopes: Array, dz: Array, dh: Array, tape: Tape) -> OwnGradients:
        return {"W_hr": (dh, slopes[:, -1, ...])}
