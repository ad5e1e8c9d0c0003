"""Masks of everything with classes: labelled by somebody, and joined to one map of segments."""

from __future__ import annotations

import pydoc
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from samlit.errors import one_line
from samlit.evaluation.head import Head, features
from samlit.evaluation.segments import Panoptic, Segments
from samlit.loading import frames
from samlit.masks import rle
from samlit.masks.rle import Rle
from samlit.source import Sample
from samlit.structures import Batch, Scene
from samlit.text.searching import words_of

__all__ = ["Labels", "joined", "labeller", "masks_of"]

Labels = Callable[[Scene, int, Sequence[Rle]], Sequence[Any]]
"""A scene, the number of one of its images, and masks of it at its own size, to the class of each mask: an id of the
annotations' categories, or None for none."""
AT_ONCE = 64


def labeller(labels: str | None, annotations: Panoptic, things: Set[Any] = frozenset()) -> Labels:
    """What says the classes: the model's text prompt, a trained head, a function of somebody's, or the truth.

    Args:
        labels: "text", or a head's file, or the class path of a function or of a class without arguments; the truth if
            None.
        annotations: The truth.
        things: Classes of which the truth names whole things only, not their parts.

    Raises:
        ValueError: There is no such thing.
    """
    if labels is None:
        return lambda scene, image, masks: _true(_segments_of(annotations, scene, image), masks, things)
    if labels == "text":
        return lambda scene, image, masks: _nearest(annotations.names, scene, image, masks)
    if labels.endswith(".safetensors"):
        head = Head.load(labels)
        kinds = _kinds(head, labels, annotations)
        return lambda scene, image, masks: _by_head(head, kinds, scene, image, masks)
    try:
        found = pydoc.locate(labels)
    except pydoc.ErrorDuringImport as error:
        raise ValueError(f"labels: {labels} cannot be imported ({one_line(error)})") from error
    if not callable(found):
        raise ValueError(f"labels: there is no function or class {labels}")
    made: Callable[[Sample, Sequence[Rle]], Sequence[Any]] = found() if isinstance(found, type) else found
    return lambda scene, image, masks: made(scene.batch.samples[image], masks)


def _nearest(names: Mapping[Any, str], scene: Scene, image: int, masks: Sequence[Rle]) -> list[Any]:
    """The class whose name means most nearly what CLIP sees in each mask, by the model's text prompt."""
    words = words_of(scene)
    meant = words.told(list(names.values()), scene.image_index.device).values[:, 0]
    kinds, classes = list(names), list[Any]()
    for batch in _framed(scene, image, masks):
        with torch.no_grad():
            seen = words.likeness(batch.masks, replace(scene, batch=batch), batch.image_index)
        classes += [kinds[k] for k in (seen @ meant.T).argmax(1).tolist()]
    return classes


def _framed(scene: Scene, image: int, masks: Sequence[Rle]) -> Iterator[Batch]:
    """Masks of an image in the scene's frame, some at a time, as batches of that image alone."""
    sample, device = scene.batch.samples[image], scene.image_index.device
    for at in range(0, len(masks), AT_ONCE):
        some = replace(sample, masks=tuple(masks[at : at + AT_ONCE]), phrases=(), numbers=())
        framed = frames.pack([frames.frame(some, max(scene.batch.image.shape[-2:]), pixels=False)]).to(device)
        # The picture is in the scene's frame already.
        yield replace(framed, image=scene.batch.image[image : image + 1])


def _kinds(head: Head, file: str, annotations: Panoptic) -> list[Any]:
    """The class that each of a head's names means, as the annotations call it; None where they do not know it."""
    called = {str(one.get("name", number)): number for number, one in annotations.categories.items()}
    known = {name: number for number, name in annotations.names.items()} | called
    kinds = [known.get(name) for name in head.names]
    if all(kind is None for kind in kinds):
        raise ValueError(f"labels: {file} knows {', '.join(head.names[:3])}, and {annotations.path} has no such class")
    return kinds


def _by_head(head: Head, kinds: Sequence[Any], scene: Scene, image: int, masks: Sequence[Rle]) -> list[Any]:
    """The class that a head gives each mask, of those that the annotations know."""
    if scene.embed is None:
        raise ValueError("labels: a head names masks by the images' embeddings, and there are none")
    embedding = scene.embed().image[image : image + 1]
    if embedding.shape[1] != head.weight.shape[1]:
        raise ValueError(
            f"labels: the head is for embeddings of {head.weight.shape[1]} channels, and the model's have "
            f"{embedding.shape[1]}; train one with `samlit head` and the same weights"
        )
    known = [k for k, kind in enumerate(kinds) if kind is not None]
    classes = list[Any]()
    for batch in _framed(scene, image, masks):
        scores = head.scores(features(embedding, batch.masks, batch.image_index))[:, known]
        classes += [kinds[known[k]] for k in scores.argmax(1).tolist()]
    return classes


def _segments_of(annotations: Panoptic, scene: Scene, image: int) -> Segments:
    sample = scene.batch.samples[image]
    return annotations.segments(sample.key, sample.size)


def _true(truth: Segments, masks: Sequence[Rle], things: Set[Any]) -> list[Any]:
    """The class of the true segment that most of each mask is in, if half of it is; of things, only whole ones."""
    areas = dict(zip(*(found.tolist() for found in np.unique(truth.map, return_counts=True)), strict=True))
    classes: list[Any] = []
    for mask in masks:
        inside = truth.map[rle.decode(mask)]
        numbers, counts = np.unique(inside, return_counts=True)
        k = int(counts.argmax()) if len(counts) else 0
        enough = len(counts) > 0 and 2 * counts[k] >= len(inside)
        kind = truth.classes.get(int(numbers[k])) if enough else None
        if kind in things and 2 * counts[k] <= len(inside) + areas[int(numbers[k])] - counts[k]:
            kind = None  # A part of a thing is no thing: by COCO's rules nothing below an IoU of .5 is found.
        classes.append(kind)
    return classes


def joined(masks: Sequence[Rle], classes: Sequence[Any], size: tuple[int, int], things: set[Any]) -> Segments:
    """One map: a pixel belongs to the smallest mask that it is in; stuff of a class is one segment."""
    some = [k for k, kind in enumerate(classes) if kind is not None]
    if not some:
        return Segments(np.zeros(size, np.int64), {})
    order = sorted(some, key=lambda k: rle.area(masks[k]))
    labels = np.zeros(size, np.int64)
    for k in reversed(order):
        x0, y0, x1, y1 = rle.box(masks[k])
        if x0 < x1:
            part = labels[y0:y1, x0:x1]
            part[rle.draw(masks[k], part.shape, (slice(y0, y1), slice(x0, x1)))] = k + 1
    first: dict[Any, int] = {}
    kinds: dict[int, Any] = {}
    for k in some:
        number = k + 1 if classes[k] in things else first.setdefault(classes[k], k + 1)
        if number != k + 1:
            labels[labels == k + 1] = number
        kinds[number] = classes[k]
    there = set(np.unique(labels).tolist())
    return Segments(labels, {number: kind for number, kind in kinds.items() if number in there})


def masks_of(made: Segments) -> list[Rle]:
    """A mask for each of an image's segments."""
    return [rle.encode(made.map == number) for number in made.classes]
