"""
Execution of functions of tensors: precision, ``torch.compile`` and CUDA graphs.
"""

import functools
import inspect
import os
import platform
import random
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch as th

#: With ``compile="auto"`` a CPU compiles from this update on: shorter runs end before compiling has paid for itself.
AUTO_COMPILE_UPDATES = 10_000
#: Otherwise all models in a process share one recompilation limit. Older releases of PyTorch can't separate them.
_ISOLATION: dict[str, Any] = (
    dict(isolate_recompiles=True) if "isolate_recompiles" in inspect.signature(th.compile).parameters else {}
)


def resolve_precision(precision: str, device: th.device) -> str:
    """
    Choose the precision that "auto" stands for.

    :param precision: the argument of ``FlowRL``
    :param device: the device of the networks
    :return: for "auto" the fastest precision that does not round factors on this machine: "float32_fast" on a CPU whose
        oneDNN multiplies float32 matrices without rounding their factors, otherwise "float32"; any other precision unchanged
    """
    if precision != "auto":
        return precision
    return "float32_fast" if device.type == "cpu" and not _one_dnn_rounds() else "float32"


@functools.cache
def _one_dnn_rounds() -> bool:
    """Test whether oneDNN rounds float32 factors to bfloat16, as it may on a processor with AMX."""
    generator = th.Generator().manual_seed(0)
    a, b = th.randn(2, 64, 64, generator=generator, dtype=th.float32)
    with matmul_precision("float32_fast", th.device("cpu")):
        product = a @ b
    error = (product.double() - a.double() @ b.double()).abs().max().item()
    return error > 1e-4  # rounding to float32 makes an error of 1e-5, rounding the factors to bfloat16 one of 1e-1


def warn_if_emulated(precision: str, device: th.device) -> None:
    """
    Warn if a processor has no instructions for the precision, so that updates take many times as long.

    :param precision: the precision of the updates
    :param device: the device of the networks
    """
    if precision == "bfloat16" and device.type == "cpu" and not _multiplies_bfloat16():
        warnings.warn(
            "This processor has no instructions for bfloat16. Updates with precision='bfloat16' take many times as long as "
            "with precision='auto': seven to ten times on an AMD EPYC with AVX2. To continue such a model with the other "
            "precision, use FlowRL.load(path, precision='auto')."
        )


def _multiplies_bfloat16() -> bool:
    """Test whether oneDNN has fast products of bfloat16. On x86 it needs AVX-512, even where each factor is converted."""
    return platform.machine() not in ("x86_64", "AMD64") or th.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")


def autocast(precision: str, device: th.device) -> th.autocast:
    """
    Make the context in which the networks run.

    :param precision: the argument of ``FlowRL``
    :param device: the device of the networks
    :return: autocast to bfloat16, enabled if the precision is "bfloat16"
    """
    return th.autocast(device.type, dtype=th.bfloat16, enabled=precision == "bfloat16")


@contextmanager
def matmul_precision(precision: str, device: th.device) -> Iterator[None]:
    """
    Set how float32 matrix products run inside the context.

    PyTorch has one setting for the whole process. It is restored at the end.

    :param precision: "float32_fast" runs them through oneDNN on a CPU (which may round factors to bfloat16 if the processor
        has AMX) and in TF32 on CUDA. Other precisions do not change the setting
    :param device: the device of the networks
    """
    if precision != "float32_fast":
        yield
        return
    try:
        before = th.get_float32_matmul_precision()
    except RuntimeError:  # the user has set it through PyTorch's newer interface, and keeps it
        yield
        return
    th.set_float32_matmul_precision("medium" if device.type == "cpu" else "high")
    try:
        yield
    finally:
        th.set_float32_matmul_precision(before)


@contextmanager
def own_random_numbers(seed: int, device: th.device) -> Iterator[None]:
    """
    Seed the global generators of Python, NumPy and PyTorch inside the context, and restore them at the end.

    :param seed: the seed
    :param device: its generator is seeded as well as the CPU's
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with th.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        random.seed(seed)
        np.random.seed(seed)
        # th.manual_seed would also seed accelerators whose state is not restored
        th.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with th.cuda.device(device):
                th.cuda.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


class MaybeCompiled:
    """
    A pure function that can be called eagerly or compiled.

    Each object compiles separately, once for each combination of shapes, dtypes and settings in its calls. Copies and pickles
    do not include the compiled code.

    :param function: a function of tensors (in any nesting of tuples), modules and constants, without side effects
    :param device: the device that it runs on
    """

    def __init__(self, function: Callable[..., Any], device: th.device):
        self.function = function
        self.device = device
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *args: Any, compiled: bool) -> Any:
        """
        Call the function.

        :param args: arguments of the function
        :param compiled: whether to run it compiled; the first such call compiles it, which takes up to a minute
        :return: the function's result
        """
        if not compiled:
            return self.function(*args)
        try:
            if self._compiled is None:
                self._compiled = _compile(self.function, self.device)
            return self._compiled(*args)
        # The compiler and its cache on disk may raise anything. An error of the function itself is raised again below
        except Exception as error:
            warnings.warn(
                f"{self.function.__name__} could not be compiled, and runs eagerly: with the same results, but slower. "
                "On a CPU, torch.compile needs a C++ compiler such as g++ (or the one in the environment variable CXX) and an "
                "intact cache. If a process was killed while it compiled, or the disk was full, delete "
                f"{_cache_folder()!r}, which PyTorch then creates again. compile=False turns compiling off. The error was: "
                f"{_first_lines(error)}"
            )
            self._compiled = self.function
            return self.function(*args)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": None}


def _compile(function: Callable[..., Any], device: th.device) -> Callable[..., Any]:
    if not hasattr(th._dynamo.config, "trace_autograd_ops"):
        raise th._dynamo.exc.TorchDynamoException(
            f"PyTorch {th.__version__} can't make gradients part of a graph; newer versions can"
        )
    how: dict[str, Any] = {}
    if device.type == "cpu":
        # With the C++ wrapper, updates at 256x2 are a tenth faster, and compiling takes two thirds of the time. The pattern
        # matcher would undo `stacked.linear`: it moves the biases back into the calls of matrix products
        how["options"] = {"cpp_wrapper": True, "pattern_matcher": False}
    compiled = th.compile(function, fullgraph=True, dynamic=False, **how, **_ISOLATION)
    # So that `autograd.grad` becomes part of the graph
    return th._dynamo.config.patch(trace_autograd_ops=True)(compiled)


def _cache_folder() -> str:
    """Return the folder of PyTorch's cache. PyTorch sets the variable when it first uses the folder."""
    return os.environ.get("TORCHINDUCTOR_CACHE_DIR") or os.path.join(tempfile.gettempdir(), "torchinductor_<user>")


def _first_lines(error: Exception, n_lines: int = 3) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:n_lines])}"


#: Number of calls before the captured one. The first of them compiles and creates the optimizers' moments.
WARM_UP = 3
#: Largest number of graphs to keep; each holds memory on the device.
MAX_GRAPHS = 16
#: The kind of device that has graphs.
GRAPH_DEVICE = "cuda"

#: A tensor, a dict of tensors, or a named tuple of these such as a batch.
Tensors = Any
#: A gradient step. Takes a batch, whether the actor steps, and the flag of divergence; returns scalars to log, by name.
Step = Callable[[Tensors, bool, th.Tensor], dict[str, th.Tensor]]


def tensors_of(nested: Tensors) -> list[th.Tensor]:
    """
    List the tensors of a batch or an observation.

    :param nested: the tensors
    :return: the same as a list; Dict observations contribute one for each key
    """
    if isinstance(nested, th.Tensor):
        return [nested]
    parts = nested.values() if isinstance(nested, dict) else nested
    return [tensor for part in parts for tensor in tensors_of(part)]


def with_tensors(nested: Tensors, tensors: Iterable[th.Tensor]) -> Tensors:
    """
    Replace the tensors of a batch or an observation.

    :param nested: the old tensors
    :param tensors: the new ones, in the order of :func:`tensors_of`
    :return: the new tensors in the form of the old ones
    """
    left = iter(tensors)
    if isinstance(nested, th.Tensor):
        return next(left)
    if isinstance(nested, dict):
        return {key: with_tensors(part, left) for key, part in nested.items()}
    return type(nested)(*(with_tensors(part, left) for part in nested))


def is_current(device: th.device) -> bool:
    """
    Tell whether a device is PyTorch's current one. :func:`capture` captures what happens there and nowhere else.

    :param device: a device
    :return: True for every device that is no CUDA device
    """
    return device.type != "cuda" or device.index in (None, th.cuda.current_device())


def capture(function: Callable[[], th.Tensor]) -> Callable[[], th.Tensor]:
    """
    Capture a function in a CUDA graph, without running it.

    :param function: a function that only launches kernels, on memory that is not moved
    :return: a function that replays the graph; each call overwrites the result of the last call
    """
    graph = th.cuda.CUDAGraph()
    with th.cuda.graph(graph):
        result = function()

    def replay() -> th.Tensor:
        graph.replay()
        return result

    return replay


@contextmanager
def watch_host() -> Iterator[list[str]]:
    """
    Record where the host waits for the device.

    :return: the places as ``file:line``; the list is complete when the context ends
    """
    places: list[str] = []
    before = th.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        th.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            th.cuda.set_sync_debug_mode(before)
            places += [f"{each.filename}:{each.lineno}" for each in caught if "synchroniz" in str(each.message)]
    for each in caught:
        if "synchroniz" not in str(each.message):
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)


class _Graph(NamedTuple):
    inputs: Tensors
    replay: Callable[[], th.Tensor]


class IdentityKey:
    """
    Key that stands for one object, and keeps it alive, so that no later object gets its address.

    :param value: the object; it need not be hashable
    """

    def __init__(self, value: object):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IdentityKey) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


class CapturedCalls:
    """
    Calls that run as CUDA graphs, one for each key and shape of the inputs.

    A function in which the host waits for the device can't be captured. It then runs without a graph, and one warning says
    where the host waits. Copies and pickles do not include the graphs.

    :param what: what is called, for the warning
    :param capture: a function like :func:`capture`
    :param watch: a function like :func:`watch_host`
    """

    def __init__(
        self,
        what: str,
        capture: Callable[[Callable[[], th.Tensor]], Callable[[], th.Tensor]] = capture,
        watch: Callable[[], Any] = watch_host,
    ):
        self.what, self.capture, self.watch = what, capture, watch
        self.reset()

    def reset(self) -> None:
        """Forget all graphs."""
        self._graphs: dict[Hashable, _Graph] = {}
        self._n_calls: Counter[Hashable] = Counter()
        self._can_be_captured = True

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.reset()

    def call(self, function: Callable[[Tensors], th.Tensor], inputs: Tensors, key: Hashable) -> th.Tensor:
        """
        Call a function.

        :param function: the function; it returns one tensor
        :param inputs: its argument, on the device
        :param key: all other values that it reads on the host
        :return: its result
        """
        if not self._can_be_captured:
            return function(inputs)
        key = (tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors_of(inputs)), key)
        self._n_calls[key] += 1
        if self._n_calls[key] < WARM_UP:
            return function(inputs)
        if self._n_calls[key] == WARM_UP:
            with self.watch() as waits:
                result = function(inputs)
            if waits:
                self._give_up(f"the host waits for the device at {', '.join(dict.fromkeys(waits))}")
            return result
        if key not in self._graphs:
            if len(self._graphs) == MAX_GRAPHS:
                self._graphs.pop(next(iter(self._graphs)))
            buffers = empty_like(inputs)
            try:
                self._graphs[key] = _Graph(buffers, self.capture(lambda: function(buffers)))
            except RuntimeError as error:
                self._give_up(f"{type(error).__name__}: {error}")
                return function(inputs)
        graph = self._graphs[key]
        for graph_input, tensor in zip(tensors_of(graph.inputs), tensors_of(inputs), strict=True):
            graph_input.copy_(tensor)
        return graph.replay().clone()  # the next replay overwrites the original

    def _give_up(self, reason: str) -> None:
        self._can_be_captured = False
        self._graphs.clear()
        warnings.warn(
            f"{self.what} can't be captured in a CUDA graph. It runs kernel by kernel: the results are the same, but "
            f"it is slower. The reason: {reason}. Usual causes are optimizers that are not fused "
            "(optimizer_kwargs=dict(fused=True) makes them so), and a features extractor or guidance that reads values of "
            "tensors."
        )


class CapturedStep(CapturedCalls):
    """
    A gradient step that runs as one CUDA graph for each shape of batch, with and without the actor's step.

    :param step: the step
    :param kwargs: arguments of :class:`CapturedCalls`
    """

    def __init__(self, step: Step, **kwargs: Any):
        super().__init__("The gradient step", **kwargs)
        self.step = step

    def reset(self) -> None:
        """Forget all graphs."""
        super().reset()
        self._names: dict[Hashable, list[str]] = {}

    def __call__(
        self,
        batch: Tensors,
        steps_actor: bool,
        diverged: th.Tensor,
        optimizers: Sequence[th.optim.Optimizer] = (),
        constants: Hashable = None,
    ) -> dict[str, th.Tensor]:
        """
        Perform the step.

        :param batch: replay samples, on the device
        :param steps_actor: whether the actor steps
        :param diverged: the flag of divergence, set in place; the same tensor in each call
        :param optimizers: the optimizers that take their steps
        :param constants: all other values that the step reads on the host
        :return: scalars to log, by name
        """
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        if self._can_be_captured and not all(group.get("fused") for group in groups):
            self._give_up("an optimizer is not fused, so that a graph would keep its learning rate")
        key = (steps_actor, diverged.data_ptr(), _tensors_in_use(optimizers), _options_in_use(groups), constants)

        def step(batch: Tensors) -> th.Tensor:
            terms = self.step(batch, steps_actor, diverged)
            self._names[key] = list(terms)
            return th.stack(list(terms.values()))

        values = self.call(step, batch, key).unbind()
        return dict(zip(self._names[key], values, strict=True))


def set_learning_rate(optimizers: Iterable[th.optim.Optimizer], learning_rate: float, device: th.device) -> None:
    """
    Set the learning rate of optimizers, so that captured steps see the new value.

    Fused optimizers get it in a tensor on the device, which is then updated in place.

    :param optimizers: the optimizers; their parameters are on the device
    :param learning_rate: the new value
    :param device: the device
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if not group.get("fused"):
                group["lr"] = learning_rate
            elif isinstance(group["lr"], th.Tensor):
                group["lr"].fill_(learning_rate)
            else:
                group["lr"], group["capturable"] = th.tensor(learning_rate, dtype=th.float32, device=device), True


def as_saved(state_dict: dict[str, Any]) -> dict[str, Any]:
    """
    Undo the changes of :func:`set_learning_rate`, so that files do not depend on the device.

    :param state_dict: the state of an optimizer, or of a module (which is returned unchanged)
    :return: the state with learning rates as numbers
    """
    if "param_groups" not in state_dict:
        return state_dict
    groups = [
        {**group, "lr": group["lr"].item(), "capturable": False} if isinstance(group["lr"], th.Tensor) else group
        for group in state_dict["param_groups"]
    ]
    return {**state_dict, "param_groups": groups}


def empty_like(nested: Tensors) -> Tensors:
    """
    Allocate tensors of the same form.

    :param nested: a batch or an observation
    :return: the same with uninitialized values
    """
    return with_tensors(nested, [th.empty_like(each, memory_format=th.contiguous_format) for each in tensors_of(nested)])


def _tensors_in_use(optimizers: Iterable[th.optim.Optimizer]) -> tuple[int, ...]:
    """Identify the tensors that a step changes: unfrozen parameters, and states, which loading replaces."""
    parameters = [each for optimizer in optimizers for group in optimizer.param_groups for each in group["params"]]
    return (*(id(each) for each in parameters if each.requires_grad), *(id(optimizer.state) for optimizer in optimizers))


def _options_in_use(groups: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    """List what fused optimizers read on the host: all options but the learning rate, which is on the device."""
    return tuple(f"{name}={value}" for group in groups for name, value in group.items() if name not in ("params", "lr"))
