"""The packaged model (what train builds is what the server loads) and the server."""
