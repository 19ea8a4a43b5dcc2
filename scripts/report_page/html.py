"""Make pieces of HTML for the report page, and escape text from files."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Sequence

BROAD = 700  # pixels of CSS; on narrow screens, wider pictures keep a readable width and scroll sideways
WORDS = "of|n/a|nan|undefined|mL|years|dB|mm|min|MB|GB|h|s|e"  # words that may appear in a cell of numbers
NUMBERS = re.compile(rf"(?:\b(?:{WORDS})\b|(?<=\d)e(?=[-+\d])|[^A-Za-z])*")


def escape(text: object) -> str:
    return html.escape(str(text))


def img(png: bytes, alt: str, css_class: str = "", lazy: bool = False, scale: float = 1) -> str:
    """Return a PNG as an image. `scale` is the width of one of its pixels on the page, in pixels of CSS."""
    data = base64.b64encode(png).decode()
    # Byte 16 of a PNG begins its size. With the size, the page does not jump while pictures are decoded.
    width, height = (round(scale * int.from_bytes(png[at : at + 4], "big")) for at in (16, 20))
    size = f'width="{width}" height="{height}"' + (' loading="lazy" decoding="async"' if lazy else "")
    image = f'<img class="{css_class}" {size} alt="{escape(alt)}" src="data:image/png;base64,{data}">'
    return image if lazy or width < BROAD else f'<div class="wide" tabindex="0" role="group" aria-label="picture">{image}</div>'


def table(header: Sequence[object], rows: Sequence[Sequence[object]], css_class: str = "") -> str:
    """Return a table that scrolls sideways if it is too wide. Columns of numbers are aligned at the right."""
    columns = list(zip(*rows)) or [()] * len(header)
    classes = [
        ' class="number"' if k and all(NUMBERS.fullmatch(str(cell)) for cell in c) else "" for k, c in enumerate(columns)
    ]
    head = "".join(f'<th scope="col"{css}>{escape(cell)}</th>' for css, cell in zip(classes, header))
    body = "".join(
        "<tr>" + "".join(f"<td{css}>{escape(cell)}</td>" for css, cell in zip(classes, row)) + "</tr>\n" for row in rows
    )
    head = f"<thead><tr>{head}</tr></thead>" if any(header) else ""
    return (
        f'<div class="wide" tabindex="0" role="group" aria-label="table"><table class="{css_class}">{head}\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def paragraphs(text: str) -> str:
    """Return plain text as paragraphs. Blank lines separate paragraphs in the text."""
    return "".join(f"<p>{escape(part.strip())}</p>" for part in re.split(r"\n\s*\n", text) if part.strip())


def folded(title: str, content: str) -> str:
    """Return HTML that is shown after a click on its title."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>\n"


def json_block(element_id: str, content: object) -> str:
    """Return a block of JSON for the page's scripts. No value in it can end the block."""
    text = json.dumps(content, allow_nan=False).replace("<", "\\u003c").replace("&", "\\u0026")
    return f'<script type="application/json" id="{element_id}">{text}</script>'
