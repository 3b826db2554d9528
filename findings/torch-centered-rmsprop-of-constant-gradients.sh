#!/usr/bin/env bash
# torch 2.13.0 (CPU), torch.optim.RMSprop(centered=True).
#
# Behaviour: a parameter whose gradient stays the same becomes nan. The variance is computed as the mean square less the
# square of the mean, which are equal then but for rounding; where their difference comes out below zero, the square root
# is nan, and so is the parameter from then on. The loss before that update is a number like any other. float64 does not
# help, nor does foreach=True.
#
# Output seen:  update 3226: loss of a number, gradient 0.1, parameter nan (foreach=False, and True)
#
# Why a user of recurrent networks would care: the centered variant was made for them (Graves, 2013, "Generating
# sequences with recurrent neural networks"), and a gradient stays the same wherever a loss is linear in a parameter: an
# output bias under a weighted mean absolute error, for as long as all targets are on one side of the outputs. The run is
# lost after thousands of good updates, and a check of losses and gradients sees nothing before. Here the variance is a
# running mean of products that cannot be negative (bptt_array/optimizers/updates.py; tests/test_parts.py).
#
# Exits non-zero when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat >"$folder/constant.py" <<'PY'
import math

import torch

for foreach in (False, True):
    bias = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.RMSprop([bias], lr=1e-4, centered=True, foreach=foreach)
    for update in range(1, 20_001):
        optimizer.zero_grad()
        loss = 0.1 * bias.sum()
        loss.backward()
        optimizer.step()
        if not math.isfinite(bias.item()):
            kind = "a number" if math.isfinite(loss.item()) else "none"
            print(f"update {update}: loss of {kind}, gradient {bias.grad.item():g}, parameter {bias.item()}")
            break
    else:
        print("a number after 20,000 updates")
PY
"$folder/venv/bin/python" "$folder/constant.py" | tee "$folder/seen"
[ "$(grep -c "loss of a number, gradient 0.1, parameter nan" "$folder/seen")" = 2 ]
