"""
A trained policy in one file without pickles: the actor's weights as safetensors, and its description as JSON.

``FlowRL.load`` has to unpickle, and unpickling runs any code that a file contains. Here, everything that a file claims is
checked before it is used. The checksum detects damage. It is not a signature, and does not tell who wrote the file.
"""

import errno
import hashlib
import json
import os
import secrets
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import get_device

from sb3_flowrl.export.actor_spec import build_actor, describe_actor
from sb3_flowrl.networks import FlowActor
from sb3_flowrl.version import __version__

#: Increased when an older reader would misunderstand the file.
FORMAT_VERSION = 1
#: The only entry of the safetensors metadata.
METADATA_KEY = "sb3_flowrl_policy"
# Limits in bytes, well above what a policy needs
MAX_FILE_SIZE = 2**30
MAX_HEADER_SIZE = 2**20


class PolicyFileError(ValueError):
    """Raised when ``save_policy_safe`` did not write a file, or the file has changed since."""


def save_policy_safe(policy_or_model: BasePolicy | BaseAlgorithm, path: str | os.PathLike[str]) -> None:
    """
    Save the actor to a file that :func:`load_policy_safe` reads without unpickling anything.

    The actor is all that inference needs.

    :param policy_or_model: a ``FlowRL`` model, its policy, or an actor. The averaged actor is saved if there is one
    :param path: file to write, usually ``*.safetensors``. An existing file is replaced completely or not at all
    :raises ValueError: for what the file can't describe, such as a custom features extractor, and for weights that are not
        finite
    :raises ImportError: if safetensors is not installed
    """
    _import_safetensors()
    from safetensors.numpy import save

    actor = inference_actor(policy_or_model)
    weights = actor.state_dict()
    if wrong := sorted(name for name, weight in weights.items() if weight.dtype != th.float32):
        raise ValueError(f"The weights {wrong} are not float32. Convert the policy with policy.float() before you save it.")
    tensors = {name: np.ascontiguousarray(weight.detach().cpu().numpy()) for name, weight in weights.items()}
    _check_finite(tensors)

    description: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "sb3_flowrl_version": __version__,
        "actor": describe_actor(actor),
    }
    # If the file could not be loaded again, fail here, while the policy still exists
    _build_on_meta_device(description["actor"], {name: tensor.shape for name, tensor in tensors.items()})
    metadata = {METADATA_KEY: _to_json({**description, "sha256": _checksum(description, tensors)})}
    content = save(tensors, metadata=metadata)
    _check_file_size(len(content), content[:8])
    write_atomically(path, content)


def load_policy_safe(path: str | os.PathLike[str], device: th.device | str = "auto") -> FlowActor:
    """
    Load a policy that :func:`save_policy_safe` wrote, without unpickling anything.

    :param path: the file
    :param device: Device on which the policy should be loaded.
    :return: the actor, which predicts what the saved policy would
    :raises PolicyFileError: if the file can't be read, is damaged, has another version, or asks for anything that
        ``save_policy_safe`` would not have written
    :raises ImportError: if safetensors is not installed
    """
    _import_safetensors()
    device = get_device(device)
    try:
        actor = _read(path)
    except Exception as error:  # the file decides how gymnasium and torch are called, and so what they raise
        reason = str(error) if type(error) is ValueError else repr(error)
        raise PolicyFileError(
            f"{os.fspath(path)!r} can't be loaded as a policy: {reason[:500].rstrip('.')}. "
            "Get the file again from its source, or write it again with save_policy_safe."
        ) from error
    actor.set_training_mode(False)
    return actor.to(device)


def inference_actor(policy_or_model: BasePolicy | BaseAlgorithm) -> FlowActor:
    """
    Return the actor, which is all that inference needs.

    :param policy_or_model: a ``FlowRL`` model, its policy, or an actor
    :return: the actor; the averaged one, if there is one
    :raises ValueError: if there is no actor, or if inference also needs the statistics of VecNormalize
    """
    policy: Any = policy_or_model
    if isinstance(policy_or_model, BaseAlgorithm):
        normalize = policy_or_model.get_vec_normalize_env()
        # A model that was loaded without an environment has no VecNormalize, but may need its statistics
        was_normalized = getattr(policy_or_model, "trained_on_normalized_obs", False)
        if was_normalized or (normalize is not None and normalize.norm_obs):
            raise ValueError(
                "The model's observations go through VecNormalize, whose statistics are not part of the policy. Pass "
                "model.policy to write the policy alone, and normalize its observations with VecNormalize.normalize_obs."
            )
        policy = policy_or_model.policy
    actor = getattr(policy, "trained_actor", policy)
    if not isinstance(actor, FlowActor):
        raise ValueError(f"{type(policy_or_model).__name__} has no flow actor. Pass a FlowRL model, its policy or its actor.")
    return actor


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """
    Write a file completely or not at all.

    :param path: the file. Whatever happens, it holds either its old content or all of the new content
    :param content: the new content
    :raises OSError: if that fails; the error names the file, not the temporary one beside it
    """
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, f"The folder {folder!r} does not exist. Create it first", os.fspath(path))
    temporary = f"{os.fspath(path)}.{secrets.token_hex(4)}.tmp"  # in the same folder, because renaming needs the same disk
    try:
        with open(temporary, "xb") as file_handler:
            file_handler.write(content)
            file_handler.flush()
            os.fsync(file_handler.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if os.path.exists(temporary):
            os.remove(temporary)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise


def _read(path: str | os.PathLike[str]) -> FlowActor:
    from safetensors import safe_open

    if not os.path.isfile(path):
        raise ValueError("there is no such file")
    with open(path, "rb") as file_handler:
        _check_file_size(os.path.getsize(path), file_handler.read(8))
    with safe_open(path, framework="numpy") as file:
        description = _parse(file.metadata() or {})
        if wrong := [name for name in file.keys() if file.get_slice(name).get_dtype() != "F32"]:
            raise ValueError(f"the tensors {wrong} are not of type F32")
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    checksum = description.pop("sha256")
    if _checksum(description, tensors) != checksum:
        raise ValueError("the file is damaged: checksum mismatch")
    _check_finite(tensors)
    actor = _build_on_meta_device(description["actor"], {name: tensor.shape for name, tensor in tensors.items()})
    actor.load_state_dict({name: th.tensor(tensor) for name, tensor in tensors.items()}, assign=True)
    return actor


def _parse(metadata: dict[str, str]) -> dict[str, Any]:
    if list(metadata) != [METADATA_KEY]:
        raise ValueError(f"its metadata must have only the key {METADATA_KEY!r}, but has {sorted(metadata)}")
    text = metadata[METADATA_KEY]
    description = json.loads(text)
    if not isinstance(description, dict) or "format_version" not in description:
        raise ValueError("its metadata does not describe a policy")
    version = description["format_version"]
    if version != FORMAT_VERSION:
        raise ValueError(
            f"it has format version {version!r}, written by sb3_flowrl {description.get('sb3_flowrl_version')}, but this "
            f"sb3_flowrl {__version__} reads version {FORMAT_VERSION}. Install the version that wrote it"
        )
    if list(description) != ["format_version", "sb3_flowrl_version", "actor", "sha256"] or _to_json(description) != text:
        raise ValueError("its description is not in the form that save_policy_safe writes")
    return description


def _build_on_meta_device(description: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> FlowActor:
    """
    Build an actor that takes no memory until it gets its weights.

    :param description: what ``describe_actor`` returns, not trusted
    :param shapes: the shapes of its weights
    :return: the actor
    :raises ValueError: if the description or the weights are not exactly an actor's
    """
    with th.device("meta"):
        actor = build_actor(description)
    ours = describe_actor(actor)
    if wrong := [key for key in description if key not in ours or _to_json(ours[key]) != _to_json(description[key])]:
        raise ValueError(f"the actor's {wrong} are not described as save_policy_safe describes them")
    expected = {name: tuple(weight.shape) for name, weight in actor.state_dict().items()}
    if expected.keys() != shapes.keys():
        missing, unexpected = sorted(expected.keys() - shapes.keys()), sorted(shapes.keys() - expected.keys())
        raise ValueError(f"the tensors do not match the description: missing {missing}, unexpected {unexpected}")
    for name, shape in expected.items():
        if tuple(shapes[name]) != shape:
            raise ValueError(f"tensor {name!r} has the shape {list(shapes[name])}, but the description says {list(shape)}")
    return actor


def _check_file_size(size: int, first_bytes: bytes) -> None:
    header_size = int.from_bytes(first_bytes, "little")  # a safetensors file starts with it
    if header_size > MAX_HEADER_SIZE or size > MAX_FILE_SIZE:
        raise ValueError(
            f"it is not a safetensors file, or it is too large: the file has {size} bytes (at most {MAX_FILE_SIZE} are "
            f"allowed) and its header {header_size} (at most {MAX_HEADER_SIZE})"
        )


def _check_finite(tensors: dict[str, np.ndarray]) -> None:
    if bad := [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]:
        raise ValueError(f"The weights {bad} hold values that are not finite: the policy's training has diverged.")


def _checksum(description: dict[str, Any], tensors: dict[str, np.ndarray]) -> str:
    names = sorted(tensors)
    digest = hashlib.sha256(_to_json([description, [[name, list(tensors[name].shape)] for name in names]]).encode())
    for name in names:
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()


def _to_json(value: Any) -> str:
    return json.dumps(value, allow_nan=False)


def _import_safetensors() -> None:
    try:
        import safetensors  # noqa: F401
    except ImportError as error:
        raise ImportError('Safe policy files need safetensors: pip install "sb3-flowrl[safe]"') from error
