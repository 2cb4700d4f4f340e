#!/usr/bin/env bash
# Download the wheels that benchmarks/device.sh needs into .whl, for a machine that has PyTorch, NumPy and pytest but no
# package registry. The versions are those installed in the Python that runs this, so that both machines measure the same ones:
#
#     PYTHON=.venv/bin/python benchmarks/device_wheels.sh
#
# TARGET is the version of the other machine's Python.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
TARGET=${TARGET:-3.12}
# Without their dependencies: pip would download another torch, but the machine must keep its own
packages=(stable-baselines3 sb3-contrib gymnasium farama-notifications mujoco glfw)
platforms=(--platform manylinux1_x86_64 --platform manylinux2014_x86_64)
for glibc in 17 24 27 28 31 34; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done

mapfile -t pinned < <("$PYTHON" - "${packages[@]}" <<'PYTHON'
import sys
from importlib.metadata import version

for name in sys.argv[1:]:
    print(f"{name}=={version(name)}")
PYTHON
)
test "${#pinned[@]}" -eq "${#packages[@]}" || { echo "Install the packages above for $PYTHON, or name another PYTHON." >&2; exit 1; }
rm -rf .whl
"$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --implementation cp --python-version "$TARGET" \
    "${platforms[@]}" -d .whl "${pinned[@]}"
du -sh .whl
