"""
Pickles of a checkpoint, with errors that name what can't be saved and what is missing when it is loaded.
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
    Pickle a value as Python does, or, where that can't be done, such as with classes made in a function, with cloudpickle.

    Not with cloudpickle alone: it stores the classes of a script themselves instead of their names, and the script that loads
    them would get copies of its own classes.

    :param value: what to pickle
    :param file: where to, open for writing
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
    :param model: the model
    :return: what its ``save`` writes
    :raises CheckpointError: naming what can't be pickled
    """
    file = io.BytesIO()
    try:
        model.save(file)
    except Exception as error:
        excluded = model._excluded_save_params()
        culprits = unpicklable({name: value for name, value in vars(model).items() if name not in excluded})
        raise CheckpointError(_explain_unpicklable("the model's", culprits, error)) from error
    return file.getvalue()


class _Nowhere(io.RawIOBase):
    """A file that forgets what is written to it."""

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
    :param owner: whose the parts are, for the message
    :param value: what is to be pickled
    :param parts: its parts by name
    :raises CheckpointError: naming those that can't be pickled
    """
    try:
        dump(value, _Nowhere())  # type: ignore[arg-type]
    except Exception as error:
        raise CheckpointError(_explain_unpicklable(owner, unpicklable(parts), error)) from error


def unpicklable(parts: Mapping[str, Any]) -> list[str]:
    """
    :param parts: values by name
    :return: the names of those that can't be pickled
    """

    def can_be_pickled(value: Any) -> bool:
        try:
            cloudpickle.dump(value, _Nowhere())
        except Exception:
            return False
        return True

    return [name for name, value in parts.items() if not can_be_pickled(value)]


def _explain_unpicklable(owner: str, names: list[str], error: Exception) -> str:
    return (
        f"This run can't be saved in checkpoints: {owner} {' and '.join(names) or 'state'} can't be pickled, or copied "
        f"({type(error).__name__}: {error}). Leave out of it what belongs to this process alone, such as locks, open files, "
        "threads and generators, or train without checkpoints."
    )


# --------------------------------------------------------------------------------------------------------------- loading


class _MissingClassError(Exception):
    """
    A pickle needs what can't be imported.
    """


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError) as error:
            raise _MissingClassError(f"{module}.{name} ({error})") from error


def load(path: Path) -> Any:
    """
    :param path: a file that :func:`dump` wrote
    :return: what was dumped
    :raises CheckpointError: if that can't be done, naming the class that is missing
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
    Load a model by its ``load``, but completely or not at all: SB3 passes over what it can't unpickle.

    :param algorithm: the model's class
    :param path: the file that its ``save`` wrote, in the checkpoint's own folder
    :param env: the environment
    :param device: Device on which the code should run.
    :param custom_objects: objects to put in the place of the saved ones, by their names
    :param kwargs: arguments to change
    :return: the model
    :raises CheckpointError: if that can't be done, naming the class that is missing
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
            advice = f"{_advise(missing)} Or put something in its place: custom_objects={{{name!r}: ...}}."
            raise CheckpointError(f"{where}the model's {name} needs {advice}") from error
        raise CheckpointError(f"{where}{path.name} fails with {type(error).__name__}: {error}") from error


def _missing_classes(path: Path, custom_objects: Mapping[str, Any]) -> Iterator[tuple[str, _MissingClassError]]:
    """What can't be imported of what a saved model holds, with the name of the model's attribute that needs it."""
    with zipfile.ZipFile(path) as archive:
        data = json.loads(archive.read("data"))
    for name, item in data.items():
        if name not in custom_objects and isinstance(item, dict) and ":serialized:" in item:
            try:
                _Unpickler(io.BytesIO(base64.b64decode(item[":serialized:"]))).load()
            except _MissingClassError as error:
                yield name, error
            except Exception:  # it is not the class that is missing
                continue


def _advise(missing: _MissingClassError) -> str:
    return f"{missing}. Install, import or define in your script what it was in the run that was saved."
