import os

from setuptools import Distribution, find_packages, setup

here = os.path.dirname(os.path.abspath(__file__))

with open(os.path.join(here, "sb3_flowrl", "version.txt"), encoding="utf-8") as file_handler:
    __version__ = file_handler.read().strip()

with open(os.path.join(here, "README.md"), encoding="utf-8") as file_handler:
    long_description = file_handler.read()


class InstallStartupFiles(Distribution().get_command_class("install_data")):  # type: ignore[misc]
    """Put data files beside the packages, in site-packages, where Python looks for start-up files."""

    def finalize_options(self):
        self.set_undefined_options("install", ("install_lib", "install_dir"), ("root", "root"), ("force", "force"))


class DistributionWithStartupFiles(Distribution):
    """Without this an editable install leaves the data files out."""

    def has_data_files(self):
        return bool(self.data_files)

    has_data = has_data_files


# What examples/, benchmarks/ and studies/ need besides: the progress bar, plots, videos
examples = ["tqdm", "rich", "matplotlib", "moviepy"]
# What sb3_flowrl.safe needs
safe = ["safetensors>=0.4.2"]
# What sb3_flowrl.export needs
onnx = ["onnx>=1.18", "onnxscript>=0.6.2", "onnxruntime>=1.20"]
mujoco = [
    "gymnasium[mujoco]",
    # These tasks run with MuJoCo 4 as well, but dm_control's don't (below), and going from the one to the other can leave an
    # environment broken
    "mujoco<4",
]
# What sb3_flowrl.envs needs for the DeepMind Control Suite, and HumanoidBench beside its checkout
dmc = [
    # Shimmy imports gymnasium's MuJoCo renderer without asking for what that needs, and HumanoidBench is made of gymnasium's
    "gymnasium[mujoco]",
    "shimmy[dm-control]>=2.0.1,<3",
    "dm_control>=1.0.50",
    # dm_control 1.0.50 asks for 3.17 or newer, and with 4.0 none of its tasks loads (`flex_vertedge`)
    "mujoco<4",
]
# Caps gymnasium below 1.3, with which all the others work too. It takes any MuJoCo, where the others need one below 4
myosuite = ["myosuite>=3,<4", "mujoco<4"]
zoo = [
    "rl_zoo3[plots]>=2.9,<3",
    # What rl_zoo3 imports without asking for it
    "requests",
    "pandas",
    # Optuna's plots
    "plotly",
]
# What studies/ needs besides the extra zoo, whose rl_zoo3[plots] brings rliable: the runs, and the report's page
ray = ["ray>=2.40,<3", "pydantic>=2,<3", "filelock", "rich", "markdown-it-py>=3,<5", *zoo]

setup(
    name="sb3-flowrl",
    version=__version__,
    description="FlowRL, flow-based policies for online reinforcement learning, as a Stable-Baselines3 algorithm",
    long_description=long_description,
    long_description_content_type="text/markdown",
    keywords="reinforcement-learning flow-matching stable-baselines3 gymnasium pytorch",
    license="MIT",
    packages=[*find_packages(include=["sb3_flowrl", "sb3_flowrl.*"]), "sb3_flowrl.hyperparams"],
    package_dir={"sb3_flowrl.hyperparams": "hyperparams"},
    package_data={"sb3_flowrl": ["py.typed", "version.txt"], "sb3_flowrl.hyperparams": ["*.yml"]},
    data_files=[("", ["sb3_flowrl/sb3_flowrl.pth", "sb3_flowrl/sb3_flowrl.start"])],
    cmdclass={"install_data": InstallStartupFiles},
    distclass=DistributionWithStartupFiles,
    python_requires=">=3.10",
    install_requires=[
        # Brings torch and gymnasium, of the versions that it supports
        "stable-baselines3>=2.9,<3",
        "torch",
        "gymnasium",
    ],
    extras_require={
        "mujoco": mujoco,
        "dmc": dmc,
        "myosuite": myosuite,
        "all-envs": [*mujoco, *dmc, *myosuite],
        "zoo": zoo,
        "ray": ray,
        "docs": ["pdoc>=15"],  # make docs
        "safe": safe,
        "onnx": onnx,
        "examples": examples,
        "tests": [
            "pytest",
            "hypothesis",
            "sb3-contrib",  # what benchmarks/ and studies/ compare with
            "gymnasium[classic-control]",
            "mypy>=1.9.0,<3",
            "ruff>=0.5.6",
            "black>=26.1.0,<27",
            "tensorboard",
            *examples,
            *ray,  # and with it zoo
            *safe,
            *onnx,
        ],
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
)
