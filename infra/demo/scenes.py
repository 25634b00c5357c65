"""The demo's corpus: drawn scenes with captions in COCO JSON, generated from a seed.

A scene shows two objects in a place; an object has a kind, a colour, a size and a position. Each scene has five
differently worded captions, and every tenth scene is held out (split `test`).
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from searchforge import progress
from searchforge.errors import UsageError
from searchforge.storage.local import LocalStorage

SIZE = 224
"""Width and height of an image in pixels."""

HELD_OUT_EVERY = 10

_CAPTIONS_PER_SCENE = 5
_Box = tuple[float, float, float, float]
_Colour = tuple[int, int, int]

COLOURS: dict[str, _Colour] = {
    "red": (214, 40, 40),
    "orange": (245, 130, 32),
    "yellow": (250, 215, 50),
    "green": (40, 150, 70),
    "blue": (40, 90, 210),
    "purple": (130, 60, 170),
    "pink": (245, 130, 180),
    "white": (245, 245, 245),
    "black": (25, 25, 30),
    "brown": (125, 80, 45),
}

SIZES = {"small": 0.11, "medium": 0.16, "large": 0.23}
"""Half of an object's width, as a fraction of the image's width."""

POSITIONS = {
    "on the left": (0.27, 0.62),
    "on the right": (0.73, 0.62),
    "at the top left": (0.27, 0.27),
    "at the top right": (0.73, 0.27),
    "at the bottom left": (0.27, 0.76),
    "at the bottom right": (0.73, 0.76),
}

PLACES: dict[str, tuple[_Colour, _Colour]] = {
    "in a green meadow": ((150, 205, 250), (110, 185, 80)),
    "on a sandy beach": ((135, 205, 240), (235, 210, 150)),
    "in the snow": ((190, 205, 220), (240, 245, 250)),
    "at night": ((15, 20, 55), (35, 40, 60)),
    "by the sea": ((170, 220, 250), (30, 110, 170)),
    "at sunset": ((250, 150, 90), (110, 70, 80)),
    "in a desert": ((245, 215, 165), (205, 140, 80)),
}
"""Colours of the sky and the ground of each place."""


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene."""

    kind: str
    colour: str
    size: str
    position: str

    @property
    def words(self) -> str:
        return f"{self.size} {self.colour} {self.kind}" if self.size != "medium" else f"{self.colour} {self.kind}"


@dataclass(frozen=True)
class Scene:
    """A place with two objects."""

    place: str
    first: SceneObject
    second: SceneObject


def write_scenes(folder: Path, count: int, seed: int = 0) -> Path:
    """Draws `count` scenes into folder/images and writes folder/captions.json; returns the latter's path.

    A complete folder with the same parameters is reused.

    Raises:
      UsageError: The folder has images that the demo did not draw.
    """
    captions = folder / "captions.json"
    info = {"description": "drawn scenes", "scenes": count, "seed": seed, "size": SIZE}
    if captions.exists() and json.loads(captions.read_text())["info"] == info:
        return captions
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    captions.unlink(missing_ok=True)  # written last; without it, the folder is incomplete
    for stale in images.iterdir():
        if not re.fullmatch(r"scene-\d+\.jpg", stale.name):
            raise UsageError(f"{stale} was not drawn by the demo; choose a workspace without a corpus/images folder")
        stale.unlink()
    content: dict[str, object] = {"info": info, "images": [], "annotations": []}
    entries: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    with progress.track("drawing scenes", count, "scene") as advance:
        for index in range(count):
            generator = random.Random(f"{seed}/{index}")
            scene = random_scene(generator)
            name = f"scene-{index:05d}.jpg"
            draw_scene(scene, generator).save(images / name, quality=90)
            split = "test" if index % HELD_OUT_EVERY == 0 else "train"
            entries.append({"id": index, "file_name": name, "width": SIZE, "height": SIZE, "split": split})
            for text in describe(scene, generator):
                annotations.append({"id": len(annotations), "image_id": index, "caption": text})
            advance(1)
    content.update(images=entries, annotations=annotations)
    LocalStorage(str(folder)).write(captions.name, json.dumps(content).encode())
    return captions


def random_scene(generator: random.Random) -> Scene:
    """Returns a random scene whose two objects differ in kind, colour and side."""
    kinds = generator.sample(sorted(_DRAW), 2)
    colours = generator.sample(sorted(COLOURS), 2)
    sizes = [generator.choice(sorted(SIZES)) for _ in kinds]
    left = [name for name in POSITIONS if name.endswith("left")]
    right = [name for name in POSITIONS if name.endswith("right")]
    positions = [generator.choice(left), generator.choice(right)]
    generator.shuffle(positions)
    first, second = (SceneObject(*attributes) for attributes in zip(kinds, colours, sizes, positions, strict=True))
    return Scene(generator.choice(sorted(PLACES)), first, second)


def describe(scene: Scene, generator: random.Random) -> list[str]:
    """Returns five differently worded captions of a scene."""
    first, second, place = scene.first, scene.second, scene.place
    if generator.random() < 0.5:
        first, second = second, first
    short = (f"{first.colour} {first.kind}", f"{second.colour} {second.kind}")
    wordings = [
        f"{_article(first.words)} {first.position} and {_article(second.words)} {second.position}, {place}.",
        f"There is {_article(second.words)} together with {_article(first.words)} {place}.",
        f"{_article(short[0])} and {_article(short[1])} {place}.",
        f"A scene {place} with {_article(first.words)} {first.position} and {_article(short[1])}.",
        f"{place} you can see {_article(short[1])} {second.position} next to {_article(first.words)}.",
    ]
    assert len(wordings) == _CAPTIONS_PER_SCENE
    return [text[0].upper() + text[1:] for text in wordings]


def draw_scene(scene: Scene, generator: random.Random) -> Image.Image:
    """Draws a scene as an RGB image of SIZE x SIZE pixels, with small random variations."""
    scale = 2  # supersampling smooths the edges
    image = Image.new("RGB", (SIZE * scale, SIZE * scale))
    draw = ImageDraw.Draw(image)
    extent = SIZE * scale
    sky, ground = PLACES[scene.place]
    horizon = int(extent * generator.uniform(0.5, 0.6))
    for row in range(extent):
        base = sky if row < horizon else ground
        shade = 1.0 - 0.25 * abs(row - horizon) / extent
        draw.line((0, row, extent, row), fill=_shaded(base, shade))
    if scene.place == "at night":
        for _ in range(40):
            x, y = generator.uniform(0, extent), generator.uniform(0, horizon)
            draw.ellipse((x, y, x + 3, y + 3), fill=(255, 255, 220))
    for item in (scene.first, scene.second):
        x, y = (centre + generator.uniform(-0.03, 0.03) for centre in POSITIONS[item.position])
        half = SIZES[item.size] * generator.uniform(0.9, 1.1)
        box = tuple(extent * value for value in (x - half, y - half, x + half, y + half))
        _DRAW[item.kind](draw, (box[0], box[1], box[2], box[3]), COLOURS[item.colour])
    return image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _shaded(colour: _Colour, factor: float) -> _Colour:
    red, green, blue = (max(0, min(255, int(value * factor))) for value in colour)
    return red, green, blue


def _at(box: _Box, *points: tuple[float, float]) -> list[tuple[float, float]]:
    """Maps points of the unit square into a box."""
    left, top, right, bottom = box
    return [(left + x * (right - left), top + y * (bottom - top)) for x, y in points]


def _rectangle(draw: ImageDraw.ImageDraw, box: _Box, part: _Box, colour: _Colour) -> None:
    (start, end) = _at(box, part[:2], part[2:])
    draw.rectangle((*start, *end), fill=colour)


def _ellipse(draw: ImageDraw.ImageDraw, box: _Box, part: _Box, colour: _Colour) -> None:
    (start, end) = _at(box, part[:2], part[2:])
    draw.ellipse((*start, *end), fill=colour, outline=_shaded(colour, 0.6), width=3)


def _ball(draw: ImageDraw.ImageDraw, box: _Box, colour: _Colour) -> None:
    _ellipse(draw, box, (0, 0, 1, 1), colour)
    _ellipse(draw, box, (0.2, 0.15, 0.4, 0.35), _shaded(colour, 1.5))


def _cube(draw: ImageDraw.ImageDraw, box: _Box, colour: _Colour) -> None:
    _rectangle(draw, box, (0, 0.25, 0.75, 1), colour)
    draw.polygon(_at(box, (0, 0.25), (0.25, 0), (1, 0), (0.75, 0.25)), fill=_shaded(colour, 1.3))
    draw.polygon(_at(box, (0.75, 0.25), (1, 0), (1, 0.75), (0.75, 1)), fill=_shaded(colour, 0.6))


def _house(draw: ImageDraw.ImageDraw, box: _Box, colour: _Colour) -> None:
    _rectangle(draw, box, (0.1, 0.45, 0.9, 1), colour)
    draw.polygon(_at(box, (0, 0.45), (0.5, 0), (1, 0.45)), fill=_shaded(colour, 0.55))
    _rectangle(draw, box, (0.42, 0.68, 0.6, 1), (90, 60, 40))
    _rectangle(draw, box, (0.18, 0.55, 0.34, 0.7), (200, 230, 250))
    _rectangle(draw, box, (0.68, 0.55, 0.84, 0.7), (200, 230, 250))


def _tree(draw: ImageDraw.ImageDraw, box: _Box, colour: _Colour) -> None:
    _rectangle(draw, box, (0.42, 0.6, 0.58, 1), (100, 70, 40))
    for part in ((0.05, 0.2, 0.6, 0.7), (0.4, 0.2, 0.95, 0.7), (0.2, 0, 0.8, 0.55)):
        _ellipse(draw, box, part, colour)


def _car(draw: ImageDraw.ImageDraw, box: _Box, colour: _Colour) -> None:
    draw.polygon(_at(box, (0.2, 0.5), (0.32, 0.25), (0.68, 0.25), (0.82, 0.5)), fill=_shaded(colour, 0.8))
    draw.polygon(_at(box, (0.28, 0.48), (0.36, 0.31), (0.64, 0.31), (0.73, 0.48)), fill=(205, 230, 245))
    _rectangle(draw, box, (0, 0.48, 1, 0.75), colour)
    for left in (0.12, 0.66):
        _ellipse(draw, box, (left, 0.63, left + 0.22, 0.87), (35, 35, 35))


def _boat(draw: ImageDraw.ImageDraw, box: _Box, colour: _Colour) -> None:
    draw.polygon(_at(box, (0, 0.68), (1, 0.68), (0.8, 0.98), (0.2, 0.98)), fill=colour)
    _rectangle(draw, box, (0.47, 0.05, 0.52, 0.68), (90, 60, 40))
    draw.polygon(_at(box, (0.55, 0.08), (0.55, 0.6), (0.95, 0.6)), fill=(245, 240, 230))
    draw.polygon(_at(box, (0.44, 0.18), (0.44, 0.6), (0.12, 0.6)), fill=_shaded(colour, 1.2))


def _star(draw: ImageDraw.ImageDraw, box: _Box, colour: _Colour) -> None:
    points = [
        (0.5 + radius * math.sin(math.pi * corner / 5), 0.5 - radius * math.cos(math.pi * corner / 5))
        for corner in range(10)
        for radius in [0.5 if corner % 2 == 0 else 0.2]
    ]
    draw.polygon(_at(box, *points), fill=colour, outline=_shaded(colour, 0.6))


def _flower(draw: ImageDraw.ImageDraw, box: _Box, colour: _Colour) -> None:
    _rectangle(draw, box, (0.47, 0.5, 0.53, 1), (40, 130, 50))
    for petal in range(6):
        x, y = 0.5 + 0.22 * math.cos(petal * math.pi / 3), 0.32 + 0.22 * math.sin(petal * math.pi / 3)
        _ellipse(draw, box, (x - 0.15, y - 0.15, x + 0.15, y + 0.15), colour)
    _ellipse(draw, box, (0.38, 0.2, 0.62, 0.44), (250, 215, 50) if colour[2] > 60 else (120, 70, 30))


def _fish(draw: ImageDraw.ImageDraw, box: _Box, colour: _Colour) -> None:
    draw.polygon(_at(box, (0.7, 0.5), (1, 0.22), (1, 0.78)), fill=_shaded(colour, 0.8))
    _ellipse(draw, box, (0, 0.22, 0.8, 0.78), colour)
    _ellipse(draw, box, (0.14, 0.38, 0.24, 0.48), (255, 255, 255))
    _ellipse(draw, box, (0.17, 0.41, 0.22, 0.46), (0, 0, 0))


def _umbrella(draw: ImageDraw.ImageDraw, box: _Box, colour: _Colour) -> None:
    _rectangle(draw, box, (0.48, 0.35, 0.52, 0.95), (90, 60, 40))
    left, top, right, bottom = box
    draw.pieslice((left, top, right, top + (bottom - top) * 0.9), 180, 360, fill=colour, outline=(60, 60, 60))
    middle = (left * 0.65 + right * 0.35, left * 0.35 + right * 0.65)
    draw.pieslice((middle[0], top, middle[1], top + (bottom - top) * 0.9), 180, 360, fill=_shaded(colour, 1.4))


def _balloon(draw: ImageDraw.ImageDraw, box: _Box, colour: _Colour) -> None:
    draw.line(_at(box, (0.5, 0.7), (0.45, 0.85), (0.55, 1)), fill=(80, 80, 80), width=3)
    _ellipse(draw, box, (0.2, 0, 0.8, 0.72), colour)
    draw.polygon(_at(box, (0.5, 0.7), (0.44, 0.78), (0.56, 0.78)), fill=colour)


_DRAW: dict[str, Callable[[ImageDraw.ImageDraw, _Box, _Colour], None]] = {
    "ball": _ball,
    "balloon": _balloon,
    "boat": _boat,
    "car": _car,
    "cube": _cube,
    "fish": _fish,
    "flower": _flower,
    "house": _house,
    "star": _star,
    "tree": _tree,
    "umbrella": _umbrella,
}
