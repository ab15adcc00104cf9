"""What is known of each picture, and which of them show the same: kept in a private database on disk, so that a million pictures take no memory.

SQLite's unnamed database is a temporary file that nobody else sees and that vanishes with the process. It looks at no picture.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from operator import attrgetter

_CACHE_KIB = 16_384
_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class PictureFacts:
    """What was found on one picture; None: not looked at, since an earlier finding stood in the way."""

    missing: str
    wrong_size: str | None = None
    animated: str | None = None
    broken: str | None = None
    blank: str | None = None
    sha256: str | None = None
    """Of the file's bytes."""
    pixels: bytes | None = None
    """Of two pictures of one scan alike where the pixels are, as EXIF turns them and in RGB: whatever the files' bytes."""
    width: int | None = None
    """As EXIF turns it."""
    height: int | None = None


_COLUMNS = tuple(field.name for field in fields(PictureFacts))
_values = attrgetter(*_COLUMNS)


class FactStore(Mapping[str, PictureFacts]):
    """Facts by picture name, in the order in which the names came."""

    def __init__(self) -> None:
        self._db = _open_database()
        columns = ", ".join(_COLUMNS)
        self._db.execute(f"CREATE TABLE picture (number INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, {columns})")
        self._read = lru_cache(maxsize=_AT_ONCE)(self._read_now)

    def add_names(self, names: Iterable[str]) -> None:
        """Names that are there already stay as they are."""
        self._db.executemany("INSERT OR IGNORE INTO picture (name) VALUES (?)", ((name,) for name in names))

    def put(self, facts: Iterable[tuple[str, PictureFacts]]) -> None:
        """Sets the facts on names that were added."""
        assignments = ", ".join(f"{column} = ?" for column in _COLUMNS)
        rows = ((*_values(found), name) for name, found in facts)
        self._db.executemany(f"UPDATE picture SET {assignments} WHERE name = ?", rows)
        self._read.cache_clear()

    def put_pixels(self, pixels: Iterable[tuple[str, bytes]]) -> None:
        """Sets what tells each of these pictures from others."""
        self._db.executemany("UPDATE picture SET pixels = ? WHERE name = ?", ((value, name) for name, value in pixels))
        self._read.cache_clear()

    def unknown(self) -> Iterator[str]:
        """Names without facts; facts may be put meanwhile."""
        return self._names("missing IS NULL")

    def doubtful(self) -> list[str]:
        """Names whose files differ while their `pixels` are alike."""
        self._db.execute("CREATE INDEX IF NOT EXISTS by_pixels ON picture (pixels)")
        shared = "SELECT pixels FROM picture WHERE pixels IS NOT NULL GROUP BY pixels HAVING COUNT(DISTINCT sha256) > 1"
        rows = self._db.execute(f"SELECT name FROM picture WHERE pixels IN ({shared}) ORDER BY number")
        return [name for (name,) in rows]

    def __getitem__(self, name: str) -> PictureFacts:
        facts = self._read(name)
        if facts is None:
            raise KeyError(name)
        return facts

    def __iter__(self) -> Iterator[str]:
        return self._names("TRUE")

    def __len__(self) -> int:
        return int(self._db.execute("SELECT COUNT(*) FROM picture").fetchone()[0])

    def _names(self, condition: str) -> Iterator[str]:
        last, statement = (
            0,
            f"SELECT number, name FROM picture WHERE number > ? AND {condition} ORDER BY number LIMIT ?",
        )
        while rows := self._db.execute(statement, (last, _AT_ONCE)).fetchall():
            last = rows[-1][0]
            yield from (name for _, name in rows)

    def _read_now(self, name: str) -> PictureFacts | None:
        statement = f"SELECT {', '.join(_COLUMNS)} FROM picture WHERE name = ? AND missing IS NOT NULL"
        row = self._db.execute(statement, (name,)).fetchone()
        return None if row is None else PictureFacts(*row)


class Sightings:
    """Under which name each file of the data set shows some pixels first."""

    def __init__(self) -> None:
        self._db = _open_database()
        self._db.execute(
            "CREATE TABLE seen (pixels BLOB, file TEXT, name TEXT, PRIMARY KEY (pixels, file)) WITHOUT ROWID"
        )

    def first_name(self, file: str, *, pixels: bytes, name: str) -> str:
        """The name under which the file showed them first: the given one, if it hasn't yet."""
        self._db.execute("INSERT OR IGNORE INTO seen VALUES (?, ?, ?)", (pixels, file, name))
        row = self._db.execute("SELECT name FROM seen WHERE pixels = ? AND file = ?", (pixels, file)).fetchone()
        return str(row[0])

    def others(self, file: str, *, pixels: bytes) -> dict[str, str]:
        """Name by file, of those other files that have shown them."""
        return dict(self._db.execute("SELECT file, name FROM seen WHERE pixels = ? AND file != ?", (pixels, file)))


def _open_database() -> sqlite3.Connection:
    database = sqlite3.connect("", isolation_level=None)
    database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    database.execute("PRAGMA journal_mode = OFF")
    database.execute("PRAGMA synchronous = OFF")
    return database
