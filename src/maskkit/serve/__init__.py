"""`maskkit serve`: a model behind HTTP, and a page to try it. No torch: exported files are served without it.

One process runs the event loop: it reads requests and answers them. Another process runs the model (`serve.worker`).
Between them is a bounded queue (`serve.queue`), from which images of several requests can share a forward pass.
"""
