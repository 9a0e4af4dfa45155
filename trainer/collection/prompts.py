"""What is asked for each position of the data order."""

from collections.abc import Sequence

from scene_data.dataset import SceneDataset
from scene_data.messages import box_space, reference_graph
from scene_data.sampler import EpochSampler, group_id
from scene_data.templates import prompt_messages
from services.images import ImageStore
from services.schemas.common import ImageRef, Sampling
from services.schemas.prompts import PromptGroup
from services.schemas.rewards import RewardGroup
from services.schemas.rollouts import Completion
from services.settings import Settings
from services.waiting import RoomWait


class PromptSource:
    """Makes prompts and references from the dataset; puts each image where the samplers find it.

    Args:
        settings: Of the run.
        dataset: Of the run.
        images: Shared with the rollout servers.
        incarnation: Of this start of the trainer.
        suppressed_token_ids: Never to be sampled.
    """

    def __init__(
        self,
        settings: Settings,
        dataset: SceneDataset,
        images: ImageStore,
        incarnation: int,
        suppressed_token_ids: Sequence[int],
    ) -> None:
        self._settings = settings
        self._dataset = dataset
        self._images = images
        self.incarnation = incarnation
        self._suppressed = list(suppressed_token_ids)
        self._room = RoomWait(settings.run.files.images, settings.trainer.wait_timeout_s)
        self._order = EpochSampler(len(dataset), settings.run.seed)

    def group_id(self, position: int) -> str:
        """The name of a position's group."""
        epoch, index = self._order.at(position)
        return group_id(self._settings.run.name, epoch, index)

    def prompt(self, position: int, policy_version: int) -> PromptGroup:
        """The prompt of a position.

        Args:
            position: In the endless sequence of epochs.
            policy_version: A server with older weights catches up before it samples.
        """
        epoch, index = self._order.at(position)
        sample = self._dataset[index]
        run, sampling = self._settings.run, self._settings.sampling
        return PromptGroup(
            group_id=self.group_id(position),
            incarnation=self.incarnation,
            epoch=epoch,
            index=index,
            messages=prompt_messages(
                self._settings.data.template,
                box_space(self._settings.model, sample),
                self._settings.data.vocabulary,
                thinking=self._settings.data.thinking,
                task=self._settings.data.task,
            ),
            images=[self._put(sample.image_bytes)],
            sampling=Sampling(
                n=self._settings.trainer.group_size,
                temperature=sampling.temperature,
                max_tokens=sampling.max_tokens,
                # Another seed for each position: the same prompt of another epoch is sampled anew.
                seed=(run.seed * 1_000_003 + position) % (1 << 31),
                suppress_token_ids=self._suppressed,
            ),
            min_policy_version=policy_version,
        )

    def restore_image(self, prompt: PromptGroup) -> None:
        """Put the image of a prompt into the store again, where it is gone or torn."""
        if not all(map(self._images.has, prompt.images)):
            self._put(self.image(prompt.index))

    def image(self, index: int) -> bytes:
        """The encoded image of a row."""
        return self._dataset[index].image_bytes

    def _put(self, image: bytes) -> ImageRef:
        """Into the store, once there is room."""
        return self._room.write(lambda: self._images.put(image))

    def reward_group(self, name: str, index: int, completions: list[Completion]) -> RewardGroup:
        """What the reward service is asked about a sampled group."""
        sample = self._dataset[index]
        return RewardGroup(
            group_id=name,
            image_size=(sample.width, sample.height),
            box_space=box_space(self._settings.model, sample),
            reference=reference_graph(sample),
            completions=[c.text for c in completions],
            require_thinking=self._settings.data.thinking,
            num_tokens=[len(c.token_ids) for c in completions],
        )
