"""Models for other runtimes: one graph of `forward` and `select`, with everything that prediction needs beside it."""
