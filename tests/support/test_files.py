"""Files that are whole or not there: writing one, and reading from a disk that fails."""

import errno
import os
import shutil
from types import SimpleNamespace

import pytest

from gpt2c.errors import InputError, ResourceError, UsageError
from gpt2c.support import progress
from gpt2c.support.files import atomic_folder, atomic_write, open_input, second_name


def test_a_failing_disk_is_an_input_error(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(InputError, match=f"cannot read {path}: Input/output error"), open_input(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("terminal, seconds, shown", [(True, 0.8, True), (True, 0.3, False), (False, 20, False)])
def test_a_terminal_shows_how_far_a_large_file_is(tmp_path, monkeypatch, capsys, terminal, seconds, shown):
    """After a second; `seconds` are those of a piece."""
    now = iter(range(100))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: seconds * next(now)))
    monkeypatch.setattr(progress, "on_terminal", lambda: terminal)
    with atomic_write(tmp_path / "big", 3000) as file:
        for _ in range(3):
            file.write(bytes(1000))
    line = "\rwriting big: 2.0 KB of 3.0 KB (67%) | 1.2 KB/s | eta 1s\033[K"
    said = capsys.readouterr().err
    assert (line in said and said.endswith("\r\033[K")) if shown else said == ""
    assert (tmp_path / "big").read_bytes() == bytes(3000)


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "file"
    for content in (b"old", b"new and longer", b""):
        with atomic_write(path, len(content)) as file:
            file.write(content)
            (temporary,) = set(tmp_path.iterdir()) - {path}
            assert temporary.name.startswith(".") and temporary.suffix == ".tmp"
        assert path.read_bytes() == content
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0, 0o644)])
def test_the_mode_respects_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "file"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(error), atomic_write(path) as file:
        file.write(b"half")
        raise error
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_a_failing_disk_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(ResourceError, match="No space left"), atomic_write(path) as file:
            file.write(b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def refused(*_, **__):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_allows_no_change_any_more_is_an_error_as_any_other(tmp_path, monkeypatch, call):
    """The temporary file cannot be removed either."""
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refused)
        patch.setattr(os, "unlink", refused)
        with (
            pytest.raises(ResourceError, match="cannot write .*file: Read-only file system"),
            atomic_write(tmp_path / "file") as file,
        ):
            file.write(b"new")


def test_a_disk_that_does_not_say_how_much_room_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", refused)
    with pytest.raises(ResourceError, match="cannot write .*file: Read-only file system"), atomic_write(tmp_path / "file", 3):
        pytest.fail("the body ran")


@pytest.mark.parametrize("call", ["link", "replace"])
def test_a_second_name_that_cannot_be_given(tmp_path, monkeypatch, call):
    (tmp_path / "file").write_bytes(b"new")
    with monkeypatch.context() as patch:
        for name in (call, "unlink", "open"):
            patch.setattr(os, name, refused)
        with pytest.raises(ResourceError, match="cannot write .*other: Read-only file system"):
            second_name(tmp_path / "file", "other")
    assert not (tmp_path / "other").exists()


def test_the_data_is_on_the_disk_before_the_rename_and_the_rename_before_the_end(tmp_path, monkeypatch):
    path, calls = tmp_path / "file", []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor):
        fsync(descriptor)
        status = os.fstat(descriptor)
        calls.append("folder" if os.path.samestat(status, tmp_path.stat()) else f"{status.st_size} bytes")

    def replaced(source, target):
        replace(source, target)
        calls.append("rename")

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    with atomic_write(path) as file:
        file.write(b"12345")
    assert calls == ["5 bytes", "rename", "folder"]


def test_a_full_disk_is_refused_at_once(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1234))
    with pytest.raises(ResourceError, match="1,235 bytes are needed, 1,234 avail"), atomic_write(path, 1235):
        pytest.fail("the body ran")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with atomic_write(path, 1234) as file:
        file.write(b"fits")
    assert path.read_bytes() == b"fits"


def test_where_no_file_can_be_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for path, words in [
        (tmp_path / "no" / "file", "there is no folder"),
        (tmp_path / "folder", "not a regular file"),
        (tmp_path / "pipe", "not a regular file"),
    ]:
        with pytest.raises(UsageError, match=words), atomic_write(path):
            pytest.fail("the body ran")
    assert (tmp_path / "pipe").is_fifo()


def test_a_symbolic_link_stays_one(tmp_path):
    (tmp_path / "runs").mkdir()
    link, target = tmp_path / "latest", tmp_path / "runs" / "file"
    target.write_bytes(b"old")
    link.symlink_to(target)
    with atomic_write(link) as file:
        file.write(b"new")
    assert link.is_symlink() and target.read_bytes() == b"new"
    assert list(target.parent.iterdir()) == [target]


# ---- folders


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder"
    with atomic_folder(path) as folder:
        (folder / "a").write_bytes(b"1")
        assert folder.parent == tmp_path and not path.exists()
    for error in RuntimeError, KeyboardInterrupt:
        with pytest.raises(error), atomic_folder(path, lambda name: True) as folder:
            (folder / "b").write_bytes(b"2")
            raise error
    assert [p.name for p in path.iterdir()] == ["a"] and list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_if_all_in_it_may_go(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    for name in "a", "b":
        with atomic_folder(path, lambda name: name in "ab") as folder:
            (folder / name).write_bytes(b"")
        assert [p.name for p in path.iterdir()] == [name] and list(tmp_path.iterdir()) == [path]
    with pytest.raises(UsageError, match="is not empty; choose another folder, or overwrite it"), atomic_folder(path):
        pass
    (path / "c").mkdir()
    for may_go in (lambda name: name == "b"), (lambda name: True):  # another name; a folder in it
        with pytest.raises(UsageError, match="'c' in it is no part of a model"), atomic_folder(path, may_go):
            pass
    assert {p.name for p in path.iterdir()} == {"b", "c"}


def test_where_no_folder_can_be(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="it is a file; choose another name"), atomic_folder(tmp_path / "file"):
        pass
    with pytest.raises(UsageError, match="there is no folder"), atomic_folder(tmp_path / "none/folder"):
        pass


@pytest.mark.parametrize("fails", ["first", "second"])
def test_a_failing_disk_leaves_the_old_folder(tmp_path, monkeypatch, fails):
    path, rename, calls = tmp_path / "folder", type(tmp_path).rename, []
    path.mkdir()
    (path / "a").write_bytes(b"1")

    def failing(self, target):
        calls.append(target)
        if len(calls) == ["first", "second"].index(fails) + 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", failing)
    with pytest.raises(ResourceError, match="Input/output error"), atomic_folder(path, lambda name: True) as folder:
        (folder / "b").write_bytes(b"2")
    assert [p.name for p in path.iterdir()] == ["a"] and list(tmp_path.iterdir()) == [path]
