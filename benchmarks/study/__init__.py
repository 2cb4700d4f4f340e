"""
Studies: learning curves of several algorithms on several tasks and seeds, from one file that says what to run.

A study file (``studies/*.yml``) is read by ``study.py``. ``runner.py`` hands its runs to Ray; each is done by ``run.py``,
which trains through rl_zoo3, evaluates (``evaluation.py``) and can be killed at any time (``resuming.py``). What is left of a
run is one small file (``records.py``). From these files alone ``report.py`` makes tables, figures and pages::

    python -m benchmarks.study run smoke
    python -m benchmarks.study report smoke
"""
