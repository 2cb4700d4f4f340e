"""
Compare the learning curves of several algorithms on several tasks and seeds. One file says what to run.

``study.py`` reads a study's definition (``definitions/*.yml``). ``runner.py`` hands its runs to Ray. ``run.py`` does one run:
it trains through rl_zoo3, evaluates (``evaluation.py``), and can be killed at any time (``resuming.py``). A run leaves one
small file (``records.py``) in ``results/``. From these files alone, ``report.py`` makes tables, figures and pages::

    python -m studies run smoke
    python -m studies report smoke
"""
