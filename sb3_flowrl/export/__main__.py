"""
Write a saved model's policy as an ONNX file, check the file against ``predict``, and measure the speed of both.

    sb3-flowrl export model.zip policy.onnx
"""

import argparse
import logging
import os
import statistics
import sys
import timeit
from collections.abc import Callable
from typing import Any

import numpy as np

from sb3_flowrl.export.loading import load_to_predict
from sb3_flowrl.export.onnx import TOLERANCE, export_onnx, largest_difference, open_session, run_session, sample_observations


def main() -> None:
    """
    Run the command.
    """
    help_formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("sb3-flowrl export", description=__doc__, formatter_class=help_formatter)
    parser.add_argument("model", help="file that FlowRL.save wrote; it is unpickled, so load only files that you trust")
    parser.add_argument("onnx", help="the file to write")
    parser.add_argument("--deterministic", action="store_true", help="write a file without the input noise")
    args = parser.parse_args()

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns about torchvision, which is not needed
    try:
        model = load_to_predict(args.model)
        export_onnx(model, args.onnx, args.deterministic)
    except (OSError, ValueError) as error:
        sys.exit(f"No policy is exported: {error}")
    difference = largest_difference(model, args.onnx)
    print(f"{args.onnx}: {os.path.getsize(args.onnx)} bytes")
    print(f"largest difference from predict on 1000 observations: {difference:.1e} (actions scaled to [-1, 1])")
    if not difference <= TOLERANCE:  # also true for NaN
        sys.exit(f"At most {TOLERANCE} is allowed. Do not use the file, and please report the model's policy_kwargs.")

    session = open_session(args.onnx)
    noise = None if args.deterministic else np.zeros((1, model.actor.action_dim), dtype=np.float32)
    observation = sample_observations(model.policy.observation_space, 1)
    predict_time = _milliseconds(lambda: model.predict(observation, deterministic=True))
    onnx_time = _milliseconds(lambda: run_session(session, observation, noise))
    print(f"time of one action: {predict_time:.3f} ms by predict, {onnx_time:.3f} ms by onnxruntime")


def _milliseconds(call: Callable[[], Any]) -> float:
    return 1e3 * statistics.median(timeit.repeat(call, number=1, repeat=500))


if __name__ == "__main__":
    main()
