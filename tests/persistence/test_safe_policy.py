"""Policy files without pickles: what they keep, and that a damaged or hostile one is an error and nothing else."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_flowrl import CnnPolicy, FlowActorCriticPolicy, FlowRL, MultiInputPolicy
from sb3_flowrl.export import actor_spec, safe_policy
from sb3_flowrl.export.safe_policy import PolicyFileError, load_policy_safe, save_policy_safe
from sb3_flowrl.networks import FlowActor
from tests.core.test_policies import ACTION_SPACE
from tests.models import ScaleExtractor

pytest.importorskip("safetensors")

VECTOR = spaces.Box(np.array([-np.inf, 0.1, -1e-30]), np.array([np.inf, 0.3, 7.0]), dtype=np.float64)
IMAGE = spaces.Box(0, 255, (2, 36, 40), dtype=np.uint8)
FLOAT_IMAGE = spaces.Box(0, 1, (2, 36, 40), dtype=np.float32)
MIXED = spaces.Dict(  # not in the alphabet's order, which is the order of neither the keys nor the features
    OrderedDict(vector=VECTOR, image=IMAGE, bits=spaces.MultiBinary(3), choice=spaces.Discrete(4))
)


def make_policy(observation_space=VECTOR, policy_class=FlowActorCriticPolicy, **kwargs) -> FlowActorCriticPolicy:
    th.manual_seed(0)
    policy = policy_class(observation_space, ACTION_SPACE, lambda _: 3e-4, **{"net_arch": [8], **kwargs})
    with th.no_grad():
        for parameter in policy.actor.parameters():
            parameter.normal_(std=0.1)  # so that no two weights are alike
    return policy


def sample(space: spaces.Space, n: int = 5):
    space.seed(0)
    if isinstance(space, spaces.Dict):
        return {key: np.stack([part.sample() for _ in range(n)]) for key, part in space.spaces.items()}
    return np.stack([space.sample() for _ in range(n)])


def predictions(policy, obs) -> list[np.ndarray]:
    th.manual_seed(3)
    return [policy.predict(obs, deterministic=deterministic)[0] for deterministic in (True, False, False)]


def assert_same_predictions(policy, other, obs) -> None:
    for ours, theirs in zip(predictions(policy, obs), predictions(other, obs), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "policy.safetensors"


@pytest.fixture
def small(path):
    """A small policy's file."""
    save_policy_safe(make_policy(net_arch=[2]), path)
    return path


POLICIES: dict[str, dict[str, Any]] = {
    "defaults": dict(),
    "no layer norm": dict(layer_norm=False, net_arch=[8, 4]),
    "linear": dict(net_arch=[]),
    "three steps of rk4": dict(flow_steps=3, ode_solver="rk4"),
    "unbounded noise": dict(noise_clip=None),
    "infinite noise_clip": dict(noise_clip=np.inf),
    "an activation with weights": dict(activation_fn=nn.PReLU, noise_clip=0.5),
    "Discrete": dict(observation_space=spaces.Discrete(4, start=0)),
    "MultiDiscrete": dict(observation_space=spaces.MultiDiscrete([3, 4])),
    "MultiBinary": dict(observation_space=spaces.MultiBinary([2, 3])),
    "images": dict(policy_class=CnnPolicy, observation_space=IMAGE, features_extractor_kwargs=dict(features_dim=16)),
    "normalised images": dict(policy_class=CnnPolicy, observation_space=FLOAT_IMAGE, normalize_images=False),
    "unnormalised images": dict(policy_class=CnnPolicy, observation_space=IMAGE, normalize_images=False),
    "Dict": dict(policy_class=MultiInputPolicy, observation_space=MIXED),
    "Dict, small cnn": dict(
        policy_class=MultiInputPolicy, observation_space=MIXED, features_extractor_kwargs=dict(cnn_output_dim=8)
    ),
    "Dict, float image": dict(
        policy_class=MultiInputPolicy,
        observation_space=spaces.Dict(image=FLOAT_IMAGE, vector=VECTOR),
        features_extractor_kwargs=dict(normalized_image=True, cnn_output_dim=8),
    ),
}


@pytest.mark.parametrize("kwargs", POLICIES.values(), ids=POLICIES)
def test_a_loaded_policy_predicts_what_the_saved_one_did(path, kwargs):
    policy = make_policy(**kwargs)
    save_policy_safe(policy, path)
    loaded = load_policy_safe(str(path), device="cpu")
    assert type(loaded) is FlowActor and not loaded.training
    assert loaded.observation_space == policy.observation_space and loaded.action_space == policy.action_space
    obs = sample(policy.observation_space)
    assert_same_predictions(policy, loaded, obs)
    first = {key: value[0] for key, value in obs.items()} if isinstance(obs, dict) else obs[0]
    assert_same_predictions(policy, loaded, first)


def test_model_policy_actor_and_loaded_actor_give_the_same_file(path):
    model = FlowRL("MlpPolicy", "Pendulum-v1", learning_starts=10, policy_kwargs=dict(net_arch=[8]), seed=0).learn(20)
    contents = set()
    for source in (model, model.policy, model.averaged_actor, None):
        save_policy_safe(source or load_policy_safe(path), path)
        contents.add(path.read_bytes())
    assert len(contents) == 1
    assert_same_predictions(model.averaged_actor, load_policy_safe(path), sample(model.observation_space))
    for name in model.policy.state_dict():
        is_in_the_file = name.removeprefix("averaged_actor.").encode() in contents.copy().pop()
        assert is_in_the_file == name.startswith("averaged_actor."), name


def test_nothing_is_unpickled(small, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (pickle, "_Unpickler"), (th, "load")):
        monkeypatch.setattr(module, name, refuse)
    load_policy_safe(small).predict(np.zeros(3))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(4, start=2),
        spaces.MultiDiscrete([3, 4], start=[1, -2]),
        spaces.MultiBinary(3),
        spaces.MultiBinary([3, 2]),
        spaces.Box(-1, 1, (), dtype=np.float64),
        MIXED,
    ],
)
def test_spaces_are_kept(space):
    built = actor_spec.build_space(json.loads(json.dumps(actor_spec.describe_space(space))))
    assert built == space and built.dtype == space.dtype
    if isinstance(space, spaces.Dict):
        assert list(built.spaces) == list(space.spaces)


def test_bounds_are_kept_to_the_bit():
    rng = np.random.default_rng(0)
    for dtype in actor_spec.BOX_DTYPES:
        low, high = (rng.integers(*bounds, 50).astype(dtype) for bounds in ((0, 50), (50, 100)))
        if np.dtype(dtype).kind == "f":
            low, high = low * np.dtype(dtype).type(np.pi), high * np.dtype(dtype).type(np.pi)
            low[0], high[1] = -np.inf, np.inf
        else:
            high[0] = np.iinfo(dtype).max - 1
        space = spaces.Box(low, high, dtype=np.dtype(dtype).type)
        built = actor_spec.build_space(actor_spec.describe_space(space))
        assert built.dtype == space.dtype
        assert built.low.tobytes() == space.low.tobytes() and built.high.tobytes() == space.high.tobytes()


def test_truncated_anywhere(small, path):
    content = small.read_bytes()
    for size in [*range(12), *range(12, len(content), 11), *range(len(content) - 12, len(content))]:
        path.write_bytes(content[:size])
        with pytest.raises(PolicyFileError):
            load_policy_safe(path)


def test_any_flipped_bit_is_noticed(small, path):
    content = np.frombuffer(small.read_bytes(), np.uint8)
    bits = np.random.default_rng(0).choice(8 * len(content), 300, replace=False)
    for bit in [*range(64), *bits]:
        flipped = content.copy()
        flipped[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(flipped.tobytes())
        with pytest.raises(PolicyFileError):
            load_policy_safe(path)


def test_a_flipped_bit_of_a_weight_is_named_damage(small):
    content = small.read_bytes()
    small.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(PolicyFileError, match=r"policy\.safetensors' can't be loaded .* damaged.* Get the file again"):
        load_policy_safe(small)


def forge(path, change) -> None:
    """Change a file as someone would who knows the format: the checksum is right."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(path, framework="numpy") as file:
        description = safe_policy._parse(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    del description["sha256"]
    change(description, description["actor"], tensors)
    text = safe_policy._to_json({**description, "sha256": safe_policy._checksum(description, tensors)})
    save_file(tensors, path, metadata={safe_policy.METADATA_KEY: text})


def set_actor(**arguments):
    return lambda description, actor, tensors: actor.update(arguments)


def set_space(name="observation_space", **entries):
    return lambda description, actor, tensors: actor[name].update(entries)


def set_tensor(name, change):
    return lambda description, actor, tensors: tensors.update({name: change(tensors[name])})


def box(**entries):
    return {"type": "Box", "shape": [3], "dtype": "float32", "low": [0.0], "high": [1.0], **entries}


HOSTILE = {
    "newer version": (lambda d, a, t: d.update(format_version=2), "has format version 2, .* reads version 1"),
    "no version": (lambda d, a, t: d.pop("format_version"), "does not describe a policy"),
    "more keys": (lambda d, a, t: d.update(more=1), "not in the form"),
    "argument missing": (lambda d, a, t: a.pop("net_arch"), "KeyError.*net_arch"),
    "more arguments": (set_actor(more=None), r"the actor's \['more'\] are not described as"),
    "no actor": (lambda d, a, t: d.update(actor=[]), "TypeError"),
    "large layer": (set_actor(net_arch=[2 * 10**7]), "the shape .* but the description says"),
    "huge layer": (set_actor(net_arch=[10**9]), r"tensor 'velocity_net.0.weight' has the shape \[2, 6\], but .*1000000000"),
    "impossible layer": (set_actor(net_arch=[10**9, 10**18]), "overflow|large|size"),
    "layer beyond integers": (set_actor(net_arch=[10**30]), "can't be loaded"),
    "many layers": (set_actor(net_arch=[1] * 101), "net_arch has 101 hidden layers"),
    "other layers": (set_actor(net_arch=[2, 2]), "missing .*velocity_net.4.weight.*, unexpected"),
    "no width": (set_actor(net_arch=[0]), r"net_arch=\[0\] must be a list of layer widths"),
    "fractional width": (set_actor(net_arch=[2.0]), r"net_arch=\[2.0\] must be a list of layer widths"),
    "net_arch of a policy": (set_actor(net_arch={"pi": [2], "qf": [2]}), "can't be loaded"),
    "text for net_arch": (set_actor(net_arch="22"), "net_arch='22' must be a list"),
    "endless flow": (set_actor(flow_steps=10**9), "more than the 1000 allowed"),
    "no flow": (set_actor(flow_steps=0), "flow_steps=0 must be an integer of at least 1"),
    "solver": (set_actor(ode_solver="__class__"), "ode_solver='__class__' is unknown"),
    "activation": (set_actor(activation_fn="Module"), "activation_fn='Module' is unknown"),
    "extractor": (set_actor(features_extractor="os.system"), "features_extractor='os.system' is unknown"),
    "extractor's arguments": (set_actor(features_extractor_kwargs={"features_dim": 2}), "TypeError"),
    "huge extractor": (
        set_actor(
            observation_space=box(shape=[3, 36, 36], dtype="uint8", low=[0], high=[255]),
            features_extractor="NatureCNN",
            features_extractor_kwargs={"features_dim": 10**9, "normalized_image": False},
        ),
        "missing .*features_extractor.linear.0.weight",
    ),
    "noise_clip": (set_actor(noise_clip=-1.0), "noise_clip=-1.0 must be a number above 0"),
    "1 for true": (set_actor(layer_norm=1), "layer_norm=1 must be True or False"),
    "huge observation": (set_space(shape=[2**20, 2**20]), "exceeds the 4194304 numbers allowed"),
    "huge bounds": (set_space(shape=[2**40], low=["-inf"], high=["inf"]), "exceeds the 4194304"),
    "text in a shape": (set_space(shape=["a", 10**9]), "shape='a' must be an integer"),
    "many axes": (set_space(shape=[1] * 1000), "a list of at most 8"),
    "huge in parts": (
        set_actor(observation_space={"type": "Dict", "spaces": [[str(i), box(shape=[2**21])] for i in range(3)]}),
        "exceeds the 4194304",
    ),
    "Dict in a Dict": (
        set_actor(observation_space={"type": "Dict", "spaces": [["a", {"type": "Dict", "spaces": []}]]}),
        "type 'Dict' is not allowed",
    ),
    "unknown space": (set_space(type="Graph"), "type 'Graph' is not allowed"),
    "wrong bounds": (set_space(low=[1.0, 2.0]), "broadcast"),
    "bounds that the dtype lacks": (
        set_actor(observation_space=box(low=[0.1])),
        r"\['observation_space'\] are not described as",
    ),
    "object dtype": (set_space(dtype="object"), "dtype='object' is unknown"),
    "huge Discrete": (set_actor(observation_space={"type": "Discrete", "n": 10**12, "start": 0}), r"but the .*100000000000\d"),
    "discrete actions": (set_actor(action_space={"type": "Discrete", "n": 2, "start": 0}), "only supports continuous actions"),
    "unbounded actions": (set_space("action_space", low=["-inf"]), "must have finite bounds"),
    "tensor missing": (lambda d, a, t: t.pop("velocity_net.0.bias"), r"missing \['velocity_net.0.bias'\], unexpected \[\]"),
    "more tensors": (lambda d, a, t: t.update(more=t["velocity_net.0.bias"]), r"missing \[\], unexpected \['more'\]"),
    "shape": (
        set_tensor("velocity_net.0.weight", lambda x: x.T.copy()),
        r"the shape \[6, 2\], but the description says \[2, 6\]",
    ),
    "dtype": (set_tensor("velocity_net.0.bias", np.float64), r"\['velocity_net.0.bias'\] are not of type F32"),
    "nan": (
        set_tensor("velocity_net.0.bias", lambda x: x * np.nan),
        r"\['velocity_net.0.bias'\] hold values that are not finite",
    ),
}


@pytest.mark.parametrize("change, message", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_an_error_that_says_what_is_wrong(small, change, message):
    forge(small, change)
    with pytest.raises(PolicyFileError, match=message) as error:
        load_policy_safe(small)
    assert str(small) in str(error.value) and len(str(error.value)) < 1_000


def test_a_hostile_file_takes_no_memory(small):
    pytest.importorskip("resource")  # which Windows lacks
    paths = []
    for name in ("large layer", "huge extractor", "huge observation", "huge bounds"):
        paths.append(str(small.with_stem(name.replace(" ", "_"))))
        shutil.copyfile(small, paths[-1])
        forge(paths[-1], HOSTILE[name][0])
    # In a process of its own, as a peak of memory hides what stays below it
    program = (
        "import resource, sys; from sb3_flowrl.export import load_policy_safe\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "for path in sys.argv[1:]:\n"
        "    try: load_policy_safe(path)\n"
        "    except ValueError as error: print(type(error).__name__)\n"
        "print(peak() - before)"
    )
    output = subprocess.run([sys.executable, "-c", program, *paths], capture_output=True, text=True, check=True).stdout
    *errors, grown = output.split()
    assert errors == ["PolicyFileError"] * len(paths)
    assert int(grown) < 100_000  # kilobytes, or on macOS bytes


def test_forging_is_what_those_errors_come_from(small):
    forge(small, lambda description, actor, tensors: None)
    load_policy_safe(small)


def header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


def metadata(text: str) -> bytes:
    return header(safe_policy._to_json({"__metadata__": {safe_policy.METADATA_KEY: text}}).encode())


OTHER_FILES = {
    "empty": (b"", "HeaderTooSmall|header too small"),
    "pickle": (pickle.dumps({"a": 1}), "not a safetensors file"),
    "header beyond the file": ((2**20).to_bytes(8, "little") + b"{}", "header"),
    "header beyond all memory": (b"\xff" * 8 + b"{}", "not a safetensors file, or it is too large"),
    "huge header": (header(b" " * (safe_policy.MAX_HEADER_SIZE + 1)), "not a safetensors file, or it is too large"),
    "another's tensors": (header(b'{"__metadata__":{"format":"pt"}}'), r"the key 'sb3_flowrl_policy', but has \['format'\]"),
    "more metadata": (header(b'{"__metadata__":{"sb3_flowrl_policy":"{}","b":""}}'), r"but has \['b', 'sb3_flowrl_policy'\]"),
    "no metadata": (header(b"{}"), r"but has \[\]"),
    "deep header": (header(b"[" * 100_000), "header"),
    "deep metadata": (metadata("[" * 100_000), "RecursionError"),
    "metadata is a number": (metadata("1"), "does not describe a policy"),
    "metadata is NaN": (metadata('{"format_version": NaN}'), "has format version nan"),
}


@pytest.mark.parametrize("content, message", OTHER_FILES.values(), ids=OTHER_FILES)
def test_other_files(path, content, message):
    path.write_bytes(content)
    with pytest.raises(PolicyFileError, match=rf"can't be loaded as a policy: .*({message})"):
        load_policy_safe(path)


def test_what_others_write(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data", b"0" * 1000)
    make_policy().save(path.with_suffix(".pt"))
    for other in (path, path.with_suffix(".pt")):
        with pytest.raises(PolicyFileError, match="not a safetensors file"):
            load_policy_safe(other)
    for other in (path.parent, path.with_suffix(".missing")):
        with pytest.raises(PolicyFileError, match="no such file"):
            load_policy_safe(other)


def test_the_same_description_in_other_words_is_refused(small):
    content = small.read_bytes()
    assert content.count(b'net_arch\\": [2]') == 1
    small.write_bytes(content.replace(b'net_arch\\": [2]', b'net_arch\\":[2 ]'))
    with pytest.raises(PolicyFileError, match="not in the form that save_policy_safe writes"):
        load_policy_safe(small)


def test_a_sparse_file_takes_no_memory(small):
    os.truncate(small, 2**40)
    with pytest.raises(PolicyFileError, match="too large"):
        load_policy_safe(small)


class OwnActivation(nn.ReLU):
    pass


class OwnBox(spaces.Box):
    pass


def poisoned(value: float) -> FlowActorCriticPolicy:
    policy = make_policy()
    next(policy.actor.parameters()).data[0, 0] = value
    return policy


def with_another_actor() -> FlowActorCriticPolicy:
    policy = make_policy()
    policy.actor.__class__ = type("OwnActor", (FlowActor,), {})
    return policy


def with_another_network() -> FlowActorCriticPolicy:
    policy = make_policy()
    policy.actor.velocity_net.append(nn.Linear(2, 2))
    return policy


def with_a_new_argument() -> FlowActorCriticPolicy:
    policy = make_policy()
    arguments = policy.actor._get_constructor_parameters()
    policy.actor._get_constructor_parameters = lambda: {**arguments, "temperature": 1.0}  # type: ignore[method-assign]
    return policy


def own_extractor() -> FlowActorCriticPolicy:
    return make_policy(features_extractor_class=ScaleExtractor, features_extractor_kwargs=dict(scale=2.0))


@pytest.mark.parametrize(
    "make, message",
    [
        (
            own_extractor,
            "features extractor ScaleExtractor can't be described. Use one of .*NatureCNN, or save .* FlowRL.save",
        ),
        (lambda: make_policy(activation_fn=OwnActivation), "activation OwnActivation can't be described. Use one of CELU"),
        (with_another_actor, "actor OwnActor can't be described"),
        (with_another_network, r"unexpected \['velocity_net.4.bias'"),
        (with_a_new_argument, r"The actor's \['temperature'\] can't be described"),
        (lambda: make_policy(flow_steps=1_001), "flow_steps=1001 is more than the 1000"),
        (lambda: make_policy(OwnBox(-1, 1, (3,))), r"The space Box\(.* can't be described. Use a Box"),
        (lambda: make_policy().double(), "are not float32. Convert"),
        (lambda: poisoned(np.nan), r"\['velocity_net.0.weight'\] hold values that are not finite"),
        (lambda: poisoned(np.inf), r"\['velocity_net.0.weight'\] hold values that are not finite"),
        (lambda: make_policy().critic, "FlowCritic has no flow actor"),
    ],
)
def test_what_a_file_can_not_describe_is_not_saved(path, make, message):
    with pytest.raises(ValueError, match=message):
        save_policy_safe(make(), path)
    assert not path.exists()


def test_vec_normalize(path):
    env = VecNormalize(make_vec_env("Pendulum-v1"), norm_obs=True)
    model = FlowRL("MlpPolicy", env, policy_kwargs=dict(net_arch=[8]))
    with pytest.raises(ValueError, match=r"VecNormalize, whose statistics .* Pass model\.policy"):
        save_policy_safe(model, path)
    save_policy_safe(model.policy, path)
    env.norm_obs = False
    save_policy_safe(model, path)


def test_vec_normalize_is_not_forgotten_by_a_model_loaded_without_its_environment(path):
    for norm_obs in (True, False):
        env = VecNormalize(make_vec_env("Pendulum-v1"), norm_obs=norm_obs)
        FlowRL("MlpPolicy", env, policy_kwargs=dict(net_arch=[8])).learn(2).save(path.with_name("model.zip"))
        loaded = FlowRL.load(path.with_name("model.zip"))
        if norm_obs:
            with pytest.raises(ValueError, match="VecNormalize, whose statistics"):
                save_policy_safe(loaded, path)
        else:
            save_policy_safe(loaded, path)


IMAGES = [[str(i), box(shape=[1, 36, 36], dtype="uint8", low=[0], high=[255])] for i in range(3_200)]


@pytest.mark.parametrize(
    ("space", "extractor", "message"),
    [
        ({"type": "Dict", "spaces": [["a", box(shape=[3])]]}, "FlattenExtractor", "FlattenExtractor does not take .*Dict"),
        ({"type": "Dict", "spaces": [["a", box(shape=[3])]]}, "NatureCNN", "NatureCNN does not take .*Dict"),
        (box(shape=[3]), "CombinedExtractor", r"CombinedExtractor does not take .*Box"),
        ({"type": "Dict", "spaces": []}, "CombinedExtractor", "A Dict without spaces"),
        ({"type": "Dict", "spaces": IMAGES}, "CombinedExtractor", "A Dict of 3200 images exceeds the 64 allowed"),
    ],
)
def test_observations_that_the_extractor_can_not_take_are_refused_before_anything_is_built(small, space, extractor, message):
    forge(small, set_actor(observation_space=space, features_extractor=extractor))
    start = time.process_time()
    with pytest.raises(PolicyFileError, match=message):
        load_policy_safe(small)
    assert time.process_time() - start < 2.0


def test_what_can_not_be_written_names_the_file_and_not_a_temporary_one(path, monkeypatch):
    missing = path.parent / "missing" / "policy.safetensors"
    with pytest.raises(
        FileNotFoundError, match=r"The folder '.*missing' does not exist. Create it first: '.*policy.safetensors'"
    ):
        save_policy_safe(make_policy(), missing)
    folder = path.parent / "folder"
    folder.mkdir()
    long = path.parent / ("x" * 250)  # and the temporary one's is too long
    for wrong in (folder, long):
        with pytest.raises(OSError, match=str(wrong)) as error:
            save_policy_safe(make_policy(), wrong)
        assert "tmp'" not in str(error.value) and error.value.filename == str(wrong)
    assert os.listdir(path.parent) == ["folder"]


def test_saving_replaces_at_once_or_not_at_all(small, monkeypatch):
    content = small.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            save_policy_safe(make_policy(), small)
    assert small.read_bytes() == content and os.listdir(small.parent) == [small.name]
    save_policy_safe(make_policy(), small)
    assert small.read_bytes() != content and os.listdir(small.parent) == [small.name]


def test_without_safetensors(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for call in (lambda: save_policy_safe(make_policy(), small), lambda: load_policy_safe(small)):
        with pytest.raises(ImportError, match=r'pip install "sb3-flowrl\[safe\]"'):
            call()
