"""
Benchmarks of the catalog, side by side with other libraries.

    pip install -e '.[bench]'
    python -m benchmarks                     all benchmarks
    python -m benchmarks --quick             fewer rounds and models; under 5 minutes
    python -m benchmarks --only table        the benchmarks with a target, see targets.py
    python -m benchmarks --growth            the cost of a call with 10^2 to 10^6 models
    python -m benchmarks --only table --against VERSION --limit 1.05
                                             this version and another one, as ratios

`contenders/` has one class for each library, `harness/` runs them in rounds, `cases/` are the
benchmarks that are not calls of a catalog, `versions/` compares two versions, and `reports/` writes
text, Markdown, JSON and charts. docs/performance.md describes the method.
"""
