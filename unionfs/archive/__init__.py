"""Layer archives: reading, recording and writing them, never trusting what they say.

Invariant: nothing here knows the store or the union; file names are bytes in the archive's
own spelling until somebody above extracts them.
"""
