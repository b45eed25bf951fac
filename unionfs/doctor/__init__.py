"""What is possible on this machine for this caller, why not more, and what would help.

Answers come from trying: unions are mounted, devices made, attributes written, in scratch
directories and child processes. Version numbers are never interpreted.

Invariant: when `examine()` returns or raises, every mount, directory and process it made is
gone again.
"""

from unionfs.doctor.report import Check as Check
from unionfs.doctor.report import Report as Report
from unionfs.doctor.report import examine as examine

__all__ = ["Check", "Report", "examine"]
