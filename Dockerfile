# Everything that the README's two commands need, with the CPU build of PyTorch.
#
#     docker build -t sb3-flowrl .
#     docker run --rm -v "$PWD/runs:/sb3-flowrl/runs" sb3-flowrl python examples/train_mujoco.py
#     docker run --rm sb3-flowrl python -m pytest -n 2 --dist loadfile -m "not slow"
FROM python:3.11-slim

# EGL with a software renderer for videos, a compiler for torch.compile; git and make for the tests and the Makefile
RUN apt-get update \
    && apt-get install --no-install-recommends -y g++ git libegl1 libgl1-mesa-dri libopengl0 make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /sb3-flowrl
RUN python3 -m venv .venv
ENV PATH="/sb3-flowrl/.venv/bin:$PATH" MUJOCO_GL=egl OMP_NUM_THREADS=1
RUN pip install --no-cache-dir -U pip \
    && pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/cpu
COPY . .
RUN pip install --no-cache-dir -e ".[mujoco,dmc,tests]"
CMD ["python", "examples/train_mujoco.py"]
