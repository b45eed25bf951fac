"""An image as one page for a browser: layers, wasted bytes, findings, every path with its origin.

`picture` gathers, `pack` makes it small, `page` makes the document. What the page looks like and
does lies in `page/`, as package data.
"""
