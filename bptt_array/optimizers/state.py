"""What an optimizer keeps for each parameter: to be saved, loaded and moved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Any, Self

from ..backend.arrays import dtype_name, rounded
from ..backend.devices import backend_of, packed, resolve, unpacked
from ..backend.portable import Array, Backend, Elementwise
from ..checks import check_count, said
from .arguments import Arrays, check_arrays, check_update


def _checked_state(state_dict: Any, keeps: tuple[str, ...]) -> tuple[dict[str, int], dict[str, list[Array]]]:
    """Both parts of a state_dict, of an optimizer that ``keeps`` these arrays for a parameter."""
    if not isinstance(state_dict, Mapping) or set(state_dict) - {"keeps"} != {"updates", "kept"}:
        raise TypeError("state_dict is none that state_dict() returned; expected a dictionary of updates and kept")
    theirs, slots = state_dict.get("keeps", list(keeps)), len(keeps)  # older ones do not say it
    if not isinstance(theirs, (list, tuple)) or list(theirs) != list(keeps):
        raise ValueError(
            f"state_dict['keeps']={said(theirs, 100)}, but this optimizer keeps {list(keeps)} for a parameter; "
            "expected the state of one of the same kind"
        )
    updates, kept = state_dict["updates"], state_dict["kept"]
    if not isinstance(updates, Mapping) or not isinstance(kept, Mapping) or set(updates) != set(kept):
        raise ValueError("state_dict has other parameters under 'updates' than under 'kept'; expected the same")
    for name, arrays in kept.items():
        check_count(f"state_dict['updates'][{name!r}]", updates[name])
        if not isinstance(arrays, list) or len(arrays) != slots:
            raise ValueError(
                f"state_dict['kept'][{name!r}] is not a list of {slots} arrays, as this optimizer keeps; expected the "
                "state of one of the same kind"
            )
        if arrays:
            check_arrays(f"state_dict['kept'][{name!r}]", {str(k): array for k, array in enumerate(arrays)})
    return {name: int(count) for name, count in updates.items()}, {name: list(arrays) for name, arrays in kept.items()}


def _copied(array: Array) -> Array:
    """A copy where the array is, whatever device is the current one."""
    backend = backend_of(array)
    with backend.active():
        return backend.copy(array)


def _moved(name: str, kept: Array, backend: Backend, dtype: str) -> Array:
    """A copy of what is kept for a parameter, on a device and in a dtype."""
    own = backend_of(kept)
    if own == backend and dtype_name(kept) == dtype:
        return _copied(kept)
    host = own.to_host(kept)
    found, k = rounded(host, dtype)
    if k is not None:
        raise ValueError(f"{name} holds {host.reshape(-1)[k]:g}, which {dtype} cannot hold")
    return unpacked(backend, found)


class Optimizer(ABC):
    """A learning rate, and arrays kept per parameter."""

    #: Learning rate, eta of (4); may be set between updates.
    lr: float
    _kept: dict[str, list[Array]]
    _updates: dict[str, int]  # of every parameter: one may join later

    def __init__(self, lr: float) -> None:
        self.lr = lr
        self._kept, self._updates = {}, {}

    @property
    def keeps(self) -> tuple[str, ...]:
        """The arrays of a parameter's shape that an update keeps, by name."""
        return ()

    def update(self, params: Arrays, grads: Arrays) -> None:
        """Change every parameter in place.

        Raises
        ------
        ValueError, TypeError
            If keys, shapes, dtypes or devices of ``grads`` are not those of ``params``, or parameters
            changed their shape, dtype or device since the last update; nothing is changed then.
        """
        check_update(params, grads, self._kept)
        self._check_names({*params, *self._updates})
        together: dict[Any, list[tuple[Array, ...]]] = {}
        for name, param in params.items():
            backend = backend_of(param)
            if name not in self._kept:
                with backend.active():
                    self._kept[name] = [backend.xp.zeros_like(param) for _ in self.keeps]
            self._updates[name] = self._updates.get(name, 0) + 1
            alike = backend, self._numbers(name, backend, param.dtype, self._updates[name])
            together.setdefault(alike, []).append((param, grads[name], *self._kept[name]))
        for (backend, numbers), groups in together.items():
            with backend.active():
                backend.fused_over(self._equation())(groups, *numbers)

    def state_dict(self) -> dict[str, Any]:
        """What the next update depends on beside the settings, for :meth:`load_state_dict`.

        Returns
        -------
        dict
            ``"updates"``: how often each parameter was updated; ``"kept"``: copies of the arrays kept for each, on
            their device; ``"keeps"``: which these are, such as ``["m", "v"]`` of :class:`Adam`.
        """
        return {
            "updates": dict(self._updates),
            "kept": {name: [_copied(a) for a in kept] for name, kept in self._kept.items()},
            "keeps": list(self.keeps),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any], like: Arrays | None = None) -> None:
        """Go on from what :meth:`state_dict` returned.

        Parameters
        ----------
        state_dict : dict
        like : dict of str to array, optional
            The parameters that will be updated: what is kept moves to the device and the dtype of each, rounded. Those
            for which nothing is kept begin anew. Left out, it stays where it is, which has to be where they are.

        Raises
        ------
        ValueError, TypeError
            If it is no such dictionary, or of another kind of optimizer; if ``like`` has another shape for a name, or
            not all of its names; if a number is too large for the dtype. Nothing is changed then.
        """
        updates, kept = _checked_state(state_dict, self.keeps)
        if like is None:
            moved = {name: [_copied(a) for a in arrays] for name, arrays in kept.items()}
        else:
            check_arrays("like", like)
            if missing := sorted(set(kept) - set(like)):
                raise ValueError(
                    f"like has no {', '.join(map(repr, missing))}, for which state_dict keeps something; expected the "
                    "parameters that the state is of, or a state_dict without these names"
                )
            for name, arrays in kept.items():
                shapes = {tuple(array.shape) for array in arrays} - {tuple(like[name].shape)}
                if shapes:
                    raise ValueError(
                        f"state_dict['kept'][{name!r}] has shape {shapes.pop()}, like[{name!r}] "
                        f"{tuple(like[name].shape)}; expected the same: what is kept for another shape is of no use, "
                        "take the name out of both parts of state_dict"
                    )
            moved = {
                name: [
                    _moved(f"state_dict['kept'][{name!r}]", array, backend_of(param), dtype_name(param))
                    for array in kept[name]
                ]
                for name, param in like.items()
                if name in kept
            }
        vars(self).update(_updates={name: updates[name] for name in moved}, _kept=moved)

    def to(self, device: str | Backend) -> Self:
        """Move what is kept to a device, as :meth:`RNN.to` moves the parameters; returns the optimizer.

        Examples
        --------
        >>> import bptt_array as ba
        >>> rnn, optimizer = ba.RNN(input_size=3, hidden_size=8), ba.Adam()
        >>> optimizer.update(rnn.to("cpu").params, rnn.params)  # "cuda", where there is one
        >>> optimizer = optimizer.to(rnn.backend)
        """
        backend = resolve(device)
        vars(self)["_kept"] = {
            name: [_moved(f"what is kept for {name!r}", array, backend, dtype_name(array)) for array in arrays]
            for name, arrays in self._kept.items()
        }
        return self

    def __getstate__(self) -> dict[str, Any]:
        """With what is kept on the host, so that it can be pickled from every device."""
        return vars(self) | {"_kept": {name: [packed(a) for a in arrays] for name, arrays in self._kept.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        kept = {name: [unpacked(*one) for one in arrays] for name, arrays in state["_kept"].items()}
        vars(self).update(state | {"_kept": kept})

    def _check_names(self, names: Collection[str]) -> None:  # noqa: B027 (most have nothing to say of names)
        """What can be wrong with those of parameters that are to be updated, or were before."""

    @abstractmethod
    def _equation(self) -> Callable[[Elementwise], Callable[..., None]]:
        """Makes the function ``(param, grad, *kept, *numbers)``, which changes a parameter and what is kept for it."""

    @abstractmethod
    def _numbers(self, name: str, backend: Backend, dtype: Any, t: int) -> tuple[float, ...]:
        """Those of a parameter of that name; ``t``: its updates, this one included."""
