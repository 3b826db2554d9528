"""Backpropagation through time over one batch: layers on top of each other, unrolled segment by segment.

:class:`Unrolled` runs segments forward and keeps what they leave; :class:`BackwardPass` runs them backward and
sums the gradients. A segment runs through all layers before the next one begins, so a schedule
(``schedules/``) is the same for one layer and for ten. With two directions a segment is the whole sequence,
since the second one begins at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from ..backend.portable import Array, Backend
from ..equations.long_sums import Waiting
from ..equations.token_sums import Unfinished
from . import directions
from .batch import Batch
from .direct import nothing_direct
from .dropout import Dropout
from .embedding import Embedding, EmbeddingBackward
from .layer import Layer, LayerBackward, LayerForward, States
from .workspace import Loan, Scratch

#: Called with layer, start, stop and the total gradients of the states after these steps, ``(S, ..., N, H)`` each: rows
#: that are written over afterwards.
Watch = Callable[[int, int, int, States], None]


class Stack(NamedTuple):
    """Layers on top of each other, and the matrix ``W_emb ([E,] V, M)`` of an embedding in front of them."""

    layers: tuple[Layer, ...]
    bidirectional: bool
    W_emb: Array | None = None

    @property
    def top(self) -> Layer:
        return self.layers[-1]

    @property
    def outputs(self) -> int:
        """Features of what it gives: H, with two directions 2H."""
        return self.top.hidden_size * (1 + self.bidirectional)


class DirectPart(Protocol):
    """3.1.1: what the outputs of a segment tell the states of the top layer."""

    def __call__(self, start: int, stop: int, h: Array, last: Array, dh: Array) -> Array | None:
        """Write the direct part of ``dh_t`` into ``dh (S, [E,] N, D*H)``.

        ``h`` are the outputs of the segment and ``last ([E,] N, D*H)`` those after the last valid steps. May return a
        gradient of ``last``, of the sequences that end in this segment.
        """


class Unrolled:
    """Layers run forward over a batch, in segments of at most ``longest`` steps.

    ``keep``: what the segments leave is for a backward pass.
    """

    def __init__(
        self,
        backend: Backend,
        stack: Stack,
        batch: Batch,
        longest: int,
        arrays: Loan | None = None,
        dropout: Dropout | None = None,
        *,
        keep: bool = True,
    ) -> None:
        self.backend = backend
        self.stack = stack
        self.batch = batch
        self.dropout = dropout
        self.keep = keep
        arrays = Loan(backend) if arrays is None else arrays
        self.arrays = arrays
        self.rows = Scratch(arrays, longest)
        self._remembered: dict[int, list[States]] = {}
        self._x = batch.feed(batch.x, features=not batch.tokens)
        self._outputs: dict[int, Array] = {}  # of two directions, merged
        W_emb = stack.W_emb
        self.embedding = None if W_emb is None else Embedding(backend, W_emb, batch, arrays, self.rows)
        sides = (2,) if stack.bidirectional else ()
        self.layers = []
        for k, (layer, initial) in enumerate(zip(stack.layers, batch.initial, strict=True)):
            mask = None if dropout is None else dropout.recurrent(k, sides, batch.N, layer.hidden_size)
            tokens = batch.tokens and k == 0 and W_emb is None
            forward = LayerForward(
                backend, layer, initial, batch.T, batch.padding, arrays, self.rows, mask, tokens=tokens
            )
            self.layers.append(forward)

    def forward(self, start: int, stop: int) -> Array:
        """Run the next segment through all layers; returns the outputs of the top one, ``(S, [E,] N, D*H)``."""
        x = self._x(start, stop)
        if self.embedding is not None:
            x = self.embedding.forward(start, x)
        for k, layer in enumerate(self.layers):
            mask = self.mask(k, start, stop)
            x = x if mask is None else x * mask
            if not self.stack.bidirectional:
                x = layer.forward(start, stop, x)
                continue
            h = layer.forward(start, stop, self._both(x, layer.tokens))
            x = directions.merge(self.backend, h, self.batch.padding)
            if not self.keep:  # the layer above reads a copy
                layer.release(start)
        if self.stack.bidirectional:
            self._outputs[start] = x
        return x

    def mask(self, layer: int, start: int, stop: int) -> Array | None:
        """What multiplies the input of a layer: the same forward and backward, since it follows from where it is."""
        if self.dropout is None:
            return None
        return self.dropout.between(layer, start, stop - start, self.batch.N, self.stack.outputs)

    def _both(self, x: Array, tokens: bool) -> Array:
        """The input of a layer as its two directions read it."""
        if tokens:  # they have no features
            return directions.both(self.backend, x[..., None], self.batch.padding)[..., 0]
        return directions.both(self.backend, x, self.batch.padding)

    def outputs(self, start: int) -> Array:
        """The outputs of the top layer of a segment that is kept."""
        return self._outputs[start] if self.stack.bidirectional else self.layers[-1].kept(start).tape.h

    @property
    def last(self) -> list[States]:
        """The states of every layer after the last valid steps, once all segments have run."""
        return [layer.last for layer in self.layers]

    @property
    def last_outputs(self) -> Array:
        """``([E,] N, D*H)``: h of the top layer after the last valid steps; each direction's own last."""
        h = self.layers[-1].last[0]
        return directions.merge_last(self.backend, h) if self.stack.bidirectional else h

    def with_last_outputs(self, d_last: list[States] | None, d_outputs: Array) -> list[States]:
        """Gradients of :attr:`last`: ``d_last``, if any, and ``d_outputs`` of :attr:`last_outputs`."""
        if d_last is None:
            d_last = [tuple(map(self.backend.xp.zeros_like, layer.last)) for layer in self.layers]
        dh, *dc = d_last[-1]
        dh = dh + (directions.split_last(self.backend, d_outputs) if self.stack.bidirectional else d_outputs)
        return [*d_last[:-1], (dh, *dc)]

    def end(self) -> None:
        """No segment comes any more, forward or with these rows backward: let go of all that this takes."""
        self.rows.clear()
        self.end_forward()

    def end_forward(self) -> None:
        """No segment runs forward any more: let go of what only that needs."""
        for layer in self.layers:
            layer.end()

    def remember(self, start: int) -> None:
        """Keep the state of every layer, that before step ``start``."""
        self._remembered[start] = [layer.state for layer in self.layers]

    def restore(self, start: int) -> None:
        """Go on from the states before step ``start``."""
        for layer, state in zip(self.layers, self._remembered[start], strict=True):
            layer.state = state

    def forget(self, start: int) -> None:
        """Let go of the states before step ``start``."""
        del self._remembered[start]

    def release(self, start: int) -> None:
        """Let go of what a segment left."""
        self._outputs.pop(start, None)
        if self.embedding is not None:
            self.embedding.release(start)
        for layer in self.layers:
            layer.release(start)


class BackwardPass:
    """The backward pass over what :class:`Unrolled` kept, from the last segment to the first.

    Parameters
    ----------
    d_last : one tuple of (..., N, H) for every layer, optional
        Gradients of :attr:`Unrolled.last`.
    dx : (T, [E,] N, I), optional
        Where the gradient of the input is written.
    rows : Scratch, optional
        That of ``unrolled``, if nothing else uses it at the same time.
    backward : {"sequential", "parallel", "auto"}
        How the time loops run, see :class:`~bptt_array.bptt.layer.LayerBackward`.
    watch : Watch, optional
        Is shown the gradients of the states of every layer and segment.
    waiting : Waiting, optional
        Where the sums of ``direct`` wait for those of the layers.
    dx_apart : bool
        The steps of ``dx`` are not in one piece, which a product for all of them would have to write.
    """

    def __init__(
        self,
        unrolled: Unrolled,
        direct: DirectPart,
        d_last: Sequence[States] | None,
        dx: Array | None,
        rows: Scratch | None = None,
        backward: str = "sequential",
        watch: Watch | None = None,
        waiting: Waiting | None = None,
        *,
        dx_apart: bool = False,
    ) -> None:
        self.watch = watch
        self.dx_apart = dx_apart
        self.unrolled = unrolled
        self.direct = direct
        self.dx: Array = dx
        rows = Scratch(Loan(unrolled.backend), unrolled.rows.longest) if rows is None else rows
        self.layers = [
            LayerBackward(layer, None if d_last is None else d_last[k], rows, backward, waiting)
            for k, layer in enumerate(unrolled.layers)
        ]
        self.embedding = None if unrolled.embedding is None else EmbeddingBackward(unrolled.embedding, rows)

    def segment(self, start: int, stop: int, *, cut: bool, loss: bool = True) -> None:
        """Run one segment backward through all layers.

        ``cut``: without the gradient carried from later steps. ``loss``: with the direct part of its own steps, for the
        first time; otherwise what is carried from later ones is added to what there is.
        """
        unrolled = self.unrolled
        backend, padding, two = unrolled.backend, unrolled.batch.padding, unrolled.stack.bidirectional
        h, top = unrolled.outputs(start), self.layers[-1]
        dh = backend.empty(h.shape, h.dtype) if two else top.direct(start, stop)
        direct = self.direct if loss else nothing_direct
        d_ending = direct(start, stop, h, unrolled.last_outputs, dh)
        if two:
            directions.split_(backend, top.direct(start, stop), dh, padding)
            d_ending = None if d_ending is None else directions.split_last(backend, d_ending)
        for k in reversed(range(len(self.layers))):
            self.layers[k].segment(start, stop, cut=cut, d_ending=d_ending)
            d_ending = None
            if self.watch is not None:
                self.watch(k, start, stop, self.layers[k].total)
            if k or self.dx is not None:
                self._hand_down(k, start, stop, again=not loss)
        if self.embedding is not None:
            self._hand_to_embedding(self.embedding, start, stop)

    def _hand_to_embedding(self, embedding: EmbeddingBackward, start: int, stop: int) -> None:
        """The gradient of the input of the first layer, where that is vectors of tokens."""
        two = self.unrolled.stack.bidirectional
        dx = self._of_both(self.layers[0], start, stop) if two else embedding.dx(start, stop)
        if not two:
            self.layers[0].dx_(start, stop, dx)
        embedding.segment(start, dx)

    def _hand_down(self, k: int, start: int, stop: int, *, again: bool) -> None:
        """The gradient of the input of layer k: the direct part of the layer below or, of the first, :attr:`dx`.

        ``again``: the segment has added to ``dx`` before.
        """
        unrolled, layer, two = self.unrolled, self.layers[k], self.unrolled.stack.bidirectional
        target = self.layers[k - 1].direct(start, stop) if k else self.dx[start:stop, ...]
        again = again and k == 0
        apart = again or (k == 0 and self.dx_apart)
        dx = self._of_both(layer, start, stop) if two else unrolled.backend.copy(target) if apart else target
        if not two:
            layer.dx_(start, stop, dx)
        mask = unrolled.mask(k, start, stop)
        if mask is not None:
            dx *= mask
        if two and k:
            directions.split_(unrolled.backend, target, dx, unrolled.batch.padding)
        elif again and not two:
            target += dx
        elif two or apart:
            target[...] = dx

    def _of_both(self, layer: LayerBackward, start: int, stop: int) -> Array:
        """The gradient of the input that both directions of a layer read, ``(S, [E,] N, F)``."""
        backend, forward = self.unrolled.backend, layer.forward
        row, W_xh = forward.initial[0].shape, forward.layer.params["W_xh"]
        dx = backend.empty((stop - start, *row[:-1], W_xh.shape[-1]), W_xh.dtype)
        layer.dx_(start, stop, dx)
        return directions.of_both(backend, dx, forward.padding)

    @property
    def d_initial(self) -> list[States]:
        """Gradients of the initial states of every layer, once the first segment has run backward."""
        return [layer.d_initial for layer in self.layers if layer.d_initial is not None]

    @property
    def grads(self) -> dict[str, Array | Unfinished]:
        """``"W_emb"``, ``"l0.W_xh"``, …: the gradients of all layers, in the order of their parameters."""
        found: dict[str, Array | Unfinished] = {} if self.embedding is None else {"W_emb": self.embedding.sums}
        for k, layer in enumerate(self.layers):
            grads = layer.grads
            of_layer = layer.forward.layer
            found |= {f"l{k}.{name}": grads[name] for name in of_layer.params if name not in of_layer.zeros}
        return found
