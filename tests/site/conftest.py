"""What the tests of the site share: packages of npm, unpacked once in a session."""

import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def npm(tmp_path_factory):
    """npm("name@version") -> the folder that the package's files are in."""
    if shutil.which("npm") is None:
        pytest.skip("npm is missing (apt-get install npm)")
    found: dict[str, Path] = {}

    def package(spec: str) -> Path:
        if spec not in found:
            folder = tmp_path_factory.mktemp("npm")
            packed = subprocess.run(["npm", "pack", "--silent", spec], cwd=folder, capture_output=True, text=True)
            if packed.returncode:
                pytest.skip(f"npm's {spec} is missing: {packed.stderr.strip()[-200:]}")
            with tarfile.open(folder / packed.stdout.split()[-1]) as archive:
                archive.extractall(folder, filter="data")
            found[spec] = folder / "package"
        return found[spec]

    return package
