"""Colours that figures are drawn with and that the report exchanges for the page's own."""

INK = "#1b1f24"
"""Text, axes and one line; becomes the page's text colour, so that figures work in dark mode."""

PAGE = "#fffffe"
"""Fill of hollow markers; becomes the page's background."""
