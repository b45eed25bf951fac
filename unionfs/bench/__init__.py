"""Side-by-side measurements of unions on one machine, in one interleaved run.

The package measures and judges; drawing tables and reading command lines is `unionfs.cli`'s.

Invariant: a table shows ratios to a baseline of the same run, never bare seconds, and every
number can be traced to the rounds in the result file.
"""
