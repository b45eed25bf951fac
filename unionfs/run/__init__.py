"""Running a command inside an image: a convenience built of namespaces, not a sandbox.

Three processes take part. The *supervisor* (the command line itself) enters a user
namespace, forks the others, passes signals on and cleans up. The *mount daemon* serves
the union over FUSE; with a kernel union there is none. *Process 1* of a new process
namespace mounts the union in a mount namespace of its own, makes it the root, starts the
command and reaps. The union exists in that one mount namespace only: when process 1 ends,
for whatever reason, the kernel ends the command, the mounts and with them the daemon.
"""

from unionfs.run.config import RunConfig as RunConfig
from unionfs.run.prepare import prepare as prepare
from unionfs.run.supervisor import RunError as RunError
from unionfs.run.supervisor import RunRequest as RunRequest
from unionfs.run.supervisor import run as run

__all__ = ["RunConfig", "RunError", "RunRequest", "prepare", "run"]
