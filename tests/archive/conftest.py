"""Images made by umoci and skopeo, in every form that they can write."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a tool and return its output; its complaints end the test."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with one three-layer image in the forms that its files are named by."""
    base = tmp_path_factory.mktemp("images")
    etc, software = base / "etc", base / "bin"
    etc.mkdir()
    software.mkdir()
    (etc / "motd").write_text("hello\n")
    (etc / "motd2").hardlink_to(etc / "motd")
    (etc / "link").symlink_to("motd")
    (software / "big").write_bytes(bytes(range(256)) * 2000)
    (software / "big").chmod(0o4755)
    run("umoci", "init", "--layout", base / "oci")
    image = f"{base}/oci:v1"
    run("umoci", "new", "--image", image)
    run("umoci", "insert", "--image", image, etc, "/etc")
    run("umoci", "insert", "--image", image, software, "/bin")
    run("umoci", "insert", "--image", image, "--whiteout", "/etc/motd2")
    run("umoci", "config", "--image", image, "--architecture", "amd64", "--os", "linux")
    source = f"oci:{image}"
    run("skopeo", "copy", "-q", source, f"docker-archive:{base}/docker.tar:demo/app:v1")
    run("skopeo", "copy", "-q", source, f"oci-archive:{base}/oci.tar:v1")
    for name in ("zstd", "gzip"):
        run(
            *("skopeo", "copy", "-q", f"--dest-compress-format={name}"),
            *(source, f"oci:{base}/oci-{name}:v1"),
        )
    run("gzip", "-k", base / "docker.tar")
    run("zstd", "-q", "-k", base / "docker.tar")
    run("xz", "-k", base / "oci.tar")
    return base
