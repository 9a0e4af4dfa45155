"""Samples as the services' messages name them."""

from scene_data.dataset import Sample
from scene_data.templates import prompt_messages
from scene_graph.boxes import BoxSpace, model_box_space
from scene_graph.notations.notation import answer_grammar
from services.images import ImageHeader
from services.models.families import model_family
from services.schemas.common import ChatMessage, Sampling
from services.schemas.rewards import ReferenceGraph
from services.settings import DataSettings, ModelSettings
from services.settings.training import EvaluationSettings


def box_space(model: ModelSettings, sample: Sample | ImageHeader) -> BoxSpace:
    """The space in which the policy writes this image's boxes."""
    if model.box_space not in ("auto", "pixels"):
        return BoxSpace.parse(model.box_space)
    family = model_family(model.path)
    name = model_box_space(
        family.box_space if model.box_space == "auto" else model.box_space,
        sample.width,
        sample.height,
        factor=family.patch_factor,
        min_pixels=model.min_pixels,
        max_pixels=model.max_pixels,
    )
    return BoxSpace.parse(name)


def image_messages(
    data: DataSettings, space: BoxSpace, *, may_think: bool = True
) -> list[ChatMessage]:
    """What is asked about an image whose boxes are written in that space."""
    thinking = data.thinking and may_think
    return prompt_messages(
        data.template,
        space,
        data.vocabulary,
        thinking=thinking,
        task=data.task,
        notation=data.notation,
    )


def answer_sampling(
    evaluation: EvaluationSettings,
    data: DataSettings,
    *,
    seed: int | None,
    constrained: bool,
    num_answers: int = 1,
) -> Sampling:
    """How answers to one picture are sampled outside training.

    Args:
        evaluation: Temperature and the like.
        data: What is asked for, in which notation.
        seed: Of no meaning where the temperature is 0.
        constrained: Under the grammar of an answer without thinking, which no grammar would end.
        num_answers: More than one needs a temperature over 0.
    """
    return Sampling(
        n=num_answers,
        temperature=evaluation.temperature,
        top_p=evaluation.top_p,
        top_k=evaluation.top_k,
        max_tokens=evaluation.max_tokens,
        seed=seed if evaluation.temperature else None,
        grammar=answer_grammar(data.notation, data.task) if constrained else None,
    )


def reference_graph(sample: Sample) -> ReferenceGraph:
    """A sample's graph; boxes stay pixels of the original image."""
    return ReferenceGraph.model_validate(sample.graph, from_attributes=True)
