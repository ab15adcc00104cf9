"""Small documents in the default DVC remote, the place that two machines share.

They lie beside the data that `dvc push` puts there. A document is written whole or not at all, so a reader never meets
half of one. It doesn't know what they say.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.config import NoRemoteError, RemoteConfigError

from mgm_lora.errors import RemoteError

_FOLDER = "mgm-lora"  # `dvc gc --cloud` looks at files/ alone


@dataclass(frozen=True)
class SharedRemote:
    """A remote that other machines reach too."""

    fs: Any
    root: str

    @classmethod
    def of(cls, repo: Any) -> "SharedRemote":
        """The default remote of an opened repository.

        Raises:
            RemoteError: there is none, or other machines can't have the same.
        """
        try:
            # the kind of store that lies at the remote's very root; it refuses what keeps versions by itself
            store = repo.cloud.get_remote_odb(None, "a stage on another machine", hash_name="md5-dos2unix")
        except (NoRemoteError, RemoteConfigError) as error:
            raise RemoteError(
                f"a stage on another machine takes its data by the DVC remote, but: {error}. `dvc remote add --default`"
            ) from error
        root = Path(repo.root_dir).resolve()
        if store.fs.protocol == "local" and Path(store.path).resolve().is_relative_to(root):
            raise RemoteError(
                f"the DVC remote '{store.path}' lies in this clone: a worker on another machine doesn't see it."
                " Name one that both reach: `dvc remote add --default NAME URL`, then `dvc push`"
            )
        return cls(fs=store.fs, root=store.path)

    def where(self, name: str) -> str:
        """The address of a document, for people."""
        return str(self.fs.unstrip_protocol(self._path(name)))

    def read(self, name: str) -> str | None:
        """None where there is no such document.

        Raises:
            RemoteError: the remote can't be read.
        """
        try:
            with self.fs.open(self._path(name), "r", encoding="utf-8") as file:
                return str(file.read())
        except FileNotFoundError:
            return None
        except Exception as error:  # each kind of remote has exceptions of its own
            raise RemoteError(f"can't read {self.where(name)}: {_words(error)}") from error

    def write(self, name: str, text: str) -> None:
        """In place of one of that name.

        Raises:
            RemoteError: the remote can't be written.
        """
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "document"
            local.write_text(text, encoding="utf-8")
            try:
                self.fs.put_file(str(local), self._path(name))
            except Exception as error:
                raise RemoteError(f"can't write {self.where(name)}: {_words(error)}") from error

    def remove(self, name: str) -> None:
        """Errors are the remote's own."""
        self.fs.remove(self._path(name))

    def _path(self, name: str) -> str:
        return str(self.fs.join(self.root, _FOLDER, *name.split("/")))


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
