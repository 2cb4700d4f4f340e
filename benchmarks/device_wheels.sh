#!/usr/bin/env bash
# Downloads into .whl what benchmarks/device.sh needs, and a machine without a package registry lacks that has PyTorch, NumPy and
# pytest. The versions are those of the Python that runs this, so that the figures of both machines are of the same ones:
#
#     PYTHON=.venv/bin/python benchmarks/device_wheels.sh
#
# TARGET is the version of the other machine's Python.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
TARGET=${TARGET:-3.12}
# Without what these ask for in turn: torch must stay the machine's own, and pip would download another one
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
