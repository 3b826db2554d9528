#!/usr/bin/env bash
# threadpoolctl 3.8.0 (2026), with NumPy 2.4.6 (OpenBLAS 0.3.31 on pthreads, as in NumPy's wheels for Linux).
#
# Behaviour: where one thread has a limit in force, or has once set a number by a controller's set_num_threads,
# threadpool_limits and set_num_threads of every other thread do nothing: no error, no warning, and the number that
# threadpool_info reports there is the one from before. With 3.6.0 they are obeyed, whichever thread asks.
# (3.8.0 says so in the docstring of OpenBLASController, not in those of the functions that are called.)
#
# Output seen:  3.6.0: a limit of 1 in another thread gives 1
#               3.8.0: a limit of 1 in another thread gives 2
#
# Why a user of recurrent networks would care: a training loop in a thread of its own, or several at a time, limits the
# BLAS to one thread each so that threads do not wait for each other in every time step, and to get the same bits on
# every day. Both are lost without a word when another part of the program holds a limit: time steps take several times
# as long on a busy machine, and the last bits of sums depend on the number of threads. This library sets the number from
# any thread, one after the other, and lets go of it (tests/test_workers.py).
#
# Exits non-zero when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
cat >"$folder/limit.py" <<'PY'
import threading

import numpy as np
import threadpoolctl

np.ones((64, 64)) @ np.ones((64, 64))
blas = threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers[0]
if blas.internal_api != "openblas" or blas.threading_layer != "pthreads":
    raise SystemExit("this NumPy has another BLAS: nothing was tried")


def other():
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        print(f"{threadpoolctl.__version__}: a limit of 1 in another thread gives {blas.num_threads}")


with threadpoolctl.threadpool_limits(2, user_api="blas"):
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
PY
for version in 3.6.0 3.8.0; do
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 "threadpoolctl==$version"
  "$folder/venv/bin/python" "$folder/limit.py"
done | tee "$folder/seen"
grep -qx "3.6.0: a limit of 1 in another thread gives 1" "$folder/seen"
grep -qx "3.8.0: a limit of 1 in another thread gives 2" "$folder/seen"
