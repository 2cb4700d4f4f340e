import os

from setuptools import find_packages, setup

here = os.path.dirname(os.path.abspath(__file__))

with open(os.path.join(here, "sb3_flowrl", "version.txt"), encoding="utf-8") as file_handler:
    __version__ = file_handler.read().strip()

with open(os.path.join(here, "README.md"), encoding="utf-8") as file_handler:
    long_description = file_handler.read()

# What examples/ and benchmarks/ need besides: the progress bar, plots, videos
examples = ["tqdm", "rich", "matplotlib", "moviepy"]

setup(
    name="sb3-flowrl",
    version=__version__,
    description="FlowRL, flow-based policies for online reinforcement learning, as a Stable-Baselines3 algorithm",
    long_description=long_description,
    long_description_content_type="text/markdown",
    keywords="reinforcement-learning flow-matching stable-baselines3 gymnasium pytorch",
    license="MIT",
    packages=find_packages(include=["sb3_flowrl", "sb3_flowrl.*"]),
    package_data={"sb3_flowrl": ["py.typed", "version.txt"]},
    python_requires=">=3.10",
    install_requires=[
        # Brings torch and gymnasium, of the versions that it supports
        "stable-baselines3>=2.9,<3",
        "torch",
        "gymnasium",
    ],
    extras_require={
        "mujoco": [
            "gymnasium[mujoco]",
            # gymnasium's -v4 and -v5 tasks are made for MuJoCo 2 and 3
            "mujoco<4",
        ],
        "examples": examples,
        "tests": ["pytest", "mypy>=1.9.0,<3", "ruff>=0.5.6", "black>=26.1.0,<27", "tensorboard", *examples],
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
)
