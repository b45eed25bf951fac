"""What the repository needs around `unionfs bench`: `python -m bench` and recorded results."""
