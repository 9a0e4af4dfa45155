"""Verdicts in words, for the terminal and for pages."""

from collections.abc import Callable

from reward_service.explain.verdicts import MIN_NEAR_IOU, Names, ObjectLine, TripletLine
from scene_graph.matching import MIN_IOU


def object_reason(line: ObjectLine) -> str:
    """What an object's verdict does not say by itself; empty where it does."""
    if line.verdict == "junk":
        if line.iou is None:
            return "no reference object is left for it"
        if line.similarity == 1 and line.iou < MIN_NEAR_IOU:
            return f"its box is elsewhere: IoU is under {MIN_NEAR_IOU:g}"
        return "name and box are wrong"
    return f"IoU is under {MIN_IOU:g}" if line.verdict == "box_off" else ""


def triplet_reason(line: TripletLine, name: Callable[[str], str] = str) -> str:
    """What a triplet's verdict does not say by itself; empty where it does.

    Args:
        line: The triplet.
        name: Makes a name fit for where it is shown.
    """
    reasons = {
        "alike": f"alike with {arrow_text(line.reference or ('', '', ''), name)}",
        "surplus": "another triplet has this hit",
        "wrong_predicate": f"the reference has {', '.join(map(name, line.wanted))}",
        "wrong_name": "an end is named otherwise",
        "box_off": f"IoU of an end is under {MIN_IOU:g}",
        "not_in_reference": "it has nothing between these two",
    }
    why = reasons.get(line.verdict or "", "")
    if line.counted:
        return why
    unknown = "an end overlaps no reference object, so precision does not count it"
    return f"{why}; {unknown}" if why else unknown


def arrow_text(triplet: Names, name: Callable[[str], str] = str) -> str:
    """A triplet on one line. Example: `man.1 -riding-> horse.2`."""
    subject, predicate, object_ = map(name, triplet)
    return f"{subject} -{predicate}-> {object_}"
