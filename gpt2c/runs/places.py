"""The places that a run writes to, locked for one process: a folder, a file to save to, or both."""

import os
import re
from pathlib import Path

from gpt2c.errors import UsageError
from gpt2c.support.files import Lock, remove_leftovers, require_place

FILES = r"config\.toml|metrics\.jsonl|main\.log|samples\.txt|loss\.png|best\.safetensors|ckpt_\d+\.safetensors"  # in a folder
BESIDE = r"(_best|_(step|epoch)\d+)?"  # behind the stem of a file to save to


class Places:
    def __init__(self, folder, save_path, names):
        self._folder, self._save_path, self._names, self._locks = folder, save_path, names, []

    def take(self):
        """Locks them for the lifetime of this object or of the process, and removes the temporary files of a killed one."""
        if self._folder:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UsageError(
                    f"cannot make the run's folder {self._folder}: {error.strerror}; choose another --out-dir"
                ) from None
            self._lock(self._folder, "training into", "--out-dir")
            names = [re.escape(name).replace(r"\{epoch\}", r"\d+") for name in self._names.values()]
            remove_leftovers(self._folder, re.compile("|".join([FILES, *names])).fullmatch)
        if self._save_path:  # which may lie in the folder
            require_place(self._save_path)
            self._lock(self._save_path, "saving to", "--save-path")
            for path in {self._save_path, Path(os.path.realpath(self._save_path))}:
                ours = re.escape(path.stem) + BESIDE + re.escape(path.suffix)
                remove_leftovers(path.parent, re.compile(ours).fullmatch)

    def _lock(self, place, doing, flag):
        lock = Lock(place)
        try:
            alone = lock.take()
        except OSError as error:
            raise UsageError(f"cannot write {place}: {error.strerror}; choose another {flag}") from None
        if not alone:
            raise UsageError(f"another process is {doing} {place}: wait for it, or choose another {flag}")
        self._locks.append(lock)

    def hold(self):
        """(why there is no place to write to any more, or ""; the folders that were removed meanwhile and are made again)"""
        again = []
        for lock in self._locks:
            if lock.held:
                continue
            try:
                if not lock.folder.is_dir():
                    lock.folder.mkdir(parents=True)
                    again.append(lock.folder)
                if not lock.take():
                    return f"another process is training into {lock.folder}", again
            except OSError as error:
                return f"{lock.folder} is lost: {error.strerror}", again
        return "", again
