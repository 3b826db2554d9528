"""Updates on several processes of this machine: strong and weak scaling, what is sent, and whether to overlap it.

    python benchmarks/distributed.py [--ranks 1 2 4] [--rounds 5] [--steps 30] [--quick]

Starts ``mpiexec`` by itself, with one BLAS thread for each rank; jobs of different sizes take turns. An update is
loss_and_grad of the rank's sequences (characters, cross-entropy, tanh), all_reduce, clipping and Adam; its time is that
of the slowest rank, from a barrier on. In every other update a second barrier stands before all_reduce, which tells
sending from waiting for the slowest. Prints tables, those of a model for 8 to 1024 GPUs too (communication.py), and
writes results/distributed.json, into runs/benchmarks unless --out says otherwise. Needs mpi4py and mpiexec.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import communication
import measure
import numpy as np
from communication import Counting

import bptt_array as ba
from bptt_array.schedules.instructions import Segments

#: Characters of the default training run.
V = 103


class Work(NamedTuple):
    """Updates of N sequences together; of an ensemble: members, which ranks share in their place."""

    kind: str  # "strong", "weak" or "members"
    T: int
    N: int
    H: int
    members: int | None = None

    def of(self, ranks):
        """What so many ranks have to do together."""
        return self._replace(N=self.N * ranks) if self.kind == "weak" else self

    def __str__(self):
        each = {"weak": " a rank", "members": f", E = {self.members}"}.get(self.kind, "")
        return f"{self.kind}: T = {self.T}, N = {self.N}{each}, H = {self.H}"


WORKS = [
    Work("strong", 32, 32, 256),
    Work("strong", 32, 128, 512),
    Work("weak", 32, 32, 256),
    Work("weak", 32, 64, 512),
    Work("members", 32, 8, 64, 8),
]
QUICK = [Work("strong", 4, 6, 8), Work("weak", 4, 2, 8), Work("members", 4, 2, 4, 4)]


# ---- on the ranks -----------------------------------------------------------------------------------------


class Update:
    """One update after the other, of this rank's part."""

    def __init__(self, work, ranks):
        members = self.members = work.members
        part, seed = ranks.part(members or work.N), 0
        rng = np.random.default_rng(0)
        self.x, self.target = (rng.integers(0, V, (work.T, work.N)) for _ in range(2))
        if members is None:
            self.x, self.target = self.x[:, part].copy(), self.target[:, part].copy()
        else:
            self.members, seed = part.stop - part.start, part.start
        self.rnn = ba.RNN(V, work.H, V, output="softmax", members=self.members, seed=seed)
        self.optimizer, self.ranks = ba.Adam(3e-3), ranks

    def gradients(self):
        self.loss, self.grads, _ = self.rnn.loss_and_grad(self.x, self.target, "cross_entropy")

    def send(self):
        if self.members is None:
            self.grads, self.loss, _ = self.ranks.all_reduce(self.grads, self.loss)

    def change(self):
        clipped = ba.clip_by_global_norm(self.grads.params, 1.0, self.members)
        self.optimizer.update(self.rnn.params, clipped)

    def bytes(self):
        return sum(value.nbytes for value in self.rnn.params.values())

    def segments(self):
        """Of time, in which a step runs backward."""
        return len(Segments(0, len(self.x), self.rnn.plan(self.x.shape).longest))


def clocked(update, barrier, steps):
    """Seconds of whole updates, and of the parts of others: ``{"update", "own", "wait", "send"}``, of this rank."""
    times = {name: [] for name in ("update", "own", "wait", "send")}
    for k in range(2 * steps + 4):
        barrier()
        began = time.perf_counter()
        update.gradients()
        ready = time.perf_counter()
        if k % 2:
            barrier()
        sending = time.perf_counter()
        update.send()
        sent = time.perf_counter()
        update.change()
        now = time.perf_counter()
        if k < 4:
            continue
        if k % 2:
            for name, seconds in (("own", ready - began), ("wait", sending - ready), ("send", sent - sending)):
                times[name].append(seconds)
        else:
            times["update"].append(now - began)
    return times


def overlapped(update, comm, steps):
    """Seconds of a message and the gradients after it, and of both at once: all that could hide it."""
    from mpi4py import MPI

    flat = np.ones(update.bytes() // 4, np.float32)
    times = {"after": [], "at once": []}
    for k in range(2 * steps + 4):
        comm.Barrier()
        began = time.perf_counter()
        if k % 2:
            comm.Allreduce(MPI.IN_PLACE, flat)
            update.gradients()
        else:
            request = comm.Iallreduce(MPI.IN_PLACE, flat)
            update.gradients()
            request.Wait()
        if k >= 4:
            times["after" if k % 2 else "at once"].append(time.perf_counter() - began)
        flat /= comm.Get_size()
    return times


def on_ranks(works, steps):
    """Everything that one job measures, told by rank 0 as one line of JSON."""
    from bptt_array import distributed

    ranks = distributed.communicator()
    several = ranks.size > 1
    comm = ranks.comm if several else None
    found = []
    for work in works:
        update = Update(work.of(ranks.size), ranks)
        if work.members is None:
            ranks.broadcast(update.rnn.params)
        times = clocked(update, comm.Barrier if several else lambda: None, steps)
        entry = {"work": list(work), "bytes": update.bytes(), "segments": update.segments()}
        if several:
            entry["sent"] = sent(work, comm)
            if work.kind == "strong":
                times |= overlapped(update, comm, steps)
        # of every update, and of each of its parts, the rank that took longest
        of_ranks = comm.gather(times) if several else [times]
        if ranks.rank == 0:
            found.append(
                entry | {"times": {name: np.max([t[name] for t in of_ranks], axis=0).tolist() for name in times}}
            )
    if ranks.rank == 0:
        print(json.dumps(found), flush=True)


def sent(work, comm):
    """Every call that sends something in one update, and its bytes."""
    from bptt_array import distributed

    counting = Counting(comm)
    update = Update(work.of(comm.Get_size()), distributed.Communicator(counting))
    for _ in range(2):  # ranks agree on what is coming when they first meet it
        counting.calls.clear()
        update.gradients()
        update.send()
        update.change()
    return [list(call) for call in counting.calls]


# ---- jobs -------------------------------------------------------------------------------------------------


def mpiexec():
    """The launcher: of a package index's MPI it is beside Python."""
    beside = Path(sys.executable).parent / "mpiexec"
    return str(beside) if beside.exists() else shutil.which("mpiexec")


def missing():
    """What is; empty if nothing."""
    there = importlib.util.find_spec("mpi4py") is not None and mpiexec() is not None
    return "" if there else "mpi4py or mpiexec is not there: pip install mpi4py mpich"


def job(ranks, threads, works, steps):
    """Start ranks with so many threads each; returns what they measured."""
    settings = {
        "OPENBLAS_NUM_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    arguments = [__file__, "--on-ranks", json.dumps([works, steps])]
    command = [mpiexec(), "-n", str(ranks), sys.executable, *arguments]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{ranks} ranks ended with status {done.returncode}:\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def library():
    """Name and version of the MPI, asked of another process: this one is to start others."""
    ask = "from bptt_array.distributed import library; print(library())"
    return subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()


# ---- tables -----------------------------------------------------------------------------------------------


def tables(result):
    """What was measured, then the model."""
    rows = result["rows"]
    work = [Work(*row["work"]) for row in rows]
    base = {str(w): row for w, row in zip(work, rows, strict=True) if (row["ranks"], row["threads"]) == (1, 1)}
    scaling, messages, overlap, unsteady = [], {}, [], []
    for w, row in zip(work, rows, strict=True):
        times, one = row["times"], base[str(w)]["times"]["update"]["median_ms"]
        whole = times["update"]
        # In weak scaling there is as much more to do as there are more ranks.
        faster = one / whole["median_ms"] * (row["ranks"] if w.kind == "weak" else 1)
        several = row["ranks"] > 1 and w.members is None
        scaling.append([
            str(w),
            str(row["ranks"]),
            str(row["threads"]),
            "{median_ms:.2f} ({p10_ms:.2f}-{p90_ms:.2f})".format(**whole),
            f"{faster:.2f}",
            *(f"{times[name]['median_ms']:.2f}" if several else "-" for name in ("send", "wait")),
        ])  # fmt: skip
        unsteady.append((f"{w} on {row['ranks']} x {row['threads']}", whole))
        if row["ranks"] > 1:
            messages.setdefault((w.kind == "members", w.H), (w, row))
        if "after" in times:
            after, at_once = (times[name]["median_ms"] for name in ("after", "at once"))
            overlap.append([
                str(w),
                str(row["ranks"]),
                str(row["segments"]),
                *(f"{(layers - 1) / (layers * row['segments']):.0%}" for layers in (1, 2)),
                f"{after:.2f}",
                f"{at_once:.2f}",
                f"{at_once / after:.2f}",
            ])  # fmt: skip
    head = [
        "",
        "ranks",
        "threads each",
        "ms an update, median (p10-p90)",
        "times the work of 1 x 1",
        "all_reduce, ms",
        "wait, ms",
    ]
    lines = [f"{result['mpi']}, {result['steps']} updates in each of {result['rounds']} turns:", ""]
    lines += [*measure.table(head, scaling), "", *measure.unsteady(unsteady), "Sent in an update, counted:", ""]
    counted = [
        [
            "members of an ensemble" if w.members else f"H = {w.H}",
            f"{row['bytes']:,}",
            str(len(row["sent"])),
            f"{sum(map(sum, (call[1:] for call in row['sent']))):,}",
            f"{sum(map(sum, (call[1:] for call in row['sent']))) / row['bytes']:.5f}",
        ]
        for w, row in messages.values()
    ]
    lines += measure.table(["", "bytes of parameters", "messages", "bytes sent", "ratio"], counted)
    lines += [
        "",
        "What of the backward pass is left when the top layer's gradients are complete, of networks with one layer and "
        "two; and a message, then loss and gradients of a whole update, against both at once (`Iallreduce`), all that "
        "could hide it:",
        "",
    ]
    head = ["", "ranks", "segments", "left, L = 1", "left, L = 2"]
    head += ["one after the other, ms", "at once, ms", "at once / after"]
    lines += measure.table(head, overlap)
    return [*lines, "", "The model:", "", *communication.tables(measure.table)]


def main(argv=None):
    parser = measure.parser(__doc__)
    parser.add_argument("--ranks", type=measure.positive, nargs="+", default=[1, 2, 4], help="(default: 1 2 4)")
    parser.add_argument("--rounds", type=measure.positive, default=5, help="turns (default: 5)")
    parser.add_argument("--steps", type=measure.positive, default=30, help="updates of each kind a turn (default: 30)")
    parser.add_argument("--on-ranks", help="what mpiexec starts: not for you")
    arguments = parser.parse_args(argv)
    if arguments.on_ranks:
        works, steps = json.loads(arguments.on_ranks)
        on_ranks([Work(*work) for work in works], steps)
        return None
    if missing():
        parser.error(missing())
    works, rounds, steps = WORKS, arguments.rounds, arguments.steps
    if arguments.quick:
        works, rounds, steps = QUICK, 1, 4
    # As many threads as there may be in one process, beside one a rank: what a user without mpiexec has.
    kinds = [(1, 1), (1, arguments.threads), *((ranks, 1) for ranks in arguments.ranks if ranks > 1)]
    busy, turns = [], {kind: [] for kind in dict.fromkeys(kinds)}
    for k in range(rounds):
        for ranks, threads in turns:
            print(f"turn {k + 1} of {rounds}: {ranks} x {threads} ...", flush=True)
            busy.append(measure.busy())
            turns[ranks, threads].append(job(ranks, threads, works, steps))
    rows = []
    for w, work in enumerate(works):
        for (ranks, threads), jobs in turns.items():
            of_work = [found[w] for found in jobs]
            times = {name: [s for entry in of_work for s in entry["times"][name]] for name in of_work[0]["times"]}
            summaries = {name: measure.summary(seconds) for name, seconds in times.items()}
            rest = {name: of_work[0][name] for name in ("bytes", "segments", "sent") if name in of_work[0]}
            rows.append({"work": list(work), "ranks": ranks, "threads": threads, "times": summaries, **rest})
    about = measure.environment(arguments.threads, measure.command(__file__), busy)
    result = {"about": about, "mpi": library(), "rounds": rounds, "steps": steps, "rows": rows}
    print("\n".join([*measure.describe(about), "", *tables(result)]))
    print(f"wrote {measure.save('distributed', result, arguments.out)}")
    return result


if __name__ == "__main__":
    measure.run(main)
