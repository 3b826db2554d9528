"""How many bytes a training step takes, from shapes alone: what a schedule within a memory budget is planned with.

Counted is everything that :func:`bptt_array.bptt.passes.run_loss_and_grad` has at once beside what the caller gave it:
states, gradients, copies of weights, temporaries; tests hold it to what is measured. Units are numbers of the network's
dtype unless a name says bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..backend.portable import ADDED_AT_ONCE, Backend
from ..equations.long_sums import BLOCK, FEWEST, PRODUCT_BYTES, PRODUCTS, SMALL_PRODUCT, levels_of
from ..equations.losses import LOSSES, Loss, UserLoss
from ..equations.parallel import rows_of_a_chunk
from ..equations.token_sums import COLUMNS, ROWS
from ..schedules.instructions import bytes_of_parts, longest_segment
from ..schedules.plans import Costs, Plan, Truncate, plan
from .architecture import Architecture

#: Python's own objects (of lists of free tuples alone there is 0.3 MB), NumPy's buffers for casts, and small arrays.
OBJECTS_BYTES = 3 << 17

#: What a kept segment or a remembered state takes of Python's memory, each array in it, and each layer: objects of
#: arrays and of views, tuples, places in lists. A pool of device memory rounds an array up by as much at most.
OF_A_SEGMENT, OF_AN_ARRAY, OF_A_LAYER = 256, 512, 320

#: Arrays of the outputs' shape that a loss of the caller's own has at once: a guess.
OF_CALLERS_LOSS = 10


@dataclass(frozen=True)
class Workload:
    """What one call of ``loss_and_grad`` has to do, as far as it matters for memory.

    Attributes
    ----------
    T, N : int
        Steps and sequences.
    tokens : bool
        Inputs are integers.
    shared : bool
        Inputs have no axis of members.
    copied : bool
        Inputs and targets are copied to the device, or to another dtype, segment by segment.
    unordered : bool
        Inputs are not in one piece, in the order of time, or not in this machine's byte order: products copy them.
    padded : bool
        There are ``lengths``.
    weights, input_grad, dropout : bool
        Whether there are weights of steps, a gradient of the input, masks.
    loss : Loss or callable
    """

    T: int
    N: int
    tokens: bool = False
    shared: bool = True
    copied: bool = False
    unordered: bool = False
    padded: bool = False
    weights: bool = False
    input_grad: bool = False
    dropout: bool = False
    loss: Loss | UserLoss = LOSSES["mse"]


def costs(
    network: Architecture,
    work: Workload,
    *,
    temporaries: bool,
    in_chunks: bool,
    persistent: bool = False,
    columns: bool = False,
    by_token: bool = False,
    parts: int = 1,
) -> Costs:
    """Bytes of a training step.

    ``temporaries``: every elementwise operation and product makes an array before it is written where it belongs, as in
    namespaces without ``out=``. ``in_chunks``: time may run backward in parallel. ``persistent``: a segment may be one
    launch, which stores what the cell's ``finish_`` needs in place of slopes. ``columns``: sums of columns.
    ``by_token``: the gradient of tokens is summed up without one-hot rows. ``parts``: the batch is cut into so many.
    """
    itemsize = 4 if network.dtype == "float32" else 8
    one = _OfAStep(network, work, itemsize, persistent=persistent, by_token=by_token, parts=parts)
    states = network.num_layers * one.states
    results = one.results() if temporaries else 0
    waiting, at_most = one.waiting() if columns else (0, 0)
    work_step = one.scratch() + max(one.forward(), one.loss(), one.backward() + waiting) + results
    return Costs(
        fixed=OBJECTS_BYTES + math.ceil(itemsize * (one.parameters() + 6 * states + one.once() + at_most)),
        checkpoint=itemsize * states + one.objects_of_state(),
        kept=math.ceil(itemsize * one.kept()),
        work=math.ceil(itemsize * work_step),
        chunk=itemsize * rows_of_a_chunk(network.hidden_size) * one.row if in_chunks else 0,
        segment=one.objects_of_segment() - one.objects_of_state(),  # which a checkpoint has
    )


def plan_for(
    network: Architecture,
    backend: Backend,
    work: Workload,
    memory: int | str | None,
    truncate: Truncate,
    backward: str,
) -> Plan:
    """The plan of one call of ``loss_and_grad``; of a batch without sequences, that of one."""
    work = replace(work, N=max(1, work.N))
    itemsize = 4 if network.dtype == "float32" else 8
    row = (*network.lead, work.N, network.widths[0])
    two = network.bidirectional
    parts = 1
    if memory is None and backward == "sequential" and isinstance(work.loss, Loss):  # see bptt/passes.py
        parts = backend.count_parts(work.N, math.prod(row) * network.hidden_size) or 1
        work = replace(work, unordered=work.unordered or parts > 1)  # of a part they are not in one piece
    segment_bytes = backend.segment_bytes if parts == 1 else bytes_of_parts(backend.segment_bytes)
    longest = longest_segment(
        segment_bytes, work.T, math.prod(row) * itemsize, bidirectional=two, members=network.members is not None
    )
    in_chunks = backward != "sequential" and network.cell.diagonal
    counted = costs(
        network,
        work,
        temporaries=backend.temporaries,
        in_chunks=in_chunks,
        persistent=backend.persistent,
        columns=backend.sums_columns,
        by_token=work.tokens and _by_token(network, backend),
        parts=parts,
    )
    return plan(work.T, memory, costs=counted, longest=longest, truncate=truncate, whole=two)


def _by_token(network: Architecture, backend: Backend) -> bool:
    """Whether the gradient of tokens is summed up without one-hot rows and without an array of all of them."""
    if network.embedding_size is not None:
        return backend.indexed_by_arrays
    return backend.sums_by_token(network.input_size, network.cell.gates * network.hidden_size)


class _OfAStep:
    """Numbers of one time step, for each of the parts of a training step."""

    def __init__(
        self,
        network: Architecture,
        work: Workload,
        itemsize: int,
        *,
        persistent: bool = False,
        by_token: bool = False,
        parts: int = 1,
    ) -> None:
        members, self.sides = network.members or 1, network.directions
        if network.reverse:  # what the caller has is read from the end
            work = replace(work, copied=True)
        self.network, self.work, self.itemsize = network, work, itemsize
        self.layers, self.cell, self.gates = network.num_layers, network.step, network.cell.gates
        self.sequences = members * work.N
        rows = self.sides * self.sequences
        #: Numbers of a gate, of h, and of h and c.
        self.row, self.h, self.states = (
            rows * n for n in (network.hidden_size, network.widths[0], sum(network.widths))
        )
        #: Tokens or rows of features that the caller has, and numbers that the first layer reads.
        self.given = (1 if work.shared else members) * work.N
        self.embedded = network.embedding_size is not None
        self.inputs = (self.sequences if self.embedded else self.given) * network.features
        #: Whether tokens are columns of W_xh.
        self.columns = work.tokens and not self.embedded
        self.outputs = self.sequences * network.outputs
        H, own = network.hidden_size, self.cell.own_parameters(network.hidden_size)
        #: Gradients of own parameters of every step, in rows; of a matrix both factors.
        self.own = sum(map(sum, own.values())) / H
        #: Its own matrices: by name, what their products are given and give, in rows.
        self.matrices = {name: sum(shape) / H for name, shape in own.items() if len(shape) == 2}
        self.slopes: float = self.cell.slopes
        if persistent:
            self.slopes = max(self.slopes, self.own + self.cell.changes_dz * self.gates)
        #: Whether weights have leading axes: segments are then copied for their products.
        self.stacked = network.members is not None or network.bidirectional
        self.by_token, self.parts = by_token, parts

    def of_bytes(self, count: float) -> float:
        return count / self.itemsize

    # ---- what is there once ---------------------------------------------------------------------------

    def parameters(self) -> float:
        """Gradients, once for each level of their sums, and one product that is added to one of them, of each part; two
        copies of every W_hh, and of own matrices, in the order of their use.
        """
        sizes = {name: math.prod(shape) for name, shape in self.network.shapes.items()}
        in_steps = {"W_hh", *self.matrices}
        copies = 2 * sum(size for name, size in sizes.items() if name.rpartition(".")[2] in in_steps)
        of_tokens: float = self.columns * sizes["l0.W_xh"]  # a table of all columns
        if self.embedded:
            of_tokens = self.embedding_sums(sizes["W_emb"])
            if not self.network.tied:
                del sizes["W_emb"]
        elif self.by_token:
            of_tokens = sizes.pop("l0.W_xh") + self.sums_by_token()
        of_each_part = levels_of(self.work.T) * sum(sizes.values()) + max(sizes.values())
        return self.parts * of_each_part + copies + of_tokens

    def sums_by_token(self) -> float:
        """What the gradient of tokens is made of: of those that may come sums, one for each level, and places."""
        lead = (1 if self.embedded else self.sides) * (self.network.members or 1)
        columns = lead * self.network.input_size
        width = self.network.features if self.embedded else self.gates * self.network.hidden_size
        most = min(columns, lead * self.work.T * self.work.N)
        levels = levels_of(self.work.T * (-(-self.work.N // ROWS) + (lead > 1)))
        written = 4 * min(COLUMNS, most) * width
        return levels * most * width + written + self.of_bytes(17 * columns + (8 + levels) * most)

    def embedding_sums(self, size: int) -> float:
        """The gradient of an embedding of that many numbers; of one that is tied, what the embedding has of it."""
        if self.by_token:
            return self.sums_by_token() + (0 if self.network.tied else size)
        one_hot = ADDED_AT_ONCE * self.network.input_size
        return (levels_of(self.work.T) + 1) * size + one_hot + self.of_bytes(one_hot)  # and one product

    def once(self) -> float:
        """Results of products and masks of the state; last states of padding; dx; the loss of last steps."""
        own = 2 * sum(self.matrices.values())  # forward and backward
        count: float = self.layers * (2 * self.gates + 1 + self.cell.keeps + own) * self.row
        if self.network.recurrent_dropout and self.work.dropout:
            masked = 2 + len(self.cell.of_state)  # the mask, and a state times it
            count += (1 + masked) * self.layers * self.h  # and how a mask is made
        if self.work.padded:
            count += 2 * self.layers * self.states
        if self.work.input_grad:
            dx = self.work.T * self.sequences * self.network.input_size
            as_it_is = self.network.time_major and not self.network.reverse
            count += dx if as_it_is else 2 * dx  # and turned for the caller
        if self.network.readout == "last":
            count += self._of_loss() + 2 * self.h
        return count

    # ---- what grows with a segment --------------------------------------------------------------------

    def kept(self) -> float:
        """States and what the cell keeps of every layer, and inputs where they are copies."""
        count: float = self.layers * (self.states + self.cell.keeps * self.row)
        if self.work.copied or self.work.padded:
            count += self._copy_of_x()
        if self.embedded:  # its vectors, and their places in the matrices of all members
            count += self.inputs + self.of_bytes(8 * self.sequences)
        if self.network.dropout and self.work.dropout:
            count += (self.layers - 1) * self.sides * self.h
        if self.sides == 2:  # what each direction reads, and the outputs side by side
            count += 2 * self._first_input() + (self.layers - 1) * 2 * self.h + self.h
        return count

    # ---- what is there once for each of them, in bytes ------------------------------------------------

    def objects_of_state(self) -> int:
        return OF_A_SEGMENT + self.layers * len(self.cell.states) * OF_AN_ARRAY

    def objects_of_segment(self) -> int:
        """Of the arrays in :meth:`kept`."""
        arrays = self.layers * (len(self.cell.states) + (self.cell.keeps > 0))
        arrays += (self.work.copied or self.work.padded) + 2 * self.embedded
        if self.network.dropout and self.work.dropout:
            arrays += self.layers - 1
        return OF_A_SEGMENT + self.layers * OF_A_LAYER + arrays * OF_AN_ARRAY

    # ---- what running one takes ------------------------------------------------------------------------

    def scratch(self) -> float:
        """Gradients of the states, slopes, and z or dz; the gradient of an embedding's vectors."""
        return self.states + (self.slopes + self.gates) * self.row + self.embedded * self.inputs

    def results(self) -> float:
        """Of operations without ``out=``: of two, as large as z; and which token each of the tokens is, as bools."""
        return 2 * self.gates * self.row + self.embedded * self.inputs + self.of_bytes(self.columns * self.inputs)

    def forward(self) -> float:
        """Zeroing what is past the end; the caller's layout; masks; the outputs of two directions."""
        count: float = 0
        if self.by_token and self.columns:
            # Which tokens there are; of their columns no more than of the gradient, which is later.
            count += self.of_bytes(48 * self.work.N)
        if self.work.padded:
            count += max(1, self.cell.keeps) * self.row + self.of_bytes(17 * self.work.N)
            if self.network.reverse:  # what is read, before it is zeroed, and which steps those are
                count += self._copy_of_x() + self.of_bytes(32 * self.work.N)
        if self.work.unordered or not self.network.time_major:
            count += 2 * self._copy_of_x()  # in order, and in this machine's bytes
        return count + self._mask() + self._turned()

    def loss(self) -> float:
        """Outputs, their derivatives and the target."""
        if self.network.readout == "last":
            return self._turned()
        return self._of_loss() + self._turned()

    def backward(self) -> float:
        """What the sums of the weight gradients read, where it has to be copied or made."""
        count = self.work.N * (self.network.members or 1) * 1.0  # ones
        largest = max(math.prod(shape) for shape in self.network.shapes.values()) // (self.network.members or 1)
        count += self.sequences * min(largest, SMALL_PRODUCT) / BLOCK  # products of blocks
        rows = self.gates * self.row
        if self.stacked:
            inputs = 0 if self.by_token and self.columns else self.inputs * self.sides
            count += (2 if self.cell.changes_dz else 1) * rows + 2 * self.h + inputs
        count += self.own * self.row * (2 if self.stacked else 1)
        if self.network.recurrent_dropout and self.work.dropout:
            count += (1 + len(self.cell.of_state)) * self.h
        if self.by_token:
            count += self.of_bytes(16 * self.sides * self.sequences)
        elif self.columns:
            count += self.sides * self.inputs + self.of_bytes(17 * self.given)
        if self.work.unordered or not self.network.time_major:
            count += 2 * self._copy_of_x()  # in order, and in this machine's bytes
        if self.work.input_grad or (self.embedded and self.sides == 2):
            count += self.sequences * self.network.features * (3 if self.sides == 2 else 1)
        return count + self._mask() + self._turned()

    def waiting(self) -> tuple[float, float]:
        """What waits to be summed over its columns, of a step, and what does however many steps there are.

        Derivatives of the outputs; what blocks of rows add up to; in float32 products of blocks of rows.
        """
        outputs = self.outputs if self.network.readout == "every" else 0
        of_steps = outputs + self.of_bytes(8) * (self.gates * self.row + self.row + outputs) / 128
        at_most: float = 0
        if self.itemsize == 4:
            sizes = {name: math.prod(shape) for name, shape in self.network.shapes.items() if "W" in name}
            for last in ("W_xh", "W_hh", "W_emb" if self.network.tied else "W_hy", *self.matrices):
                size = max((size for name, size in sizes.items() if name.endswith(last)), default=0)
                limit = max(self.of_bytes(PRODUCT_BYTES), PRODUCTS * size) + size
                of_step = size * self.work.N / FEWEST
                if of_step * self.work.T > limit:
                    at_most += limit
                else:
                    of_steps += of_step
        return of_steps, at_most

    def _copy_of_x(self) -> float:
        if self.work.tokens:
            return self.of_bytes(8 * self.given)
        return self.inputs

    def _first_input(self) -> float:
        """What the first layer reads: tokens, or numbers."""
        return self.inputs if self.embedded else self._copy_of_x()

    def _mask(self) -> float:
        """A mask between layers and what makes it: 32-bit numbers."""
        if not (self.network.dropout and self.work.dropout):
            return 0
        return self.sides * self.h * (1 + self.of_bytes(17))

    def _turned(self) -> float:
        """Two directions: rows turned, merged and split."""
        return (self.sides - 1) * 4.0 * self.h

    def _of_loss(self) -> float:
        """Of one output of every sequence."""
        known = self.work.loss if isinstance(self.work.loss, Loss) else None
        arrays: float = OF_CALLERS_LOSS if known is None else known.arrays
        arrays += 3 * (self.network.output != "identity" and (known is None or known.output is None))  # g and g'
        arrays += self.work.copied or self.work.padded
        weighted = self.work.weights or self.work.padded  # padding has the weight 0
        arrays += weighted
        of_losses = self.sequences * (4 + 4 * weighted) + self.of_bytes(24 * self.sequences)
        while_computed = arrays * self.outputs + of_losses
        # Then dv is left, and the sums for W_hy read copies of it and of the states where that is stacked.
        return max(while_computed, self.outputs + (self.outputs + self.h if self.stacked else 0))
