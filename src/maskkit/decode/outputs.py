"""What `Model.select` returns: named tuples of fixed shapes, of tensors in a model and of arrays in a decoder.

There are ``B`` images and ``K`` rows per image, best first; a row with the score 0 is padding. Boxes are ``x1 y1 x2
y2`` relative to the network's input, 0 to 1. ``A`` is the type of the arrays: `torch.Tensor` or `numpy.ndarray`. A
decoder receives the same tuple for one image, without the axis ``B``.
"""

from typing import Generic, NamedTuple, TypeVar

A = TypeVar("A")


class Boxes(NamedTuple, Generic[A]):
    """Objects without masks."""

    boxes: A  # (B, K, 4)
    labels: A  # (B, K)
    scores: A  # (B, K)


class ObjectMasks(NamedTuple, Generic[A]):
    """Objects with a mask each; the decoder knows where their grid lies."""

    boxes: A  # (B, K, 4)
    labels: A  # (B, K)
    scores: A  # (B, K)
    masks: A  # (B, K, h, w): probabilities, or logits where the decoder's threshold is 0
    mask_scores: A  # (B, K): equal to the scores unless a method scores masks separately


class RegionVotes(NamedTuple, Generic[A]):
    """Objects whose masks are voted on by regions (FCIS): the last R of the K rows, all with the score 0."""

    boxes: A  # (B, K, 4)
    labels: A  # (B, K)
    scores: A  # (B, K)
    masks: A  # (B, K, h, w): probabilities on a grid over the box
    votes: A  # (B, K, R): weight of each region's mask; they sum to 1, or to 0 for padding


class KernelMaps(NamedTuple, Generic[A]):
    """Maps of a method that grows instances from kernels (PSENet), on a grid over the network's whole input."""

    kernels: A  # (B, N, h, w): logits of the complete objects, then of smaller and smaller kernels
    classes: A  # (B, h, w): the most probable class of each cell, given that it is foreground


class EmbeddingMaps(NamedTuple, Generic[A]):
    """Maps of a method that clusters the embeddings of cells, on a grid over the network's whole input."""

    embeddings: A  # (B, D, h, w)
    foreground: A  # (B, h, w): probability of belonging to any object
    classes: A  # (B, h, w): the most probable class of each cell, given that it is foreground


class ClassLogits(NamedTuple, Generic[A]):
    """The class of every pixel, as logits on a grid over the network's whole input."""

    logits: A  # (B, C, h, w)


class TagMaps(NamedTuple, Generic[A]):
    """Class activation maps of a model trained on image tags, on a grid over the network's whole input."""

    activations: A  # (B, C, h, w): nonnegative, of the classes without background
    present: A  # (B, C): 1 for the classes in the image, else 0


class ObjectQueries(NamedTuple, Generic[A]):
    """Queries with a mask each, and the best pairs of query and class, whose masks are scored in the image."""

    masks: A  # (B, Q, h, w): logits on a grid over the network's whole input
    queries: A  # (B, K): the pair's query, 0 to Q - 1
    labels: A  # (B, K)
    scores: A  # (B, K): probability of that label


class SegmentQueries(NamedTuple, Generic[A]):
    """Segments that compete for the pixels of a panoptic image."""

    masks: A  # (B, K, h, w): logits on a grid over the network's whole input
    labels: A  # (B, K): class number; the number of classes stands for "no object"
    scores: A  # (B, K): probability of that label
