"""The pixel stages of the release."""

# Its own first choice comes first.
KINDS = ("highres", "lowres")
