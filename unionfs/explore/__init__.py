"""Looking at the layers of an image and at what they make of its tree, in a terminal.

`model`, `rows`, `search` and `extract` know nothing of terminals; the modules that draw import
textual. Nothing here changes a branch.
"""
