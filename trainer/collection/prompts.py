"""What is asked for each position of the data order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scene_data.dataset import SceneDataset
from scene_data.messages import box_space, image_messages
from scene_data.sampler import EpochSampler, group_id
from scene_graph.notations.notation import answer_grammar
from services.images import ImageStore
from services.models.grammar_library import grammar_library
from services.schemas.common import ImageRef, Sampling
from services.schemas.prompts import PromptGroup
from services.settings import Settings
from services.waiting import RoomWait
from trainer.batches.images import ImageCheck
from trainer.collection.group_pool import GroupSource


@dataclass
class PromptSource:
    """Makes prompts from the dataset; puts each image where the samplers find it."""

    settings: Settings
    dataset: SceneDataset
    suppressed_token_ids: Sequence[int]
    """Never to be sampled."""
    image_check: ImageCheck | None = None
    """Without it images are not looked into."""
    incarnation: int = 0
    """The number of this start of the trainer, once it has one."""

    def __post_init__(self) -> None:
        folder = self.settings.run.files.images  # shared with the rollout servers
        self._images = ImageStore(folder)
        self._room = RoomWait(folder, self.settings.trainer.wait_timeout_s)
        self._constraint = _constraint(self.settings)
        self._order = EpochSampler(len(self.dataset), self.settings.run.seed)

    def group_id(self, position: int) -> str:
        """The name of a position's group."""
        epoch, index = self._order.at(position)
        return group_id(self.settings.run.name, epoch, index)

    def row(self, position: int) -> int:
        """The row of the dataset that a position's group is about."""
        return self._order.at(position)[1]

    def prompt(self, position: int) -> tuple[PromptGroup, GroupSource]:
        """The prompt of a position, for any version, and the row that it is about.

        Reads and decodes the image; from any thread.

        Args:
            position: In the endless sequence of epochs.

        Raises:
            InvalidInputError: The row's image cannot be used.
            TooLargeError: The same.
        """
        epoch, index = self._order.at(position)
        run, sampling = self.settings.run, self.settings.sampling
        sample, check = self.dataset[index], self.image_check
        source = GroupSource(
            sample=sample,
            box_space=box_space(self.settings.model, sample),
            notation=self.settings.data.notation,
            num_image_tokens=check.num_tokens(sample.image_bytes) if check else None,
        )
        prompt = PromptGroup(
            group_id=self.group_id(position),
            incarnation=self.incarnation,
            epoch=epoch,
            index=index,
            messages=image_messages(self.settings.data, source.box_space),
            images=[self._put(source)],
            sampling=Sampling(
                n=self.settings.trainer.group_size,
                temperature=sampling.temperature,
                max_tokens=sampling.max_tokens,
                # Another seed for each position: the same prompt of another epoch is sampled anew.
                seed=(run.seed * 1_000_003 + position) % (1 << 31),
                suppress_token_ids=list(self.suppressed_token_ids),
                **self._constraint,
            ),
        )
        return prompt, source

    def restore_image(self, prompt: PromptGroup, source: GroupSource) -> None:
        """Put the image of a prompt into the store again, where it is gone or torn."""
        if not all(map(self._images.has, prompt.images)):
            self._put(source)

    def _put(self, source: GroupSource) -> ImageRef:
        """Into the store, once there is room."""
        return self._room.write(lambda: self._images.put(source.sample.image_bytes))


def _constraint(settings: Settings) -> dict[str, Any]:
    """What a prompt says of the grammar and of `top_k`; a grammar's text, so that it stays it."""
    sampling, found = settings.sampling, dict[str, Any]()
    if sampling.constrain:
        data = settings.data
        found["grammar"] = answer_grammar(data.notation, data.task, thinking=data.thinking)
    if sampling.top_k:
        found |= {"top_k": sampling.top_k, "top_p": sampling.top_p, "kept_tokens": True}
    elif sampling.constrain:
        found["grammar_library"] = grammar_library()  # replayed, where nothing else says it
    return found | {"accept_renormalised": sampling.renormalises}
