"""Terms after SceneGraphVLM (arXiv 2605.13667): what an answer has that no annotation supports.

Its penalty is minus a share; a term is 0..1, so these are one minus the share, which ranks answers
alike. As there, an answer without a part has none that is unsupported.
"""

from pairing import matched_objects, overlaps, triplet_hits


def supported_objects(predicted, reference):
    """One minus the share of objects without a match of the same name with IoU >= 0.5."""
    iou = overlaps(predicted, reference)[0]
    row = {item.id: index for index, item in enumerate(predicted.objects)}
    column = {item.id: index for index, item in enumerate(reference.objects)}
    category = {item.id: item.category for item in predicted.objects}
    good = sum(
        iou[row[ours], column[theirs]] >= 0.5
        and category[ours] == reference.objects[column[theirs]].category
        for theirs, ours in matched_objects(predicted, reference).items()
    )
    return good / len(predicted.objects) if predicted.objects else 1


def supported_triplets(predicted, reference):
    """One minus the square of the share of triplets that hit none of the reference."""
    count = len(predicted.relationships)
    if not count or not reference.relationships:
        return 1
    return 1 - (1 - triplet_hits(predicted, reference) / count) ** 2


def triplet_precision(predicted, reference):
    """The share of triplets that hit one of the reference."""
    count = len(predicted.relationships)
    return triplet_hits(predicted, reference) / count if count else 0
