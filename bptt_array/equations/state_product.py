"""The products that are in every step, forward and backward: with ``W_hh``, and with matrices of a cell's own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType

from ..backend.portable import Array, Backend


class StateProduct:
    """The product of rows ``a (..., N, F)`` with a matrix ``W (..., F, M)``, in every step of one pass.

    Forward W is ``W_hh^T`` and ``a`` a state; backward it is ``W_hh`` and ``a`` a gradient. A ``mask (..., N, H)``,
    the same in every step, multiplies the state: ``W_hh (mask * h_{t-1})`` forward and so
    ``mask * (W_hh^T dz_t)`` backward. It does the same to what the matrices ``of_state``, among ``own``, multiply.
    """

    def __init__(
        self,
        backend: Backend,
        W: Array,
        rows: tuple[int, ...],
        steps: int,
        mask: Array | None = None,
        own: Mapping[str, Array] = MappingProxyType({}),
        of_state: Collection[str] = (),
        *,
        backward: bool = False,
    ) -> None:
        self.backend = backend
        self.W = W
        #: (..., N)
        self.rows = rows
        self.steps = steps
        self.mask = mask
        self.own = own
        self.of_state = of_state
        self.backward = backward

    def of(self, name: str) -> StateProduct:
        """The product with another matrix ``W (..., M, K)``: forward of rows ``(..., N, K)`` with ``W^T``, backward of
        ``(..., N, M)`` with W.
        """
        if name not in self.own:
            raise ValueError(f"product.of({name!r}) is unknown; expected a matrix among {sorted(self.own)}")
        W, mask = self.own[name], self.mask if name in self.of_state else None
        return StateProduct(
            self.backend, W if self.backward else W.mT, self.rows, self.steps, mask, backward=self.backward
        )

    def adding(self) -> Callable[[Array, Array], None]:
        """A function ``(out, a)`` that does ``out += a W``."""
        if self.mask is None:
            return self.backend.accumulator(self.W, self.rows, self.steps)
        if not self.backward:
            return self._of_masked(self.backend.accumulator(self.W, self.rows, self.steps))
        product_, product = self.writing()

        def add_masked(out: Array, a: Array) -> None:
            product_(a)
            out += product

        return add_masked

    def writing(self) -> tuple[Callable[[Array], None], Array]:
        """A function ``(a)`` that does ``out <- a W``, and that ``out``."""
        product_, out = self.backend.multiplier(self.W, self.rows, self.steps)
        if self.mask is None:
            return product_, out
        return self._masked(product_, out) if self.backward else self._of_masked(product_), out

    def _masked(self, product_: Callable[[Array], None], out: Array) -> Callable[[Array], None]:
        """``product_(a)``, and then ``out <- mask * out``."""
        mask = self.mask

        def masked_(a: Array) -> None:
            nonlocal out
            product_(a)
            out *= mask

        return masked_

    def _of_masked(self, function: Callable[..., None]) -> Callable[..., None]:
        """``function(..., a)`` of ``mask * a``."""
        backend, mask = self.backend, self.mask
        masked = backend.empty((*self.rows, self.W.shape[-2]), self.W.dtype)

        def of_masked(*out_and_a: Array) -> None:
            *out, a = out_and_a
            backend.elementwise.multiply_(masked, a, mask)
            function(*out, masked)

        return of_masked
