"""Side-by-side measurements of unions on one machine, in one run; results are ratios."""
