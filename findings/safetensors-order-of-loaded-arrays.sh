#!/usr/bin/env bash
# safetensors 0.8.0 (Python, numpy 2.4.6): safetensors.numpy.load(bytes) returns the arrays of the same bytes in another
# order at nearly every call, within one process; load_file of the same bytes always returns them in one order.
#
# Seen: "orders of load(bytes) in 20 calls: 20" (any number above 1 is the behaviour) and "orders of load_file: 1".
#
# Why a user of recurrent networks would care: a dictionary of parameters is often used as a sequence. With an order that
# changes, data-parallel processes that each load a model and send "the first array, the second, ..." pair the wrong
# arrays, zip(a.values(), b.values()) compares W_xh with W_hh, and sums over parameters (a global norm) have several
# values for the same weights. The remedy is to go by name, or to sort the names after loading.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
"$folder/venv/bin/python" - "$folder/model.safetensors" <<'PY'
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load, load_file, save

names = [f"l{layer}.{name}" for layer in range(3) for name in ("W_xh", "W_hh", "b_h")] + ["W_hy", "b_y"]
data = save({name: np.zeros(1, "float32") for name in names})
Path(sys.argv[1]).write_bytes(data)
orders = {tuple(load(data)) for _ in range(20)}
of_files = {tuple(load_file(sys.argv[1])) for _ in range(20)}
print(f"orders of load(bytes) in 20 calls: {len(orders)}; orders of load_file: {len(of_files)}")
assert len(orders) > 1, "load(bytes) has one order now"
assert len(of_files) == 1, "load_file has several orders now"
PY
