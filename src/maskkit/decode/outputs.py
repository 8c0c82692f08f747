"""What `Model.select` gives: named tuples of fixed shape, as tensors in a model and as arrays in a decoder.

``B`` images, ``K`` rows per image, best first; a row with the score 0 is padding. Boxes are ``x1 y1 x2 y2`` relative to
the network's input, 0 to 1. ``A`` is the type of the arrays: `torch.Tensor` or `numpy.ndarray`. A decoder receives the
same tuple for one image, without the axis ``B``.
"""

from typing import Generic, NamedTuple, TypeVar

A = TypeVar("A")


class Boxes(NamedTuple, Generic[A]):
    """Objects without masks."""

    boxes: A  # (B, K, 4)
    labels: A  # (B, K)
    scores: A  # (B, K)


class ObjectMasks(NamedTuple, Generic[A]):
    """Objects with a mask of probabilities each; where its grid lies, the decoder knows."""

    boxes: A  # (B, K, 4)
    labels: A  # (B, K)
    scores: A  # (B, K)
    masks: A  # (B, K, h, w)
    mask_scores: A  # (B, K): what ranks the masks; equal to the scores unless a method rates masks apart


class RegionVotes(NamedTuple, Generic[A]):
    """Objects whose masks are voted on by regions (FCIS): the last R of the K rows, all with the score 0."""

    boxes: A  # (B, K, 4)
    labels: A  # (B, K)
    scores: A  # (B, K)
    masks: A  # (B, K, h, w): probabilities on a grid over the box
    votes: A  # (B, K, R): weight of each region's mask in the object's; they sum to 1, or to 0 for padding


class KernelMaps(NamedTuple, Generic[A]):
    """Maps of a method that grows instances from kernels (PSENet), on a grid over the network's whole input."""

    kernels: A  # (B, N, h, w): logits of the complete objects, then of ever smaller kernels
    classes: A  # (B, h, w): the likeliest class of each cell, if it belongs to an object


class EmbeddingMaps(NamedTuple, Generic[A]):
    """Maps of a method that clusters the embeddings of cells, on a grid over the network's whole input."""

    embeddings: A  # (B, D, h, w)
    foreground: A  # (B, h, w): probability of belonging to any object
    classes: A  # (B, h, w): the likeliest class of each cell, if it belongs to an object


class ClassLogits(NamedTuple, Generic[A]):
    """The class of every pixel, as logits on a grid over the network's whole input."""

    logits: A  # (B, C, h, w)


class TagMaps(NamedTuple, Generic[A]):
    """Where a model of image tags sees each class, on a grid over the network's whole input."""

    activations: A  # (B, C, h, w): 0 and up, of the classes without the background
    present: A  # (B, C): 1 for the classes that the image shows, else 0


class SegmentQueries(NamedTuple, Generic[A]):
    """Segments that compete for the pixels of a panoptic image."""

    masks: A  # (B, K, h, w): logits on a grid over the network's whole input
    labels: A  # (B, K): class number; the number of classes stands for "no object"
    scores: A  # (B, K): probability of that label
