"""What can be wrong with data, in words and by cause, so that it can be counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from samlit.errors import one_line

__all__ = ["CAUSES", "Damaged", "blaming"]

CAUSES = {
    "cut": "a shard or file that ends too early",
    "header": "a damaged header in a shard",
    "name": "a member of a shard whose name is absolute, leads out of it, or is no record's",
    "pair": "an image without its JSON, a JSON without its image, or one that comes twice",
    "json": "a JSON that cannot be read or lacks what it must have",
    "image": "an image that cannot be decoded",
    "size": "an image or mask of another size than is stated",
    "bomb": "an image of more pixels than are ever decoded",
    "rle": "a mask whose string is malformed",
    "unreadable": "what could not be fetched, after all tries",
    "changed": "a shard that is not the one that was indexed",
    "other": "anything else that a source refuses",
    "empty": "an image without a mask, which is nothing to learn from and no damage",
}
"""By its short name, each cause for which a sample is left out."""


class Damaged(ValueError):
    """A sample, or a part of a shard, that cannot be used; one line that says what is wrong with what.

    Attributes:
        cause: One of CAUSES.
        message: What is wrong.
        key: The sample's name; empty where not even that is known.
        shard: The shard or file that it is in; empty where there is none.
    """

    def __init__(self, cause: str, message: str, key: str = "", shard: str = "") -> None:
        if cause not in CAUSES:
            raise KeyError(f"there is no cause {cause!r}")
        super().__init__(cause, message, key, shard)
        self.cause, self.message, self.key, self.shard = cause, message, key, shard

    def __str__(self) -> str:
        """With the names before the message."""
        return ": ".join(part for part in (self.shard, self.key, self.message) if part)


@contextmanager
def blaming(key: str, shard: str = "") -> Iterator[None]:
    """Give every ValueError the names of the sample and of its shard, where it has none, and a cause."""
    try:
        yield
    except Damaged as error:
        raise Damaged(error.cause, error.message, error.key or key, error.shard or shard) from error
    except ValueError as error:
        raise Damaged("other", one_line(error), key, shard) from error
