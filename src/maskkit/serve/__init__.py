"""`maskkit serve`: a model behind HTTP, and a page to try it. No torch by itself: exported files are served without it.

The process with the event loop reads requests and answers them; another process has the model (`serve.worker`).
Between them is a queue with a bound (`serve.queue`), from which images of several requests share a forward pass.
"""
