"""Gradients that vanish, explode or keep their size: three networks that differ in W_hh alone.

    python benchmarks/vanishing.py [--threads 2] [--quick]

One tanh layer with the same inputs, targets and remaining weights; W_hh is 0.6 times an orthogonal matrix, an
orthogonal matrix, or has normal entries of variance 4 / H. For each: where the gradients of single losses arrive, that
of their sum, the singular values of (3.3), Lyapunov exponents and saturation. Prints a table and writes
results/vanishing.json and images/gradient-flow.png, into runs/benchmarks unless --out says otherwise.
"""

import importlib.util
from dataclasses import replace

import measure
import numpy as np

import bptt_array as ba
from bptt_array.diagnostics import diagnose, singular_values

#: T, N, H
SIZES, QUICK = (64, 8, 64), (16, 2, 8)

#: Singular values below this are left out of the figure: with normal entries they go down to 1e-168.
LEAST = 1e-20

SHORT = "0.6 times orthogonal"
KEEPING = "orthogonal"
WILD = "normal, variance 4/H"


def recurrent_weights(kind, H):
    rng = np.random.default_rng(1)
    if kind == WILD:
        return 2 * rng.standard_normal((H, H)) / H**0.5
    q, r = np.linalg.qr(rng.standard_normal((H, H)))
    return q * np.sign(np.diag(r)) * (0.6 if kind == SHORT else 1.0)


def network(kind, H):
    """Small inputs, so that tanh is nearly a straight line as long as W_hh does not make states large."""
    rnn = ba.RNN(4, H, 1, dtype="float64", seed=0)
    rnn.params["l0.W_hh"] = recurrent_weights(kind, H)
    rnn.params["l0.b_h"] *= 0
    return rnn


def measured(kind, sizes):
    """A diagnosis, and the singular values of dh_T/dh_t by the steps between."""
    T, N, H = sizes
    rng = np.random.default_rng(0)
    x, target = 0.1 * rng.standard_normal((T, N, 4)), rng.standard_normal((T, N, 1))
    rnn = network(kind, H)
    spans = [span for span in (0, 1, 2, 4, 8, 12, 16, 20, 24, 32, 40, 48, 56, 64) if span <= T]
    values = np.stack([singular_values(rnn, x, T - span, T) for span in spans])
    return diagnose(rnn, x, target, count=4), spans, values


def entry(kind, found, spans, values):
    """The numbers of a network."""
    total = found.flow.total[0, 0].mean(axis=1)
    last = found.flow.per_loss[-1, 0, 0].mean(axis=1)
    return {
        "W_hh": kind,
        "exponents": found.exponents[0, 0].mean(axis=0).tolist(),
        "saturated": float(np.nanmean(found.saturation["h"])),
        "total_first_over_last": float(total[0] / total[-1]),
        "last_loss_first_over_last": float(last[0] / last[-1]),
        "spans": spans,
        "largest": np.exp(np.log(values[:, :, 0]).mean(axis=1)).tolist(),
        "smallest": np.exp(np.log(values[:, :, -1]).mean(axis=1)).tolist(),
    }


def tables(result):
    """The result as Markdown."""
    rows = [
        [
            row["W_hh"],
            f"{row['exponents'][0]:+.3f}",
            f"{row['last_loss_first_over_last']:.1e}",
            f"{row['largest'][-1]:.1e}",
            f"{row['smallest'][-1]:.1e}",
            f"{100 * row['saturated']:.0f} %",
        ]
        for row in result["rows"]
    ]
    head = ["W_hh", "largest exponent", "dL_T/dh_1 over dL_T/dh_T", "largest singular value", "smallest", "saturated"]
    T, N, H = result["sizes"]
    return [
        f"T = {T}, N = {N}, H = {H}, tanh, float64. Exponents in nats per step; norms are means over sequences, "
        f"singular values geometric means, of dh_T/dh_0; saturated: part of the units with tanh' below 0.05:",
        "",
        *measure.table(head, rows),
    ]


def plot(found):
    """Three columns, a network each; rows share their axes, so that columns can be compared."""
    from matplotlib.figure import Figure

    from bptt_array import plots

    figure = Figure(figsize=(12, 9.5), layout="constrained")
    axes = figure.subplots(3, len(found), sharex="row", sharey="row", squeeze=False)
    limits = heat_limits([diagnosis.flow for diagnosis, _, _ in found.values()])
    for column, (kind, (diagnosis, spans, values)) in enumerate(found.items()):
        rate = diagnosis.exponents[0, 0, :, 0].mean()
        verdict = {SHORT: "vanishing", KEEPING: "keeping", WILD: "exploding"}[kind]
        plots.plot_loss_gradients(diagnosis.flow, axes[0, column], limits=limits, bar=False)
        axes[0, column].set_title(f"{verdict}\n$W_{{hh}}$ {kind}, $\\lambda_1$ = {rate:+.2f}", fontsize=11)
        last = replace(diagnosis.flow, total=diagnosis.flow.per_loss[-1])
        plots.plot_gradient_flow(
            {"$L$: of all steps": diagnosis.flow, "$L_k$: of the last step": last}, axes[1, column]
        )
        plots.plot_singular_values(values, axes[2, column], spans=spans)
        axes[2, column].set_title("of the last steps: $k = T$", fontsize=10)
        for factor, said in ((1.2, "all three lines coincide"), (10, "all three within a factor of ten")):
            if (values[..., 0] < factor * values[..., -1]).all():
                axes[2, column].text(0.04, 0.06, said, transform=axes[2, column].transAxes, fontsize=9)
                break
        if column:
            for of_row in axes[:, column]:
                of_row.set_ylabel("")
    [mesh] = axes[0, -1].collections
    figure.colorbar(mesh, ax=axes[0, -1], label=r"$|\partial L_k / \partial h_t|$", extend="min")
    axes[2, 0].set_ylim(LEAST, 10 * max(values.max() for _, _, values in found.values()))
    return figure


def heat_limits(flows):
    """One scale for all, of at most 12 decades: the small ones are what does not matter."""
    largest = [flow.per_loss.max() for flow in flows]
    smallest = min(flow.per_loss[flow.per_loss > 0].min() for flow in flows)
    return max(smallest, min(largest) * 1e-8), max(largest)


def main(argv=None):
    arguments = measure.parser(__doc__).parse_args(argv)
    sizes = QUICK if arguments.quick else SIZES
    with measure.threads(arguments.threads, peers=False):
        busy = measure.busy()
        found = {kind: measured(kind, sizes) for kind in (SHORT, KEEPING, WILD)}
        about = measure.environment(arguments.threads, measure.command(__file__), [busy])
    result = {"about": about, "sizes": list(sizes), "rows": [entry(kind, *of_kind) for kind, of_kind in found.items()]}
    print("\n".join([*measure.describe(about), "", *tables(result)]))
    print(f"wrote {measure.save('vanishing', result, arguments.out)}")
    if importlib.util.find_spec("matplotlib") is None:
        print("matplotlib is not installed: no figure")
    else:
        print(f"wrote {measure.save_figure(plot(found), 'gradient-flow', arguments.out)}")
    return result


if __name__ == "__main__":
    measure.run(main)
