"""Terms after SGG-R3 (arXiv 2603.07961), with names in place of its sentence embeddings.

sgg_r3.toml makes a rubric of them. What differs: its answer has a stage that lists categories, in
which a repeated one scores 0; an answer here has objects only, so its other guard stands in, that
more than 20 objects of one category score 0.
"""

from collections import Counter
from math import log
from statistics import fmean, pstdev

from pairing import matched_objects, names

# Triplets of VG150's training images.
COUNTS = {
    "on": 712409, "has": 277936, "in": 251756, "of": 146339, "wearing": 136099, "near": 96589,
    "with": 66425, "above": 47341, "holding": 42722, "behind": 41356, "under": 22596,
    "sitting on": 18643, "wears": 15457, "standing on": 14185, "in front of": 13715,
    "attached to": 10190, "at": 9903, "hanging from": 9894, "over": 9317, "for": 9145,
    "riding": 8856, "carrying": 5213, "eating": 4688, "walking on": 4613, "playing": 3810,
    "covering": 3806, "laying on": 3739, "along": 3624, "watching": 3490, "and": 3477,
    "between": 3411, "belonging to": 3288, "painted on": 3095, "against": 3092,
    "looking at": 3083, "from": 2945, "parked on": 2721, "to": 2517, "made of": 2380,
    "covered in": 2312, "mounted on": 2253, "says": 2241, "part of": 2065, "across": 1996,
    "flying in": 1973, "using": 1925, "on back of": 1914, "lying on": 1869, "growing on": 1853,
    "walking in": 1740,
}  # fmt: skip
POSSESSION = {"has", "of", "with", "for", "belonging to", "made of", "part of", "wearing", "wears"}
INTERACTION = {
    "holding", "riding", "carrying", "eating", "playing", "watching", "looking at", "using",
    "walking on", "walking in", "says", "covering",
}  # fmt: skip


def weight(predicate):
    """2 for the most frequent predicate to 10 for the rarest, by the logarithm; 2 if unknown."""
    least, most = min(COUNTS.values()), max(COUNTS.values())
    return 2 + 8 * log(most / COUNTS.get(predicate, most)) / log(most / least)


def rare_edges(predicted, reference):
    """The share of reference triplets that are hit, weighted by log inverse frequency."""
    match = matched_objects(predicted, reference)
    written = {(e.subject, e.object): set() for e in predicted.relationships}
    for edge in predicted.relationships:
        written[edge.subject, edge.object].add(names(predicted, edge))
    earned = [
        weight(edge.predicate)
        for edge in reference.relationships
        if names(reference, edge)
        in written.get((match.get(edge.subject), match.get(edge.object)), ())
    ]
    return sum(earned) / max(sum(weight(e.predicate) for e in reference.relationships), 1)


def cluster_coverage(predicted, reference):
    """The share of clusters of triplets that are met, times how densely, less what is lopsided."""
    wanted = Counter(_cluster(reference, edge) for edge in reference.relationships)
    met = Counter(_cluster(predicted, edge) for edge in predicted.relationships)
    covered = [cluster for cluster in wanted if met[cluster]]
    if not covered:
        return 0
    density = sum(met[c] for c in covered) / sum(wanted[c] for c in covered)
    ratios = [met[c] / wanted[c] for c in covered]
    uneven = pstdev(ratios) / fmean(ratios)
    lopsided = min(0.5, uneven / 10) if uneven > 0.5 else 0
    return max(0, len(covered) / len(wanted) * min(1, density) - lopsided)


def category_f1(predicted, reference):
    """F1 of the two sets of categories; 0 where more than 20 objects have one category."""
    counts = Counter(item.category for item in predicted.objects)
    wanted = {item.category for item in reference.objects}
    if not counts or max(counts.values()) > 20:
        return 0
    return 2 * len(wanted & set(counts)) / (len(wanted) + len(counts))


def _cluster(graph, edge):
    """Triplets of the same two categories and the same group of predicates are one cluster."""
    subject, predicate, target = names(graph, edge)
    group = "possession" if predicate in POSSESSION else "space"
    return subject, "interaction" if predicate in INTERACTION else group, target
