"""Items of a file that lists them in any order, put together by image on disk."""

import json
import sqlite3
from collections.abc import Iterable
from typing import Any


class ItemsByImage:
    """Lists by image, in a temporary file; memory holds one image's.

    Args:
        items: Image id and item (anything that JSON has), in any order.
    """

    def __init__(self, items: Iterable[tuple[str, Any]]) -> None:
        self._db = sqlite3.connect("")  # a temporary file of SQLite's own, removed with it
        self._db.execute("CREATE TABLE items (image TEXT, item TEXT)")
        texts = ((image, json.dumps(item)) for image, item in items)
        self._db.executemany("INSERT INTO items VALUES (?, ?)", texts)
        self._db.execute("CREATE INDEX by_image ON items (image)")
        self.num_left: int = self._db.execute("SELECT count(*) FROM items").fetchone()[0]
        """Items whose image was not asked for."""

    def images(self) -> Iterable[str]:
        """All image ids, in the order in which they came."""
        query = "SELECT image FROM items GROUP BY image ORDER BY min(rowid)"
        return (image for (image,) in self._db.execute(query))

    def take(self, image: str) -> list[Any]:
        """An image's items, in their order; ask for it once."""
        query = "SELECT item FROM items WHERE image = ? ORDER BY rowid"
        found = [json.loads(text) for (text,) in self._db.execute(query, (image,))]
        self.num_left -= len(found)
        return found
