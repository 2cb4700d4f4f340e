"""
Descriptions of actors, without their weights, as JSON.

A description from a file is not trusted: it is checked before the actor is built.
"""

import math
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from torch import nn

from sb3_flowrl.checks import (
    ALGORITHM_CHECKS,
    POLICY_CHECKS,
    check_action_space,
    check_arguments,
    check_choice,
    check_positive_int,
)
from sb3_flowrl.networks import FlowActor, float32_by_default

# Limits for a description, well above what a policy needs
MAX_OBSERVATION_SIZE = 2**22
MAX_AXES = 8
MAX_IMAGES = 64
MAX_HIDDEN_LAYERS = 100
MAX_FLOW_STEPS = 1_000

_ACTIVATION_NAMES = (
    "CELU ELU GELU Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid Mish PReLU ReLU ReLU6 SELU SiLU Sigmoid Softplus "
    "Softsign Tanh"
)
ACTIVATIONS: dict[str, type[nn.Module]] = {name: getattr(nn, name) for name in _ACTIVATION_NAMES.split()}
EXTRACTORS: dict[str, type] = {cls.__name__: cls for cls in (CombinedExtractor, FlattenExtractor, NatureCNN)}
BOX_DTYPES = "float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64".split()

#: Arguments of ``FlowActor`` that JSON can hold as they are. The others are described.
_PLAIN_ARGUMENTS = ("net_arch", "layer_norm", "normalize_images", "flow_steps", "ode_solver", "noise_clip")
_OTHER_ARGUMENTS = ("observation_space", "action_space", "activation_fn", "features_extractor", "features_dim")


def describe_actor(actor: FlowActor) -> dict[str, Any]:
    """
    Describe an actor as JSON.

    :param actor: the actor
    :return: a description that :func:`build_actor` builds such an actor from
    :raises ValueError: if that is not possible, for example with a custom features extractor or activation
    """
    _known_name("actor", type(actor), {"FlowActor": FlowActor})
    arguments = actor._get_constructor_parameters()
    if unknown := sorted(arguments.keys() - {*_PLAIN_ARGUMENTS, *_OTHER_ARGUMENTS}):
        raise ValueError(f"The actor's {unknown} can't be described. Save the model with FlowRL.save.")
    noise_clip = actor.noise_clip
    return {
        "observation_space": describe_space(actor.observation_space),
        "action_space": describe_space(actor.action_space),
        "features_extractor": _known_name("features extractor", type(actor.features_extractor), EXTRACTORS),
        "features_extractor_kwargs": _features_extractor_kwargs(actor),
        "normalize_images": bool(actor.normalize_images),
        "net_arch": [int(width) for width in actor.net_arch],
        "activation_fn": _known_name("activation", actor.activation_fn, ACTIVATIONS),
        "layer_norm": bool(actor.layer_norm),
        "flow_steps": int(actor.flow_steps),
        "ode_solver": actor.ode_solver,
        "noise_clip": None if noise_clip is None or math.isinf(noise_clip) else float(noise_clip),  # JSON has no infinity
    }


@float32_by_default()
def build_actor(description: dict[str, Any]) -> FlowActor:
    """
    Build an actor from its description.

    :param description: as :func:`describe_actor` returns it, but not trusted
    :return: an actor with new weights. The description decides its size: build it on the meta device unless the size is known
    :raises ValueError: for an argument that is unknown or out of range. SB3, gymnasium and torch raise errors of their own
    """
    plain_arguments = {name: description[name] for name in _PLAIN_ARGUMENTS}
    check_arguments({**ALGORITHM_CHECKS, **POLICY_CHECKS}, plain_arguments)
    check_choice("activation_fn", description["activation_fn"], ACTIVATIONS)
    check_choice("features_extractor", description["features_extractor"], EXTRACTORS)
    if len(description["net_arch"]) > MAX_HIDDEN_LAYERS:
        raise ValueError(
            f"net_arch has {len(description['net_arch'])} hidden layers, more than the {MAX_HIDDEN_LAYERS} allowed."
        )
    if description["flow_steps"] > MAX_FLOW_STEPS:
        raise ValueError(f"flow_steps={description['flow_steps']} is more than the {MAX_FLOW_STEPS} allowed.")

    observation_space, action_space = (build_space(description[name]) for name in ("observation_space", "action_space"))
    check_action_space(action_space)
    assert isinstance(action_space, spaces.Box)  # for mypy
    make_extractor = EXTRACTORS[description["features_extractor"]]
    if isinstance(observation_space, spaces.Dict) != (make_extractor is CombinedExtractor):
        raise ValueError(
            f"The features extractor {make_extractor.__name__} does not take observations of {observation_space}. Use "
            "CombinedExtractor for Dict observations, and only for these."
        )
    features_extractor = make_extractor(observation_space, **description["features_extractor_kwargs"])
    return FlowActor(
        observation_space,
        action_space,
        features_extractor=features_extractor,
        features_dim=features_extractor.features_dim,
        activation_fn=ACTIVATIONS[description["activation_fn"]],
        **plain_arguments,
    )


def describe_space(space: spaces.Space[Any]) -> dict[str, Any]:
    """
    Describe an observation or action space as JSON.

    :param space: the space
    :return: a description that :func:`build_space` builds the space from, with exactly the same bounds
    :raises ValueError: for spaces that SB3's policies don't take
    """
    kind: type = type(space)  # a derived class may behave in any way
    if isinstance(space, spaces.Box) and space.dtype == np.float64:
        kind = spaces.Box  # but derived float64 Boxes, and derived Dicts, have always been stored as the plain class
    if isinstance(space, spaces.Dict):
        # A list, because the order of the keys is that of the features
        return {"type": "Dict", "spaces": [[key, describe_space(part)] for key, part in space.spaces.items()]}
    if isinstance(space, spaces.Box) and kind is spaces.Box and space.dtype.name in BOX_DTYPES:
        bounds = {"low": _describe_bound(space.low), "high": _describe_bound(space.high)}
        return {"type": "Box", "shape": list(space.shape), "dtype": space.dtype.name, **bounds}
    if isinstance(space, spaces.Discrete) and kind is spaces.Discrete:
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete) and kind is spaces.MultiDiscrete and space.nvec.ndim == 1:
        return {"type": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist()}
    if isinstance(space, spaces.MultiBinary) and kind is spaces.MultiBinary:
        return {"type": "MultiBinary", "n": space.n if isinstance(space.n, int) else list(space.n)}
    raise ValueError(
        f"The space {space} can't be described. Use a Box of numbers, Discrete, MultiDiscrete of one axis, MultiBinary or a "
        "Dict of these, or save the model with FlowRL.save."
    )


def build_space(description: dict[str, Any]) -> spaces.Space[Any]:
    """
    Build a space from its description.

    :param description: as :func:`describe_space` returns it, but not trusted
    :return: the space
    :raises ValueError: for a space that is unknown or too large. gymnasium raises errors of its own
    """
    if description["type"] != "Dict":
        return _build_simple_space(description, MAX_OBSERVATION_SIZE)
    room, n_images, parts = MAX_OBSERVATION_SIZE, 0, []
    for key, part in description["spaces"]:
        space = _build_simple_space(part, room)
        room -= math.prod(space.shape or ())
        n_images += len(space.shape or ()) == 3
        parts.append((key, space))
    if not parts:
        raise ValueError("A Dict without spaces holds no observation.")
    if n_images > MAX_IMAGES:  # each image gets its own network
        raise ValueError(f"A Dict of {n_images} images exceeds the {MAX_IMAGES} allowed in an observation.")
    return spaces.Dict(parts)


def _build_simple_space(description: dict[str, Any], room: int) -> spaces.Space[Any]:
    kind = description["type"]
    if kind == "Box":
        shape = description["shape"]
        if not isinstance(shape, list) or len(shape) > MAX_AXES:
            raise ValueError(f"The shape of a Box must be a list of at most {MAX_AXES} sizes.")
        for size in shape:
            check_positive_int("shape", size)
        check_choice("dtype", description["dtype"], BOX_DTYPES)
        if math.prod(shape) > room:
            raise ValueError(f"A Box of shape {shape} exceeds the {MAX_OBSERVATION_SIZE} numbers allowed in an observation.")
        dtype = np.dtype(description["dtype"])
        low, high = (_build_bound(description[name], dtype, shape) for name in ("low", "high"))
        return spaces.Box(low, high, dtype=dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(description["n"], start=description["start"])
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(description["nvec"], start=description["start"])
    if kind == "MultiBinary":
        return spaces.MultiBinary(description["n"])
    raise ValueError(f"A space of type {kind!r} is not allowed here. Allowed are Box, Discrete, MultiDiscrete, MultiBinary.")


def _describe_bound(bound: np.ndarray) -> list[float | str]:
    """List a bound's numbers, or a single one if all are the same. Infinities, which JSON lacks, become words."""
    flat = bound.reshape(-1)
    all_same = flat[:1].tobytes() * flat.size == flat.tobytes()
    return [str(x) if math.isinf(x) else x for x in (flat[:1] if all_same else flat).tolist()]


def _build_bound(values: list[float | str], dtype: np.dtype, shape: list[int]) -> np.ndarray:
    flat = np.array([float(x) if x in ("inf", "-inf") else x for x in values], dtype=dtype)
    return np.broadcast_to(flat, (math.prod(shape),)).reshape(shape)


def _features_extractor_kwargs(actor: FlowActor) -> dict[str, Any]:
    """Read the arguments of the features extractor from the extractor itself, because an actor does not keep them."""
    extractor, space = actor.features_extractor, actor.observation_space
    if isinstance(extractor, NatureCNN):
        return {"features_dim": extractor.features_dim, "normalized_image": not is_image_space(space)}
    if isinstance(extractor, CombinedExtractor):
        assert isinstance(space, spaces.Dict)  # for mypy
        cnns = {key: part for key, part in extractor.extractors.items() if isinstance(part, NatureCNN)}
        return {
            "cnn_output_dim": next((cnn.features_dim for cnn in cnns.values()), 256),
            "normalized_image": any((key in cnns) != is_image_space(part) for key, part in space.spaces.items()),
        }
    return {}


def _known_name(what: str, cls: Any, known: dict[str, type]) -> str:
    name = getattr(cls, "__name__", repr(cls))
    if known.get(name) is not cls:
        raise ValueError(
            f"The {what} {name} can't be described. Use one of {', '.join(known)}, or save the model with FlowRL.save."
        )
    return name
