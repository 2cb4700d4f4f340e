"""
One launch for each gradient step on CUDA: the step is captured in a CUDA graph once, and replayed from then on.

A graph repeats the kernels of the step that was captured, on the same memory. So batches are copied into fixed buffers,
learning rates are tensors on the device, random numbers come from the generator that CUDA graphs know, and all that the step
reads on the host is part of the key under which its graph is kept.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch as th

from sb3_flowrl.replay import Batch, tensors_of, with_tensors

#: Steps that run as they are before the next one is captured: the first of them compiles, and makes the optimizers' moments.
WARM_UP = 3
#: Graphs that are kept; each holds memory on the device.
MAX_GRAPHS = 16

#: A gradient step: takes a batch, whether the actor steps, and where divergence is noted; returns scalars to log, by name.
Step = Callable[[Batch, bool, th.Tensor], dict[str, th.Tensor]]


def capture(function: Callable[[], th.Tensor]) -> Callable[[], th.Tensor]:
    """
    Capture a function in a CUDA graph, without running it.

    :param function: a function that only launches kernels, on memory that stays where it is
    :return: a function that replays it; each call overwrites the result of the last
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
    Note where the host waits for the device.

    :return: the places, complete when the context ends, each as ``file:line``
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
    inputs: Batch
    names: list[str]
    replay: Callable[[], th.Tensor]


class CapturedStep:
    """
    A gradient step that runs as one CUDA graph for each shape of batch, with and without the actor's step.

    A step in which the host waits for the device can't be captured. It runs as it is, and one warning says where it waits.
    Graphs stay behind when the object is copied or pickled.

    :param step: the step
    :param capture: captures a function, see :func:`capture`
    :param watch: notes where the host waits, see :func:`watch_host`
    """

    def __init__(
        self,
        step: Step,
        capture: Callable[[Callable[[], th.Tensor]], Callable[[], th.Tensor]] = capture,
        watch: Callable[[], Any] = watch_host,
    ):
        self.step, self.capture, self.watch = step, capture, watch
        self.reset()

    def reset(self) -> None:
        """Forget all graphs."""
        self._graphs: dict[Hashable, _Graph] = {}
        self._n_calls: Counter[Hashable] = Counter()
        self._can_be_captured = True

    def __getstate__(self) -> dict[str, Any]:
        return dict(step=self.step, capture=self.capture, watch=self.watch)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.reset()

    def __call__(
        self, batch: Batch, steps_actor: bool, diverged: th.Tensor, constants: Hashable = None
    ) -> dict[str, th.Tensor]:
        """
        Take the step.

        :param batch: replay samples, on the device
        :param steps_actor: whether the actor steps
        :param diverged: where divergence is noted; the same tensor in each call
        :param constants: all else that the step reads on the host
        :return: scalars to log, by name
        """
        if not self._can_be_captured:
            return self.step(batch, steps_actor, diverged)
        key = (_shapes(batch), steps_actor, diverged.data_ptr(), constants)
        self._n_calls[key] += 1
        if self._n_calls[key] < WARM_UP:
            return self.step(batch, steps_actor, diverged)
        if self._n_calls[key] == WARM_UP:
            with self.watch() as waits:
                terms = self.step(batch, steps_actor, diverged)
            if waits:
                self._give_up(f"the host waits for the device in it, at {', '.join(dict.fromkeys(waits))}")
            return terms
        if key not in self._graphs:
            if len(self._graphs) == MAX_GRAPHS:
                self._graphs.pop(next(iter(self._graphs)))
            try:
                self._graphs[key] = self._capture(batch, steps_actor, diverged)
            except RuntimeError as error:
                self._give_up(f"{type(error).__name__}: {error}")
                return self.step(batch, steps_actor, diverged)
        graph = self._graphs[key]
        for ours, theirs in zip(tensors_of(graph.inputs), tensors_of(batch), strict=True):
            ours.copy_(theirs)
        # A copy, as the next replay overwrites the original
        return dict(zip(graph.names, graph.replay().clone().unbind(), strict=True))

    def _capture(self, batch: Batch, steps_actor: bool, diverged: th.Tensor) -> _Graph:
        inputs = empty_like(batch)
        names: list[str] = []

        def step() -> th.Tensor:
            terms = self.step(inputs, steps_actor, diverged)
            names[:] = terms
            return th.stack(list(terms.values()))

        return _Graph(inputs, names, self.capture(step))

    def _give_up(self, reason: str) -> None:
        self._can_be_captured = False
        self._graphs.clear()
        warnings.warn(
            "The gradient step can't be captured in a CUDA graph, and runs kernel by kernel, with the same results but more "
            f"slowly: {reason}. Optimizers other than fused ones (optimizer_kwargs=dict(fused=True)) and features extractors "
            "or guidances that look at values are the usual causes."
        )


def set_learning_rate(optimizers: Iterable[th.optim.Optimizer], learning_rate: float, device: th.device) -> None:
    """
    Set a learning rate where captured steps read it: in a tensor on the device, which keeps its place.

    :param optimizers: the optimizers, whose parameters are on the device
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
    Undo what :func:`set_learning_rate` changes, so that files are the same whatever device they come from.

    :param state_dict: the state of an optimizer, or of a module, which is returned as it is
    :return: the state with learning rates as numbers
    """
    if "param_groups" not in state_dict:
        return state_dict
    groups = [
        {**group, "lr": group["lr"].item(), "capturable": False} if isinstance(group["lr"], th.Tensor) else group
        for group in state_dict["param_groups"]
    ]
    return {**state_dict, "param_groups": groups}


def empty_like(batch: Batch) -> Batch:
    """
    Allocate buffers for batches of one form.

    :param batch: a batch
    :return: one of the same form, with whatever is in its memory
    """
    return with_tensors(batch, [th.empty_like(each, memory_format=th.contiguous_format) for each in tensors_of(batch)])


def _shapes(batch: Batch) -> tuple[Any, ...]:
    return tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors_of(batch))
