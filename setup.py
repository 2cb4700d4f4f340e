"""What pyproject.toml can't say: packages outside their parent's folder, and start-up files beside the packages."""

from setuptools import Distribution, find_packages, setup


class InstallStartupFiles(Distribution().get_command_class("install_data")):  # type: ignore[misc]
    """Put data files beside the packages, in site-packages, where Python looks for start-up files."""

    def finalize_options(self):
        self.set_undefined_options("install", ("install_lib", "install_dir"), ("root", "root"), ("force", "force"))


class DistributionWithStartupFiles(Distribution):
    """Make an editable install keep the data files."""

    def has_data_files(self):
        return bool(self.data_files)

    has_data = has_data_files


setup(
    packages=[*find_packages(include=["sb3_flowrl", "sb3_flowrl.*"]), "sb3_flowrl.hyperparams", "sb3_flowrl.agents"],
    package_dir={"sb3_flowrl.hyperparams": "hyperparams", "sb3_flowrl.agents": "agents"},
    data_files=[("", ["sb3_flowrl/zoo/sb3_flowrl.pth", "sb3_flowrl/zoo/sb3_flowrl.start"])],
    cmdclass={"install_data": InstallStartupFiles},
    distclass=DistributionWithStartupFiles,
)
