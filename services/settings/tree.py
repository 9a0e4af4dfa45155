"""All settings of a run, as one typed tree."""

from collections.abc import Mapping

from pydantic import model_validator

from services.settings.deploy import DeploySettings
from services.settings.parts import (
    ClusterSettings,
    MonitorSettings,
    RedisSettings,
    RewardSettings,
    RolloutSettings,
    SecuritySettings,
    TelemetrySettings,
    WeightSettings,
)
from services.settings.run import DataSettings, ModelSettings, RunSettings
from services.settings.secrets import read_token, refuse_password, refuse_redis_password
from services.settings.section import Section
from services.settings.training import (
    AlgorithmSettings,
    DeepSpeedSettings,
    EvaluationSettings,
    LoraSettings,
    RecordsSettings,
    SamplingSettings,
    SftSettings,
    TrainerSettings,
)


class Settings(Section):
    """All of a run: one TOML file."""

    run: RunSettings = RunSettings()
    model: ModelSettings
    data: DataSettings
    redis: RedisSettings = RedisSettings()
    reward: RewardSettings = RewardSettings()
    rollout: RolloutSettings = RolloutSettings()
    monitor: MonitorSettings = MonitorSettings()
    sampling: SamplingSettings = SamplingSettings()
    algorithm: AlgorithmSettings = AlgorithmSettings()
    trainer: TrainerSettings = TrainerSettings()
    deepspeed: DeepSpeedSettings = DeepSpeedSettings()
    lora: LoraSettings = LoraSettings()
    weights: WeightSettings = WeightSettings()
    sft: SftSettings = SftSettings()
    records: RecordsSettings = RecordsSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    cluster: ClusterSettings = ClusterSettings()
    deploy: DeploySettings = DeploySettings()
    security: SecuritySettings = SecuritySettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        if self.algorithm.overlong_buffer > self.sampling.max_tokens:
            raise ValueError("algorithm.overlong_buffer is over sampling.max_tokens")
        parts, ranks = self.algorithm.num_mini_batches, self.trainer.num_ranks
        if self.trainer.groups_per_step % (parts * ranks):
            raise ValueError(
                f"trainer.groups_per_step ({self.trainer.groups_per_step}) must be a multiple of "
                f"algorithm.num_mini_batches ({parts}) times trainer.num_ranks ({ranks})"
            )
        if self.trainer.float32_head and self.model.head_dtype == "model":
            raise ValueError(
                "trainer.float32_head needs model.head_dtype = 'float32': 'model' rounds the logits"
            )
        refuse_redis_password(self.redis.url)
        refuse_password("reward.url", self.reward.url)
        refuse_password("rollout.url", self.rollout.url)
        refuse_password("monitor.url", self.monitor.url)
        refuse_password("telemetry.otlp_endpoint", self.telemetry.otlp_endpoint or "")
        return self

    def changed(self, **sections: Mapping[str, object]) -> "Settings":
        """The settings with other values in some sections, which are not checked again.

        Example: `settings.changed(run={"name": "other"})`
        """
        found = {name: getattr(self, name).model_copy(update=new) for name, new in sections.items()}
        return self.model_copy(update=found)

    @property
    def num_rollout_gpus(self) -> int:
        """The GPUs of all rollout servers together."""
        return self.cluster.num_rollout_servers * self.rollout.tensor_parallel_size

    @property
    def shares_gpus(self) -> bool:
        """Whether a rollout server and a rank of the trainer are on each GPU."""
        return self.weights.traits.same_gpu or self.deploy.kind == "colocated"

    @property
    def data_token(self) -> str | None:
        """For sampling and scoring routes: `SGG_DATA_TOKEN`, or the file's content."""
        return read_token("SGG_DATA_TOKEN", self.security.data_token_file)

    @property
    def admin_token(self) -> str | None:
        """For weight routes: `SGG_ADMIN_TOKEN`, or the file's content."""
        return read_token("SGG_ADMIN_TOKEN", self.security.admin_token_file)
