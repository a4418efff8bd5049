import os
import resource

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import files
from minilora.errors import FileFormatError, MiniloraError

DTYPES = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]
TENSORS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.array(7, np.int64),
    "empty": np.empty((0, 4), np.float16),
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip(tmp_path, dtype):
    path, x = tmp_path / "x.safetensors", np.arange(12).reshape(3, 4).astype(dtype)
    files.save_safetensors(path, {"x": x.T, **TENSORS}, {"format": "pt"})
    tensors, metadata = files.load_safetensors(path)
    assert metadata == {"format": "pt"} and tensors.keys() == {"x", *TENSORS}
    np.testing.assert_array_equal(tensors["x"], x.T)
    assert tensors["x"].dtype == dtype and tensors["a"].shape == () and tensors["empty"].shape == (0, 4)


def test_bfloat16_is_widened(tmp_path):
    path, x = tmp_path / "x.safetensors", np.array([1.5, -2.0, 3.140625], np.float32)
    header = b'{"x":{"dtype":"BF16","shape":[3],"data_offsets":[0,6]}}'
    upper = (x.view(np.uint32) >> 16).astype(np.uint16)
    path.write_bytes(len(header).to_bytes(8, "little") + header + upper.tobytes())
    np.testing.assert_array_equal(files.load_safetensors(path)[0]["x"], x)


@given(st.data())
def test_a_damaged_file_is_refused_or_read_but_never_crashes(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    files.save_safetensors(path, TENSORS)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw
    path.write_bytes(raw)
    try:
        tensors, _ = files.load_safetensors(path)
    except FileFormatError as error:
        assert "x.safetensors" in str(error)
    else:
        assert sum(t.nbytes for t in tensors.values()) <= len(raw) * 2


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b'{"x":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}', "dtype 'F99'; known are"),
        (b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', "does not fit"),
        (b'{"x":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', r"shape \[-1\]"),
        (b'{"x":{"dtype":"F32","shape":[1]}}', "lacks dtype, shape or data_offsets"),
        (b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"y":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}',
         "overlap"),
        (b"[]", "not a JSON object"),
        (b"{", "not JSON"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path, header, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    with pytest.raises(FileFormatError, match=message):
        files.load_safetensors(path)


def test_a_missing_file_and_a_dtype_without_a_name(tmp_path):
    with pytest.raises(FileFormatError, match="cannot be read"):
        files.load_safetensors(tmp_path / "none")
    with pytest.raises(FileFormatError, match="complex128"):
        files.save_safetensors(tmp_path / "x", {"x": np.ones(1, complex)})


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """The limit on a file's size stands in for the disk's end: the kernel refuses the write just the same."""
    path = tmp_path / "x"
    files.atomic_write(path, b"old")
    pid = os.fork()
    if not pid:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            files.atomic_write(path, b"n" * 10_000)
        except MiniloraError as error:
            os._exit(0 if "unchanged" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["x"]


def test_folders_that_cannot_be_synced_do_not_matter(tmp_path, monkeypatch):
    """As on Windows, where a folder cannot be opened."""

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "open", lambda path, *a, real=os.open: refuse() if os.path.isdir(path) else real(path, *a))
    files._sync_folder(tmp_path)


def test_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert files.sha256(tmp_path / "x").startswith("ba7816bf")


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
def test_a_written_file_has_the_permissions_of_any_other(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    files.atomic_write(tmp_path / "ours", b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "ours").chmod(0o640)
    files.atomic_write(tmp_path / "ours", b"again")
    assert (tmp_path / "ours").stat().st_mode & 0o777 == 0o640
