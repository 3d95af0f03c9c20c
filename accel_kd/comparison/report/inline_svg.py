"""A matplotlib figure as SVG inside a page: with names of its own, words for those who do not see it, and colours that
the page may exchange."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from accel_kd.comparison.figures.style import ON_DARK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")


def inline_svg(figure: Figure, name: str, title: str, description: str) -> str:
    """The same figure gives the same text each time.

    Args:
        figure: is drawn, not changed.
        name: unlike that of all other figures of the page; starts the ids of all that is in it.
        title, description: what a screen reader says.

    Returns:
        An `svg` element for HTML. Its colours are those of `colour_variables`, its size is that of its place.
    """
    root = _without_namespaces(_drawn(figure))
    for element in root.iter():
        for attribute, value in element.attrib.items():
            if attribute == "id":
                element.set("id", f"{name}-{value}")
            elif attribute == "href":
                element.set("href", value.replace("#", f"#{name}-"))
            else:
                value = _REFERENCE.sub(rf"url(#{name}-\1)", value)
                element.set(attribute, _COLOUR.sub(lambda found: f"var({_variable(found[0])})", value))
    for size in ("width", "height"):
        del root.attrib[size]
    root.attrib |= {"role": "img", "aria-labelledby": f"{name}-title {name}-description", "class": "plot"}
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        words = ElementTree.Element(tag, {"id": f"{name}-{'title' if tag == 'title' else 'description'}"})
        words.text = text
        root.insert(place, words)
    return ElementTree.tostring(root, encoding="unicode")


def colour_variables(*, dark: bool) -> dict[str, str]:
    """The value of each variable by which the figures name a colour."""
    return {_variable(light): on_dark if dark else light for light, on_dark in ON_DARK.items()}


def _variable(colour: str) -> str:
    assert colour in ON_DARK, f"{colour} is none of the figures' colours, so it has none for the night"
    return f"--plot-{colour[1:]}"


def _drawn(figure: Figure) -> ElementTree.Element:
    import matplotlib

    buffer = io.BytesIO()
    # The salt of the ids is random otherwise; letters as paths look the same on all machines.
    with matplotlib.rc_context({"svg.hashsalt": "accel_kd", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg")
    return ElementTree.fromstring(buffer.getvalue())


def _without_namespaces(root: ElementTree.Element) -> ElementTree.Element:
    """As HTML wants it, without the comments, the metadata (a date among them), and the style sheet, which would be one
    for the page."""
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in ("metadata", "style")]:
            parent.remove(child)
    return root
