"""What a model sees in a picture."""

import base64
from typing import Literal

from pydantic import InstanceOf

from evaluation.inference.prompts import sendable
from services.errors import InvalidInputError
from services.schemas.rollouts import InlineImage
from services.schemas.scene_graphs import ImageError, ImageGraph, SceneGraphRequest
from sgg_rl.arguments import checked
from sgg_rl.clients import Client
from sgg_rl.pictures import Picture, encoded


@checked
def predict(
    picture: Picture,
    *,
    client: InstanceOf[Client],
    temperature: float | None = None,
    max_tokens: int | None = None,
    seed: int | None = None,
    constrain: Literal["never", "failures", "all"] | None = None,
) -> ImageGraph:
    """The scene graph that a rollout server's model writes of a picture; a notebook draws it.

    The server asks its run's own question, as in training.

    Example:
        >>> client = sgg_rl.Client(rollout_url="http://127.0.0.1:8200")
        >>> found = sgg_rl.predict("cat.png", client=client)
        >>> found.status, found.graph.objects[0].category
        ('ok', 'blue circle')

    Args:
        picture: A sample's, a file's name, an encoded file, a PIL image or an array of pixels.
        client: Whose rollout server is asked.
        temperature: 0 is greedy. None, here and below: as the run's settings say.
        max_tokens: Of the answer.
        seed: The same gives the same graph on one server.
        constrain: Whether to ask again under a grammar.

    Returns:
        `graph` in pixels of the upright picture, `status` (anything but `ok` has an empty graph),
        `confidence`, the answer's `text`, and `svg`.

    Raises:
        InvalidInputError: The picture cannot be read, or an option is out of range.
        TooLargeError: No request takes the picture, also as a JPEG.
        SggError: The server refused it or failed; its subclass and message say how.
    """
    data = sendable(encoded(picture))
    request = SceneGraphRequest(
        images=[InlineImage(data=base64.b64encode(data).decode())],
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
        constrain=constrain,
        text=True,
        draw="svg",
    )
    (found,) = client.rollout.scene_graphs(request).graphs
    if isinstance(found, ImageError):  # the client raises the error of a request's only picture
        raise InvalidInputError(found.error.detail)
    return found
