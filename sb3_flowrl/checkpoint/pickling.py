"""
Pickles in a checkpoint, with errors that name what can't be saved and what is missing when it is loaded.
"""

import base64
import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import cloudpickle
import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv

from sb3_flowrl.checkpoint.files import CheckpointError

SelfOffPolicyAlgorithm = TypeVar("SelfOffPolicyAlgorithm", bound=OffPolicyAlgorithm)


# ---------------------------------------------------------------------------------------------------------------- saving


def dump(value: Any, file: BinaryIO) -> None:
    """
    Pickle a value with Python's pickle, or with cloudpickle if that fails.

    Pickle fails for classes that were defined in a function, for example. Cloudpickle is not used for everything, because it
    stores the classes of a script themselves instead of their names. A script that loads them would get copies of its own
    classes.

    :param value: value to pickle
    :param file: file to write to, open for writing
    """
    start = file.tell()
    try:
        pickle.dump(value, file, protocol=5)
    except (pickle.PicklingError, AttributeError, TypeError):
        file.seek(start)
        file.truncate()
        cloudpickle.dump(value, file, protocol=5)


def save_model(model: OffPolicyAlgorithm) -> bytes:
    """
    Save a model to bytes.

    :param model: the model
    :return: what the model's ``save`` writes
    :raises CheckpointError: if something can't be pickled; the message names it
    """
    file = io.BytesIO()
    try:
        model.save(file)
    except Exception as error:
        excluded = model._excluded_save_params()
        culprits = unpicklable({name: value for name, value in vars(model).items() if name not in excluded})
        raise CheckpointError(_explain_unpicklable("the model's", culprits, error)) from error
    return file.getvalue()


class _DiscardingFile(io.RawIOBase):
    """A file that discards what is written to it."""

    def write(self, data: Any) -> int:
        return len(data)

    def tell(self) -> int:
        return 0

    def seek(self, offset: int, whence: int = 0) -> int:
        return 0

    def truncate(self, size: int | None = None) -> int:
        return 0


def check_picklable(owner: str, value: Any, parts: Mapping[str, Any]) -> None:
    """
    Check that a value can be pickled.

    :param owner: owner of the parts, for the message
    :param value: value to check
    :param parts: its parts by name
    :raises CheckpointError: if it can't be pickled; the message names the parts that can't
    """
    try:
        dump(value, _DiscardingFile())  # type: ignore[arg-type]
    except Exception as error:
        raise CheckpointError(_explain_unpicklable(owner, unpicklable(parts), error)) from error


def unpicklable(parts: Mapping[str, Any]) -> list[str]:
    """
    Find the values that can't be pickled.

    :param parts: values by name
    :return: the names of those that can't be pickled
    """

    def can_be_pickled(value: Any) -> bool:
        try:
            cloudpickle.dump(value, _DiscardingFile())
        except Exception:
            return False
        return True

    return [name for name, value in parts.items() if not can_be_pickled(value)]


def _explain_unpicklable(owner: str, names: list[str], error: Exception) -> str:
    return (
        f"This run can't be saved in checkpoints: {owner} {' and '.join(names) or 'state'} can't be pickled or copied "
        f"({type(error).__name__}: {error}). Remove what only this process can use, such as locks, open files, threads and "
        "generators, or train without checkpoints."
    )


# --------------------------------------------------------------------------------------------------------------- loading


class _MissingClassError(Exception):
    """
    Raised when a pickle needs something that can't be imported.
    """


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError) as error:
            raise _MissingClassError(f"{module}.{name} ({error})") from error


def load(path: Path) -> Any:
    """
    Load a file that :func:`dump` wrote.

    :param path: the file
    :return: the value
    :raises CheckpointError: if it can't be loaded; the message names a class that is missing
    """
    try:
        with open(path, "rb") as file:
            return _Unpickler(file).load()
    except OSError:
        raise
    except _MissingClassError as error:
        raise CheckpointError(f"The checkpoint {path.parent} can't be loaded: {path.name} needs {_advise(error)}") from error
    except Exception as error:
        raise CheckpointError(f"The checkpoint {path.parent} can't be loaded: {path.name} fails with {error!r}.") from error


def load_model(
    algorithm: type[SelfOffPolicyAlgorithm],
    path: Path,
    env: GymEnv,
    device: th.device | str,
    custom_objects: dict[str, Any] | None,
    **kwargs: Any,
) -> SelfOffPolicyAlgorithm:
    """
    Load a model completely or not at all.

    SB3's ``load`` alone skips what it can't unpickle.

    :param algorithm: class of the model
    :param path: file that the model's ``save`` wrote, in the checkpoint's own folder
    :param env: the environment
    :param device: Device on which the code should run.
    :param custom_objects: objects that replace the saved ones, by name
    :param kwargs: arguments to change
    :return: the model
    :raises CheckpointError: if the model can't be loaded; the message names a class that is missing
    :raises ValueError: if the environment does not fit
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Could not deserialize object")
            return algorithm.load(path, env=env, device=device, custom_objects=custom_objects, **kwargs)
    except (ValueError, OSError, CheckpointError):
        raise
    except Exception as error:
        where = f"The checkpoint {path.parent} can't be loaded: "
        for name, missing in _missing_classes(path, custom_objects or {}):
            advice = f"{_advise(missing)} Or pass a replacement: custom_objects={{{name!r}: ...}}."
            raise CheckpointError(f"{where}the model's {name} needs {advice}") from error
        raise CheckpointError(f"{where}{path.name} fails with {type(error).__name__}: {error}") from error


def _missing_classes(path: Path, custom_objects: Mapping[str, Any]) -> Iterator[tuple[str, _MissingClassError]]:
    """Yield each attribute of a saved model that needs a missing class, and the error that names the class."""
    with zipfile.ZipFile(path) as archive:
        data = json.loads(archive.read("data"))
    for name, item in data.items():
        if name not in custom_objects and isinstance(item, dict) and ":serialized:" in item:
            try:
                _Unpickler(io.BytesIO(base64.b64decode(item[":serialized:"]))).load()
            except _MissingClassError as error:
                yield name, error
            except Exception:  # the cause is not a missing class
                continue


def _advise(missing: _MissingClassError) -> str:
    return f"{missing}. Install it, import it, or define it in your script, as in the saved run."
