"""What the site's configuration cannot say: mkdocs calls these for every page."""

import posixpath
import re
from typing import Any

CODE = re.compile(r"<code[ >].*?</code>", re.S)
OPTION = re.compile(r"(?<![\w-])--\w[\w.+-]*")
LINK = re.compile(r'href="([\w./-]+\.(?:md|ipynb))"')


def on_page_markdown(markdown: str, page: Any, **_: Any) -> None:
    """The home page is the README, which has no sisters: their place is given to its tables."""
    if page.is_homepage:
        page.meta["hide"] = ["navigation"]


def on_page_content(html: str, page: Any, files: Any, **_: Any) -> str:
    """Options are not broken after their dashes, and a notebook's links lead where those of other pages do."""
    if page.file.src_uri.endswith(".ipynb"):
        here = posixpath.dirname(page.file.src_uri)

        def lead(link: re.Match[str]) -> str:
            there = files.get_file_from_path(posixpath.normpath(posixpath.join(here, link[1])))
            if there is None:
                raise ValueError(f"{page.file.src_uri}: there is no page {link[1]}")
            return f'href="{there.url_relative_to(page.file)}"'

        html = LINK.sub(lead, html)
    return CODE.sub(lambda code: OPTION.sub(r'<span class="option">\g<0></span>', code[0]), html)
