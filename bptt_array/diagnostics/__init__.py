"""Seeing the gradient: whether it vanishes or explodes, where, and why; for any network and any batch.

:func:`gradient_flow` says what arrives at every state, :func:`jacobian` and :func:`singular_values` how two states of
a layer depend on each other, the product (3.3), :func:`lyapunov_exponents` what that comes to per step in the long
run, :func:`saturation` where units have no slope to pass a gradient on; :func:`diagnose` is all of these. The network
is left as it is. Results are NumPy arrays on the host; pictures of them are in :mod:`bptt_array.plots`.
"""

from .diagnosis import Diagnosis, diagnose
from .flow import GradientFlow, gradient_flow
from .jacobians import jacobian, jacobian_norms
from .lyapunov import lyapunov_exponents
from .saturated import saturation
from .singular import singular_values

__all__ = [
    "Diagnosis",
    "GradientFlow",
    "diagnose",
    "gradient_flow",
    "jacobian",
    "jacobian_norms",
    "lyapunov_exponents",
    "saturation",
    "singular_values",
]
