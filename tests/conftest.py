import os

# Tests work on small tensors, and many start processes: threads that wait for each other would take most of the time.
# Set before torch is imported, and inherited by the processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch as th

from tests.golden import GOLDEN_DIR, golden_sets


def pytest_report_header(config) -> str:
    return f"golden sets: {', '.join(path.stem for path in golden_sets()) or 'none'} (from {GOLDEN_DIR})"


def pytest_collection_modifyitems(items) -> None:
    if not th.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
