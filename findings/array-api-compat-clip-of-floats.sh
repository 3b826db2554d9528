#!/usr/bin/env bash
# array-api-compat 1.11 and 1.11.1 (numpy 2.2.6): clip of an array of floats raises where a bound is a whole number of Python.
# 1.11.2 does it, and the standard asks for it: bounds may be int or float for arrays of floats.
#
# Seen: "1.11: ValueError: Invalid integer data type 'f'.", the same for 1.11.1, and "1.11.2: [-1.0, 0.5, 1.0]".
#
# Why a user of recurrent networks would care: clip(z, -1, 1) is a hard tanh, and clip of gradients to [-1, 1] is in every
# textbook on exploding ones. Code against the Array API has it from this package, whose version other packages choose. This
# library asks for 1.11.2 or later (pyproject.toml), and a cell with such bounds is among its tests (tests/cells_of_users.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
for version in 1.11 1.11.1 1.11.2; do
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.2.6 "array-api-compat==$version"
  "$folder/venv/bin/python" - "$version" <<'PY'
import sys

import array_api_compat.numpy as xp

try:
    found = str(xp.clip(xp.asarray([-2.0, 0.5, 3.0]), -1, 1).tolist())
except ValueError as error:
    found = f"ValueError: {error}"
print(f"{sys.argv[1]}: {found}")
assert found.startswith("ValueError") == (sys.argv[1] != "1.11.2"), "that has changed"
PY
done
