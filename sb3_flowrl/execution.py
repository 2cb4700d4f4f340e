"""
How the update is executed: its precision, and eagerly or through ``torch.compile``.
"""

import functools
import inspect
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch as th

#: All models of a process would else share one limit of recompilations. Older releases of PyTorch can't separate them.
_ISOLATION: dict[str, Any] = (
    dict(isolate_recompiles=True) if "isolate_recompiles" in inspect.signature(th.compile).parameters else {}
)


def resolve_precision(precision: str, device: th.device) -> str:
    """
    Choose a precision where that is left to the machine.

    :param precision: the argument of ``FlowRL``
    :param device: where the networks are
    :return: for "auto" the fastest one that does not round on this machine: "float32_fast" on a CPU whose oneDNN multiplies
        float32 matrices without rounding their factors, else "float32"; any other precision as it is
    """
    if precision != "auto":
        return precision
    return "float32_fast" if device.type == "cpu" and not _one_dnn_rounds() else "float32"


@functools.cache
def _one_dnn_rounds() -> bool:
    """Whether oneDNN rounds float32 factors to bfloat16, as it may on a processor with AMX."""
    generator = th.Generator().manual_seed(0)
    a, b = th.randn(2, 64, 64, generator=generator, dtype=th.float32)
    with matmul_precision("float32_fast", th.device("cpu")):
        product = a @ b
    error = (product.double() - a.double() @ b.double()).abs().max().item()
    return error > 1e-4  # float32's own rounding makes 1e-5, that of the factors to bfloat16 1e-1


def autocast(precision: str, device: th.device) -> th.autocast:
    """
    Run networks in bfloat16 where the precision asks for it.

    :param precision: the argument of ``FlowRL``
    :param device: where the networks are
    :return: the context in which the networks run: bfloat16 autocast, or none
    """
    return th.autocast(device.type, dtype=th.bfloat16, enabled=precision == "bfloat16")


@contextmanager
def matmul_precision(precision: str, device: th.device) -> Iterator[None]:
    """
    Set how float32 matrix products run. PyTorch has one setting for the whole process; it is put back at the end.

    :param precision: "float32_fast" lets them go through oneDNN on a CPU (which may round factors to bfloat16 where the
        processor has AMX), and use TF32 on CUDA. The others leave the setting as it is
    :param device: where the networks are
    """
    if precision != "float32_fast":
        yield  # without a look at the setting, which fails where the user has set it through PyTorch's newer interface
        return
    before = th.get_float32_matmul_precision()
    th.set_float32_matmul_precision("medium" if device.type == "cpu" else "high")
    try:
        yield
    finally:
        th.set_float32_matmul_precision(before)


class MaybeCompiled:
    """
    A pure function that can be called eagerly or compiled. What was compiled stays behind when it is copied or pickled.

    Each object compiles for itself, once for each combination of shapes, dtypes and settings that it is called with.

    :param function: a function of tensors (in any nesting of tuples), modules and constants, without side effects
    :param device: where it runs
    """

    def __init__(self, function: Callable[..., Any], device: th.device):
        self.function = function
        self.device = device
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *args: Any, compiled: bool) -> Any:
        """
        :param args: arguments of the function
        :param compiled: whether to compile it (at the first such call, which takes up to a minute)
        :return: what the function returns
        """
        if not compiled:
            return self.function(*args)
        try:
            if self._compiled is None:
                self._compiled = _compile(self.function, self.device)
            return self._compiled(*args)
        # Whatever the compiler or its cache on disk raises. What the function itself raises, it raises again below
        except Exception as error:
            warnings.warn(
                f"{self.function.__name__} could not be compiled, and runs eagerly, which gives the same results more slowly. "
                "On a CPU, torch.compile needs a C++ compiler such as g++ (or the one that the environment variable CXX "
                "names), and a cache that is whole: where a process was killed while it compiled, or the disk was full, "
                f"delete {_cache_folder()!r}, which PyTorch then makes anew. compile=False never compiles. The reason was: "
                f"{_first_lines(error)}"
            )
            self._compiled = self.function
            return self.function(*args)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": None}


def _compile(function: Callable[..., Any], device: th.device) -> Callable[..., Any]:
    if not hasattr(th._dynamo.config, "trace_autograd_ops"):
        raise th._dynamo.exc.TorchDynamoException(
            f"PyTorch {th.__version__} can't make gradients part of a graph; newer ones can"
        )
    how: dict[str, Any] = {}
    if device.type == "cpu":
        # Calling the kernels from C++ as well is a tenth faster at 256x2, and compiles in two thirds of the time. The pattern
        # matcher would put the biases, which `stacked.linear` keeps apart, back into the calls of matrix products
        how["options"] = {"cpp_wrapper": True, "pattern_matcher": False}
    compiled = th.compile(function, fullgraph=True, dynamic=False, **how, **_ISOLATION)
    # So that `autograd.grad` becomes part of the graph
    return th._dynamo.config.patch(trace_autograd_ops=True)(compiled)


def _cache_folder() -> str:
    """Where PyTorch keeps what it compiled; it sets the variable itself when it first looks there."""
    return os.environ.get("TORCHINDUCTOR_CACHE_DIR") or os.path.join(tempfile.gettempdir(), "torchinductor_<user>")


def _first_lines(error: Exception, n_lines: int = 3) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:n_lines])}"
